"""Weight pruning with masks: a score for each weight, the lowest are set to zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_nn.core.model import ModelInfo, Roles
from jaxopt_nn.core.paths import leaves_by_path, map_with_path
from jaxopt_nn.core.transform import LeafTraits, PyTree, State, Static, Traits, Transform, keep_params, why_not_matrix
from jaxopt_nn.numerics import topk
from jaxopt_nn.tensors.base import is_compressed
from jaxopt_nn.tensors.masked import Masked

#: ``(weight float32, gradient float32 or None) -> score`` of the same shape; the lowest scores go first.
Criterion = Callable[[jax.Array, jax.Array | None], jax.Array]
#: ``({path: score}, {path: roles}, sparsity) -> {path: bool mask}``; True is kept.
Allocation = Callable[[dict[str, jax.Array], dict[str, Roles], Any], dict[str, jax.Array]]


def magnitude(weight: jax.Array, grad: jax.Array | None = None) -> jax.Array:
    """``|w|`` (Han et al. 2015)."""
    return jnp.abs(weight)


def saliency(weight: jax.Array, grad: jax.Array | None = None) -> jax.Array:
    """``|w dL/dw|``, the first-order change of the loss (Molchanov et al. 2017, eq. 8; SNIP, Lee et al. 2019, eq. 4)."""
    if grad is None:
        raise ValueError(
            "saliency needs gradients, which update gets and init does not: pass a schedule that starts at 0, "
            "e.g. sparsity=optax.linear_schedule(0.0, 0.9, steps)"
        )
    return jnp.abs(weight * grad)


def _kept(size: int, sparsity: Any) -> jax.Array:
    """Entries to keep of ``size``: ``size - round(sparsity * size)``, int32."""
    return size - jnp.round(jnp.asarray(sparsity, jnp.float32) * size).astype(jnp.int32)


def per_leaf(scores: dict[str, jax.Array], roles: dict[str, Roles], sparsity: Any) -> dict[str, jax.Array]:
    """The same sparsity in every leaf, and in every layer of a stack."""

    def mask(path: str, score: jax.Array) -> jax.Array:
        stack = roles[path].stack
        moved = jnp.moveaxis(score, stack, range(len(stack)))
        rows = moved.reshape((-1, *moved.shape[len(stack) :])) if stack else moved[None]
        k = _kept(rows[0].size, sparsity)
        masks = jax.vmap(lambda s: topk.keep_largest(s, k))(rows)
        return jnp.moveaxis(masks.reshape(moved.shape), range(len(stack)), stack)

    return {path: mask(path, score) for path, score in scores.items()}


def global_budget(scores: dict[str, jax.Array], roles: dict[str, Roles], sparsity: Any) -> dict[str, jax.Array]:
    """One budget over all leaves together: the lowest scores of the whole network go."""
    flat = jnp.concatenate([score.reshape(-1) for score in scores.values()])
    mask = topk.keep_largest(flat, _kept(flat.size, sparsity))
    out, at = {}, 0
    for path, score in scores.items():
        out[path] = mask[at : at + score.size].reshape(score.shape)
        at += score.size
    return out


def prune(
    criterion: Criterion = magnitude, *, sparsity: float | Callable[[Any], Any], allocation: Allocation = per_leaf
) -> Transform:
    """Sets the weights of the lowest score to zero, exactly as many as asked, ties by position.

    Args:
      criterion: any callable of the signature ``Criterion``.
      sparsity: share of zeros in [0, 1], or a schedule ``step -> share``; a schedule is read in ``update`` (and at step 0
        in ``init``), a number prunes once, in ``init``.
      allocation: ``per_leaf``, ``global_budget``, or any callable of the signature ``Allocation``.

    Returns:
      A ``Transform`` whose masks live in ``carried`` and which packs into ``Masked``; gradients reach kept weights only.

    Raises:
      ValueError: sparsity outside [0, 1].
    """
    scheduled = callable(sparsity)
    if not scheduled and not 0 <= float(sparsity) <= 1:  # type: ignore[arg-type]
        raise ValueError(f"prune(sparsity={sparsity}): a share of zeros, 0 to 1, or a schedule of the step")

    def takes(path: str, leaf: Any, info: ModelInfo) -> LeafTraits | str:
        reason = why_not_matrix(path, leaf, info)
        return LeafTraits("mask") if reason is None else reason

    def masks(
        leaves: dict[str, Any], grads: dict[str, Any] | None, roles: dict[str, Roles], step: Any
    ) -> dict[str, Any]:
        scores = {p: criterion(x.astype(jnp.float32), None if grads is None else grads[p]) for p, x in leaves.items()}
        return allocation(scores, roles, sparsity(step) if scheduled else sparsity)  # type: ignore[operator]

    def init(params: PyTree, info: ModelInfo = ModelInfo()) -> State:
        taken = {p: x for p, x in leaves_by_path(params).items() if not isinstance(takes(p, x, info), str)}
        roles = {p: info.roles_of(p, x.ndim) for p, x in taken.items()}
        if not taken:
            return State((), {})
        with jax.ensure_compile_time_eval():
            nothing_yet = scheduled and float(sparsity(0)) == 0  # type: ignore[operator]

        def at_zero(leaves: dict[str, Any]) -> dict[str, Any]:
            # no score is needed yet, so that a criterion may wait for gradients
            return {p: jnp.ones(x.shape, bool) for p, x in leaves.items()} if nothing_yet else masks(leaves, None, roles, 0)

        abstract = any(isinstance(x, jax.ShapeDtypeStruct) for x in taken.values())
        made = jax.eval_shape(at_zero, taken) if abstract else jax.jit(at_zero)(taken)
        return State((), {p: {"mask": made[p], "roles": Static(roles[p])} for p in taken})

    def update(params: PyTree, state: State, *, step: Any = 0, grads: PyTree | None = None) -> State:
        if not scheduled or not state.carried:
            return state
        leaves = {p: x for p, x in leaves_by_path(params).items() if p in state.carried}
        slopes = (
            None
            if grads is None
            else {p: g.astype(jnp.float32) for p, g in leaves_by_path(grads).items() if p in leaves}
        )
        made = masks(leaves, slopes, {p: c["roles"].value for p, c in state.carried.items()}, step)
        return State((), {p: {**c, "mask": made[p]} for p, c in state.carried.items()})

    def view(params: PyTree, state: State) -> PyTree:
        def seen(path: str, leaf: Any) -> Any:
            return jnp.where(state.carried[path]["mask"], leaf, jnp.zeros_like(leaf)) if path in state.carried else leaf

        return map_with_path(seen, params)

    def pack(params: PyTree, state: State) -> PyTree:
        def packed(path: str, leaf: Any) -> Any:
            if path not in state.carried or is_compressed(leaf):
                return leaf
            own = state.carried[path]
            _finite(path, leaf)
            stack = own["roles"].value.stack
            leads = stack == tuple(range(len(stack)))
            return Masked.pack(own["mask"], leaf, stack_axes=len(stack) if leads else 0)

        return map_with_path(packed, params)

    # any criterion but magnitude may read gradients; only a schedule scores again after init
    needs = frozenset({"roles"} | ({"grads"} if scheduled and criterion is not magnitude else set()))
    return Transform(init, update, view, keep_params, pack, Traits(takes, allocation is per_leaf, needs))


@jax.jit
def _all_finite(leaf: Any) -> jax.Array:
    return jnp.all(jnp.isfinite(leaf))


def _finite(path: str, leaf: Any) -> None:
    if not bool(_all_finite(leaf)):
        raise ValueError(
            f"{path}: NaN or Inf among the {np.size(leaf)} weights; find the step that diverged, or clean the leaf first"
        )
