"""Scores of units: how much each is worth, one idea a file. The lowest go first.

A score is a callable ``(units: Units) -> [size]``, or None where it has nothing to say of a layer, which then stays. What it
must know beside weights it asks for by attributes: ``taps``, ``site -> {name: Tap}``, statistics of the sites that read the
units; ``probes``, ``{layer: AxisGroup} -> {name: Probe}``, statistics of the loss; ``layer_taps``, ``{name: LayerTap}``, of
layers whose units are a network's layers. It finds them in ``units.stats``.

Example:
  >>> def by_bias(units):  # a score: the size of a unit's bias
  ...     return np.abs(units.weights("bias"))
  >>> v = {"up": jnp.ones((2, 3)), "bias": jnp.array([1.0, -3.0, 0.5]), "down": jnp.ones((3, 1))}
  >>> net = jn.Network(lambda v, x: jax.nn.relu(x @ v["up"] + v["bias"]) @ v["down"], v)
  >>> jn.cut_units(by_bias, share=0.3).plan(net, jn.ModelInfo(), jnp.ones((1, 2))).kept["up"]
  array([0, 1])
"""

from jaxopt_nn.passes.scores.activations import largest_activation, mean_activation
from jaxopt_nn.passes.scores.base import Score
from jaxopt_nn.passes.scores.block_influence import angular_distance, block_influence
from jaxopt_nn.passes.scores.geometric_median import geometric_median
from jaxopt_nn.passes.scores.norm_scale import norm_scale
from jaxopt_nn.passes.scores.norms import l1_norm, l2_norm, norm_product
from jaxopt_nn.passes.scores.random import random
from jaxopt_nn.passes.scores.removal_error import removal_error
from jaxopt_nn.passes.scores.removal_loss import removal_loss
from jaxopt_nn.passes.scores.taylor import taylor

__all__ = [
    "Score",
    "angular_distance",
    "block_influence",
    "geometric_median",
    "l1_norm",
    "l2_norm",
    "largest_activation",
    "mean_activation",
    "norm_product",
    "norm_scale",
    "random",
    "removal_error",
    "removal_loss",
    "taylor",
]
