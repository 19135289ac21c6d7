"""The product of weight and gradient."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxopt_nn.core.model import Known
from jaxopt_nn.methods.criteria.base import asking

#: What to write where a criterion needs gradients.
SCHEDULE = (
    'sparsity=cubic(0.9, end=1000), in a config {"schedule": "cubic", "final": 0.9, "end": 0.4}'
)


@asking(gradients=True)
def saliency(weight: jax.Array, grad: jax.Array | None, known: Known) -> jax.Array:
    """``|w dL/dw|``, the first-order change of the loss, by the gradient of the step at which it is scored.

    Molchanov et al. (2017), eq. 8. At initialization, over calibration data, it is ``snip``.

    Args:
      weight: float32, the leaf.
      grad: of the loss, in the leaf's place, at what the forward pass sees; float32.
      known: not used.

    Returns:
      The score, of the weight's shape.

    Raises:
      ValueError: no gradient: ``init`` has none, so it needs a schedule that prunes in ``update``.

    Example:
      >>> jn.saliency(jnp.array([1.0, -2.0]), jnp.array([3.0, 0.5]), jn.Known(jn.Roles()))
      Array([3., 1.], dtype=float32)
      >>> method = jn.prune(jn.saliency, sparsity=jn.cubic(0.9, end=1000))
    """
    if grad is None:
        raise ValueError(
            f"saliency needs gradients, which update gets and init does not: pass a schedule that starts at 0, e.g. {SCHEDULE}"
        )
    return jnp.abs(weight * grad)
