"""LeNet-300-100 on handwritten digits: an eighth of its weights that, set back to where they began, train like all of them.

    jaxopt compress --config=lottery_ticket --workdir=runs/lottery_ticket

Frankle & Carbin (2019): the dense network is trained; the smallest 40 % of its weights, over all layers, go, and the others are
set back to their first values (``rewind``); so for six rounds, in each of which what is left is trained as long as the dense
network was. On scikit-learn's 1797 images, in 5 folds.

About 6 minutes of CPU time on 2 cores (AMD EPYC).
Expected, seed 0, JAX 0.10.2, means over folds: 98.00 % dense, 97.38 % with 13 % of the weights, 96.72 % with 7.8 %, 95.05 %
with 4.7 %. Drawn anew under the same masks they come to 95.16, 93.77 and 92.65 %, chosen in one round to 96.77, 93.77 and
67.27 % (``experiments.benchmarks.lottery``).
The paper, LeNet-300-100 on MNIST: tickets of a few per cent of the weights train like the dense network; drawn anew they don't.
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
