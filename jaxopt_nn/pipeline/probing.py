"""Probes: statistics of the loss by leaf, measured on a task's data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_nn.core.model import StatKey
from jaxopt_nn.core.paths import leaves_by_path, map_with_path
from jaxopt_nn.core.tap import Probe
from jaxopt_nn.pipeline.data import Arrays
from jaxopt_nn.pipeline.task import Objective, Task, mean_loss

PyTree = Any
#: Examples that probes see, unless told otherwise.
EXAMPLES = 512


def probed(
    apply: Callable[..., PyTree],
    variables: PyTree,
    inputs: tuple[Any, ...],
    wanted: Mapping[StatKey, Probe],
    task: Task | None,
    examples: int = EXAMPLES,
) -> dict[StatKey, Any]:
    """The statistics of probes: one program, and one pass over the examples, for all leaves of each.

    Args:
      inputs: a batch of inputs, for its shapes.
      wanted: ``{(member, path, name): Probe}``.
      task: whose loss, over its training data, or its test data where there is none.
      examples: at most so many, spread evenly over arrays, else the first.

    Raises:
      ValueError: a probe of the loss and no task; a statistic that is NaN or Inf.
    """
    groups: dict[tuple[Any, str], tuple[Probe, list[str]]] = {}
    for (member, path, name), probe in wanted.items():
        groups.setdefault((member, name), (probe, []))[1].append(path)
    found: dict[StatKey, Any] = {}
    for (member, name), (probe, taken) in groups.items():
        if probe.of == "outputs":
            stats = _of_outputs(apply, variables, inputs, probe, taken)
        elif task is None:
            raise ValueError(
                f"{taken[0]}: the statistic {name!r} is one of the loss; pass calibrate(network, method, task), or a task= "
                "beside batches"
            )
        else:
            stats = _of_loss(apply, variables, probe, taken, task, examples)
        for path in taken:
            if not all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(stats[path])):
                raise ValueError(f"{path}: NaN or Inf in the statistic {name!r}; clean the data or the weights")
            found[(member, path, name)] = stats[path]
    return found


def _float_leaves(variables: PyTree) -> dict[str, Any]:
    return {p: x for p, x in leaves_by_path(variables).items() if jnp.issubdtype(x.dtype, jnp.floating)}


def _replaced(variables: PyTree, leaves: Mapping[str, Any]) -> PyTree:
    return map_with_path(lambda path, x: leaves[path].astype(x.dtype) if path in leaves else x, variables)


def _of_outputs(
    apply: Callable[..., PyTree], variables: PyTree, inputs: tuple[Any, ...], probe: Probe, taken: list[str]
) -> dict[str, Any]:
    ones = jax.tree.map(lambda x: jnp.ones((1, *np.shape(x)[1:]), np.asarray(x).dtype), inputs)

    @jax.jit
    def measure(variables: PyTree) -> dict[str, Any]:
        def total(leaves: Mapping[str, Any]) -> Any:
            outputs = jax.tree.leaves(apply(_replaced(variables, leaves), *ones))
            return sum(jnp.sum(x.astype(jnp.float32)) for x in outputs)

        return probe.measure(total, _float_leaves(variables), taken, jax.random.key(0))

    return measure(variables)


def _of_loss(
    apply: Callable[..., PyTree], variables: PyTree, probe: Probe, taken: list[str], task: Task, examples: int
) -> dict[str, Any]:
    step = jax.jit(_measuring(apply, probe, taken, task.objective))
    total, count = None, 0.0
    for i, (batch, real) in enumerate(_batches(task, examples)):
        part, seen = step(variables, batch, real, jax.random.fold_in(jax.random.key(0), i))
        total = part if total is None else jax.tree.map(jnp.add, total, part)
        count += float(seen)
    if total is None or count == 0:
        raise ValueError("calibrate: no example with a weight; pass a task with training data")
    return jax.tree.map(lambda x: x * (1 / count), total)


def _measuring(
    apply: Callable[..., PyTree], probe: Probe, taken: list[str], objective: Objective
) -> Callable[..., tuple[dict[str, Any], Any]]:
    """``(variables, batch, real, key) -> (sum of the statistic over examples, how many they are)``."""

    def one(variables: PyTree, batch: PyTree, real: Any, key: Any) -> tuple[dict[str, Any], Any]:
        def loss(leaves: Mapping[str, Any]) -> Any:
            outputs = apply(_replaced(variables, leaves), *objective.inputs_of(batch))
            return mean_loss(objective.loss(outputs, batch), real)[0]

        found = probe.measure(loss, _float_leaves(variables), taken, key)
        count = jnp.sum(real.astype(jnp.float32))
        return jax.tree.map(lambda x: x.astype(jnp.float32) * count, {p: found[p] for p in taken}), count

    def each(variables: PyTree, batch: PyTree, real: Any, key: Any) -> tuple[dict[str, Any], Any]:
        def add(totals: Any, i: Any) -> tuple[Any, None]:
            row = lambda x: jax.lax.dynamic_slice_in_dim(x, i, 1)
            return jax.tree.map(jnp.add, totals, one(variables, jax.tree.map(row, batch), row(real), key)), None

        shapes = jax.eval_shape(lambda: one(variables, jax.tree.map(lambda x: x[:1], batch), real[:1], key))
        zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return jax.lax.scan(add, zero, jnp.arange(len(real)))[0]

    return each if probe.of == "example" else one


def _batches(task: Task, examples: int) -> Iterator[tuple[PyTree, Any]]:
    source = task.train or task.test
    if isinstance(source, Arrays):
        rows = np.unique(np.linspace(0, source.size - 1, min(examples, source.size)).astype(int))
        source = Arrays(source.rows(rows), source.name)
    left = examples
    for batch, real in source.batches(source.batch_rows(task.batch_size)):
        real = np.where(np.cumsum(real > 0) <= left, real, 0).astype(np.float32)
        yield jax.tree.map(jnp.asarray, batch), jnp.asarray(real)
        left -= int((real > 0).sum())
        if left <= 0:
            return
