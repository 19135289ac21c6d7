"""Structure transfer: a student of smaller widths, started from slices of its teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxopt_nn.core.model import AxisGroup
from jaxopt_nn.core.paths import leaves_by_path, map_with_path, matches, require_match
from jaxopt_nn.core.report import Recorder, Report
from jaxopt_nn.interpret.groups import axis_groups, group_names
from jaxopt_nn.methods.unit_masks import unit_norms
from jaxopt_nn.tensors.base import is_compressed

PyTree = Any
#: ``(group, {path: array}) -> importance [size]``; the highest stay.
Importance = Callable[[AxisGroup, Mapping[str, Any]], np.ndarray]


def norm_product(group: AxisGroup, leaves: Mapping[str, Any]) -> np.ndarray:
    """L2 norm of the fan-in times that of the fan-out; zero where either is."""
    return unit_norms(group, leaves, "producer") * unit_norms(group, leaves, "consumer")


def shrink_widths(
    apply: Callable[..., PyTree],
    variables: PyTree,
    inputs: Any,
    widths: float | Mapping[str, float | int],
    importance: Importance = norm_product,
) -> tuple[PyTree, Report]:
    """The teacher's ``variables``, cut to fewer units a layer: where the student of these widths starts from.

    Of each layer the units of the highest importance stay, in their order; every leaf of the layer's axis group is cut
    with them (the next layer's rows, biases, a norm's scale and statistics, the features of a flattened convolution).
    All else is copied. The student's module, built with the widths that the report gives, takes the tree.

    Args:
      apply: the teacher, ``(variables, *inputs)``; traced, not run.
      variables: its pytree of arrays.
      inputs: an array or ``jax.ShapeDtypeStruct``, or a tuple of them.
      widths: the share of units that stay in every layer that may be cut, or ``{pattern: share (float) or units (int)}``
        over the paths of the layers' weights; other layers stay. A share of n units is ``round(share * n)`` of them.
      importance: any callable of the signature ``Importance``; ties by position.

    Returns:
      ``(small_variables, report)``: a ``note`` for each layer that was cut, ``skipped`` with the reason for the others.

    Raises:
      ValueError: a share outside (0, 1]; fewer units than one, or more than there are; a pattern that matches no layer or
        pinned layers only, or a layer matched by two; compressed tensors; an importance of another shape.
    """
    leaves = leaves_by_path(variables)
    if packed := [path for path, x in leaves.items() if is_compressed(x)]:
        raise ValueError(
            f"{packed[0]}: is a compressed tensor; shrink first, compress then (or pass densify(variables))"
        )
    groups = axis_groups(apply, variables, *(inputs if isinstance(inputs, tuple) else (inputs,)))
    names = group_names(groups)
    wanted = _wanted(groups, names, widths)
    recorder = Recorder()
    keep: dict[str, dict[int, np.ndarray]] = {}
    for i, (name, group) in enumerate(zip(names, groups, strict=True)):
        if group.pinned is not None:
            recorder.add("skipped", name, f"keeps its {group.size} units: {group.pinned}")
        elif wanted.get(i, group.size) == group.size:
            recorder.add(
                "skipped",
                name,
                f"keeps its {group.size} units: {'all were asked for' if i in wanted else 'no pattern'}",
            )
        else:
            stay = _most_important(name, group, importance(group, leaves), wanted[i])
            for member in group.members:
                keep.setdefault(member.path, {})[member.axis] = stay[member.units]
            cut = ", ".join(f"{m.path} axis {m.axis}" for m in group.members)
            recorder.add("note", name, f"{wanted[i]} of {group.size} units stay; cut: {cut}")
    return map_with_path(lambda path, leaf: _cut(leaf, keep.get(path, {})), variables), recorder.report()


def _wanted(groups: tuple[AxisGroup, ...], names: list[str], widths: Any) -> dict[int, int]:
    """``{index of the group: units that stay}``."""
    if not isinstance(widths, Mapping):
        if isinstance(widths, bool) or not isinstance(widths, float):
            raise ValueError(
                f"shrink_widths(widths={widths!r}): a share (float) in (0, 1], or {{pattern: share or units}}"
            )
        free = [i for i, g in enumerate(groups) if g.pinned is None]
        return {i: _units(widths, groups[i].size, names[i]) for i in free}
    producers = [[m.path for m in g.members if m.role == "producer"] for g in groups]
    wanted: dict[int, int] = {}
    by: dict[int, str] = {}
    for pattern, width in widths.items():
        require_match(pattern, [path for paths in producers for path in paths], "layer")
        hit = [i for i, paths in enumerate(producers) if any(matches(pattern, path) for path in paths)]
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


def _most_important(name: str, group: AxisGroup, importance: Any, units: int) -> np.ndarray:
    """Bool ``[size]``: the ``units`` units of the highest importance."""
    scores = np.asarray(importance)
    if scores.shape != (group.size,):
        raise ValueError(f"{name}: importance has shape {scores.shape}; one number for each of {group.size} units")
    stay = np.zeros(group.size, bool)
    stay[np.argsort(-scores, kind="stable")[:units]] = True
    return stay


def _cut(leaf: Any, axes: Mapping[int, np.ndarray]) -> Any:
    for axis, stay in axes.items():
        leaf = jnp.take(leaf, np.flatnonzero(stay), axis=axis)
    return leaf
