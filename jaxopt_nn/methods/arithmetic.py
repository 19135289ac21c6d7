"""What a site computes: weight-only, dynamic integer activations, fake-quantized activations.

The compressed tensor fixes the weight's format; these rules fix the arithmetic. ``w8a8`` and ``w4a8`` quantize each row of
the activations as it comes (one symmetric scale for each row, for a convolution one for each example), multiply integer
codes and accumulate in int32; ``w8a16`` and ``w4a16`` leave the activations in float.
"""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_nn.core.model import Site
from jaxopt_nn.core.rule import Rule
from jaxopt_nn.core.transform import State
from jaxopt_nn.formulations import integer, products
from jaxopt_nn.numerics import affine
from jaxopt_nn.tensors.base import is_compressed


def arithmetic(name: str) -> Rule:
    """The rule called ``w<bits>a<bits>``: weights of at most that width, activations of that width.

    ``a32`` leaves activations as they come (weight-only). ``a16`` may hold them in 16 bits, whichever runs faster: bfloat16,
    or whole numbers with one scale a row (off by at most the row's largest magnitude over 65,278); sums stay float32. ``a2``
    to ``a8`` quantize them dynamically and multiply integers. A weight wider than said, or one without codes, is left in
    float, and the report names it.

    Raises:
      ValueError: another name.
    """
    found = re.fullmatch(r"w([1-8])a(\d+)", str(name))
    widths = found and (int(found[1]), int(found[2]))
    if not widths or widths[1] not in (*range(2, 9), 16, 32):
        raise ValueError(f"arithmetic({name!r}): allowed are w1 to w8 with a2 to a8, a16 or a32, e.g. 'w8a8', 'w4a16'")
    w_bits, a_bits = widths

    def apply(site: Site, state: State, lhs: Any, rhs: Any) -> Any:
        if site.weight is None:
            return NotImplemented
        operands = [lhs, rhs]
        weight = operands[site.weight]
        codes = weight.coded() if is_compressed(weight) else None
        if codes is None or codes.bits > w_bits:
            return NotImplemented
        if site.kind == "gather":
            return site.run(lhs, rhs)
        if not _rows(operands[1 - site.weight]):
            return NotImplemented
        dtype, precision = _result_dtype(site, lhs, rhs), site.params["precision"]
        if site.kind == "dot":
            numbers = site.params["dimension_numbers"]
            return products.dot(lhs, rhs, numbers, activations=a_bits, precision=precision, dtype=dtype)
        if site.weight == 1:
            return products.conv(lhs, rhs, site.params, activations=a_bits, dtype=dtype)
        return NotImplemented

    return Rule(apply, name=name)


def _rows(x: Any) -> bool:
    """Whether an operand can be quantized as it comes: a real float array (the other may be a weight too)."""
    return not is_compressed(x) and jnp.issubdtype(x.dtype, jnp.floating)


def _result_dtype(site: Site, lhs: Any, rhs: Any) -> Any:
    asked = site.params.get("preferred_element_type")
    return asked if asked is not None else jnp.result_type(lhs.dtype, rhs.dtype)


def fake_quant_activations(bits: int = 8, ste: str = "clip") -> Rule:
    """Rounds a site's activations to ``bits`` with the scales that ``w?a<bits>`` would use, and multiplies in float.

    The float twin of the integer rule, with straight-through gradients: what quantization-aware training sees. With
    ``ste="none"`` rounding has its true derivative, zero, and no site behind another one gets a gradient.

    Raises:
      ValueError: bits outside 2 to 8; another derivative than those of ``numerics.affine.fake_quant``.
    """
    if bits not in range(2, 9):
        raise ValueError(f"fake_quant_activations(bits={bits!r}): allowed are 2 to 8")
    if ste not in ("clip", "pass", "none"):
        raise ValueError(f"fake_quant_activations(ste={ste!r}): allowed are 'clip', 'pass' and 'none'")
    qmin, qmax = affine.code_range(bits, signed=True, narrow=True)

    def rounded(x: Any, axes: tuple[int, ...]) -> Any:
        wide = x.astype(jnp.float32)
        scale = jax.lax.stop_gradient(integer.row_scale(wide, axes, bits))
        return affine.fake_quant(wide, scale, None, qmin, qmax, ste).astype(x.dtype)

    def apply(site: Site, state: State, lhs: Any, rhs: Any) -> Any:
        if site.kind == "gather" or site.weight is None:
            return site.run(lhs, rhs)
        operands = [lhs, rhs]
        at = 1 - site.weight
        x = operands[at]
        if not _rows(x):
            return NotImplemented
        if site.kind == "dot":
            axes = tuple(site.params["dimension_numbers"][0][at])
        else:
            batch = site.params["dimension_numbers"].lhs_spec[0]
            axes = tuple(i for i in range(x.ndim) if i != batch)
        operands[at] = rounded(x, axes)
        return site.run(*operands)

    return Rule(apply, name=f"fake_quant_activations({bits})")
