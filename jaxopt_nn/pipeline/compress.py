"""All of it in one call: train, compress, evaluate and report, stage after stage."""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxopt_nn.coding.artifact import load_artifact, save_artifact, versions
from jaxopt_nn.core.combine import chain, frozen, later
from jaxopt_nn.core.memory import call_bytes, fitting
from jaxopt_nn.core.model import ModelInfo
from jaxopt_nn.core.transform import State, Transform, explain
from jaxopt_nn.formulations.prepare import prepare
from jaxopt_nn.interpret.inspect import inspect
from jaxopt_nn.interpret.rewrite import Rewritten, rewrite
from jaxopt_nn.methods.clip import clipping
from jaxopt_nn.pipeline import measure, report
from jaxopt_nn.pipeline.calibrate import calibrate
from jaxopt_nn.pipeline.checkpoints import Checkpoints, nothing
from jaxopt_nn.pipeline.checks import check_data, check_logits, check_teacher, check_variables
from jaxopt_nn.pipeline.data import Data
from jaxopt_nn.pipeline.evaluate import evaluator
from jaxopt_nn.pipeline.leaves import histograms
from jaxopt_nn.pipeline.recipe import Recipe, Stage, check_recipe
from jaxopt_nn.pipeline.train import Teacher, TrainApply, Trainer, Watch, steps_of

PyTree = Any
#: Where the positions of a stage's training lie, by its name.
Places = Callable[[str], Checkpoints]
#: Most examples a batch where a method must see the model run.
CALIBRATION_BATCH = 512
#: Batch sizes whose latency is reported.
BATCHES = (1, 32, 1024)


@dataclasses.dataclass(frozen=True)
class Result:
    """A compressed network and what it cost; prints as a table, and called it classifies: ``result(x) -> logits``.

    Attributes:
      variables: the stored form: compressed tensors in the place of weights.
      apply: the network with the last stage's rule, ``apply(prepare(variables), x)``.
      params, state: the float parameters behind it, and the state of the chain of the recipe's transforms.
      report: as in ``report.json``.
    """

    variables: PyTree
    apply: Rewritten
    params: PyTree
    state: State
    report: dict[str, Any]

    @property
    def stages(self) -> list[dict[str, Any]]:
        """The report's entry of each stage."""
        return self.report["stages"]

    def __call__(self, x: Any) -> jax.Array:
        return self.apply(prepare(self.variables), x)

    def __str__(self) -> str:
        return report.table(self.report)


def compress(
    apply: Callable[..., jax.Array],
    variables: PyTree,
    recipe: Recipe,
    data: Data,
    *,
    train_apply: TrainApply | None = None,
    teacher: Teacher | None = None,
    seed: int = 0,
    workdir: str | os.PathLike[str] | None = None,
    batch_size: int = 64,
    frozen: tuple[str, ...] = ("batch_stats/**",),
    latency: bool | Sequence[int] = True,
    config: Mapping[str, Any] | None = None,
    checkpoints: Places | None = None,
    watch: Watch = nothing,
) -> Result:
    """Takes a trained network through a recipe; after each stage, evaluates the network that would be deployed.

    Stage k is trained with the transforms of stages 1 to k together, the ``carried`` of the earlier ones frozen unless
    thawed. Deployed means: packed, prepared for the default backend, and run with the stage's rule.

    Args:
      apply: ``(variables, x [B, ...]) -> logits [*labels, classes]``, in evaluation mode, pure.
      variables: its float variables.
      recipe: stages, in order.
      data: what is trained on and evaluated on.
      train_apply: ``(variables, x, key) -> (logits, changed)``, the network in training mode: batch statistics, dropout;
        ``changed`` holds top-level entries of ``variables``. None trains ``apply``.
      teacher: ``(apply, variables)`` that stages with ``distill`` train towards; None: the given network itself.
      seed: of the order of the minibatches.
      workdir: where the report, its plots and ``artifact/`` go; None writes nothing.
      batch_size: of training.
      frozen: patterns of leaves that are not trained.
      latency: whether to measure it, at batches of 1, 32 and 1024; or the batches. One that would not fit into memory is
        left out, and named in the report.
      config: kept in the report; the recipe in words if None.
      checkpoints: ``name of a stage -> Checkpoints``: training goes on from what lies there. It must be of the same recipe.
      watch: is told of each stretch of training.

    Raises:
      ValueError: variables without a leaf, with NaN or Inf, or compressed already; an ``apply`` that gives other than
        logits; weights closed over by ``apply``; a pattern that matches nothing; labels outside the classes; a teacher of
        another number of classes; a schedule that does not reach its end.
      FloatingPointError: the loss of a stage is NaN or Inf.
      OSError: ``workdir`` can't be written, or the disk is full; no file is left half-written.
    """
    if workdir is not None:
        report.open_workdir(workdir)  # what can't be written shows before any training
    compressor = Compressor(
        apply, recipe, train_apply=train_apply, batch_size=batch_size, frozen=frozen, teacher=teacher and teacher[0]
    )
    result = compressor(
        variables, data, seed=seed, latency=latency, config=config, checkpoints=checkpoints, watch=watch,
        teacher_variables=teacher and teacher[1],
    )  # fmt: skip
    if workdir is not None:
        compressor.ship(result, data, workdir)
    return result


class _Plan(NamedTuple):
    """What a number of steps an epoch makes of a recipe: the accumulated method and the training of each stage."""

    added: list[Transform]
    methods: list[Transform]
    trainers: list[Trainer]


class Compressor:
    """``compress`` for several runs of one recipe (folds, seeds): the second run compiles hardly anything."""

    def __init__(
        self,
        apply: Callable[..., jax.Array],
        recipe: Recipe,
        *,
        train_apply: TrainApply | None = None,
        teacher: Callable[..., jax.Array] | None = None,
        batch_size: int = 64,
        frozen: tuple[str, ...] = ("batch_stats/**",),
    ):
        self.recipe = check_recipe(recipe)
        self._apply, self._train_apply = apply, train_apply or plain_training(apply)
        self._batch_size, self._frozen, self._teacher = batch_size, frozen, teacher
        self._rewritten = [rewrite(apply, stage.rule or ()) for stage in self.recipe]
        self._networks: list[Callable[..., Any]] = [apply, *self._rewritten]  # the baseline first, as in `forms`
        self._evaluators = [evaluator(network) for network in self._networks]
        self._plan = functools.lru_cache(maxsize=4)(self._planned)

    def _planned(self, steps: int) -> _Plan:
        added = [stage.method(steps * stage.epochs) for stage in self.recipe]
        _check_ends(self.recipe, added, steps)
        methods = [_accumulated(self.recipe[: k + 1], added[: k + 1], steps) for k in range(len(added))]
        trainers = [
            Trainer(
                self._train_apply, method, stage, steps=steps, batch_size=self._batch_size, frozen=self._frozen,
                teacher=self._teacher or self._apply,
            )
            for method, stage in zip(methods, self.recipe, strict=True)
        ]  # fmt: skip
        return _Plan(added, methods, trainers)

    def __call__(
        self,
        variables: PyTree,
        data: Data,
        *,
        seed: int = 0,
        latency: bool | Sequence[int] = True,
        config: Mapping[str, Any] | None = None,
        teacher_variables: PyTree = None,
        checkpoints: Places | None = None,
        watch: Watch = nothing,
    ) -> Result:
        """As ``compress``; ``ship`` writes it down."""
        start = time.monotonic()
        check_data(data)
        variables = check_variables(variables)
        info = self.check(variables, data, teacher_variables)  # what is wrong with a recipe shows before any training
        plan = self._plan(steps_of(len(data.train[1]), self._batch_size))
        taught = teacher_variables if self._teacher else variables
        trained = _Training(plan, info, data, jax.random.key(seed), taught, checkpoints, watch)
        params, states, forms, history, info = self._trained(variables, trained)
        seen = plan.methods[-1].view(params, _accumulated_state(self.recipe, states))
        batches = (BATCHES if latency else ()) if isinstance(latency, bool) else tuple(latency)
        rows, left_out = self._measured(forms, data, batches)
        matrices = [leaf.path for leaf in info.leaves if leaf.matrix and leaf.path in info.roles]
        made = {
            "schema": report.SCHEMA,
            "config": {"stages": described(self.recipe)} if config is None else dict(config),
            "seed": seed,
            "devices": measure.devices(),
            "versions": versions(),
            "metric": data.metric,
            "baseline": rows[0],
            "stages": rows[1:],
            "artifact": None,
            "skipped": [*self._skipped(plan.methods[-1], forms, info, data), *left_out],
            "history": history,
            "histograms": histograms(variables, seen, matrices),
            "seconds": time.monotonic() - start,
        }
        return Result(forms[-1].stored, self._rewritten[-1], params, _joined(states), made)

    def check(self, variables: PyTree, data: Data, teacher_variables: PyTree = None) -> ModelInfo:
        """Tries the recipe on a network, e.g. a fresh one, without training; gives what is known of its structure.

        Raises:
          ValueError: as ``compress``, for what depends on paths, shapes, dtypes, labels and numbers of steps.
        """
        classes = check_logits(self._apply, variables, data)
        if self._teacher:
            check_teacher(self._teacher, teacher_variables, data, classes)
        info = inspect(self._apply, variables, data.example)
        for method in self._plan(steps_of(len(data.train[1]), self._batch_size)).methods:
            known = self._calibrated(method, info, variables, data.train[0][: self._batch_size])
            jax.eval_shape(lambda v, method=method, known=known: method.init(v, known), variables)
        return info

    def ship(self, result: Result, data: Data, workdir: str | os.PathLike[str]) -> None:
        """Writes the artifact, reads it back and evaluates what was read, then writes the report, with both in it.

        Raises:
          RuntimeError: what was read back gives another accuracy or loss than the network in memory (NaN equals NaN);
            report and artifact are written all the same.
          OSError: ``workdir`` can't be written, or the disk is full.
        """
        directory = report.open_workdir(workdir)
        config = result.report["config"]
        rule = self.recipe[-1].rule
        artifact = save_artifact(
            directory / "artifact", result.variables, recipe=config.get("stages", config),
            extra={"config": config, "rule": rule.name if rule else None}, overwrite=True,
        )  # fmt: skip
        loaded, _ = load_artifact(artifact)
        found = self._evaluators[-1](prepare(loaded), *data.test)
        last = result.stages[-1]
        result.report["artifact"] = {
            "path": os.path.join(workdir, "artifact"), "bytes": artifact.bytes, "accuracy_reloaded": found.accuracy,
        }  # fmt: skip
        report.write(result.report, directory)
        read, held = (found.accuracy, found.loss), (last["accuracy"], last["loss"])
        if not np.array_equal(read, held, equal_nan=True):
            raise RuntimeError(
                f"{artifact.path}: read back, its accuracy and loss are {read}, in memory they were {held}; the report and the "
                "artifact were written: if evaluating twice agrees in this process, the artifact can't be trusted"
            )

    def _trained(
        self, variables: PyTree, given: _Training
    ) -> tuple[PyTree, list[State], list[measure.Form], list[dict[str, Any]], ModelInfo]:
        """Parameters and each stage's own state after all stages, the form of the network after each, the baseline first,
        history, info."""
        plan, params, info, history = given.plan, variables, given.info, []
        state: State = State()  # of the accumulated method, in which earlier stages are frozen
        states: list[State] = []
        forms = [measure.Form("baseline", variables, variables)]
        for k, stage in enumerate(self.recipe):
            seen = plan.methods[k - 1].view(params, state) if k else params
            info = self._calibrated(plan.added[k], info, seen, given.data.train[0])
            states.append(plan.added[k].init(seen, info))
            boxed = clipping(seen, states[k]).as_json()
            params, state, entries = plan.trainers[k](
                params, _accumulated_state(self.recipe[: k + 1], states), given.data.train,
                jax.random.fold_in(given.key, k), watch=given.watch, teacher_variables=given.taught,
                checkpoints=given.checkpoints and given.checkpoints(stage.name),
            )  # fmt: skip
            history += entries
            states = _own_states(self.recipe[: k + 1], state)
            stored = plan.methods[k].pack(params, state)
            forms.append(measure.Form(stage.name, stored, prepare(stored), boxed))
        return params, states, forms, history, info

    def _calibrated(self, method: Transform, info: ModelInfo, variables: PyTree, inputs: Any) -> ModelInfo:
        """``info`` with what ``method`` must see of the model on inputs of the training data."""
        if not method.traits.passes:
            return info
        like = lambda n: jax.ShapeDtypeStruct((n, *inputs.shape[1:]), jax.dtypes.canonicalize_dtype(inputs.dtype))
        size = fitting(lambda n: call_bytes(jax.jit(self._apply), variables, like(n)), min(CALIBRATION_BATCH, len(inputs)))
        batches = [inputs[i : i + size] for i in range(0, len(inputs), size)]
        return calibrate(self._apply, variables, method, batches)

    def _measured(
        self, forms: Sequence[measure.Form], data: Data, batches: Sequence[int]
    ) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
        """The report's entry of each form, and what is to be said of batches whose latency was not measured."""
        found = [evaluate(form.prepared, *data.test) for evaluate, form in zip(self._evaluators, forms, strict=True)]
        rows = [measure.row(form, each, forms[0]) for form, each in zip(forms, found, strict=True)]
        timed, left_out = measure.latencies(self._networks, [form.prepared for form in forms], data.test[0], batches)
        said = [{"path": f"latency, batch {n}", "reason": f"not measured: {why}"} for n, why in left_out.items()]
        return [{**row, "latency_ms": each} for row, each in zip(rows, timed, strict=True)], said

    def _skipped(
        self, method: Transform, forms: Sequence[measure.Form], info: ModelInfo, data: Data
    ) -> list[dict[str, str]]:
        """What is to be said of leaves: left alone, assumed of, or not used as they are packed."""
        messages = explain(method, forms[0].stored, info) + info.report
        for network, form in zip(self._rewritten, forms[1:], strict=True):
            messages = messages + network.explain(form.prepared, data.example)
        said = [(m.path, m.reason if m.kind == "skipped" else f"{m.kind}: {m.reason}") for m in messages]
        return [{"path": path, "reason": reason} for path, reason in dict.fromkeys(said)]


class _Training(NamedTuple):
    """What the stages of one run share."""

    plan: _Plan
    info: ModelInfo
    data: Data
    key: jax.Array
    taught: PyTree
    checkpoints: Places | None
    watch: Watch


def plain_training(apply: Callable[..., jax.Array]) -> TrainApply:
    """A network that is trained as it is evaluated."""
    return lambda variables, x, key: (apply(variables, x), {})


def _accumulated(stages: Sequence[Stage], added: Sequence[Transform], steps: int) -> Transform:
    """The transforms of all stages so far, those of earlier ones frozen, or thawed and with their clocks running on."""
    earlier = [
        later(_ran(stages[:-1], i, steps), each) if _thawed(stages, i) else frozen(each)
        for i, each in enumerate(added[:-1])
    ]
    return chain(*earlier, added[-1])


def _thawed(stages: Sequence[Stage], i: int) -> bool:
    """Whether stage ``i`` moves on while the last of ``stages`` is trained: it is the last, or the last thaws it."""
    return i == len(stages) - 1 or stages[i].name in stages[-1].thaw


def _accumulated_state(stages: Sequence[Stage], states: Sequence[State]) -> State:
    """The state of the accumulated method, of the stages' own."""
    return _joined([own if _thawed(stages, i) else State((), own) for i, own in enumerate(states)])


def _own_states(stages: Sequence[Stage], state: State) -> list[State]:
    """The stages' own states, of that of the accumulated method."""
    if len(stages) == 1:
        return [state]
    parts = [State(*parts) for parts in zip(state.learnt, state.carried, strict=True)]
    return [own if _thawed(stages, i) else own.carried for i, own in enumerate(parts)]


def _ran(stages: Sequence[Stage], i: int, steps: int) -> int:
    """How many updates stage ``i`` has seen after all of ``stages``: its own, and those of stages that thaw it."""
    return steps * sum(s.epochs for s in (stages[i], *stages[i + 1 :]) if s is stages[i] or stages[i].name in s.thaw)


def _check_ends(stages: Sequence[Stage], added: Sequence[Transform], steps: int) -> None:
    """Raises ValueError where a schedule has not reached its last value when its last update is done."""
    for i, (stage, method) in enumerate(zip(stages, added, strict=True)):
        ran = _ran(stages, i, steps)
        left = method.traits.pending(max(ran - 1, 0))
        if left:
            raise ValueError(
                f"stage {stage.name!r}: at the last of its {ran} steps its {left}; let the schedule end earlier (in a config "
                "as a share of the stage such as 0.7, here with a transform that is a function of the number of steps), "
                "train longer, or thaw the stage in a later one"
            )


def _joined(states: Sequence[State]) -> State:
    """The state of a chain; a chain of one member is that member."""
    if len(states) == 1:
        return states[0]
    return State(tuple(s.learnt for s in states), tuple(s.carried for s in states))


def described(recipe: Recipe) -> list[dict[str, Any]]:
    """The recipe in words, for reports."""
    return [
        {
            "name": stage.name,
            "epochs": stage.epochs,
            "learning_rate": "schedule" if callable(stage.learning_rate) else stage.learning_rate,
            "weight_decay": stage.weight_decay,
            "ema": stage.ema,
            "rule": stage.rule.name if stage.rule else None,
            "training_rule": stage.training_rule.name if stage.training_rule else None,
            "distill": dataclasses.asdict(stage.distill) if stage.distill else None,
        }
        for stage in recipe
    ]
