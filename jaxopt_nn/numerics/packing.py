"""Codes of 1 to 8 bits as one dense stream of bits along an axis, in bytes.

Code ``i`` takes the bits ``[i * bits, (i + 1) * bits)`` of the stream, least significant first, and so does bit ``j``
of byte ``k`` the place ``8 * k + j``: ``numpy.packbits(bitorder="little")`` for one bit. The period in which codes and
bytes come out even is 8, 4, 2 or 1 codes; within it every shift is static, so packing and unpacking are reshapes and
elementwise operations, which fuse.
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike


def packed_length(n: int, bits: int) -> int:
    """The bytes that ``n`` codes take."""
    return -(-n * bits // 8)


@partial(jax.jit, static_argnums=(1, 2))
def pack_bits(codes: Array, bits: int, axis: int) -> Array:
    """Packs unsigned codes below ``2**bits`` along ``axis``.

    Args:
      codes: integers, ``n`` along the axis; higher bits must be 0.
      bits: width of a code, 1 to 8.
      axis: the axis that becomes ``ceil(n * bits / 8)`` bytes.

    Returns:
      uint8.
    """
    _check_width(bits)
    codes, axis = codes.astype(jnp.uint8), axis % codes.ndim
    if bits == 8:
        return codes
    n = codes.shape[axis]
    count, width = _period(bits)
    parts = _split(_pad_to_multiple(codes, axis, count), axis, count)
    part = [lax.index_in_dim(parts, k, axis + 1, keepdims=False) for k in range(count)]
    columns = []
    for byte in range(width):
        offsets = [(k, k * bits - 8 * byte) for k in range(count)]
        pieces = [_shift(part[k], by) for k, by in offsets if -bits < by < 8]
        columns.append(_any_bit(pieces))
    packed = _join(jnp.stack(columns, axis + 1), axis)
    return lax.slice_in_dim(packed, 0, packed_length(n, bits), axis=axis)


def pack_bits_on_host(codes: np.ndarray, bits: int, axis: int = -1) -> np.ndarray:
    """``pack_bits`` by NumPy: where each array has a length of its own, compiling would take longer."""
    _check_width(bits)
    codes, axis = np.asarray(codes, np.uint8), axis % codes.ndim
    if bits == 8:
        return codes
    if bits in (2, 4):
        count = 8 // bits
        missing = -codes.shape[axis] % count
        if missing:
            codes = np.pad(codes, [(0, missing if a == axis else 0) for a in range(codes.ndim)])
        packed = codes[_every(axis, 0, count)].copy()
        for k in range(1, count):
            packed |= codes[_every(axis, k, count)] << np.uint8(k * bits)
        return packed
    if bits == 1:
        return np.packbits(codes, axis=axis, bitorder="little")
    last = np.moveaxis(codes, axis, -1)
    lines = np.unpackbits(np.ascontiguousarray(last)[..., None], axis=-1, bitorder="little")[..., :bits]
    packed = np.packbits(lines.reshape(*last.shape[:-1], last.shape[-1] * bits), axis=-1, bitorder="little")
    return np.ascontiguousarray(np.moveaxis(packed, -1, axis))


def unpack_bits_on_host(packed: np.ndarray, bits: int, n: int, axis: int = -1) -> np.ndarray:
    """``unpack_bits`` by NumPy: the ``n`` codes along ``axis``, uint8."""
    _check_width(bits)
    packed, axis = np.asarray(packed, np.uint8), axis % packed.ndim
    if bits == 8:
        return packed
    if bits in (2, 4):
        count = 8 // bits
        codes = np.empty((*packed.shape[:axis], packed.shape[axis] * count, *packed.shape[axis + 1 :]), np.uint8)
        for k in range(count):
            codes[_every(axis, k, count)] = (packed >> np.uint8(k * bits)) & np.uint8(2**bits - 1)
        return codes[(slice(None),) * axis + (slice(0, n),)]
    if bits == 1:
        return np.unpackbits(packed, axis=axis, count=n, bitorder="little")
    last = np.ascontiguousarray(np.moveaxis(packed, axis, -1))
    lines = np.unpackbits(last, axis=-1, count=n * bits, bitorder="little").reshape(*last.shape[:-1], n, bits)
    return np.moveaxis(np.packbits(lines, axis=-1, bitorder="little")[..., 0], -1, axis)


def _every(axis: int, first: int, count: int) -> tuple[slice, ...]:
    """The entries ``first, first + count, ...`` of an axis."""
    return (slice(None),) * axis + (slice(first, None, count),)


@partial(jax.jit, static_argnums=(1, 2, 3))
def unpack_bits(packed: Array, bits: int, n: int, axis: int) -> Array:
    """The ``n`` codes that ``pack_bits`` packed along ``axis``, uint8."""
    _check_width(bits)
    axis = axis % packed.ndim
    if bits == 8:
        return packed
    count, width = _period(bits)
    parts = _split(_pad_to_multiple(packed, axis, width), axis, width)
    part = [lax.index_in_dim(parts, k, axis + 1, keepdims=False).astype(jnp.uint32) for k in range(width)]
    # Codes are read off 32-bit words: the whole period where it fits, else (5 and 7 bits) half of it.
    words = 1 if 8 * width <= 32 else 2
    per_word = count // words
    columns = []
    for word in range(words):
        first = word * per_word * bits
        inside = range(first // 8, packed_length(first + per_word * bits, 1))
        columns.append(_any_bit([_shift(part[byte], 8 * byte - first) for byte in inside]))
    stacked = jnp.stack(columns, axis + 1)
    shifts = np.arange(per_word, dtype=np.uint32) * np.uint32(bits)
    shifts = shifts.reshape((1,) * (axis + 2) + (per_word,) + (1,) * (packed.ndim - axis - 1))
    codes = (jnp.expand_dims(stacked, axis + 2) >> shifts) & np.uint32(2**bits - 1)
    codes = _join(_join(codes.astype(jnp.uint8), axis + 1), axis)
    return lax.slice_in_dim(codes, 0, n, axis=axis)


def take_bits(packed: Array, bits: int, indices: ArrayLike, axis: int) -> Array:
    """The codes at ``indices`` of the packed axis, read without unpacking the rest.

    Args:
      indices: integers within the axis, of any shape.

    Returns:
      uint8 of shape ``packed.shape[:axis] + indices.shape + packed.shape[axis + 1:]``.
    """
    _check_width(bits)
    axis, indices = axis % packed.ndim, jnp.asarray(indices)
    first = indices.astype(jnp.int32) * bits
    low = jnp.take(packed, first // 8, axis=axis, mode="clip").astype(jnp.uint16)
    # Past the end this is the last byte again, but then the code lies in the low byte alone.
    high = jnp.take(packed, first // 8 + 1, axis=axis, mode="clip").astype(jnp.uint16)
    shift = (first % 8).astype(jnp.uint16)
    shift = shift.reshape((1,) * axis + shift.shape + (1,) * (packed.ndim - axis - 1))
    codes = ((low | (high << np.uint16(8))) >> shift) & np.uint16(2**bits - 1)
    return codes.astype(jnp.uint8)


def _check_width(bits: int) -> None:
    if not 1 <= bits <= 8:
        raise ValueError(f"bits={bits}: packed codes have 1 to 8 bits")


def _period(bits: int) -> tuple[int, int]:
    """Codes and bytes of the shortest stretch that both divide."""
    stretch = math.lcm(bits, 8)
    return stretch // bits, stretch // 8


def _pad_to_multiple(x: Array, axis: int, count: int) -> Array:
    missing = -x.shape[axis] % count
    if missing == 0:
        return x
    return jnp.pad(x, [(0, missing if a == axis else 0) for a in range(x.ndim)])


def _split(x: Array, axis: int, count: int) -> Array:
    return x.reshape(x.shape[:axis] + (x.shape[axis] // count, count) + x.shape[axis + 1 :])


def _join(x: Array, axis: int) -> Array:
    return x.reshape(x.shape[:axis] + (x.shape[axis] * x.shape[axis + 1],) + x.shape[axis + 2 :])


def _shift(x: Array, by: int) -> Array:
    return x << np.array(by, x.dtype) if by >= 0 else x >> np.array(-by, x.dtype)


def _any_bit(pieces: list[Array]) -> Array:
    total = pieces[0]
    for piece in pieces[1:]:
        total = total | piece
    return total
