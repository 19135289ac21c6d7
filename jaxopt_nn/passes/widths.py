"""Smaller widths: a network is cut to fewer units a layer, the most important ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxopt_nn.core.model import AxisGroup, Coupling, ModelInfo
from jaxopt_nn.core.passes import Layer, Pass, Plan, layer_of
from jaxopt_nn.core.paths import matches, require_match
from jaxopt_nn.interpret.network import Network, like
from jaxopt_nn.passes.cutting import cutting, layers_of, leaves_of
from jaxopt_nn.passes.scores import Importance, checked, norm_product

PyTree = Any


def shrink_widths(
    widths: float | Mapping[str, float | int], importance: Importance = norm_product
) -> Pass:
    """Cuts a network to fewer units a layer.

    Of each layer the units of the highest importance stay, in their order; every leaf of the layer's axis group is cut
    with them (the next layer's rows, biases, a norm's scale and statistics, the features of a flattened convolution).
    All else is kept. The plan needs no data: ``plan(network, ModelInfo(), *inputs)``, where inputs may be abstract.

    Args:
      widths: the share of units that stay in every layer that may be cut, or ``{pattern: share (float) or units (int)}``
        over the paths of the layers' weights and the layers' names; other layers stay. A share of n units is
        ``round(share * n)`` of them.
      importance: any callable of the signature ``Importance``; ties by position.

    Raises:
      ValueError: widths that are no share and no dict. At ``plan``: a share outside (0, 1]; fewer units than one, or more than
        there are; a pattern that matches no layer or pinned layers only, or a layer matched by two; compressed tensors; an
        importance of another shape. At ``execute``: as ``cut_neurons``.

    Example:
      >>> def apply(v, x):
      ...     return jax.nn.relu(x @ v["up"]) @ v["down"]
      >>> net = jn.Network(apply, {"up": jnp.arange(32.0).reshape(4, 8), "down": jnp.ones((8, 2))})
      >>> cut = jn.shrink_widths(0.5)
      >>> small, _ = cut.execute(net, cut.plan(net, jn.ModelInfo(), jax.ShapeDtypeStruct((1, 4), "float32")))
      >>> jax.tree.map(jnp.shape, small.variables)
      {'down': (4, 2), 'up': (4, 4)}
    """
    name = "shrink_widths"
    if not isinstance(widths, Mapping) and (isinstance(widths, bool) or not isinstance(widths, float)):
        raise ValueError(
            f"{name}(widths={widths!r}): a share (float) in (0, 1], or {{pattern: share or units}}"
        )

    def plan(network: Network, info: ModelInfo, *inputs: PyTree) -> Plan:
        leaves = leaves_of(network, info, name)
        layers = layers_of(network, info, *inputs)
        wanted = _wanted(tuple(c.group for c in layers.values()), list(layers), widths)

        def layer(i: int, own: str, coupling: Coupling) -> Layer:
            group = coupling.group
            if group.pinned is not None:
                return layer_of(own, coupling, pinned=group.pinned)
            if wanted.get(i, group.size) == group.size:
                return layer_of(own, coupling, note="all were asked for" if i in wanted else "no pattern")
            scores = checked(own, importance(group, leaves), group.size)
            return layer_of(own, coupling, np.argsort(-scores, kind="stable")[: wanted[i]])

        shapes = {path: tuple(x.shape) for path, x in leaves.items()}
        made = tuple(layer(i, own, coupling) for i, (own, coupling) in enumerate(layers.items()))
        return Plan(name, shapes, like(inputs), made)

    return cutting(name, plan)


def _wanted(groups: tuple[AxisGroup, ...], names: list[str], widths: Any) -> dict[int, int]:
    """``{index of the group: units that stay}``."""
    if not isinstance(widths, Mapping):
        free = [i for i, g in enumerate(groups) if g.pinned is None]
        return {i: _units(widths, groups[i].size, names[i]) for i in free}
    titles = [dict.fromkeys((names[i], *(m.path for m in g.members if m.role == "producer"))) for i, g in enumerate(groups)]
    wanted: dict[int, int] = {}
    by: dict[int, str] = {}
    for pattern, width in widths.items():
        require_match(pattern, [path for paths in titles for path in paths], "layer")
        hit = [i for i, paths in enumerate(titles) if any(matches(pattern, path) for path in paths)]
        free = [i for i in hit if groups[i].pinned is None]
        if not free:
            reasons = "; ".join(f"{names[i]} {groups[i].pinned}" for i in hit[:3])
            raise ValueError(f"pattern {pattern!r} matches pinned layers only: {reasons}")
        for i in free:
            if i in by:
                raise ValueError(f"{names[i]}: matched by two patterns, {by[i]!r} and {pattern!r}; leave one of them")
            by[i], wanted[i] = pattern, _units(width, groups[i].size, names[i])
    return wanted


def _units(width: Any, size: int, name: str) -> int:
    """The number of units that stay of ``size``."""
    if isinstance(width, bool) or not isinstance(width, (int, float)):
        raise ValueError(f"{name}: width {width!r}; pass a share (float) in (0, 1] or a number of units (int)")
    if isinstance(width, int):
        if not 1 <= width <= size:
            few = "fewer units than one" if width < 1 else "more than there are"
            raise ValueError(f"{name}: {width} units of {size}, {few}; allowed are 1 to {size}")
        return width
    if not 0 < width <= 1:
        raise ValueError(f"{name}: share {width}; allowed are numbers above 0, up to 1.0 (a number of units is an int)")
    units = round(width * size)
    if units < 1:
        raise ValueError(
            f"{name}: share {width} of {size} units is fewer units than one; pass at least {1 / size:.3g}, or 1"
        )
    return units
