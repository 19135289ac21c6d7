"""Claim: at 50 % and at 2:4 SparseGPT keeps a byte-level transformer's perplexity better than magnitude, Wanda and RIA do.

Command: ``python -m experiments.benchmarks.oneshot_lm`` (about 15 minutes on 2 cores; ``... oneshot_lm FOLDER`` keeps the
trained network there and begins with it the next time)

The network and the text of ``configs/bytes_lm_ptq.py``. All matrices of the blocks are pruned once, none is trained; embeddings
and norms stay. Calibration: 128 rows of the training text, drawn by seed, three seeds. Perplexity is that of a byte, over the
last 5 % of the text.
"""

from __future__ import annotations

import pathlib
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxopt_nn as jn
from configs.bytes_lm_ptq import get_config
from experiments.common import load_task
from experiments.config import checked
from experiments.models.text import gpt

from .common import emit

SEEDS, ROWS, BATCH = 3, 128, 32
BLOCKS, VALUES = "params/blocks/**", "**/value/kernel"


class Case(NamedTuple):
    """A row: transforms for 50 % and for 2:4, where tokens are weighed (``values``, ``all`` or not), whether layer by layer."""

    name: str
    half: Callable[[], jn.Transform]
    pattern: Callable[[], jn.Transform]
    weighed: str = ""
    sequential: bool = False


def criterion(name: str, score: Any, allocation: Any, **options: Any) -> Case:
    half = lambda: jn.prune(score, sparsity=0.5, allocation=allocation)
    return Case(name, half, lambda: jn.prune(score, structure=jn.n_of_m(2, 4)), **options)


def sparsegpt(name: str, **options: Any) -> Case:
    return Case(name, lambda: jn.sparsegpt(0.5), lambda: jn.sparsegpt(structure=jn.n_of_m(2, 4)), **options)


CASES = [
    criterion("magnitude", jn.magnitude, jn.per_leaf),
    criterion("Wanda", jn.wanda, jn.per_output),
    criterion("RIA", jn.ria, jn.per_leaf),
    sparsegpt("SparseGPT"),
    sparsegpt("SparseGPT, values weighed by attention", weighed="values"),
    sparsegpt("SparseGPT, all weighed by attention", weighed="all"),
    criterion("Wanda, layer by layer", jn.wanda, jn.per_output, sequential=True),
    sparsegpt("SparseGPT, layer by layer", sequential=True),
]


def trained(folder: str | None) -> tuple[jn.Network, jn.Task]:
    """The network of the config after its float training, and its task."""
    config = checked(get_config())
    task, net = load_task(config), gpt(config["seed"], **config["model_args"])
    kept = None if folder is None else pathlib.Path(folder)
    if kept is not None and kept.exists():
        return net.replace(variables=jn.load_artifact(kept)[0]), task
    stage = jn.Stage("float", jn.identity(), **{k: config["float"][k] for k in ("epochs", "learning_rate")})
    found = jn.compress(net, [stage], task, seed=config["seed"], latency=False).network
    if kept is not None:
        jn.save_artifact(kept, found.variables)
    return net.replace(variables=found.variables), task


def drawn(task: jn.Task, seed: int) -> list[Any]:
    """Batches of rows of the training text."""
    tokens = jax.tree.leaves(task.train.tree)[0]
    rows = np.random.default_rng(seed).choice(len(tokens), min(ROWS, len(tokens)), replace=False)
    return [tokens[rows[i : i + BATCH]] for i in range(0, len(rows), BATCH)]


def row(net: jn.Network, task: jn.Task, case: Case, seeds: int) -> dict[str, Any]:
    """Mean and ends of the perplexity over draws of the calibration data; of a method that sees none there is one."""
    draws = [drawn(task, seed) for seed in range(1 if case.name == "magnitude" else seeds)]
    weights = jn.attention_weights(net, VALUES if case.weighed == "values" else None) if case.weighed else None

    def perplexity(method: jn.Transform, batches: list[Any]) -> float:
        info = jn.calibrate(net, method, batches, weights=weights, sequential=case.sequential)
        seen = method.view(net.variables, method.init(net.variables, info))
        return float(np.exp(jn.evaluate(net.replace(variables=seen), task)["loss"]))

    found: dict[str, Any] = {"method": case.name}
    for label, make in (("50 %", case.half), ("2:4", case.pattern)):
        values = [perplexity(jn.where(BLOCKS, make()), batches) for batches in draws]
        found[label] = f"{statistics.mean(values):.3f}"
        found[f"{label}, by seed"] = [f"{value:.3f}" for value in values]
    return found


def run(net: jn.Network, task: jn.Task, cases: Sequence[Case] = CASES, seeds: int = SEEDS) -> list[dict[str, Any]]:
    """The rows of the table."""
    dense = float(np.exp(jn.evaluate(net, task)["loss"]))
    rows: list[dict[str, Any]] = [{"method": "dense", "50 %": f"{dense:.3f}", "2:4": f"{dense:.3f}"}]
    for case in cases:
        rows.append(row(net, task, case, seeds))
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def main() -> None:
    emit(run(*trained(sys.argv[1] if len(sys.argv) > 1 else None)))


if __name__ == "__main__":
    main()
