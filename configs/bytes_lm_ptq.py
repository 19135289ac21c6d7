"""A byte-level transformer, rounded after training to 4 bits in groups of 32, with no training at all.

    jaxopt compress --config=bytes_lm_ptq --workdir=runs/bytes_lm_ptq

Scanned layers, grouped-query attention, rotary positions, tied embeddings, trained on twenty files of the Python standard
library; the number is bits a byte on the last 5 % of the text. Another text: ``--config.data.dir=FOLDER``. The files differ
between versions of Python, so the expected numbers do too; the log line with the checksum says which text it was.

About 4 minutes on 2 cores (AMD EPYC).
Expected, seed 0, JAX 0.10.2, Python 3.11.7 (text ``fce39f31194d6d80``): 2.018 bits a byte before, 2.088 after, 516,608 bytes
for 3,281,408 (6.4x; 5.04 bits a weight with the groups' scales).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Fields are changed on the command line, e.g. ``--config.stages[0].bits=3``."""
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
                    "name": "quantize", "method": "quantize", "where": "**", "bits": 4, "group": 32, "epochs": 0,
                    "rule": "w4a16",
                }),
            ],
        }
    )  # fmt: skip
