"""Claim: weights that were chosen in rounds, and begin where they began, train better than the same weights drawn anew.

Command: ``python -m experiments.benchmarks.lottery [--workdir=runs/lottery]`` (10 minutes of CPU time; folds that are noted
in the folder are not run again)

The recipe of ``configs/lottery_ticket.py``: the dense network is trained, the smallest weights of all layers go, the others
are set back to their first values and trained as long, and so on (Frankle & Carbin 2019, iterative pruning with resetting).
Beside it, at the same shares: all of it in one round; the same masks over weights that are drawn anew; and rounds without going
back, which train on from the trained weights and so are trained longer.
"""

from __future__ import annotations

import json
import pathlib
import statistics
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags

from configs.lottery_ticket import get_config
from jaxopt_nn.core.paths import map_with_path
from jaxopt_nn.interpret.network import Network
from jaxopt_nn.methods.prune import Pruned
from jaxopt_nn.pipeline import registry
from jaxopt_nn.pipeline.compress import Compressor, Result
from jaxopt_nn.pipeline.task import Task

from ..common import flag_values, load_task
from ..compress import seed_of
from ..config import checked
from ..models.digits import build
from .common import emit

PyTree = Any
#: A seed of other first weights.
ANEW = 1000


class Rounds:
    """The recipe of the config, and what stands beside it; programs are compiled once for all folds."""

    def __init__(self, stages: Sequence[dict[str, Any]]):
        dense, *rounds = stages
        self.shares = [stage["sparsity"] for stage in rounds]
        kept = {**rounds[0], "rewind": None, "sparsity": None, "allocation": "per_leaf", "threshold": 1e-30}
        self._rounds = Compressor(registry.stages(stages))
        self._onward = Compressor(registry.stages([dense, *({**stage, "rewind": None} for stage in rounds)]))
        self._once = [Compressor(registry.stages([dense, stage])) for stage in rounds]
        self._kept = Compressor(registry.stages([kept]))  # what is zero stays zero

    def run(self, task: Task, seed: int) -> dict[str, list[float]]:
        """By way the accuracies of the dense network and of each round, on the test images, in per cent."""
        fresh, other = build(seed), build(ANEW + seed)

        def accuracies(compressor: Compressor, network: Network) -> tuple[Result, list[float]]:
            result = compressor(network, task, seed=seed, latency=False, sensitivity=False)
            return result, [100 * stage["metrics"][task.headline] for stage in result.stages]

        rounds, reset = accuracies(self._rounds, fresh)
        anew = [accuracies(self._kept, _masked(other, masks))[1] for masks in _masks(rounds)]
        once = [accuracies(compressor, fresh)[1] for compressor in self._once]
        return {
            "rounds, reset": reset,
            "one round, reset": [reset[0], *(found[-1] for found in once)],
            "rounds, drawn anew": [reset[0], *(found[-1] for found in anew)],
            "rounds, trained on": accuracies(self._onward, fresh)[1],
        }


def _masks(result: Result) -> list[dict[str, jax.Array]]:
    """``{path: mask}`` after each round, which the masks of the rounds up to it give together."""
    together: dict[str, jax.Array] = {}
    out = []
    for own in result.state.carried[1:]:
        for path, leaf in _pruned(own).items():
            together[path] = leaf.mask & together.get(path, jnp.ones_like(leaf.mask))
        out.append(dict(together))
    return out


def _masked(network: Network, masks: dict[str, jax.Array]) -> Network:
    zeroed = lambda path, leaf: jnp.where(masks[path], leaf, 0) if path in masks else leaf
    return network.replace(variables=map_with_path(zeroed, network.variables))


def _pruned(carried: PyTree) -> dict[str, Pruned]:
    """The states of the leaves that are pruned."""
    found, _ = jax.tree_util.tree_flatten_with_path(carried, is_leaf=lambda x: isinstance(x, Pruned))
    return {path[-1].key: x for path, x in found if isinstance(x, Pruned)}


def run(config: dict[str, Any], folds: int, folder: pathlib.Path) -> list[dict[str, Any]]:
    """A row for each share: means over folds; each fold is noted in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    rounds, found = Rounds(config["stages"]), []
    for fold in range(folds):
        note = folder / f"fold_{fold}.json"
        if not note.exists():
            note.write_text(json.dumps(rounds.run(load_task(config, fold), seed_of(config["seed"], fold))))
        found.append(json.loads(note.read_text()))
        print(fold, found[-1], file=sys.stderr, flush=True)
    return [
        {"kept": f"{1 - share:.1%}", **{way: _told([own[way][i] for own in found]) for way in found[0]}}
        for i, share in enumerate([0.0, *rounds.shares])
    ]


def _told(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.2f} ± {statistics.stdev(values) if len(values) > 1 else 0:.2f}"


def main(argv: Sequence[str]) -> None:
    given, config = flag_values(argv), checked(get_config())
    emit(run(config, config["data"]["folds"], pathlib.Path(given.workdir)))


if __name__ == "__main__":
    flags.DEFINE_string("workdir", "runs/lottery", "Where folds are noted.")
    app.run(main)
