"""An autoencoder: images of 64 pixels through 8 numbers and back."""

import flax.linen as nn
import jax

from jaxopt_nn.pipeline.numbers import reconstruction
from jaxopt_nn.pipeline.task import Task

from ..data.digits import digits
from ..models.build import Network, of_module


class Autoencoder(nn.Module):
    """Images ``[B, 8, 8, 1]`` to images."""

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        x = nn.relu(nn.Dense(128)(image.reshape(len(image), -1)))
        x = nn.relu(nn.Dense(128)(nn.Dense(8)(x)))
        return nn.Dense(64)(x).reshape(image.shape)


def network(seed: int = 0) -> Network:
    return of_module(Autoencoder(), seed, 1, 8, 8, 1)


def task(fold: int = 0) -> Task:
    """The images alone: inputs and targets at once."""
    plain = digits(fold)
    return reconstruction(train=plain.train.tree[0], test=plain.test.tree[0])
