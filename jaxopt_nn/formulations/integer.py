"""Integer dots and convolutions: int8 activations times int8 codes, accumulated in int32.

With activation codes ``a`` and scales ``s_a`` (one for each row of the dot), weight codes ``c``, scales ``s_w`` and zero
points ``z`` (constant along what is contracted), the result is

    y[b, o] = s_a[b] s_w[o] (sum_i a[b, i] c[i, o] - z[o] sum_i a[b, i]),

exact in the integers. A scale for each group of the contracted axis gives one such sum for each group.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxopt_nn.numerics import affine
from jaxopt_nn.tensors.qtensor import QTensor

#: Longest contraction whose sum of |a| <= 127 times |c| <= 128 stays inside int32.
LONGEST = 2**17

Dims = tuple[tuple[Sequence[int], Sequence[int]], tuple[Sequence[int], Sequence[int]]]


def row_scale(x: jax.Array, axes: Sequence[int], bits: int = 8) -> jax.Array:
    """``max|x| / qmax`` over ``axes``, float32, kept as axes of length 1; 1 for an all-zero row, NaN for a row with NaN."""
    _, qmax = affine.code_range(bits, signed=True, narrow=True)
    amax = jnp.max(jnp.abs(x.astype(jnp.float32)), axis=tuple(axes), keepdims=True)
    return jnp.where(amax < qmax * affine.SMALLEST_SCALE, 1.0, amax * np.float32(1 / qmax))


def quantize_rows(x: jax.Array, axes: Sequence[int], bits: int = 8) -> tuple[jax.Array, jax.Array]:
    """Symmetric dynamic quantization with one scale for each index over the axes that are *not* in ``axes``.

    Args:
      x: ``[...]``, any float dtype. axes: the axes that share a scale. bits: 2 to 8.

    Returns:
      ``(codes int8, scale float32)``; ``scale`` has length 1 on ``axes``. No code leaves the range, so none is clipped.
    """
    scale = row_scale(x, axes, bits)
    return jnp.round(x.astype(jnp.float32) * (1.0 / scale)).astype(jnp.int8), scale


def _signed(weight: QTensor) -> tuple[jax.Array, jax.Array | None]:
    """The codes as int8 in the weight's axis order, and the zero points that go with them: int32, or float32 fractions."""
    codes, zero = weight.elementwise(), weight.zero
    if zero is not None:
        zero = zero.astype(jnp.int32 if jnp.issubdtype(zero.dtype, jnp.integer) else jnp.float32)
    if codes.dtype == jnp.uint8 and weight.bits == 8:
        codes = (codes.astype(jnp.int16) - 128).astype(jnp.int8)
        zero = (jnp.zeros(weight.scale.shape, jnp.int32) if zero is None else zero) - 128
    return codes.astype(jnp.int8), zero


def _groups(param: jax.Array, contracting: Sequence[int]) -> list[int]:
    return [i for i in contracting if param.shape[i] > 1]


def _to_output(param: jax.Array, side: int, dims: Dims, out_ndim: int) -> jax.Array:
    """Lays a per-operand parameter (length 1 on contracted axes) along the axes of the dot's output."""
    contracting, batch = dims[0][side], dims[1][side]
    free = [i for i in range(param.ndim) if i not in (*contracting, *batch)]
    kept = param.transpose((*batch, *free, *contracting)).reshape([param.shape[i] for i in (*batch, *free)])
    if side == 0:
        return kept.reshape((*kept.shape, *[1] * (out_ndim - kept.ndim)))
    head, tail = kept.shape[: len(batch)], kept.shape[len(batch) :]
    return kept.reshape((*head, *[1] * (out_ndim - kept.ndim), *tail))


def _grouped(x: jax.Array, axis: int, groups: int) -> jax.Array:
    """Splits ``axis`` into (groups, rest) and brings the groups to the front."""
    split = x.reshape((*x.shape[:axis], groups, x.shape[axis] // groups, *x.shape[axis + 1 :]))
    return jnp.moveaxis(split, axis, 0)


def dot(lhs: Any, rhs: Any, dims: Dims, a_bits: int = 8) -> Any:
    """``lax.dot_general`` of an activation and a ``QTensor`` (either side) on integer codes.

    Args:
      lhs, rhs: one float array, one ``QTensor`` of at most 8 bits. dims: as ``lax.dot_general``.
      a_bits: width of the activation's codes.

    Returns:
      float32 output of the dot, or NotImplemented: two contracted axes carry groups, or a batch axis does.
    """
    side = 1 if isinstance(rhs, QTensor) else 0
    weight, x = (rhs, lhs) if side else (lhs, rhs)
    codes, zero = _signed(weight)
    contracting = dims[0][side]
    parts = [weight.scale] if zero is None else [weight.scale, zero]
    grouped = sorted({i for p in parts for i in _groups(p, contracting)})
    if len(grouped) > 1:
        return NotImplemented
    fixed = tuple(tuple(tuple(map(int, axes)) for axes in pair) for pair in dims)
    return _dot(codes, weight.scale, zero, x, fixed, side, a_bits, grouped[0] if grouped else None)


# Compiled as one function, so that a deep model traces it once for each shape.
@functools.partial(jax.jit, static_argnums=(4, 5, 6, 7))
def _dot(
    codes: jax.Array,
    scale: jax.Array,
    zero: jax.Array | None,
    x: jax.Array,
    dims: Any,
    side: int,
    a_bits: int,
    axis: int | None,
) -> jax.Array:
    contracting, other = dims[0][side], dims[0][1 - side]
    x_codes, x_scale = quantize_rows(x, other, a_bits)
    if axis is None:
        return _scaled_dot(codes, scale, zero, x_codes, x_scale, dims, side)
    parts = [scale] if zero is None else [scale, zero]
    count = max(p.shape[axis] for p in parts)
    x_axis = other[list(contracting).index(axis)]
    shift = lambda axes: [i + 1 for i in axes]
    inner: Any = (tuple(map(shift, dims[0])), tuple([0, *shift(b)] for b in dims[1]))
    spread = lambda p: (
        None if p is None else jnp.expand_dims(jnp.moveaxis(_whole_groups(p, axis, count), axis, 0), axis + 1)
    )
    x_scales = jnp.broadcast_to(jnp.expand_dims(x_scale, 0), (count, *x_scale.shape))
    grouped_x = _grouped(x_codes, x_axis, count)
    return _scaled_dot(_grouped(codes, axis, count), spread(scale), spread(zero), grouped_x, x_scales, inner, side).sum(
        0
    )


def _whole_groups(param: jax.Array, axis: int, count: int) -> jax.Array:
    return jnp.repeat(param, count // param.shape[axis], axis=axis)


def _scaled_dot(
    codes: jax.Array,
    scale: Any,
    zero: jax.Array | None,
    x_codes: jax.Array,
    x_scale: jax.Array,
    dims: Dims,
    side: int,
) -> jax.Array:
    target = tuple(n if i not in dims[0][side] else 1 for i, n in enumerate(codes.shape))
    acc = _int_dot(codes, x_codes, dims, side)
    lay = lambda p, at: _to_output(p, at, dims, acc.ndim)
    if zero is not None:
        sums = jnp.sum(x_codes, axis=tuple(dims[0][1 - side]), keepdims=True, dtype=jnp.int32)
        # in int32 a large zero point cancels exactly; the float path is for fractions and for sums beyond int32
        exact = acc.dtype == jnp.int32 and zero.dtype == jnp.int32 and _length(codes, dims, side) <= LONGEST // 2
        kind = jnp.int32 if exact else jnp.float32
        spread = affine.expand_groups(zero.astype(kind), target)
        acc = acc.astype(kind) - lay(sums.astype(kind), 1 - side) * lay(spread, side)
    return acc.astype(jnp.float32) * lay(x_scale, 1 - side) * lay(affine.expand_groups(scale, target), side)


def _length(codes: jax.Array, dims: Dims, side: int) -> int:
    return math.prod(codes.shape[i] for i in dims[0][side])


def _int_dot(codes: jax.Array, x_codes: jax.Array, dims: Dims, side: int) -> jax.Array:
    """The integer sum: int32, or float32 in pieces where the contraction is longer than int32 allows."""
    contracting = dims[0][side]
    length = _length(codes, dims, side)
    lhs, rhs = (x_codes, codes) if side else (codes, x_codes)
    if length <= LONGEST:
        return lax.dot_general(lhs, rhs, dims, preferred_element_type=jnp.int32)
    at = max(range(len(contracting)), key=lambda k: codes.shape[contracting[k]])
    size = codes.shape[contracting[at]]
    step = max(1, LONGEST * size // length)
    total: Any = 0.0
    for i in range(0, size, step):
        part = lambda x, axis, i=i: lax.slice_in_dim(x, i, min(i + step, size), axis=axis)
        left, right = part(lhs, dims[0][0][at]), part(rhs, dims[0][1][at])
        total += lax.dot_general(left, right, dims, preferred_element_type=jnp.int32).astype(jnp.float32)
    return total


def conv(x: Any, kernel: QTensor, params: Any, a_bits: int = 8) -> Any:
    """``lax.conv_general_dilated`` of an activation and a ``QTensor`` kernel on integer codes.

    One activation scale for each example. NotImplemented where the kernel's scale varies along anything but the output
    features, where it has zero points, with ``batch_group_count`` above one, or where the sum could leave int32.
    """
    numbers = params["dimension_numbers"]
    codes, zero = _signed(kernel)
    out_axis = numbers.rhs_spec[0]
    varies = any(n > 1 for i, n in enumerate(kernel.scale.shape) if i != out_axis)
    length = math.prod(codes.shape) // codes.shape[out_axis]
    if zero is not None or varies or params["batch_group_count"] != 1 or length > LONGEST:
        return NotImplemented
    features = [i for i in range(x.ndim) if i != numbers.lhs_spec[0]]
    x_codes, x_scale = quantize_rows(x, features, a_bits)
    kept = {k: v for k, v in params.items() if k not in ("preferred_element_type", "precision")}
    acc = lax.conv_general_dilated(x_codes, codes, **kept, preferred_element_type=jnp.int32).astype(jnp.float32)
    scale = affine.expand_groups(kernel.scale, tuple(n if i == out_axis else 1 for i, n in enumerate(codes.shape)))
    return acc * _along(x_scale, numbers.out_spec[0], acc.ndim) * _along(scale, numbers.out_spec[1], acc.ndim)


def _along(param: jax.Array, axis: int, ndim: int) -> jax.Array:
    return param.reshape([-1 if i == axis else 1 for i in range(ndim)])
