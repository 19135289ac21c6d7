"""Shapes of scales and orders of axes under operations that move a weight's entries."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxopt_nn.numerics import affine, packing


def reshaped_groups(groups: Sequence[int], old: Sequence[int], new: Sequence[int]) -> tuple[int, ...] | None:
    """The shape of a scale of shape ``groups`` once its weight is reshaped from ``old`` to ``new``.

    None where an entry of the scale would no longer stand for a run of consecutive entries along each axis.
    """
    if 0 in old:
        return None
    result = [1] * len(new)
    for left, right in blocks(old, new):
        runs = _runs([groups[i] for i in left], [old[i] for i in left])
        for j in right:
            if runs is None:
                return None
            if runs % new[j] == 0:
                result[j], runs = new[j], runs // new[j]
            elif new[j] % runs == 0:
                result[j], runs = runs, 1
            else:
                return None
        if runs != 1:
            return None
    return tuple(result)


def blocks(old: Sequence[int], new: Sequence[int]) -> Iterator[tuple[range, range]]:
    """The shortest stretches of old and new axes that hold equally many entries."""
    i = j = 0
    while i < len(old) or j < len(new):
        first, second = i, j
        i, j = min(i + 1, len(old)), min(j + 1, len(new))
        while (a := math.prod(old[first:i])) != (b := math.prod(new[second:j])):
            i, j = (i + 1, j) if a < b else (i, j + 1)
        yield range(first, i), range(second, j)


def _runs(groups: Sequence[int], sizes: Sequence[int]) -> int | None:
    """How many equal, consecutive runs the flattened axes fall into: all entries, then groups, then one for all."""
    pairs = [(d, n) for d, n in zip(groups, sizes) if n > 1]
    while pairs and pairs[0][0] == pairs[0][1]:
        pairs.pop(0)
    return math.prod(groups) if all(d == 1 for d, _ in pairs[1:]) else None


def axes_from_start(axes: Sequence[int], ndim: int, what: str) -> list[int]:
    """The axes of a weight of ``ndim``, counted from the start; ``what`` is what messages call them.

    Raises:
      ValueError: one that it has not.
    """
    for axis in axes:
        if not -ndim <= axis < ndim:
            raise ValueError(f"{what}: {axis} is no axis of a weight of {ndim} axes; allowed are {-ndim} to {ndim - 1}")
    return [axis % ndim for axis in axes]


def packing_axis(shape: Sequence[int], bits: int, stack: Sequence[int] = ()) -> int | None:
    """The axis outside ``stack`` along which codes pack into the fewest bytes, the first of equals; None if none is.

    ``shape`` holds no 0.
    """
    free = [a for a in range(len(shape)) if a not in [s % len(shape) for s in stack]]
    cost = lambda a: math.prod(shape) // shape[a] * packing.packed_length(shape[a], bits)
    return min(free, key=cost, default=None)


def trimmed(order: Sequence[int], ndim: int) -> tuple[int, ...] | None:
    """An order of ``ndim`` axes without the leading ones that stay, counted from the end; None if all stay."""
    head = next((p for p, a in enumerate(order) if p != a), None)
    return None if head is None else tuple(a - ndim for a in order[head:])


def without_units(shape: Sequence[int]) -> list[int]:
    return [n for n in shape if n != 1]


def spread_axis(param: Array, axis: int, n: int) -> Array:
    """A scale with one entry for each of the ``n`` entries of an axis."""
    return affine.expand_groups(param, tuple(n if a == axis else d for a, d in enumerate(param.shape)))


def sliced_groups(d: int, n: int, start: int, limit: int, stride: int) -> tuple[int, int, int] | None:
    """The slice of a scale's axis with ``d`` entries, as its weight's with ``n`` is sliced; None if that cuts a group."""
    group = n // d if d else 1
    if d == 1:
        return 0, 1, 1
    if d == n:
        return start, limit, stride
    if start // group == (limit - 1) // group:
        return start // group, start // group + 1, 1
    if stride == 1 and start % group == 0 and limit % group == 0:
        return start // group, limit // group, 1
    return None


def kept_groups(d: int, n: int, keep: Sequence[int]) -> list[int] | None:
    """The entries of a scale's axis that stay as ``keep`` of its weight's do; None where that leaves groups uneven."""
    if d == 1:
        return [0]
    owners = [k // (n // d) for k in keep]
    distinct = sorted(set(owners))
    even = owners == [g for g in distinct for _ in range(len(keep) // len(distinct))]
    return (owners if d == n else distinct) if d == n or even else None


def wide_indices(indices: ArrayLike) -> Array:
    """Indices of at least 32 bits: a bound such as the length of a table need not fit into 8 or 16."""
    indices = jnp.asarray(indices)
    return indices.astype(jnp.int32) if indices.dtype.itemsize < 4 else indices
