"""What an allocation is, and how it counts and chooses."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_nn.core.model import Known, Roles
from jaxopt_nn.numerics import topk

#: ``({path: score}, {path: Known}, sparsity) -> {path: bool mask}``; True is kept. Scores are float32, one for each thing that
#: is kept or goes: of single weights they have the leaf's shape, of blocks one entry a block along the same axes. One whose
#: leaves don't depend on each other may say so in an attribute ``leaf_local = True``: then layers can be calibrated one by one.
Allocation = Callable[[dict[str, jax.Array], Mapping[str, Known], Any], dict[str, jax.Array]]


def kept(size: int, sparsity: Any) -> Any:
    """Entries to keep of ``size``: ``size - round(sparsity * size)``, half to even, int32.

    A number counts exactly. A schedule's float32 is read to six decimals, so that its 0.9 means nine tenths of fifty million
    too; the product of the millionths and the size is taken in integers.
    """
    if size >= 2**31:
        raise ValueError(f"{size:,} weights share one budget; at most 2^31 - 1 are counted: use allocation=per_leaf")
    if isinstance(sparsity, (int, float)):
        return np.int32(size - round(sparsity * size))
    millionths = jnp.round(jnp.clip(jnp.asarray(sparsity, jnp.float32), 0, 1) * 1e6).astype(jnp.uint32)
    millions, rest = divmod(size, 10**6)
    thousands, ones = (np.uint32(n) for n in divmod(rest, 1000))
    large = thousands * millionths  # thousandths
    small = large % 1000 * 1000 + ones * millionths  # millionths
    gone = np.uint32(millions) * millionths + large // 1000 + small // 10**6
    left = small % 10**6
    gone += (left > 500_000) | ((left == 500_000) & (gone % 2 == 1))
    return size - gone.astype(jnp.int32)


def keep(score: Any, stack: tuple[int, ...], k: Any) -> jax.Array:
    """The mask of the ``k`` largest scores of each layer of a stack; ``k`` is a number, or one a layer."""
    rows = math.prod(score.shape[a] for a in stack)
    if topk.on_host(score, k):
        moved = np.moveaxis(np.asarray(score), stack, range(len(stack)))
        each = zip(moved.reshape(rows, -1), np.broadcast_to(np.asarray(k), (rows,)), strict=True)
        masks = np.stack([topk.keep_largest_on_host([row], own)[0] for row, own in each])
        return jax.device_put(np.moveaxis(masks.reshape(moved.shape), range(len(stack)), stack))
    return _keep(score, stack, k)


def keep_all(scores: Mapping[str, Any], known: Mapping[str, Known], counts: Mapping[str, Any]) -> dict[str, jax.Array]:
    """``keep`` of every leaf. Traced, leaves of one shape are one computation, so that depth costs no time to compile."""
    traced = any(isinstance(x, jax.core.Tracer) for x in (*scores.values(), *counts.values()))
    if not traced:
        return {path: keep(score, known[path].roles.stack, counts[path]) for path, score in scores.items()}
    alike: dict[Any, list[str]] = {}
    for path, score in scores.items():
        alike.setdefault((score.shape, known[path].roles.stack), []).append(path)
    masks: dict[str, jax.Array] = {}
    for (shape, stack), paths in alike.items():
        rows = math.prod(shape[a] for a in stack)
        each = jnp.stack([jnp.broadcast_to(jnp.asarray(counts[path]), (rows,)) for path in paths])
        whole = _keep(jnp.stack([scores[path] for path in paths]), (0, *(a + 1 for a in stack)), each.reshape(-1))
        masks |= {path: whole[i] for i, path in enumerate(paths)}
    return {path: masks[path] for path in scores}


@partial(jax.jit, static_argnums=1)
def _keep(score: jax.Array, stack: tuple[int, ...], k: Any) -> jax.Array:
    moved = jnp.moveaxis(score, stack, range(len(stack)))
    rows = moved.reshape((-1, *moved.shape[len(stack) :])) if stack else moved[None]
    masks = jax.vmap(topk.keep_largest)(rows, jnp.broadcast_to(k, (len(rows),)))
    return jnp.moveaxis(masks.reshape(moved.shape), range(len(stack)), stack)


def layers(shape: tuple[int, ...], roles: Roles) -> tuple[int, tuple[int, ...]]:
    """How many layers a leaf holds, and the inputs, the outputs and the sides of the window of one.

    However many axes its features are laid out in (an attention's heads), a matrix has two of these.
    """
    matrix = [tuple(a for a in roles.input if a not in roles.window), roles.output]
    features = [math.prod(shape[a] for a in axes) for axes in matrix if axes]
    rest = set(range(len(shape))).difference(roles.stack, *matrix)
    return math.prod(shape[a] for a in roles.stack), (*features, *(shape[a] for a in sorted(rest)))
