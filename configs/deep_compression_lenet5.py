"""Deep Compression (Han et al., 2016) of LeNet-5-Caffe on Fashion-MNIST: pruned, weights shared, trained, coded, in one file.

    jaxopt compress --config=deep_compression_lenet5 --workdir=runs/deep_compression_lenet5
    jaxopt list runs/deep_compression_lenet5/network.jn

Expected: to be measured.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Fields are changed on the command line, e.g. ``--config.stages[0].sparsity.final=0.95``."""
    return ConfigDict(
        {
            "seed": 0,
            "model": "experiments.models.fashion:lenet5",
            "checkpoint": "",
            "batch_size": 128,
            "data": {"source": "experiments.data.images:fashion_mnist", "dir": "", "validation": 0, "limit": 0},
            "float": {"epochs": 6, "learning_rate": 1e-3},
            "stages": [
                ConfigDict({
                    "name": "prune", "method": "prune", "where": "**/kernel", "criterion": "magnitude",
                    "allocation": "erk", "sparsity": {"schedule": "cubic", "final": 0.92, "begin": 0.0, "end": 0.5},
                    "every": 25, "epochs": 6, "learning_rate": {"schedule": "constant", "value": 3e-3}, "weight_decay": 0.1,
                    "ema": 0.999, "rule": "",
                }),
                ConfigDict({
                    "name": "share", "method": "cluster", "where": "**/kernel", "bits": 5, "start": "linear",
                    "epochs": 2, "learning_rate": 3e-4,
                }),
            ],
        }
    )  # fmt: skip
