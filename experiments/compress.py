"""Trains a network, or loads one, and takes it through the stages of a config.

    jaxopt compress --config=digits_quickstart --workdir=DIR [--config.x=y ...]

A run that was killed goes on where it was: give the same command again.

Your own model: ``--config.model=package.module:build``, a function that returns a ``Network``; it gets ``config.model_args``,
and ``seed`` if it has such an argument. Your own data, loss and metrics: ``--config.data.source=package.module:load``, which
returns a ``Task``, called with the other fields of ``config.data``, and with ``fold``, ``seed`` and ``batch_size`` if it has
such arguments.

``--config.control=True`` trains the float network as long as the recipe does, without its methods, and says what that gives.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags
from ml_collections import config_flags

from jaxopt_nn.core.files import open_workdir
from jaxopt_nn.core.model import ModelInfo
from jaxopt_nn.core.remap import Remap
from jaxopt_nn.interpret.network import Network
from jaxopt_nn.methods.transfer import transfer_weights
from jaxopt_nn.passes.cut_units import cut_units
from jaxopt_nn.pipeline import registry
from jaxopt_nn.pipeline.checkpoints import Checkpoints, claim, locked, nothing
from jaxopt_nn.pipeline.compress import CONTROL, Compressor, Result
from jaxopt_nn.pipeline.grade import evaluate
from jaxopt_nn.pipeline.task import Task
from jaxopt_nn.reporting import folds as of_folds
from jaxopt_nn.reporting import tables
from jaxopt_nn.reporting.events import write_events
from jaxopt_nn.reporting.progress import Progress
from jaxopt_nn.reporting.write import FILES, FOLDERS

from . import common
from .command import start
from .common import load_task
from .config import checked, decisive, imported
from .model import Model, check_replaceable, check_same_tree, save_variables

PyTree = Any
#: Names of trainings that are no stage of the recipe.
RESERVED = ("float", "teacher", CONTROL)


def run(
    config: Mapping[str, Any],
    workdir: str,
    say: Callable[[str], None] = nothing,
    *,
    latency: bool = True,
    floats: Path | None = None,
    name: str | None = None,
) -> dict[str, Any]:
    """Carries out a config and writes the report, its plots, ``network.jn``, ``float/`` and ``checkpoints/``.

    The stages in the report are those of fold 0, of seed ``config.seed``. With ``config.data.cross_validate`` the other folds
    take the same recipe, each with a seed of its own (``seed_of``), and the report gets ``summary``, means over the folds,
    and ``cross_validation``, pooled over all test labels. A run that was killed goes on from its checkpoints, to the same
    report (times excepted).

    Args:
      config: with the fields of ``configs/digits_quickstart.py``.
      workdir: made if missing.
      say: gets a line of progress now and then.
      latency: whether it is measured.
      floats: where the positions of float networks lie, by what they depend on: runs that share it train each once. None
        keeps them among the checkpoints of ``workdir``.
      name: of the config, for the report's title.

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
    directory = open_workdir(workdir, FOLDERS, FILES)
    with locked(directory):
        claim(directory / "checkpoints", decisive(config), RESERVED)
        if not config["checkpoint"]:
            check_replaceable(directory / "float")
        result = _carried_out(experiment, directory, say, latency, floats)
        result.report.update(titled(config, name))
        experiment.ship(result, workdir)
        write_events(result.report, directory)
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
            report = results[-1].report
            for said in report["warnings"]:
                progress.say(f"warning: fold {fold + 1}: {said}")
            last, (before, after) = report["stages"][-1], tables.scores(report)
            said = [tables.shown(report, report["headline"], numbers[report["headline"]]) for numbers in (before, after)]
            progress.say(
                f"fold {fold + 1} of {len(folds)}: baseline {said[0]}, {last['name']} {said[1]} at {last['ratio']:.1f}x"
            )
    if len(folds) > 1:
        results[0].report.update(joined(experiment.task(0), results, experiment.tested))
    return results[0]


def titled(config: Mapping[str, Any], name: str | None) -> dict[str, Any]:
    """What the report calls the config, the model and the data."""
    model, data = config["model"], config["data"]["source"]
    title = f"{model} on {data}"
    return {"config_name": name, "model": model, "data": data, "title": f"{name}: {title}" if name else title}


class Experiment:
    """A config's model, training and recipe, compiled once for all folds."""

    def __init__(self, config: dict[str, Any]):
        self.config = config
        self._model = Model(config["model"], config["model_args"], config["float"], "float")
        teacher = config["teacher"]
        self._teacher = None
        if teacher:
            self._teacher = Model(teacher["model"], teacher["model_args"], teacher["float"], "teacher")
        imported(config["data"]["source"])
        for stage in config["stages"]:
            if stage.get("name") in RESERVED:
                raise ValueError(f"config.stages: {stage['name']!r} is the name of the training before the recipe")
        recipe = registry.stages(config["stages"], config["seed"])
        self._compressor = Compressor(recipe, config["control"])
        self.tested = 0
        self.task = functools.lru_cache(maxsize=1)(functools.partial(load_task, config))

    def check(self) -> None:
        """Tries all that trains nothing, on the networks as they are made and the data of fold 0.

        Raises:
          ValueError: a pattern, shape or number of the recipe, the teacher or the start does not fit.
        """
        task, taught = self.task(0), self._teacher and self._teacher.network
        network = self._started(self.config["seed"], taught, task, nothing)
        self._compressor.check(network, task, taught)

    def fold(self, fold: int, directory: Path, progress: Progress, latency: bool, floats: Path | None = None) -> Result:
        """The float network of this fold, and what the recipe makes of it."""
        config = self.config
        seed, task = seed_of(config["seed"], fold), self.task(fold)
        self.tested += task.test.size
        own = directory / "checkpoints" / f"fold_{fold}"
        places = functools.partial(_place, own, config["checkpoint_seconds"], progress.say)
        shared = functools.partial(places, folder=floats / _digest(config, fold)) if floats else places
        watch = progress.watch(f"fold {fold + 1}" if config["data"]["cross_validate"] else "", record=fold == 0)
        train = functools.partial(Model.trained, places=shared, watch=watch)
        taught, lessons = None, []
        if self._teacher:
            teacher = config["teacher"]
            lesson = load_task({**config, "data": {**config["data"], **teacher["data"]}}, fold) if teacher["data"] else task
            fresh = self._teacher.fresh(seed)
            taught, lessons = train(self._teacher, fresh, seed=seed, checkpoint=teacher["checkpoint"], task=lesson)
        network = self._started(seed, taught, task, progress.say)
        network, history = train(
            self._model, network, seed=seed, checkpoint=config["checkpoint"], task=task, teacher=taught
        )  # fmt: skip
        if fold == 0 and not config["checkpoint"]:
            save_variables(directory / "float", network.variables)
        batches = (config["latency"] or True) if latency else False
        result = self._compressor(
            network, task, seed=seed, latency=batches, config=config, teacher=taught, checkpoints=places, watch=watch,
            sensitivity=config["sensitivity"] if fold == 0 else False,
        )  # fmt: skip
        result.report["history"] = [*lessons, *history, *result.report["history"]]
        if taught is not None:
            size = sum(x.size for x in jax.tree.leaves(taught.variables))
            result.report["teacher"] = {"metrics": evaluate(taught, task), "params": size}
        return result

    def ship(self, result: Result, workdir: str) -> None:
        """Writes everything about fold 0."""
        self._compressor.ship(result, self.task(0), workdir, self.config["export"])

    def _started(
        self, seed: int, taught: Network | None, task: Task, say: Callable[[str], None]
    ) -> Network:
        """The float network before its training: fresh, or begun from the teacher's weights."""
        fresh = self._model.fresh(seed)
        start = self.config["start"]
        if not start:
            return fresh
        assert taught is not None
        how, arguments = start["how"], {k: v for k, v in start.items() if k != "how"}
        if how == "weights":
            arguments["rename"] = [tuple(pair) for pair in arguments.get("rename", ())]
            begun, said = transfer_weights(taught.variables, fresh.variables, **arguments)
        else:
            widths = arguments["widths"]
            cut = cut_units(**{**arguments, "widths": {"**": widths} if isinstance(widths, float) else widths})
            said = cut.plan(taught, ModelInfo(), *task.example)
            begun = Remap(said).params(taught.variables)  # the student's module takes the tree
            check_same_tree(begun, fresh.variables, "start.widths")
        say(f"start from the teacher's {how}:\n{said}")
        return fresh.replace(variables=begun)


def _place(
    directory: Path, seconds: float, say: Callable[[str], None], name: str, folder: Path | None = None
) -> Checkpoints:
    return Checkpoints((folder or directory) / name, seconds, say)


def _digest(config: dict[str, Any], fold: int) -> str:
    """A name for all that the float network of a fold depends on."""
    fields = {**decisive(config, without=("stages",)), "fold": fold}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


def seed_of(seed: int, fold: int) -> int:
    """The seed of a fold's initialization and order: ``seed`` itself for fold 0, of 31 bits drawn from both for the others.

    ``seed + fold`` would give fold 1 the network of the next seed's fold 0, and a sweep's seeds must be independent.
    """
    return int(hashlib.sha256(f"{seed}/{fold}".encode()).hexdigest()[:8], 16) >> 1 if fold else seed


def joined(task: Task, results: Sequence[Result], examples: int) -> dict[str, Any]:
    """What the folds say together: each of them, means over them, and what is pooled over the test data of all."""
    entries = [entry for result in results for entry in result.report["folds"]]
    pooled = lambda sums: functools.reduce(task.merged, sums)
    before, after = pooled([r.sums.baseline for r in results]), pooled([r.sums.final for r in results])
    controls = [r.sums.control for r in results if r.sums.control is not None]
    return {
        "folds": entries,
        "summary": of_folds.summary(entries),
        "cross_validation": {
            "folds": len(results), "examples": examples, "baseline": task.result(before), "final": task.result(after),
            **({"control": task.result(pooled(controls))} if controls else {}),
        },
        **task.compared(before, after),
        **_remarks([result.report for result in results]),
    }  # fmt: skip


def _remarks(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The warnings of all folds, and what was left alone: in the first, whose leaves are shown, and elsewhere in others."""
    skipped = list(reports[0]["skipped"])
    for number, report in enumerate(reports[1:], 2):
        others = [entry for entry in report["skipped"] if entry not in reports[0]["skipped"]]
        skipped += [{**entry, "reason": f"fold {number}: {entry['reason']}"} for entry in others]
    warnings = [f"fold {number}: {text}" for number, report in enumerate(reports, 1) for text in report["warnings"]]
    return {"warnings": warnings, "skipped": skipped}


def show(report: dict[str, Any], workdir: str) -> None:
    """Prints the table, what it does not say, and where the report lies."""
    common.show(*tables.rows(report, without=tables.but_headline(report)))
    print("\n".join(tables.sentences(report)))
    print(f"report: {os.path.join(workdir, 'report.html')}")


def define_flags() -> None:
    config_flags.DEFINE_config_file("config", None, "A file whose get_config() gives the run.")
    flags.DEFINE_string("workdir", None, "Where the report and the artifact go; made if missing.")
    flags.mark_flags_as_required(["config", "workdir"])


def main(argv: Sequence[str]) -> None:
    flag = common.flag_values(argv)
    with common.plain_errors("stopped; the same command goes on from the last checkpoint"):
        name = Path(config_flags.get_config_filename(flag["config"])).stem
        report = run(flag.config, flag.workdir, say=lambda line: print(line, flush=True), name=name)
    show(report, flag.workdir)


if __name__ == "__main__":
    start(define_flags, main, __doc__)
