"""What a network is worth: its metrics over a set of any size."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxopt_nn.core.arguments import require
from jaxopt_nn.core.memory import call_bytes, fitting
from jaxopt_nn.core.paths import leaves_by_path, map_with_path
from jaxopt_nn.interpret.network import Network, like, network_of
from jaxopt_nn.interpret.rewrite import Rewritten
from jaxopt_nn.pipeline.data import Arrays, Source, source_of
from jaxopt_nn.pipeline.task import Objective, Task

PyTree = Any
#: Most examples a call.
EXAMPLES = 512
#: Multiply-accumulates that `losses_alone` spends unasked: some seconds of a CPU core. Leaves likewise.
MACS, LEAVES = 2e10, 32
_sizes: dict[Any, int] = {}


def evaluate(network: Network, task: Task, data: Any = None) -> dict[str, float]:
    """The task's metrics of a network, ``loss`` among them.

    Args:
      network: tensors in stored form are prepared first.
      data: a source, or what ``Task`` takes as one; the task's test data if None.

    Raises:
      TypeError: ``network`` is no ``Network``.
      ValueError: data that does not fit.

    Example:
      >>> x = np.array([[1.0], [2.0]], np.float32)
      >>> task = jn.regression(test=(x, 2 * x))
      >>> net = jn.Network(lambda v, x: x @ v["kernel"], {"kernel": jnp.array([[2.0]])})
      >>> jn.evaluate(net, task)["loss"], jn.evaluate(net, task, data=(x, x))["loss"]  # on the test data, and on other data
      (0.0, 2.5)
    """
    network = network_of(network)
    require(task, Task, "task", "a Task, e.g. classification(train=(x, y), test=(x, y))")
    source = task.test if data is None else source_of(data, "data")
    return task.result(accumulated(network, task, source))


def accumulated(network: Network, task: Task, source: Source) -> dict[str, PyTree]:
    """The accumulators of the task's metrics over a source, on the host in float64 (``Task.result`` gives the numbers).

    One program for each structure of the network; of arrays in memory as many examples a call as fit, a power of two below
    ``EXAMPLES``. Rows that fill up a batch count for nothing.
    """
    totals = _totals(network.run, task.objective)
    size = _fitted(totals, network, source) if isinstance(source, Arrays) else 0
    found: dict[str, PyTree] | None = None
    for batch, real in source.batches(size):
        part = jax.tree.map(_wide, jax.device_get(totals(network.variables, network.states, batch, real)))
        found = part if found is None else task.merged(found, part)
    if found is None:
        raise ValueError(f"{source.name}: gives no batch; pass at least one")
    return found


def validated(task: Task, network: Network, variables: PyTree) -> dict[str, float]:
    """The finite metrics on the validation data of a network in training, its sites in float, with other variables."""
    found = task.result(accumulated(network.replace(variables=variables, rules=(), states={}), task, task.valid))
    return {name: value for name, value in found.items() if math.isfinite(value)}


def losses_alone(network: Network, compressed: PyTree, task: Task, macs: int | None = None) -> dict[str, float] | str:
    """By how much the loss rises where one leaf alone is compressed, on the data by which stages are compared.

    Each network is evaluated by the program of the given one: nothing is compiled.

    Args:
      network: the baseline.
      compressed: its variables as the compressed network would see them, dense, of the same tree and shapes.
      macs: multiply-accumulates for one example; None: whatever it costs.

    Returns:
      ``{path: rise}`` of the leaves that differ; or why it would cost too much.
    """
    before, after = leaves_by_path(network.variables), leaves_by_path(compressed)
    paths = [path for path, leaf in before.items() if not bool((leaf == after[path]).all())]
    cost = (macs or 0) * len(paths) * task.judged.size
    if macs is not None and (cost > MACS or len(paths) > LEAVES):
        return f"of {len(paths)} leaves it takes {cost:.1e} multiply-accumulates; pass sensitivity=True"
    loss = lambda variables: task.result(accumulated(network.replace(variables=variables), task, task.judged))["loss"]
    base = loss(network.variables)
    only = lambda path: map_with_path(lambda p, leaf: after[p] if p == path else leaf, network.variables)
    return {path: loss(only(path)) - base for path in paths}


def _wide(x: Any) -> np.ndarray:
    x = np.asarray(x)
    return x.astype(np.float64) if x.dtype.kind == "f" else x


@functools.lru_cache(maxsize=64)
def _totals(run: Rewritten, objective: Objective) -> Any:
    @jax.jit
    def totals(variables: PyTree, states: Mapping[str, Any], batch: PyTree, real: Any) -> dict[str, PyTree]:
        outputs = run(variables, *objective.inputs_of(batch), states=states)
        return objective.measured(outputs, batch, real)

    return totals


def _fitted(totals: Any, network: Network, source: Arrays) -> int:
    """Examples a call, found once for each program and shapes of its arguments."""

    def need(size: int) -> int:
        batch = like(source.tree, size)
        return call_bytes(totals, network.variables, network.states, batch, like(np.zeros(size, np.float32)))

    leaves, structure = jax.tree.flatten((network.variables, network.states, source.example))
    key = totals, structure, tuple((x.shape, x.dtype) for x in leaves)
    if key not in _sizes:
        _sizes[key] = fitting(need, EXAMPLES)
    return _sizes[key]
