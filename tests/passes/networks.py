"""Networks that several tests of passes cut."""

import jax
import numpy as np

from experiments.models.mlp import MLP
from jaxopt_nn.frameworks.linen import linen
from tests.zoo.base import draw


def network(module, *shape, seed=0):
    """A Flax Linen module with drawn variables, NumPy arrays that may be written to, and inputs."""
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    variables = draw(jax.eval_shape(module.init, jax.random.key(0), x), seed)
    return linen(module, jax.tree.map(np.array, variables)), x


def made(module, *shape, seed=0):
    """Its function, variables and inputs."""
    net, x = network(module, *shape, seed=seed)
    return net.apply, net.variables, x


def mlp():
    """An MLP of 12 and 7 hidden units, of which 1, 4 and 3 get biases so low that no example wakes them."""
    apply, variables, x = made(MLP((12, 7, 3)), 50, 5)
    variables["params"]["Dense_0"]["bias"][[1, 4]] = -50
    variables["params"]["Dense_1"]["bias"][3] = -50
    return apply, variables, x


def hidden(variables, x):
    """The hidden activations of the MLP, by NumPy."""
    layers = variables["params"]
    first = np.maximum(x @ layers["Dense_0"]["kernel"] + layers["Dense_0"]["bias"], 0)
    return first, np.maximum(first @ layers["Dense_1"]["kernel"] + layers["Dense_1"]["bias"], 0)


