"""Images by a convolutional network with BatchNorm and dropout, whose training mode ``linen`` finds; the data is ``digits``."""

import flax.linen as nn
import jax

from ..models.build import Network, of_module


class CNN(nn.Module):
    """Images ``[B, 8, 8, 1]`` to logits ``[B, 10]``."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        for width in (16, 32):
            x = nn.Conv(width, (3, 3), use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = nn.Dropout(0.25, deterministic=not train)(x.reshape(len(x), -1))
        return nn.Dense(10)(x)


def network(seed: int = 0) -> Network:
    return of_module(CNN(), seed, 1, 8, 8, 1)
