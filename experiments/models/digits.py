"""LeNet-300-100 on the 8 x 8 digits, as a config builds it."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.models.mlp import lenet300
from jaxopt_nn.frameworks.linen import linen


def build(seed: int = 0) -> tuple[Callable[..., jax.Array], Any]:
    """``(apply, variables)`` of the 64-300-100-10 network: 50,610 parameters, inputs ``[B, 8, 8, 1]``."""
    model, init = _model()
    return linen(model, init(jax.random.key(seed), jnp.zeros((1, 8, 8, 1))))


@functools.cache
def _model() -> tuple[nn.Module, Callable[..., Any]]:
    """The module and its compiled initializer, the same for all folds."""
    model = lenet300()
    return model, jax.jit(model.init)
