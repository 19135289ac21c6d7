"""LeNet-300-100 on handwritten digits: 40 times smaller, twice as fast at a batch of 1024, half a point lost at most.

    jaxopt compress --config=digits_quickstart --workdir=runs/digits_quickstart

80 % global magnitude pruning; the units that matter least are cut, 60 % of each layer; 4-bit weights. Each stage is trained
after, and a control trains the float network as long. On scikit-learn's 1797 images, in 5 folds: every image is tested once by
a network that was not trained on it. A tenth of each fold's training part is validation data, by which stages are compared.
85 s to 104 s of CPU time on 2 cores; each fold cuts other units and compiles its own small networks.

Expected, seed 0, JAX 0.10.2, means over folds of the test data and half of the 95 % interval: baseline 97.89 % (0.58), final
97.83 % (0.96), difference -0.06 points (0.57), control 98.27 % (0.75); 4,944 bytes for 202,440 (40.9x, 0.78 bits a weight with
masks, scales and biases); 12,880 multiply-accumulates for 50,200. By stage, of fold 1, on an idle AMD EPYC of 2 cores; times
over the baseline's with their 95 % intervals, all networks taking turns (beside ten other programs 0.35 at 1024):

    stage      bytes     MACs     batch 1               batch 32              batch 1024
    prune     48,075   50,200     1.00 (0.98 to 1.03)   1.00 (0.99 to 1.00)   1.02 (1.00 to 1.04)
    cut       18,082   12,880     0.97 (0.96 to 0.98)   0.70 (0.64 to 0.70)   0.48 (0.48 to 0.49)
    quantize   4,944   12,880     1.04 (1.01 to 1.05)   0.72 (0.71 to 0.72)   0.50 (0.48 to 0.51)

The zeros of pruning buy bytes and no time: XLA multiplies them like other numbers. Cutting buys both; 4 bits buy bytes, and no
time either at this size. A call of one image takes 0.02 to 0.05 ms, nearly all of it for starting the program.

Recipes were compared on validation data, three tenths of the training part (``--config.data.valid=0.3``, 431 images a fold,
seed 0), of which the test data of other folds are part; accuracy less the baseline's in points, its standard error over folds:

    recipe                                                      points          bytes
    prune 80 %, cut to 100 and 50 units, 4 bits                  0.00 (0.26)    4,572
    cut to 100 and 50, 4 bits without training                  -0.19 (0.22)    7,230
    cut to 100 and 50, clip to [-0.4, 0.4], 4 bits untrained    +0.05 (0.20)    7,230
    clip to [-0.4, 0.4], cut to 100 and 50, 4 bits              -0.09 (0.16)    7,230
    cut to 100 and 33 by mean activation, 4 bits                -0.93 (0.54)    6,159
    this one, a share of 0.5 of the units cut                   -0.05 (0.22)    6,386
    this one, 0.6 of them                                       -0.05 (0.20)    4,942
    this one, 0.7                                               -0.28 (0.44)    3,588

With 40 units or more in the second layer nothing is lost that shows; 33 lose a point. Clipping makes steps of 4 bits finer and
helps where they are not trained; after training nothing of it can be seen, so that it has no stage here. 0.6 is the largest
share of the three that loses nothing that shows: it keeps 120 and 40 units.

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
                ConfigDict({"name": "cut", "method": "cut_units", "share": 0.6, "epochs": 20, "learning_rate": 3e-3}),
                ConfigDict({
                    "name": "quantize", "method": "quantize", "where": "**", "bits": 4, "group": -1,
                    "epochs": 20, "learning_rate": 3e-3, "rule": "w4a16",
                }),
            ],
        }
    )  # fmt: skip
