"""A byte-level transformer, half of the weights of its blocks set to zero by SparseGPT, with no training at all.

    jaxopt compress --config=bytes_lm_sparsegpt --workdir=runs/bytes_lm_sparsegpt

What is kept makes up for what goes (Frantar & Alistarh 2023). The network and its text are those of ``bytes_lm_ptq``;
embeddings and norms stay.

About 6 minutes on 2 cores (AMD EPYC), most of it the float training.
Expected, seed 0, JAX 0.10.2, Python 3.11.7 (text ``fce39f31194d6d80``): 2.017 bits a byte before, 2.258 after, 1,806,848 bytes
for 3,281,408 (1.8x: a mask of one bit a weight, and what it keeps in float32). ``experiments.benchmarks.oneshot_lm`` compares
methods.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Fields are changed on the command line, e.g. ``--config.stages[0].sparsity=0.6``."""
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
                    "name": "sparsegpt", "method": "sparsegpt", "where": "params/blocks/**", "sparsity": 0.5, "epochs": 0,
                }),
            ],
        }
    )  # fmt: skip
