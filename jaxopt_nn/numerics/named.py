"""Products of arrays whose axes have names: equal names are the same index, as the letters of an einsum."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable, Mapping
from typing import Any

Names = tuple[Hashable, ...]
#: An array, or what a product takes in an array's place, and the names of its axes.
Named = tuple[Any, Names]


def contract(left: Named, right: Named, stay: Collection[Hashable], product: Callable[..., Any]) -> Named:
    """The product of two named arrays, summed over the names that both have and that don't ``stay``.

    Args:
      product: ``(left, right, dimension numbers of lax.dot_general) -> array``.
    """
    (x, xs), (y, ys) = left, right
    batch = [name for name in xs if name in ys and name in stay]
    summed = [name for name in xs if name in ys and name not in stay]
    place = lambda names, wanted: tuple(names.index(name) for name in wanted)
    result = product(x, y, ((place(xs, summed), place(ys, summed)), (place(xs, batch), place(ys, batch))))
    alone = lambda names: [name for name in names if name not in batch and name not in summed]
    return result, (*batch, *alone(xs), *alone(ys))


def in_turn(
    first: Named, others: list[Named], out: Collection[Hashable], product: Callable[[Any, Any, Any, bool], Any]
) -> Named:
    """``first`` times one array after the other; names that are neither in ``out`` nor in a later array are summed over.

    Args:
      product: ``(left, right, dimension numbers, is the last) -> array``.
    """
    total = first
    for k, part in enumerate(others):
        later = {*out, *(name for _, names in others[k + 1 :] for name in names)}
        last = k + 1 == len(others)
        total = contract(total, part, later, lambda x, y, dims, last=last: product(x, y, dims, last))
    return total


def macs(first: Names, others: list[Names], out: Collection[Hashable], sizes: Mapping[Hashable, int]) -> int:
    """The multiply-accumulates of ``in_turn``."""
    total, names = 0, first
    for k, own in enumerate(others):
        both = dict.fromkeys((*names, *own))
        total += math.prod(sizes[name] for name in both)
        later = {*out, *(name for after in others[k + 1 :] for name in after)}
        names = tuple(name for name in both if name in later or not (name in names and name in own))
    return total
