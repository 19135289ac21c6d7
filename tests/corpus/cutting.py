"""Plans for any model: a share of the units of every group that may be cut, drawn by a seed."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

import jaxopt_nn as jn
from jaxopt_nn.core.paths import leaves_by_path
from jaxopt_nn.interpret.flow.flow import Flow
from jaxopt_nn.interpret.flow.shrink import shrunk
from jaxopt_nn.interpret.flow.shrunk import kept_of
from jaxopt_nn.interpret.program import trace_model
from tests.corpus import oracle
from tests.corpus.base import Model


def planned(model: Model, share: float, seed: int = 0) -> tuple[jn.Plan, oracle.Execute]:
    """A plan that cuts ``share`` of the units of every group, at least one and not all of them; and what carries it out."""
    network = jn.Network(model.apply, model.variables)
    cut, rng = jn.cut_units(jn.scores.random(0), share=0.0), np.random.default_rng(seed)
    plan = cut.plan(network, jn.ModelInfo(), *model.inputs)
    stay = lambda n: rng.permutation(n)[: max(1, n - max(1, round(share * n)))]
    plan = plan.replace({layer.name: stay(layer.size) for layer in plan.layers if layer.pinned is None})

    def execute(plan: Any) -> tuple[Any, Any]:
        small, _ = cut.execute(network, plan)
        return small.apply, small.variables

    return plan, execute


def shortened(model: Model, share: float, seed: int = 0) -> tuple[jn.Plan, oracle.Execute]:
    """A plan that takes ``share`` of the layers of every stack out, drawn by a seed; and what carries it out."""
    network = jn.Network(model.apply, model.variables)
    cut = jn.cut_layers(jn.scores.random(seed), share=share, allocation=jn.per_layer)

    def execute(plan: Any) -> tuple[Any, Any]:
        small, _ = cut.execute(network, plan)
        return small.apply, small.variables

    return cut.plan(network, jn.ModelInfo(), *model.inputs), execute


def one(plan: jn.Plan, name: str) -> jn.Plan:
    """The plan with the cut of one layer alone."""
    return plan.replace({layer.name: None for layer in plan.layers if layer.cut and layer.name != name})


def alone(plan: jn.Plan) -> dict[str, jn.Plan]:
    """For each layer that the plan cuts the plan that cuts it and no other."""
    return {layer.name: one(plan, layer.name) for layer in plan.layers if layer.cut}


def differences(model: Model, plans: Sequence[jn.Plan]) -> list[float]:
    """How far the outputs of the network that each plan makes are from the zeroed network's, over their largest magnitude.

    The model is traced and analysed once for all, and all networks that are left are one program.
    """
    leaves, inputs = tuple(leaves_by_path(model.variables)), jax.tree.leaves(model.inputs)
    flow = Flow(trace_model(model.apply, model.variables, model.inputs), leaves)
    kept = [kept_of(flow, plan) for plan in plans]
    small = [jax.tree.leaves(oracle.restricted(model.variables, plan)) for plan in plans]
    ours = jax.jit(lambda small: [shrunk(flow, own, [*x, *inputs]) for own, x in zip(kept, small)])(small)
    whole = jax.jit(model.apply)
    theirs = [jax.tree.leaves(whole(oracle.zeroed(model.variables, plan), *model.inputs)) for plan in plans]
    return [max((_off(a, b) for a, b in zip(x, y, strict=True)), default=0.0) for x, y in zip(ours, theirs, strict=True)]


def _off(ours: Any, theirs: Any) -> float:
    a, b = (np.asarray(x, np.complex128 if np.iscomplexobj(x) else np.float64) for x in (ours, theirs))
    assert a.shape == b.shape, f"{a.shape} in place of {b.shape}"
    return float(np.abs(a - b).max(initial=0) / max(np.abs(b).max(initial=0), 1e-30))
