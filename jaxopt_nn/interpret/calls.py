"""Higher-order equations (jit, remat, custom derivatives, scan, while, cond, shard_map), re-evaluated from their bodies.

Each function takes ``(evaluator, key, eqn, operands, totals, indices)``, where ``totals`` are those of the taps inside, and
returns the outputs, the totals with what was measured, and the indices taken inside that hold outside. Operands and outputs
may be compressed tensors: they cross the boundary as their children. Indices from outside are closed over.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from jaxopt_nn.interpret import jaxprs
from jaxopt_nn.tensors.base import is_compressed

if TYPE_CHECKING:
    from jaxopt_nn.interpret.evaluate import Evaluator, Indices, Totals

Key = tuple[int, ...]
Outcome = tuple[list[Any], "Totals", "Indices"]


def _compressed_any(values: Sequence[Any]) -> bool:
    return any(map(is_compressed, values))


def _dense(ev: Evaluator, key: Key, values: Sequence[Any], eqn: Any, what: str, start: int = 0) -> list[Any]:
    """``Evaluator.dense`` for a loop or a branch; ``what`` it does with them."""
    scope = str(eqn.source_info.name_stack)
    return ev.dense(key, values, f"`{eqn.primitive.name}` {what}" + (f" in {scope}" if scope else ""), start)


class _Traced:
    """A body traced over the flat children of its operands and totals; what it returns comes back in its structure."""

    def __init__(self, fun: Callable[..., Outcome], operands: Sequence[Any], totals: Totals):
        self.flat, tree = jax.tree.flatten((list(operands), totals))

        def flat_fun(*flat: Any) -> list[Any]:
            operands, totals = jax.tree.unflatten(tree, flat)
            out, self.tree = jax.tree.flatten(fun(operands, totals))
            return out

        self.jaxpr, self.consts = jaxprs.trace(flat_fun, self.flat)
        self.args = [*self.consts, *self.flat]

    def result(self, flat: Sequence[Any]) -> Outcome:
        outs, totals, indices = jax.tree.unflatten(self.tree, flat)
        return outs, totals, indices


def _body(ev: Evaluator, body: jaxprs.Body, key: Key, indices: Indices) -> Callable[..., Outcome]:
    """``(operands, totals) -> outcome`` of a body that runs once, with the indices that it adds."""

    def run(operands: Sequence[Any], totals: Totals) -> Outcome:
        outs, totals, known = ev.run(body.jaxpr, body.consts, operands, key, totals, indices)
        return outs, totals, {k: x for k, x in known.items() if k not in indices}

    return run


def _forwarded(jaxpr: Any, operands: Sequence[Any], outs: list[Any]) -> list[Any]:
    """Outputs that are operands of the body, untouched, are the operands themselves."""
    given = dict(zip(jaxpr.invars, operands, strict=True))
    return [given.get(v, x) if not jaxprs.is_literal(v) and is_compressed(x) else x
            for v, x in zip(jaxpr.outvars, outs, strict=True)]  # fmt: skip


def _jit(ev: Evaluator, key: Key, eqn: Any, operands: Sequence[Any], totals: Totals, indices: Indices) -> Outcome:
    (body,) = jaxprs.bodies(eqn) or ()
    traced = _Traced(_body(ev, body, (*key, 0), indices), operands, totals)
    params = dict(eqn.params)
    params["jaxpr"] = traced.jaxpr if traced.consts else ev.shared(body.jaxpr, traced.jaxpr)
    for x, sharding in zip(operands, params["in_shardings"], strict=True):
        if (
            is_compressed(x)
            and isinstance(sharding, jax.sharding.NamedSharding)
            and _child_shardings(x, sharding) is None
        ):
            where = f"@{eqn.source_info.name_stack}"
            ev.recorder.add(
                "note", where, f"{type(x).__name__} {list(x.shape)} can't follow {sharding.spec}: left to the compiler"
            )
    n_totals = len(jax.tree.leaves(totals))
    spread = functools.partial(_spread, operands, len(traced.consts), n_totals)
    unspecified = jaxprs.unspecified_sharding()
    params["in_shardings"] = spread(params["in_shardings"], unspecified, _child_shardings)
    params["in_layouts"] = spread(params["in_layouts"], None)
    params["donated_invars"] = spread(params["donated_invars"], False)
    n_outs = len(jaxprs.opened(traced.jaxpr).jaxpr.outvars)
    outs_like = jax.tree.unflatten(traced.tree, range(n_outs))[0]
    n_rest = n_outs - len(jax.tree.leaves(outs_like))
    out_spread = functools.partial(_spread, outs_like, 0, n_rest)
    params["out_shardings"] = out_spread(params["out_shardings"], unspecified)
    params["out_layouts"] = out_spread(params["out_layouts"], None)
    outs, totals, added = traced.result(eqn.primitive.bind(*traced.args, **params))
    return _forwarded(body.jaxpr, operands, outs), totals, added


def _child_shardings(tensor: Any, sharding: Any) -> list[Any] | None:
    if not isinstance(sharding, jax.sharding.NamedSharding):
        return None
    specs = tensor.spec(sharding.spec, sharding.mesh)
    if specs is NotImplemented:
        return None
    leaves = jax.tree.leaves(specs, is_leaf=lambda s: isinstance(s, PartitionSpec))
    return [jax.sharding.NamedSharding(sharding.mesh, s) for s in leaves]


def _spread(
    values: Sequence[Any], n_consts: int, n_rest: int, given: Sequence[Any], default: Any, split: Any = None
) -> tuple[Any, ...]:
    """A per-operand parameter of ``jit``, for constants, the children of compressed operands, and what else is passed."""
    out = [default] * n_consts
    for value, entry in zip(values, given, strict=True):
        if is_compressed(value):
            out += (split and split(value, entry)) or [default] * len(jax.tree.leaves(value))
        else:
            out.append(entry)
    return (*out, *[default] * n_rest)


def _remat(ev: Evaluator, key: Key, eqn: Any, operands: Sequence[Any], totals: Totals, indices: Indices) -> Outcome:
    (body,) = jaxprs.bodies(eqn) or ()
    traced = _Traced(_body(ev, body, (*key, 0), indices), operands, totals)
    params = {**eqn.params, "jaxpr": jaxprs.same_form(eqn.params["jaxpr"], traced.jaxpr)}
    outs, totals, added = traced.result(eqn.primitive.bind(*traced.args, **params))
    return _forwarded(body.jaxpr, operands, outs), totals, added


def _inline(ev: Evaluator, key: Key, eqn: Any, operands: Sequence[Any], totals: Totals, indices: Indices) -> Outcome:
    (body,) = jaxprs.bodies(eqn) or ()
    if eqn.primitive.name in jaxprs.CUSTOM_DERIVATIVES:
        where = f"@{eqn.source_info.name_stack}"
        ev.recorder.add("derivative", where, f"`{eqn.primitive.name}` holds a site: its body is differentiated instead")
    return _body(ev, body, (*key, 0), indices)(operands, totals)


def _scan(ev: Evaluator, key: Key, eqn: Any, operands: Sequence[Any], totals: Totals, indices: Indices) -> Outcome:
    (body,) = jaxprs.bodies(eqn) or ()
    n_consts, n_carry = jaxprs.scan_counts(eqn)
    consts, carry, xs = operands[:n_consts], operands[n_consts : n_consts + n_carry], operands[n_consts + n_carry :]
    inside = (*key, 0)
    xs = [_leading(ev, key, x, eqn, n_consts + n_carry + i) for i, x in enumerate(xs)]
    if not (totals or _compressed_any(operands)):
        avals = [v.aval for v in body.jaxpr.invars]
        run = lambda *ops: ev.run(body.jaxpr, body.consts, ops, inside, {}, indices)[0]
        closed, found = (None, True) if key in ev.slots else jaxprs.trace(run, avals)
        if not found:
            params = {**eqn.params, "jaxpr": jaxprs.same_form(eqn.params["jaxpr"], closed)}
            return list(eqn.primitive.bind(*operands, **params)), {}, {}
    fixed = _invariant(body.jaxpr.invars[n_consts : n_consts + n_carry], body.jaxpr.outvars[:n_carry], carry)
    carry = _dense_but(ev, key, carry, fixed, eqn, n_consts)
    moving = [x for i, x in enumerate(carry) if i not in fixed]
    length = eqn.params["length"]
    entries = jnp.arange(length, dtype=jnp.int32) if key in ev.slots else None

    def step(held: Any, sliced: Any) -> Any:
        (moving, totals), (xs, entry) = held, sliced
        fill = iter(moving)
        full = [carry[i] if i in fixed else next(fill) for i in range(n_carry)]
        known = indices if entry is None else {**indices, key: entry}
        outs, totals, _ = ev.run(body.jaxpr, body.consts, [*consts, *full, *xs], inside, totals, known)
        new = _dense_but(ev, (*inside, -1), outs[:n_carry], fixed, eqn)
        new = _as_before([x for i, x in enumerate(new) if i not in fixed], moving)
        ys = _dense(ev, (*inside, -1), outs[n_carry:], eqn, "stacks it", n_carry)
        return (new, totals), ys

    keys = {k: eqn.params[k] for k in ("reverse", "unroll")}
    # what is sliced says how long it is, also where that is a symbol, which `length` may not be
    sliced = bool(jax.tree.leaves((xs, entries)))
    (moving, totals), ys = lax.scan(step, (moving, totals), (list(xs), entries), None if sliced else length, **keys)
    fill = iter(moving)
    full = [carry[i] if i in fixed else next(fill) for i in range(n_carry)]
    return [*full, *ys], totals, {}


def _leading(ev: Evaluator, key: Key, x: Any, eqn: Any, at: int) -> Any:
    """What a scan may slice: a tensor whose axes were moved lies as it lay."""
    if not is_compressed(x):
        return x
    moved = x.leading()
    if moved is NotImplemented:
        (moved,) = _dense(ev, key, [x], eqn, "slices an axis along which its format can't be cut", at)
    return moved


def _invariant(before: Sequence[Any], after: Sequence[Any], values: Sequence[Any]) -> set[int]:
    """Carried compressed tensors that the body hands on untouched: they need not be carried."""
    return {i for i, (a, b, x) in enumerate(zip(before, after, values, strict=True)) if a is b and is_compressed(x)}


def _dense_but(ev: Evaluator, key: Key, values: Sequence[Any], kept: set[int], eqn: Any, start: int = 0) -> list[Any]:
    carried = lambda i, x: _dense(ev, key, [x], eqn, "carries it", start + i)[0]
    return [x if i in kept else carried(i, x) for i, x in enumerate(values)]


def _as_before(new: Sequence[Any], old: Sequence[Any]) -> list[Any]:
    """Carried values keep their weak types, which a rule's result may lack."""
    return [lax.convert_element_type(x, o.dtype) if x.dtype != o.dtype else x for x, o in zip(new, old, strict=True)]


def _while(ev: Evaluator, key: Key, eqn: Any, operands: Sequence[Any], totals: Totals, indices: Indices) -> Outcome:
    cond, body = jaxprs.bodies(eqn) or ()
    n_cond, n_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    cond_consts, body_consts, carry = operands[:n_cond], operands[n_cond : n_cond + n_body], operands[n_cond + n_body :]
    test = lambda *ops: ev.run(cond.jaxpr, cond.consts, ops, (*key, 0), {}, indices)[0]
    turn = lambda totals, *ops: ev.run(body.jaxpr, body.consts, ops, (*key, 1), totals, indices)[:2]
    if not (totals or _compressed_any(operands)):
        closed_cond, found = jaxprs.trace(test, [v.aval for v in cond.jaxpr.invars])
        closed_body, more = jaxprs.trace(lambda *ops: turn({}, *ops)[0], [v.aval for v in body.jaxpr.invars])
        if not (found or more):
            forms = {"cond_jaxpr": closed_cond, "body_jaxpr": closed_body}
            params = {**eqn.params, **{k: jaxprs.same_form(eqn.params[k], v) for k, v in forms.items()}}
            return list(eqn.primitive.bind(*operands, **params)), {}, {}
    fixed = _invariant(body.jaxpr.invars[n_body:], body.jaxpr.outvars, carry)
    carry = _dense_but(ev, key, carry, fixed, eqn, n_cond + n_body)

    def whole(moving: Sequence[Any]) -> list[Any]:
        fill = iter(moving)
        return [x if i in fixed else next(fill) for i, x in enumerate(carry)]

    def step(held: Any) -> Any:
        moving, totals = held
        outs, totals = turn(totals, *body_consts, *whole(moving))
        new = _dense_but(ev, (*key, 1, -1), outs, fixed, eqn)
        return _as_before([x for i, x in enumerate(new) if i not in fixed], moving), totals

    start = [x for i, x in enumerate(carry) if i not in fixed]
    moving, totals = lax.while_loop(lambda held: test(*cond_consts, *whole(held[0]))[0], step, (start, totals))
    return whole(moving), totals, {}


def _cond(ev: Evaluator, key: Key, eqn: Any, operands: Sequence[Any], totals: Totals, indices: Indices) -> Outcome:
    index, *operands = operands

    def branch(b: int, body: jaxprs.Body) -> Callable[..., Outcome]:
        def run(operands: Sequence[Any], totals: Totals) -> Outcome:
            outs, totals, _ = ev.run(body.jaxpr, body.consts, operands, (*key, b), totals, indices)
            return _dense(ev, (*key, b, -1), outs, eqn, "returns it from a branch"), totals, {}

        return run

    traced = [_Traced(branch(b, body), operands, totals) for b, body in enumerate(jaxprs.bodies(eqn) or ())]
    consts = [c for t in traced for c in t.consts]
    forms = []
    offset = 0
    for t, old in zip(traced, eqn.params["branches"], strict=True):
        closed = _with_shared_consts(t, consts, offset) if consts else t.jaxpr
        offset += len(t.consts)
        forms.append(jaxprs.same_form(old, closed))
    flat = eqn.primitive.bind(index, *consts, *traced[0].flat, **{**eqn.params, "branches": tuple(forms)})
    return traced[0].result(flat)


def _with_shared_consts(traced: _Traced, shared: Sequence[Any], offset: int) -> Any:
    """A branch that takes the constants of all branches and reads its own, which start at ``offset``."""
    inner = jaxprs.opened(traced.jaxpr)

    def fun(*args: Any) -> list[Any]:
        own = args[offset : offset + len(traced.consts)]
        return jax.core.eval_jaxpr(inner.jaxpr, inner.consts, *own, *args[len(shared) :])

    return jax.make_jaxpr(fun)(*shared, *traced.flat)


def _shard_map(ev: Evaluator, key: Key, eqn: Any, operands: Sequence[Any], totals: Totals, indices: Indices) -> Outcome:
    (body,) = jaxprs.bodies(eqn) or ()
    mesh, manual = eqn.params["mesh"], eqn.params["newly_manual_axes"]
    operands, specs = _sharded(ev, key, eqn, operands)
    zeros = ev.zeros((*key, 0))
    shards = PartitionSpec(tuple(manual))
    names = {(*key, -1 - i): name for i, name in enumerate(mesh.axis_names)}  # as in tags.shard

    def run(*ops: Any) -> Any:
        known = {**indices, **{slot: lax.axis_index(name) for slot, name in names.items() if slot in ev.slots}}
        empty = ev.zeros((*key, 0))
        if eqn.params["check_vma"]:  # each shard has its own totals, which loops inside carry
            empty = jax.tree.map(lambda x: lax.pcast(x, tuple(manual), to="varying"), empty)
        outs, own, _ = ev.run(body.jaxpr, body.consts, ops, (*key, 0), empty, known)
        outs = _dense(ev, (*key, 0, -1), outs, eqn, "returns it")
        return outs, jax.tree.map(lambda x: jnp.expand_dims(x, 0), own)

    out_specs = (list(eqn.params["out_specs"]), jax.tree.map(lambda _: shards, zeros))
    mapped = jax.shard_map(
        run, mesh=mesh, in_specs=specs, out_specs=out_specs, check_vma=eqn.params["check_vma"], axis_names=manual
    )
    outs, own = mapped(*operands)
    if not zeros:
        return outs, {}, {}
    count = jax.tree.leaves(own)[0].shape[0]
    parts = [jax.tree.map(lambda x, i=i: x[i], own) for i in range(count)]
    return outs, functools.reduce(ev.merge, parts, totals), {}


def _sharded(ev: Evaluator, key: Key, eqn: Any, operands: Sequence[Any]) -> tuple[list[Any], tuple[Any, ...]]:
    """Operands and their specs; a compressed tensor enters by its children where its algebra gives their specs."""
    values, specs = [], []
    for i, (x, spec) in enumerate(zip(operands, eqn.params["in_specs"], strict=True)):
        children = NotImplemented
        if is_compressed(x):
            x = x.expand()
            children = x.spec(spec, eqn.params["mesh"]) if is_compressed(x) else NotImplemented
            if children is NotImplemented:
                (x,) = _dense(ev, key, [x], eqn, "shards it along an axis that its format does not follow", i)
        values.append(x)
        specs.append(spec if children is NotImplemented else children)
    return values, tuple(specs)


CALLS: dict[str, Callable[..., Outcome]] = {
    "jit": _jit,
    "pjit": _jit,
    "remat": _remat,
    "remat2": _remat,
    "checkpoint": _remat,
    "closed_call": _inline,
    "core_call": _inline,
    "custom_jvp_call": _inline,
    "custom_vjp_call": _inline,
    "custom_vmap_call": _inline,
    "composite": _inline,
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "shard_map": _shard_map,
}
