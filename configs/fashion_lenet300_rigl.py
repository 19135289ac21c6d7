"""LeNet-300-100 on Fashion-MNIST, trained from scratch with a tenth of its weights, which move while it trains: RigL.

    jaxopt compress --config=fashion_lenet300_rigl --workdir=runs/fashion_lenet300_rigl

TODO
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Fields are changed on the command line, e.g. ``--config.stages[0].sparsity=0.95 --config.stages[0].epochs=34``."""
    return ConfigDict(
        {
            "seed": 0,
            "model": "experiments.models.fashion:lenet300",
            "checkpoint": "",
            "batch_size": 128,
            "data": {"source": "experiments.data.images:fashion_mnist", "dir": "", "validation": 0, "limit": 0},
            "float": {"epochs": 0, "learning_rate": 1e-3},
            "stages": [
                ConfigDict({
                    "name": "rigl", "method": "prune", "where": "**/kernel", "criterion": "magnitude", "sparsity": 0.9,
                    "allocation": "erk", "regrow": {"name": "rigl", "end": 0.75, "share": 0.3, "start": "random"},
                    "every": 100, "epochs": 22, "learning_rate": 3e-3, "rule": "",
                }),
            ],
        }
    )  # fmt: skip
