"""The NNX twin of `experiments.models.mlp`."""

import itertools
from collections.abc import Sequence

import jax
from flax import nnx


class MLP(nnx.Module):
    """Dense layers with ReLU between: `[B, ...] -> [B, features[-1]]`; `features[0]` is the input's size."""

    def __init__(self, features: Sequence[int], *, rngs: nnx.Rngs):
        pairs = itertools.pairwise(features)
        self.layers = nnx.List([nnx.Linear(inputs, outputs, rngs=rngs) for inputs, outputs in pairs])

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.reshape(x.shape[0], -1)
        *hidden, last = self.layers
        for layer in hidden:
            x = nnx.relu(layer(x))
        return last(x)
