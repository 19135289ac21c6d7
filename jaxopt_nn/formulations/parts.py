"""Products with tensors that are made of others, part by part: each says itself how (``dot_general``, ``conv``)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from jaxopt_nn.formulations import table
from jaxopt_nn.formulations.labels import counted
from jaxopt_nn.tensors.base import is_compressed

#: What a report calls the programs.
THROUGH, WRITTEN, EXPANDED = "part by part", "float, parts multiplied first", "float, expanded"


def are_in(x: Any) -> bool:
    """Whether a compressed tensor is made of parts."""
    return x.map_parts(lambda part: part) is not NotImplemented


def dot(weight: Any, other: Array, dims: Any, side: int, precision: Any, dtype: Any, of_codes: Callable[..., Any]) -> Array:
    """``lax.dot_general`` of an array and a tensor made of parts, which is operand ``side``.

    Args:
      dtype: of the result. Between two factors values have the array's dtype, and are summed in float32 or wider.
      of_codes: the product of an array and a tensor of codes.
    """
    multiply = partial(_multiplied, of_codes=of_codes, precision=precision)
    spent: list[int] = []

    def product(x: Array, part: Any, own: Any, last: bool) -> Array:
        pair = (x, part) if own is not None or side else (part, x)
        kind = dtype if last else jnp.promote_types(other.dtype, jnp.float32)
        summed = dims[0][1 - side] if own is None else own[0][0]
        return _counted(spent, lambda: multiply(pair[0], pair[1], own or dims, kind), x, summed, other.dtype, last)

    kept = set(range(other.ndim)) - {a for pair in dims for a in pair[1 - side]}
    rows = counted(math.prod(other.shape[a] for a in kept))
    out = weight.dot_general(other, dims, side, product)
    if out is NotImplemented:
        table.tell(weight, WRITTEN, rows)
        left, right = (other, weight.densify()) if side else (weight.densify(), other)
        return multiply(left, right, dims, dtype)
    _tell(weight, rows, sum(spent), out, math.prod(other.shape[a] for a in dims[0][1 - side]))
    return out


def conv(lhs: Array, kernel: Any, params: Mapping[str, Any], dtype: Any, of_codes: Callable[..., Any]) -> Array:
    """``lax.conv_general_dilated`` of an array and a kernel made of parts; arguments as of ``dot``."""
    spent: list[int] = []

    def product(x: Array, part: Any, own: Mapping[str, Any], last: bool) -> Array:
        kind = dtype if last else jnp.promote_types(lhs.dtype, jnp.float32)
        made = lambda: _convolved(x, part, {**params, **own}, kind, of_codes)
        return _counted(spent, made, part, _summed(part, params), lhs.dtype, last)

    rows = counted(lhs.shape[params["dimension_numbers"].lhs_spec[0]])
    out = kernel.conv(lhs, params, product)
    if out is NotImplemented:
        table.tell(kernel, WRITTEN, rows)
        return _convolved(lhs, kernel.densify(), params, dtype, of_codes)
    _tell(kernel, rows, sum(spent), out, math.prod(kernel.shape[a] for a in _summed(kernel, params)))
    return out


def _summed(kernel: Any, params: Mapping[str, Any]) -> list[int]:
    """The axes of a kernel that each entry of the result is a sum over."""
    features = params["dimension_numbers"].rhs_spec[0]
    return [a for a in range(len(kernel.shape)) if a != features]


def _counted(spent: list[int], run: Callable[[], Array], operand: Any, summed: Any, dtype: Any, last: bool) -> Array:
    """What ``run`` gives, of ``dtype`` where another product follows; its multiply-accumulates go to ``spent``."""
    with table.choices() as inside:
        out = run()
    table.spread(inside)
    own = math.prod(counted(n) for n in out.shape) * math.prod(counted(operand.shape[a]) for a in summed)
    share = next((choice.macs for choice in reversed(inside) if choice.macs is not None), 1.0)
    spent.append(round(own * share))
    return out if last else out.astype(dtype)


def _tell(weight: Any, rows: int, spent: int, out: Array, summed: Any) -> None:
    dense = math.prod(map(counted, out.shape)) * counted(summed)
    table.tell(weight, THROUGH, rows, spent / max(dense, 1))


def _multiplied(
    left: Any, right: Any, dims: Any, dtype: Any, *, of_codes: Callable[..., Any], precision: Any
) -> Array:
    """A dot of two operands, of which one may be compressed."""
    kind = next(x.dtype for x in (left, right) if not is_compressed(x))
    if any(map(is_compressed, (left, right))):
        out = of_codes(left, right, dims, precision=precision, dtype=dtype)
        if out is not NotImplemented:
            return out
        left, right = (_expanded(x) for x in (left, right))
    return lax.dot_general(left.astype(kind), right.astype(kind), dims, precision=precision, preferred_element_type=dtype)


def _convolved(lhs: Array, kernel: Any, params: Mapping[str, Any], dtype: Any, of_codes: Callable[..., Any]) -> Array:
    if is_compressed(kernel):
        out = of_codes(lhs, kernel, params, dtype=dtype)
        if out is not NotImplemented:
            return out
        kernel = _expanded(kernel)
    return lax.conv_general_dilated(lhs, kernel.astype(lhs.dtype), **{**params, "preferred_element_type": dtype})


def _expanded(x: Any) -> Any:
    """A part as floats; whoever listens is told."""
    if not is_compressed(x):
        return x
    table.tell(x, EXPANDED, 1)
    return x.densify()
