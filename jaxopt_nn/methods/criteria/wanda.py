"""Criteria that see activations: Wanda and RIA."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_nn.core.model import Known, Site
from jaxopt_nn.core.tap import Tap
from jaxopt_nn.methods.criteria.base import asking
from jaxopt_nn.methods.taps import square_sum

_TAP = "square_sum"


def _taps(site: Site) -> Mapping[str, Tap]:
    return {_TAP: square_sum()}


def _scored(name: str, weight: jax.Array, known: Known, score: Callable[[Any, Any], Any]) -> jax.Array:
    """``score(|matrix| [S..., I, O], norms of its inputs [S..., I, 1])``, as an array of the weight's shape.

    Raises:
      ValueError: no statistics, or a weight of which the site reads a part.
    """
    if known.matrix is None or _TAP not in known.stats:
        raise ValueError(f"{name} scores by the inputs of a layer; pass info=calibrate(network, method, batches)")
    if not known.matrix.whole:
        raise ValueError(
            f"{name}: of a leaf of shape {list(weight.shape)} the site reads a part, and other entries have no statistics "
            "here; leave it out with where() or by_path(), or make its parts leaves of their own"
        )
    norms = jnp.sqrt(known.stats[_TAP])[..., None]
    return known.matrix.put(weight, score(jnp.abs(known.matrix(weight)), norms))


@asking(taps=_taps, gradients=False)
def wanda(weight: jax.Array, grad: jax.Array | None, known: Known) -> jax.Array:
    """``|w_io| ||x_i||``: the magnitude times the L2 norm of the input feature (Sun et al. 2024, eq. 1).

    The paper compares within each output: ``allocation=per_output``.

    Args:
      weight: float32, the leaf.
      grad: not used.
      known: with the matrix and the statistic ``square_sum`` of its site.

    Returns:
      The score, of the weight's shape.

    Raises:
      ValueError: no statistics: ``info`` comes from ``calibrate``; a leaf of which the site reads a part only.

    Example:
      >>> net = jn.Network(lambda v, x: x @ v["kernel"], {"kernel": jnp.array([[2.0, 1.0], [1.0, 3.0]])})
      >>> method = jn.prune(jn.wanda, sparsity=0.5, allocation=jn.per_output)
      >>> info = jn.calibrate(net, method, [jnp.array([[1.0, 9.0]]), jnp.array([[1.0, 8.0]])])
      >>> method.view(net.variables, method.init(net.variables, info))["kernel"]  # the first input is quiet
      Array([[0., 0.],
             [1., 3.]], dtype=float32)
    """
    return _scored("wanda", weight, known, lambda size, norms: size * norms)


@asking(taps=_taps, gradients=False)
def ria(weight: jax.Array, grad: jax.Array | None, known: Known) -> jax.Array:
    """``(|w_io| / sum_o |w_io| + |w_io| / sum_i |w_io|) ||x_i||^(1/2)``: relative importance and activations.

    Zhang et al. (2024), eq. 4, with their exponent ``a = 0.5``. A weight counts by its share of what leaves its input and of
    what enters its output, so that no channel is lost whole.

    Args:
      weight, grad, known: as in ``wanda``.

    Returns:
      The score, of the weight's shape.

    Raises:
      ValueError: as ``wanda``.

    Example:
      >>> net = jn.Network(lambda v, x: x @ v["kernel"], {"kernel": jnp.array([[9.0, 4.0], [1.0, 3.0]])})
      >>> method = jn.prune(jn.ria, sparsity=0.5)
      >>> info = jn.calibrate(net, method, [jnp.array([[1.0, 1.0]])])
      >>> method.view(net.variables, method.init(net.variables, info))["kernel"]  # 3 is much of its line, 4 is not
      Array([[9., 0.],
             [0., 3.]], dtype=float32)
    """

    def score(size: jax.Array, norms: jax.Array) -> jax.Array:
        share = lambda axis: size / jnp.maximum(jnp.sum(size, axis, keepdims=True), jnp.finfo(jnp.float32).tiny)
        return (share(-1) + share(-2)) * jnp.sqrt(norms)

    return _scored("ria", weight, known, score)
