"""A byte-level transformer whose weights share 16 values a matrix (and layer), found by k-means and trained for an epoch.

    jaxopt compress --config=bytes_lm_codebook --workdir=runs/bytes_lm_codebook

K-means weighs each error by the summed squares of the weight's input. Then only the shared values and what is no matrix are
trained, the members stay (Han et al. 2016, section 3). The network and its text are those of ``bytes_lm_ptq``. Vectors of four
weights instead: ``--config.stages[0].method=cluster_vectors`` without ``k``, in 2 bits a weight.

About 8 minutes on 2 cores (AMD EPYC).
Expected, seed 0.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Fields are changed on the command line, e.g. ``--config.stages[0].k=8``."""
    return ConfigDict(
        {
            "seed": 0,
            "model": "experiments.models.text:gpt",
            "model_args": {"width": 128, "layers": 4, "heads": 4, "kv_heads": 2, "hidden": 384},
            "checkpoint": "",
            "batch_size": 32,
            "data": {"source": "experiments.data.text:text_bytes", "dir": "", "length": 128, "limit": 0},
            "latency": [1, 8],
            "float": {"epochs": 2, "learning_rate": 3e-3},
            "stages": [
                ConfigDict({
                    "name": "cluster", "method": "cluster", "where": "**", "k": 16, "weights": "inputs", "epochs": 1,
                    "learning_rate": 3e-4,
                }),
            ],
        }
    )  # fmt: skip
