"""A small vision transformer without half of its heads and half of its MLP width, on Fashion-MNIST."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Fields are changed on the command line, e.g. ``--config.stages[0].score=taylor``."""
    return ConfigDict(
        {
            "seed": 0,
            "model": "experiments.models.fashion:vit",
            "model_args": {"patch": 7, "width": 64, "layers": 2, "heads": 4, "hidden": 128},
            "checkpoint": "",
            "batch_size": 128,
            "data": {"source": "experiments.data.images:fashion_mnist", "dir": "", "validation": 0, "limit": 0},
            "latency": [1, 256],
            "control": True,
            "float": {"epochs": 4, "learning_rate": 3e-3},
            "stages": [
                ConfigDict({
                    "name": "cut", "method": "cut_units", "score": "norm_product",
                    "widths": {"**/query/kernel axis 1": 0.5, "**/up/kernel": 0.5},
                    "epochs": 4, "learning_rate": 3e-3,
                }),
            ],
        }
    )  # fmt: skip
