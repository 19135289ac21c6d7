"""The same sparsity in every leaf."""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax

from jaxopt_nn.core.model import Known
from jaxopt_nn.methods.allocations.base import keep_all, kept, layers


def per_leaf(scores: dict[str, jax.Array], known: Mapping[str, Known], sparsity: jax.Array | float) -> dict[str, jax.Array]:
    """The same sparsity in every leaf, and in every layer of a stack.

    Args:
      scores: ``{path: float32 array}``: of the leaf's shape, or of blocks one entry a block.
      known: ``{path: Known}``, of which the stack axes count.
      sparsity: share of zeros in [0, 1], a number or a float32 scalar.

    Returns:
      ``{path: bool mask}`` of the scores' shapes; True is kept: ``size - round(sparsity * size)`` entries of each layer.

    Example:
      >>> scores = {"a": jnp.array([[1.0, 2.0]]), "b": jnp.array([[3.0, 4.0]])}
      >>> known = {path: jn.Known(jn.Roles((), (0,), (1,))) for path in scores}
      >>> jn.per_leaf(scores, known, 0.5)
      {'a': Array([[False,  True]], dtype=bool), 'b': Array([[False,  True]], dtype=bool)}
    """

    def count(path: str) -> jax.Array:
        return kept(math.prod(layers(scores[path].shape, known[path].roles)[1]), sparsity)

    return keep_all(scores, known, {path: count(path) for path in scores})
