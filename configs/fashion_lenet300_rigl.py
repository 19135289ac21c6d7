"""LeNet-300-100 on Fashion-MNIST, trained from scratch with a tenth of its weights, which move while it trains: RigL.

    jaxopt compress --config=fashion_lenet300_rigl --workdir=runs/fashion_lenet300_rigl

RigL (Evci et al. 2020) as in its paper: random masks, shared out by ERK; every 100 steps until three quarters of the training
the smallest weights, 30 % at first, give way to those whose gradient is steepest. 22 epochs are as many as make the MACs of 10
epochs of gradual magnitude pruning, which starts dense; for 95 % they are 34.

About 40 s of CPU time on 2 cores (AMD EPYC).
Expected, seed 0, JAX 0.10.2: 89.06 % with 10 % of the weights. Over three seeds 88.92 %, gradual pruning at the same training
MACs 89.16 %, the dense network in 10 epochs (4.4 times the MACs) 89.49 %; at 95 % RigL 88.62 %, gradual 88.79 %: here RigL is
not ahead, and random masks that stay do as well (``experiments.benchmarks.rigl``).
The paper: ResNet-50 on ImageNet, ERK, five times the training: 76.4 % at 90 % (1.23 of the dense training's MACs) and 74.6 % at
95 % (0.63), the dense network 76.8 %.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Fields are changed on the command line, e.g. ``--config.stages[0].sparsity=0.95 --config.stages[0].epochs=34``."""
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
                    "name": "rigl", "method": "prune", "where": "**/kernel", "criterion": "magnitude", "sparsity": 0.9,
                    "allocation": "erk", "regrow": {"name": "rigl", "end": 0.75, "share": 0.3, "start": "random"},
                    "every": 100, "epochs": 22, "learning_rate": 3e-3, "rule": "",
                }),
            ],
        }
    )  # fmt: skip
