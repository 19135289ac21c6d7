"""LeNet-300-100 on the 8 x 8 digits, as a config builds it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from experiments.models.mlp import lenet300
from jaxopt_nn.frameworks.linen import linen


def build(seed: int = 0) -> tuple[Callable[..., jax.Array], Any]:
    """``(apply, variables)`` of the 64-300-100-10 network: 50,610 parameters, inputs ``[B, 8, 8, 1]``."""
    model = lenet300()
    return linen(model, jax.jit(model.init)(jax.random.key(seed), jnp.zeros((1, 8, 8, 1))))
