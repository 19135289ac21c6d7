"""Movement pruning."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxopt_nn.core.model import Known
from jaxopt_nn.methods.criteria.base import Memory, asking


def _moved(held: jax.Array, weight: jax.Array, grad: jax.Array) -> jax.Array:
    return held - weight * grad


@asking(memory={"movement": Memory(jnp.zeros_like, _moved)}, gradients=False, signed=True)
def movement(weight: jax.Array, grad: jax.Array | None, known: Known) -> jax.Array:
    """``-sum of w dL/dw`` over all steps so far: weights that move away from zero stay (Sanh et al. 2020, eq. 3, "hard").

    For fine-tuning: what is small but grows outlives what is large but shrinks. Masked weights go on collecting, by the dense
    gradient. ``every`` around the pruning would make it collect at those steps only.

    Args:
      weight: not used.
      grad: not used; ``update`` adds it up.
      known: its ``stats["movement"]``, float32 of the weight's shape.

    Returns:
      The score, of the weight's shape; of either sign.

    Example:
      >>> method = jn.prune(jn.movement, sparsity=jn.cubic(0.5, end=1))
      >>> v = {"kernel": jnp.array([[3.0, 1.0]])}
      >>> state = method.init(v)
      >>> for step in range(2):  # the gradient makes the large weight smaller, and the small one larger
      ...     state = method.update(v, state, step=step, grads={"kernel": jnp.array([[1.0, -1.0]])})
      >>> method.view(v, state)["kernel"]
      Array([[0., 1.]], dtype=float32)
    """
    return known.stats["movement"]
