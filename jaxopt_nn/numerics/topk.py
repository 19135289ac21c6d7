"""Exact selection of the largest entries, without a sort."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

#: Where 0.0 stands in the order of ``_ordered``.
_ZERO = np.uint32(0x80000000)


@jax.jit
def keep_largest(scores: Array, k: ArrayLike) -> Array:
    """A mask with exactly ``k`` True, at the ``k`` largest scores; among equals the earliest in flat order.

    A threshold is searched on the integers that order as the floats do, with one counting pass over the scores a step:
    by interpolation between the counts at both ends of the bracket and by halving it, in turn, some 10 to 25 passes and 64
    at the most. Only where the threshold has more ties than places some more place the cut among them.

    Args:
      scores: floats of any rank, 32 bits or fewer; -0.0 equals 0.0; NaN counts as less than every number.
      k: an integer, static or traced; below 0 counts as 0, above the size as the size.

    Returns:
      bool of scores' shape.

    Raises:
      TypeError: scores that are not floats of at most 32 bits.
    """
    order = _ordered(scores)
    k = jnp.clip(jnp.asarray(k, jnp.int32), 0, scores.size)
    low, kept = _threshold(order, k)

    def cut_among_ties() -> Array:
        above, ties = order > low, order == low
        return above | (ties & _first(ties, k - _count(above)))

    return lax.cond(kept == k, lambda: order >= low, cut_among_ties)


def on_host(*arrays: Any) -> bool:
    """Whether all lie in the memory of one CPU device, their values known: then NumPy selects faster and compiles nothing.
    """
    return all(
        isinstance(x, int | np.ndarray | np.generic)
        or (
            isinstance(x, jax.Array)
            and not isinstance(x, jax.core.Tracer)
            and x.is_fully_addressable
            and len(x.devices()) == 1
            and next(iter(x.devices())).platform == "cpu"
        )
        for x in arrays
    )


def keep_largest_on_host(scores: Sequence[np.ndarray], k: int) -> list[np.ndarray]:
    """``keep_largest`` of several arrays as one, by NumPy's partition: the mask of each."""
    flat = np.concatenate([np.asarray(x, np.float32).reshape(-1) for x in scores])
    k = min(max(int(k), 0), flat.size)
    if k in (0, flat.size):
        return [np.full(x.shape, k > 0) for x in scores]
    if np.isnan(flat.max()):
        scores = [np.asarray(_ordered(jnp.asarray(x))) for x in scores]
        flat = np.concatenate([x.reshape(-1) for x in scores])
    flat.partition(flat.size - k)
    least = flat[flat.size - k]
    masks = [x >= least for x in scores]
    beyond = sum(map(np.count_nonzero, masks)) - k
    for x, mask in zip(reversed(scores), reversed(masks)):  # more ties than places: the last ones go
        if beyond > 0:
            gone = np.flatnonzero(x == least)[-beyond:]
            mask.reshape(-1)[gone] = False
            beyond -= gone.size
    return masks


def _threshold(order: Array, k: Array) -> tuple[Array, Array]:
    """``(low, kept)``: ``kept`` entries are ``low`` or more; it is ``k``, or no larger threshold keeps ``k`` or more."""
    size = jnp.asarray(order.size, jnp.int32)
    beyond = jnp.max(order, initial=0) + np.uint32(1)
    # The bracket: at `low` k or more are kept, at `high` fewer. To keep none is done before it begins.
    nothing = k <= 0
    bracket = (
        jnp.where(nothing, beyond, np.uint32(0)), jnp.where(nothing, 0, size), beyond, jnp.zeros((), jnp.int32)
    )  # fmt: skip

    def narrowed(bracket: Any, at: ArrayLike) -> Any:
        low, kept, high, fewer = bracket
        count = _count(order >= at)
        inside = (at > low) & (at < high)
        up, down = inside & (count >= k), inside & (count < k)
        return (
            jnp.where(up, at, low), jnp.where(up, count, kept), jnp.where(down, at, high), jnp.where(down, count, fewer)
        )  # fmt: skip

    # Exact zeros are the usual ties: of what is pruned, and of dead units.
    for at in (_ZERO, _ZERO + np.uint32(1)):
        bracket = narrowed(bracket, at)

    def unfinished(carry: Any) -> Array:
        (low, kept, high, _), _ = carry
        return (high - low > 1) & (kept != k)

    def step(carry: Any) -> Any:
        (low, kept, high, fewer), interpolate = carry
        width = high - low
        share = jnp.where(interpolate, (kept - k) / jnp.maximum(kept - fewer, 1), 0.5).astype(jnp.float32)
        ahead = jnp.minimum(share * width.astype(jnp.float32), np.float32(2**32 - 2**8)).astype(jnp.uint32)
        at = low + jnp.clip(ahead, np.uint32(1), width - np.uint32(1))
        return narrowed((low, kept, high, fewer), at), ~interpolate

    (low, kept, _, _), _ = lax.while_loop(unfinished, step, (bracket, jnp.asarray(True)))
    return low, kept


@partial(jax.jit, static_argnames="axis")
def keep_largest_along(scores: Array, k: ArrayLike, axis: int) -> Array:
    """A mask that has exactly ``k`` True in each line along ``axis``, at its ``k`` largest scores; of equals the earliest.

    All lines are searched at once, by halving: 32 counting passes.

    Args:
      scores, k: as in ``keep_largest``.

    Returns:
      bool of scores' shape.
    """
    order = _ordered(scores)
    axis = axis % scores.ndim
    length = scores.shape[axis]
    k = jnp.clip(jnp.asarray(k, jnp.int32), 0, length)
    counted = lambda mask: jnp.sum(mask, axis, dtype=jnp.int32, keepdims=True)

    def halved(i: Any, low: Array) -> Array:
        at = low | (np.uint32(1) << (np.uint32(31) - i.astype(jnp.uint32)))
        return jnp.where(counted(order >= at) >= k, at, low)

    like = jnp.zeros_like(lax.slice_in_dim(order, 0, 1, axis=axis))
    low = lax.fori_loop(0, 32, halved, like)  # the largest value that k or more reach
    above, ties = order > low, order == low

    def cut() -> Array:
        places = k - counted(above)
        return above | (ties & (jnp.cumsum(ties, axis, dtype=jnp.int32) <= places))

    return lax.cond(jnp.all(counted(order >= low) == k), lambda: order >= low, cut)


def n_m_mask(scores: Array, n: ArrayLike, m: int, axis: int) -> Array:
    """A mask that keeps the ``n`` largest of every ``m`` consecutive entries along ``axis``; of equals the earliest.

    NVIDIA's 2:4 pattern is n=2, m=4 along the input axis (Mishra et al. 2021).

    Args:
      scores: floats as in ``keep_largest``, with a multiple of ``m`` entries along the axis.
      n: static or traced.

    Returns:
      bool of scores' shape.

    Raises:
      ValueError: not ``0 <= n <= m``, or entries along the axis that ``m`` does not divide.
    """
    axis = axis % scores.ndim
    entries = scores.shape[axis]
    if m < 1 or (isinstance(n, int) and not 0 <= n <= m):
        raise ValueError(f"n={n}, m={m}: keep n of every m entries, 0 <= n <= m")
    if entries % m:
        raise ValueError(f"axis {axis} has {entries} entries, not a multiple of m={m}; choose another axis or m")
    split = scores.shape[:axis] + (entries // m, m) + scores.shape[axis + 1 :]
    order = _ordered(scores).reshape(split)
    # Rank by comparison with each of the m entries: those larger, and the earlier of those equal.
    rank = jnp.zeros(split, jnp.int32)
    place = np.arange(m).reshape((m,) + (1,) * (scores.ndim - axis - 1))
    place = place.reshape((1,) * (axis + 1) + place.shape)
    for j in range(m):
        rival = lax.slice_in_dim(order, j, j + 1, axis=axis + 1)
        rank = rank + ((rival > order) | ((rival == order) & (j < place)))
    return (rank < n).reshape(scores.shape)


def _ordered(scores: Array) -> Array:
    """uint32 in the order of the floats. Integer operations throughout: denormals keep their places."""
    if not jnp.issubdtype(scores.dtype, jnp.floating) or jnp.finfo(scores.dtype).bits > 32:
        raise TypeError(f"scores are {scores.dtype}; selection takes floats of at most 32 bits")
    bits = lax.bitcast_convert_type(scores.astype(jnp.float32), jnp.uint32)
    sign, infinity = np.uint32(0x80000000), np.uint32(0x7F800000)
    bits = jnp.where(bits == sign, np.uint32(0), bits)
    order = jnp.where(bits >= sign, ~bits, bits | sign)
    return jnp.where((bits & ~sign) > infinity, np.uint32(0), order)


def _count(mask: Array) -> Array:
    return jnp.sum(mask, dtype=jnp.int32)


def _first(mask: Array, k: Array) -> Array:
    """True up to the flat index by which ``mask`` has ``k`` True (everywhere if it has no more than that)."""
    index = jnp.arange(mask.size, dtype=jnp.int32).reshape(mask.shape)

    def search(bounds):
        low, high = bounds
        middle = low + (high - low) // 2
        enough = _count(mask & (index < middle)) >= k
        return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

    # Nothing to search for where all ties are kept, which is the usual case.
    start = jnp.where(_count(mask) <= k, mask.size, 0).astype(jnp.int32)
    _, end = lax.while_loop(lambda b: b[0] < b[1], search, (start, jnp.int32(mask.size)))
    return index < end
