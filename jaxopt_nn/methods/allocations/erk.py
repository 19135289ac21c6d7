"""Erdos-Renyi-kernel densities."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_nn.core.model import Known
from jaxopt_nn.methods.allocations.base import keep_all, kept, layers
from jaxopt_nn.numerics import topk


def erk(scores: dict[str, jax.Array], known: Mapping[str, Known], sparsity: jax.Array | float) -> dict[str, jax.Array]:
    """Erdos-Renyi-kernel: the density of a layer is proportional to ``sum(dims) / prod(dims)``.

    ``dims`` are its inputs and outputs (Mocanu et al. 2018, eq. 1), one number each however many axes they are laid out
    in, and the sides of a convolution's window (Evci et al. 2020, RigL, section 3). Thin layers stay dense, wide ones pay
    for it; a layer whose density would exceed 1 becomes dense, and the rest is rescaled. As in the authors' code, but that
    the total is exact where RigL rounds layer by layer: ``size - round(sparsity * size)`` over all leaves.
    Stack axes are no part of ``dims``, and each layer of a stack keeps equally many; leaves without a stack make up for
    what a stack rounds.

    Arguments and result as of ``per_leaf``.

    Example:
      >>> scores = {"wide": jnp.ones((100, 100)), "thin": jnp.ones((100, 4))}
      >>> known = {path: jn.Known(jn.Roles((), (0,), (1,))) for path in scores}
      >>> masks = jn.erk(scores, known, 0.9)
      >>> {path: round(float(mask.mean()), 3) for path, mask in masks.items()}
      {'thin': 0.89, 'wide': 0.068}
      >>> sum(int(mask.sum()) for mask in masks.values())  # a tenth of 10,400
      1040
    """
    facts = {path: layers(score.shape, known[path].roles) for path, score in scores.items()}
    # Densest first: so whoever exceeds 1 has had its turn before those that share what is left.
    order = sorted(facts, key=lambda path: -sum(facts[path][1]) / math.prod(facts[path][1]))
    total = kept(sum(score.size for score in scores.values()), sparsity)
    counts = _erk_counts(tuple(facts[path] for path in order), total)
    counts = np.asarray(counts) if topk.on_host(counts) else counts
    return keep_all({path: scores[path] for path in order}, known, dict(zip(order, counts, strict=True)))


@partial(jax.jit, static_argnums=0)
def _erk_counts(layers: tuple[tuple[int, tuple[int, ...]], ...], total: jax.Array) -> jax.Array:
    """Entries to keep in each layer, int32; ``layers`` are (number of them, dims), the densest first.

    With ``w = sum(dims)``, a sparse layer keeps ``e w`` where ``e`` is what is left over the sum of ``w`` of all layers
    from this one on. Taken in this order, cutting each at its size is the authors' loop over sets of dense layers: once a
    layer is sparse, ``e`` stays as it is.
    """
    copies = np.array([n for n, _ in layers], np.int32)
    sizes = np.array([math.prod(dims) for _, dims in layers], np.int32)
    weights = copies * np.array([max(sum(dims), 1) for _, dims in layers], np.float64)
    shares = (weights / np.cumsum(weights[::-1])[::-1]).astype(np.float32)

    def give(left: jax.Array, layer: Any) -> tuple[jax.Array, jax.Array]:
        share, size, copy = layer
        count = jnp.clip(jnp.round(left * share / copy).astype(jnp.int32), 0, size)
        return left - count * copy, count

    left, counts = jax.lax.scan(give, total, (jnp.asarray(shares), jnp.asarray(sizes), jnp.asarray(copies)))
    # What rounding left over, or took too much: the first leaves without a stack that have room for it.
    room = jnp.where(copies == 1, jnp.where(left > 0, sizes - counts, counts), 0)
    taken = jnp.clip(jnp.abs(left) - (jnp.cumsum(room) - room), 0, room)
    return counts + jnp.sign(left) * taken
