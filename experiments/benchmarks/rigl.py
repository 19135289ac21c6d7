"""Claim: where both may do the same multiplications, RigL ends within 0.3 points of gradual magnitude pruning, and not ahead.

Command: ``python -m experiments.benchmarks.rigl [--seeds=3] [--workdir=runs/rigl]`` (15 minutes of CPU time; runs that are
noted in the folder are not made again)

LeNet-300-100 on Fashion-MNIST from random weights, 90 and 95 % of the weights of its matrices zero, shared out by ERK in all
rows, the same optimizer (Adam, its rate decayed by half a cosine over the training). RigL is the stage of
``configs/fashion_lenet300_rigl.py``; gradual pruning follows Zhu and Gupta's cubic schedule over the first half of the
training, with new masks every 100 steps; "static" keeps random masks.

Multiplications are counted as by Evci et al. (2020, appendix): backward costs twice what forward does, a pass with sparse
weights the share that is not zero, and every exchange of RigL the gradient of all weights. A weight of a perceptron is one
multiplication an example, so that shares of weights are shares of multiplications. The unit is an epoch of the dense network.
"""

from __future__ import annotations

import json
import pathlib
import statistics
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import app, flags

from configs.fashion_lenet300_rigl import get_config
from jaxopt_nn.interpret.network import Network
from jaxopt_nn.methods.schedules import cubic
from jaxopt_nn.pipeline import registry
from jaxopt_nn.pipeline.compress import Compressor
from jaxopt_nn.pipeline.task import Task

from ..common import flag_values, load_task
from ..config import checked
from ..models.fashion import lenet300
from .common import emit

#: Share of the training over which gradual pruning prunes.
RAMP = 0.5
#: Epochs of gradual pruning; RigL gets as many steps, and as many as make the same multiplications.
EPOCHS = 10
SPARSITIES = (0.9, 0.95)
SPARSE = ("RigL", "static")


class Case(NamedTuple):
    """A row: a method, its share of zeros, its epochs."""

    method: str
    sparsity: float
    epochs: int

    def stage(self) -> dict[str, Any]:
        """As a config has it."""
        rigl = dict(checked(get_config())["stages"][0])
        plain = {name: x for name, x in rigl.items() if name not in ("regrow", "criterion")}
        ramp = {"schedule": "cubic", "final": self.sparsity, "end": RAMP}
        fields: dict[str, Any] = {
            "RigL": {**rigl, "sparsity": self.sparsity},
            "gradual": {**plain, "criterion": "magnitude", "sparsity": ramp},
            "static": {**plain, "criterion": "random", "sparsity": self.sparsity},
            "dense": {"name": "dense", "method": "identity", "learning_rate": rigl["learning_rate"]},
        }
        return {**fields[self.method], "epochs": self.epochs}

    def cost(self, steps: int) -> float:
        """Multiplications of the training, in epochs of the dense network, of ``steps`` steps each."""
        total, stage = steps * self.epochs, self.stage()
        if self.method == "dense":
            return float(self.epochs)
        if self.method == "gradual":
            every, end = stage["every"], round(RAMP * (total - 1))
            zeros = cubic(self.sparsity, end)(every * (np.arange(total) // every))
            return float(np.sum(1 - np.asarray(zeros))) / steps
        exchanges = len(range(0, round(stage["regrow"]["end"] * (total - 1)), stage["every"])) if "regrow" in stage else 0
        return (total * (1 - self.sparsity) + exchanges * self.sparsity / 3) / steps


def cases(steps: int) -> list[Case]:
    """The rows of the table."""
    out = [Case("dense", 0.0, EPOCHS)]
    for sparsity in SPARSITIES:
        gradual, one = Case("gradual", sparsity, EPOCHS), Case(SPARSE[0], sparsity, 100).cost(steps) / 100
        out += [gradual, *(Case(way, sparsity, n) for n in (EPOCHS, round(gradual.cost(steps) / one)) for way in SPARSE)]
    return out


def accuracy(compressor: Compressor, task: Task, network: Network, seed: int) -> float:
    """Of the packed network on the test images, in per cent."""
    result = compressor(network, task, seed=seed, latency=False, sensitivity=False)
    return 100 * result.stages[-1]["metrics"][task.headline]


def run(task: Task, rows: Sequence[Case], seeds: int, folder: pathlib.Path) -> list[dict[str, Any]]:
    """The rows with mean and standard deviation over seeds; each run is noted in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    notes, start = folder / "runs.jsonl", lenet300(0)
    known = {tuple(key): x for key, x in map(json.loads, notes.read_text().splitlines())} if notes.exists() else {}
    compressors = {case: Compressor(registry.stages([case.stage()])) for case in rows}
    for seed in range(seeds):
        for case, compressor in compressors.items():
            if (*case, seed) not in known:
                fresh = start.replace(variables=lenet300(seed).variables)
                known[*case, seed] = accuracy(compressor, task, fresh, seed)
                with notes.open("a") as file:
                    file.write(json.dumps([[*case, seed], known[*case, seed]]) + "\n")
                print(case, seed, known[*case, seed], file=sys.stderr, flush=True)
    steps = task.steps
    return [_row(case, [known[*case, seed] for seed in range(seeds)], steps) for case in rows]


def _row(case: Case, found: Sequence[float], steps: int) -> dict[str, Any]:
    spread = statistics.stdev(found) if len(found) > 1 else 0.0
    return {
        "zeros": f"{case.sparsity:.0%}", "training": case.method, "epochs": case.epochs, "MACs": f"{case.cost(steps):.2f}",
        "accuracy, %": f"{statistics.fmean(found):.2f}", "std": f"{spread:.2f}", "seeds": len(found),
    }  # fmt: skip


def main(argv: Sequence[str]) -> None:
    given = flag_values(argv)
    task = load_task(checked(get_config()))
    emit(run(task, cases(task.steps), given.seeds, pathlib.Path(given.workdir)))


if __name__ == "__main__":
    flags.DEFINE_integer("seeds", 3, "Trainings a figure.")
    flags.DEFINE_string("workdir", "runs/rigl", "Where runs are noted.")
    app.run(main)
