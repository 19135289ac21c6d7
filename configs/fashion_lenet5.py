"""LeNet-5-Caffe on Fashion-MNIST: convolutions pruned and quantized with the classifier.

    jaxopt compress --config=fashion_lenet5 --workdir=runs/fashion_lenet5

90 % sparse by Erdos-Renyi-kernel on the cubic schedule, then 4-bit weights; 2 + 2 + 1 epochs over 20,000 images, since a
convolution takes a CPU long: ``--config.data.limit=0`` takes all 60,000.

About 4 minutes on 2 cores (AMD EPYC).
Expected, seed 0, JAX 0.10.2: float 85.94 %, 86.34 % pruned, 86.36 % with 4 bits, 79,979 bytes for 1,724,320 (21.6x).
Deep Compression (Han et al. 2016, table 1) makes LeNet-5 on MNIST 39 times smaller, with shared weights and Huffman coding.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Fields are changed on the command line, e.g. ``--config.float.epochs=15``."""
    return ConfigDict(
        {
            "seed": 0,
            "model": "experiments.models.fashion:lenet5",
            "checkpoint": "",
            "batch_size": 128,
            "data": {"source": "experiments.data.images:fashion_mnist", "dir": "", "validation": 0, "limit": 20000},
            "latency": [1, 32, 256],
            "float": {"epochs": 2, "learning_rate": 2e-3},
            "stages": [
                ConfigDict({
                    "name": "prune", "method": "prune", "where": "**/kernel", "criterion": "magnitude",
                    "allocation": "erk", "sparsity": {"schedule": "cubic", "final": 0.9, "begin": 0.0, "end": 0.5},
                    "every": 25, "epochs": 2, "learning_rate": 2e-3, "rule": "",
                }),
                ConfigDict({
                    "name": "quantize", "method": "quantize", "where": "**/kernel", "bits": 4,
                    "epochs": 1, "learning_rate": 5e-4, "rule": "w4a16",
                }),
            ],
        }
    )  # fmt: skip
