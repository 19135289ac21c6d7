"""Plans for any model: a share of the units of every group that may be cut, drawn by a seed."""

from typing import Any

import numpy as np

import jaxopt_nn as jn
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
