"""XNOR-Net's LeNet-5 on Fashion-MNIST: binary weights and binary activations in the inner convolution and the hidden layer.

    jaxopt compress --config=xnor_lenet5 --workdir=runs/xnor_lenet5

Float training, then ``alpha sign(w)`` with the gradient of eq. 12 and activations as their signs with the scales K (Rastegari
et al. 2016), in the paper's block order; the first layer and the last stay in float. Deployed, the two inner products are
exclusive or and population count on words. 20,000 images: ``--config.data.limit=0`` takes all 60,000.
``--config.stages[0].rule=`` leaves activations in float, which is the paper's binary weight network.

Three minutes of processor time on 2 cores (AMD EPYC), and more where other programs run.
Expected, seed 0, JAX 0.10.2: float 88.10 %, 87.50 % with signs, 89,140 bytes for 1,733,440 (19.4x); a batch of 32 took 0.6
of the float network's time on busy cores.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Fields are changed on the command line, e.g. ``--config.stages[0].epochs=10``."""
    return ConfigDict(
        {
            "seed": 0,
            "model": "experiments.models.fashion:xnor_lenet5",
            "checkpoint": "",
            "batch_size": 128,
            "data": {"source": "experiments.data.images:fashion_mnist", "dir": "", "validation": 0, "limit": 20000},
            "latency": [1, 32, 256],
            "float": {"epochs": 2, "learning_rate": 2e-3},
            "stages": [
                ConfigDict({
                    "name": "xnor", "method": "binarize", "where": "**/binary_*/kernel", "scale": "channel",
                    "gradient": "scaled", "epochs": 4, "learning_rate": 1e-3, "rule": "xnor",
                }),
            ],
        }
    )  # fmt: skip
