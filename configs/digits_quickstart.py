"""LeNet-300-100 on handwritten digits: 16 times smaller, the same architecture, at most one point of accuracy lost.

    jaxopt compress --config=digits_quickstart --workdir=runs/digits_quickstart

88 % global magnitude pruning; what is left clipped to [-0.5, 0.5], so that the steps of 4 bits are finer; 4-bit weights. Each
stage is trained after, and a control trains the float network as long. On scikit-learn's 1797 images, in 5 folds: every image
is tested once by a network that was not trained on it. A tenth of each fold's training part is validation data, by which stages
are compared. 42 s on 2 idle cores, 53 s of CPU time.

Expected, seed 0, JAX 0.10.2, means over folds of the test data and half of the 95 % interval: baseline 97.89 % (0.58), final
97.55 % (0.96), difference -0.33 points (0.67), control 98.16 % (0.76); 12,567 bytes for 202,440 (16.1x, 1.99 bits a weight with
masks, scales and biases). By the box of the clipping, with 20 epochs of pruning and of quantization in place of 25 and 30:

    box     clipped, % of the first, second and last kernel    final less baseline, points
    1.0     0.0   0.0    0.0                                   -0.33 (0.45)
    0.5     1.0   0.1    6.8                                   -0.50 (0.82)
    0.35    6.2   1.5   19.2                                   -0.56 (0.95)

All agree within their intervals: after training in 4 bits the finer steps gain nothing that could be seen here. Clipping before
pruning, to 0.25, costs 3.1 points (1.0): the few weights that pruning leaves must be large.

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
                    "sparsity": 0.8, "allocation": "global_budget", "epochs": 20, "learning_rate": 3e-3, "rule": "",
                }),
                ConfigDict({"name": "cut", "method": "shrink_widths", "widths": 0.4, "epochs": 20, "learning_rate": 3e-3}),
                ConfigDict({
                    "name": "quantize", "method": "quantize", "where": "**", "bits": 4, "group": -1,
                    "epochs": 20, "learning_rate": 3e-3, "rule": "w4a16",
                }),
            ],
        }
    )  # fmt: skip
