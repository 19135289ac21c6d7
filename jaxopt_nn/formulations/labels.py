"""A dot's axes by name: the one place that turns ``lax.dot_general``'s dimension numbers into an einsum.

Equal names are the same index: ``b0`` a batch axis, ``k0`` a contracted one, ``w0`` and ``x0`` free axes of the weight and of
the other operand. A contracted axis along which a scale varies is two: its groups ``g0``, and ``k0`` within a group.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jaxopt_nn.numerics import affine
from jaxopt_nn.tensors.coded import Coded

Names = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Call:
    """What a site asks for; static and hashable, so that equal sites share a compiled program.

    Attributes:
      dims: as ``lax.dot_general`` takes them. side: which operand is the weight, 0 or 1.
      precision: as there. dtype: name of the result's. activations: width of the activations (32: as they come).
    """

    dims: Any
    side: int
    precision: Any
    dtype: str
    activations: int = 32


class Program(NamedTuple):
    """What answers a call: a name for reports, and ``run(weight, other, call) -> array``."""

    name: str
    run: Callable[[Coded, Any, Call], Array]


#: Stands for a number of rows that is not known, in choices and in reports.
MANY = 2**31 - 1

#: From a tensor of codes to the form that a backend runs.
Form = Callable[[Coded], Coded]


@dataclasses.dataclass(frozen=True)
class Labels:
    """Names of the axes of the weight (in its own order), the other operand and the output; ``groups`` has their counts."""

    weight: Names
    other: Names
    out: Names
    groups: Mapping[str, int]

    def size(self, weight: Coded, letter: str) -> int:
        """How many entries the weight has along its axes of one kind: ``b``, ``k`` or ``w``."""
        return math.prod(n for n, name in zip(weight.shape, self.weight) if name[0] == letter)

    def in_turn(self, weight: Coded) -> bool:
        """Whether the codes lie as [groups, ...] of the only contracted axis with groups."""
        axis = weight.split_axis
        if axis is None or axis != weight.physical[0]:
            return False
        return self.groups == {_group(self.weight[axis]): weight.codes.shape[0]} and self.weight[axis][0] == "k"

    def codes(self, weight: Coded, codes: Array) -> tuple[Array, Names]:
        """An array that lies as the weight's codes do, its grouped axes split, and its names."""
        names = [self.weight[a] for a in weight.physical]
        if weight.split_axis is not None:
            name = self.weight[weight.split_axis]
            first = names.index(name)
            if codes.shape[first] != self.groups.get(_group(name)):
                merged = dataclasses.replace(weight, codes=codes).expand()
                return self.codes(merged, merged.codes)
            names[first] = _group(name)
            return codes, tuple(names)
        return self._split(codes, names)

    def split(self, x: Array) -> tuple[Array, Names]:
        """The other operand with its grouped axes split, and its names."""
        return self._split(x, self.other)

    def _split(self, x: Array, names: Sequence[str]) -> tuple[Array, Names]:
        shape: list[int] = []
        found: list[str] = []
        for n, name in zip(x.shape, names):
            count = self.groups.get(_group(name), 1) if name[0] == "k" else 1
            shape += [n] if count == 1 else [count, n // count]
            found += [name] if count == 1 else [_group(name), name]
        return x.reshape(shape), tuple(found)

    def per_output(self, param: Array, weight: Coded) -> tuple[Array, Names]:
        """A scale or zero point without what is contracted: an entry for each group and output, or 1 for all of an axis."""
        sizes = [
            self.groups.get(_group(name), 1) if name[0] == "k" else (n if d > 1 else 1)
            for name, n, d in zip(self.weight, weight.shape, param.shape)
        ]
        wide = affine.expand_groups(param, sizes)
        names = [_group(name) if name[0] == "k" else name for name in self.weight]
        kept = [i for i, name in enumerate(names) if name[0] != "g" or name in self.groups]
        return wide.reshape([wide.shape[i] for i in kept]), tuple(names[i] for i in kept)


def _group(name: str) -> str:
    return "g" + name[1:]


def of(call: Call, weight: Coded, other: Any) -> Labels:
    """The names of a dot whose weight has scales (and zero points) in groups."""
    (contracted, batch), ndims = call.dims, [0, 0]
    ndims[call.side], ndims[1 - call.side] = weight.ndim, other.ndim
    names = []
    for side in (0, 1):
        own = {a: f"b{i}" for i, a in enumerate(batch[side])} | {a: f"k{i}" for i, a in enumerate(contracted[side])}
        letter = "w" if side == call.side else "x"
        names.append(tuple(own.get(a, f"{letter}{a}") for a in range(ndims[side])))
    free = [name for side in (0, 1) for name in names[side] if name[0] not in "bk"]
    out = tuple(f"b{i}" for i in range(len(batch[0]))) + tuple(free)
    groups = {}
    for a, name in enumerate(names[call.side]):
        counts = [p.shape[a] for p in (weight.scale, weight.zero) if p is not None]
        if name[0] == "k" and max(counts, default=1) > 1:
            groups[_group(name)] = math.lcm(*counts)
    return Labels(names[call.side], names[1 - call.side], out, groups)


def contract(
    left: tuple[Array, Names], right: tuple[Array, Names], out: Sequence[str], dtype: Any, precision: Any = None
) -> Array:
    """The einsum of two named arrays: names in ``out`` stay, the others are summed over; accumulated in ``dtype``."""
    (x, xs), (y, ys) = left, right
    batch = [name for name in xs if name in ys and name in out]
    summed = [name for name in xs if name in ys and name not in out]
    place = lambda names, wanted: [names.index(name) for name in wanted]
    dims = ((place(xs, summed), place(ys, summed)), (place(xs, batch), place(ys, batch)))
    result = lax.dot_general(x, y, dims, precision=precision, preferred_element_type=dtype)
    made = [*batch, *(n for n in xs if n not in batch + summed), *(n for n in ys if n not in batch + summed)]
    return result.transpose(place(made, out))


def along(param: tuple[Array, Names], out: Sequence[str]) -> Array:
    """A named array laid along the axes ``out``, 1 where it has none; what is not in ``out`` has length 1 and goes."""
    x, names = param
    kept = [name for name in out if name in names]
    gone = [i for i, name in enumerate(names) if name not in out]
    x = x.transpose([*(names.index(name) for name in kept), *gone])
    lengths = dict(zip(kept, x.shape))
    return jnp.reshape(x, [lengths.get(name, 1) for name in out])


def rows(names: Labels, other: Any) -> int:
    """How many rows of activations one weight matrix meets, as ``counted``."""
    return counted(math.prod(n for n, name in zip(other.shape, names.other) if name[0] == "x"))


def counted(n: Any) -> int:
    """A length as a number to choose by: one that a trace leaves open (a symbolic one of ``jax.export``) counts as ``MANY``.

    What is chosen by it must be right for any length, and is the best for many.
    """
    return n if isinstance(n, int) else MANY
