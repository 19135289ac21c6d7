"""What operations that only move entries do, as steps (``core.matrix``): the one place that reads their parameters.

Axes, leaves behind a value and compressed tensors each follow the same steps in their own way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxopt_nn.core.matrix import Broadcast, Reshape, Reverse, Slice, Squeeze, Step, Transpose
from jaxopt_nn.interpret import jaxprs


class Move(NamedTuple):
    """A result: this operand after these steps; with none every entry stays where it is."""

    operand: int
    steps: tuple[Step, ...]


class Join(NamedTuple):
    """A result that holds all operands one behind the other along ``axis``, each after its ``steps``."""

    axis: int
    steps: tuple[tuple[Step, ...], ...]


def _first(*steps: Step) -> list[Move]:
    return [Move(0, steps)]


def _shape(var: Any) -> tuple[Any, ...]:
    return tuple(var.aval.shape)


def stay(eqn: Any) -> list[Move]:
    return _first()


def through(eqn: Any) -> list[Move]:
    return [Move(i, ()) for i in range(len(eqn.invars))]


def cast(eqn: Any) -> list[Move] | None:
    """To whole numbers or back it works entry by entry: then the values are others."""
    old, new = eqn.invars[0].aval.dtype, eqn.params["new_dtype"]
    floats = jnp.issubdtype(old, jnp.inexact) and jnp.issubdtype(new, jnp.inexact)
    return _first() if floats or old == new else None


def transpose(eqn: Any) -> list[Move]:
    return _first(Transpose(tuple(eqn.params["permutation"])))


def squeeze(eqn: Any) -> list[Move]:
    return _first(Squeeze(tuple(eqn.params["dimensions"])))


def broadcast(eqn: Any) -> list[Move]:
    return _first(Broadcast(tuple(eqn.params["shape"]), tuple(eqn.params["broadcast_dimensions"])))


def tile(eqn: Any) -> list[Move]:
    pairs = zip(eqn.params["reps"], _shape(eqn.invars[0]), strict=True)
    spread = tuple(n for pair in pairs for n in pair)
    return _first(Broadcast(spread, tuple(range(1, len(spread), 2))), Reshape(_shape(eqn.outvars[0])))


def reshape(eqn: Any) -> list[Move]:
    order, whole = jaxprs.reshape_order(eqn), Reshape(tuple(eqn.params["new_sizes"]))
    if order == tuple(range(len(order))):
        return _first(whole)
    return _first(Transpose(order), whole)  # batching a convolution moves its axes so


def slice_(eqn: Any) -> list[Move]:
    start, limit = tuple(eqn.params["start_indices"]), tuple(eqn.params["limit_indices"])
    return _first(Slice(start, limit, tuple(eqn.params["strides"] or [1] * len(start))))


def rev(eqn: Any) -> list[Move]:
    return _first(Reverse(tuple(eqn.params["dimensions"])))


def split(eqn: Any) -> list[Move]:
    return [Move(0, (part,)) for part in _parts(_shape(eqn.invars[0]), eqn.params["axis"], eqn.params["sizes"])]


def unstack(eqn: Any) -> list[Move]:
    shape, axis = _shape(eqn.invars[0]), eqn.params["axis"]
    return [Move(0, (part, Squeeze((axis,)))) for part in _parts(shape, axis, (1,) * shape[axis])]


def _parts(shape: Sequence[int], axis: int, sizes: Sequence[int]) -> list[Slice]:
    """The parts of an array along one axis, one behind the other."""
    parts, at = [], 0
    for size in sizes:
        start, limit = [0] * len(shape), list(shape)
        start[axis], limit[axis] = at, at + size
        parts.append(Slice(tuple(start), tuple(limit), (1,) * len(shape)))
        at += size
    return parts


def concatenate(eqn: Any) -> Join:
    return Join(eqn.params["dimension"], ((),) * len(eqn.invars))


def stack(eqn: Any) -> Join:
    axis, shape = eqn.params["axis"], _shape(eqn.invars[0])
    one = Broadcast((*shape[:axis], 1, *shape[axis:]), tuple(i for i in range(len(shape) + 1) if i != axis))
    return Join(axis, ((one,),) * len(eqn.invars))


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
