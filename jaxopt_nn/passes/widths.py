"""Plans for widths that somebody asks for: so many units of this layer stay, so many of that."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from jaxopt_nn.core.model import Coupling, ModelInfo
from jaxopt_nn.core.passes import Plan
from jaxopt_nn.core.paths import require_match
from jaxopt_nn.passes.choice import Choice, hit, titles_of, with_units

PyTree = Any
Widths = Mapping[str, float | int]


def check_widths(name: str, widths: Any) -> None:
    """Raises ValueError for what is no mapping, or holds no number of units and no share."""
    if not isinstance(widths, Mapping):
        raise ValueError(f"{name}(widths={widths!r}): {{pattern: share or units}} that stay; for all layers alike pass share=")
    for pattern, width in widths.items():
        _units(width, None, pattern)


def wanted(layers: Mapping[str, Coupling], widths: Widths) -> dict[str, int]:
    """``{layer: units that stay}``.

    Raises:
      ValueError: fewer units than one, or more than there are; a pattern that matches no layer or pinned layers only, or a
        layer matched by two.
    """
    titles = titles_of(layers)
    stay: dict[str, int] = {}
    by: dict[str, str] = {}
    for pattern, width in widths.items():
        require_match(pattern, [title for each in titles.values() for title in each], "layer")
        own = hit(titles, pattern)
        free = [name for name in own if layers[name].group.pinned is None]
        if not free:
            reasons = "; ".join(f"{name} {layers[name].group.pinned}" for name in own[:3])
            raise ValueError(f"pattern {pattern!r} matches pinned layers only: {reasons}")
        for name in free:
            if name in by:
                raise ValueError(f"{name}: matched by two patterns, {by[name]!r} and {pattern!r}; leave one of them")
            by[name], stay[name] = pattern, _units(width, layers[name].group.size, name)
    return stay


def _units(width: Any, size: int | None, name: str) -> int:
    """The number of units that stay of ``size``."""
    if isinstance(width, bool) or not isinstance(width, (int, float)):
        raise ValueError(f"{name}: width {width!r}; pass a share (float) in (0, 1] or a number of units (int)")
    if isinstance(width, int):
        if width < 1 or (size is not None and width > size):
            few = "fewer units than one" if width < 1 else "more than there are"
            of, most = ("", "all") if size is None else (f" of {size}", size)
            raise ValueError(f"{name}: {width} units{of}, {few}; allowed are 1 to {most}")
        return width
    if not 0 < width <= 1:
        raise ValueError(f"{name}: share {width}; allowed are numbers above 0, up to 1.0 (a number of units is an int)")
    if size is None:
        return 1
    units = round(width * size)
    if units < 1:
        raise ValueError(
            f"{name}: share {width} of {size} units is fewer units than one; pass at least {1 / size:.3g}, or 1"
        )
    return units


def planned_widths(
    choice: Choice,
    widths: Widths,
    layers: Mapping[str, Coupling],
    leaves: Mapping[str, Any],
    inputs: tuple[PyTree, ...],
    info: ModelInfo,
    still: Collection[str],
) -> Plan:
    """The plan in which so many units of each layer stay, those of the highest score; others are not scored."""
    stay = wanted(layers, widths)
    whole, scores = choice.whole(layers, leaves, inputs, info, still, only=stay)
    missing = [name for name in stay if name not in scores]
    if missing:
        raise ValueError(f"{missing[0]}: {next(x for x in whole.layers if x.name == missing[0]).note}; leave it out of widths")
    order = lambda own: np.argsort(-own, kind="stable")
    return with_units(whole, {name: np.sort(order(own)[: stay[name]]) for name, own in scores.items()})
