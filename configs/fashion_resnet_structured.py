"""A residual network cut to a half and to a quarter of its multiply-accumulates, on Fashion-MNIST."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Fields are changed on the command line, e.g. ``--config.stages[0].macs=0.75``."""
    return ConfigDict(
        {
            "seed": 0,
            "model": "experiments.models.fashion:resnet",
            "model_args": {"channels": [48, 64], "blocks": 1, "stride": 4},
            "checkpoint": "",
            "batch_size": 128,
            "data": {"source": "experiments.data.images:fashion_mnist", "dir": "", "validation": 0, "limit": 0},
            "latency": [1, 256],
            "control": True,
            "float": {"epochs": 4, "learning_rate": 3e-3},
            "stages": [
                ConfigDict({
                    "name": "cut", "method": "cut_units", "score": "norm_product", "macs": 0.5, "multiple": 8,
                    "allocation": "per_layer",
                    "epochs": 4, "learning_rate": 3e-3,
                }),
            ],
        }
    )  # fmt: skip
