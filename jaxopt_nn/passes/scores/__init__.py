"""Scores of units: how much each is worth, one idea a file. The lowest go first.

A score is a callable ``(units: Units) -> [size]``, or None where it has nothing to say of a layer, which then stays. What it
must know beside weights it asks for by attributes: ``taps``, ``site -> {name: Tap}``, statistics of the sites that read the
units; ``probes``, ``{layer: AxisGroup} -> {name: Probe}``, statistics of the loss. It finds them in ``units.stats``.
"""

from jaxopt_nn.passes.scores.activations import largest_activation, mean_activation
from jaxopt_nn.passes.scores.base import Score
from jaxopt_nn.passes.scores.geometric_median import geometric_median
from jaxopt_nn.passes.scores.norm_scale import norm_scale
from jaxopt_nn.passes.scores.norms import l1_norm, l2_norm, norm_product
from jaxopt_nn.passes.scores.random import random
from jaxopt_nn.passes.scores.taylor import taylor

__all__ = [
    "Score",
    "geometric_median",
    "l1_norm",
    "l2_norm",
    "largest_activation",
    "mean_activation",
    "norm_product",
    "norm_scale",
    "random",
    "taylor",
]
