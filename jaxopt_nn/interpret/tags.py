"""Tags: which leaf a value is, and which of the leaf's axes lie behind each of its axes.

A layout operation (cast, transpose, reshape, broadcast, slice, split, ...) keeps the tag; anything else makes a value
that is *derived* from the leaf, or an activation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

Axes = tuple[frozenset[int], ...]
NONE: frozenset[Any] = frozenset()


class Tag(NamedTuple):
    """What is known of a value.

    Attributes:
      leaf: the value is this leaf of ``variables``, up to layout.
      axes: for each axis of the value, the axes of the leaf behind it.
      stack: axes of the leaf that a loop or an index has already taken away.
      derived: leaves that the value is computed from, with no activation in the computation.
      dynamic: the value depends on the inputs of ``apply``.
      consts: constants of the trace (by position) that the value is computed from.
    """

    leaf: str | None = None
    axes: Axes = ()
    stack: frozenset[int] = NONE
    derived: frozenset[str] = NONE
    dynamic: bool = False
    consts: frozenset[int] = NONE

    @property
    def sources(self) -> frozenset[str]:
        """The leaves behind a value that is no activation."""
        return self.derived | {self.leaf} if self.leaf is not None else self.derived


CONSTANT = Tag()
ACTIVATION = Tag(dynamic=True)


def of_leaf(path: str, ndim: int) -> Tag:
    return Tag(path, tuple(frozenset({i}) for i in range(ndim)))


def mixed(tags: Sequence[Tag]) -> Tag:
    """The tag of a value computed from others by no layout operation."""
    if any(t.dynamic for t in tags):
        return ACTIVATION
    return Tag(
        derived=frozenset().union(*(t.sources for t in tags)), consts=frozenset().union(*(t.consts for t in tags))
    )


def joined(a: Tag, b: Tag) -> Tag:
    """The tag of a value that may be either (branches, loop iterations)."""
    return a if a == b else mixed((a, b))


def unstacked(tag: Tag) -> Tag:
    """The tag of one entry along the leading axis, as a scan slices it."""
    if tag.leaf is None:
        return tag
    return tag._replace(axes=tag.axes[1:], stack=tag.stack | tag.axes[0])


# -- layout operations -------------------------------------------------------------------------------------------------


def _same(eqn: Any, tag: Tag) -> Tag:
    return tag


def _cast(eqn: Any, tag: Tag) -> Tag | None:
    old, new = eqn.invars[0].aval.dtype, eqn.params["new_dtype"]
    floats = jnp.issubdtype(old, jnp.inexact) and jnp.issubdtype(new, jnp.inexact)
    return tag if floats or old == new else None


def _transpose(eqn: Any, tag: Tag) -> Tag:
    return tag._replace(axes=tuple(tag.axes[i] for i in eqn.params["permutation"]))


def _broadcast_in_dim(eqn: Any, tag: Tag) -> Tag:
    axes = [NONE] * len(eqn.params["shape"])
    for i, d in enumerate(eqn.params["broadcast_dimensions"]):
        axes[d] = tag.axes[i]
    return tag._replace(axes=tuple(axes))


def _squeeze(eqn: Any, tag: Tag) -> Tag:
    gone = eqn.params["dimensions"]
    taken = frozenset().union(*(tag.axes[i] for i in gone))
    kept = tuple(a for i, a in enumerate(tag.axes) if i not in gone)
    return tag._replace(axes=kept, stack=tag.stack | (taken - frozenset().union(*kept)))


def reshaped_axes(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Factors a reshape into independent pieces: (axes of the old shape, axes of the new shape) of equal size.

    Axes of length one go with the piece in front of them; in a zero-sized array everything is one piece.
    """
    if 0 in old:
        return [(list(range(len(old))), list(range(len(new))))]
    pieces: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        left: list[int] = []
        right: list[int] = []
        a = b = 1
        while True:
            if a <= b and i < len(old) and (a < b or not left):
                a, i = a * old[i], i + 1
                left.append(i - 1)
            elif b < a or (j < len(new) and not right):
                if j >= len(new):
                    break
                b, j = b * new[j], j + 1
                right.append(j - 1)
            else:
                break
        pieces.append((left, right))
    return pieces


def _reshape(eqn: Any, tag: Tag) -> Tag:
    old, new = eqn.invars[0].aval.shape, eqn.params["new_sizes"]
    axes = [NONE] * len(new)
    lost: frozenset[int] = NONE
    for left, right in reshaped_axes(old, new):
        behind = frozenset().union(*(tag.axes[i] for i in left))
        real = [j for j in right if new[j] > 1] or right[:1]
        for j in real:
            axes[j] = behind
        lost |= NONE if real else behind
    return tag._replace(axes=tuple(axes), stack=tag.stack | (lost - frozenset().union(*axes, NONE)))


LAYOUT: dict[str, Callable[[Any, Tag], Tag | None]] = {
    "convert_element_type": _cast,
    "copy": _same,
    "copy_p": _same,
    "reduce_precision": _same,
    "sharding_constraint": _same,
    "mesh_cast": _same,
    "reshard": _same,
    "stop_gradient": _same,
    "pvary": _same,
    "pcast": _same,
    "rev": _same,
    "slice": _same,
    "dynamic_slice": _same,
    "transpose": _transpose,
    "broadcast_in_dim": _broadcast_in_dim,
    "squeeze": _squeeze,
    "reshape": _reshape,
}


def one_slice(eqn: Any) -> bool:
    """Whether a gather takes a single slice (``w[i]`` with a traced scalar): then it is layout, no lookup."""
    indices = eqn.invars[1].aval.shape
    return math.prod(indices[:-1]) == 1 if indices else True


def _gathered_slice(eqn: Any, tag: Tag) -> Tag:
    numbers = eqn.params["dimension_numbers"]
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    kept = iter([a for i, a in enumerate(tag.axes) if i not in gone])
    ndim = eqn.outvars[0].aval.ndim
    axes = tuple(next(kept) if i in numbers.offset_dims else NONE for i in range(ndim))
    taken = frozenset().union(NONE, *(tag.axes[i] for i in gone))
    return tag._replace(axes=axes, stack=tag.stack | taken)


def layout(eqn: Any, tags: Sequence[Tag]) -> list[Tag] | None:
    """The output tags of a layout operation on a leaf; None where the equation is none."""
    name = eqn.primitive.name
    if name in ("optimization_barrier", "device_put"):
        return list(tags)
    if not tags or tags[0].leaf is None:
        return None
    if name == "split":
        return [tags[0]] * len(eqn.outvars)
    if name == "gather" and one_slice(eqn):
        return [_gathered_slice(eqn, tags[0])]
    if name in LAYOUT:
        tag = LAYOUT[name](eqn, tags[0])
        return None if tag is None else [tag]
    return None
