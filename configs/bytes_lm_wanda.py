"""A byte-level transformer, half of the weights of its blocks set to zero by Wanda, with no training at all.

    jaxopt compress --config=bytes_lm_wanda --workdir=runs/bytes_lm_wanda

Weights compete within their output by magnitude times the norm of their input over the training text (Sun et al. 2024).
The network and its text are those of ``bytes_lm_ptq``; embeddings and norms stay.

About 6 minutes on 2 cores (AMD EPYC), most of it the float training.
Expected, seed 0, JAX 0.10.2, Python 3.11.7 (text ``fce39f31194d6d80``): 2.017 bits a byte before, 2.710 after, 1,806,848 bytes
for 3,281,408 (1.8x).
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
                    "name": "wanda", "method": "prune", "where": "params/blocks/**", "criterion": "wanda", "sparsity": 0.5,
                    "allocation": "per_output", "epochs": 0,
                }),
            ],
        }
    )  # fmt: skip
