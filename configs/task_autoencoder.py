"""An autoencoder, 60 % pruned and rounded to 4 bits.

    jaxopt compress --config=task_autoencoder --workdir=runs/task_autoencoder

scikit-learn's digits of 64 pixels through 8 numbers and back, fold 0 of 5. About 40 s of CPU time on 2 cores.

Expected, seed 0, JAX 0.10.2: root mean square error of a pixel in [0, 1] 0.1232 before, 0.1245 pruned, 0.1240 in 4 bits; the
best 8 linear numbers, principal components of the training images, leave 0.1556. 8,616 bytes for 75,040 (8.7x).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,
            "model": "experiments.tasks.autoencoder:network",
            "batch_size": 64,
            "data": {"source": "experiments.tasks.autoencoder:task"},
            "float": {"epochs": 60, "learning_rate": 2e-3},
            "stages": [
                ConfigDict({
                    "name": "prune", "method": "prune", "where": "**", "sparsity": 0.6, "allocation": "global_budget",
                    "epochs": 30, "learning_rate": 2e-3,
                }),
                ConfigDict({
                    "name": "quantize", "method": "quantize", "where": "**", "bits": 4, "epochs": 30, "learning_rate": 2e-3,
                    "rule": "w4a8",
                }),
            ],
        }
    )  # fmt: skip
