"""LeNet-300-100 on handwritten digits: 16 times smaller, the same architecture, at most one point of accuracy lost.

    jaxopt compress --config=digits_quickstart --workdir=runs/digits_quickstart

Clipping to [-1, 1], 88 % global magnitude pruning and 4-bit weights, each with fine-tuning, on scikit-learn's 1797 images,
in 5 folds: every image is tested once by a network that was not trained on it. About 35 s of CPU time on 2 cores.

Expected, seed 0, JAX 0.10.2: baseline 98.05 %, final 98.00 % (0.06 points lost; 0.28 on a CPU that sums in another order),
12,568 bytes for 202,440 (16.1x, 1.99 bits a weight with masks, scales and biases), 14.4 kB as an artifact on disk, which holds
the config too. Deep Compression (Han et al., 2016, table 1) makes LeNet-300-100 on MNIST 40 times smaller with shared weights
and Huffman coding.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Fields are changed on the command line, e.g. ``--config.stages[1].sparsity=0.8 --config.data.folds=10``."""
    return ConfigDict(
        {
            "seed": 0,
            "model": "experiments.models.digits:build",
            "checkpoint": "",
            "checkpoint_seconds": 10.0,
            "batch_size": 64,
            "control": True,
            "data": {"source": "experiments.data.digits:digits", "folds": 5, "cross_validate": True, "valid": 0.1},
            "float": {"epochs": 50, "learning_rate": 1e-3},
            "stages": [
                ConfigDict({
                    "name": "clip", "method": "clip", "where": "**", "lo": -0.25, "hi": 0.25,
                    "epochs": 5, "learning_rate": 1e-3, "rule": "",
                }),
                ConfigDict({
                    "name": "prune", "method": "prune", "where": "**", "criterion": "magnitude",
                    "sparsity": 0.88, "allocation": "global_budget", "epochs": 30, "learning_rate": 3e-3, "rule": "",
                }),
                ConfigDict({
                    "name": "quantize", "method": "quantize", "where": "**", "bits": 4, "group": -1,
                    "epochs": 40, "learning_rate": 3e-3, "rule": "w4a16",
                }),
            ],
        }
    )  # fmt: skip
