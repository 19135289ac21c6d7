"""LeNet-5 as Caffe ships it, the convolutional yardstick of the pruning literature."""

import flax.linen as nn
import jax


class LeNet5(nn.Module):
    """LeNet-5-Caffe: `[B, 28, 28, C] -> [B, classes]`; 431,080 parameters for one channel and 10 classes.

    Two unpadded 5 x 5 convolutions, each with max-pooling and no activation, a ReLU layer, the classifier.
    """

    channels: tuple[int, int] = (20, 50)
    hidden: int = 500
    classes: int = 10

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for channels in self.channels:
            x = nn.Conv(channels, (5, 5), padding="VALID")(x)
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = nn.relu(nn.Dense(self.hidden)(x.reshape(x.shape[0], -1)))
        return nn.Dense(self.classes)(x)
