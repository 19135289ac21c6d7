"""What the flow table says of one primitive, and what its entries share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from jaxopt_nn.interpret.flow import dims
from jaxopt_nn.interpret.flow.dims import Axes, Axis, Dim
from jaxopt_nn.interpret.flow.moves import Join, Move


class Call(NamedTuple):
    """An equation, the axes of its operands and of its results, and of operands that are one literal number that number.

    None stands for the axes of what enters a loop and stays whole there.
    """

    eqn: Any
    ins: tuple[Any, ...]
    outs: tuple[Axes, ...] = ()
    numbers: tuple[Any, ...] = ()

    @property
    def name(self) -> str:
        return str(self.eqn.primitive.name)


class Zero(NamedTuple):
    """Where a value is zero once units are: everywhere, or in all entries of a cut unit of these atoms.

    ``same``: atoms along which it is not zero, but the same in all cut units (``rest``).
    """

    everywhere: bool = False
    atoms: frozenset[Dim] = frozenset()
    same: frozenset[Dim] = frozenset()

    def at(self, atom: Dim) -> bool:
        return self.everywhere or atom in self.atoms


NOWHERE, EVERYWHERE = Zero(), Zero(True)
Kept = Mapping[Dim, np.ndarray]


class Notes(Protocol):
    """Takes what keeps atoms from being cut."""

    def pin(self, axis: Axis, reason: str) -> None:
        """None of the axis' atoms may be cut."""

    def completes(self, i: int) -> None:
        """The equation reduces over axis ``i`` of its operand, and the rest is to be added."""

    def divides(self, operand: int, atom: Dim) -> None:
        """The operand is zero along the atom, where the equation is not finite at zero."""


class Entry(NamedTuple):
    """What the table says of one primitive.

    Attributes:
      axes: the axes of the results; ties those of the operands.
      zeros: along which atoms the results are zero where the operands are; notes what must be zero there and is not.
      params: the equation's parameters on operands of which only some entries are kept; None: as they are.
      moves: of an operation that only moves entries, each result as an operand after some steps; gives None where it does not.
      joins: of one that puts its operands one behind the other, along which axis, and after which steps.
    """

    axes: Callable[[Call], Sequence[Axes]]
    zeros: Callable[[Call, Sequence[Zero], Notes], Sequence[Zero]]
    params: Callable[[Call, Kept], dict[str, Any]] | None = None
    moves: Callable[[Any], Sequence[Move] | None] | None = None
    joins: Callable[[Any], Join] | None = None


def shape_of(var: Any) -> tuple[Any, ...]:
    return tuple(var.aval.shape)


def sizes_of(axes: Axes, kept: Kept) -> tuple[Any, ...]:
    return tuple(dims.size(axis, kept) for axis in axes)


def joined(axes: Sequence[Axis], name: str) -> Axis:
    """The axis of values that are combined entry by entry."""
    own = [a for a in axes if a is not None]
    for other in own[1:]:
        dims.tie(own[0], other, f"`{name}` combines it with an axis of another structure")
    return own[0] if own else None


def all_but(call: Call, changed: Sequence[int], reason: str) -> list[Axes]:
    """The first operand's axes, but for some that are pinned and new."""
    outs = []
    for var in call.eqn.outvars:
        new = dims.fresh(shape_of(var), reason)
        outs.append(tuple(new[i] if i in changed else axis for i, axis in enumerate(call.ins[0])))
    for i in changed:
        dims.pin(call.ins[0][i], reason, shard=True)
    return outs


# -- zeros -----------------------------------------------------------------------------------------------------------------


def along(axes: Axes, sources: Sequence[Sequence[Zero]]) -> Zero:
    """Zero along the atoms of which each axis has a source that is."""
    ok: dict[Dim, bool] = {}
    for axis, own in zip(axes, sources, strict=True):
        for a in dims.atoms(axis):
            ok[a] = ok.get(a, True) and any(z.at(a) for z in own)
    return Zero(atoms=frozenset(a for a, yes in ok.items() if yes))


def _aligned(call: Call, zeros: Sequence[Zero], i: int) -> list[Zero]:
    """The operands' zeros along axis ``i`` of an elementwise result: of those that have the axis."""
    ndim = len(call.outs[0])
    return [
        z if z.everywhere else Zero(atoms=z.atoms.intersection(dims.atoms(own[i]))) if len(own) == ndim else NOWHERE
        for z, own in zip(zeros, call.ins, strict=True)
    ]


def one(call: Call, zeros: Sequence[Zero], notes: Notes) -> list[Zero]:
    """Zero where one operand is, as of a product."""
    if any(z.everywhere for z in zeros):
        return [EVERYWHERE] * len(call.outs)
    return [along(call.outs[0], [_aligned(call, zeros, i) for i in range(len(call.outs[0]))])] * len(call.outs)


def each(call: Call, zeros: Sequence[Zero], notes: Notes, first: int = 0) -> list[Zero]:
    """Zero where all operands are, from the ``first`` on."""
    call, zeros = call._replace(ins=call.ins[first:]), zeros[first:]
    if all(z.everywhere for z in zeros):
        return [EVERYWHERE] * len(call.outs)
    sources = [[both(_aligned(call, zeros, i), axis)] for i, axis in enumerate(call.outs[0])]
    return [along(call.outs[0], sources)] * len(call.outs)


def both(zeros: Iterable[Zero], axis: Axis) -> Zero:
    own = list(zeros)
    return Zero(atoms=frozenset(a for a in dims.atoms(axis) if all(z.at(a) for z in own)))


def left(call: Call, zeros: Sequence[Zero], notes: Notes) -> list[Zero]:
    """Zero where the first operand is."""
    return each(call._replace(ins=call.ins[:1]), zeros[:1], notes)


def never(call: Call, zeros: Sequence[Zero], notes: Notes) -> list[Zero]:
    return [NOWHERE] * len(call.outs)


def moved(call: Call, zeros: Sequence[Zero], notes: Notes) -> list[Zero]:
    """Of an operation that moves the entries of its first operand."""
    if zeros[0].everywhere:
        return [EVERYWHERE] * len(call.outs)
    return [along(axes, [zeros[:1]] * len(axes)) for axes in call.outs]


def must_be_zero(axis: Axis, zeros: Sequence[Zero], notes: Notes, reason: str) -> None:
    """Pins the atoms of an axis along which none of the values is zero."""
    for a in dims.atoms(axis):
        if not any(z.at(a) for z in zeros):
            notes.pin(a, reason)
