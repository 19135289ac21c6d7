"""What a plan leaves of a network, as numbers that a budget is of."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_nn.core.passes import Plan
from jaxopt_nn.core.paths import leaves_by_path
from jaxopt_nn.core.remap import Remap
from jaxopt_nn.cost.latency import latencies
from jaxopt_nn.interpret.flow.flow import Flow
from jaxopt_nn.interpret.flow.macs import Macs
from jaxopt_nn.interpret.flow.shrunk import Shrunk, remains
from jaxopt_nn.interpret.network import Network
from jaxopt_nn.interpret.program import trace_model

PyTree = Any
Cost = Callable[[Plan], float]


def parameters(network: Network, inputs: tuple[PyTree, ...], batch: int | None) -> Cost:
    """Entries of all leaves."""
    return _summed(network, lambda path, shape: math.prod(shape))


def stored_bytes(network: Network, inputs: tuple[PyTree, ...], batch: int | None) -> Cost:
    """Bytes of the leaves in their own dtypes."""
    sizes = {path: np.dtype(x.dtype).itemsize for path, x in leaves_by_path(network.variables).items()}
    return _summed(network, lambda path, shape: math.prod(shape) * sizes[path])


def _summed(network: Network, count: Callable[[str, tuple[int, ...]], int]) -> Cost:
    shapes = {path: tuple(x.shape) for path, x in leaves_by_path(network.variables).items()}
    return lambda plan: sum(count(path, plan.cuts[path].small if path in plan.cuts else s) for path, s in shapes.items())


def macs(network: Network, inputs: tuple[PyTree, ...], batch: int | None) -> Cost:
    """Multiply-accumulates of a call on the inputs, as ``inspect`` counts them of the small network."""
    flow = Flow(trace_model(network.apply, network.variables, inputs), tuple(leaves_by_path(network.variables)))
    count = Macs(flow)
    return lambda plan: count(remains(flow, plan))


def latency(network: Network, inputs: tuple[PyTree, ...], batch: int | None) -> Cost:
    """The median time of a call, measured in turns with the whole network, as a share of that network's.

    Raises:
      ValueError: a call would not fit into memory.
    """
    example = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype) if isinstance(x, jax.ShapeDtypeStruct) else x, inputs)
    rows = batch or max((x.shape[0] for x in jax.tree.leaves(example) if jnp.ndim(x)), default=1)
    whole = network.replace(rules=(), states={})

    def measured(plan: Plan) -> float:
        if not plan.cuts:
            return 1.0
        small = Network(Shrunk(network.apply, plan), Remap(plan).params(network.variables))
        (_, times), left_out = latencies([(n.run, (n.variables, {})) for n in (whole, small)], example, [rows])
        if left_out:
            raise ValueError(f"latency: batch={rows} can't be measured: {left_out[str(rows)]}; pass a smaller batch")
        ratio = times[str(rows)]["ratio"]
        assert ratio is not None
        return ratio

    return measured


#: Kinds of budgets that are a cost: how to count it.
COSTS: dict[str, Callable[[Network, tuple[PyTree, ...], int | None], Cost]] = {
    "params": parameters, "macs": macs, "nbytes": stored_bytes, "latency": latency,
}  # fmt: skip
