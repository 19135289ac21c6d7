"""Weight-only programs: dots and convolutions on codes, with activations in float.

Codes of up to 8 bits, and their differences from an integer zero point, are exact in bfloat16 and wider, so where the
scale is constant along what is contracted, the dot runs on them and the scale multiplies the output: nothing is rounded
that the dense program would not round. Sums and scaling are float32. Every program takes ``(weight, other, call)``, gives
an array of ``call.dtype``, and differs from the others in the order of float sums alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxopt_nn.formulations import labels
from jaxopt_nn.formulations.labels import Call, Labels, Names
from jaxopt_nn.numerics import affine
from jaxopt_nn.tensors.coded import Coded

FLOATS = (jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64)
#: Rows of the weight that are decoded at a time: 4 MB of float32 at 4096 entries a row stay in a cache.
BLOCK = 256


# Each program is compiled as one function, so that a deep model traces it once for each shape.
@partial(jax.jit, static_argnums=(2, 3))
def direct(weight: Coded, other: Array, call: Call, apart: bool = False) -> Array:
    """One dot on the codes as floats; groups are batch axes of it, and their partial sums are scaled and added up.

    ``apart`` keeps the compiler from joining the dot with what follows.
    """
    names = labels.of(call, weight, other)
    codes, order = names.codes(weight, weight.codes)
    operand = _centred(weight, names, codes, order).astype(other.dtype)
    batch, groups = [n for n in names.out if n[0] == "b"], list(names.groups)
    out = [*batch, *groups, *(n for n in names.out if n not in batch)]
    wide = jnp.promote_types(other.dtype, jnp.float32)
    total = _product(names.split(other), (operand, order), out, call, wide)
    total = lax.optimization_barrier(total) if apart else total
    if not (weight.scaled or groups):
        return total.astype(call.dtype)
    total = total * labels.along(names.per_output(weight.scale.astype(wide), weight), out)
    return jnp.sum(total, tuple(range(len(batch), len(batch) + len(groups)))).astype(call.dtype)


@partial(jax.jit, static_argnums=2)
def scaled(weight: Coded, other: Array, call: Call) -> Array:
    """One dot on the weight's values, as the dense program: for more rows than a group has entries."""
    names = labels.of(call, weight, other)
    codes, order = names.codes(weight, weight.codes)
    values = _centred(weight, names, codes, order).astype(jnp.float32) * _scale(weight, names, order)
    wide = jnp.promote_types(other.dtype, jnp.float32)
    operand = (values.astype(other.dtype), order)
    total = _product(names.split(other), operand, names.out, call, wide)
    return total.astype(call.dtype)


@partial(jax.jit, static_argnums=(2, 3))
def blocks(weight: Coded, other: Array, call: Call, kind: str = "float32") -> Array:
    """``BLOCK`` rows of the codes at a time, decoded in the cache; the codes' first axis is a free one.

    ``kind``: the dtype that is multiplied in; bfloat16 rounds the activations.
    """
    names = labels.of(call, weight, other)
    codes, order = names.codes(weight, weight.codes)
    plain, unsummed = tuple(names.weight[a] for a in weight.physical), tuple(n for n in order if n[0] != "k")
    x, xs = two_rows(other.astype(kind), names.other)
    out = (plain[0], *(n for n in xs if n[0] in "xb"), *(n for n in plain[1:] if n[0] == "w"))
    whole = codes.shape[0] - codes.shape[0] % BLOCK

    def laid(param: Array) -> Array:
        per_row = labels.along(names.per_output(param, weight), unsummed)
        return jnp.broadcast_to(per_row, (codes.shape[0], *per_row.shape[1:]))

    def one(part: tuple[Array, Array, Array | None]) -> Array:
        block, scale, zero = part
        value = weight.levels(block)
        if zero is not None:
            value = value.astype(jnp.float32) - labels.along((zero.astype(jnp.float32), unsummed), order)
        if names.groups:
            value = value.astype(jnp.float32) * labels.along((scale, unsummed), order)
        value = value.astype(kind).reshape(block.shape[0], *weight.codes.shape[1:])
        total = _product((x, xs), (value, plain), out, call, jnp.float32)
        return total if names.groups else total * labels.along((scale, unsummed), out)

    zero = None if weight.zero is None else laid(weight.zero)
    parts = (codes, laid(weight.scale.astype(jnp.float32)), zero)
    total = lax.map(one, jax.tree.map(lambda p: p[:whole].reshape(-1, BLOCK, *p.shape[1:]), parts))
    total = total.reshape(whole, *total.shape[2:])
    if whole < codes.shape[0]:
        total = jnp.concatenate([total, one(jax.tree.map(lambda p: p[whole:], parts))])
    return first_row(total, out, names).astype(call.dtype)


@partial(jax.jit, static_argnums=(2, 3))
def turns(weight: Coded, other: Array, call: Call, kind: str = "float32") -> Array:
    """The groups one after the other: the codes lie as [groups, ...]."""
    names = labels.of(call, weight, other)
    x, xs = two_rows(*names.split(other.astype(kind)))
    codes, order = names.codes(weight, weight.codes)
    group, out = order[0], (*(n for n in xs if n == "xp"), *names.out)
    scale = labels.along(names.per_output(weight.scale.astype(jnp.float32), weight), (group, *out))
    zero = None if weight.zero is None else labels.along(names.per_output(weight.zero, weight), order)
    x, xs = jnp.moveaxis(x, xs.index(group), 0), tuple(n for n in xs if n != group)
    whole = lambda p: jnp.broadcast_to(p, (codes.shape[0], *p.shape[1:]))

    def add(total: Array, part: Any) -> tuple[Array, None]:
        rows, block, s, z = part
        value = weight.levels(block).astype(kind if z is None else jnp.float32)
        value = value if z is None else (value - z.astype(jnp.float32)).astype(kind)
        return total + _product((rows, xs), (value, order[1:]), out, call, jnp.float32) * s, None

    sizes = {n: d for n, d in zip((*xs, *order[1:]), (*x.shape[1:], *codes.shape[1:]))}
    empty = jnp.zeros([sizes[n] for n in out], jnp.float32)
    total, _ = lax.scan(add, empty, (x, codes, whole(scale), None if zero is None else whole(zero)))
    return first_row(total, out, names).astype(call.dtype)


def two_rows(x: Array, xs: Names) -> tuple[Array, Names]:
    """The operand with a row of zeros where it is a single one: of int8 or bfloat16 it misses the fast path of XLA on CPU.

    Two rows don't, nor does one of float32. Rows of an open number get an axis of as many zeros as they may need: none, once
    they are known to be two or more.
    """
    if x.dtype == jnp.float32:
        return x, xs
    rows = math.prod(n for n, name in zip(x.shape, xs) if name[0] == "x")
    further = jax.core.max_dim(2 - rows, 0)
    if isinstance(further, int) and further != 1:
        return x, xs
    return jnp.pad(jnp.expand_dims(x, 0), [(0, further), *[(0, 0)] * x.ndim]), ("xp", *xs)


def first_row(total: Array, out: Names, names: Labels) -> Array:
    """What the padding leaves, in the output's order of axes."""
    if "xp" in out:
        total = lax.index_in_dim(total, 0, out.index("xp"), keepdims=False)
        out = tuple(n for n in out if n != "xp")
    return total.transpose([out.index(n) for n in names.out])


def _product(other: Any, operand: Any, out: Any, call: Call, dtype: Any) -> Array:
    pair = (other, operand) if call.side else (operand, other)
    return labels.contract(*pair, out, dtype, call.precision)


def _centred(weight: Coded, names: Labels, codes: Array, order: Names) -> Array:
    """``levels - zero``, float32 where there is a zero point. The difference is taken here, not on the output, where a
    large zero point would cancel against the sum of the activations."""
    levels = weight.levels(codes)
    if weight.zero is None:
        return levels
    return levels.astype(jnp.float32) - _spread(weight.zero, weight, names, order)


def _scale(weight: Coded, names: Labels, order: Names) -> Array:
    return _spread(weight.scale, weight, names, order)


def _spread(param: Array, weight: Coded, names: Labels, order: Names) -> Array:
    return labels.along(names.per_output(param.astype(jnp.float32), weight), order)


def conv(weight: Coded, lhs: Array, params: Mapping[str, Any], dtype: Any) -> Any:
    """``lax.conv_general_dilated`` of an array and the kernel ``weight``.

    Returns:
      an array of ``dtype``, or NotImplemented: ``lhs`` is no real float, the scale varies along another axis than the
      output features, or ``batch_group_count`` is above 1.
    """
    weight = weight.in_order()
    codes = weight.codes
    numbers = lax.conv_dimension_numbers(lhs.shape, codes.shape, params.get("dimension_numbers"))
    features = numbers.rhs_spec[0]
    varies = weight.scaled and any(d > 1 for a, d in enumerate(weight.scale.shape) if a != features)
    if lhs.dtype not in FLOATS or varies or params.get("batch_group_count", 1) != 1:
        return NotImplemented
    options = {k: v for k, v in params.items() if k not in ("dimension_numbers", "preferred_element_type")}
    wide = jnp.promote_types(lhs.dtype, jnp.float32)
    kernel = weight.levels(codes)
    if weight.zero is not None:
        kernel = kernel.astype(jnp.float32) - affine.expand_groups(weight.zero.astype(jnp.float32), codes.shape)
    kernel = kernel.astype(lhs.dtype)
    out = lax.conv_general_dilated(lhs, kernel, dimension_numbers=numbers, preferred_element_type=wide, **options)
    if not weight.scaled:
        return out.astype(dtype)
    factor = affine.expand_groups(
        weight.scale.astype(wide).reshape(weight.scale.shape[features]), (codes.shape[features],)
    )
    return (out * factor.reshape([-1 if a == numbers.out_spec[1] else 1 for a in range(out.ndim)])).astype(dtype)
