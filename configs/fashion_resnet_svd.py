"""A residual network whose convolutions are factored."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Fields are changed on the command line, e.g. ``--config.stages[0].macs=0.4``."""
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
                    "name": "tucker", "method": "low_rank", "where": "params/ResidualBlock_*/Conv_*/kernel", "form": "tucker",
                    "macs": 0.5, "multiple": 8, "epochs": 4, "learning_rate": 3e-3,
                }),
            ],
        }
    )  # fmt: skip
