"""LeNet-5 as Caffe ships it, the convolutional yardstick of the pruning literature."""

import functools

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


class XnorLeNet5(nn.Module):
    """LeNet-5 in the block order of XNOR-Net (Rastegari et al. 2016, section 3.2): normalise, binarize, convolve, pool.

    `[B, 28, 28, C] -> [B, classes]`. The first and the last layer are to stay in float; before the inner two stands a BatchNorm
    and nothing else, so that the signs of their inputs carry the most. With `train=True` the batch's statistics are used, and
    `batch_stats` must be mutable.
    """

    channels: tuple[int, int] = (20, 50)
    hidden: int = 500
    classes: int = 10

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        norm = functools.partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
        first, second = self.channels
        x = nn.max_pool(nn.Conv(first, (5, 5), padding="VALID")(x), (2, 2), strides=(2, 2))
        x = nn.max_pool(nn.Conv(second, (5, 5), padding="VALID", name="binary_conv")(norm()(x)), (2, 2), strides=(2, 2))
        x = nn.Dense(self.hidden, name="binary_dense")(norm()(x).reshape(x.shape[0], -1))
        return nn.Dense(self.classes)(nn.relu(norm()(x)))
