"""The magnitude of a weight."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxopt_nn.core.model import Known
from jaxopt_nn.methods.criteria.base import asking


@asking(gradients=False)
def magnitude(weight: jax.Array, grad: jax.Array | None, known: Known) -> jax.Array:
    """``|w|``, the magnitude (Han et al. 2015); of a block the mean magnitude, its L1 norm.

    Args:
      weight: float32, the leaf.
      grad: not used.
      known: not used.

    Returns:
      The score, of the weight's shape.

    Example:
      >>> jn.magnitude(jnp.array([1.0, -2.0]), None, jn.Known(jn.Roles()))
      Array([1., 2.], dtype=float32)
      >>> method = jn.prune(jn.magnitude, sparsity=0.5)  # the default
    """
    return jnp.abs(weight)


@asking(gradients=False)
def energy(weight: jax.Array, grad: jax.Array | None, known: Known) -> jax.Array:
    """``w^2``: of single weights the order of ``magnitude``; of a block the order of its L2 norm.

    Arguments and result as of ``magnitude``.

    Example:
      >>> v = {"kernel": jnp.array([[3.0, 0.0, 2.0, 2.0]])}
      >>> pairs = jn.blocks(1, 2)
      >>> by_l1, by_l2 = (jn.prune(score, structure=pairs, sparsity=0.5) for score in (jn.magnitude, jn.energy))
      >>> by_l1.view(v, by_l1.init(v))["kernel"], by_l2.view(v, by_l2.init(v))["kernel"]
      (Array([[0., 0., 2., 2.]], dtype=float32), Array([[3., 0., 0., 0.]], dtype=float32))
    """
    return jnp.square(weight)
