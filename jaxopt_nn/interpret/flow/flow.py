"""The flow of a program: which axes of which leaves are one, and which of these may be cut."""

from __future__ import annotations

from collections.abc import Sequence

import jax

from jaxopt_nn.interpret.flow import dims
from jaxopt_nn.interpret.flow.dims import Axis, Dim
from jaxopt_nn.interpret.flow.ties import LOOPED, Ties
from jaxopt_nn.interpret.flow.zeros import Zeros
from jaxopt_nn.interpret.program import Program


class Flow(Ties):
    """The dims of a program, and what keeps them from being cut.

    Args:
      training: it returns changed leaves, by path, beside the outputs; what reaches one of its results may be cut.

    Attributes:
      divisors: ``(path, atom)`` of leaves that divide: cut with the others, but never set to zero.
      rests, zeros, same: as ``rests``, ``operands`` and ``same`` of ``Zeros``.
      stacks: the atoms of which an entry is a layer, that all loops over them pass by.
    """

    def __init__(self, program: Program, paths: Sequence[str], *, training: bool = False):
        super().__init__(program, paths)
        self.training = training
        for axis in (a for out in self.outs if not training for a in out.axes or ()):
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
        self.stacks = list(dict.fromkeys(atom for axis in self.layers for atom in dims.atoms(axis)))

    @property
    def weights(self) -> list[bool]:
        """Which of the program's operands are leaves."""
        return [i < len(self.leaves) for i in range(len(self.program.jaxpr.invars))]

    @property
    def results(self) -> tuple[list[int], dict[str, int]]:
        """Where the outputs stand among the program's results, and where the changed leaves do."""
        places = jax.tree.unflatten(self.program.out_tree, range(len(self.program.jaxpr.outvars)))
        outputs, changed = places if self.training else (places, {})
        return jax.tree.leaves(outputs), changed

    def unit_pin(self, atom: Dim) -> str | None:
        """Why an atom's entries may not be cut as units."""
        return atom.cut or (LOOPED if atom in self.stacks else None)


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
