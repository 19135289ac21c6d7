"""Activations as their signs, beside weights that are signs: XNOR-Net (Rastegari et al. 2016, section 3.2)."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxopt_nn.core.model import Site
from jaxopt_nn.core.rule import Rule, rule_factory
from jaxopt_nn.core.transform import State
from jaxopt_nn.formulations import binary
from jaxopt_nn.formulations.labels import Call
from jaxopt_nn.numerics import signs
from jaxopt_nn.tensors.base import is_compressed
from jaxopt_nn.tensors.binary import Binary


@rule_factory
def xnor(scales: bool = True) -> Rule:
    """Binarizes a site's activations, where its weight is ``Binary``: ``K * alpha * (sign(x) @ sign(w))``, eq. 11.

    The product of signs is an exact whole number: exclusive or and population count on packed words, or +1 and -1 multiplied
    where that is what a backend does fastest. ``K`` is the mean of ``|x|`` over what a dot contracts; for a convolution that
    over the channels, averaged over the window, padding as zeros. ``sign(0)`` is +1, that of NaN -1. Padding has no sign.

    In training the same numbers are computed in float, on the view of ``binarize`` (whose sums are as exact, since its scale is
    taken out first): the derivative of a sign is 1 where ``|x| <= 1``, else 0, and K has its own. A weight that is not
    ``Binary`` is left alone, and the report names it; so is one whose scale varies along what is contracted (a tied decoder).

    Args:
      scales: False leaves K out, as networks do whose next layer is a normalisation.

    Raises:
      ValueError: ``scales`` is no bool.

    Example:
      >>> v = {"kernel": jnp.array([[0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])}
      >>> method = jn.binarize()
      >>> net = jn.Network(lambda v, x: x @ v["kernel"], method.pack(v, method.init(v)), rules=jn.xnor())
      >>> x = jnp.array([[0.2, -0.4, 0.9]])
      >>> net(x)  # signs +1, -1, +1 and K = 0.5: 0.5 * 0.5 * (1 - 1 - 1) twice
      Array([[-0.25, -0.25]], dtype=float32)
    """
    if not isinstance(scales, bool):
        raise ValueError(f"xnor(scales={scales!r}): allowed are True, with the means of the activations, and False")

    def apply(site: Site, state: State, lhs: Any, rhs: Any) -> Any:
        if site.kind == "gather":
            return site.run(lhs, rhs)
        weight, other = _operands(site, lhs, rhs)
        if not isinstance(weight, Binary) or not _real_floats(other):
            return NotImplemented
        call = _call(site, lhs, rhs)
        if site.kind == "dot":
            out = binary.dot(weight, other, call)
        else:
            out = binary.conv(weight, other, site.params) if site.weight == 1 else NotImplemented
        return out if out is NotImplemented else _scaled(out, scales, site, lhs, rhs).astype(call.dtype)

    def trained(site: Site, state: State, lhs: Any, rhs: Any) -> Any:
        if site.kind == "gather":
            return site.run(lhs, rhs)
        weight, other = _operands(site, lhs, rhs)
        if not (_real_floats(other) and _real_floats(weight)):
            return NotImplemented
        alpha = jax.lax.stop_gradient(_magnitude(weight, site))
        own, unit = signs.straight_through(other), _in_units(weight, alpha)
        out = site.run(own, unit) if site.weight == 1 else site.run(unit, own)
        wide = out.astype(jnp.float32) * _along_outputs(alpha, site)
        return _scaled(wide, scales, site, lhs, rhs).astype(out.dtype)

    name = "xnor" if scales else "xnor, unscaled"
    return Rule(apply, name=name, training=Rule(trained, name=f"{name}, in float"), width=1)


def _operands(site: Site, lhs: Any, rhs: Any) -> tuple[Any, Any]:
    """The weight and the activation."""
    return (rhs, lhs) if site.weight == 1 else (lhs, rhs)


def _real_floats(x: Any) -> bool:
    return not is_compressed(x) and bool(jnp.issubdtype(x.dtype, jnp.floating))


def _call(site: Site, lhs: Any, rhs: Any) -> Call:
    asked = site.params.get("preferred_element_type")
    kind = jnp.dtype(asked if asked is not None else jnp.result_type(lhs.dtype, rhs.dtype)).name
    dims = site.params["dimension_numbers"] if site.kind == "dot" else None
    return Call(dims, site.weight or 0, None, kind, 1)


def _scaled(out: Array, scales: bool, site: Site, lhs: Any, rhs: Any) -> Array:
    """The output times K, float32."""
    if not scales:
        return out
    weight, other = _operands(site, lhs, rhs)
    magnitudes = jnp.abs(other.astype(jnp.float32))
    means = _of_rows(magnitudes, site) if site.kind == "dot" else _of_windows(magnitudes, weight.shape, site.params)
    return out.astype(jnp.float32) * means


def _of_rows(magnitudes: Array, site: Site) -> Array:
    """The mean of each row of a dot, along the output's axes."""
    side = 1 - (site.weight or 0)
    summed = tuple(site.params["dimension_numbers"][0][side])
    return _along_rows(jnp.mean(magnitudes, summed, keepdims=True), site, side)


def _along_rows(reduced: Array, site: Site, side: int) -> Array:
    """What one operand of a dot has for each of its rows, 1 along what is contracted, along the output's axes."""
    contracted, batch = site.params["dimension_numbers"]
    summed, kept = contracted[side], batch[side]
    free = [a for a in range(reduced.ndim) if a not in (*summed, *kept)]
    turned = reduced.transpose([*kept, *free, *summed])
    head, tail = turned.shape[: len(kept)], turned.shape[len(kept) : len(kept) + len(free)]
    others = [1] * (len(site.shapes[1 - side]) - len(contracted[side]) - len(kept))
    return turned.reshape((*head, *others, *tail) if side else (*head, *tail, *others))


def _magnitude(weight: Array, site: Site) -> Array:
    """The largest ``|w|`` of each output, float32, 1 along what is summed over; 1 where all are zero."""
    if site.kind == "dot":
        summed = tuple(site.params["dimension_numbers"][0][site.weight or 0])
    else:
        outputs = site.params["dimension_numbers"].rhs_spec[0]
        summed = tuple(a for a in range(weight.ndim) if a != outputs)
    largest = jnp.max(jnp.abs(weight.astype(jnp.float32)), summed, keepdims=True, initial=0.0)
    return jnp.where(largest > 0, largest, 1.0)


def _along_outputs(alpha: Array, site: Site) -> Array:
    """What ``_magnitude`` gives, along the output's axes."""
    if site.kind == "dot":
        return _along_rows(alpha, site, site.weight or 0)
    numbers = site.params["dimension_numbers"]
    return alpha.reshape([-1 if a == numbers.out_spec[1] else 1 for a in range(alpha.ndim)])


@jax.custom_jvp
def _in_units(weight: Array, alpha: Array) -> Array:
    """The weight over its magnitude: exactly +1 and -1 where all of an output have one."""
    wide = weight.astype(jnp.float32)
    return jnp.where(jnp.abs(wide) == alpha, jnp.sign(wide), wide * (1.0 / alpha)).astype(weight.dtype)


@_in_units.defjvp
def _in_units_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (weight, alpha), (slope, _) = primals, tangents
    return _in_units(weight, alpha), (slope.astype(jnp.float32) * (1.0 / alpha)).astype(weight.dtype)


def _of_windows(magnitudes: Array, window: tuple[int, ...], params: Any) -> Array:
    """The mean over channels, averaged over the window, along the output's axes; of each group of channels its own."""
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    images, channels, *spatial = numbers.lhs_spec
    outputs, _, *taps = numbers.rhs_spec
    x = magnitudes.transpose([images, *spatial, channels])
    x = jnp.mean(x.reshape(*x.shape[:-1], groups, -1), -1)
    sizes = [window[a] for a in taps]
    ones, none = (1,), ((0, 0),)
    total = lax.reduce_window(
        x, np.float32(0), lax.add, (1, *sizes, 1), (1, *params["window_strides"], 1), (*none, *params["padding"], *none),
        base_dilation=ones + tuple(params["lhs_dilation"]) + ones, window_dilation=ones + tuple(params["rhs_dilation"]) + ones,
    )  # fmt: skip
    means = total * np.float32(1 / math.prod(sizes))
    means = jnp.repeat(means, window[outputs] // groups, axis=-1) if groups > 1 else means
    order = (numbers.out_spec[0], *numbers.out_spec[2:], numbers.out_spec[1])
    return means.transpose(sorted(range(means.ndim), key=order.__getitem__))
