"""Weight-only arithmetic: dots and convolutions on codes, in the other operand's float dtype.

Codes of up to 8 bits, and their differences from an integer zero point, are exact in bfloat16 and wider, so where the
scale is constant along what is contracted, the dot runs on them and the scale multiplies the output: nothing is rounded
that the dense program would not round. Sums and scaling are float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxopt_nn.numerics import affine

FLOATS = (jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64)


def weight_dot(
    codes: Array,
    order: Sequence[int],
    scale: Array,
    zero: Array | None,
    other: Array,
    dimension_numbers: Any,
    side: str,
    precision: Any,
    dtype: Any,
) -> Any:
    """``lax.dot_general`` of the weight ``(codes - zero) * scale`` and an array.

    A scale that varies along contracted axes splits each into [groups, rest]; the groups become batch axes of the dot,
    and their partial sums are scaled and added up. Where these sums would be more numbers than the weight has (more rows
    of activations than entries in a group), the scale multiplies the codes instead, as in the dense program.

    Args:
      codes: integers, physical axis ``p`` being the weight's axis ``order[p]``.
      scale, zero: in the weight's axis order.
      other: float array. side: "rhs" or "lhs", where the weight stands.
      dtype: of the result.

    Returns:
      an array, or NotImplemented where ``other`` is no real float.
    """
    if other.dtype not in FLOATS:
        return NotImplemented
    numbers = tuple(tuple(tuple(map(int, axes)) for axes in pair) for pair in dimension_numbers)
    return _weight_dot(codes, scale, zero, other, tuple(order), numbers, side, precision, jnp.dtype(dtype))


# Compiled as one function, so that a deep model traces it once for each shape.
@partial(jax.jit, static_argnums=(4, 5, 6, 7, 8))
def _weight_dot(
    codes: Array,
    scale: Array,
    zero: Array | None,
    other: Array,
    order: tuple[int, ...],
    dimension_numbers: Any,
    side: str,
    precision: Any,
    dtype: Any,
) -> Array:
    at = 1 if side == "rhs" else 0
    contracted, batch = (list(numbers[at]) for numbers in dimension_numbers)
    other_contracted, other_batch = (list(numbers[1 - at]) for numbers in dimension_numbers)
    shape = [codes.shape[list(order).index(a)] for a in range(codes.ndim)]
    free = [a for a in range(codes.ndim) if a not in contracted + batch]
    groups = {a: scale.shape[a] for a in contracted if scale.shape[a] > 1}
    rest = math.prod(shape[a] for a in contracted) // math.prod(groups.values())
    other_free = other.size // math.prod(other.shape[a] for a in other_contracted + other_batch) if other.size else 0
    operand = _operand(codes, order, zero, other.dtype)
    if groups and other_free > rest:
        spread = affine.expand_groups(scale.astype(jnp.float32).transpose(order), codes.shape)
        operand = (_operand(codes, order, zero, jnp.float32) * spread).astype(other.dtype)
        groups, scale = {}, jnp.ones([1] * codes.ndim)

    operand, places = _split(operand, list(order), groups)
    paired = {b: groups[a] for a, b in zip(contracted, other_contracted) if a in groups}
    other, other_places = _split(other, list(range(other.ndim)), paired)
    batched = [places[a][0] for a in batch + list(groups)]
    other_batched = [other_places[b][0] for b in other_batch + list(paired)]
    summed = [places[a][-1] for a in contracted]
    other_summed = [other_places[b][-1] for b in other_contracted]
    pair = ((summed, batched, operand), (other_summed, other_batched, other))
    (lc, lb, lhs), (rc, rb, rhs) = pair if side == "lhs" else pair[::-1]
    wide = jnp.promote_types(other.dtype, jnp.float32)
    out = lax.dot_general(lhs, rhs, ((lc, rc), (lb, rb)), precision=precision, preferred_element_type=wide)

    # The output has the weight's free axes in physical order: batch, groups, then the free axes of each side.
    head, n_other = len(batched), out.ndim - len(batched) - len(free)
    physical = [a for a in order if a in free]
    first = head + (n_other if side == "rhs" else 0)
    permutation = list(range(out.ndim))
    permutation[first : first + len(free)] = [first + physical.index(a) for a in free]
    out = out.transpose(permutation)
    target = [shape[a] if a in batch + free else scale.shape[a] for a in range(codes.ndim)]
    factor = affine.expand_groups(scale.astype(wide), target)
    kept = batch + list(groups) + free
    factor = factor.transpose(kept + [a for a in contracted if a not in groups]).reshape([target[a] for a in kept])
    ones = [1] * n_other
    tail = list(factor.shape[head:])
    factor = factor.reshape([*factor.shape[:head], *ones, *tail] if side == "rhs" else [*factor.shape, *ones])
    out = out * factor
    return jnp.sum(out, axis=tuple(range(len(batch), head))).astype(dtype) if groups else out.astype(dtype)


def weight_conv(codes: Array, scale: Array, zero: Array | None, lhs: Array, params: dict[str, Any], dtype: Any) -> Any:
    """``lax.conv_general_dilated`` of an array and the kernel ``(codes - zero) * scale``, all in kernel axis order.

    Returns:
      an array of ``dtype``, or NotImplemented: ``lhs`` is no real float, the scale varies along another axis than the
      output features, or ``batch_group_count`` is above 1.
    """
    numbers = lax.conv_dimension_numbers(lhs.shape, codes.shape, params.get("dimension_numbers"))
    features = numbers.rhs_spec[0]
    varies = any(d > 1 for a, d in enumerate(scale.shape) if a != features)
    if lhs.dtype not in FLOATS or varies or params.get("batch_group_count", 1) != 1:
        return NotImplemented
    options = {k: v for k, v in params.items() if k not in ("dimension_numbers", "preferred_element_type")}
    wide = jnp.promote_types(lhs.dtype, jnp.float32)
    kernel = _operand(codes, range(codes.ndim), zero, lhs.dtype)
    out = lax.conv_general_dilated(lhs, kernel, dimension_numbers=numbers, preferred_element_type=wide, **options)
    factor = affine.expand_groups(scale.astype(wide).reshape(scale.shape[features]), (codes.shape[features],))
    return (out * factor.reshape([-1 if a == numbers.out_spec[1] else 1 for a in range(out.ndim)])).astype(dtype)


def _operand(codes: Array, order: Sequence[int], zero: Array | None, dtype: Any) -> Array:
    """``codes - zero`` as floats, in physical order. The difference is taken here, not on the output, where a large
    zero point would cancel against the sum of the activations."""
    if zero is None:
        return codes.astype(dtype)
    spread = affine.expand_groups(zero.astype(jnp.float32).transpose(order), codes.shape)
    return (codes.astype(jnp.float32) - spread).astype(dtype)


def _split(x: Array, order: Sequence[int], groups: dict[int, int]) -> tuple[Array, dict[int, tuple[int, ...]]]:
    """Splits the axes named in ``groups`` into [groups, rest]; gives the new places of every axis."""
    shape: list[int] = []
    places = {}
    for p, a in enumerate(order):
        parts = (groups[a], x.shape[p] // groups[a]) if a in groups else (x.shape[p],)
        places[a] = tuple(range(len(shape), len(shape) + len(parts)))
        shape.extend(parts)
    return x.reshape(shape), places
