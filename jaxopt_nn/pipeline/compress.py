"""All of it in one call: train, compress, evaluate and report, stage after stage."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from jaxopt_nn.coding.artifact import load_artifact, save_artifact, versions
from jaxopt_nn.core.combine import chain, frozen
from jaxopt_nn.core.model import ModelInfo
from jaxopt_nn.core.transform import State, Transform, explain
from jaxopt_nn.interpret.inspect import inspect
from jaxopt_nn.interpret.rewrite import Rewritten, rewrite
from jaxopt_nn.pipeline import measure, report
from jaxopt_nn.pipeline.checks import check_logits, check_variables
from jaxopt_nn.pipeline.data import Data
from jaxopt_nn.pipeline.evaluate import evaluator
from jaxopt_nn.pipeline.recipe import Recipe, Stage, check_recipe
from jaxopt_nn.pipeline.train import Trainer
from jaxopt_nn.tensors.prepare import prepare

PyTree = Any
#: Batch sizes whose latency is reported.
BATCHES = (1, 32, 1024)


@dataclasses.dataclass(frozen=True)
class Result:
    """A compressed network and what it cost; prints as a table, and called it classifies: ``result(x) -> logits``.

    Attributes:
      variables: the stored form: compressed tensors in the place of weights.
      apply: the network with the last stage's rule, ``apply(prepare(variables), x)``.
      params, state: the float parameters behind it, and the state of the recipe's transforms.
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
    seed: int = 0,
    workdir: str | os.PathLike[str] | None = None,
    batch_size: int = 64,
    frozen: tuple[str, ...] = ("batch_stats/**",),
    latency: bool = True,
    config: Mapping[str, Any] | None = None,
) -> Result:
    """Takes a trained classifier through a recipe; after each stage, evaluates the network that would be deployed.

    Stage k is trained with the transforms of stages 1 to k together, the ``carried`` of the earlier ones frozen unless
    thawed. Deployed means: packed, prepared for the default backend, and run with the stage's rule.

    Args:
      apply: ``(variables, x [B, ...]) -> logits [B, classes]``, in evaluation mode, pure.
      variables: its float variables.
      recipe: stages, in order.
      data: what is trained on and evaluated on.
      seed: of the order of the minibatches.
      workdir: where ``report.json``, ``report.md``, ``accuracy_bytes.png`` and ``artifact/`` go; None writes nothing.
      batch_size: of training.
      frozen: patterns of leaves that are not trained.
      latency: whether to measure it, at batches of 1, 32 and 1024.
      config: kept in the report; the recipe in words if None.

    Raises:
      ValueError: variables without a leaf, with NaN or Inf, or compressed already; an ``apply`` that gives other than
        logits; weights closed over by ``apply``; a pattern that matches nothing; labels outside the classes.
      FloatingPointError: the loss of a stage is NaN or Inf.
      OSError: ``workdir`` can't be written, or the disk is full; no file is left half-written.
    """
    if workdir is not None:
        report.open_workdir(workdir)  # what can't be written shows before any training
    compressor = Compressor(apply, recipe, batch_size=batch_size, frozen=frozen)
    result = compressor(variables, data, seed=seed, latency=latency, config=config)
    if workdir is not None:
        compressor.ship(result, data, workdir)
    return result


class Compressor:
    """``compress`` for several runs of one recipe (folds, seeds): the second run compiles hardly anything."""

    def __init__(
        self,
        apply: Callable[..., jax.Array],
        recipe: Recipe,
        *,
        batch_size: int = 64,
        frozen: tuple[str, ...] = ("batch_stats/**",),
    ):
        self.recipe = check_recipe(recipe)
        self._apply = apply
        self._methods = [_accumulated(self.recipe[: k + 1]) for k in range(len(self.recipe))]
        self._trainers = [
            Trainer(apply, method, stage, batch_size=batch_size, frozen=frozen)
            for method, stage in zip(self._methods, self.recipe, strict=True)
        ]
        self._rewritten = [rewrite(apply, stage.rule or ()) for stage in self.recipe]
        self._networks: list[Callable[..., Any]] = [apply, *self._rewritten]  # the baseline first, as in `forms`
        self._evaluators = [evaluator(network) for network in self._networks]

    def __call__(
        self,
        variables: PyTree,
        data: Data,
        *,
        seed: int = 0,
        latency: bool = True,
        config: Mapping[str, Any] | None = None,
    ) -> Result:
        """As ``compress``; ``ship`` writes it down."""
        variables = check_variables(variables)
        check_logits(self._apply, variables, data)
        info = inspect(self._apply, variables, data.example)
        for method in self._methods:  # what is wrong with a recipe shows before any training
            jax.eval_shape(lambda v, method=method: method.init(v, info), variables)
        params, state, forms = self._trained(variables, info, data, jax.random.key(seed))
        rows = self._measured(forms, data, latency)
        made = {
            "schema": report.SCHEMA,
            "config": {"stages": described(self.recipe)} if config is None else dict(config),
            "seed": seed,
            "devices": measure.devices(),
            "versions": versions(),
            "metric": "accuracy",
            "baseline": rows[0],
            "stages": rows[1:],
            "artifact": None,
            "skipped": self._skipped(forms, info, data),
        }
        return Result(forms[-1].stored, self._rewritten[-1], params, state, made)

    def ship(self, result: Result, data: Data, workdir: str | os.PathLike[str]) -> None:
        """Writes the artifact, reads it back and evaluates what was read, then writes the report, with both in it."""
        directory = report.open_workdir(workdir)
        config = result.report["config"]
        artifact = save_artifact(
            directory / "artifact", result.variables, recipe=config.get("stages", config), overwrite=True
        )
        loaded, _ = load_artifact(artifact)
        found = self._evaluators[-1](prepare(loaded), *data.test)
        last = result.stages[-1]
        assert (found.accuracy, found.loss) == (last["accuracy"], last["loss"]), (
            f"read back: {found}, in memory: {last}"
        )
        result.report["artifact"] = {
            "path": os.path.join(workdir, "artifact"), "bytes": artifact.bytes, "accuracy_reloaded": found.accuracy,
        }  # fmt: skip
        report.write(result.report, directory)

    def _trained(
        self, variables: PyTree, info: ModelInfo, data: Data, key: jax.Array
    ) -> tuple[PyTree, State, list[measure.Form]]:
        """Parameters and state after all stages, and the form of the network after each, the baseline first."""
        params = variables
        states: tuple[State, ...] = ()
        forms = [measure.Form("baseline", variables, variables)]
        for k, stage in enumerate(self.recipe):
            seen = self._methods[k - 1].view(params, _joined(states)) if k else params
            states = (*states, stage.transform.init(seen, info))
            params, state = self._trainers[k](params, _joined(states), data.train, jax.random.fold_in(key, k))
            states = _parts(state, k + 1)
            stored = self._methods[k].pack(params, state)
            forms.append(measure.Form(stage.name, stored, prepare(stored)))
        return params, _joined(states), forms

    def _measured(self, forms: Sequence[measure.Form], data: Data, latency: bool) -> list[dict[str, Any]]:
        found = [evaluate(form.prepared, *data.test) for evaluate, form in zip(self._evaluators, forms, strict=True)]
        rows = [measure.row(form, each, forms[0]) for form, each in zip(forms, found, strict=True)]
        if not latency:
            return rows
        timed = measure.latencies(self._networks, [form.prepared for form in forms], data.test[0], BATCHES)
        return [{**row, "latency_ms": each} for row, each in zip(rows, timed, strict=True)]

    def _skipped(self, forms: Sequence[measure.Form], info: ModelInfo, data: Data) -> list[dict[str, str]]:
        """Leaves that no stage took, and places where a compressed weight is not used as such."""
        messages = explain(self._methods[-1], forms[0].stored, info) + info.report
        for network, form in zip(self._rewritten, forms[1:], strict=True):
            messages = messages + network.explain(form.prepared, data.example)
        kept = [m for m in messages if m.kind not in ("assumed", "note")]
        said = [(m.path, m.reason if m.kind == "skipped" else f"{m.kind}: {m.reason}") for m in kept]
        return [{"path": path, "reason": reason} for path, reason in dict.fromkeys(said)]


def _accumulated(stages: tuple[Stage, ...]) -> Transform:
    *earlier, last = stages
    return chain(*[s.transform if s.name in last.thaw else frozen(s.transform) for s in earlier], last.transform)


def _joined(states: tuple[State, ...]) -> State:
    """The state of a chain; a chain of one member is that member."""
    if len(states) == 1:
        return states[0]
    return State(tuple(s.learnt for s in states), tuple(s.carried for s in states))


def _parts(state: State, members: int) -> tuple[State, ...]:
    if members == 1:
        return (state,)
    return tuple(State(*parts) for parts in zip(state.learnt, state.carried, strict=True))


def described(recipe: Recipe) -> list[dict[str, Any]]:
    """The recipe in words, for reports."""
    return [
        {
            "name": stage.name,
            "epochs": stage.epochs,
            "learning_rate": "schedule" if callable(stage.learning_rate) else stage.learning_rate,
            "rule": stage.rule.name if stage.rule else None,
        }
        for stage in recipe
    ]
