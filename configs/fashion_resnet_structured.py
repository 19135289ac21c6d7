"""A residual network with half, and with a quarter, of its multiply-accumulates: faster in proportion, on Fashion-MNIST.

    jaxopt compress --config=fashion_resnet_structured --workdir=runs/fashion_resnet
    jaxopt sweep --config=fashion_resnet_structured --workdir=runs/fashion_resnet_sweep --seeds=5 \\
        --grid="stages[0].macs=0.5,0.75"

Patches of 4 x 4 pixels, a residual block of 48 channels on 7 x 7 places and one of 64 on 4 x 4, trained for 4 epochs. The
channels of the smallest fan-in times fan-out go, the same share of each layer, and 4 more epochs train what is left;
``--config.stages[0].macs=0.75`` leaves a quarter. The control trains the whole network for these 4 epochs as well.

About 4 minutes on 2 cores (AMD EPYC), the sweep with its controls half an hour.
Expected, JAX 0.10.2, 5 seeds, test data, means and standard deviations; differences with their standard errors:

    network     MACs        bytes     accuracy, %     less dense      less control    time at a batch of 256
    dense       3,151,744   447,272   90.85 (0.04)                                    1
    half        1,506,272   225,960   91.24 (0.22)    +0.39 (0.10)    -0.23 (0.12)    0.52 (0.50 to 0.53)
    a quarter     702,192    90,088   90.52 (0.19)    -0.33 (0.07)    -0.94 (0.08)    0.31 (0.30 to 0.33)
    control     3,151,744   447,272   91.48 (0.06)    +0.62 (0.01)                     1

The control's figures are of seeds 0, 2, 3 and 4. The dense network has not learnt all that it can in 4 epochs: beside one that
is trained as long as the cut ones, half loses 0.23 points and a quarter 0.94.

Channels that stay are multiples of 8: 32 of 48 and 48 of 64 of half, 24 and 24 of a quarter. Without that XLA's programs for
CPUs lose what was won: at half of the multiply-accumulates another network (16, 32 and 64 channels, ``stride=2``) took 1.14
of the dense one's time with 45 of 64 channels, 0.69 with 48. Times over the dense network's are of networks that take turns
(400 rounds on an idle machine), medians with 95 % intervals.

Tried on validation data (``--config.data.validation=10000``, seed 0, 5 epochs before: 91.39 %), a quarter left: 3 epochs at
1e-3 lose 1.47 points by ``norm_product`` and 1.88 by ``taylor``; 5 epochs at 3e-3 lose 0.71 by ``norm_product``.

On CIFAR-10 ResNet-56 loses 0.60 points at 2.1 times fewer multiply-accumulates by group norms as the Torch-Pruning benchmark
lists them (Fang et al. 2023), and 0.23 by soft filter pruning (He et al. 2018).
"""

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
                    "allocation": "per_layer", "epochs": 4, "learning_rate": 3e-3,
                }),
            ],
        }
    )  # fmt: skip
