"""A residual network whose convolutions are factored: half of its multiply-accumulates, faster in proportion.

    jaxopt compress --config=fashion_resnet_svd --workdir=runs/fashion_resnet_svd

The network of ``fashion_resnet_structured``: patches of 4 x 4 pixels, a residual block of 48 channels on 7 x 7 places and one
of 64 on 4 x 4, trained for 4 epochs. The convolutions of the blocks become Tucker factors (Kim et al. 2016): 1 x 1 to fewer
channels, 3 x 3, 1 x 1 back. Ranks are multiples of 8 and share one budget of multiply-accumulates; 4 more epochs train the
factors. The control trains the whole network for these 4 epochs as well.

About 4 minutes on 2 cores (AMD EPYC). Expected, JAX 0.10.2, seed 0, test data; times over the dense network's, of networks
that take turns, with 95 % intervals:

    network     MACs        bytes     accuracy, %   time at a batch of 256    at a batch of 1
    dense       3,151,744   447,272   90.90         1                         1
    factored    1,575,936   271,912   91.58         0.63 (0.60 to 0.65)       1.26 (1.20 to 1.31)
    control     3,151,744   447,272   91.53         1                         1

Ranks are 24 and 24 of 48 in the first block, and 40 and 40 of 64 in the last convolution; the one from 48 to 64 channels stays
as it is. The dense network has not learnt all that it can in 4 epochs; beside one that is trained as long nothing is lost. One
image at a time gains nothing: three small convolutions take longer to start than one.

At half of the multiply-accumulates of one 3 x 3 convolution (64 channels, 7 x 7 places, batch 256; at a load of about 2)
Tucker's three took 0.47 of its time, the channel form's two 0.60, the spatial form's two 0.61.

On ImageNet Kim et al. report GoogLeNet at 2.06 times fewer multiply-accumulates with 0.24 points lost of the top five.
"""

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
