"""Structure transfer: a student of half the widths starts from the teacher's most important units.

    jaxopt compress --config=fashion_slices --workdir=runs/fashion_slices

LeNet-300-100 on Fashion-MNIST teaches LeNet-150-50, which begins as slices of it and trains for 3 epochs.
``--config.start.how=""`` is the same student from random weights.

About 25 s on 2 cores (AMD EPYC).
Expected, seed 0, JAX 0.10.2: teacher 89.82 %, student 89.78 %, with 8 bits 89.83 %; 127,280 bytes for the teacher's 1,066,440.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Fields are changed on the command line, e.g. ``--config.float.epochs=0``."""
    return ConfigDict(
        {
            "seed": 0,
            "model": "experiments.models.fashion:lenet300",
            "model_args": {"hidden": [150, 50]},
            "checkpoint": "",
            "batch_size": 128,
            "data": {"source": "experiments.data.images:fashion_mnist", "dir": "", "validation": 0, "limit": 0},
            "teacher": {
                "model": "experiments.models.fashion:lenet300", "model_args": {"hidden": [300, 100]}, "checkpoint": "",
                "float": {"epochs": 15, "learning_rate": 3e-3},
            },
            "start": {"how": "slices", "widths": 0.5},
            "float": {"epochs": 3, "learning_rate": 1e-3},
            "stages": [
                ConfigDict({
                    "name": "quantize", "method": "quantize", "where": "**/kernel", "bits": 8, "epochs": 0, "rule": "w8a16",
                }),
            ],
        }
    )  # fmt: skip
