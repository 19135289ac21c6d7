"""Neuron pruning as a transform: which units are masked is found on data when its stage begins."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jaxopt_nn.core.model import ModelInfo
from jaxopt_nn.core.paths import leaves_by_path
from jaxopt_nn.core.transform import LeafTraits, PyTree, State, Traits, Transform
from jaxopt_nn.methods.unit_masks import mask_units
from jaxopt_nn.passes.activity import free
from jaxopt_nn.passes.choice import dead, weak
from jaxopt_nn.passes.scores import Score, mean_activation
from jaxopt_nn.passes.scores.base import lacking, measured, touched


def prune_neurons(
    *, threshold: float = 0.0, share: float | None = None, score: Score = mean_activation
) -> Transform:
    """Masks the dead units (``dead_units``), or a ``share`` of the weakest (``weak_units``): fan-in, vectors, fan-out.

    For a recipe: which units these are is measured when its stage begins. By hand, ``init`` gets
    ``calibrate(network, method, batches)``; ``mask_units(dead_units(...).masks)`` is shorter. ``cut_units`` takes them out.

    Args:
      threshold, share, score: as in ``dead_units`` and ``weak_units``.

    Raises:
      ValueError: as these two; ``share`` and a ``threshold`` together; at ``init``, no such statistics.

    Example:
      >>> v = {"up": jnp.array([[1.0, -1.0, 0.5]]), "down": jnp.ones((3, 2))}
      >>> net = jn.Network(lambda v, x: jax.nn.relu(x @ v["up"]) @ v["down"], v)
      >>> method = jn.prune_neurons()
      >>> state = method.init(v, jn.calibrate(net, method, [jnp.array([[2.0], [4.0]])]))
      >>> method.view(v, state)["down"]  # the dead unit's row is zero
      Array([[1., 1.],
             [0., 0.],
             [1., 1.]], dtype=float32)
    """
    name = "prune_neurons"
    if share is not None and threshold:
        raise ValueError(f"{name}(threshold={threshold}, share={share}): pass one of the two")
    choice = dead(name, threshold) if share is None else weak(name, share, score)

    def init(params: PyTree, info: ModelInfo = ModelInfo()) -> State:
        leaves = leaves_by_path(params)
        layers = touched(info, leaves)
        if info.couplings is None:
            raise ValueError(f"{name}: needs the units of the network; pass info=calibrate(network, method, batches)")
        measured(name, choice.score, info, free(layers))
        for layer, coupling in free(layers).items():
            outside = sorted({m.path for m in coupling.group.members} - leaves.keys())
            if outside:
                raise ValueError(
                    f"{name}: the units of {layer} also lie in {', '.join(outside)}, which the pattern leaves out; give it all "
                    "leaves of a layer's units"
                )
        valued = {path: _valued(x) for path, x in leaves.items()}
        masks = choice.plan(layers, valued, (), info).masks
        return mask_units({path: axes for path, axes in masks.items() if path in leaves}).init(params, info)

    def takes(path: str, leaf: Any, info: ModelInfo) -> LeafTraits | str:
        if info.couplings is None:
            return LeafTraits("mask" if len(leaf.shape) >= 2 else None)
        members = {m.path for c in info.couplings if c.group.pinned is None and c.reads for m in c.group.members}
        divisors = {m.path for c in info.couplings for m in c.group.members if m.role == "divisor"}
        if path in divisors:
            return "is not masked: it divides, or a power or logarithm is taken of it"
        return LeafTraits("mask" if len(leaf.shape) >= 2 else None) if path in members else "no unit of it is masked"

    masked = mask_units({})
    traits = Traits(
        takes, leaf_local=False, needs=frozenset({"couplings"}), taps=lacking(choice.score), passes=1, name=name,
        follows=masked.traits.follows,
    )  # fmt: skip
    return masked._replace(init=init, traits=traits)


def _valued(leaf: Any) -> Any:
    """A leaf whose values are not known, abstract or traced, as zeros: which units go is no matter then."""
    return np.zeros(leaf.shape) if isinstance(leaf, (jax.core.Tracer, jax.ShapeDtypeStruct)) else leaf
