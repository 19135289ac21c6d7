"""Allocation by measured sensitivity."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_nn.core.model import Known
from jaxopt_nn.core.tap import Probe
from jaxopt_nn.methods.allocations.base import Allocation, keep_all, kept, layers
from jaxopt_nn.methods.criteria.base import asking
from jaxopt_nn.numerics import topk

#: Shares of zeros at which a leaf's loss is measured.
LEVELS = (0.25, 0.5, 0.75, 0.9, 1.0)


def by_sensitivity(levels: Sequence[float] = LEVELS) -> Allocation:
    """Most goes where the loss rises least, by a measurement of each leaf alone.

    ``calibrate`` measures the loss with one leaf at a time without the smallest of its weights, at each of ``levels`` shares of
    zeros. Between levels the rise is taken as linear, beyond the last as what it was before; a curve that bends back is made
    convex from below. Then the cheapest stretches of all leaves go first until the total is reached, which is optimal where
    rises add up (Molchanov et al. 2017, section 3.3, order filters so). Costs leaves x levels evaluations.

    Args:
      levels: rising shares of zeros in (0, 1].

    Returns:
      An allocation; the number kept is exact over all leaves, but for what a stack rounds: its layers keep equally many.

    Raises:
      ValueError: levels that do not rise within (0, 1].

    Example:
      >>> apply = lambda v, x: x @ v["used"] + 0.01 * x @ v["idle"]
      >>> eye = jnp.eye(4) + 0.1
      >>> net = jn.Network(apply, {"used": eye, "idle": eye})
      >>> x = np.eye(4, dtype=np.float32)
      >>> task = jn.regression(test=(x, np.asarray(apply(net.variables, x))))
      >>> method = jn.prune(sparsity=0.5, allocation=jn.by_sensitivity())
      >>> state = method.init(net.variables, jn.calibrate(net, method, task))
      >>> {path: int(own.mask.sum()) for path, own in state.carried.items()}
      {'idle': 0, 'used': 16}
    """
    levels = tuple(levels)
    if not levels or list(levels) != sorted(set(levels)) or not 0 < levels[0] <= levels[-1] <= 1:
        raise ValueError(f"by_sensitivity(levels={levels}): rising shares of zeros, above 0 and up to 1, e.g. (0.5, 0.9, 1.0)")

    @asking(probes={"rises": Probe(functools.partial(_rises, levels))}, gradients=False)
    def allocate(scores: dict[str, jax.Array], known: Mapping[str, Known], sparsity: Any) -> dict[str, jax.Array]:
        facts = {path: layers(score.shape, known[path].roles) for path, score in scores.items()}
        copies = np.array([n for n, _ in facts.values()], np.int32)
        sizes = np.array([math.prod(dims) for _, dims in facts.values()], np.int32)
        rises = jnp.stack([known[path].stats["rises"] for path in scores])
        total = kept(int((copies.astype(np.int64) * sizes).sum()), sparsity)
        counts = _counts(rises, np.array([levels], np.float32), copies, sizes, total)
        if topk.on_host(*scores.values()):
            counts = np.asarray(counts)
        return keep_all(scores, known, dict(zip(scores, counts, strict=True)))

    return allocate


def _rises(
    levels: tuple[float, ...], loss: Callable[..., Any], leaves: dict[str, Any], taken: Sequence[str], key: Any
) -> dict[str, Any]:
    """``{path: float32 [levels]}``: the loss without the smallest of a leaf, less the loss with all of it."""
    alike: dict[Any, list[str]] = {}
    for path in taken:
        alike.setdefault((leaves[path].shape, leaves[path].dtype), []).append(path)
    stacks = [jnp.stack([leaves[path] for path in paths]) for paths in alike.values()]
    base = loss(leaves)

    def risen(case: tuple[Any, Any, Any]) -> Any:
        group, place, share = case
        now = dict(leaves)
        for g, (paths, stack) in enumerate(zip(alike.values(), stacks, strict=True)):
            new = jax.lax.cond(group == g, functools.partial(_without, share=share), lambda stack, _: stack, stack, place)
            now |= {path: new[i] for i, path in enumerate(paths)}
        return loss(now) - base

    # One program for all leaves: a leaf is a place in the stack of those of its shape.
    cases = [(g, i, share) for g, paths in enumerate(alike.values()) for i, _ in enumerate(paths) for share in levels]
    groups, places, shares = zip(*cases)
    found = jax.lax.map(risen, (jnp.array(groups), jnp.array(places), jnp.array(shares, jnp.float32)))
    rows = found.reshape(-1, len(levels))
    return {path: rows[i] for i, path in enumerate(path for paths in alike.values() for path in paths)}


def _without(stack: jax.Array, place: Any, *, share: Any) -> jax.Array:
    """The stack, in the leaf at ``place`` a share of the smallest entries zero."""
    leaf = stack[place]
    count = leaf.size - jnp.round(share * leaf.size).astype(jnp.int32)
    stays = topk.keep_largest(jnp.abs(leaf.astype(jnp.float32)), count)
    return stack.at[place].set(jnp.where(stays, leaf, jnp.zeros_like(leaf)))


@jax.jit
def _counts(rises: jax.Array, levels: Any, copies: Any, sizes: Any, total: Any) -> jax.Array:
    """Entries to keep in each layer of each leaf, int32."""
    ends = jnp.round(levels * sizes[:, None]).astype(jnp.int32)
    ends = jnp.concatenate([jnp.zeros_like(ends[:, :1]), ends, sizes[:, None]], 1) * copies[:, None]
    lengths = jnp.diff(ends, axis=1)  # of the stretches between levels, in entries
    last = jnp.diff(rises, axis=1, prepend=0.0)[:, -1:] / jnp.maximum(lengths[:, -2:-1], 1)
    heights = jnp.concatenate([jnp.zeros_like(last), rises, rises[:, -1:] + last * lengths[:, -1:]], 1)
    order = jnp.argsort(_convex(heights, ends), axis=None, stable=True)
    whole = lengths.reshape(-1)[order]
    gone = jnp.clip(jnp.sum(whole) - total - (jnp.cumsum(whole) - whole), 0, whole)
    gone = jnp.zeros_like(whole).at[order].set(gone).reshape(lengths.shape).sum(1)
    counts = sizes - gone // copies
    # What stacks round: leaves without one make up for it.
    left = total - jnp.sum(counts * copies)
    room = jnp.where(copies == 1, jnp.where(left > 0, sizes - counts, counts), 0)
    taken = jnp.clip(jnp.abs(left) - (jnp.cumsum(room) - room), 0, room)
    return counts + jnp.sign(left) * taken


def _convex(heights: jax.Array, ends: jax.Array) -> jax.Array:
    """Slopes ``[leaves, stretches]`` of the convex curve below the points: ``max over i <= j of min over k >= j`` of the mean
    slope from stretch ``i`` to stretch ``k`` (isotonic regression)."""
    rise = heights[:, None, 1:] - heights[:, :-1, None]
    mean = rise / jnp.maximum(ends[:, None, 1:] - ends[:, :-1, None], 1)
    lowest = jax.lax.cummin(mean, axis=2, reverse=True)
    count = mean.shape[1]
    before = np.arange(count)[:, None] <= np.arange(count)
    return jnp.max(jnp.where(before[None], lowest, -jnp.inf), axis=1)
