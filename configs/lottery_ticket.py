"""LeNet-300-100 on handwritten digits: a thirteenth of its weights that, set back to where they began, train nearly like all.

    jaxopt compress --config=lottery_ticket --workdir=runs/lottery_ticket

Frankle & Carbin (2019): the dense network is trained; the smallest 40 % of its weights, over all layers, go, and the others are
set back to their first values (``rewind``); so for six rounds, in each of which what is left is trained as long as the dense
network was. On scikit-learn's 1797 images, in 5 folds.

About 6 minutes of CPU time on 2 cores (AMD EPYC).
Expected, seed 0, JAX 0.10.2, of the first two folds: 98.89 and 97.50 % dense, 98.06 and 96.39 % with 7.8 % of the weights, 97.50
and 92.78 % with 4.7 %. Drawn anew under the same masks they come to 96.39 and 91.39 % at 7.8 %, chosen in one round to 96.11
and 91.39 % (``experiments.benchmarks.lottery``).
The paper, LeNet-300-100 on MNIST: tickets of few per cent of the weights train like the dense network; drawn anew they do not.
"""

from ml_collections import ConfigDict

#: Share of the weights that each round keeps, and how many rounds.
KEPT, ROUNDS = 0.6, 6


def get_config() -> ConfigDict:
    """Fields are changed on the command line, e.g. ``--config.stages[1].allocation=per_leaf``."""
    training = {"epochs": 40, "learning_rate": 1e-3, "rule": ""}
    rounds = [
        ConfigDict({
            "name": f"round_{i}", "method": "prune", "where": "**/kernel", "criterion": "magnitude",
            "allocation": "global_budget", "sparsity": 1 - KEPT**i, "rewind": "dense", **training,
        })
        for i in range(1, ROUNDS + 1)
    ]  # fmt: skip
    return ConfigDict(
        {
            "seed": 0,
            "model": "experiments.models.digits:build",
            "checkpoint": "",
            "batch_size": 64,
            "data": {"source": "experiments.data.digits:digits", "folds": 5, "cross_validate": True, "valid": 0.0},
            "float": {"epochs": 0, "learning_rate": 1e-3},
            "stages": [ConfigDict({"name": "dense", "method": "identity", **training}), *rounds],
        }
    )
