"""All of it in one call: train, compress, evaluate and report, stage after stage."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import numbers
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxopt_nn.coding.artifact import versions
from jaxopt_nn.core.arguments import in_words
from jaxopt_nn.core.files import open_workdir
from jaxopt_nn.core.model import ModelInfo
from jaxopt_nn.core.passes import Pass
from jaxopt_nn.core.report import Report
from jaxopt_nn.core.transform import Facts, State, Transform, explain
from jaxopt_nn.cost.latency import devices, latencies
from jaxopt_nn.export.exported import check_platforms, exported
from jaxopt_nn.export.programs import Programs
from jaxopt_nn.interpret.inspect import inspect
from jaxopt_nn.interpret.network import Network
from jaxopt_nn.pipeline.alarms import at_chance, unused_rules
from jaxopt_nn.pipeline.checkpoints import Checkpoints, claim, locked, nothing
from jaxopt_nn.pipeline.checks import check_network, check_outputs, check_task
from jaxopt_nn.pipeline.course import Course, Places, Position, Run
from jaxopt_nn.pipeline.fingerprint import fingerprint, stage_prints
from jaxopt_nn.pipeline.grade import accumulated, losses_alone
from jaxopt_nn.pipeline.recipe import Recipe, described
from jaxopt_nn.pipeline.recipe import control as control_of
from jaxopt_nn.pipeline.stages import joined
from jaxopt_nn.pipeline.store import load, save
from jaxopt_nn.pipeline.task import Task
from jaxopt_nn.reporting import entry, folds, tables, write
from jaxopt_nn.reporting.leaf_table import histograms, told_stages
from jaxopt_nn.reporting.progress import Progress, Watch

PyTree = Any
#: Batch sizes whose latency is reported.
BATCHES = (1, 32, 1024)
#: Folder of the control's positions, among those of the stages.
CONTROL = "control"


class Sums(NamedTuple):
    """The accumulators of the task's metrics on the test data: of the baseline, the last stage, and the control's network."""

    baseline: dict[str, PyTree]
    final: dict[str, PyTree]
    control: dict[str, PyTree] | None = None


@dataclasses.dataclass(frozen=True)
class Result:
    """A compressed network and what it cost; prints as a table, and called it answers: ``result(*inputs) -> outputs``.

    Attributes:
      network: in stored form, compressed tensors in the place of weights, with the last stage's rule and its states.
      params, state: the float variables behind it, and the state of the chain of the recipe's transforms.
      report: as in ``report.json``.
      sums: what the metrics on the test data were made of.
    """

    network: Network
    params: PyTree
    state: State
    report: dict[str, Any]
    sums: Sums = dataclasses.field(repr=False, default=Sums({}, {}))

    @property
    def stages(self) -> list[dict[str, Any]]:
        """The report's entry of each stage."""
        return self.report["stages"]

    def __call__(self, *inputs: Any) -> PyTree:
        return self.network(*inputs)

    def __str__(self) -> str:
        return tables.text(self.report)


def compress(
    network: Network,
    recipe: Recipe,
    task: Task,
    *,
    teacher: Network | None = None,
    seed: int = 0,
    workdir: str | os.PathLike[str] | None = None,
    latency: bool | Sequence[int] = True,
    export: Sequence[str] = (),
    control: bool = False,
    sensitivity: bool | None = None,
    config: Mapping[str, Any] | None = None,
    checkpoints: Places | None = None,
    watch: Watch | None = None,
) -> Result:
    """Takes a trained network through a recipe; after each stage, evaluates the network that would be deployed.

    Stage k is trained with the transforms of stages 1 to k together, the ``carried`` of the earlier ones frozen unless
    thawed. Deployed means: packed, prepared for the default backend, and run with the stage's rule.

    Args:
      network: trained, in float.
      recipe: stages, in order.
      task: loss, metrics and data. With ``valid`` the stages are compared on that, and the test data is used for the baseline
        and the last stage alone.
      teacher: what stages with ``distill`` train towards; None: the given network itself.
      seed: of the order of the minibatches.
      workdir: where the report, its plots, ``network.jn`` and ``checkpoints/`` go; None writes nothing. A run that was
        interrupted goes on from there, to the same numbers.
      latency: whether to measure it, at batches of 1, 32 and 1024; or the batches. One that would not fit into memory is
        left out, and named in the report.
      export: platforms (``"cpu"``, ``"gpu"``, ``"tpu"``) for which the artifact holds the network's program too, so that it
        runs without the model's code (``exported``). Where that can't be, the report says why.
      control: whether the float network is also trained as long as the recipe trains, without its methods
        (``jaxopt_nn.control``), so that the report says what training alone gives; it takes about as long again.
      sensitivity: whether the loss is measured with each leaf alone compressed; None: where that takes a few seconds at most
        (``pipeline.grade.MACS``).
      config: kept in the report; the recipe in words if None.
      checkpoints: ``name of a stage -> Checkpoints``: other places of positions than below ``workdir``. What lies there must
        be of the same run.
      watch: is told of each stretch of training; None shows a bar on a terminal, a line now and then elsewhere.

    Raises:
      TypeError: ``network`` or ``task`` is something else.
      ValueError: variables without a leaf, with NaN or Inf, or compressed already; outputs that don't fit the task; weights
        closed over by ``apply``; a pattern that matches nothing; running statistics that were never computed; a schedule
        that does not reach its end; data that fails in the middle of an epoch; a ``workdir`` with positions of another run.
      FloatingPointError: the loss of a stage is NaN or Inf.
      OSError: ``workdir`` can't be written, another run is using it, or the disk is full; no file is left half-written.

    Example:
      >>> rng = np.random.default_rng(0)
      >>> x = rng.standard_normal((64, 8), np.float32)
      >>> task = jn.classification(train=(x, x[:, :3].argmax(1)), test=(x, x[:, :3].argmax(1)))
      >>> net = jn.Network(lambda v, x: x @ v["kernel"], {"kernel": jnp.eye(8, 3)})
      >>> recipe = [jn.Stage("prune", jn.prune(sparsity=0.5), epochs=1)]
      >>> result = jn.compress(net, recipe, task, latency=False)
      >>> result.stages[0]["nonzero"], result(x[:2]).shape
      (12, (2, 3))
    """
    compressor = Compressor(recipe, control)
    check_platforms(export)
    run = functools.partial(
        compressor, network, task, teacher=teacher, seed=seed, latency=latency, sensitivity=sensitivity, config=config,
    )  # fmt: skip
    with contextlib.ExitStack() as stack:
        if workdir is not None:  # what can't be written, or is another run's, shows before any training
            directory = open_workdir(workdir, write.FOLDERS, write.FILES)
            stack.enter_context(locked(directory))
            if checkpoints is None:
                claim(directory / "checkpoints", compressor.fingerprint(network, task, teacher, seed), what="run")
                checkpoints = lambda name: Checkpoints(directory / "checkpoints" / name, say=_say)
        if watch is None:
            watch = stack.enter_context(Progress(_say).live()).watch()
        result = run(checkpoints=checkpoints, watch=watch)
        if workdir is not None:
            compressor.ship(result, task, workdir, export)
        for said in result.report["warnings"]:
            _say(f"warning: {said}")
    return result


def _programs(result: Result, task: Task, platforms: Sequence[str]) -> dict[str, Programs]:
    """The network's programs; where one can't be exported, the report says why, and no other work is lost."""
    programs: dict[str, Programs] = {}
    for platform in platforms:
        try:
            programs |= exported(result.network, task.example, [platform])
        except ValueError as error:
            result.report["warnings"].append(f"no program for {platform} in the artifact: {error}")
    return programs


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _named(network: Network, task: Task) -> dict[str, str]:
    """Model and data in words; who knows their names says those."""
    leaves = jax.tree.leaves(network.variables)
    model = f"{sum(x.size for x in leaves):,} parameters in {len(leaves)} leaves"
    data = f"{task.test.size:,} test examples"
    return {"title": f"{model}, {data}", "model": model, "data": data}


def _timed(
    rows: Sequence[dict[str, Any]], forms: Sequence[_Form], task: Task, latency: bool | Sequence[int]
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """The entries with their latency, and what is to be said of batches that were left out."""
    batches = (BATCHES if latency else ()) if isinstance(latency, bool) else tuple(latency)
    timed, left_out = latencies([(f.ready.run, (f.ready.variables, f.ready.states)) for f in forms], task.example, batches)
    rows = [{**row, "latency": each} for row, each in zip(rows, timed, strict=True)]
    return rows, [{"path": f"latency, batch {n}", "reason": f"not measured: {why}"} for n, why in left_out.items()]


class _Form(NamedTuple):
    """The network after a stage, as it is stored and as it runs, what is known of it, and the facts of its stage."""

    name: str
    stored: Network
    ready: Network
    info: ModelInfo
    facts: tuple[Facts, ...] = ()


def _check_call(task: Any, seed: Any, latency: Any, config: Any) -> None:
    """Raises TypeError or ValueError where an argument of ``compress`` is not allowed."""
    check_task(task)
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral):
        raise TypeError(f"compress: seed is {in_words(seed)}; pass a whole number")
    batches = [] if isinstance(latency, bool) else latency
    whole = isinstance(batches, list | tuple) and all(isinstance(n, int) and n > 0 for n in batches)
    if not whole:
        raise ValueError(f"compress(latency={latency!r}): pass True, False, or a list of batch sizes from 1: [1, 32]")
    if not (config is None or isinstance(config, Mapping)):
        raise TypeError(f"compress: config is {in_words(config)}; pass a dict, or None for the recipe in words")


def _remarks(
    method: Transform, forms: Sequence[_Form], rows: Sequence[dict[str, Any]], now: Position, task: Task,
    reports: Sequence[Report], others: Sequence[dict[str, str]],
) -> dict[str, Any]:  # fmt: skip
    """``skipped``, of leaves: left alone, assumed of, made anew, or not used as they are packed; ``warnings``: said first."""
    messages = sum(reports, explain(method, now.network.variables, now.info) + now.info.report + now.anew)
    said = [(m.path, m.reason if m.kind == "skipped" else f"{m.kind}: {m.reason}") for m in messages]
    skipped = [{"path": path, "reason": reason} for path, reason in dict.fromkeys(said)]
    unused = [each for form, report in zip(forms[1:], reports) for each in unused_rules(form.name, form.ready, task, report)]
    lost = at_chance(task, [form.name for form in forms[1:]], [row["metrics"] for row in rows])
    return {"skipped": [*skipped, *others], "warnings": [*unused, *lost]}


class Compressor:
    """``compress`` for several runs of one recipe (folds, seeds): the second run compiles hardly anything."""

    def __init__(self, recipe: Recipe, control: bool = False):
        self._course = Course(recipe)
        trains = any(stage.epochs for stage in self._course.recipe)
        self._control = Course(control_of(recipe)) if control and trains else None
        if self._control and any(stage.name == CONTROL for stage in self._course.recipe):
            raise ValueError(f"recipe: a stage is called {CONTROL!r}, as the control's folder of positions; rename it")

    def __call__(
        self,
        network: Network,
        task: Task,
        *,
        teacher: Network | None = None,
        seed: int = 0,
        latency: bool | Sequence[int] = True,
        sensitivity: bool | None = None,
        config: Mapping[str, Any] | None = None,
        checkpoints: Places | None = None,
        watch: Watch = nothing,
    ) -> Result:
        """As ``compress``; ``ship`` writes it down."""
        start = time.monotonic()
        _check_call(task, seed, latency, config)
        network = check_network(network)
        self.check(network, task, teacher)  # what is wrong with a recipe shows before any training
        run = Run(task, teacher or network, jax.random.key(seed), checkpoints, watch)
        forms, now, history = self._stages(self._course, network, run)
        rows, sums, reports = self._judged(forms, task)
        against, sums = self._controlled(network, run, sums)
        rows, untimed = _timed(rows, forms, task, latency)
        rows, unmeasured = self._sensitive(rows, forms, now, task, sensitivity)
        plan = self._course.accumulated(task.steps)
        report = {
            "schema": write.SCHEMA,
            **_named(network, task),
            "config": {"stages": described(plan.stages, plan.added)} if config is None else dict(config),
            "seed": seed,
            "devices": devices(),
            "versions": versions(),
            "metrics": task.described(),
            "headline": task.headline,
            "baseline": rows[0],
            "stages": rows[1:],
            "control": against,
            "artifact": None,
            **_remarks(plan.methods[-1], forms, rows, now, task, reports, [*untimed, *unmeasured]),
            "history": history,
            "histograms": self._histograms(network, now, task),
            **task.compared(sums.baseline, sums.final),
            "seconds": time.monotonic() - start,
        }
        report["folds"] = [folds.fold_entry(report)]
        return Result(forms[-1].stored, now.network.variables, joined(now.states), report, sums)

    def check(self, network: Network, task: Task, teacher: Network | None = None) -> None:
        """Tries the recipe on a network, e.g. a fresh one, without training.

        Raises:
          ValueError: as ``compress``, for what depends on paths, shapes, dtypes, labels and numbers of steps.
        """
        check_outputs(network, task, teacher, trains=any(stage.epochs for stage in self._course.recipe))
        for _ in self._course.tried(network, task):
            pass

    def fingerprint(self, network: Network, task: Task, teacher: Network | None, seed: int) -> dict[str, Any]:
        """What tells this run from others; nothing is trained.

        Raises:
          TypeError, ValueError: as ``check``.
        """
        check_task(task)
        network = check_network(network)
        check_outputs(network, task, teacher, trains=any(stage.epochs for stage in self._course.recipe))
        plan = self._course.accumulated(task.steps)
        tried = list(self._course.tried(network, task))
        distils = any(stage.distill for stage in plan.stages)
        return {**fingerprint(network, task, teacher, distils, seed), "stages": stage_prints(plan, tried, task)}

    def ship(
        self, result: Result, task: Task, workdir: str | os.PathLike[str], export: Sequence[str] = ()
    ) -> None:
        """Writes the artifact, reads it back and evaluates what was read, then writes the report, with both in it.

        Raises:
          RuntimeError: what was read back gives other metrics than the network in memory (NaN equals NaN); report and artifact
            are written all the same.
          OSError: ``workdir`` can't be written, or the disk is full.
        """
        directory = open_workdir(workdir, write.FOLDERS, write.FILES)
        config = result.report["config"]
        programs, recipe = _programs(result, task, export), config.get("stages", config)
        extra = {"config": config}
        artifact = save(
            directory / write.NETWORK, result.network, programs=programs, recipe=recipe, extra=extra, overwrite=True
        )
        loaded = load(artifact, result.network.apply, result.network.rules)
        reloaded = task.result(accumulated(loaded.prepared(), task, task.test))
        expected = task.result(result.sums[1])
        result.report["artifact"] = {
            "path": os.path.join(workdir, write.NETWORK), "bytes": artifact.bytes, "metrics_reloaded": reloaded,
        }  # fmt: skip
        write.write(result.report, directory)
        if not np.array_equal(list(reloaded.values()), list(expected.values()), equal_nan=True):
            raise RuntimeError(
                f"{artifact.path}: read back, its metrics are {reloaded}, in memory they were {expected}; the report and the "
                "artifact were written: if evaluating twice agrees in this process, the artifact can't be trusted"
            )

    def _stages(
        self, course: Course, network: Network, run: Run
    ) -> tuple[list[_Form], Position, list[dict[str, Any]]]:
        """The network after each stage, the baseline first; where it is at the end; the history."""
        history = list[dict[str, Any]]()
        now = Position(network, inspect(network.apply, network.variables, *run.task.example))
        forms = [_Form("baseline", network, network, now.info)]
        for k, stage in enumerate(course.recipe):
            now, facts = course.begun(k, now, run)
            now, entries = course.trained(k, now, run)
            stored = course.deployed(k, now, run.task)
            forms.append(_Form(stage.name, stored, stored.prepared(), now.info, facts))
            history += entries
        return forms, now, history

    def _judged(self, forms: Sequence[_Form], task: Task) -> tuple[list[dict[str, Any]], Sums, list[Report]]:
        """The report's entry of each form; accumulators on the test data of the first and the last; what the
        program of each after the first does."""
        judged = [accumulated(form.ready, task, task.judged) for form in forms]
        ends = Sums(judged[0], judged[-1])
        if task.valid is not None:
            ends = Sums(*(accumulated(forms[k].ready, task, task.test) for k in (0, -1)))
        rows = []
        for form, sums in zip(forms, judged, strict=True):
            row = entry.row(form.name, form.stored, form.ready, forms[0].stored.variables, form.info, form.facts)
            rows.append({**row, "metrics": task.result(sums)})
        reports = [f.ready.run.explain(f.ready.variables, *task.example, states=f.ready.states) for f in forms[1:]]
        rows[1:] = [entry.counted(row, report) for row, report in zip(rows[1:], reports, strict=True)]
        if task.valid is not None:
            rows[0]["test"], rows[-1]["test"] = task.result(ends.baseline), task.result(ends.final)
        return told_stages(rows), ends, reports

    def _controlled(self, network: Network, run: Run, sums: Sums) -> tuple[dict[str, Any] | None, Sums]:
        """The report's entry of the control and its accumulators; None where it was not asked for, or nothing is trained."""
        if self._control is None:
            return None, sums
        places = run.checkpoints
        watch = lambda said: run.watch({**said, "stage": f"{CONTROL}/{said['stage']}"})
        own = run._replace(watch=watch, checkpoints=places and (lambda name: places(f"{CONTROL}/{name}")))
        forms, *_ = self._stages(self._control, network, own)
        sums_of = {"metrics": accumulated(forms[-1].ready, run.task, run.task.judged)}
        if run.task.valid is not None:
            sums_of["test"] = accumulated(forms[-1].ready, run.task, run.task.test)
        metrics = {name: run.task.result(each) for name, each in sums_of.items()}
        return metrics, sums._replace(control=list(sums_of.values())[-1])

    def _sensitive(
        self, rows: list[dict[str, Any]], forms: Sequence[_Form], now: Position, task: Task, asked: bool | None
    ) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
        """The entries, the leaves of the last with ``alone``; or what is to be said where it was not measured."""
        baseline, course = forms[0].stored, self._course
        if asked is False:
            return rows, []
        if any(isinstance(stage.transform, Pass) for stage in course.recipe):
            found: dict[str, float] | str = "the recipe cuts the network, so that its leaves don't fit the baseline"
        else:
            compressed = course.view(len(course.recipe) - 1, now._replace(network=baseline), task)
            macs = None if asked else sum(site.macs for site in forms[0].info.sites)
            found = losses_alone(baseline, compressed, task, macs)
        if isinstance(found, str):
            return rows, [{"path": "loss by leaf", "reason": f"not measured: {found}"}]
        leaves = [{**leaf, "alone": found.get(leaf["path"])} for leaf in rows[-1]["leaves"]]
        return [*rows[:-1], {**rows[-1], "leaves": leaves}], []

    def _histograms(self, network: Network, now: Position, task: Task) -> dict[str, Any]:
        """Of the matrices, in the network given and as they are seen at the end."""
        compressed = self._course.view(len(self._course.recipe) - 1, now, task)
        matrices = [leaf.path for leaf in now.info.leaves if leaf.matrix and leaf.path in now.info.roles]
        return histograms(network.variables, compressed, matrices)
