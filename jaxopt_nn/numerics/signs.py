"""Signs, one bit each: packed into words, and their product by exclusive or and population count.

A sign is +1 or -1, and that of 0 is +1; its bit is 1 for +1. Of two rows of ``n`` signs

    sum_i x_i w_i = n - 2 popcount(x ^ w)

(Rastegari et al. 2016, section 3), exact in the integers. Words hold 32 signs, the first in the lowest bit.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

#: Signs of a word.
WORD = 32


def positive(x: Array) -> Array:
    """Whether the sign is +1, bool: that of 0 is, and that of NaN is not."""
    return x >= 0


def signs(bits: Array, dtype: DTypeLike = jnp.int8) -> Array:
    """+1 where ``bits`` are set, else -1."""
    return jnp.where(bits.astype(bool), jnp.ones((), dtype), -jnp.ones((), dtype))


@jax.custom_jvp
def straight_through(x: Array) -> Array:
    """The signs of floats, in their dtype; the derivative is 1 where ``|x| <= 1`` and 0 elsewhere (Rastegari et al., 2.1)."""
    return signs(positive(x), x.dtype)


@straight_through.defjvp
def _straight_through_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (slope,) = primals, tangents
    return straight_through(x), jnp.where(jnp.abs(x) <= 1, slope, jnp.zeros_like(slope))


@partial(jax.jit, static_argnums=1)
def pack_words(bits: Array, axis: int) -> Array:
    """The bits along ``axis``, ``n`` of them, as ``ceil(n / 32)`` words, uint32; what is left of the last one is 0."""
    axis = axis % bits.ndim
    parts = _split(bits, axis, WORD).astype(jnp.uint32)
    return jnp.sum(parts << _along(axis + 1, parts.ndim), axis + 1, dtype=jnp.uint32)


@partial(jax.jit, static_argnums=(1, 2))
def unpack_words(words: Array, n: int, axis: int) -> Array:
    """The first ``n`` bits of the words along ``axis``, bool."""
    axis = axis % words.ndim
    bits = (jnp.expand_dims(words, axis + 1) >> _along(axis + 1, words.ndim + 1)) & np.uint32(1)
    shape = (*words.shape[:axis], words.shape[axis] * WORD, *words.shape[axis + 1 :])
    return lax.slice_in_dim(bits.reshape(shape) == 1, 0, n, axis=axis)


@partial(jax.jit, static_argnums=1)
def words_of_bytes(packed: Array, axis: int) -> Array:
    """Words of what ``packing.pack_bits`` packed along ``axis`` at one bit each, uint8."""
    axis = axis % packed.ndim
    parts = _split(packed, axis, 4).astype(jnp.uint32)
    return jnp.sum(parts << (np.uint32(8) * _along(axis + 1, parts.ndim, 4)), axis + 1, dtype=jnp.uint32)


@jax.jit
def product(x: Array, w: Array, length: ArrayLike, mask: Array | None = None) -> Array:
    """The products of rows of signs with columns of signs.

    One word of all rows and columns at a time, so that the sums stay in the cache and whole vectors of words are counted:
    XLA on CPU joins neither the counts of several words nor a reduction over them.

    Args:
      x: uint32 ``[K, B, M]``, the words of ``M`` rows. w: uint32 ``[K, B, N]``, those of ``N`` columns.
      length: signs of a row, int or int32 ``[M]``; bits beyond them must be equal in ``x`` and ``w``.
      mask: None, or uint32 ``[K, 1, M]``: bits that are 0 in it are no signs, and don't count.

    Returns:
      int32 ``[B, M, N]``.
    """
    kept = None if mask is None else jnp.broadcast_to(mask, (len(x), 1, x.shape[2]))

    def add(total: Array, words: tuple[Array, Array, Array | None]) -> tuple[Array, None]:
        rows, columns, some = words
        differ = rows[:, :, None] ^ columns[:, None, :]
        differ = differ if some is None else differ & some[:, :, None]
        return total + lax.population_count(differ).astype(jnp.int32), None

    none = jnp.zeros((x.shape[1], x.shape[2], w.shape[2]), jnp.int32)
    apart = lax.scan(add, none, (x, w, kept))[0]
    lengths = jnp.asarray(length, jnp.int32)
    return (lengths[None, :, None] if lengths.ndim else lengths) - 2 * apart


def _split(x: Array, axis: int, size: int) -> Array:
    """The axis as [runs, entries of a run], the last run filled up with zeros."""
    missing = -x.shape[axis] % size
    full = jnp.pad(x, [(0, missing if a == axis else 0) for a in range(x.ndim)]) if missing else x
    return full.reshape(*x.shape[:axis], full.shape[axis] // size, size, *x.shape[axis + 1 :])


def _along(axis: int, ndim: int, size: int = WORD) -> np.ndarray:
    """0, 1, 2, ... along an axis."""
    return np.arange(size, dtype=np.uint32).reshape([-1 if a == axis else 1 for a in range(ndim)])
