"""Regression with two inputs: the sum of two handwritten digits, from their images."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_nn.pipeline.numbers import regression
from jaxopt_nn.pipeline.task import Task

from ..data.digits import digits
from ..models.build import Network, of_inputs


class Adder(nn.Module):
    """Two images ``[B, 8, 8, 1]`` to a number ``[B]``; both are read with the same weights."""

    @nn.compact
    def __call__(self, a: jax.Array, b: jax.Array) -> jax.Array:
        layers = [nn.Dense(128), nn.relu, nn.Dense(32), nn.relu]
        read = nn.Sequential(layers)
        seen = [read(image.reshape(len(image), -1)) for image in (a, b)]
        return nn.Dense(1)(nn.relu(nn.Dense(64)(jnp.concatenate(seen, -1))))[:, 0]


def network(seed: int = 0) -> Network:
    image = jnp.zeros((1, 8, 8, 1))
    return of_inputs(Adder(), seed, image, image)


def task(pairs: int = 8192, fold: int = 0) -> Task:
    """``{"a": image, "b": image, "sum": 0 to 18}``, pairs drawn with a fixed seed within each part."""
    plain, rng = digits(fold), np.random.default_rng(0)

    def drawn(source, count):
        images, labels = source.tree
        i, j = rng.integers(0, len(images), (2, count))
        return {"a": images[i], "b": images[j], "sum": (labels[i] + labels[j]).astype(np.float32)}

    return regression(train=drawn(plain.train, pairs), test=drawn(plain.test, 1024), inputs=("a", "b"), targets="sum")
