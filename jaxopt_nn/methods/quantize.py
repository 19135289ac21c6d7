"""Integer quantization of weights: 1 to 8 bits, range by minimum and maximum.

With step ``s`` and zero point ``z``, a weight ``w`` becomes the code ``q = clip(round(w / s) + z, qmin, qmax)`` and is read
back as ``s (q - z)`` (Jacob et al. 2018, eq. 1). Symmetric: ``z = 0`` and ``s = max|w| / qmax``. One bit, symmetric, is
``{-a, +a}`` with ``a = mean|w|`` (Rastegari et al. 2016, eq. 6), since a symmetric integer range has no two levels.

Training sees the read-back weights with a straight-through gradient: rounding has derivative zero almost everywhere, and
is given derivative one inside the range and zero outside (Bengio et al. 2013); ``ste="pass"`` gives one everywhere. The
range is recomputed from the weights at every view and is not differentiated.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_nn.core.model import ModelInfo, Roles
from jaxopt_nn.core.transform import LeafTraits, Static, Transform, leafwise, why_not_matrix
from jaxopt_nn.numerics import affine
from jaxopt_nn.tensors.qtensor import QTensor


class Format(NamedTuple):
    """How one leaf is quantized; static.

    Attributes:
      bits, signed, symmetric, ste: as in ``quantize``.
      scale_shape: along each axis 1, the leaf's length, or a divisor of it (groups).
    """

    bits: int
    signed: bool
    symmetric: bool
    scale_shape: tuple[int, ...]
    ste: str
    stack: tuple[int, ...]

    @property
    def code_range(self) -> tuple[int, int]:
        return affine.code_range(self.bits, self.signed)

    def params(self, x: jax.Array) -> tuple[jax.Array, jax.Array | None, jax.Array]:
        """(step, zero point or None, largest magnitude) of a leaf: float32 of ``scale_shape``."""
        x = x.astype(jnp.float32)
        qmin, qmax = self.code_range
        extent = affine.abs_max(x, self.scale_shape)
        if self.bits == 1 and self.symmetric:
            # the order of a sum must not depend on what it is fused with: pack and view need equal bits
            scale, zero = affine.binary_params(jax.lax.optimization_barrier(x), self.scale_shape)
            return jax.lax.optimization_barrier(scale), zero + qmin, extent
        if not self.symmetric:
            return *affine.affine_params(*affine.minmax(x, self.scale_shape), qmin, qmax), extent
        if self.signed:
            return affine.symmetric_params(extent, qmin, qmax), None, extent
        # an unsigned symmetric range holds negative weights about its middle code
        middle = (qmax + 1) // 2
        return (
            affine.symmetric_params(extent, -middle, qmax - middle),
            jnp.full(self.scale_shape, float(middle)),
            extent,
        )


@jax.jit
def _params(leaf: Any, carried: Static) -> tuple[jax.Array, jax.Array | None, jax.Array]:
    return carried.value.params(leaf)


def quantize(
    bits: int,
    *,
    signed: bool = True,
    symmetric: bool = True,
    granularity: str = "channel",
    group: int = -1,
    ste: str = "clip",
) -> Transform:
    """Quantizes weight matrices to ``bits``-wide integers.

    Args:
      bits: 1 to 8.
      signed: codes in ``[-2^(b-1), 2^(b-1) - 1]``, else in ``[0, 2^b - 1]``.
      symmetric: no zero point; else the range is ``[min(w, 0), max(w, 0)]`` with an integer zero point.
      granularity: ``"channel"`` (one step for each index over stack and output axes) or ``"tensor"`` (one for each layer
        of the stack).
      group: with ``granularity="channel"``, one step for each run of ``group`` entries along the last input axis; -1: none.
      ste: ``"clip"`` (gradient zero outside the range) or ``"pass"``.

    Returns:
      A ``Transform`` that packs into ``QTensor``; it takes float leaves that some site contracts.

    Raises:
      ValueError: a value outside the above; at ``init``, a leaf that ``group`` does not divide; at ``pack``, NaN or Inf.
    """
    if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 8:
        raise ValueError(f"quantize(bits={bits!r}): allowed are the whole numbers 1 to 8")
    if granularity not in ("channel", "tensor"):
        raise ValueError(f"quantize(granularity={granularity!r}): allowed are 'channel' and 'tensor'")
    if ste not in ("clip", "pass"):
        raise ValueError(f"quantize(ste={ste!r}): allowed are 'clip' and 'pass'")
    if group != -1 and (group < 1 or granularity != "channel"):
        raise ValueError(f"quantize(group={group}): a positive number with granularity='channel', or -1 for none")

    def takes(path: str, leaf: Any, info: ModelInfo) -> LeafTraits | str:
        reason = why_not_matrix(path, leaf, info)
        return LeafTraits("codes", keeps_zeros=not (bits == 1 and symmetric)) if reason is None else reason

    def init(path: str, leaf: Any, roles: Roles) -> tuple[Any, Any]:
        shape = _scale_shape(path, leaf.shape, roles, granularity, group)
        return (), Static(Format(bits, signed, symmetric, shape, ste, roles.stack))

    return leafwise(takes, init, _view, pack=_pack, needs=frozenset({"roles"}))


def _scale_shape(path: str, shape: tuple[int, ...], roles: Roles, granularity: str, group: int) -> tuple[int, ...]:
    kept = roles.channel_axes() if granularity == "channel" else roles.stack
    out = [n if i in kept else 1 for i, n in enumerate(shape)]
    if group != -1 and roles.input:
        axis = roles.input[-1]
        if shape[axis] % group:
            raise ValueError(
                f"{path}: axis {axis} has {shape[axis]} entries, not a multiple of group={group}; "
                "pass group=-1 for one scale per channel, or give this path another case in by_path"
            )
        out[axis] = shape[axis] // group
    return tuple(out)


def _view(leaf: Any, learnt: Any, carried: Static) -> Any:
    form: Format = carried.value
    scale, zero, _ = _params(jax.lax.stop_gradient(leaf), carried)
    seen = affine.fake_quant(leaf.astype(jnp.float32), scale, zero, *form.code_range, ste=form.ste)
    return seen.astype(leaf.dtype)


def _pack(path: str, leaf: Any, learnt: Any, carried: Static) -> QTensor:
    form: Format = carried.value
    scale, zero, extent = _params(leaf, carried)
    dtype = np.dtype(leaf.dtype).name
    packed = QTensor.quantize(leaf, scale, zero, bits=form.bits, signed=form.signed, dtype=dtype, stack=form.stack)
    check_finite(path, extent)  # after the codes are under way: waiting for the range first would leave the device idle
    return packed


def check_finite(path: str, statistic: Any) -> None:
    """Raises ValueError where a statistic of a leaf (its largest magnitudes) shows that the leaf holds NaN or Inf."""
    bad = int(np.sum(~np.isfinite(np.asarray(statistic))))
    if bad:
        total = math.prod(statistic.shape)
        raise ValueError(
            f"{path}: NaN or Inf among the weights ({bad} of {total} channels); "
            "find the step that diverged, or clip and clean the leaf before packing"
        )
