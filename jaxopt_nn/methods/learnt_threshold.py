"""Thresholds that are trained by gradient."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_nn.core.arguments import require
from jaxopt_nn.core.cuts import Cut
from jaxopt_nn.core.leafwise import leafwise
from jaxopt_nn.core.model import Known, ModelInfo
from jaxopt_nn.core.transform import LeafTraits, Transform, why_not_matrix
from jaxopt_nn.methods.structures.base import Structure, single_weights
from jaxopt_nn.tensors.base import is_compressed


def learnt_threshold(start: float = 1e-3, *, decay: float = 1e-4, structure: Structure = single_weights) -> Transform:
    """Soft thresholds that are learnt, one a layer: STR (Kusupati et al. 2020, eq. 4).

    ``sign(w) max(|w| - t, 0)`` with ``t = sigmoid(s)``; ``s`` is ``learnt`` beside the weights, so that the layers share out
    the zeros by themselves. What pushes ``t`` up is the decay of ``s`` towards 0, where ``t`` is a half: ``decay * s`` is added
    to its gradient where there is one, as their weight decay does. So the sparsity comes out, and can't be asked for: a larger
    decay gives more zeros.
    Of blocks: ``w max(1 - t / r, 0)``, ``r`` the root of the mean square of the block (Yuan & Lin 2006).

    Args:
      start: the first threshold, in (0, 1), in units of the weights.
      decay: 0 or more.
      structure: ``single_weights`` or ``blocks(...)``.

    Returns:
      A ``Transform`` that packs into ``Masked``; gradients reach kept weights, and the thresholds.

    Raises:
      ValueError: values outside the above; a structure that keeps as many in each of its groups, and so has no threshold.

    Example:
      >>> v = {"kernel": jnp.array([[0.5, -2.0], [0.1, 3.0]])}
      >>> method = jn.learnt_threshold(0.25)
      >>> state = method.init(v)
      >>> method.view(v, state)["kernel"]
      Array([[ 0.25, -1.75],
             [ 0.  ,  2.75]], dtype=float32)
      >>> slope = jax.grad(lambda learnt: method.view(v, jn.State(learnt, state.carried))["kernel"].sum())(state.learnt)
      >>> slope["kernel"].round(4)  # -(1 - 1 + 1) t (1 - t), and 1e-4 s
      Array([[-0.1876]], dtype=float32)
    """
    if not 0 < start < 1:
        raise ValueError(f"learnt_threshold(start={start}): the first threshold, above 0 and below 1, e.g. 1e-3")
    if not 0 <= decay < math.inf:
        raise ValueError(f"learnt_threshold(decay={decay}): a number from 0, e.g. 1e-4")
    require(structure, Structure, "learnt_threshold: structure", "a Structure: single_weights, blocks(8, 128)")
    if structure.select is not None:
        raise ValueError(
            f"learnt_threshold(structure={structure.name}): keeps as many in each of its groups, whatever the threshold; pass "
            "structure=single_weights or blocks(...)"
        )

    def takes(path: str, leaf: Any, info: ModelInfo) -> LeafTraits | str:
        reason = why_not_matrix(path, leaf, info) or structure.takes(tuple(leaf.shape), info.roles_of(path, leaf.ndim))
        return LeafTraits("mask") if reason is None else reason

    def init(path: str, leaf: Any, known: Known) -> tuple[Any, Any]:
        shape = [n if a in known.roles.stack else 1 for a, n in enumerate(leaf.shape)]
        return jnp.full(shape, math.log(start / (1 - start)), jnp.float32), Known(known.roles)

    def view(leaf: Any, learnt: Any, carried: Known) -> Any:
        return _shrunk(leaf, _decaying(learnt, decay), structure, carried)

    def pack(path: str, leaf: Any, learnt: Any, carried: Known) -> Any:
        if is_compressed(leaf):
            return leaf
        seen = _compiled(leaf, learnt, structure, carried)  # to the bits of a compiled view
        return structure.pack(structure.entries(jnp.abs(seen.astype(jnp.float32)), carried.roles) > 0, seen, carried.roles)

    def follows(learnt: Any, carried: Any, cut: Cut) -> tuple[Any, Any] | str:
        beside = cut.beside(learnt)
        return beside if isinstance(beside, str) else (beside, carried)

    needs = frozenset({"roles"})
    return leafwise(takes, init, view, pack=pack, follows=follows, needs=needs, name="learnt_threshold")


def _shrunk(leaf: Any, learnt: Any, structure: Structure, known: Known) -> Any:
    wide, level = leaf.astype(jnp.float32), jax.nn.sigmoid(learnt)
    if structure is single_weights:
        return (jnp.sign(wide) * jax.nn.relu(jnp.abs(wide) - level)).astype(leaf.dtype)
    squares = structure.entries(jnp.square(wide), known.roles)
    some = squares > 0
    factor = jnp.where(some, jax.nn.relu(1 - level * jax.lax.rsqrt(jnp.where(some, squares, 1.0))), 0.0)
    return (wide * structure.spread(factor, leaf.shape, known.roles)).astype(leaf.dtype)


_compiled = jax.jit(_shrunk, static_argnums=2)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _decaying(s: Any, decay: float) -> Any:
    """``s``, whose gradient gets ``decay * s`` added; none where there is none: what is held is held."""
    return s


def _forward(s: Any, decay: float) -> tuple[Any, Any]:
    return s, s


def _backward(decay: float, s: Any, slope: Any) -> tuple[Any]:
    return (slope + decay * s * jnp.any(slope != 0),)


_decaying.defvjp(_forward, _backward)
