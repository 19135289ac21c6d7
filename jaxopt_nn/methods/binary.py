"""Binary weights: each a sign, with a scale or without.

BinaryConnect (Courbariaux et al. 2015): signs in the forward pass, latent weights that are trained and clipped to [-1, 1].
XNOR-Net's weights (Rastegari et al. 2016, section 3.1): ``alpha sign(w)`` with ``alpha = mean|w|`` of each output channel, the
nearest of all (eq. 6). With ``g`` the gradient at the binary weight, the latent weight gets

* ``gradient="clip"``: ``g`` where ``|w| <= 1``, else 0: straight through, whatever the scale;
* ``gradient="scaled"``: ``g (1/n + alpha 1{|w| <= 1})`` with ``n`` weights to a scale (Rastegari et al., eq. 12).
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

from jaxopt_nn.core.arguments import check_choice, in_words, is_number
from jaxopt_nn.core.cuts import Cut
from jaxopt_nn.core.leafwise import leafwise
from jaxopt_nn.core.model import Known, ModelInfo, Roles
from jaxopt_nn.core.transform import LeafTraits, Transform, why_not_matrix
from jaxopt_nn.methods.quantize import check_finite, cut_scales, random_root, scale_shape
from jaxopt_nn.numerics import affine, signs
from jaxopt_nn.tensors import layout
from jaxopt_nn.tensors.binary import Binary

GRADIENTS = ("clip", "scaled")
#: How scales are shared, by the name that ``scale`` has, as ``quantize`` calls it.
GRANULARITY = {"channel": "channel", "layer": "tensor"}


class Form(NamedTuple):
    """How one leaf is binarized; static.

    Attributes:
      scale_shape: along each axis 1, or the leaf's length.
      constant: the scale of all weights; None: the mean magnitude.
      gradient: as in ``binarize``.
      stack: the leaf's stack axes.
      generator: of the PRNG key of stochastic signs; None: the signs are the weights' own.
    """

    scale_shape: tuple[int, ...]
    constant: float | None
    gradient: str
    stack: tuple[int, ...]
    generator: str | None = None

    def nbytes(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Bytes of the signs, and of the scales, of a packed leaf of that shape."""
        return packed_bytes(shape, 1, self.stack), 4 * math.prod(self.scale_shape)


def packed_bytes(shape: tuple[int, ...], bits: int, stack: tuple[int, ...]) -> int:
    """Of the codes of a leaf that is packed along its best axis."""
    axis = layout.packing_axis(shape, bits, stack)
    length = 1 if axis is None else shape[axis]
    return math.prod(shape) // length * -(-length * bits // 8)


@partial(jax.tree_util.register_dataclass, data_fields=["key_data"], meta_fields=["form"])
@dataclasses.dataclass(frozen=True)
class Binarized:
    """State of one leaf: its format, static, and for stochastic signs the data of its PRNG key (uint32)."""

    form: Form
    key_data: Any = None

    @property
    def key(self) -> Any:
        generator = self.form.generator
        return None if generator is None else jax.random.wrap_key_data(self.key_data, impl=generator)


def binarize(
    scale: str | float | None = "channel",
    gradient: str = "clip",
    *,
    rounding: str = "nearest",
    key: jax.Array | int | None = None,
) -> Transform:
    """Gives each weight one bit: plus or minus a scale. The sign of 0 is +1.

    Latent weights are trained, straight through, and clipped to [-1, 1] after each step: one further out would get no gradient.

    Args:
      scale: ``"channel"``: the mean magnitude of each output channel, and layer of a stack (XNOR-Net); ``"layer"``: that of
        each layer; a number above 0, the scale of all; None: 1 (BinaryConnect).
      gradient: ``"clip"`` or ``"scaled"``, as above; the latter is that of mean magnitudes.
      rounding: ``"nearest"``: the weight's own sign; ``"stochastic"``: +1 with a probability of ``(w + 1) / 2``, clipped to
        [0, 1] (Courbariaux et al. 2015, eqs. 2 and 3), drawn anew at each ``update``.
      key: a PRNG key or an integer seed, for stochastic signs; each leaf folds in a hash of its path.

    Returns:
      A ``Transform`` that packs into ``Binary``; it takes float leaves that some site contracts and whose signs and scales
      weigh less than they do. No weight is zero: what prunes can't stand before it.

    Raises:
      ValueError: a value outside the above, stochastic signs without a key or a key without them; at ``pack``, NaN or Inf.

    Example:
      >>> v = {"kernel": jnp.tile(jnp.array([[0.5, 0.0], [-1.0, 0.5]]), (32, 1))}
      >>> method = jn.binarize()
      >>> state = method.init(v)
      >>> method.view(v, state)["kernel"][:2]  # plus or minus the mean magnitude of the column
      Array([[ 0.75,  0.25],
             [-0.75,  0.25]], dtype=float32)
      >>> method.pack(v, state)["kernel"].nbytes, v["kernel"].nbytes  # 128 bits, and 2 scales
      (24, 512)
      >>> plain = jn.binarize(scale=None)
      >>> plain.view(v, plain.init(v))["kernel"][1]
      Array([-1.,  1.], dtype=float32)
    """
    constant = _checked(scale, gradient)
    root, generator = random_root(rounding, key, "binarize")

    def formed(leaf: Any, roles: Roles) -> Form:
        shape = scale_shape(leaf.shape, roles, GRANULARITY[str(scale)] if constant is None else "tensor")
        return Form(shape, constant, gradient, roles.stack, generator)

    def takes(path: str, leaf: Any, info: ModelInfo) -> LeafTraits | str:
        if (reason := why_not_matrix(path, leaf, info)) is not None:
            return reason
        return worth(leaf, *formed(leaf, info.roles_of(path, leaf.ndim)).nbytes(leaf.shape), keeps_zeros=False)

    def init(path: str, leaf: Any, known: Known) -> tuple[Any, Any]:
        own = None if root is None else jax.random.fold_in(root, np.uint32(zlib.crc32(path.encode())))
        return (), Binarized(formed(leaf, known.roles), None if own is None else jax.random.key_data(own))

    return leafwise(
        takes, init, _view, update=None if root is None else _drawn_anew, project=_clipped, pack=_pack,
        needs=frozenset({"roles"}), follows=_followed, name="binarize",
    )  # fmt: skip


def _checked(scale: Any, gradient: Any) -> float | None:
    """The constant scale, or None: a mean magnitude."""
    check_choice("binarize", "gradient", gradient, GRADIENTS)
    if isinstance(scale, str) and scale in GRANULARITY:
        return None
    if not (scale is None or (is_number(scale) and 0 < scale < math.inf)):
        raise ValueError(f"binarize(scale={in_words(scale)}): allowed are 'channel', 'layer', a number above 0, and None for 1")
    if gradient == "scaled":
        raise ValueError(
            f"binarize(scale={scale!r}, gradient='scaled'): that gradient is the one of a mean magnitude; pass "
            "scale='channel', or gradient='clip'"
        )
    return 1.0 if scale is None else float(scale)


def worth(leaf: Any, codes: int, scales: int, *, keeps_zeros: bool) -> LeafTraits | str:
    """The verdict on a leaf by the bytes of its codes and scales."""
    stored, before = codes + scales, math.prod(leaf.shape) * leaf.dtype.itemsize
    if stored >= before:
        return f"its codes and scales would take {stored} bytes, no less than the {before} that it has"
    share = f"keeps {stored / before:.0%} of its bytes: its scales take as much as its codes, or more"
    return LeafTraits("codes", keeps_zeros=keeps_zeros, notes=(share,) if scales >= codes else ())


@jax.jit
def _parts(leaf: Any, carried: Binarized) -> tuple[Any, Any, Any]:
    """Whether each weight is positive, the scales, and the largest magnitude of a weight."""
    form, wide = carried.form, leaf.astype(jnp.float32)
    bits = signs.positive(wide)
    if carried.key is not None:
        bits = jax.random.uniform(carried.key, wide.shape) < jnp.clip(0.5 * wide + 0.5, 0.0, 1.0)
    extent = jnp.max(jnp.abs(wide))
    if form.constant is not None:
        return bits, jnp.full(form.scale_shape, form.constant, jnp.float32), extent
    # the order of a sum must not depend on what it is fused with: pack and view need equal bits
    mean = affine.mean_magnitude(jax.lax.optimization_barrier(wide), form.scale_shape)
    return bits, jax.lax.optimization_barrier(mean), extent


@jax.jit
def _view(leaf: Any, learnt: Any, carried: Binarized) -> Any:
    free = jax.lax.stop_gradient(leaf)
    bits, scale, _ = _parts(free, carried)
    wide = _through(leaf.astype(jnp.float32), bits, scale, carried.form)
    return wide.astype(leaf.dtype)


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def _through(wide: Any, bits: Any, scale: Any, form: Form) -> Any:
    return affine.dequantize(signs.signs(bits), scale, None)


@_through.defjvp
def _through_jvp(form: Form, primals: Any, tangents: Any) -> tuple[Any, Any]:
    wide, bits, scale = primals
    inside = (jnp.abs(wide) <= 1).astype(jnp.float32)
    if form.gradient == "scaled":
        count = math.prod(wide.shape) // max(math.prod(form.scale_shape), 1)
        inside = np.float32(1 / count) + affine.expand_groups(scale, wide.shape) * inside
    return _through(wide, bits, scale, form), tangents[0] * inside


def _clipped(leaf: Any, learnt: Any, carried: Binarized) -> tuple[Any, Any]:
    return jnp.clip(leaf, -1.0, 1.0), learnt


def _drawn_anew(leaf: Any, learnt: Any, carried: Binarized, step: Any, grad: Any) -> Binarized:
    return Binarized(carried.form, jax.random.key_data(jax.random.fold_in(carried.key, step)))


def _pack(path: str, leaf: Any, learnt: Any, carried: Binarized) -> Binary:
    bits, scale, extent = _parts(leaf, carried)
    check_finite(path, extent)
    return Binary.from_signs(bits, scale, dtype=leaf.dtype, stack=carried.form.stack, name=path)


def _followed(learnt: Any, carried: Binarized, cut: Cut) -> tuple[Any, Any] | str:
    shape = cut_scales(carried.form.scale_shape, cut)
    if isinstance(shape, str):
        return shape
    return learnt, dataclasses.replace(carried, form=carried.form._replace(scale_shape=shape))
