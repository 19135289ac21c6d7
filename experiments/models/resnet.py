"""Residual networks (He et al., 2016) for small images."""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with BatchNorm; a strided 1 x 1 convolution as shortcut where shapes change."""

    channels: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        conv = functools.partial(nn.Conv, use_bias=False)
        norm = functools.partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
        strides = (self.stride, self.stride)
        y = nn.relu(norm()(conv(self.channels, (3, 3), strides=strides)(x)))
        y = norm()(conv(self.channels, (3, 3))(y))
        if x.shape != y.shape:
            x = norm(name="shortcut_norm")(conv(self.channels, (1, 1), strides=strides, name="shortcut")(x))
        return nn.relu(x + y)


class ResNet(nn.Module):
    """`[B, H, W, C] -> [B, classes]`: a stage of `blocks` blocks per entry of `channels`.

    Stages after the first halve height and width. The defaults are ResNet-20 for CIFAR (section 4.2), with
    projection shortcuts (option B). With `train=True` the batch's statistics are used, and `batch_stats` must
    be mutable.
    """

    channels: Sequence[int] = (16, 32, 64)
    blocks: int = 3
    classes: int = 10
    stride: int = 1  # of the first convolution

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        side = max(3, self.stride)  # every pixel is seen
        x = nn.Conv(self.channels[0], (side, side), strides=(self.stride, self.stride), use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        for stage, channels in enumerate(self.channels):
            for block in range(self.blocks):
                x = ResidualBlock(channels, stride=2 if stage and not block else 1)(x, train)
        return nn.Dense(self.classes)(x.mean(axis=(1, 2)))
