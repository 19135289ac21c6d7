"""Sites, and operations that move entries, on compressed tensors.

Which operations move entries, and how, the flow table says. What is said here is another fact: what a compressed tensor itself
does at each step, and where an operation leaves entries where they are but changes what they are (a cast, a placement).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_nn.core.matrix import Broadcast, Reshape, Reverse, Slice, Squeeze, Step, Transpose
from jaxopt_nn.formulations import products
from jaxopt_nn.interpret import jaxprs, tags
from jaxopt_nn.interpret.flow.moves import Join, Move
from jaxopt_nn.interpret.flow.table import PRIMITIVES
from jaxopt_nn.tensors.base import is_compressed

Result = Any  # an array, a compressed tensor, a list of these, or NotImplemented


# -- where entries stay: what a tensor does in place of the operation; any other one gets it dense ----------------------


def _cast(t: Any, params: Any) -> Result:
    return t.cast(params["new_dtype"]) if jnp.issubdtype(params["new_dtype"], jnp.floating) else NotImplemented


def _placed_by(t: Any, params: Any) -> Result:
    sharding = params["sharding"]
    if not isinstance(sharding, jax.sharding.NamedSharding):
        return NotImplemented
    specs = t.spec(sharding.spec, sharding.mesh)
    if specs is NotImplemented:
        return NotImplemented
    place = lambda x, s: jax.lax.with_sharding_constraint(x, jax.sharding.NamedSharding(sharding.mesh, s))
    return jax.tree.map(place, t, specs)


VALUES: dict[str, Callable[[Any, Any], Result]] = {
    "convert_element_type": _cast,
    "sharding_constraint": _placed_by,
    **dict.fromkeys(("copy", "copy_p", "stop_gradient"), lambda t, params: t),
}


# -- where entries move: the steps of the flow table on the tensors' own algebra ---------------------------------------


def _broadcast(t: Any, step: Broadcast) -> Result:
    """Only unit axes are added, in order: then it is a reshape."""
    grown = any(n != 1 for i, n in enumerate(step.shape) if i not in step.dims)
    if grown or any(t.shape[i] != step.shape[d] for i, d in enumerate(step.dims)):
        return NotImplemented
    return t.reshape(step.shape)


_STEPS: dict[type, Callable[[Any, Any], Result]] = {
    Transpose: lambda t, step: t.transpose(step.permutation),
    Reshape: lambda t, step: t.reshape(step.shape),
    Squeeze: lambda t, step: t.reshape(step.result(t.shape)),
    Broadcast: _broadcast,
    Slice: lambda t, step: t.slice(step.start, step.limit, step.strides),
    Reverse: lambda t, step: t.rev(step.axes),
}


def _after(t: Any, steps: Sequence[Step]) -> Result:
    """A tensor, or what a step has made dense, after steps."""
    for step in steps:
        t = _STEPS[type(step)](t, step) if is_compressed(t) else step.apply(t, 0)
        if t is NotImplemented:
            return t
    return t


def _moved(eqn: Any, moves: Sequence[Move], operands: Sequence[Any]) -> Result:
    if not is_compressed(operands[0]):
        return NotImplemented
    if not any(steps for _, steps in moves):
        value = VALUES.get(eqn.primitive.name)
        return NotImplemented if value is None else value(operands[0], eqn.params)
    parts = [_after(operands[0], steps) for _, steps in moves]
    return NotImplemented if any(part is NotImplemented for part in parts) else parts


def _joined(join: Join, operands: Sequence[Any]) -> Result:
    first, *others = [_after(t, steps) for t, steps in zip(operands, join.steps, strict=True)]
    if any(t is NotImplemented for t in (first, *others)) or not is_compressed(first):
        return NotImplemented
    return first.concatenate(others, join.axis)


def lookup(table: Any, eqn: Any, indices: Any) -> Result:
    """``gather`` as rows taken along one axis; NotImplemented for other gathers.

    The axis may be collapsed (``jnp.take``, ``table[i]``) or stay with length 1 (``dynamic_index_in_dim`` under ``vmap``,
    which gives starts for the other axes too, though it takes them whole).
    """
    params, shape = eqn.params, eqn.invars[0].aval.shape
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    starts = numbers.start_index_map
    axis = next((a for a in starts if sizes[a] != shape[a]), starts[0] if starts else None)
    if axis is None or numbers.operand_batching_dims or numbers.collapsed_slice_dims not in ((), (axis,)):
        return NotImplemented
    if any(n != (1 if a == axis else shape[a]) for a, n in enumerate(sizes)):
        return NotImplemented
    fill = params["mode"] == jax.lax.GatherScatterMode.FILL_OR_DROP
    if fill and (_fills(params) or len(starts) > 1):  # a start beyond 0 would fill rows of an axis taken whole
        return NotImplemented
    offsets = numbers.offset_dims
    if not numbers.collapsed_slice_dims:
        unit = offsets[axis]  # all of the table's axes are there; taken rows have this one no more
        offsets = tuple(d - (d > unit) for d in offsets if d != unit)
    rows = _taken(table, indices[..., starts.index(axis)], axis, offsets, eqn, fill)
    return rows if rows is NotImplemented else rows.reshape(eqn.outvars[0].aval.shape)


def _fills(params: Any) -> bool:
    """Whether out-of-range rows are filled with anything but the default, NaN."""
    return params["fill_value"] is not None and params["fill_value"] == params["fill_value"]


def _taken(table: Any, ids: Any, axis: int, offsets: Sequence[int], eqn: Any, fill: bool) -> Result:
    last = table.shape[axis] - 1
    rows = products.take(table, jnp.clip(ids, 0, last), axis)
    if rows is NotImplemented:
        return NotImplemented
    if tags.one_slice(eqn) and not fill:
        return rows.transpose(_placed(axis, ids.ndim, rows.ndim, offsets)) if is_compressed(rows) else rows
    rows = rows.densify() if is_compressed(rows) else rows
    if fill:
        known = jnp.expand_dims((ids >= 0) & (ids <= last), tuple(range(ids.ndim, rows.ndim)))
        known = jnp.moveaxis(known, tuple(range(ids.ndim)), tuple(range(axis, axis + ids.ndim)))
        rows = jnp.where(known, rows, jnp.asarray(jnp.nan, rows.dtype))
    return rows.transpose(_placed(axis, ids.ndim, rows.ndim, offsets))


def _placed(axis: int, n_ids: int, ndim: int, offsets: Sequence[int]) -> tuple[int, ...]:
    """The permutation from (…, ids at ``axis``, …) to the gather's order (slices at its offset dimensions)."""
    slices = iter([i for i in range(ndim) if not axis <= i < axis + n_ids])
    batch = iter(range(axis, axis + n_ids))
    return tuple(next(slices) if i in offsets else next(batch) for i in range(ndim))


def site(eqn: Any, operands: Sequence[Any]) -> Result:
    """A site with a compressed tensor among its operands, in weight-only arithmetic."""
    name, params = eqn.primitive.name, eqn.params
    lhs, rhs = operands[:2]
    if name == "gather":
        return lookup(lhs, eqn, rhs) if is_compressed(lhs) else NotImplemented
    if is_compressed(lhs) and is_compressed(rhs):
        return NotImplemented
    if name == "dot_general":
        precision, dtype = params["precision"], params["preferred_element_type"]
        out = products.dot(lhs, rhs, params["dimension_numbers"], precision=precision, dtype=dtype)
    else:
        if not is_compressed(rhs):
            return NotImplemented
        out = products.conv(lhs, rhs, params)
    if out is NotImplemented:
        return NotImplemented
    return out.astype(eqn.outvars[0].aval.dtype)


def apply(eqn: Any, operands: Sequence[Any]) -> list[Any] | None:
    """The equation on compressed operands, or None where no algebra exists for it."""
    name = eqn.primitive.name
    if name == "device_put":
        return list(operands)
    if name == "optimization_barrier":
        return list(jax.lax.optimization_barrier(list(operands)))
    entry = PRIMITIVES.get(name)
    out: Result = NotImplemented
    if name in jaxprs.SITE_PRIMITIVES:
        out = site(eqn, operands)
    elif name == "dynamic_slice":
        out = operands[0].dynamic_slice(operands[1:], eqn.params["slice_sizes"]) if is_compressed(operands[0]) else out
    elif entry is not None and entry.joins is not None:
        out = _joined(entry.joins(eqn), operands)
    elif entry is not None and entry.moves is not None and (moves := entry.moves(eqn)) is not None:
        out = _moved(eqn, moves, operands)
    if out is NotImplemented:
        return None
    return list(out) if isinstance(out, list | tuple) else [out]
