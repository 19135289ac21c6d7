"""Integer quantization of weights: 1 to 8 bits, range by minimum and maximum.

With step ``s`` and zero point ``z``, a weight ``w`` becomes the code ``q = clip(round(w / s) + z, qmin, qmax)`` and is read
back as ``s (q - z)`` (Jacob et al. 2018, eq. 1). Symmetric: ``z = 0`` and ``s = max|w| / qmax``. One bit, symmetric, is
``{-a, +a}`` with ``a = mean|w|`` (Rastegari et al. 2016, eq. 6), since a symmetric integer range has no two levels.

Training sees the read-back weights ``y(w)``, and needs a derivative for rounding. With ``v = w / s``:

* ``ste="none"``, the true one: ``round(v)`` is constant between its jumps, so ``dy/dw = s round'(v) / s = 0`` almost
  everywhere. No gradient reaches a weight: hard rounding, for the study of vanishing gradients.
* ``ste="clip"``, straight through (Bengio et al. 2013): ``round(v) = v + e`` with an error ``|e| <= 1/2`` that is taken to be
  independent of ``v``. Then ``round'(v) = 1``, and ``dy/dw = 1`` while ``round(v) + z`` is inside ``[qmin, qmax]``; outside,
  the clip makes it constant: 0. A range by minimum and maximum cuts nothing but, at one bit, what exceeds ``2 mean|w|``, and
  half a code at an end where the zero point rounds so.
* ``ste="pass"``: the error of the clip too is taken to be independent of ``w``, so ``dy/dw = 1`` everywhere.
* with ``rounding="stochastic"``, up with a probability of ``v - floor(v)``, ``E[round(v)] = v``, so while ``v + z`` is inside
  ``[qmin, qmax]`` 1 is the derivative of the expectation, exactly, and not an assumption.

The range is recomputed from the weights at every view and is not differentiated.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_nn.core.arguments import as_key, check_choice, check_flag, check_whole, in_words
from jaxopt_nn.core.cuts import Cut
from jaxopt_nn.core.leafwise import leafwise
from jaxopt_nn.core.model import Known, ModelInfo, Roles
from jaxopt_nn.core.transform import LeafTraits, Transform, why_not_matrix
from jaxopt_nn.numerics import affine
from jaxopt_nn.tensors import layout
from jaxopt_nn.tensors.qtensor import QTensor


class Format(NamedTuple):
    """How one leaf is quantized; static.

    Attributes:
      bits, signed, symmetric, ste: as in ``quantize``.
      scale_shape: along each axis 1, the leaf's length, or a divisor of it (groups).
      stack: the leaf's stack axes.
      generator: of the PRNG key for stochastic rounding; None rounds to nearest.
    """

    bits: int
    signed: bool
    symmetric: bool
    scale_shape: tuple[int, ...]
    ste: str
    stack: tuple[int, ...]
    generator: str | None = None

    @property
    def code_range(self) -> tuple[int, int]:
        return affine.code_range(self.bits, self.signed)

    def nbytes(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Bytes of the codes, and of the scales and zero points, of a packed leaf of that shape."""
        axis = layout.packing_axis(shape, self.bits, self.stack)
        length = 1 if axis is None else shape[axis]
        codes = math.prod(shape) // length * math.ceil(length * self.bits / 8)
        zero = 4 if self.bits == 1 and self.symmetric else 0 if self.signed and self.symmetric else 1
        return codes, (4 + zero) * math.prod(self.scale_shape)

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


@partial(jax.tree_util.register_dataclass, data_fields=["key_data"], meta_fields=["form"])
@dataclasses.dataclass(frozen=True)
class Quantized:
    """State of one leaf: its format, static, and for stochastic rounding the data of its PRNG key (uint32)."""

    form: Format
    key_data: Any = None

    @property
    def key(self) -> jax.Array | None:
        generator = self.form.generator
        return None if generator is None else jax.random.wrap_key_data(self.key_data, impl=generator)


@jax.jit
def _params(leaf: Any, carried: Quantized) -> tuple[jax.Array, jax.Array | None, jax.Array]:
    return carried.form.params(leaf)


@jax.jit
def _codes(leaf: Any, scale: jax.Array, zero: jax.Array | None, carried: Quantized) -> jax.Array:
    codes = affine.quantize(leaf, scale, zero, *carried.form.code_range, key=carried.key)
    return codes.astype(jnp.int8 if carried.form.signed else jnp.uint8)


def quantize(
    bits: int,
    *,
    signed: bool = True,
    symmetric: bool = True,
    granularity: str = "channel",
    group: int = -1,
    ste: str = "clip",
    rounding: str = "nearest",
    key: jax.Array | int | None = None,
) -> Transform:
    """Quantizes weight matrices to ``bits``-wide integers.

    Args:
      bits: 1 to 8.
      signed: codes in ``[-2^(b-1), 2^(b-1) - 1]``, else in ``[0, 2^b - 1]``: 8 bits are [-128, 127] or [0, 255], 6 bits
        [-32, 31], 5 bits unsigned [0, 31].
      symmetric: no zero point; else the range is ``[min(w, 0), max(w, 0)]`` with an integer zero point.
      granularity: ``"channel"`` (one step for each index over stack and output axes) or ``"tensor"`` (one for each layer
        of the stack).
      group: with ``granularity="channel"``, one step for each run of ``group`` entries along the last input axis; -1: none.
      ste: the derivative of rounding: ``"clip"`` (1 inside the range, 0 outside), ``"pass"`` (1) or ``"none"`` (0, the true
        one: nothing trains).
      rounding: ``"nearest"`` (half to even) or ``"stochastic"`` (up with a probability equal to the fraction; Gupta et al.
        2015): then the view has the weight as its expectation, is a function of weights and key alone, and changes with
        each ``update``, which folds ``step`` into the key.
      key: a PRNG key or an integer seed, for stochastic rounding; each leaf folds in a hash of its path.

    Returns:
      A ``Transform`` that packs into ``QTensor``; it takes float leaves that some site contracts and whose
      codes and scales weigh less than they do.

    Raises:
      ValueError: a value outside the above, stochastic rounding without a key or a key without it; at ``init``, a leaf
        that ``group`` does not divide; at ``pack``, NaN or Inf.

    Example:
      >>> v = {"kernel": jnp.tile(jnp.array([[0.9], [-0.4], [0.1], [-1.75]]), (8, 8))}
      >>> method = jn.quantize(4)
      >>> state = method.init(v)
      >>> method.view(v, state)["kernel"][:4, 0]  # multiples of 1.75 / 7, the column's step
      Array([ 1.  , -0.5 ,  0.  , -1.75], dtype=float32)
      >>> stored = method.pack(v, state)
      >>> stored["kernel"].bits, jn.nbytes(v), jn.nbytes(stored)
      (4, 1024, 160)
    """
    _check(bits, signed, symmetric, granularity, group, ste)
    root, generator = random_root(rounding, key, "quantize")

    def takes(path: str, leaf: Any, info: ModelInfo) -> LeafTraits | str:
        reason = why_not_matrix(path, leaf, info)
        if reason is not None:
            return reason
        form = formed(leaf, info.roles_of(path, leaf.ndim))
        codes, scales = form.nbytes(leaf.shape)
        stored, before = codes + scales, math.prod(leaf.shape) * leaf.dtype.itemsize
        if stored >= before:
            return f"its codes and scales would take {stored} bytes, no less than the {before} that it has"
        share = f"keeps {stored / before:.0%} of its bytes: its scales take as much as its codes, or more"
        return LeafTraits("codes", keeps_zeros=not (bits == 1 and symmetric), notes=(share,) if scales >= codes else ())

    def formed(leaf: Any, roles: Roles) -> Format:
        shape = scale_shape(leaf.shape, roles, granularity, group)
        return Format(bits, signed, symmetric, shape, ste, roles.stack, generator)

    def init(path: str, leaf: Any, known: Known) -> tuple[Any, Any]:
        _check_group(path, leaf.shape, known.roles, group)
        form = formed(leaf, known.roles)
        own = None if root is None else jax.random.fold_in(root, np.uint32(zlib.crc32(path.encode())))
        return (), Quantized(form, None if own is None else jax.random.key_data(own))

    return leafwise(
        takes, init, _view, update=None if root is None else _fold_in, pack=_pack, needs=frozenset({"roles"}),
        follows=_followed, name=f"quantize({bits})",
    )  # fmt: skip


def _check(bits: Any, signed: Any, symmetric: Any, granularity: Any, group: Any, ste: Any) -> None:
    """Raises ValueError where an argument of ``quantize`` is not allowed."""
    check_whole("quantize", "bits", bits, 1, 8)
    check_flag("quantize", "signed", signed)
    check_flag("quantize", "symmetric", symmetric)
    check_choice("quantize", "granularity", granularity, ("channel", "tensor"))
    check_choice("quantize", "ste", ste, ("clip", "pass", "none"))
    whole = isinstance(group, int) and not isinstance(group, bool)
    if not whole or (group != -1 and (group < 1 or granularity != "channel")):
        raise ValueError(
            f"quantize(group={in_words(group)}): allowed are whole numbers from 1, with granularity='channel', and -1 for none"
        )


def random_root(rounding: str, key: jax.Array | int | None, what: str) -> tuple[jax.Array | None, str | None]:
    """The key of stochastic rounding and the name of its generator; (None, None) for nearest."""
    check_choice(what, "rounding", rounding, ("nearest", "stochastic"))
    if (key is None) == (rounding == "stochastic"):
        raise ValueError(
            f"{what}(rounding={rounding!r}, key={key}): stochastic rounding needs a key, e.g. key=jax.random.key(0), and "
            "no other rounding has one"
        )
    if key is None:
        return None, None
    root = as_key(key, what)
    return root, str(jax.random.key_impl(root))


def _fold_in(leaf: Any, learnt: Any, carried: Quantized, step: Any, grad: Any) -> Quantized:
    key = jax.random.fold_in(carried.key, step)  # type: ignore[arg-type]
    return Quantized(carried.form, jax.random.key_data(key))


def _followed(learnt: Any, carried: Quantized, cut: Cut) -> tuple[Any, Any] | str:
    """Ranges are computed at every view; what must still hold is that the groups divide the axis."""
    shape = cut_scales(carried.form.scale_shape, cut)
    if isinstance(shape, str):
        return shape
    return learnt, dataclasses.replace(carried, form=carried.form._replace(scale_shape=shape))


def cut_scales(shape: tuple[int, ...], cut: Cut) -> tuple[int, ...] | str:
    """The shape of the scales of a leaf that a pass has cut, or the reason why there is none."""
    lengths = list(shape)
    for axis, own in enumerate(lengths):
        group, length = cut.shape[axis] // max(own, 1), cut.small[axis]
        if own > 1 and length % group:
            return f"{length} entries stay along axis {axis}, not a multiple of group={group}"
        lengths[axis] = length // group if own > 1 else own
    return tuple(lengths)


def scale_shape(shape: tuple[int, ...], roles: Roles, granularity: str, group: int = -1) -> tuple[int, ...]:
    """Along each axis 1, the leaf's length, or a divisor of it: what shares a scale."""
    kept = roles.channel_axes() if granularity == "channel" else roles.stack
    out = [n if i in kept else 1 for i, n in enumerate(shape)]
    if group != -1 and roles.input:
        out[roles.input[-1]] = shape[roles.input[-1]] // group
    return tuple(out)


def _check_group(path: str, shape: tuple[int, ...], roles: Roles, group: int) -> None:
    if group != -1 and roles.input and shape[axis := roles.input[-1]] % group:
        raise ValueError(
            f"{path}: axis {axis} has {shape[axis]} entries, not a multiple of group={group}; "
            "pass group=-1 for one scale per channel, or give this path another case in by_path"
        )


@jax.jit
def _view(leaf: Any, learnt: Any, carried: Quantized) -> Any:
    form: Format = carried.form
    scale, zero, _ = _params(jax.lax.stop_gradient(leaf), carried)
    wide = leaf.astype(jnp.float32)
    return affine.fake_quant(wide, scale, zero, *form.code_range, ste=form.ste, key=carried.key).astype(leaf.dtype)


def _pack(path: str, leaf: Any, learnt: Any, carried: Quantized) -> QTensor:
    form: Format = carried.form
    scale, zero, extent = _params(leaf, carried)
    stored = partial(QTensor.quantize, leaf)
    if form.generator is not None:
        stored = partial(QTensor.from_codes, _codes(leaf, scale, zero, carried))
    dtype = np.dtype(leaf.dtype).name
    packed = stored(scale, zero, bits=form.bits, signed=form.signed, dtype=dtype, stack=form.stack)
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
