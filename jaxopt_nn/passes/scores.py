"""How much a unit is worth: by its weights, and by what it puts out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxopt_nn.core.model import AxisGroup

#: ``(group, {path: array}) -> importance [size]``; the highest stay.
Importance = Callable[[AxisGroup, Mapping[str, Any]], np.ndarray]
#: ``(group, {path: array}, mean |activation| [size]) -> score [size]``; the lowest scores go first.
Score = Callable[[AxisGroup, Mapping[str, Any], np.ndarray], np.ndarray]


def unit_norms(group: AxisGroup, leaves: Mapping[str, Any], role: str) -> np.ndarray:
    """The L2 norm of each unit's weights in the members of one role (``producer``: fan-in, ``consumer``: fan-out).

    Args:
      group: the axis group.
      leaves: ``{path: array}``.
      role: as in ``Member``.

    Returns:
      float64 ``[size]``; zero where the group has no such member.
    """
    total = np.zeros(group.size)
    for member in group.members:
        if member.role == role:
            if isinstance(leaves[member.path], jax.ShapeDtypeStruct):
                raise ValueError(
                    f"{member.path}: is abstract, and the norms of units need its numbers; pass arrays, or an importance that "
                    "needs none"
                )
            squares = np.square(np.abs(np.asarray(leaves[member.path]).astype(np.float64)))
            rows = np.moveaxis(squares, member.axis, 0)
            inside = member.units >= 0
            np.add.at(total, member.units[inside], rows.reshape(len(member.units), -1).sum(1)[inside])
    return np.sqrt(total)


def norm_product(group: AxisGroup, leaves: Mapping[str, Any]) -> np.ndarray:
    """L2 norm of the fan-in times that of the fan-out; zero where either is."""
    return unit_norms(group, leaves, "producer") * unit_norms(group, leaves, "consumer")


def mean_activation(group: AxisGroup, leaves: Mapping[str, Any], activity: np.ndarray) -> np.ndarray:
    """Mean ``|activation|`` times the L2 norm of the fan-out: how much a unit moves what reads it."""
    return activity * unit_norms(group, leaves, "consumer")


def checked(name: str, scores: Any, size: int) -> np.ndarray:
    """The scores of a layer's units, float64.

    Raises:
      ValueError: another shape than ``[size]``, or NaN.
    """
    scores = np.asarray(scores).astype(np.float64)
    if scores.shape != (size,):
        raise ValueError(f"{name}: scores of shape {scores.shape}; pass one for each of {size} units")
    if bad := int(np.isnan(scores).sum()):
        raise ValueError(f"{name}: {bad} of {size} scores are NaN; clean the weights, or mend the score")
    return scores
