"""The flow of a program: which axes of which leaves are one, and which of these may be cut."""

from __future__ import annotations

from collections.abc import Sequence

from jaxopt_nn.interpret.flow import dims
from jaxopt_nn.interpret.flow.dims import Axis, Dim
from jaxopt_nn.interpret.flow.ties import Ties
from jaxopt_nn.interpret.flow.zeros import Zeros
from jaxopt_nn.interpret.program import Program


class Flow(Ties):
    """The dims of a program, and what keeps them from being cut.

    Args:
      outputs: whether what reaches an output may not be cut; False for a function of which changed leaves are outputs.

    Attributes:
      divisors: ``(path, atom)`` of leaves that divide: cut with the others, but never set to zero.
      rests, zeros, same: as ``rests``, ``operands`` and ``same`` of ``Zeros``.
    """

    def __init__(self, program: Program, paths: Sequence[str], *, outputs: bool = True):
        super().__init__(program, paths)
        for axis in (a for out in self.outs if outputs for a in out.axes or ()):
            dims.pin(axis, "reaches an output of `apply`")
        for axes in self.leaves.values():
            for atom in (a for axis in axes for a in _twice(axis)):
                dims.pin(atom, "meets itself within one axis of a leaf")
        self.divisors: frozenset[tuple[str, Dim]] = frozenset()
        while not (zeros := Zeros(self, self.divisors)).divisors <= self.divisors:
            self.divisors |= zeros.divisors
        self.rests, self.zeros, self.same = zeros.rests, zeros.operands, zeros.same
        for atom, reason in zeros.pins.items():
            dims.pin(atom, reason)


def _twice(axis: Axis) -> list[Dim]:
    """The atoms that stand twice within a product of an axis."""
    if axis is None:
        return []
    own = dims.root(axis)
    inner = [a for part in own.parts for a in _twice(part)]
    if own.kind != "product":
        return inner
    each = [set(dims.atoms(part)) for part in own.parts]
    return inner + [a for i, one in enumerate(each) for other in each[:i] for a in one & other]
