"""A student of at most a tenth of its teacher's parameters learns from the teacher's outputs, on Fashion-MNIST.

    python -m experiments.compress --config=configs/fashion_distill.py --workdir=runs/fashion_distill
    python -m experiments.sweep --config=configs/fashion_distill.py --workdir=runs/fashion_distill_sweep --seeds=5 \\
        --grid="float.distill.hard_weight=0.0,1.0" --baseline="hard_weight=1.0"

The teacher is LeNet-300-100 (266,610 parameters), the student one hidden layer of 32 units (25,450); ``hard_weight=1`` trains
on the labels alone. So small a student underfits, and a high temperature costs it accuracy: on held-out training images T = 1
and the teacher alone were best, T = 4 was worse than no teacher.

TIME
EXPECTED
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Fields are changed on the command line, e.g. ``--config.float.distill.temperature=8.0``."""
    return ConfigDict(
        {
            "seed": 0,
            "model": "experiments.models.fashion:lenet300",
            "model_args": {"hidden": [32]},
            "checkpoint": "",
            "batch_size": 128,
            "data": {"source": "experiments.data.images:fashion_mnist", "dir": "", "validation": 0, "limit": 0},
            "teacher": {
                "model": "experiments.models.fashion:lenet300", "model_args": {"hidden": [300, 100]}, "checkpoint": "",
                "float": {"epochs": 15, "learning_rate": 3e-3},
            },
            "float": {
                "epochs": 15, "learning_rate": 5e-3, "distill": {"temperature": 1.0, "hard_weight": 0.0},
            },
            "stages": [
                ConfigDict({
                    "name": "quantize", "method": "quantize", "where": "**/kernel", "bits": 8, "epochs": 0, "rule": "w8a16",
                }),
            ],
        }
    )  # fmt: skip
