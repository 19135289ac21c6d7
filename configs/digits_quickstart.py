"""LeNet-300-100 on handwritten digits: 16 times smaller, the same architecture, at most one point of accuracy lost.

    python -m experiments.compress --config=configs/digits_quickstart.py --workdir=runs/digits_quickstart

88 % global magnitude pruning; the weights that are left clipped to [-0.5, 0.5], so that the steps of 4 bits are finer; 4-bit
weights. Each stage is trained after. On scikit-learn's 1797 images, in 5 folds: every image is tested once by a network that
was not trained on it. A tenth of each fold's training part is validation data, by which stages are compared. The control trains
the float network as long. About TIME s of CPU time on 2 cores.

TABLE

Deep Compression (Han et al., 2016, table 1) makes LeNet-300-100 on MNIST 40 times smaller with shared weights and Huffman
coding.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Fields are changed on the command line, e.g. ``--config.stages[0].sparsity=0.8 --config.data.folds=10``."""
    return ConfigDict(
        {
            "seed": 0,
            "model": "experiments.models.digits:build",
            "checkpoint": "",
            "checkpoint_seconds": 10.0,
            "batch_size": 64,
            "control": True,
            "data": {"source": "experiments.data.digits:digits", "folds": 5, "cross_validate": True, "valid": 0.1},
            "float": {"epochs": 40, "learning_rate": 1e-3},
            "stages": [
                ConfigDict({
                    "name": "prune", "method": "prune", "where": "**", "criterion": "magnitude",
                    "sparsity": 0.88, "allocation": "global_budget", "epochs": 25, "learning_rate": 3e-3, "rule": "",
                }),
                ConfigDict({
                    "name": "clip", "method": "clip", "where": "**", "lo": -0.5, "hi": 0.5,
                    "epochs": 5, "learning_rate": 1e-3, "rule": "",
                }),
                ConfigDict({
                    "name": "quantize", "method": "quantize", "where": "**", "bits": 4, "group": -1,
                    "epochs": 30, "learning_rate": 3e-3, "rule": "w4a16",
                }),
            ],
        }
    )  # fmt: skip
