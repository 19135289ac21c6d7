"""Trains a network, or loads one, and takes it through the stages of a config.

    python -m experiments.compress --config=configs/digits_quickstart.py --workdir=DIR [--config.x=y ...]

A run that was killed goes on where it was: give the same command again.

Your own model: ``--config.model=package.module:build``, a function that returns ``(apply, variables)``, or ``(apply,
variables, train_apply)``; it gets ``config.model_args``, and ``seed`` if it has such an argument. Your own data:
``--config.data.source=package.module:load``, called with the other fields of ``config.data``, and with ``fold`` and ``seed``
if it has such arguments.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import app, flags
from ml_collections import config_flags

from experiments import common
from experiments.common import load_data
from experiments.config import checked, parsed
from experiments.network import Network, check_replaceable, check_same_tree, save_variables
from experiments.progress import Progress
from jaxopt_nn.methods.transfer import transfer_weights
from jaxopt_nn.passes.structure import shrink_widths
from jaxopt_nn.pipeline import registry, report, tables
from jaxopt_nn.pipeline.checkpoints import Checkpoints, claim, locked, nothing
from jaxopt_nn.pipeline.compress import Compressor, Result
from jaxopt_nn.pipeline.data import Data
from jaxopt_nn.pipeline.evaluate import evaluator

PyTree = Any
#: Names of trainings that are no stage of the recipe.
RESERVED = ("float", "teacher")


def run(
    config: Mapping[str, Any],
    workdir: str,
    say: Callable[[str], None] = nothing,
    *,
    latency: bool = True,
    floats: Path | None = None,
) -> dict[str, Any]:
    """Carries out a config and writes the report, its plots, ``artifact/``, ``float/`` and ``checkpoints/``.

    The run in the report is that of fold 0, of seed ``config.seed``. With ``config.data.cross_validate`` the other folds take
    the same recipe, each with a seed of its own (``seed_of``), and the report gets ``cross_validation``, pooled over all
    test labels. A run that was killed goes on from its checkpoints, to the same report (times excepted).

    Args:
      config: with the fields of ``configs/digits_quickstart.py``.
      workdir: made if missing.
      say: gets a line of progress now and then.
      latency: whether it is measured.
      floats: where the positions of float networks lie, by what they depend on: runs that share it train each once. None
        keeps them among the checkpoints of ``workdir``.

    Returns:
      The report.

    Raises:
      ValueError: the config has a field too many or too few, a wrong name, or a value that is not allowed; ``workdir`` holds
        the checkpoints of another config.
      OSError: ``workdir`` can't be written, holds a file of the user's under a name that a run needs, or another run is
        using it; or the disk is full.
    """
    config = checked(config)
    experiment = Experiment(config)
    experiment.check()  # what is wrong with a config shows before anything is written
    directory = report.open_workdir(workdir)
    with locked(directory):
        claim(directory / "checkpoints", config, RESERVED)
        if not config["checkpoint"]:
            check_replaceable(directory / "float")
        result = _carried_out(experiment, directory, say, latency, floats)
        experiment.ship(result, workdir)
    return result.report


def _carried_out(
    experiment: Experiment, directory: Path, say: Callable[[str], None], latency: bool, floats: Path | None
) -> Result:
    """The result of fold 0; its report has what all folds give together."""
    config = experiment.config
    folds = range(config["data"]["folds"] if config["data"]["cross_validate"] else 1)
    results = []
    with Progress(say, events=directory / "tensorboard").live() as progress:
        for fold in folds:
            results.append(experiment.fold(fold, directory, progress, latency=latency and fold == 0, floats=floats))
            found = results[-1].report
            last = found["stages"][-1]
            progress.say(
                f"fold {fold + 1} of {len(folds)}: baseline {found['baseline']['accuracy']:.2%}, "
                f"{last['name']} {last['accuracy']:.2%} at {last['ratio']:.1f}x"
            )
    if len(folds) > 1:
        results[0].report["cross_validation"] = pooled([r.report for r in results], experiment.test_shapes)
    return results[0]


class Experiment:
    """A config's model, training and recipe, compiled once for all folds."""

    def __init__(self, config: dict[str, Any]):
        self.config = config
        self._network = Network(config["model"], config["model_args"], config["float"], "float")
        teacher = config["teacher"]
        self._teacher = None
        if teacher:
            self._teacher = Network(teacher["model"], teacher["model_args"], teacher["float"], "teacher")
        registry.imported(config["data"]["source"])
        for stage in config["stages"]:
            if stage.get("name") in RESERVED:
                raise ValueError(f"config.stages: {stage['name']!r} is the name of the training before the recipe")
        self.apply = self._network.apply
        self._compressor = Compressor(
            self.apply, registry.stages(config["stages"], config["seed"]), train_apply=self._network.train_apply,
            teacher=self._teacher and self._teacher.apply, batch_size=config["batch_size"],
        )  # fmt: skip
        self.test_shapes: list[tuple[int, ...]] = []
        self._data = functools.lru_cache(maxsize=1)(functools.partial(load_data, config))

    def check(self) -> None:
        """Tries all that trains nothing, on the networks as they are made and the data of fold 0.

        Raises:
          ValueError: a pattern, shape or number of the recipe, the teacher or the start does not fit.
        """
        data, taught = self._data(0), self._teacher and self._teacher.abstract
        variables = self._started(self.config["seed"], taught, data, nothing)
        self._compressor.check(variables, data, taught)

    def fold(self, fold: int, directory: Path, progress: Progress, latency: bool, floats: Path | None = None) -> Result:
        """The float network of this fold, and what the recipe makes of it."""
        config = self.config
        seed, data = seed_of(config["seed"], fold), self._data(fold)
        self.test_shapes.append(data.test[1].shape)
        own = directory / "checkpoints" / f"fold_{fold}"
        places = functools.partial(_place, own, config["checkpoint_seconds"], progress.say)
        shared = functools.partial(places, folder=floats / _digest(config, fold)) if floats else places
        watch = progress.watch(f"fold {fold + 1}" if config["data"]["cross_validate"] else "", record=fold == 0)
        train = functools.partial(Network.trained, batch_size=config["batch_size"], places=shared, watch=watch)
        taught, lessons = None, []
        if self._teacher:
            teacher = config["teacher"]
            lesson = (
                load_data({**config, "data": {**config["data"], **teacher["data"]}}, fold) if teacher["data"] else data
            )
            taught, lessons = train(self._teacher, seed=seed, checkpoint=teacher["checkpoint"], data=lesson)
        variables = self._started(seed, taught, data, progress.say)
        variables, history = train(
            self._network, seed=seed, checkpoint=config["checkpoint"], data=data, variables=variables,
            teacher=self._teacher and (self._teacher.apply, taught),
        )  # fmt: skip
        if fold == 0 and not config["checkpoint"]:
            save_variables(directory / "float", variables)
        batches = (config["latency"] or True) if latency else False
        result = self._compressor(
            variables, data, seed=seed, latency=batches, config=config, teacher_variables=taught, checkpoints=places,
            watch=watch,
        )  # fmt: skip
        result.report["history"] = [*lessons, *history, *result.report["history"]]
        if taught is not None:
            result.report["teacher"] = self._graded(taught, data)
        return result

    def ship(self, result: Result, workdir: str) -> None:
        """Writes everything about fold 0."""
        self._compressor.ship(result, self._data(0), workdir)

    def _started(self, seed: int, taught: PyTree, data: Data, say: Callable[[str], None]) -> PyTree:
        """The float network before its training: fresh, or begun from the teacher's weights."""
        fresh = self._network.fresh(seed)
        start = self.config["start"]
        if not start:
            return fresh
        assert self._teacher is not None
        how, arguments = start["how"], {k: v for k, v in start.items() if k != "how"}
        if how == "weights":
            arguments["rename"] = [tuple(pair) for pair in arguments.get("rename", ())]
            begun, said = transfer_weights(taught, fresh, **arguments)
        else:
            begun, said = shrink_widths(self._teacher.apply, taught, (data.example,), **arguments)
            check_same_tree(begun, fresh, "start.widths")
        say(f"start from the teacher's {how}:\n{said}")
        return begun

    def _graded(self, taught: PyTree, data: Data) -> dict[str, Any]:
        assert self._teacher is not None
        found = evaluator(self._teacher.apply)(taught, *data.test)
        size = sum(x.size for x in jax.tree.leaves(taught))
        return {"accuracy": found.accuracy, "loss": found.loss, "params": size}


def _place(
    directory: Path, seconds: float, say: Callable[[str], None], name: str, folder: Path | None = None
) -> Checkpoints:
    return Checkpoints((folder or directory) / name, seconds, say)


def _digest(config: dict[str, Any], fold: int) -> str:
    """A name for all that the float network of a fold depends on."""
    fields = {k: v for k, v in config.items() if k not in ("stages", "latency", "checkpoint_seconds")}
    return hashlib.sha256(json.dumps({**fields, "fold": fold}, sort_keys=True).encode()).hexdigest()[:16]


def seed_of(seed: int, fold: int) -> int:
    """The seed of a fold's initialization and order: ``seed`` itself for fold 0, of 31 bits drawn from both for the others.

    ``seed + fold`` would give fold 1 the network of the next seed's fold 0, and a sweep's seeds must be independent.
    """
    return int(hashlib.sha256(f"{seed}/{fold}".encode()).hexdigest()[:8], 16) >> 1 if fold else seed


def pooled(reports: Sequence[dict[str, Any]], shapes: Sequence[tuple[int, ...]]) -> dict[str, Any]:
    """Accuracy and loss over the test labels of all folds together, whose ``shapes`` are ``[n]`` or ``[n, T]`` each.

    ``lost_points`` are in percent, the losses in nats a label.
    """
    before, after = [r["baseline"] for r in reports], [r["stages"][-1] for r in reports]
    labels = [math.prod(shape) for shape in shapes]
    total = sum(labels)
    correct = [sum(round(e["accuracy"] * n) for e, n in zip(rows, labels, strict=True)) for rows in (before, after)]
    loss = [math.fsum(e["loss"] * n for e, n in zip(rows, labels, strict=True)) / total for rows in (before, after)]
    return {
        "folds": len(reports),
        "test_images": sum(shape[0] for shape in shapes),
        "test_labels": total,
        "baseline_accuracy": correct[0] / total,
        "final_accuracy": correct[1] / total,
        "lost_points": 100 * (correct[0] - correct[1]) / total,
        "baseline_loss": loss[0],
        "final_loss": loss[1],
        "baseline_accuracy_of_folds": [e["accuracy"] for e in before],
        "final_accuracy_of_folds": [e["accuracy"] for e in after],
        "ratio_of_folds": [e["ratio"] for e in after],
    }


def show(made: dict[str, Any], workdir: str) -> None:
    """Prints the table, what it does not say, and where the report lies."""
    common.show(*tables.rows(made, without=["loss"]))
    print("\n".join(tables.sentences(made)))
    print(f"report: {os.path.join(workdir, 'report.html')}")


def main(argv: Sequence[str]) -> None:
    given = common.flag_values(argv)
    with common.plain_errors("stopped; the same command goes on from the last checkpoint"):
        made = run(given.config, given.workdir, say=lambda line: print(line, flush=True))
    show(made, given.workdir)


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "A file whose get_config() gives the run.")
    flags.DEFINE_string("workdir", None, "Where the report and the artifact go; made if missing.")
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=parsed)
