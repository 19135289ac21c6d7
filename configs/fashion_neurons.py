"""Neuron pruning: units that never fire on the training data are switched off, and not one answer changes.

    jaxopt compress --config=fashion_neurons --workdir=runs/fashion_neurons

LeNet-300-100 on Fashion-MNIST; a first stage masks the units whose output is 0 on all 60,000 training images (fan-in, bias
and fan-out), a second the half of each layer that moves the next one least, with 5 epochs of training.

About 30 s on 2 cores (AMD EPYC).
Expected, seed 0, JAX 0.10.2: float 89.82 %, without the dead units 89.82 %, with half of the rest 89.72 %.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Fields are changed on the command line, e.g. ``--config.stages[1].share=0.8``."""
    return ConfigDict(
        {
            "seed": 0,
            "model": "experiments.models.fashion:lenet300",
            "checkpoint": "",
            "batch_size": 128,
            "data": {"source": "experiments.data.images:fashion_mnist", "dir": "", "validation": 0, "limit": 0},
            "float": {"epochs": 15, "learning_rate": 3e-3},
            "stages": [
                ConfigDict({"name": "dead", "method": "prune_neurons", "threshold": 0.0, "epochs": 0}),
                ConfigDict({
                    "name": "half", "method": "prune_neurons", "share": 0.5, "epochs": 5, "learning_rate": 1e-3,
                }),
            ],
        }
    )  # fmt: skip
