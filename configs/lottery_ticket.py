"""LeNet-300-100 on handwritten digits: a twentieth of its weights that, set back to where they began, train like all of them.

    jaxopt compress --config=lottery_ticket --workdir=runs/lottery_ticket

TODO
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
