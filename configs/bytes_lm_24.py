"""A byte-level transformer, 2:4 in its blocks by SparseGPT and then 4 bits, with no training at all.

    jaxopt compress --config=bytes_lm_24 --workdir=runs/bytes_lm_24

Of every four inputs in a row each output keeps two (Mishra et al. 2021), and what is kept makes up for what goes
(Frantar & Alistarh 2023); then codes of 4 bits in groups of 32 inputs. The network and its text are those of
``bytes_lm_ptq``; embeddings are rounded, not pruned.

About 6 minutes on 2 cores (AMD EPYC), most of it the float training.
Expected, seed 0, JAX 0.10.2, Python 3.11.7 (text ``fce39f31194d6d80``): 2.017 bits a byte before, 2.379 at 2:4, 2.455 with
4 bits, 418,304 bytes for 3,281,408 (7.8x).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Fields are changed on the command line, e.g. ``--config.stages[1].bits=3``."""
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
                    "name": "sparsegpt", "method": "sparsegpt", "where": "params/blocks/**", "structure": "2:4", "epochs": 0,
                }),
                ConfigDict({
                    "name": "quantize", "method": "quantize", "where": "**", "bits": 4, "group": 32, "epochs": 0,
                    "rule": "w4a16",
                }),
            ],
        }
    )  # fmt: skip
