"""Multi-layer perceptrons, among them LeNet-300-100."""

from collections.abc import Sequence

import flax.linen as nn
import jax


class MLP(nn.Module):
    """Dense layers with ReLU between: `[B, ...] -> [B, features[-1]]`; inputs are flattened."""

    features: Sequence[int]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.reshape(x.shape[0], -1)
        for features in self.features[:-1]:
            x = nn.relu(nn.Dense(features)(x))
        return nn.Dense(self.features[-1])(x)


def lenet300(classes: int = 10) -> MLP:
    """LeNet-300-100 (LeCun et al., 1998): 266,610 parameters on 28 x 28 images of 10 classes."""
    return MLP((300, 100, classes))
