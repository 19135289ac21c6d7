"""A byte-level transformer of four layers, the two that change their input least taken out, then trained for an epoch.

    jaxopt compress --config=bytes_lm_depth --workdir=runs/bytes_lm_depth

Layers go by block influence (ShortGPT, Men et al. 2024): one less the cosine of what passes before and after a layer, measured
on the training text. The network and its text are those of ``bytes_lm_ptq``; its layers are one scanned block, which runs half
as often. Men et al. take a quarter of the layers out of networks of 7 to 13 billion parameters, without training; half of four
small layers is much more.

About 8 minutes on 2 cores (AMD EPYC), most of it the float training.
Expected, seed 0, JAX 0.10.2, Python 3.11.7: layers 2 and 3 go; 2.018 bits a byte before, 2.227 after, 1,706,496 bytes for
3,281,408 (1.9x), 62,914,560 multiply-accumulates for 121,634,816, and 1.9 times faster for one text, 2.3 times for eight, timed
beside other work.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Fields are changed on the command line, e.g. ``--config.stages[0].share=0.25``."""
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
                    "name": "depth", "method": "cut_layers", "score": "block_influence", "share": 0.5, "epochs": 1,
                    "learning_rate": 1e-3,
                }),
            ],
        }
    )  # fmt: skip
