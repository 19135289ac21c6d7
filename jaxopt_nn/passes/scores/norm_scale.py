"""The scale of a normalization."""

from __future__ import annotations

import functools

import numpy as np

from jaxopt_nn.core.paths import matches
from jaxopt_nn.passes.scores.base import Score
from jaxopt_nn.passes.units import Units


@functools.cache
def norm_scale(pattern: str = "**/scale") -> Score:
    """``|gamma|`` of the BatchNorm behind a unit: network slimming (Liu et al. 2017); summed where there are several.

    A layer without such a vector stays whole. The paper trains with an L1 penalty on the scales first, and cuts with one
    threshold for all layers: ``allocation=lambda scores: scores``.

    Args:
      pattern: paths of the scales.

    Example:
      >>> def apply(v, x):
      ...     return jax.nn.relu((x @ v["up"]) * v["scale"]) @ v["down"]
      >>> v = {"up": jnp.ones((2, 3)), "scale": jnp.array([0.5, -0.1, 0.3]), "down": jnp.ones((3, 1))}
      >>> cut = jn.cut_units(jn.scores.norm_scale("scale"), share=0.3)
      >>> cut.plan(jn.Network(apply, v), jn.ModelInfo(), jnp.ones((1, 2))).kept["up"]
      array([0, 2])
    """

    def scale(units: Units) -> np.ndarray | None:
        own = [m.path for m in units.members("vector") if matches(pattern, m.path)]
        if not own:
            return None
        return units.total(lambda path: np.abs(units.weights(path)) * (path in own), "vector")

    return scale
