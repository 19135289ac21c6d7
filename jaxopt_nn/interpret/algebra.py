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


def _split(t: Any, params: Any, rest: Sequence[Any], aval: Any) -> Result:
    return t.split(params["sizes"], params["axis"])


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
    "reshape": _to_shape,
    "squeeze": _to_shape,
    "broadcast_in_dim": _broadcast_in_dim,
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "split": _split,
    "sharding_constraint": _sharding_constraint,
    "stop_gradient": _same,
    "copy": _same,
    "copy_p": _same,
}


def lookup(table: Any, eqn: Any, indices: Any) -> Result:
    """``gather`` as rows taken along one axis (``jnp.take``, ``table[i]``); NotImplemented for other gathers."""
    params, shape = eqn.params, eqn.invars[0].aval.shape
    numbers = params["dimension_numbers"]
    if len(numbers.start_index_map) != 1 or numbers.operand_batching_dims:
        return NotImplemented
    (axis,) = numbers.start_index_map
    whole = all(n == (1 if i == axis else shape[i]) for i, n in enumerate(params["slice_sizes"]))
    if numbers.collapsed_slice_dims != (axis,) or not whole:
        return NotImplemented
    ids = indices[..., 0]
    if params["mode"] == jax.lax.GatherScatterMode.FILL_OR_DROP:
        return NotImplemented if _fills(params) else _taken(table, ids, axis, numbers, eqn, fill=True)
    return _taken(table, ids, axis, numbers, eqn, fill=False)


def _fills(params: Any) -> bool:
    """Whether out-of-range rows are filled with anything but the default, NaN."""
    return params["fill_value"] is not None and params["fill_value"] == params["fill_value"]


def _taken(table: Any, ids: Any, axis: int, numbers: Any, eqn: Any, fill: bool) -> Result:
    last = table.shape[axis] - 1
    rows = products.take(table, jnp.clip(ids, 0, last), axis)
    if rows is NotImplemented:
        return NotImplemented
    if tags.one_slice(eqn) and not fill:
        return rows.transpose(_placed(axis, ids.ndim, rows.ndim, numbers)) if is_compressed(rows) else rows
    rows = rows.densify() if is_compressed(rows) else rows
    if fill:
        known = jnp.expand_dims((ids >= 0) & (ids <= last), tuple(range(ids.ndim, rows.ndim)))
        known = jnp.moveaxis(known, tuple(range(ids.ndim)), tuple(range(axis, axis + ids.ndim)))
        rows = jnp.where(known, rows, jnp.asarray(jnp.nan, rows.dtype))
    return rows.transpose(_placed(axis, ids.ndim, rows.ndim, numbers))


def _placed(axis: int, n_ids: int, ndim: int, numbers: Any) -> tuple[int, ...]:
    """The permutation from (…, ids at ``axis``, …) to the gather's order (slices at its offset dimensions)."""
    slices = iter([i for i in range(ndim) if not axis <= i < axis + n_ids])
    batch = iter(range(axis, axis + n_ids))
    return tuple(next(slices) if i in numbers.offset_dims else next(batch) for i in range(ndim))


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
