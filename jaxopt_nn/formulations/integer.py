"""Integer programs: activations as int8 codes times int8 codes, accumulated in int32.

With activation codes ``a`` and scales ``s_a`` (one for each row of the dot), weight codes ``c``, scales ``s_w`` and zero
points ``z`` (constant along what is contracted), the result is

    y[b, o] = s_a[b] s_w[o] (sum_i a[b, i] c[i, o] - z[o] sum_i a[b, i]),

exact in the integers. A scale for each group of the contracted axis gives one such sum for each group. Activations may come
as codes, int8: then ``s_a`` is 1 here, and their scale is their owner's to multiply with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxopt_nn.formulations import labels, weight_only
from jaxopt_nn.formulations.labels import Call, Labels, Names
from jaxopt_nn.numerics import affine
from jaxopt_nn.tensors.coded import Coded

#: Longest contraction whose sum of |a| <= 128 times |c| <= 128 stays inside int32.
LONGEST = 2**17 - 1
#: Largest activation of 16 bits whose high and low byte are both within int8.
_LARGEST16 = 127 * 256 + 127
#: Pieces of a row that are compared side by side; a power of two.
FOLDS = 16


def row_scale(x: Array, axes: Sequence[int], bits: int = 8, folded: bool = False) -> Array:
    """``max|x| / qmax`` over ``axes``, float32, kept as axes of length 1; 1 for an all-zero row, NaN for a row with NaN.

    ``folded`` reads a row as ``FOLDS`` pieces side by side: the same number, sooner on a CPU.
    """
    _, qmax = affine.code_range(bits, signed=True, narrow=True)
    return _row_scale(x, axes, qmax, folded)


def _row_scale(x: Array, axes: Sequence[int], qmax: int, folded: bool) -> Array:
    wide = jnp.abs(x.astype(jnp.float32))
    amax = jnp.max(_folded(wide, axes) if folded else wide, axis=tuple(axes), keepdims=True)
    return jnp.where(amax < qmax * affine.SMALLEST_SCALE, 1.0, amax * np.float32(1 / qmax))


def _folded(x: Array, axes: Sequence[int]) -> Array:
    """An array whose maxima over ``axes`` are those of ``x``, with a sixteenth of the entries; ``x`` where that can't be.

    XLA on CPU takes the largest of a row entry after entry (without its reduce fusion, which gives wrong numbers), and the
    largest of several rows for many entries at a time: the pieces of a row are compared as if they were rows. They may
    overlap, since what is compared twice is no larger.
    """
    lead, size = x.ndim - len(axes), math.prod(x.shape[a] for a in axes)
    if sorted(axes) != list(range(lead, x.ndim)) or size < 16 * FOLDS:
        return x
    rows, length = x.reshape(*x.shape[:lead], size), -(-size // FOLDS)
    starts = [min(i * length, size - length) for i in range(FOLDS)]
    pieces = [lax.slice_in_dim(rows, at, at + length, axis=lead) for at in starts]
    while len(pieces) > 1:
        pieces = [jnp.maximum(a, b) for a, b in zip(pieces[::2], pieces[1::2])]
    # What follows is not joined with it, or each comparison would be made anew for each use.
    return lax.optimization_barrier(pieces[0]).reshape(*x.shape[:lead], *[1] * (len(axes) - 1), length)


def quantize_rows(x: Array, axes: Sequence[int], bits: int = 8, folded: bool = False) -> tuple[Array, Array]:
    """Symmetric dynamic quantization with one scale for each index over the axes that are *not* in ``axes``.

    Args:
      x: ``[...]``, any float dtype, or codes already. axes: the axes that share a scale. bits: 2 to 8. folded: as for
        ``row_scale``.

    Returns:
      ``(codes int8, scale float32)``; ``scale`` has length 1 on ``axes``. No code leaves the range, so none is clipped.
    """
    if x.dtype == jnp.int8:
        return x, jnp.ones([1 if a in axes else n for a, n in enumerate(x.shape)], jnp.float32)
    scale = row_scale(x, axes, bits, folded)
    return jnp.round(x.astype(jnp.float32) * (1.0 / scale)).astype(jnp.int8), scale


def fixed_codes(x: Array, scale: Array, bits: int) -> Array:
    """int8 codes of ``x`` with one given scale, float32 scalar; what lies beyond the range saturates."""
    qmin, qmax = affine.code_range(bits, signed=True, narrow=True)
    return jnp.clip(jnp.round(x.astype(jnp.float32) * (1.0 / scale)), qmin, qmax).astype(jnp.int8)


def rounded(x: Array, axes: Sequence[int], bits: int, folded: bool = False) -> Array:
    """The values that ``quantize_rows`` rounds to, float32."""
    if x.dtype == jnp.int8:
        return x.astype(jnp.float32)
    scale = row_scale(x, axes, bits, folded)
    return jnp.round(x.astype(jnp.float32) * (1.0 / scale)) * scale


def _folds(weight: Coded) -> bool:
    return weight.platform == "cpu"


@partial(jax.jit, static_argnums=2)
def direct(weight: Coded, other: Array, call: Call) -> Array:
    """One dot on integers, with groups as batch axes of it."""
    return _dot(weight, other, call, _sums)


@partial(jax.jit, static_argnums=2)
def turns(weight: Coded, other: Array, call: Call) -> Array:
    """The groups one after the other: the codes lie as [groups, ...]."""
    return _dot(weight, other, call, _sums_in_turn)


@partial(jax.jit, static_argnums=2)
def decoded(weight: Coded, other: Array, call: Call) -> Array:
    """The same sums in float: rounded activations times the weight's values, where no program on codes is as fast."""
    return weight_only.direct(weight, rounded(other, call.dims[0][1 - call.side], call.activations, _folds(weight)), call)


@partial(jax.jit, static_argnums=2)
def halves(weight: Coded, other: Array, call: Call) -> Array:
    """Activations of 16 bits, one scale for each row, as two rows of int8: ``256 high + low``. For few rows."""
    axes = call.dims[0][1 - call.side]
    scale = _row_scale(other, axes, _LARGEST16, _folds(weight))
    whole = jnp.round(other.astype(jnp.float32) * (1.0 / scale)).astype(jnp.int32)
    high = (whole + 128) >> 8
    names = labels.of(call, weight, other)
    high, order = names.split(high)
    low = names.split(whole)[0] - high * 256
    codes = jnp.stack([high, low]).astype(jnp.int8)
    sums = _sums_in_turn if names.in_turn(weight) else _sums
    total = sums(weight, names, (codes, ("xp", *order)), call)
    total = total[0] * 256.0 + total[1]
    return _times_rows(total, scale, names).astype(call.dtype)


def _dot(weight: Coded, other: Array, call: Call, sums: Any) -> Array:
    names = labels.of(call, weight, other)
    codes, scale = quantize_rows(other, call.dims[0][1 - call.side], call.activations, _folds(weight))
    x = weight_only.two_rows(*names.split(codes))
    total = sums(weight, names, x, call)
    return _times_rows(total[0] if x[1][0] == "xp" else total, scale, names).astype(call.dtype)


def _times_rows(total: Array, scale: Array, names: Labels) -> Array:
    own = tuple("k" + n if n[0] == "k" else n for n in names.other)
    return total * labels.along((scale, own), names.out)


def _signed(weight: Coded) -> tuple[Array, Array | None]:
    """The codes as int8, as they lie, and the zero points that go with them: int32, or float32 fractions."""
    codes, zero = weight.codes, weight.zero
    if zero is not None:
        zero = zero.astype(jnp.int32 if jnp.issubdtype(zero.dtype, jnp.integer) else jnp.float32)
    if codes.dtype == jnp.uint8 and weight.bits == 8:
        codes = (codes.astype(jnp.int16) - 128).astype(jnp.int8)
        zero = (jnp.zeros(weight.scale.shape, jnp.int32) if zero is None else zero) - 128
    return codes.astype(jnp.int8), zero


def _sums(weight: Coded, names: Labels, x: tuple[Array, Names], call: Call) -> Array:
    """``sum_g s_w (sum_i a c - z sum_i a)``, float32, along the output's axes behind that of padding."""
    codes, zero = _signed(weight)
    operand = names.codes(weight, codes)
    head = [n for n in x[1] if n == "xp"] + [n for n in names.out if n[0] == "b"]
    groups = list(names.groups)
    out = [*head, *groups, *(n for n in names.out if n not in head)]
    zeros = None if zero is None else labels.along(names.per_output(zero, weight), out)
    total = _centred(x, operand, zeros, out, call.side)
    total = total.astype(jnp.float32) * labels.along(names.per_output(weight.scale.astype(jnp.float32), weight), out)
    return jnp.sum(total, tuple(range(len(head), len(head) + len(groups))))


def _sums_in_turn(weight: Coded, names: Labels, x: tuple[Array, Names], call: Call) -> Array:
    codes, zero = _signed(weight)
    codes, order = names.codes(weight, codes)
    rows, xs = x
    group, out = order[0], [*(n for n in xs if n == "xp"), *names.out]
    laid = lambda p: jnp.broadcast_to(
        flat := labels.along(names.per_output(p, weight), (group, *out)), (codes.shape[0], *flat.shape[1:])
    )
    rows, xs = jnp.moveaxis(rows, xs.index(group), 0), tuple(n for n in xs if n != group)

    def add(total: Array, part: Any) -> tuple[Array, None]:
        a, c, s, z = part
        return total + _centred((a, xs), (c, order[1:]), z, out, call.side).astype(jnp.float32) * s, None

    sizes = dict(zip((*xs, *order[1:]), (*rows.shape[1:], *codes.shape[1:])))
    empty = jnp.zeros([sizes[n] for n in out], jnp.float32)
    parts = (rows, codes, laid(weight.scale.astype(jnp.float32)), None if zero is None else laid(zero))
    return lax.scan(add, empty, parts)[0]


def _centred(x: Any, operand: Any, zero: Array | None, out: Sequence[str], side: int) -> Array:
    """``sum a c - z sum a`` along ``out``: int32 where that is exact, else float32."""
    total = _product(x, operand, out, side)
    if zero is None:
        return total
    (codes, names), length = x, _length(operand)
    summed = tuple(i for i, n in enumerate(names) if n[0] == "k")
    sums = jnp.sum(codes, axis=summed, dtype=jnp.int32)
    sums = labels.along((sums, tuple(n for n in names if n[0] != "k")), out)
    # in int32 a large zero point cancels exactly; the float path is for fractions and for sums beyond int32
    exact = total.dtype == jnp.int32 and zero.dtype == jnp.int32 and length <= LONGEST // 2
    kind = jnp.int32 if exact else jnp.float32
    return total.astype(kind) - sums.astype(kind) * zero.astype(kind)


def _length(operand: tuple[Array, Names]) -> int:
    return math.prod(n for n, name in zip(operand[0].shape, operand[1]) if name[0] == "k")


def _product(x: Any, operand: Any, out: Sequence[str], side: int) -> Array:
    """The integer sum: int32, or float32 in pieces where the contraction is longer than int32 allows."""
    length, (codes, names) = _length(operand), operand
    left, right = (x, operand) if side else (operand, x)
    if length <= LONGEST:
        return labels.contract(left, right, out, jnp.int32)
    longest = max((n for n in names if n[0] == "k"), key=lambda n: codes.shape[names.index(n)])
    size = codes.shape[names.index(longest)]
    step = max(1, LONGEST * size // length)
    total: Any = 0.0
    for i in range(0, size, step):
        part = lambda a, n, i=i: (lax.slice_in_dim(a, i, min(i + step, size), axis=n.index(longest)), n)
        total += labels.contract(part(*left), part(*right), out, jnp.int32).astype(jnp.float32)
    return total


def conv(kernel: Coded, x: Any, params: Any, a_bits: int = 8) -> Any:
    """``lax.conv_general_dilated`` of an activation and a kernel on integer codes.

    One activation scale for each example. NotImplemented where the kernel's scale varies along anything but the output
    features, where it has zero points, with ``batch_group_count`` above one, or where the sum could leave int32.
    """
    numbers = params["dimension_numbers"]
    features = [i for i in range(x.ndim) if i != numbers.lhs_spec[0]]
    if not kernel.integral:
        return weight_only.conv(kernel, rounded(x, features, a_bits, _folds(kernel)), params, jnp.float32)
    out_axis = numbers.rhs_spec[0]
    varies = any(n > 1 for i, n in enumerate(kernel.scale.shape) if i != out_axis)
    length = math.prod(kernel.shape) // kernel.shape[out_axis]
    if kernel.zero is not None or varies or params["batch_group_count"] != 1 or length > LONGEST:
        return NotImplemented
    codes = kernel.elementwise()
    if codes.dtype == jnp.uint8 and kernel.bits == 8:
        return NotImplemented
    x_codes, x_scale = quantize_rows(x, features, a_bits, _folds(kernel))
    kept = {k: v for k, v in params.items() if k not in ("preferred_element_type", "precision")}
    total = lax.conv_general_dilated(x_codes, codes.astype(jnp.int8), **kept, preferred_element_type=jnp.int32)
    scale = affine.expand_groups(kernel.scale, tuple(n if i == out_axis else 1 for i, n in enumerate(codes.shape)))
    total = total.astype(jnp.float32) * _along(x_scale, numbers.out_spec[0], total.ndim)
    return total * _along(scale, numbers.out_spec[1], total.ndim)


def _along(param: Array, axis: int, ndim: int) -> Array:
    return param.reshape([-1 if i == axis else 1 for i in range(ndim)])
