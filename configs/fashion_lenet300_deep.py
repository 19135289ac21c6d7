"""LeNet-300-100 on Fashion-MNIST: gradual pruning, then 4 bits, the order of Deep Compression.

    jaxopt compress --config=fashion_lenet300_deep --workdir=runs/fashion_lenet300_deep

90 % of the weights go on the cubic schedule of Zhu and Gupta (2017), allocated by Erdos-Renyi (RigL, Evci et al. 2020), over
the first 40 % of 10 epochs at a constant rate, which end with the moving average of the weights; then 5 epochs of
straight-through training with 4-bit weights per channel. Sparsity, allocation and bits are meant to be swept, e.g.
``jaxopt sweep --grid="stages[0].sparsity.final=0.9,0.95,0.98,0.99" --seeds=5``.

About 35 s on 2 cores (AMD EPYC).
Expected, seed 0, JAX 0.10.2: float 89.71 %, 89.89 % pruned (7.5x), 90.14 % with 4 bits, 49,865 bytes for 1,066,440 (21.4x, 1.50
bits a weight with masks, scales and biases). Over five seeds 89.83 % pruned; float 89.58 %.
Deep Compression (Han et al. 2016, table 1) makes LeNet-300-100 on MNIST 40 times smaller, with shared weights and Huffman
coding besides, at no loss.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Fields are changed on the command line, e.g. ``--config.stages[0].sparsity.final=0.95``."""
    return ConfigDict(
        {
            "seed": 0,
            "model": "experiments.models.fashion:lenet300",
            "checkpoint": "",
            "batch_size": 128,
            "data": {"source": "experiments.data.images:fashion_mnist", "dir": "", "validation": 0, "limit": 0},
            "float": {"epochs": 15, "learning_rate": 1e-3},
            "stages": [
                ConfigDict({
                    "name": "prune", "method": "prune", "where": "**/kernel", "criterion": "magnitude",
                    "allocation": "erk", "sparsity": {"schedule": "cubic", "final": 0.9, "begin": 0.0, "end": 0.4},
                    "every": 25, "epochs": 10, "learning_rate": {"schedule": "constant", "value": 3e-3}, "weight_decay": 0.1,
                    "ema": 0.999, "rule": "",
                }),
                ConfigDict({
                    "name": "quantize", "method": "quantize", "where": "**/kernel", "bits": 4, "group": -1,
                    "epochs": 5, "learning_rate": 1e-3, "rule": "w4a16",
                }),
            ],
        }
    )  # fmt: skip
