"""From floats or codes to the arrays that a quantized tensor stores."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxopt_nn.numerics import affine, packing
from jaxopt_nn.tensors import layout


def checked(
    shape: tuple[int, ...],
    scale: ArrayLike,
    zero: ArrayLike | None,
    bits: int,
    signed: bool,
    stack: Sequence[int],
    axis: int | None,
    name: str,
) -> tuple[Array, Array | None, int | None]:
    """Scale and zero as they are stored, each with an entry for every layer of a stack, and the axis to pack.

    Raises:
      ValueError: as in ``QTensor.quantize``.
    """
    if isinstance(bits, bool) or bits not in range(1, 9):
        raise ValueError(f"{name}: bits={bits}; codes have 1 to 8 bits")
    if 0 in shape:
        raise ValueError(f"{name}: shape {shape} holds no entry; leave the leaf as it is")
    stack = layout.axes_from_start(stack, len(shape), f"{name}: stack")
    given = () if axis is None else layout.axes_from_start((axis,), len(shape), f"{name}: axis")
    axis = given[0] if given else layout.packing_axis(shape, bits, stack)
    if axis in stack:
        raise ValueError(f"{name}: axis {axis} is a stack axis, which scan or vmap slices; pack along another")

    def fitted(param: Array, label: str) -> Array:
        affine.check_groups(param.shape, shape, f"{name}: {label}")
        full = tuple(n if a in stack else d for a, (d, n) in enumerate(zip(param.shape, shape)))
        return param if full == param.shape else affine.expand_groups(param, full)

    scale = jnp.asarray(scale)
    scale = fitted(scale if scale.dtype == jnp.bfloat16 else scale.astype(jnp.float32), "scale")
    zero = None if zero is None else fitted(_compact(jnp.asarray(zero), bits, signed), "zero")
    return scale, zero, None if bits == 8 else axis


def check_codes(codes: Array, least: int, most: int, where: str, name: str) -> None:
    """Raises TypeError where codes are not whole, ValueError where one is not within the bounds; a trace hides them.

    Such a code would change those that are packed with it.
    """
    low, high, whole = _measured(codes)
    if isinstance(low, jax.core.Tracer):
        return
    if not whole:
        raise TypeError(f"{name}: the codes are {codes.dtype}, not all of them whole; pass integers from {least} to {most}")
    if low < least or high > most:
        raise ValueError(
            f"{name}: the code {int(low if low < least else high)} has no value in {where}; allowed are {least} to {most}: "
            "give each code one"
        )


@jax.jit
def _measured(codes: Array) -> tuple[Array, Array, Array]:
    """The least and the largest code, and whether all are whole numbers."""
    real = jnp.issubdtype(codes.dtype, jnp.floating)
    whole = jnp.all(jnp.isfinite(codes) & (codes == jnp.round(codes))) if real else jnp.array(True)
    return jnp.min(codes), jnp.max(codes), whole


def _compact(zero: Array, bits: int, signed: bool) -> Array:
    """Zero points that are codes in a byte each; others (the half of one bit) in float32."""
    kind = jnp.int8 if signed else jnp.uint8
    if jnp.issubdtype(zero.dtype, jnp.integer):
        return zero.astype(kind)
    if not isinstance(zero, jax.core.Tracer):
        qmin, qmax = affine.code_range(bits, signed)
        value = np.asarray(zero, np.float32)
        if np.all((value == np.round(value)) & (value >= qmin) & (value <= qmax)):
            return jnp.asarray(value.astype(kind))
    return zero.astype(jnp.float32)


@partial(jax.jit, static_argnums=(3, 4, 5, 6))
def rounded(
    x: Array, scale: Array, zero: Array | None, bits: int, signed: bool, narrow: bool, axis: int | None
) -> Array:
    """``affine.quantize`` and ``stored`` in one program."""
    return stored(affine.quantize(x, scale, zero, *affine.code_range(bits, signed, narrow)), bits, signed, axis)


@partial(jax.jit, static_argnums=(1, 2, 3))
def stored(codes: Array, bits: int, signed: bool, axis: int | None) -> Array:
    """Codes, less the smallest of their range, packed along ``axis``; as plain int8 or uint8 if that is None."""
    if axis is None:
        return codes.astype(jnp.int8 if signed else jnp.uint8)
    qmin, _ = affine.code_range(bits, signed)
    return packing.pack_bits((codes.astype(jnp.int32) - qmin).astype(jnp.uint8), bits, axis)


def signed_codes(codes: Array, bits: int, signed: bool) -> Array:
    """Unpacked bytes as the codes that they stand for: int8 if signed, else uint8."""
    qmin, _ = affine.code_range(bits, signed)
    return codes.astype(jnp.int8) + np.int8(qmin) if signed else codes
