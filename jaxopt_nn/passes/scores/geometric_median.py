"""Which units are like the others."""

from __future__ import annotations

import numpy as np

from jaxopt_nn.passes.units import Units


def geometric_median(units: Units) -> np.ndarray:
    """The sum of a unit's distances to all others, over its own weights: FPGM (He et al. 2019, eq. 4 to 6).

    The lowest is nearest to the geometric median of the layer: what it does others do too. Weights are those of the
    producers (a filter, the fan-in); small ones are no matter.

    Example:
      >>> v = {"up": jnp.array([[1.0, 2.0, 9.0], [0.0, 0.0, 0.0]]), "down": jnp.ones((3, 1))}
      >>> net = jn.Network(lambda v, x: jax.nn.relu(x @ v["up"]) @ v["down"], v)
      >>> cut = jn.cut_units(jn.scores.geometric_median, share=0.3)
      >>> cut.plan(net, jn.ModelInfo(), jnp.ones((1, 2))).kept["up"]  # 9, 8, 15: the one between the others goes
      array([0, 2])
    """
    rows = units.matrix("producer")
    squares = np.square(rows).sum(1)
    gaps = squares[:, None] + squares[None] - 2 * rows @ rows.T
    np.fill_diagonal(gaps, 0)
    return np.sqrt(np.maximum(gaps, 0)).sum(1)
