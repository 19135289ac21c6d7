"""A dot or convolution with a compressed tensor: the program that the table chooses for the tensor and the arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import lax

from jaxopt_nn.formulations import integer, parts, table, tpu, weight_only
from jaxopt_nn.formulations.labels import Call, counted
from jaxopt_nn.tensors.base import is_compressed
from jaxopt_nn.tensors.coded import Coded


def dot(
    lhs: Any, rhs: Any, dims: Any, *, activations: int = 32, precision: Any = None, dtype: Any = None, scale: Any = None
) -> Any:
    """``lax.dot_general`` of an array and a compressed tensor, on either side.

    Args:
      dims: as ``lax.dot_general``.
      activations: 32: as they come. 16: they may be rounded to 16 bits, bfloat16 or whole numbers with one scale a row.
        2 to 8: quantized as they come, one symmetric scale a row.
      dtype: of the result; that of the dense dot if None.
      scale: float32 scalar, that of all activations of 2 to 8 bits, in the place of one a row; larger ones saturate.

    Returns:
      an array, or NotImplemented: the tensor has no codes and is not made of parts, or it is and the activations should be
      rounded; or the array is no real float.
    """
    side = 1 if is_compressed(rhs) else 0
    weight, other = (rhs, lhs) if side else (lhs, rhs)
    if is_compressed(other) or other.dtype not in weight_only.FLOATS:
        return NotImplemented
    dims = tuple(tuple(tuple(map(int, axes)) for axes in pair) for pair in dims)
    kind = jnp.dtype(dtype or jnp.result_type(other.dtype, weight.dtype)).name
    if parts.are_in(weight):
        return parts.dot(weight, other, dims, side, precision, kind, dot) if activations == 32 else NotImplemented
    weight = weight.coded()
    if weight is None:
        return NotImplemented
    call = Call(dims, side, precision, kind if scale is None else "float32", activations)
    if scale is None:
        return table.choose(weight, other, call).run(weight, other, call)
    codes = integer.fixed_codes(other, scale, activations)
    return (table.choose(weight, codes, call).run(weight, codes, call) * scale).astype(kind)


def conv(
    lhs: Any, rhs: Any, params: Mapping[str, Any], *, activations: int = 32, dtype: Any = None, scale: Any = None
) -> Any:
    """``lax.conv_general_dilated`` of an array and a compressed kernel; ``activations`` as for ``dot``, one scale an example.

    ``scale``: as for ``dot``, that of all examples.

    Returns:
      an array, or NotImplemented: the kernel has no codes and is not made of parts, its scale varies along another axis than
      the output features, or the asked arithmetic has no program (see ``integer.conv``).
    """
    if not is_compressed(rhs) or is_compressed(lhs) or lhs.dtype not in weight_only.FLOATS:
        return NotImplemented
    dtype = dtype or params.get("preferred_element_type") or jnp.result_type(lhs.dtype, rhs.dtype)
    if parts.are_in(rhs):
        return parts.conv(lhs, rhs, params, dtype, conv) if activations == 32 else NotImplemented
    kernel = rhs.coded()
    if kernel is None:
        return NotImplemented
    numbers = lax.conv_dimension_numbers(lhs.shape, kernel.shape, params.get("dimension_numbers"))
    batch = counted(lhs.shape[numbers.lhs_spec[0]])
    if activations <= 8:
        table.note(
            kernel, "integer convolution" if kernel.integral else "float on rounded activations", batch, activations
        )
        codes = lhs if scale is None else integer.fixed_codes(lhs, scale, activations)
        out = integer.conv(kernel, codes, params, activations)
        return out if out is NotImplemented else (out if scale is None else out * scale).astype(dtype)
    table.note(kernel, "float convolution" if kernel.integral else "float, decoded", batch, activations)
    return weight_only.conv(kernel, lhs, params, dtype)


def take(tensor: Any, indices: Any, axis: int) -> Any:
    """The entries ``indices`` of an axis of a compressed tensor, by the program of the backend it is prepared for.

    Returns:
      as ``tensor.take``: a compressed tensor or an array, or NotImplemented.
    """
    if isinstance(tensor, Coded) and tensor.platform == "tpu":
        return tpu.take(tensor, indices, axis)
    return tensor.take(indices, axis)
