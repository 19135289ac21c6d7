"""A recurrent language model over padded lines from a generator, 70 % pruned and rounded to 4 bits.

    jaxopt compress --config=task_padded_text --workdir=runs/task_padded_text

Numbers below ten thousand in words, letter by letter. The generator is told a seed for each epoch, and draws new lines: a run
that is killed goes on to the same numbers. Padding counts for nothing. About 65 s of CPU time on 2 cores.

Expected, seed 0, JAX 0.10.2: perplexity a letter 1.336 before, 1.352 pruned, 1.322 in 4 bits. No model is below 1.3055:
10,000 equally likely lines of 34.55 letters are log(10,000) / 34.55 = 0.2666 nats a letter. 8,792 bytes for 86,392 (9.8x).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,
            "model": "experiments.tasks.padded_text:network",
            "batch_size": 64,
            "data": {"source": "experiments.tasks.padded_text:task"},
            "float": {"epochs": 8, "learning_rate": 5e-3},
            "stages": [
                ConfigDict({
                    "name": "prune", "method": "prune", "where": "**", "sparsity": 0.7, "allocation": "global_budget",
                    "epochs": 5, "learning_rate": 5e-3,
                }),
                ConfigDict({
                    "name": "quantize", "method": "quantize", "where": "**", "bits": 4, "epochs": 5, "learning_rate": 5e-3,
                    "rule": "w4a8",
                }),
            ],
        }
    )  # fmt: skip
