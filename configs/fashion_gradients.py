"""Do gradients vanish under quantization? Gradient norms by layer, for three derivatives of rounding, over the widths.

    jaxopt compress --config=fashion_gradients --workdir=runs/fashion_gradients
    jaxopt gradients --config=fashion_gradients --workdir=runs/fashion_gradients_study

The first command logs and plots one case; the second runs all (``pass``, ``clip``, ``none`` at 8, 4, 2 and 1 bits) and writes
``findings.md``. The network is trained with rounded weights from the start. Weights are clipped to two standard deviations of
each leaf's initial weights, so that some lie outside the range: with the plain range by largest magnitude none would, and
"clip" would be "pass".

About 15 s for the first command, 2 minutes for the second, on 2 cores (AMD EPYC).
Expected, seed 0, JAX 0.10.2: 87.55 % at 4 bits; the findings are in ``docs/results/vanishing-gradients.md``.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Fields are changed on the command line, e.g. ``--config.stages[1].bits=2``."""
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
                    "name": "box", "method": "clip_std", "where": "**/kernel", "k": 2.0, "ste": "clip", "project": False,
                    "epochs": 0,
                }),
                ConfigDict({
                    "name": "rounded", "method": "quantize", "where": "**/kernel", "bits": 4, "ste": "clip",
                    "epochs": 5, "learning_rate": 1e-3, "rule": "", "gradient_norms": True,
                }),
            ],
        }
    )  # fmt: skip
