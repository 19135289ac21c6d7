"""All of it in one call: train, compress, evaluate and report, stage after stage."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxopt_nn.coding.artifact import versions
from jaxopt_nn.core.files import open_workdir
from jaxopt_nn.core.model import ModelInfo
from jaxopt_nn.core.transform import Facts, State, Transform, explain
from jaxopt_nn.cost.latency import devices, latencies
from jaxopt_nn.formulations.prepare import prepare
from jaxopt_nn.interpret.inspect import inspect
from jaxopt_nn.interpret.network import Network, Rules, network_of
from jaxopt_nn.pipeline.calibrate import calibrate, calibration_inputs
from jaxopt_nn.pipeline.checkpoints import Checkpoints, claim, locked, nothing
from jaxopt_nn.pipeline.checks import check_network, check_outputs, check_task
from jaxopt_nn.pipeline.fingerprint import fingerprint
from jaxopt_nn.pipeline.fit import Trained, Trainer
from jaxopt_nn.pipeline.grade import accumulated
from jaxopt_nn.pipeline.recipe import Recipe, check_recipe, described
from jaxopt_nn.pipeline.stages import accumulate
from jaxopt_nn.pipeline.store import load, save
from jaxopt_nn.pipeline.task import Objective, Task
from jaxopt_nn.pipeline.twins import twin, with_states
from jaxopt_nn.reporting import entry, tables, write
from jaxopt_nn.reporting.leaf_table import histograms
from jaxopt_nn.reporting.progress import Progress, Watch

PyTree = Any
#: Where the positions of a stage's training lie, by its name.
Places = Callable[[str], Checkpoints]
#: Batch sizes whose latency is reported.
BATCHES = (1, 32, 1024)


@dataclasses.dataclass(frozen=True)
class Result:
    """A compressed network and what it cost; prints as a table, and called it answers: ``result(*inputs) -> outputs``.

    Attributes:
      network: in stored form, compressed tensors in the place of weights, with the last stage's rule and its states.
      params, state: the float variables behind it, and the state of the chain of the recipe's transforms.
      report: as in ``report.json``.
      sums: the accumulators of the task's metrics on the test data, of the baseline and of the last stage.
    """

    network: Network
    params: PyTree
    state: State
    report: dict[str, Any]
    sums: tuple[dict[str, PyTree], dict[str, PyTree]] = dataclasses.field(repr=False, default=({}, {}))

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
      workdir: where the report, its plots, ``artifact/`` and ``checkpoints/`` go; None writes nothing. A run that was
        interrupted goes on from there, to the same numbers.
      latency: whether to measure it, at batches of 1, 32 and 1024; or the batches. One that would not fit into memory is
        left out, and named in the report.
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
    """
    compressor = Compressor(network, recipe)
    run = functools.partial(
        compressor, network, task, teacher=teacher, seed=seed, latency=latency, config=config,
    )  # fmt: skip
    with contextlib.ExitStack() as stack:
        if workdir is not None:  # what can't be written, or is another run's, shows before any training
            directory = open_workdir(workdir, write.FOLDERS, write.FILES)
            stack.enter_context(locked(directory))
            if checkpoints is None:
                claim(directory / "checkpoints", compressor.fingerprint(network, task, seed), what="run")
                checkpoints = lambda name: Checkpoints(directory / "checkpoints" / name, say=_say)
        if watch is None:
            watch = stack.enter_context(Progress(_say).live()).watch()
        result = run(checkpoints=checkpoints, watch=watch)
        if workdir is not None:
            compressor.ship(result, task, workdir)
    return result


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class _Form(NamedTuple):
    """The network after a stage, as it is stored and as it runs, and the facts of its stage when it began."""

    name: str
    stored: Network
    ready: Network
    facts: tuple[Facts, ...] = ()


class _Run(NamedTuple):
    """What the stages of one run share."""

    task: Task
    teacher: Network
    key: jax.Array
    checkpoints: Places | None
    watch: Watch


class Compressor:
    """``compress`` for several runs of one recipe (folds, seeds): the second run compiles hardly anything."""

    def __init__(self, network: Network, recipe: Recipe):
        self.recipe = check_recipe(recipe)
        self._network = network_of(network)
        self._accumulated = functools.lru_cache(maxsize=4)(functools.partial(accumulate, self.recipe))
        self._trainer = functools.lru_cache(maxsize=4 * len(self.recipe))(self._made_trainer)

    def _made_trainer(self, k: int, objective: Objective, steps: int, batch_size: int, rules: Rules) -> Trainer:
        return Trainer(
            self._network.trained, self._accumulated(steps).methods[k], self.recipe[k], objective,
            steps=steps, batch_size=batch_size, rules=rules, still=self._network.still,
        )  # fmt: skip

    def __call__(
        self,
        network: Network,
        task: Task,
        *,
        teacher: Network | None = None,
        seed: int = 0,
        latency: bool | Sequence[int] = True,
        config: Mapping[str, Any] | None = None,
        checkpoints: Places | None = None,
        watch: Watch = nothing,
    ) -> Result:
        """As ``compress``; ``ship`` writes it down."""
        start = time.monotonic()
        check_task(task)
        network = check_network(network)
        info = self.check(network, task, teacher)  # what is wrong with a recipe shows before any training
        run = _Run(task, teacher or network, jax.random.key(seed), checkpoints, watch)
        forms, params, state, history, info = self._stages(network, info, run)
        rows, sums = self._judged(forms, task)
        batches = (BATCHES if latency else ()) if isinstance(latency, bool) else tuple(latency)
        timed, left_out = latencies([(f.ready.run, (f.ready.variables, f.ready.states)) for f in forms], task.example, batches)
        rows = [{**row, "latency_ms": each} for row, each in zip(rows, timed, strict=True)]
        told = [{"path": f"latency, batch {n}", "reason": f"not measured: {why}"} for n, why in left_out.items()]
        plan = self._accumulated(self._steps(task))
        method = plan.methods[-1]
        seen = method.view(params, plan.state(state))
        matrices = [leaf.path for leaf in info.leaves if leaf.matrix and leaf.path in info.roles]
        report = {
            "schema": write.SCHEMA,
            "config": {"stages": described(self.recipe, plan.added)} if config is None else dict(config),
            "seed": seed,
            "devices": devices(),
            "versions": versions(),
            "metrics": task.described(),
            "headline": task.headline,
            "baseline": rows[0],
            "stages": rows[1:],
            "artifact": None,
            "skipped": [*self._skipped(method, forms, info, task), *told],
            "history": history,
            "histograms": histograms(network.variables, seen, matrices),
            "seconds": time.monotonic() - start,
        }
        return Result(forms[-1].stored, params, plan.joined(state), report, sums)

    def check(self, network: Network, task: Task, teacher: Network | None = None) -> ModelInfo:
        """Tries the recipe on a network, e.g. a fresh one, without training; gives what is known of its structure.

        Raises:
          ValueError: as ``compress``, for what depends on paths, shapes, dtypes, labels and numbers of steps.
        """
        check_outputs(network, task, teacher, trains=any(stage.epochs for stage in self.recipe))
        info = inspect(network.apply, network.variables, *task.example)
        for k, stage in enumerate(self.recipe):
            if stage.epochs:
                self._trainer(k, task.objective, self._steps(task), task.batch_size, ())
        for method in self._accumulated(self._steps(task)).methods:
            known = self._calibrated(method, network, info, task, few=True)
            jax.eval_shape(lambda v, method=method, known=known: method.init(v, known), network.variables)
        return info

    def fingerprint(self, network: Network, task: Task, seed: int) -> dict[str, Any]:
        """What tells this run from others; nothing is trained."""
        check_task(task)
        info = inspect(network.apply, network.variables, *task.example)
        added = self._accumulated(self._steps(task)).added
        infos = [self._calibrated(method, network, info, task, few=True) for method in added]
        return fingerprint(network_of(network), self.recipe, added, infos, task, seed)

    def ship(self, result: Result, task: Task, workdir: str | os.PathLike[str]) -> None:
        """Writes the artifact, reads it back and evaluates what was read, then writes the report, with both in it.

        Raises:
          RuntimeError: what was read back gives other metrics than the network in memory (NaN equals NaN); report and artifact
            are written all the same.
          OSError: ``workdir`` can't be written, or the disk is full.
        """
        directory = open_workdir(workdir, write.FOLDERS, write.FILES)
        config = result.report["config"]
        recipe = config.get("stages", config)
        artifact = save(directory / "artifact", result.network, recipe=recipe, extra={"config": config}, overwrite=True)
        loaded = load(artifact, result.network.apply, result.network.rules)
        found = task.result(accumulated(loaded.replace(variables=prepare(loaded.variables)), task, task.test))
        held = task.result(result.sums[1])
        result.report["artifact"] = {
            "path": os.path.join(workdir, "artifact"), "bytes": artifact.bytes, "metrics_reloaded": found,
        }  # fmt: skip
        write.write(result.report, directory)
        if not np.array_equal(list(found.values()), list(held.values()), equal_nan=True):
            raise RuntimeError(
                f"{artifact.path}: read back, its metrics are {found}, in memory they were {held}; the report and the "
                "artifact were written: if evaluating twice agrees in this process, the artifact can't be trusted"
            )

    def _steps(self, task: Task) -> int:
        return 1 if task.train is None else task.train.steps(task.batch_size)

    def _stages(
        self, network: Network, info: ModelInfo, run: _Run
    ) -> tuple[list[_Form], PyTree, list[State], list[dict[str, Any]], ModelInfo]:
        """The network after each stage, the baseline first; float variables, each stage's own state, history, what is known."""
        plan, params, states = self._accumulated(self._steps(run.task)), network.variables, list[State]()
        forms, history = [_Form("baseline", network, network)], list[dict[str, Any]]()
        for k, stage in enumerate(self.recipe):
            part = plan.upto(k)
            seen = plan.methods[k - 1].view(params, plan.upto(k - 1).state(states)) if k else params
            info = self._calibrated(plan.added[k], network.replace(variables=seen), info, run.task)
            states.append(plan.added[k].init(seen, info))
            facts = plan.added[k].traits.facts(seen, states[k])
            ruled: Mapping[str, State] | None = None
            if stage.epochs:
                done, ruled = self._trained(k, network, params, part.state(states), run)
                params, states, history = done.variables, part.own(done.state), history + done.history
            method, state = plan.methods[k], part.state(states)
            if ruled is None:
                shown = network.replace(variables=method.view(params, state), rules=stage.rule or ())
                ruled = with_states(shown, run.task).states
            stored = network.replace(
                variables=method.pack(params, state), rules=stage.rule or (), states=ruled, training=None
            )
            forms.append(_Form(stage.name, stored, stored.replace(variables=prepare(stored.variables)), facts))
        return forms, params, states, history, info

    def _trained(
        self, k: int, network: Network, params: PyTree, state: State, run: _Run
    ) -> tuple[Trained, Mapping[str, State] | None]:
        """Stage ``k``'s training, and the states of its deployed rule where its twin was trained."""
        stage, task, steps = self.recipe[k], run.task, self._steps(run.task)
        method = self._accumulated(steps).methods[k]
        ready = twin(stage, network.replace(variables=method.view(params, state)), lambda: method.pack(params, state), task)
        trainer = self._trainer(k, task.objective, steps, task.batch_size, ready.rules)
        done = trainer(
            params, state, task.train, jax.random.fold_in(run.key, k), rules=ready.states, teacher=run.teacher,
            checkpoints=run.checkpoints and run.checkpoints(stage.name), watch=run.watch,
        )  # fmt: skip
        return done, ready.deployed(done.rules)

    def _judged(self, forms: Sequence[_Form], task: Task) -> tuple[list[dict[str, Any]], Any]:
        """The report's entry of each form; accumulators on the test data of the first and the last."""
        found = [accumulated(form.ready, task, task.judged) for form in forms]
        ends = (found[0], found[-1])
        if task.valid is not None:
            ends = accumulated(forms[0].ready, task, task.test), accumulated(forms[-1].ready, task, task.test)
        rows = []
        for form, sums in zip(forms, found, strict=True):
            row = entry.row(form.name, form.stored, form.ready, forms[0].stored.variables, form.facts)
            rows.append({**row, "metrics": task.result(sums)})
        if task.valid is not None:
            for row, sums in zip((rows[0], rows[-1]), ends, strict=True):
                row["test"] = task.result(sums)
        return rows, ends

    def _calibrated(
        self, method: Transform, network: Network, info: ModelInfo, task: Task, few: bool = False
    ) -> ModelInfo:
        """``info`` with what ``method`` must see of the model on inputs of the training data."""
        if not method.traits.passes:
            return info
        return calibrate(network, method, calibration_inputs(network, task, few))

    def _skipped(
        self, method: Transform, forms: Sequence[_Form], info: ModelInfo, task: Task
    ) -> list[dict[str, str]]:
        """What is to be said of leaves: left alone, assumed of, or not used as they are packed."""
        messages = explain(method, forms[0].stored.variables, info) + info.report
        for form in forms[1:]:
            messages = messages + form.ready.run.explain(form.ready.variables, *task.example, states=form.ready.states)
        said = [(m.path, m.reason if m.kind == "skipped" else f"{m.kind}: {m.reason}") for m in messages]
        return [{"path": path, "reason": reason} for path, reason in dict.fromkeys(said)]


