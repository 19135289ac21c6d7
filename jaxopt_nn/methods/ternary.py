"""Ternary weights: minus or plus a scale, or zero.

TWN (Li and Liu 2016): ``alpha sign(w)`` where ``|w| > D``, with ``D = 0.7 mean|w|`` and ``alpha`` the mean of the magnitudes
above it, the nearest of all for this threshold; straight through: the latent weight gets the gradient ``g`` at the ternary one.

TTQ (Zhu et al. 2017): ``Wp`` where ``w > D``, ``-Wn`` where ``w < -D``, with ``D = 0.05 max|w|`` and two learnt scales.
Their gradients are sums over their members (eq. 7): ``sum g`` for Wp and, since -Wn is what stands there, ``-sum g`` for Wn.
The latent weight gets ``Wp g``, ``g`` or ``Wn g`` (eq. 8), above, between and below.
"""

from __future__ import annotations

import dataclasses
import math
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
from jaxopt_nn.methods import clusters
from jaxopt_nn.methods.binary import GRANULARITY, packed_bytes, worth
from jaxopt_nn.methods.quantize import check_finite, cut_scales, scale_shape
from jaxopt_nn.numerics import affine
from jaxopt_nn.tensors.codebook import Codebook
from jaxopt_nn.tensors.qtensor import QTensor

#: The threshold of each kind, over the mean (TWN) or the largest (TTQ) magnitude.
THRESHOLDS = {"twn": 0.7, "ttq": 0.05}


class Form(NamedTuple):
    """How one leaf is made ternary; static.

    Attributes:
      kind: ``"twn"`` or ``"ttq"``.
      threshold: over the mean or the largest magnitude.
      scale_shape: along each axis 1, or the leaf's length.
      stack: the leaf's stack axes.
    """

    kind: str
    threshold: float
    scale_shape: tuple[int, ...]
    stack: tuple[int, ...]


@partial(jax.tree_util.register_dataclass, data_fields=[], meta_fields=["form"])
@dataclasses.dataclass(frozen=True)
class Ternary:
    """State of one leaf: its format, static."""

    form: Form


def ternarize(kind: str = "twn", *, threshold: float | None = None, scale: str = "layer") -> Transform:
    """Gives each weight one of three values, one of them zero, in two bits.

    Args:
      kind: ``"twn"``: one scale, the mean of the magnitudes above the threshold; ``"ttq"``: two, for positive and negative
        weights, which are ``learnt``; they start as the means of their members' magnitudes.
      threshold: what a magnitude must exceed to be no zero, over the mean magnitude (``"twn"``, 0.7 if None) or the largest
        (``"ttq"``, 0.05 if None).
      scale: ``"layer"``: threshold and scales are those of each layer, as in both papers; ``"channel"``: of each output.

    Returns:
      A ``Transform`` that packs into ``QTensor`` of 2 bits (``"twn"``) or ``Codebook`` of two values and zero (``"ttq"``); it
      takes float leaves that some site contracts and whose codes and scales weigh less than they do. What is exactly zero stays
      zero.

    Raises:
      ValueError: a value outside the above; at ``pack``, NaN or Inf.

    Example:
      >>> v = {"kernel": jnp.tile(jnp.array([[1.0, -0.5, 0.25, 0.0]]), (8, 4))}
      >>> method = jn.ternarize()
      >>> method.view(v, method.init(v))["kernel"][0, :4]  # above 0.7 of 0.4375; the mean of 1 and 0.5
      Array([ 0.75, -0.75,  0.  ,  0.  ], dtype=float32)
      >>> method = jn.ternarize("ttq")
      >>> state = method.init(v)
      >>> state.learnt["kernel"].ravel()  # Wp, the mean of 1 and 0.25, and Wn
      Array([0.625, 0.5  ], dtype=float32)
      >>> loss = lambda learnt: method.view(v, jn.State(learnt, state.carried))["kernel"].sum()
      >>> jax.grad(loss)(state.learnt)["kernel"].ravel()
      Array([ 64., -32.], dtype=float32)
      >>> method.pack(v, state)["kernel"].nbytes, v["kernel"].nbytes  # 2 bits each, and two floats
      (40, 512)
    """
    share = _checked(kind, threshold, scale)

    def formed(leaf: Any, roles: Roles) -> Form:
        return Form(kind, share, scale_shape(leaf.shape, roles, GRANULARITY[scale]), roles.stack)

    def takes(path: str, leaf: Any, info: ModelInfo) -> LeafTraits | str:
        if (reason := why_not_matrix(path, leaf, info)) is not None:
            return reason
        form = formed(leaf, info.roles_of(path, leaf.ndim))
        narrow = 4 if kind == "twn" else 2 * min(leaf.dtype.itemsize, 4)
        return worth(leaf, packed_bytes(leaf.shape, 2, form.stack), narrow * math.prod(form.scale_shape), keeps_zeros=True)

    def init(path: str, leaf: Any, known: Known) -> tuple[Any, Any]:
        form = formed(leaf, known.roles)
        if kind == "twn":
            return (), Ternary(form)
        start = partial(_started, form=form)
        return jax.eval_shape(start, leaf) if isinstance(leaf, jax.ShapeDtypeStruct) else start(leaf), Ternary(form)

    view, pack = (_twn_view, _twn_pack) if kind == "twn" else (_ttq_view, _ttq_pack)
    return leafwise(
        takes, init, view, pack=pack, needs=frozenset({"roles"}), follows=_followed, name=f"ternarize({kind})"
    )


def _checked(kind: Any, threshold: Any, scale: Any) -> float:
    """The threshold as a share."""
    check_choice("ternarize", "kind", kind, THRESHOLDS)
    check_choice("ternarize", "scale", scale, GRANULARITY)
    share = THRESHOLDS[kind] if threshold is None else threshold
    most, of = (math.inf, "mean") if kind == "twn" else (1.0, "largest")
    if not (is_number(share) and 0 <= share < most):
        bounds = "0 or more" if kind == "twn" else "from 0 to below 1"
        raise ValueError(
            f"ternarize({kind!r}, threshold={in_words(threshold)}): over the {of} magnitude, a number {bounds}, e.g. "
            f"{THRESHOLDS[kind]}"
        )
    return float(share)


def _codes(wide: Any, form: Form) -> Any:
    """-1, 0 and +1, float32."""
    # the order of a sum must not depend on what it is fused with: pack and view need equal bits
    wide = jax.lax.optimization_barrier(wide)
    measure = affine.mean_magnitude if form.kind == "twn" else affine.abs_max
    limit = jax.lax.optimization_barrier(measure(wide, form.scale_shape) * np.float32(form.threshold))
    return jnp.where(jnp.abs(wide) > affine.expand_groups(limit, wide.shape), jnp.sign(wide), 0.0)


def _mean_of(wide: Any, chosen: Any, form: Form) -> Any:
    """The mean magnitude of the chosen weights that share a scale, float32 of ``scale_shape``; 0 where there are none."""
    count = math.prod(wide.shape) // max(math.prod(form.scale_shape), 1)
    kept = affine.mean_magnitude(jnp.where(chosen, wide, 0.0), form.scale_shape)
    share = affine.mean_magnitude(chosen.astype(jnp.float32), form.scale_shape)
    return jnp.where(share > 0.5 / count, kept * (1.0 / jnp.where(share > 0, share, 1.0)), 0.0)


# -- one scale, of the weights themselves --------------------------------------------------------------------------------


@jax.jit
def _twn_parts(leaf: Any, carried: Ternary) -> tuple[Any, Any, Any]:
    """Codes, scales, and the largest magnitude of a weight."""
    wide, form = leaf.astype(jnp.float32), carried.form
    codes = jax.lax.optimization_barrier(_codes(wide, form))
    scale = _mean_of(jax.lax.optimization_barrier(wide), codes != 0, form)
    return codes, jax.lax.optimization_barrier(scale), jnp.max(jnp.abs(wide))


@jax.jit
def _twn_view(leaf: Any, learnt: Any, carried: Ternary) -> Any:
    codes, scale, _ = _twn_parts(jax.lax.stop_gradient(leaf), carried)
    return _straight(leaf.astype(jnp.float32), codes, scale).astype(leaf.dtype)


@jax.custom_jvp
def _straight(wide: Any, codes: Any, scale: Any) -> Any:
    return affine.dequantize(codes, scale, None)


@_straight.defjvp
def _straight_jvp(primals: Any, tangents: Any) -> tuple[Any, Any]:
    return _straight(*primals), tangents[0]


def _twn_pack(path: str, leaf: Any, learnt: Any, carried: Ternary) -> QTensor:
    codes, scale, extent = _twn_parts(leaf, carried)
    check_finite(path, extent)
    return QTensor.from_codes(
        codes.astype(jnp.int8), scale, bits=2, dtype=leaf.dtype, stack=carried.form.stack, name=path
    )


# -- two scales, which are learnt ----------------------------------------------------------------------------------------


@partial(jax.jit, static_argnames="form")
def _started(leaf: Any, form: Form) -> Any:
    """Wp and Wn, float32 ``[groups..., 2]``."""
    wide = leaf.astype(jnp.float32)
    codes = _codes(wide, form)
    return jnp.stack([_mean_of(wide, codes == sign, form) for sign in (1, -1)], -1)


def _places(leaf: Any, form: Form) -> Any:
    """The code of each weight, uint8: 0 for zero, 1 for Wp, 2 for -Wn."""
    codes = _codes(leaf.astype(jnp.float32), form)
    return jnp.where(codes < 0, 2, codes).astype(jnp.uint8)


def _table(learnt: Any) -> Any:
    """The values behind zero, ``[groups..., 2]``."""
    return learnt * np.array([1, -1], np.float32).reshape([1] * (learnt.ndim - 1) + [2])


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def _two_scales(leaf: Any, learnt: Any, places: Any, form: Form) -> Any:
    return Codebook.plain(places, _table(learnt), origin=True, dtype=leaf.dtype).densify()


@_two_scales.defjvp
def _two_scales_jvp(form: Form, primals: Any, tangents: Any) -> tuple[Any, Any]:
    leaf, learnt, places = primals
    dleaf, dlearnt, _ = tangents
    own = _two_scales(leaf, learnt, places, form)
    spread = lambda x: affine.expand_groups(x, leaf.shape)
    chosen = lambda of: jnp.where(places == 1, spread(of[..., 0]), jnp.where(places == 2, spread(of[..., 1]), 0.0))
    factor = jnp.where(places == 0, 1.0, chosen(learnt))
    return own, (factor * dleaf.astype(jnp.float32) + chosen(_table(dlearnt))).astype(leaf.dtype)


@jax.jit
def _ttq_view(leaf: Any, learnt: Any, carried: Ternary) -> Any:
    return _two_scales(leaf, learnt, _places(jax.lax.stop_gradient(leaf), carried.form), carried.form)


@jax.jit
def _ttq_parts(leaf: Any, carried: Ternary) -> tuple[Any, Any]:
    return _places(leaf, carried.form), jnp.max(jnp.abs(leaf.astype(jnp.float32)))


def _ttq_pack(path: str, leaf: Any, learnt: Any, carried: Ternary) -> Codebook:
    places, extent = _ttq_parts(leaf, carried)
    check_finite(path, extent)
    clusters.check_finite(path, learnt, "learnt scales")
    return Codebook.from_codes(
        places, _table(learnt), origin=True, dtype=leaf.dtype, stack=carried.form.stack, name=path
    )


def _followed(learnt: Any, carried: Ternary, cut: Cut) -> tuple[Any, Any] | str:
    shape = cut_scales(carried.form.scale_shape, cut)
    if isinstance(shape, str):
        return shape
    made = Ternary(carried.form._replace(scale_shape=shape))
    if carried.form.kind == "twn":
        return learnt, made
    places = cut.beside(np.arange(math.prod(carried.form.scale_shape)).reshape(carried.form.scale_shape))
    return places if isinstance(places, str) else (jnp.reshape(learnt, (-1, 2))[places], made)
