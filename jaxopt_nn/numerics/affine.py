"""Affine maps between floats and integer codes: ranges, scales, rounding, and the straight-through derivative.

``value = (code - zero) * scale``. A scale (or zero) has the rank of its weight, and on every axis 1 entry, as many
entries as the weight, or a divisor ``d`` of that number ``n``: then each stands for ``n / d`` consecutive entries.

All arithmetic is float32, and in an order that gives the same bits in every program, so that what a view computes is
what a packed tensor decodes to:

* ``x * (1 / scale)`` and not ``x / scale``: XLA compiles the second to the first in some programs (a scale that is
  broadcast or constant) and not in others, which moves one code in some thousands by one;
* no product that feeds a sum, which a backend may contract to one rounding (FMA);
* no negative zero among the codes, which integers don't have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike, DTypeLike

# Scales lie within these bounds, so that a scale and its reciprocal are normal float32 numbers on every backend.
SMALLEST_SCALE, LARGEST_SCALE = float(2.0**-126), float(2.0**126)
# A hair under the largest float32: a product of up to 255 and a scale bounded by it does not overflow.
_LARGEST = float(np.finfo(np.float32).max) * (1 - 2.0**-22)
# From here on floats of 32 bits are whole numbers.
_WHOLE = float(2**23)


def code_range(bits: int, signed: bool, narrow: bool = False) -> tuple[int, int]:
    """The smallest and largest code: ``[-2^(b-1), 2^(b-1) - 1]`` signed, ``[0, 2^b - 1]`` unsigned.

    Args:
      bits: width, 1 or more (compressed tensors hold 1 to 8).
      signed: whether codes below zero exist.
      narrow: leave out the lowest signed code, for a range symmetric about 0 (needs 2 bits).

    Raises:
      ValueError: a width that is no positive integer, or a narrow range of one signed bit, which would be empty.
    """
    if isinstance(bits, bool) or bits != int(bits) or bits < 1:
        raise ValueError(f"bits={bits}: a code has 1 bit or more")
    if not signed:
        return 0, 2**bits - 1
    if narrow and bits == 1:
        raise ValueError("bits=1: a narrow signed range holds the code 0 alone; pass signed=False")
    return -(2 ** (bits - 1)) + narrow, 2 ** (bits - 1) - 1


def symmetric_params(amax: ArrayLike, qmin: int, qmax: int) -> Array:
    """The scale that maps ``[-amax, amax]`` onto ``[-qmax, qmax]``, float32, of amax's shape.

    An ``amax`` of 0 (or below the smallest normal float32) gives the scale 1: its entries become exact zeros. A NaN
    or an infinity goes through to the scale, so that bad weights show.
    """
    span = qmax if qmax > 0 else -qmin
    scale = jnp.asarray(amax, jnp.float32) * np.float32(1 / span)
    return _safe_scale(scale, amax, max(qmax, -qmin))


def affine_params(lo: ArrayLike, hi: ArrayLike, qmin: int, qmax: int) -> tuple[Array, Array]:
    """``(scale, zero)`` that map ``[lo, hi]``, widened to hold 0, onto ``[qmin, qmax]``; float32, of lo's shape.

    ``zero`` is an integer in ``[qmin, qmax]``, so 0.0 has a code of its own. An empty range (or one below the smallest
    normal float32) gives the scale 1, NaN and infinities go through to the scale, and a range near the largest float32
    is narrowed so that no code decodes to an infinity.
    """
    lo = jnp.minimum(jnp.asarray(lo, jnp.float32), 0.0)
    hi = jnp.maximum(jnp.asarray(hi, jnp.float32), 0.0)
    # Halves first: hi - lo may exceed the largest float32.
    half = hi * 0.5 - lo * 0.5
    scale = _safe_scale(half * np.float32(2 / (qmax - qmin)), half, 1)
    zero = jnp.clip(qmin - jnp.round(lo * (1.0 / scale)), qmin, qmax)
    finite = jnp.minimum(scale, _LARGEST / jnp.maximum(qmax - zero, zero - qmin))
    return jnp.where(jnp.isfinite(half), finite, scale), zero


def binary_params(x: Array, scale_shape: Sequence[int]) -> tuple[Array, Array]:
    """``(scale, zero)`` of one bit: codes {0, 1} that decode to minus and plus ``mean |x|``.

    Rastegari et al. 2016 (XNOR-Net), eq. 6: ``alpha = mean |x|`` is the least-squares scale of ``sign(x)``. Here
    ``scale = 2 alpha`` and ``zero = 0.5``; an exact 0 takes code 0.

    Returns:
      scale, float32 of ``scale_shape``; zero, float32 of the same shape.
    """
    mean = mean_magnitude(x, scale_shape)
    scale = _safe_scale(jnp.minimum(mean, _LARGEST / 2) * 2, mean, 1)
    return scale, jnp.full(scale.shape, 0.5, jnp.float32)


#: Additions in turn of a sum whose order is kept.
STEPS = 256


def power_below(extent: Array) -> Array:
    """The largest power of two that is no more than ``extent``, float32; 1 for 0, subnormal numbers, NaN and Inf.

    What is divided by it keeps all its digits, so that squares and sums of very large or small numbers can be taken.
    """
    bits = jax.lax.bitcast_convert_type(extent.astype(jnp.float32), jnp.int32)
    power = jax.lax.bitcast_convert_type(bits & np.int32(0x7F800000), jnp.float32)
    return jnp.where((power > 0) & jnp.isfinite(power), power, 1.0)


def mean_magnitude(x: Array, scale_shape: Sequence[int]) -> Array:
    """The mean of ``|x|`` of each group of entries, float32 of ``scale_shape``; equal bits in every program."""
    axes, groups = _reduced(x.shape, scale_shape)
    count = max(math.prod(x.shape) // max(math.prod(scale_shape), 1), 1)
    # Each term is made small, not the sum, which could overflow; by a power of two, so that a product that is joined with the
    # addition behind it rounds as one that is not.
    power = 2.0 ** (count - 1).bit_length()
    term = jnp.abs(x.astype(jnp.float32)) * np.float32(1 / power)
    return group_reduce(term, axes, groups, _sum_in_order) * np.float32(power / count)


def _sum_in_order(x: Array, axis: Sequence[int]) -> Array:
    """The sum over axes by whole additions, in turn: a reduction's order would depend on what it is fused with."""
    rest = [n for a, n in enumerate(x.shape) if a not in axis]
    x = jnp.moveaxis(x, axis, range(len(axis))).reshape(-1, *rest)
    while (n := x.shape[0]) > 1:
        width = -(-n // STEPS)
        steps = -(-n // width)
        x = jnp.pad(x, [(0, steps * width - n), *[(0, 0)] * len(rest)]).reshape(steps, width, *rest)
        x = jax.lax.scan(lambda total, run: (total + run, None), x[0], x[1:])[0]
    return jnp.sum(x, axis=0)  # of one entry, or of none


def _safe_scale(scale: Array, extent: ArrayLike, largest_code: int) -> Array:
    """``scale`` within normal float32 numbers; 1 where the extent is zero; NaN and infinities go through."""
    empty = jnp.asarray(extent, jnp.float32) < SMALLEST_SCALE
    bounded = jnp.clip(scale, SMALLEST_SCALE, min(LARGEST_SCALE, _LARGEST / largest_code))
    return jnp.where(empty, 1.0, jnp.where(jnp.isfinite(extent), bounded, scale))


def quantize(
    x: Array, scale: ArrayLike, zero: ArrayLike | None, qmin: int, qmax: int, *, key: Array | None = None
) -> Array:
    """The codes ``clip(round(x / scale) + zero, qmin, qmax)``: float32, integer-valued, of x's shape.

    Rounds half to even, or, with a PRNG ``key``, up with a probability equal to the fraction (then the expectation of
    the decoded value is ``x`` inside the range). A ``zero`` of k + 1/2 is added before the rounding, so codes stay
    integers and values lie at odd multiples of half a scale.
    """
    codes = jnp.clip(_unclipped(x, scale, zero, key), qmin, qmax)
    return jnp.where(codes == 0, 0.0, codes)


def _unclipped(x: Array, scale: ArrayLike, zero: ArrayLike | None, key: Array | None) -> Array:
    value = x.astype(jnp.float32) * _spread_inverse(scale, x.shape)
    if key is not None:
        # Changes no code; stands between the product and the difference below, which a backend might contract.
        value = jnp.clip(value, -_WHOLE, _WHOLE)
    whole = None
    if zero is not None:
        offset = jnp.asarray(zero, jnp.float32)
        whole = jnp.floor(offset)
        value = value + expand_groups(offset - whole, x.shape)
    codes = jnp.round(value) if key is None else _round_stochastically(value, key)
    return codes if whole is None else codes + expand_groups(whole, x.shape)


def _round_stochastically(value: Array, key: Array) -> Array:
    floor = jnp.floor(value)
    # Compared with the exact fraction: floor(value + u) would round up where the sum does.
    return floor + (jax.random.uniform(key, value.shape) < value - floor)


def dequantize(codes: Array, scale: ArrayLike, zero: ArrayLike | None, dtype: DTypeLike = jnp.float32) -> Array:
    """``(codes - zero) * scale`` in float32, cast once to ``dtype``."""
    value = codes.astype(jnp.float32)
    if zero is not None:
        value = value - expand_groups(jnp.asarray(zero, jnp.float32), codes.shape)
    return (value * expand_groups(jnp.asarray(scale, jnp.float32), codes.shape)).astype(dtype)


def fake_quant(
    x: Array,
    scale: ArrayLike,
    zero: ArrayLike | None,
    qmin: int,
    qmax: int,
    ste: str = "clip",
    *,
    key: Array | None = None,
) -> Array:
    """``dequantize(quantize(x, key=key))``, to the bit, in x's dtype, with a straight-through derivative.

    Write ``v = x / s`` and ``c = clip(round(v) + z, qmin, qmax) - z``, so ``y = s c``. With the derivative of ``round``
    taken to be 1, inside the range (``qmin <= round(v) + z <= qmax``: the code is not cut) ``dc/dx = 1 / s`` and
    ``dc/ds = -x / s^2 = -v / s``; outside, ``c`` is constant in x and s, and ``dc/dz = -1``. Hence

    * ``dy/dx = 1`` inside, 0 outside (``ste="pass"``: 1 everywhere);
    * ``dy/ds = c + s dc/ds``: ``round(v) - v`` inside, ``qmin - z`` or ``qmax - z`` outside (LSQ, Esser et al. 2020,
      eq. 3, which has ``round(clip(v))`` and so its bounds half a code further in; a bound on ``v`` itself would leave
      out the very weight that a range by minimum and maximum is made of, wherever ``v`` is off by its last bit);
    * ``dy/dz = 0`` inside, ``-s`` outside (LSQ+, Bhalgat et al. 2020, eq. 6).

    ``ste="none"`` is the true derivative: ``round`` is constant between its jumps, so ``c`` is so everywhere, and every
    entry counts as outside: ``dy/dx = 0``, ``dy/ds = c``, ``dy/dz = -s``.

    With a PRNG ``key``, rounding is stochastic as in ``quantize``, and the range is that of rounding to nearest, whatever
    the draw. Between its bounds ``E[round(v)] = v``, whose derivative is 1: there ``dy/dx`` above is exact for the
    expectation, and ``E[dy/ds] = 0``.

    Raises:
      ValueError: ``ste`` is none of "clip", "pass" and "none".
    """
    if ste not in ("clip", "pass", "none"):
        raise ValueError(
            f'ste={ste!r}: the derivative of rounding is "clip" (1 inside the range, 0 outside), "pass" (1) or "none" (0)'
        )
    return _fake_quant(x, scale, zero, key, qmin, qmax, ste)


@partial(jax.custom_jvp, nondiff_argnums=(4, 5, 6))
def _fake_quant(x, scale, zero, key, qmin, qmax, ste):
    return dequantize(quantize(x, scale, zero, qmin, qmax, key=key), scale, zero, x.dtype)


def _fake_quant_jvp(qmin, qmax, ste, primals, tangents):
    x, scale, zero, key = primals
    dx, dscale, dzero, _ = tangents
    value = x.astype(jnp.float32) * _spread_inverse(scale, x.shape)
    offset = jnp.zeros((), jnp.float32) if zero is None else jnp.asarray(zero, jnp.float32)
    offset = expand_groups(offset, x.shape)
    nearest = _unclipped(x, scale, zero, None)
    # where c follows v: nowhere, for the true derivative
    inside = (nearest >= qmin) & (nearest <= qmax) & (ste != "none")
    slope = jnp.zeros(x.shape, jnp.float32)
    if not isinstance(dx, SymbolicZero):
        slope = slope + (dx if ste == "pass" else jnp.where(inside, dx, 0)).astype(jnp.float32)
    if not isinstance(dscale, SymbolicZero):
        codes = quantize(x, scale, zero, qmin, qmax, key=key) - offset
        slope = slope + expand_groups(dscale, x.shape) * (codes - jnp.where(inside, value, 0.0))
    if dzero is not None and not isinstance(dzero, SymbolicZero):
        step = expand_groups(jnp.asarray(scale, jnp.float32), x.shape)
        slope = slope - expand_groups(dzero, x.shape) * jnp.where(inside, 0.0, step)
    return _fake_quant(x, scale, zero, key, qmin, qmax, ste), slope.astype(x.dtype)


_fake_quant.defjvp(_fake_quant_jvp, symbolic_zeros=True)


def _spread_inverse(scale: ArrayLike, shape: Sequence[int]) -> Array:
    return expand_groups(1.0 / jnp.asarray(scale, jnp.float32), shape)


def expand_groups(scale: ArrayLike, shape: Sequence[int]) -> Array:
    """``scale`` spread over ``shape``: each entry repeated over the consecutive entries that it stands for.

    A scalar stands for all. Reshapes and broadcasts only, so it is free inside a fusion.

    Raises:
      ValueError: another rank, or an axis that has neither 1 entry, nor all, nor a divisor.
    """
    scale = jnp.asarray(scale)
    shape = tuple(shape)
    if scale.ndim == 0 or scale.shape == shape:
        return jnp.broadcast_to(scale, shape)
    check_groups(scale.shape, shape)
    grouped = [d not in (1, n) for d, n in zip(scale.shape, shape)]
    thin = [e for d, g in zip(scale.shape, grouped) for e in ((d, 1) if g else (d,))]
    wide = [e for d, n, g in zip(scale.shape, shape, grouped) for e in ((d, n // d) if g else (n,))]
    return jnp.broadcast_to(scale.reshape(thin), wide).reshape(shape)


def check_groups(scale_shape: Sequence[int], shape: Sequence[int], name: str = "scale") -> None:
    """Raises ValueError, with ``name`` and the axis, if a scale of ``scale_shape`` does not fit a weight of ``shape``."""
    if len(scale_shape) != len(shape):
        raise ValueError(
            f"{name}: shape {tuple(scale_shape)} for a weight of shape {tuple(shape)}; give it the same rank, with 1 on "
            "each axis that shares one value"
        )
    for axis, (d, n) in enumerate(zip(scale_shape, shape)):
        if d not in (1, n) and (d == 0 or n % d):
            raise ValueError(
                f"{name}: axis {axis} of the weight has {n} entries, which {d} groups do not divide; allowed are 1, {n} "
                "or a divisor"
            )


def group_reduce(x: Array, axes: Sequence[int], groups: Sequence[int], fn: Callable[..., Array]) -> Array:
    """Reduces ``axes`` of ``x`` to ``groups`` consecutive parts each by ``fn(array, axis=tuple)``, as ``jnp.max``.

    Returns:
      an array of x's rank with ``groups[i]`` entries on ``axes[i]``.
    """
    parts = dict(zip((a % x.ndim for a in axes), groups, strict=True))
    result = [parts.get(a, n) for a, n in enumerate(x.shape)]
    check_groups(result, x.shape, "groups")
    split = [e for a, n in enumerate(x.shape) for e in ((parts[a], n // parts[a]) if a in parts else (n,))]
    inner = [a + 1 + sum(b < a for b in parts) for a in sorted(parts)]
    return fn(x.reshape(split), axis=tuple(inner)).reshape(result)


def minmax(x: Array, scale_shape: Sequence[int]) -> tuple[Array, Array]:
    """``(lo, hi)``, the least and largest entry of each group, of ``scale_shape`` and x's dtype; (0, 0) if empty."""
    return _minmax(x, tuple(scale_shape))


def abs_max(x: Array, scale_shape: Sequence[int]) -> Array:
    """The largest magnitude of each group, of ``scale_shape`` and x's dtype; 0 if a group is empty."""
    return _abs_max(x, tuple(scale_shape))


@partial(jax.jit, static_argnums=1)
def _minmax(x: Array, scale_shape: tuple[int, ...]) -> tuple[Array, Array]:
    if x.size == 0:
        return jnp.zeros(scale_shape, x.dtype), jnp.zeros(scale_shape, x.dtype)
    axes, groups = _reduced(x.shape, scale_shape)
    return group_reduce(x, axes, groups, jnp.min), group_reduce(x, axes, groups, jnp.max)


@partial(jax.jit, static_argnums=1)
def _abs_max(x: Array, scale_shape: tuple[int, ...]) -> Array:
    if x.size == 0:
        return jnp.zeros(scale_shape, x.dtype)
    axes, groups = _reduced(x.shape, scale_shape)
    return group_reduce(jnp.abs(x), axes, groups, jnp.max)


def _reduced(shape: Sequence[int], scale_shape: Sequence[int]) -> tuple[list[int], list[int]]:
    check_groups(scale_shape, shape, "scale_shape")
    axes = [a for a, (d, n) in enumerate(zip(scale_shape, shape)) if d != n]
    return axes, [scale_shape[a] for a in axes]
