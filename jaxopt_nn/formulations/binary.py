"""Products of signs with signs: exact whole numbers, by the program that suits the form of the weight.

* Packed, as stored or in words: exclusive or and population count, 32 products at a time (``numerics.signs``). On two busy
  cores of an AMD EPYC with AVX512-VPOPCNTDQ: 0.3 of the float32 product's time at 800 x 500 and 0.1 at 4096 x 4096, for 32 and
  256 rows, packing included; 0.7 and 0.2 for one (``python -m experiments.benchmarks.signs``).
* +1 and -1 as int8, as TPU and GPU hold them: one integer product, which their matrix units do.
* +1 and -1 as floats: one float product, exact up to 2^24 terms.

What is padded to an activation of a convolution is no sign and counts for nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxopt_nn.formulations import labels, table
from jaxopt_nn.formulations.labels import Call, Labels, Names
from jaxopt_nn.numerics import affine, signs
from jaxopt_nn.tensors.binary import Binary

#: Longest sum of +1 and -1 that is exact in float32.
LONGEST = 2**24


def dot(weight: Binary, other: Array, call: Call) -> Any:
    """``lax.dot_general`` of the signs of an array and those of a weight, times the weight's scales: float32.

    Args:
      call: as for the other programs; of it ``dims`` and ``side``.

    Returns:
      float32 in the order of ``lax.dot_general``, or NotImplemented: nothing is contracted, or scales vary along what is.
    """
    names = labels.of(call, weight, other)
    if names.groups or not any(name[0] == "k" for name in names.weight):
        return NotImplemented
    total = sums(weight, other, call)
    return total.astype(jnp.float32) * labels.along(names.per_output(weight.scale.astype(jnp.float32), weight), names.out)


def sums(weight: Binary, other: Array, call: Call) -> Array:
    """The products of signs alone, whole numbers: int32, or float32 where the weight's signs are floats."""
    names = labels.of(call, weight, other)
    rows = labels.rows(names, other)
    if weight.axis is not None:
        table.note(weight, "exclusive or and population count", rows, 1)
        return _counted(weight, other, names)
    weight, kind = _in_entries(weight, names.size(weight, "k"))
    table.note(weight, f"signs, multiplied as {kind.name}", rows, 1)
    codes, order = names.codes(weight, weight.codes)
    operand = signs.signs(signs.positive(other), kind), names.other
    pair = (operand, (codes, order)) if call.side else ((codes, order), operand)
    return labels.contract(*pair, names.out, jnp.int32 if weight.integral else jnp.float32)


def _in_entries(weight: Binary, length: int) -> tuple[Binary, np.dtype]:
    """Signs, an entry each, of the dtype to multiply in."""
    if not weight.integral and length > LONGEST:
        weight = weight.in_entries(jnp.int8)
    return weight, weight.codes.dtype


def _counted(weight: Binary, other: Array, names: Labels) -> Array:
    summed = [a for a, name in enumerate(names.weight) if name[0] == "k"]
    place = None if weight.axis is None else weight.axis % weight.ndim
    axis = place if place in summed else summed[-1]
    packed, name = weight.words(axis), names.weight[axis]
    words = packed.codes, tuple(names.weight[a] for a in packed.physical)
    at = names.other.index(name)
    rows = signs.pack_words(signs.positive(other), at), names.other
    ks, bs = [names.weight[a] for a in summed], [n for n in names.out if n[0] == "b"]
    ws, xs = ([n for n in names.out if n[0] == letter] for letter in "wx")
    total = signs.product(_laid(rows, ks, bs, xs), _laid(words, ks, bs, ws), names.size(weight, "k"))
    lengths = dict(zip((*names.weight, *names.other), (*weight.shape, *other.shape)))
    made = [*bs, *xs, *ws]
    return total.reshape([lengths[n] for n in made]).transpose([made.index(n) for n in names.out])


def _laid(x: tuple[Array, Names], *groups: Sequence[str]) -> Array:
    """A named array with one axis for each group of names."""
    array, names = x
    turned = array.transpose([names.index(n) for group in groups for n in group])
    sizes = iter(turned.shape)
    return turned.reshape([math.prod(next(sizes) for _ in group) for group in groups])


def conv(weight: Binary, other: Array, params: Mapping[str, Any]) -> Any:
    """``lax.conv_general_dilated`` of the signs of an array and those of a kernel, times the kernel's scales: float32.

    Returns:
      float32, or NotImplemented: scales vary along another axis than the output features, or ``batch_group_count`` is above 1.
    """
    numbers = lax.conv_dimension_numbers(other.shape, weight.shape, params["dimension_numbers"])
    features = numbers.rhs_spec[0]
    varies = any(d > 1 for a, d in enumerate(weight.scale.shape) if a != features)
    if varies or params["batch_group_count"] != 1:
        return NotImplemented
    total = conv_sums(weight, other, params).astype(jnp.float32)
    scale = weight.scale.reshape(weight.scale.shape[features])
    scale = affine.expand_groups(scale, (weight.shape[features],))
    return total * scale.reshape([-1 if a == numbers.out_spec[1] else 1 for a in range(total.ndim)])


def conv_sums(weight: Binary, other: Array, params: Mapping[str, Any]) -> Array:
    """The sums of a convolution of signs alone, whole numbers; ``batch_group_count`` is 1."""
    numbers = lax.conv_dimension_numbers(other.shape, weight.shape, params["dimension_numbers"])
    batch = labels.counted(other.shape[numbers.lhs_spec[0]])
    if weight.axis is not None:
        table.note(weight, "exclusive or and population count", batch, 1)
        return _counted_patches(weight, other, numbers, params)
    kernel, kind = _in_entries(weight.in_order(), weight.size)
    table.note(kernel, f"signs, convolved as {kind.name}", batch, 1)
    options = {k: v for k, v in params.items() if k not in ("dimension_numbers", "preferred_element_type", "precision")}
    wide = jnp.int32 if kernel.integral else jnp.float32
    x = signs.signs(signs.positive(other), kind)
    return lax.conv_general_dilated(x, kernel.codes, dimension_numbers=numbers, preferred_element_type=wide, **options)


def _counted_patches(weight: Binary, other: Array, numbers: Any, params: Mapping[str, Any]) -> Array:
    """Patches of words, and a mask of the words that lie in the padding."""
    groups, (outputs, inputs, *window) = params["feature_group_count"], numbers.rhs_spec
    packed = weight.words(inputs)
    codes = packed.codes.transpose([packed.physical.index(a) for a in (*window, inputs, outputs)])
    columns = codes.reshape(-1, groups, codes.shape[-1] // groups)
    images, channels, *spatial = numbers.lhs_spec
    x = signs.positive(other).transpose([images, *spatial, channels])
    x = signs.pack_words(x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups), -1)
    valid, places = np.ones((1,) * (2 * len(window)), bool), []
    for i, a in enumerate(window):
        at, inside = _window(other.shape[spatial[i]], weight.shape[a], i, params)
        places.append(at.shape)
        taken = jnp.take(x, at.reshape(-1), axis=1 + 2 * i, mode="clip")
        x = taken.reshape(*x.shape[: 1 + 2 * i], *at.shape, *x.shape[2 + 2 * i :])
        valid = valid & inside.reshape([n if j // 2 == i else 1 for j, n in enumerate(at.shape * len(window))])
    moved = [*range(1, x.ndim - 2, 2), *range(2, x.ndim - 2, 2)]  # x is [images, (place, window) of each axis, groups, words]
    outs, taps = moved[: len(window)], moved[len(window) :]
    rows = x.transpose([*taps, x.ndim - 1, x.ndim - 2, 0, *outs])
    head, out_shape = math.prod(n for _, n in places), [n for n, _ in places]
    count = rows.shape[: len(window) + 1]
    inside = valid.transpose([*range(1, valid.ndim, 2), *range(0, valid.ndim, 2)]).reshape(head, -1)
    per_row = jnp.asarray(weight.shape[inputs] * inside.sum(0), jnp.int32)
    rows = rows.reshape(math.prod(count), groups, -1)
    each = lambda own: jnp.broadcast_to(own[..., None, :], (*own.shape[:-1], x.shape[0], own.shape[-1]))
    mask = None
    if not inside.all():
        full = np.where(np.repeat(inside, count[-1], axis=0), np.uint32(2**32 - 1), np.uint32(0))
        mask = each(jnp.asarray(full)).reshape(len(full), 1, -1)
    total = signs.product(rows, columns, each(per_row).reshape(-1), mask)
    total = total.reshape(groups, x.shape[0], *out_shape, total.shape[-1])
    total = jnp.moveaxis(total, 0, -2).reshape(total.shape[1], *out_shape, -1)
    order = (numbers.out_spec[0], *numbers.out_spec[2:], numbers.out_spec[1])
    return total.transpose(sorted(range(total.ndim), key=order.__getitem__))


def _window(size: int, window: int, i: int, params: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """For each place of the output and of the window along an axis, the entry of the activation, and whether there is one."""
    low, high = params["padding"][i]
    grown = (size - 1) * params["lhs_dilation"][i] + 1
    reach = (window - 1) * params["rhs_dilation"][i] + 1
    n = max((grown + low + high - reach) // params["window_strides"][i] + 1, 0)
    places = np.arange(n)[:, None] * params["window_strides"][i] + np.arange(window)[None] * params["rhs_dilation"][i] - low
    at, rest = np.divmod(places, params["lhs_dilation"][i])
    inside = (rest == 0) & (at >= 0) & (at < size)
    return np.clip(at, 0, size - 1), inside
