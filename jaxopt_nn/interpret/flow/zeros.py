"""Where values are zero once the units of an atom are zero in all leaves."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxopt_nn.interpret import jaxprs
from jaxopt_nn.interpret.flow import dims
from jaxopt_nn.interpret.flow.dims import Axis, Dim
from jaxopt_nn.interpret.flow.entry import EVERYWHERE, NOWHERE, Call, Zero
from jaxopt_nn.interpret.flow.rest import same
from jaxopt_nn.interpret.flow.table import PRIMITIVES
from jaxopt_nn.interpret.flow.ties import Ties, Value, number_of
from jaxopt_nn.interpret.tags import Key

#: Bodies that the evaluator runs in place.
INLINED = frozenset("closed_call composite core_call custom_vmap_call jit pjit".split())


class Zeros:
    """A walk that follows where values are zero.

    Attributes:
      pins: ``{atom: why its units can't be cut}``: something sums over them, or divides by them, that is not zero there.
      divisors: ``(path, atom)`` of leaves that divide.
      rests: ``{key of a reduction: the axis whose rest is to be added}``.
      operands: ``{key: where an equation's operands are zero}``.
      same: ``{key: Zero.same of its first result}``.
    """

    def __init__(self, flow: Ties, divisors: frozenset[tuple[str, Dim]]):
        self._flow, self._quiet = flow, 0
        self.pins: dict[Dim, str] = {}
        self.divisors: set[tuple[str, Dim]] = set()
        self.rests: dict[Key, int] = {}
        self.operands: dict[Key, list[Zero]] = {}
        self.same: dict[Key, frozenset[Dim]] = {}
        program = flow.program
        of = lambda path, axes: Zero(atoms=frozenset(
            a for axis in axes for a in dims.atoms(axis) if (path, a) not in divisors
        ))  # fmt: skip
        args = [of(path, axes) for path, axes in flow.leaves.items()]
        args += [NOWHERE] * (len(program.jaxpr.invars) - len(args))
        consts = [EVERYWHERE if _is_zero(c) else NOWHERE for c in program.consts]
        self._run(program.jaxpr, consts, args, ())

    def _run(self, jaxpr: Any, consts: Sequence[Zero], args: Sequence[Zero], key: Key) -> list[Zero]:
        env = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))

        def read(v: Any) -> Zero:
            if jaxprs.is_literal(v):
                return EVERYWHERE if number_of(v) == 0 else NOWHERE
            return env[v]

        for i, eqn in enumerate(jaxpr.eqns):
            outs = self._equation(eqn, [read(v) for v in eqn.invars], (*key, i))
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def _inner(self, body: Any, args: Sequence[Zero], key: Key) -> list[Zero]:
        return self._run(body.jaxpr, [EVERYWHERE if _is_zero(c) else NOWHERE for c in body.consts], args, key)

    def _equation(self, eqn: Any, zeros: list[Zero], key: Key) -> list[Zero]:
        name = eqn.primitive.name
        if name in jaxprs.LOOPS and jaxprs.bodies(eqn):
            return getattr(self, f"_{name}")(eqn, list(map(_bare, zeros)), key)
        if name in jaxprs.DIRECT:
            (body,) = jaxprs.bodies(eqn) or ()
            if name in INLINED:
                return self._inner(body, zeros, (*key, 0))
            zeros = list(map(_bare, zeros))
            outs = list(map(_bare, self._inner(body, zeros, (*key, 0))))
            rule = self._flow.derivatives.get(key)
            if rule is not None and rule.tangents is not None:  # a tangent is zero where its primal is
                self._inner(rule.tangents, [*zeros, *(zeros[i] for i in rule.inputs)], (*key, 1))
            elif rule is not None and rule.residuals is not None:  # of a cotangent nothing is known
                residuals = list(map(_bare, self._inner(rule.residuals, zeros, (*key, 1))))
                self._inner(rule.pullback, [*residuals, *[NOWHERE] * len(rule.outputs)], (*key, 2))
            return outs
        entry = PRIMITIVES.get(name)
        if entry is None:
            return [NOWHERE] * len(eqn.outvars)
        call = self._flow.calls.get(key)
        if call is None:  # whole
            bare = lambda variables: tuple((None,) * v.aval.ndim for v in variables)
            call = Call(eqn, bare(eqn.invars), bare(eqn.outvars), tuple(map(number_of, eqn.invars)))
            return list(entry.zeros(call, zeros, _Noted(self, call, (), key)))
        first, *others = entry.zeros(call, zeros, _Noted(self, call, self._flow.sources[key], key))
        known = frozenset() if key in self.rests else same(call, zeros)  # a rest of a rest is not known
        first = first._replace(same=known - first.atoms)
        if not self._quiet:
            self.operands[key], self.same[key] = zeros, first.same
        return [first, *others]

    def complete(self, key: Key, i: int) -> None:
        self.rests[key] = i

    def note(self, atom: Dim, reason: str) -> None:
        if not self._quiet:
            self.pins.setdefault(atom, reason)

    def _scan(self, eqn: Any, zeros: list[Zero], key: Key) -> list[Zero]:
        (body,) = jaxprs.bodies(eqn) or ()
        n, m = jaxprs.scan_counts(eqn)
        step = lambda carry: self._inner(body, [*zeros[:n], *carry, *zeros[n + m :]], (*key, 0))
        carry = self._settled(step, zeros[n : n + m])
        return [*carry, *map(_bare, step(carry)[m:])]

    def _while(self, eqn: Any, zeros: list[Zero], key: Key) -> list[Zero]:
        cond, body = jaxprs.bodies(eqn) or ()
        n = eqn.params["cond_nconsts"]
        m = n + eqn.params["body_nconsts"]
        step = lambda carry: self._inner(body, [*zeros[n:m], *carry], (*key, 1))
        carry = self._settled(step, zeros[m:])
        self._inner(cond, [*zeros[:n], *carry], (*key, 0))
        step(carry)
        return carry

    def _cond(self, eqn: Any, zeros: list[Zero], key: Key) -> list[Zero]:
        each = [self._inner(b, zeros[1:], (*key, i)) for i, b in enumerate(jaxprs.bodies(eqn) or ())]
        return [_bare(functools.reduce(_meet, outs)) for outs in zip(*each, strict=True)]

    def _settled(self, step: Callable[[list[Zero]], list[Zero]], carry: list[Zero]) -> list[Zero]:
        """The carried zeros that hold in every iteration."""
        self._quiet += 1
        while True:
            new = [_meet(a, _bare(b)) for a, b in zip(carry, step(carry), strict=False)]
            if new == carry:
                self._quiet -= 1
                return carry
            carry = new


class _Noted:
    """What an equation notes, as ``Notes``: a leaf that divides is never set to zero, an activation must not be."""

    def __init__(self, walk: Zeros, call: Call, operands: Sequence[Value], key: Key):
        self._walk, self._call, self._operands, self._key = walk, call, operands, key

    def pin(self, axis: Axis, reason: str) -> None:
        for atom in dims.atoms(axis):
            self._walk.note(atom, reason)

    def completes(self, i: int) -> None:
        self._walk.complete(self._key, i)

    def divides(self, operand: int, atom: Dim) -> None:
        value = self._operands[operand]
        if value.dynamic or not value.sources:
            self._walk.note(atom, f"`{self._call.name}` is not finite at zero")
        else:
            self._walk.divisors |= {(path, atom) for path in value.sources}


def _bare(zero: Zero) -> Zero:
    """Across the border of a body that is traced for itself, which rests don't cross."""
    return zero._replace(same=frozenset())


def _meet(a: Zero, b: Zero) -> Zero:
    if a.everywhere or b.everywhere:
        return b if a.everywhere else a
    return Zero(atoms=a.atoms & b.atoms)


def _is_zero(const: Any) -> bool:
    if isinstance(const, jax.core.Tracer) or jax.dtypes.issubdtype(const.dtype, jax.dtypes.prng_key):
        return False
    return bool(np.size(const) <= 2**20 and not np.any(np.asarray(const)))
