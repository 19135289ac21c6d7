"""LeNet-300-100 on handwritten digits, more than 10 times smaller for at most one point of accuracy.

python -m experiments.compress --config=configs/digits_quickstart.py --workdir=runs/digits_quickstart
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Fields are changed on the command line, e.g. ``--config.stages[1].sparsity=0.8 --config.data.folds=10``."""
    return ConfigDict(
        {
            "seed": 0,
            "model": "experiments.models.digits:build",
            "checkpoint": "",
            "batch_size": 64,
            "data": {"source": "experiments.data.digits:digits", "folds": 5, "cross_validate": True},
            "float": {"epochs": 50, "learning_rate": 1e-3},
            "stages": [
                ConfigDict({
                    "name": "clip", "method": "clip", "where": "**", "lo": -1.0, "hi": 1.0,
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
