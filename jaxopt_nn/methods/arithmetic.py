"""What a site computes: weight-only, dynamic integer activations, fake-quantized activations.

The compressed tensor fixes the weight's format; these rules fix the arithmetic. ``w8a8`` and ``w4a8`` quantize each row of
the activations as it comes (one symmetric scale for each row, for a convolution one for each example), multiply integer
codes and accumulate in int32; ``w8a16`` and ``w4a16`` leave the activations in float.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_nn.core.model import Site
from jaxopt_nn.core.rule import Rule, rule_factory
from jaxopt_nn.core.transform import State
from jaxopt_nn.formulations import integer, products
from jaxopt_nn.numerics import affine
from jaxopt_nn.tensors.base import is_compressed


@rule_factory
def arithmetic(name: str) -> Rule:
    """The rule called ``w<bits>a<bits>``: weights of at most that width, activations of that width.

    ``a32`` leaves activations as they come (weight-only). ``a16`` may hold them in 16 bits, whichever runs faster: bfloat16,
    or whole numbers with one scale a row (off by at most the row's largest magnitude over 65,278); sums stay float32. ``a2``
    to ``a8`` quantize them dynamically and multiply integers; in training they are ``fake_quant_activations``. A weight wider
    than said, or one without codes, is left in float, and the report names it.

    Raises:
      ValueError: another name.

    Example:
      >>> v = {"kernel": jnp.linspace(-1, 1, 64 * 8).reshape(64, 8)}
      >>> method = jn.quantize(8)
      >>> stored = method.pack(v, method.init(v))
      >>> net = jn.Network(lambda v, x: x @ v["kernel"], stored, rules=jn.arithmetic("w8a8"))
      >>> x = jnp.linspace(0, 1, 64).reshape(1, 64)
      >>> exact = x @ v["kernel"]
      >>> bool(jnp.abs(net(x) - exact).max() < 0.02 * jnp.abs(exact).max())  # integers multiplied, within 2 %
      True
    """
    w_bits, a_bits = widths(name)

    def apply(site: Site, state: State, lhs: Any, rhs: Any) -> Any:
        return on_codes(site, lhs, rhs, w_bits, a_bits)

    return Rule(apply, name=name, training=fake_quant_activations(a_bits) if a_bits <= 8 else None)


def widths(
    name: str, *, activations: tuple[int, ...] = (*range(2, 9), 16, 32), what: str = "arithmetic"
) -> tuple[int, int]:
    """Bits of weights and activations of the arithmetic called ``w<bits>a<bits>``; ``what`` asks for it.

    Raises:
      ValueError: another name, or a width of activations that is not among the given.
    """
    found = re.fullmatch(r"w([1-8])a(\d+)", str(name))
    if not found or int(found[2]) not in activations:
        rest = ", a16 or a32, e.g. 'w8a8', 'w4a16'" if 16 in activations else ", e.g. 'w8a8', 'w4a8'"
        raise ValueError(f"{what}({name!r}): allowed are w1 to w8 with a2 to a8{rest}")
    return int(found[1]), int(found[2])


def on_codes(site: Site, lhs: Any, rhs: Any, w_bits: int, a_bits: int, scale: Any = None) -> Any:
    """The site on a weight's codes of at most ``w_bits``, its activations of ``a_bits``; NotImplemented where it can't be.

    Args:
      scale: float32 scalar, of all activations; None: each row has its own.
    """
    if site.weight is None:
        return NotImplemented
    operands = [lhs, rhs]
    weight = operands[site.weight]
    codes = weight.coded() if is_compressed(weight) else None
    if codes is None or codes.bits > w_bits:
        return NotImplemented
    if site.kind == "gather":
        return site.run(lhs, rhs)
    if not _real_floats(operands[1 - site.weight]):
        return NotImplemented
    options = {"activations": a_bits, "dtype": _result_dtype(site, lhs, rhs), "scale": scale}
    if site.kind == "dot":
        return products.dot(lhs, rhs, site.params["dimension_numbers"], precision=site.params["precision"], **options)
    return products.conv(lhs, rhs, site.params, **options) if site.weight == 1 else NotImplemented


def _real_floats(x: Any) -> bool:
    """Whether an operand can be quantized as it comes: a real float array (the other may be a weight too)."""
    return not is_compressed(x) and jnp.issubdtype(x.dtype, jnp.floating)


def _result_dtype(site: Site, lhs: Any, rhs: Any) -> Any:
    asked = site.params.get("preferred_element_type")
    return asked if asked is not None else jnp.result_type(lhs.dtype, rhs.dtype)


@rule_factory
def fake_quant_activations(bits: int = 8, ste: str = "clip") -> Rule:
    """Rounds a site's activations to ``bits`` with the scales that ``w?a<bits>`` would use, and multiplies in float.

    The float twin of the integer rule, with straight-through gradients: what quantization-aware training sees. With
    ``ste="none"`` rounding has its true derivative, zero, and no site behind another one gets a gradient.

    Args:
      bits: 2 to 8.
      ste: the derivative of rounding, ``"clip"``, ``"pass"`` or ``"none"``, as in ``quantize``.

    Raises:
      ValueError: bits outside 2 to 8; another derivative than those of ``numerics.affine.fake_quant``.

    Example:
      >>> v = {"kernel": jnp.eye(3)}
      >>> run = jn.rewrite(lambda v, x: x @ v["kernel"], jn.fake_quant_activations(2))
      >>> run(v, jnp.array([[1.0, 0.4, -0.9]]))  # two bits: one step on each side of zero, by row
      Array([[ 1.,  0., -1.]], dtype=float32)
    """
    if bits not in range(2, 9):
        raise ValueError(f"fake_quant_activations(bits={bits!r}): allowed are 2 to 8")
    if ste not in ("clip", "pass", "none"):
        raise ValueError(f"fake_quant_activations(ste={ste!r}): allowed are 'clip', 'pass' and 'none'")

    def apply(site: Site, state: State, lhs: Any, rhs: Any) -> Any:
        return on_rounded(site, lhs, rhs, bits, lambda x, axes: integer.row_scale(x, axes, bits), ste)

    return Rule(apply, name=f"fake_quant_activations({bits})")


def on_rounded(
    site: Site, lhs: Any, rhs: Any, bits: int, scale: Callable[[Any, tuple[int, ...]], Any], ste: str = "clip"
) -> Any:
    """The site in float, on activations rounded to ``bits``; NotImplemented where they are no real floats.

    Args:
      scale: ``(activations in float32, axes that share a row's scale) -> scale``; it gets no gradient.
      ste: the derivative of rounding, as for ``numerics.affine.fake_quant``.
    """
    if site.kind == "gather" or site.weight is None:
        return site.run(lhs, rhs)
    operands = [lhs, rhs]
    at = 1 - site.weight
    x = operands[at]
    if not _real_floats(x):
        return NotImplemented
    if site.kind == "dot":
        axes = tuple(site.params["dimension_numbers"][0][at])
    else:
        batch = site.params["dimension_numbers"].lhs_spec[0]
        axes = tuple(i for i in range(x.ndim) if i != batch)
    qmin, qmax = affine.code_range(bits, signed=True, narrow=True)
    wide = x.astype(jnp.float32)
    step = jax.lax.stop_gradient(scale(wide, axes))
    operands[at] = affine.fake_quant(wide, step, None, qmin, qmax, ste).astype(x.dtype)
    return site.run(*operands)
