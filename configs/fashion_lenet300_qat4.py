"""LeNet-300-100 on Fashion-MNIST with 4-bit weights: straight-through training after float training.

    jaxopt compress --config=fashion_lenet300_qat4 --workdir=runs/fashion_lenet300_qat4

One scale for each output channel, range by largest magnitude, 10 epochs with Adam. ``--config.stages[0].epochs=0`` is
post-training rounding; ``--config.stages[0].bits=6`` or ``8`` other widths; ``--config.stages[0].rule=w4a8`` runs integer
products, and trains with activations that are rounded alike (``--config.stages[0].training_rule=float``: in float).

About 30 s on 2 cores (AMD EPYC).
Expected, seed 0, JAX 0.10.2: float 89.82 %, 4 bits 89.77 %, 136,380 bytes for 1,066,440 (7.8x); over five seeds 89.77 % and
89.95 %.
Qwix's straight-through training at 4 bits, beside it from the same networks: ``experiments.benchmarks.foundation``.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Fields are changed on the command line, e.g. ``--config.stages[0].bits=3``."""
    return ConfigDict(
        {
            "seed": 0,
            "model": "experiments.models.fashion:lenet300",
            "checkpoint": "",
            "batch_size": 128,
            "data": {"source": "experiments.data.images:fashion_mnist", "dir": "", "validation": 0, "limit": 0},
            "float": {"epochs": 15, "learning_rate": 3e-3},
            "stages": [
                ConfigDict({
                    "name": "quantize", "method": "quantize", "where": "**/kernel", "bits": 4, "signed": True,
                    "symmetric": True, "granularity": "channel", "ste": "clip", "epochs": 10, "learning_rate": 1e-3,
                    "rule": "w4a16", "training_rule": "",
                }),
            ],
        }
    )  # fmt: skip
