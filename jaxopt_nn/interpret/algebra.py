"""Layout operations and sites on compressed tensors: each primitive in terms of the tensors' own algebra."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_nn.formulations import products
from jaxopt_nn.interpret import jaxprs, tags
from jaxopt_nn.tensors.base import is_compressed

Result = Any  # an array, a compressed tensor, a list of these, or NotImplemented


def _cast(t: Any, params: Any, rest: Sequence[Any], aval: Any) -> Result:
    return t.cast(params["new_dtype"]) if jnp.issubdtype(params["new_dtype"], jnp.floating) else NotImplemented


def _transpose(t: Any, params: Any, rest: Sequence[Any], aval: Any) -> Result:
    return t.transpose(params["permutation"])


def _to_shape(t: Any, params: Any, rest: Sequence[Any], aval: Any) -> Result:
    return t.reshape(aval.shape)


def _reshape(t: Any, params: Any, rest: Sequence[Any], aval: Any) -> Result:
    if params["dimensions"] is not None:  # the operand's axes are read in another order
        t = t.transpose(params["dimensions"])
    return NotImplemented if t is NotImplemented else t.reshape(aval.shape)


def _broadcast_in_dim(t: Any, params: Any, rest: Sequence[Any], aval: Any) -> Result:
    """Only unit axes are added, in order: then it is a reshape."""
    dims = params["broadcast_dimensions"]
    grown = any(n != 1 for i, n in enumerate(aval.shape) if i not in dims)
    if rest or grown or any(t.shape[i] != aval.shape[d] for i, d in enumerate(dims)):
        return NotImplemented
    return t.reshape(aval.shape)


def _slice(t: Any, params: Any, rest: Sequence[Any], aval: Any) -> Result:
    return t.slice(params["start_indices"], params["limit_indices"], params["strides"])


def _dynamic_slice(t: Any, params: Any, rest: Sequence[Any], aval: Any) -> Result:
    return t.dynamic_slice(rest, params["slice_sizes"])


def _rev(t: Any, params: Any, rest: Sequence[Any], aval: Any) -> Result:
    return t.rev(params["dimensions"])


def _split(t: Any, params: Any, rest: Sequence[Any], aval: Any) -> Result:
    return t.split(params["sizes"], params["axis"])


def _unstack(t: Any, params: Any, rest: Sequence[Any], aval: Any) -> Result:
    parts = t.split((1,) * t.shape[params["axis"]], params["axis"])
    whole = [] if parts is NotImplemented else [part.reshape(aval.shape) for part in parts]
    return whole if whole and not any(part is NotImplemented for part in whole) else NotImplemented


def _stack(tensors: Sequence[Any], axis: int) -> Result:
    shape = tensors[0].shape
    first, *others = [t.reshape((*shape[:axis], 1, *shape[axis:])) for t in tensors]
    if any(t is NotImplemented for t in (first, *others)) or not is_compressed(first):
        return NotImplemented
    return first.concatenate(others, axis)


def _sharding_constraint(t: Any, params: Any, rest: Sequence[Any], aval: Any) -> Result:
    sharding = params["sharding"]
    if not isinstance(sharding, jax.sharding.NamedSharding):
        return NotImplemented
    specs = t.spec(sharding.spec, sharding.mesh)
    if specs is NotImplemented:
        return NotImplemented
    place = lambda x, s: jax.lax.with_sharding_constraint(x, jax.sharding.NamedSharding(sharding.mesh, s))
    return jax.tree.map(place, t, specs)


def _same(t: Any, params: Any, rest: Sequence[Any], aval: Any) -> Result:
    return t


LAYOUT: dict[str, Callable[..., Result]] = {
    "convert_element_type": _cast,
    "transpose": _transpose,
    "reshape": _reshape,
    "squeeze": _to_shape,
    "broadcast_in_dim": _broadcast_in_dim,
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "rev": _rev,
    "split": _split,
    "unstack": _unstack,
    "sharding_constraint": _sharding_constraint,
    "stop_gradient": _same,
    "copy": _same,
    "copy_p": _same,
}


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
    if name in jaxprs.SITE_PRIMITIVES:
        out = site(eqn, operands)
    elif name == "concatenate":
        first, *others = operands
        out = first.concatenate(others, eqn.params["dimension"]) if is_compressed(first) else NotImplemented
    elif name == "stack":
        out = _stack(operands, eqn.params["axis"])
    elif name == "optimization_barrier":
        return list(jax.lax.optimization_barrier(list(operands)))
    elif name == "device_put":
        return list(operands)
    elif name in LAYOUT and is_compressed(operands[0]):
        out = LAYOUT[name](operands[0], eqn.params, operands[1:], eqn.outvars[0].aval)
    else:
        return None
    if out is NotImplemented:
        return None
    return list(out) if isinstance(out, list | tuple) else [out]
