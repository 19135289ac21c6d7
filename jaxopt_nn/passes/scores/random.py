"""What any other score must beat."""

from __future__ import annotations

import zlib
from typing import Any

import jax
import numpy as np

from jaxopt_nn.passes.scores.base import Score
from jaxopt_nn.passes.units import Units


def random(key: Any) -> Score:
    """Random scores, uniform in [0, 1).

    Args:
      key: a PRNG key or a seed; each layer draws with its name folded in.

    Raises:
      ValueError: no key.

    Example:
      >>> v = {"up": jnp.ones((2, 8)), "down": jnp.ones((8, 1))}
      >>> net = jn.Network(lambda v, x: jax.nn.relu(x @ v["up"]) @ v["down"], v)
      >>> cut = jn.cut_units(jn.scores.random(jax.random.key(0)), share=0.5)
      >>> len(cut.plan(net, jn.ModelInfo(), jnp.ones((1, 2))).kept["up"])
      4
    """
    if key is None:
        raise ValueError("scores.random(key=None): pass key=jax.random.key(0), or a seed")
    drawn = jax.random.key(key) if isinstance(key, int) else key

    def uniform(units: Units) -> np.ndarray:
        own = jax.random.fold_in(drawn, zlib.crc32(units.name.encode()))
        return np.asarray(jax.random.uniform(own, (units.size,)))

    return uniform
