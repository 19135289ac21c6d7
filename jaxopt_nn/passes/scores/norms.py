"""How long the weights of a unit are."""

from __future__ import annotations

import numpy as np

from jaxopt_nn.passes.units import Units


def l1_norm(units: Units) -> np.ndarray:
    """The L1 norm of all weights of a unit, over all members of the group: fan-in, vectors, fan-out.

    Li et al. 2017 sum over the filter's own weights alone: ``lambda units: units.norm(1, "producer")``.

    Example:
      >>> v = {"up": jnp.array([[1.0, 2.0, -5.0]]), "down": jnp.array([[1.0], [-4.0], [0.0]])}
      >>> net = jn.Network(lambda v, x: jax.nn.relu(x @ v["up"]) @ v["down"], v)
      >>> jn.cut_units(jn.scores.l1_norm, share=0.3).plan(net, jn.ModelInfo(), jnp.ones((1, 1))).kept["up"]  # 2, 6, 5
      array([1, 2])
    """
    return units.norm(1)


def l2_norm(units: Units) -> np.ndarray:
    """The L2 norm of all weights of a unit, over all members of the group (Fang et al. 2023, eq. 5, without their sparsity).

    Example:
      >>> v = {"up": jnp.array([[1.0, 2.0, -5.0]]), "down": jnp.array([[1.0], [-4.0], [0.0]])}
      >>> net = jn.Network(lambda v, x: jax.nn.relu(x @ v["up"]) @ v["down"], v)
      >>> jn.cut_units(jn.scores.l2_norm, share=0.6).plan(net, jn.ModelInfo(), jnp.ones((1, 1))).kept["up"]  # 1.4, 4.5, 5
      array([2])
    """
    return units.norm(2)


def norm_product(units: Units) -> np.ndarray:
    """L2 norm of the fan-in times that of the fan-out; zero where either is.

    For ReLU units it does not change when a unit's fan-in is scaled up and its fan-out down.

    Example:
      >>> v = {"up": jnp.array([[1.0, 2.0, -5.0]]), "down": jnp.array([[1.0], [-4.0], [0.0]])}
      >>> net = jn.Network(lambda v, x: jax.nn.relu(x @ v["up"]) @ v["down"], v)
      >>> cut = jn.cut_units(jn.scores.norm_product, share=0.6)
      >>> cut.plan(net, jn.ModelInfo(), jnp.ones((1, 1))).kept["up"]  # 1, 8, 0
      array([1])
    """
    return units.norm(2, "producer") * units.norm(2, "consumer")
