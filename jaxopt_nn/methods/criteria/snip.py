"""Pruning at initialization by what weights do to the loss, and to its gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_nn.core.model import Known
from jaxopt_nn.core.tap import Probe
from jaxopt_nn.methods.criteria.base import asking


def _slope(loss: Callable[..., Any], leaves: dict[str, Any], taken: Sequence[str], key: Any) -> dict[str, Any]:
    found = jax.grad(loss)(leaves)
    return {path: found[path].astype(jnp.float32) for path in taken}


def _flow(loss: Callable[..., Any], leaves: dict[str, Any], taken: Sequence[str], key: Any) -> dict[str, Any]:
    """``H g``, the product of the Hessian with the gradient, among the leaves that are pruned."""
    own = {path: leaves[path].astype(jnp.float32) for path in taken}
    slope = jax.grad(lambda part: loss({**leaves, **part}))
    return jax.jvp(slope, (own,), (slope(own),))[1]


@asking(probes={"slope": Probe(_slope)}, gradients=False)
def snip(weight: jax.Array, grad: jax.Array | None, known: Known) -> jax.Array:
    """``|w dL/dw|`` over calibration data, before any training: SNIP (Lee et al. 2019, eq. 4).

    The gradient is the mean over the examples that ``calibrate`` takes; theirs is that of one minibatch. They share one budget
    over all layers: ``allocation=global_budget``.

    Args:
      weight: float32, the leaf.
      grad: not used.
      known: its ``stats["slope"]``, float32 of the weight's shape.

    Returns:
      The score, of the weight's shape.

    Example:
      >>> net = jn.Network(lambda v, x: x @ v["kernel"], {"kernel": jnp.array([[2.0], [1.0]])})
      >>> task = jn.regression(test=(np.array([[1.0, 8.0]], np.float32), np.zeros((1, 1), np.float32)))
      >>> method = jn.prune(jn.snip, sparsity=0.5)
      >>> method.view(net.variables, method.init(net.variables, jn.calibrate(net, method, task)))["kernel"].ravel()
      Array([0., 1.], dtype=float32)
    """
    return jnp.abs(weight * known.stats["slope"])


@asking(probes={"flow": Probe(_flow)}, gradients=False, signed=True)
def grasp(weight: jax.Array, grad: jax.Array | None, known: Known) -> jax.Array:
    """``w * (H g)``: what a weight adds to the gradient's norm, before any training: GraSP (Wang et al. 2020, eq. 8).

    Their score of removal is ``-w * (H g)``, of which the highest go, so here the lowest. ``H g`` is a mean over minibatches
    of ``calibrate``. Departure: the loss is taken as it is, while their code divides the logits by 200. They share one budget
    over all layers: ``allocation=global_budget``.

    Args:
      weight: float32, the leaf.
      grad: not used.
      known: its ``stats["flow"]``, float32 of the weight's shape.

    Returns:
      The score, of the weight's shape; of either sign.

    Example:
      >>> net = jn.Network(lambda v, x: x @ v["kernel"], {"kernel": jnp.array([[2.0], [-1.0]])})
      >>> task = jn.regression(test=(np.array([[1.0, 1.0]], np.float32), np.zeros((1, 1), np.float32)))
      >>> method = jn.prune(jn.grasp, sparsity=0.5)  # the loss is (2 - 1)^2: what the first weight adds, training takes away
      >>> method.view(net.variables, method.init(net.variables, jn.calibrate(net, method, task)))["kernel"].ravel()
      Array([2., 0.], dtype=float32)
    """
    return weight * known.stats["flow"]
