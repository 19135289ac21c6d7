"""What an axis holds: which unit each entry belongs to, and which entries stay where units are cut."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxopt_nn.interpret.flow import dims
from jaxopt_nn.interpret.flow.dims import Axis, Dim


def units(axis: Axis, atom: Dim) -> np.ndarray:
    """For each entry of the axis the entry of the atom that it belongs to, int, -1 for none.

    Where the atom stands twice in a product the outer one counts.
    """
    if axis is None:
        return np.full(1, -1)
    dim = dims.root(axis)
    if dim.kind == "atom":
        return np.arange(dim.size) if dim is atom else np.full(dim.size, -1)
    own = [units(part, atom) for part in dim.parts]
    if dim.kind == "reverse":
        return own[0][::-1]
    if dim.kind == "map":
        return own[0][dim.index]
    if dim.kind == "sum":
        return np.concatenate(own)
    out = own[0]
    for inner in own[1:]:
        out = np.where(out[:, None] >= 0, out[:, None], inner[None]).reshape(-1)
    return out


def entries(axis: Axis, kept: Mapping[Dim, np.ndarray]) -> np.ndarray | None:
    """The entries of the axis that stay, int, where of some atoms only the ``kept`` entries do; None: all."""
    if axis is None or not any(a in kept for a in dims.atoms(axis)):
        return None
    dim = dims.root(axis)
    if dim.kind == "atom":
        return kept[dim]
    if dim.kind == "reverse":
        return dim.size - 1 - kept[dims.root(dim.parts[0])][::-1]
    if dim.kind == "map":
        stay = entries(dim.parts[0], kept)
        return None if stay is None else np.flatnonzero(np.isin(dim.index, stay))
    own = [np.arange(p.size) if (e := entries(p, kept)) is None else e for p in dim.parts]
    if dim.kind == "sum":
        starts = np.cumsum([0, *(p.size for p in dim.parts)])
        return np.concatenate([e + at for e, at in zip(own, starts, strict=False)])
    out = own[0]
    for part, inner in zip(dim.parts[1:], own[1:], strict=True):
        out = (out[:, None] * part.size + inner[None]).reshape(-1)
    return out


def size(axis: Axis, kept: Mapping[Dim, np.ndarray]) -> Any:
    """How many entries of the axis stay."""
    if axis is None:
        return 1
    dim = dims.root(axis)
    if dim.kind == "atom":
        return len(kept[dim]) if dim in kept else dim.size
    if dim.kind == "map":
        return dim.size if (stay := entries(dim, kept)) is None else len(stay)
    own = [size(part, kept) for part in dim.parts]  # of a reverse one
    return sum(own) if dim.kind == "sum" else math.prod(own)
