"""All of it in one call: train, compress, evaluate and report, stage after stage."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_nn.coding.artifact import load_artifact, save_artifact, versions
from jaxopt_nn.coding.structure import check_storable
from jaxopt_nn.core.combine import chain, frozen
from jaxopt_nn.core.model import ModelInfo
from jaxopt_nn.core.paths import leaves_by_path
from jaxopt_nn.core.report import Report
from jaxopt_nn.core.transform import State, Transform, explain
from jaxopt_nn.interpret.inspect import inspect
from jaxopt_nn.interpret.rewrite import Rewritten, rewrite
from jaxopt_nn.pipeline import measure, report
from jaxopt_nn.pipeline.data import Data
from jaxopt_nn.pipeline.evaluate import evaluator
from jaxopt_nn.pipeline.recipe import Recipe, Stage, check_recipe
from jaxopt_nn.pipeline.train import Trainer
from jaxopt_nn.tensors.base import is_compressed
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
        self._networks = [rewrite(apply, stage.rule or ()) for stage in self.recipe]
        self._evaluators = [evaluator(network) for network in (apply, *self._networks)]

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

        size = measure.Size.of(variables)
        baseline = self._evaluators[0](variables, *data.test)
        rows = [measure.row("baseline", baseline, variables, variables, size)]
        prepared, remarks = [variables], info.report.of("no site", "constant", "opaque")
        params, states = variables, ()
        for k, stage in enumerate(self.recipe):
            params, states = self._train(k, params, states, info, data, jax.random.fold_in(jax.random.key(seed), k))
            stored = self._methods[k].pack(params, _joined(states))
            prepared.append(prepare(stored))
            found = self._evaluators[k + 1](prepared[-1], *data.test)
            rows.append(measure.row(stage.name, found, stored, prepared[-1], size))
            remarks = remarks + self._networks[k].explain(prepared[-1], data.example)
        if latency:
            timed = measure.latencies([self._apply, *self._networks], prepared, data.test[0], BATCHES)
            rows = [{**row, "latency_ms": each} for row, each in zip(rows, timed, strict=True)]

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
            "skipped": _skipped(explain(self._methods[-1], variables, info) + remarks),
        }
        return Result(stored, self._networks[-1], params, _joined(states), made)

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

    def _train(
        self, k: int, params: PyTree, states: tuple[State, ...], info: ModelInfo, data: Data, key: jax.Array
    ) -> tuple[PyTree, tuple[State, ...]]:
        """Parameters and the states of the transforms 0 to ``k`` after stage ``k``."""
        seen = self._methods[k - 1].view(params, _joined(states)) if k else params
        states = (*states, self.recipe[k].transform.init(seen, info))
        params, state = self._trainers[k](params, _joined(states), data.train, key)
        return params, _split(state, k + 1)


def _accumulated(stages: tuple[Stage, ...]) -> Transform:
    *earlier, last = stages
    return chain(*[s.transform if s.name in last.thaw else frozen(s.transform) for s in earlier], last.transform)


def _joined(states: tuple[State, ...]) -> State:
    """The state of a chain; a chain of one member is that member."""
    if len(states) == 1:
        return states[0]
    return State(tuple(s.learnt for s in states), tuple(s.carried for s in states))


def _split(state: State, members: int) -> tuple[State, ...]:
    if members == 1:
        return (state,)
    return tuple(State(*parts) for parts in zip(state.learnt, state.carried, strict=True))


def check_variables(variables: PyTree) -> PyTree:
    """The tree with JAX arrays.

    Raises:
      TypeError: a leaf or node that can't be stored. ValueError: no leaf, a compressed tensor, NaN or Inf; named by path.
    """
    check_storable(variables)
    leaves = leaves_by_path(variables)
    if not leaves:
        raise ValueError(
            "variables holds no array: pass the whole pytree that apply takes, e.g. what model.init returned"
        )
    for path, leaf in leaves.items():
        if is_compressed(leaf):
            raise ValueError(
                f"{path}: is a {type(leaf).__name__}; a recipe starts from floats: jaxopt_nn.densify(variables)"
            )
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and not bool(jnp.isfinite(leaf).all()):
            bad = int(jnp.sum(~jnp.isfinite(leaf)))
            raise ValueError(f"{path}: {bad} of {leaf.size} entries are NaN or Inf; find the step that diverged")
    return jax.tree.map(jnp.asarray, variables)


def check_logits(apply: Callable[..., Any], variables: PyTree, data: Data) -> None:
    """Raises ValueError where ``apply`` gives other than ``[B, classes]`` floats, or a label has no logit."""
    pair = np.repeat(data.example, 2, axis=0)
    out = jax.eval_shape(apply, variables, pair)
    given = f"{out.dtype}{list(out.shape)}" if isinstance(out, jax.ShapeDtypeStruct) else str(jax.tree.structure(out))
    logits = isinstance(out, jax.ShapeDtypeStruct) and jnp.issubdtype(out.dtype, jnp.floating)
    if not logits or len(out.shape) != 2 or out.shape[0] != 2:
        raise ValueError(
            f"apply gives {given} for 2 inputs; compress needs logits, float [2, classes]: wrap apply so that it returns them"
        )
    data.check_labels(out.shape[1])


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


def _skipped(messages: Report) -> list[dict[str, str]]:
    """Leaves that no stage took, and places where a compressed weight is not used as such."""
    kinds = ("skipped", "no site", "constant", "opaque", "densified", "float", "derivative")
    reasons = {
        (m.path, m.reason if m.kind == "skipped" else f"{m.kind}: {m.reason}"): None for m in messages.of(*kinds)
    }
    return [{"path": path, "reason": reason} for path, reason in reasons]
