"""Shrinking: a traced program evaluated again, on leaves of which only some entries are kept."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxopt_nn.interpret import jaxprs
from jaxopt_nn.interpret.flow import dims, extent
from jaxopt_nn.interpret.flow.derivatives import Derivative
from jaxopt_nn.interpret.flow.dims import Axes, Dim
from jaxopt_nn.interpret.flow.entry import Call, Kept, Zero
from jaxopt_nn.interpret.flow.flow import Flow
from jaxopt_nn.interpret.flow.places import WHOLE
from jaxopt_nn.interpret.flow.residuals import NOTHING, Dropped
from jaxopt_nn.interpret.flow.rest import COMPLETE
from jaxopt_nn.interpret.flow.table import PRIMITIVES
from jaxopt_nn.interpret.tags import Key


def shrunk(flow: Flow, kept: Kept, args: Sequence[Any], left: Dropped = NOTHING) -> list[Any]:
    """The results of a program on leaves that are cut to what is kept of their atoms.

    Args:
      flow: of the program.
      kept: ``{atom: int [k], the entries that stay}``; none of a pinned atom.
      args: the cut leaves, None for those that are gone, then the inputs as they are.
      left: what of the program is left out.

    Returns:
      Arrays; None for what is computed from leaves that are gone.
    """
    program = flow.program
    values = [_Value(x) for x in args]
    return [v.array for v in _Shrinking(flow, kept, left).run(program.jaxpr, program.consts, values, ())]


class _Value:
    """An array, or None where nothing needs it, and whether it is whole: not cut yet, as only constants lie behind it.

    ``rest``: gives what it is in the cut units of an atom, of length one along it, where that is the same in all (``rest.py``).
    """

    __slots__ = ("array", "rest", "whole")

    def __init__(self, array: Any, whole: bool = False, rest: Callable[[Dim], Any] | None = None):
        self.array, self.whole, self.rest = array, whole, rest


class _Shrinking:
    def __init__(self, flow: Flow, kept: Kept, left: Dropped):
        self._flow, self._kept, self._left = flow, kept, left

    def run(self, jaxpr: Any, consts: Sequence[Any], args: Sequence[_Value], key: Key) -> list[_Value]:
        env: dict[Any, _Value] = dict(zip(jaxpr.invars, args, strict=True))
        env |= {v: _Value(c, True) for v, c in zip(jaxpr.constvars, consts, strict=True)}
        read = lambda v: _Value(v.val, True) if jaxprs.is_literal(v) else env[v]
        drops = jaxprs.last_uses(jaxpr)
        for i, eqn in jaxprs.live(jaxpr):
            if (own := (*key, i)) in self._left.dead:
                outs = [_Value(None)] * len(eqn.outvars)
            elif own in self._left.passing:
                outs = [read(eqn.invars[self._left.passing[own]])]
            else:
                with jaxprs.context_of(eqn):
                    outs = self._equation(eqn, [read(v) for v in eqn.invars], own)
            env.update(zip(eqn.outvars, outs, strict=True))
            for v in drops[i]:
                env.pop(v, None)
        return [read(v) for v in jaxpr.outvars]

    def _cut(self, array: Any, axes: Axes) -> Any:
        """A whole array, cut along the axes that it has where it is used."""
        for i, axis in enumerate(axes):
            stay = extent.entries(axis, self._kept)
            if stay is not None:
                array = jnp.take(array, stay, axis=i)
        return array

    def _equation(self, eqn: Any, operands: list[_Value], key: Key) -> list[_Value]:
        name = eqn.primitive.name
        if all(v.whole for v in operands):
            return [_Value(x, True) for x in jaxprs.bind(eqn, [v.array for v in operands])]
        if name in _INNER:
            return _INNER[name](self, eqn, operands, key)
        call = self._flow.calls[key]
        arrays = [self._cut(v.array, axes) if v.whole else v.array for v, axes in zip(operands, call.ins, strict=True)]
        outs = _bind(call, arrays, self._kept)
        if name in WHOLE:
            outs = [self._cut(x, axes) for x, axes in zip(outs, call.outs, strict=True)]
        if key in self._flow.rests:
            outs = [self._completed(outs[0], call, operands, key)]
        known = self._flow.same.get(key, frozenset()).intersection(self._kept)
        rest = functools.partial(self._rest, call, operands, arrays, key) if known else None
        return [_Value(x, rest=rest) for x in outs]

    def _completed(self, out: Any, call: Call, operands: list[_Value], key: Key) -> Any:
        """A reduction over what is kept, with what the cut units would have given."""
        atom = self._flow.rests[key]
        if atom not in self._kept:
            return out
        one = self._rest_of(operands[0], call.ins[0], self._flow.zeros[key][0], atom)
        (rest,) = _bind(call, [one], self._kept)
        return COMPLETE[call.name](out, rest, atom.size - len(self._kept[atom]))

    def _rest(self, call: Call, operands: list[_Value], arrays: list[Any], key: Key, atom: Dim) -> Any:
        """The first result of an equation in a cut unit of the atom: the equation on its operands there."""
        zeros = self._flow.zeros[key]
        rests = [
            self._rest_of(v, axes, zero, atom) if any(atom in dims.atoms(a) for a in axes) else x
            for v, x, axes, zero in zip(operands, arrays, call.ins, zeros, strict=True)
        ]
        return _bind(call, rests, {**self._kept, atom: np.zeros(1, int)})[0]

    def _rest_of(self, value: _Value, axes: Axes, zero: Zero, atom: Dim) -> Any:
        if zero.at(atom):
            return jnp.zeros([extent.size(a, {**self._kept, atom: np.zeros(1, int)}) for a in axes], value.array.dtype)
        assert value.rest is not None
        return value.rest(atom)

    # -- inner jaxprs --------------------------------------------------------------------------------------------------

    def entering(self, operands: Sequence[_Value], key: Key) -> list[_Value]:
        """The operands of a loop: those that are whole and do not stay so are cut."""
        ins = self._flow.calls[key].ins
        return [
            _Value(self._cut(v.array, axes)) if v.whole and axes is not None else v
            for v, axes in zip(operands, ins, strict=True)
        ]

    def turns(self, key: Key) -> tuple[np.ndarray | None, int]:
        """The iterations of a ``scan`` that stay, None where all do; and how many there are."""
        axis = self._flow.loops[key]
        return extent.entries(axis, self._kept), extent.size(axis, self._kept)

    def derivative(self, key: Key) -> Derivative | None:
        return self._flow.derivatives.get(key)

    def body(self, body: Any, args: Sequence[_Value], key: Key) -> list[_Value]:
        outs = self.run(body.jaxpr, body.consts, args, key)
        ends = self._flow.ends.get(key, [None] * len(outs))
        return [
            _Value(self._cut(v.array, axes)) if v.whole and axes is not None else v for v, axes in zip(outs, ends, strict=True)
        ]


def _bind(call: Call, arrays: list[Any], kept: Kept) -> list[Any]:
    """The equation, with its parameters for the sizes that are kept."""
    params, primitive = call.eqn.params, call.eqn.primitive
    entry = PRIMITIVES.get(call.name)
    if entry is not None and entry.params is not None:
        params = {**params, **entry.params(call, kept)}
    if entry is not None and entry.arrays is not None:
        arrays = entry.arrays(call, arrays, kept)
    out = primitive.bind(*arrays, **primitive.get_bind_params(params))
    return list(out) if primitive.multiple_results else [out]


class _Traced:
    """A body as a function of arrays: its operands are whole as ``like`` are, and ``whole`` says which results are."""

    def __init__(self, shrinking: _Shrinking, body: Any, key: Key, like: Sequence[_Value]):
        self._shrinking, self._body, self._key, self._like = shrinking, body, key, like
        self.whole: list[bool] = []

    def __call__(self, arrays: Sequence[Any]) -> list[Any]:
        args = [_Value(x, v.whole) for x, v in zip(arrays, self._like, strict=True)]
        outs = self._shrinking.body(self._body, args, self._key)
        self.whole = [v.whole for v in outs]
        return [v.array for v in outs]

    def values(self, arrays: Sequence[Any]) -> list[_Value]:
        return [_Value(x, whole) for x, whole in zip(arrays, self.whole, strict=True)]


def _arrays(values: Sequence[_Value]) -> list[Any]:
    return [v.array for v in values]


def _inline(s: _Shrinking, eqn: Any, operands: list[_Value], key: Key) -> list[_Value]:
    (body,) = jaxprs.bodies(eqn) or ()
    return s.body(body, operands, (*key, 0))


def _custom_jvp(s: _Shrinking, eqn: Any, operands: list[_Value], key: Key) -> list[_Value]:
    """The model's own rule, on the sizes that are left."""
    (body,) = jaxprs.bodies(eqn) or ()
    rule = s.derivative(key)
    if rule is None or rule.tangents is None:
        return _inline(s, eqn, operands, key)
    run = _Traced(s, body, (*key, 0), operands)
    slope = _Traced(s, rule.tangents, (*key, 1), [*operands, *(operands[i] for i in rule.inputs)])
    function = jax.custom_jvp(lambda *arrays: tuple(run(arrays)))

    def forward(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
        outs = function(*primals)
        made = dict(zip(rule.outputs, slope([*primals, *(tangents[i] for i in rule.inputs)]), strict=True))
        return outs, tuple(made.get(i, np.zeros(jnp.shape(x), jax.dtypes.float0)) for i, x in enumerate(outs))

    function.defjvp(forward)
    return run.values(function(*_arrays(operands)))


def _custom_vjp(s: _Shrinking, eqn: Any, operands: list[_Value], key: Key) -> list[_Value]:
    """As ``_custom_jvp``."""
    (body,) = jaxprs.bodies(eqn) or ()
    rule = s.derivative(key)
    if rule is None or rule.residuals is None or rule.pullback is None:
        return _inline(s, eqn, operands, key)
    run = _Traced(s, body, (*key, 0), operands)
    residuals = _Traced(s, rule.residuals, (*key, 1), operands)
    function = jax.custom_vjp(lambda *arrays: tuple(run(arrays)))

    def forward(*arrays: Any) -> tuple[Any, Any]:
        return tuple(run(arrays)), residuals(arrays)

    def backward(saved: list[Any], cotangents: tuple[Any, ...]) -> tuple[Any, ...]:
        outs = run.values(cotangents)
        like = [*residuals.values(saved), *(outs[i] for i in rule.outputs)]
        pulled = _Traced(s, rule.pullback, (*key, 2), like)(_arrays(like))
        made = dict(zip(rule.inputs, pulled, strict=True))
        # nothing but constants lies behind a whole operand
        return tuple(None if v.whole else made.get(i) for i, v in enumerate(operands))

    function.defvjp(forward, backward)
    return run.values(function(*_arrays(operands)))


def _remat(s: _Shrinking, eqn: Any, operands: list[_Value], key: Key) -> list[_Value]:
    (body,) = jaxprs.bodies(eqn) or ()
    run = _Traced(s, body, (*key, 0), operands)
    own = {name: eqn.params[name] for name in ("prevent_cse", "policy")}
    outs = jax.checkpoint(lambda *arrays: run(arrays), **own)(*_arrays(operands))
    return run.values(outs)


def _scan(s: _Shrinking, eqn: Any, operands: list[_Value], key: Key) -> list[_Value]:
    (body,) = jaxprs.bodies(eqn) or ()
    n, m = jaxprs.scan_counts(eqn)
    values = s.entering(operands, key)
    run = _Traced(s, body, (*key, 0), values)
    consts, carry = _arrays(values[:n]), _arrays(values[n : n + m])
    turns, length = s.turns(key)
    xs = [jnp.take(v.array, turns, axis=0) if v.whole and turns is not None else v.array for v in values[n + m :]]

    def step(carry: list[Any], xs: list[Any]) -> tuple[list[Any], list[Any]]:
        outs = run([*consts, *carry, *xs])
        return _as_before(outs[:m], carry), outs[m:]

    own = {name: eqn.params[name] for name in ("reverse", "unroll")}
    carry, ys = lax.scan(step, carry, xs, length, **own)
    return run.values([*carry, *ys])


def _as_before(new: Sequence[Any], old: Sequence[Any]) -> list[Any]:
    """Carried values keep their dtypes, which a literal's may differ from."""
    return [lax.convert_element_type(x, o.dtype) if jnp.result_type(x) != o.dtype else x for x, o in zip(new, old, strict=True)]


def _while(s: _Shrinking, eqn: Any, operands: list[_Value], key: Key) -> list[_Value]:
    cond, body = jaxprs.bodies(eqn) or ()
    n = eqn.params["cond_nconsts"]
    m = n + eqn.params["body_nconsts"]
    values = s.entering(operands, key)
    tests, consts, carry = (_arrays(part) for part in (values[:n], values[n:m], values[m:]))
    test = _Traced(s, cond, (*key, 0), [*values[:n], *values[m:]])
    run = _Traced(s, body, (*key, 1), values[n:])
    step = lambda carry: _as_before(run([*consts, *carry]), carry)
    return run.values(lax.while_loop(lambda carry: test([*tests, *carry])[0], step, carry))


def _cond(s: _Shrinking, eqn: Any, operands: list[_Value], key: Key) -> list[_Value]:
    index, *rest = operands
    runs = [_Traced(s, b, (*key, i), rest) for i, b in enumerate(jaxprs.bodies(eqn) or ())]
    branches = [lambda *arrays, run=run: run(arrays) for run in runs]
    outs = lax.switch(index.array, branches, *_arrays(rest))
    return runs[0].values(outs)


def _shard_map(s: _Shrinking, eqn: Any, operands: list[_Value], key: Key) -> list[_Value]:
    (body,) = jaxprs.bodies(eqn) or ()
    values = s.entering(operands, key)
    run = _Traced(s, body, (*key, 0), values)
    params = eqn.params
    mapped = jax.shard_map(
        lambda *arrays: tuple(run(arrays)), mesh=params["mesh"], in_specs=tuple(params["in_specs"]),
        out_specs=tuple(params["out_specs"]), check_vma=params["check_vma"], axis_names=params["newly_manual_axes"],
    )  # fmt: skip
    return run.values(mapped(*_arrays(values)))


_INNER: dict[str, Callable[[_Shrinking, Any, list[_Value], Key], list[_Value]]] = {
    **dict.fromkeys(jaxprs.DIRECT, _inline),
    **dict.fromkeys(("remat", "remat2", "checkpoint"), _remat),
    "custom_jvp_call": _custom_jvp,
    "custom_vjp_call": _custom_vjp,
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "shard_map": _shard_map,
}
