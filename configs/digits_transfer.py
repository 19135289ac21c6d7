"""Weight transfer: a network begins from the weights of another one that was trained before it.

    jaxopt compress --config=digits_transfer --workdir=runs/digits_transfer

An NNX LeNet-300-100 starts from a Flax Linen one by a map of paths (``params/Dense_0/kernel`` to ``layers/0/kernel``) and
trains for 2 epochs; ``--config.start.how=""`` is the same from random weights.

About 15 s on 2 cores (AMD EPYC).
Expected, seed 0, JAX 0.10.2: 97.94 % after 2 epochs, over 1,797 images in 5 folds; with 8 bits 98.00 %.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Fields are changed on the command line, e.g. ``--config.float.epochs=0``."""
    return ConfigDict(
        {
            "seed": 0,
            "model": "experiments.models.digits:lenet300_nnx",
            "model_args": {"hidden": [300, 100]},
            "checkpoint": "",
            "batch_size": 64,
            "data": {"source": "experiments.data.digits:digits", "folds": 5, "cross_validate": True},
            "teacher": {
                "model": "experiments.models.digits:build", "model_args": {}, "checkpoint": "",
                "float": {"epochs": 50, "learning_rate": 1e-3},
            },
            "start": {"how": "weights", "rename": [["params/Dense_*/*", "layers/*/*"]]},
            "float": {"epochs": 2, "learning_rate": 1e-3},
            "stages": [
                ConfigDict({
                    "name": "quantize", "method": "quantize", "where": "**/kernel", "bits": 8, "epochs": 0, "rule": "w8a16",
                }),
            ],
        }
    )  # fmt: skip
