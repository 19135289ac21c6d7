"""The rest: what a value is in the units that are cut, where that is the same in all of them.

A reduction over units may see values there that are not zero: in a two-pass variance ``x - mean``, which is ``-mean`` where
``x`` is zero; in a softmax ``exp(0)``. The shrunken network then adds what the cut units would have given: the value of one of
them, of length one along the atom, as often as units are cut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from jaxopt_nn.interpret import primitives
from jaxopt_nn.interpret.flow import dims
from jaxopt_nn.interpret.flow.dims import Axes, Dim
from jaxopt_nn.interpret.flow.entry import Call, Zero

#: Operations of which the rest is the operation on the rests of the operands.
_MOVES = frozenset("broadcast_in_dim reshape squeeze transpose".split())
#: What they say of an axis does not hold of one entry of it.
_PLACED = frozenset("mesh_cast reshard sharding_constraint".split())
#: How the cut units' share joins that of the others: ``(result, result over one cut unit, how many are cut)``.
COMPLETE: dict[str, Callable[[Any, Any, int], Any]] = {
    "reduce_sum": lambda out, rest, n: out + (rest * n).astype(out.dtype),
    "reduce_prod": lambda out, rest, n: out * rest**n,
    "reduce_max": lambda out, rest, n: jnp.maximum(out, rest),
    "reduce_min": lambda out, rest, n: jnp.minimum(out, rest),
}


def place(axes: Axes, atom: Dim) -> int | None:
    """The axis that is the atom in any order, or a product of it and others, if the atom lies nowhere else."""
    own = [i for i, axis in enumerate(axes) for a in dims.atoms(axis) if a is atom]
    return own[0] if len(own) == 1 and any(dims.single(f) is atom for f in dims.factors(axes[own[0]])) else None


def same(call: Call, zeros: Sequence[Zero]) -> frozenset[Dim]:
    """The atoms along which an equation's result is the same in all cut units."""
    if call.name not in (primitives.ELEMENTWISE - _PLACED) | _MOVES | COMPLETE.keys():
        return frozenset()
    inside = dict.fromkeys(a for axis in call.outs[0] for a in dims.atoms(axis))
    return frozenset(a for a in inside if place(call.outs[0], a) is not None and _same(call, zeros, a))


def _same(call: Call, zeros: Sequence[Zero], atom: Dim) -> bool:
    for axes, zero in zip(call.ins, zeros, strict=True):
        if not any(atom in dims.atoms(axis) for axis in axes):
            continue  # the same in all units
        if place(axes, atom) is None or not (zero.at(atom) or atom in zero.same):
            return False
    return True
