"""Scores drawn at random."""

from __future__ import annotations

from typing import Any

import jax

from jaxopt_nn.core.model import Known
from jaxopt_nn.methods.criteria.base import Criterion, asking


def random_scores(key: Any) -> Criterion:
    """Scores drawn evenly from [0, 1): what every other criterion must beat.

    Each leaf has its own draw, by its path. On a schedule the draw stays, so that what has gone stays gone.

    Args:
      key: a PRNG key or a seed.

    Returns:
      A criterion.

    Example:
      >>> method = jn.prune(jn.random_scores(0), sparsity=0.5)
      >>> v = {"kernel": jnp.ones((4, 4))}
      >>> int(method.init(v).carried["kernel"].mask.sum())
      8
    """

    @asking(key=key, gradients=False)
    def drawn(weight: jax.Array, grad: jax.Array | None, known: Known) -> jax.Array:
        return jax.random.uniform(known.stats["key"], weight.shape)

    return drawn
