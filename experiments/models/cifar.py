"""Networks for CIFAR-10, as a config builds them: inputs ``[B, 32, 32, 3]``, outputs ``[B, 10]``."""

from collections.abc import Sequence

from .build import Network, of_module
from .resnet import ResNet


def resnet20(seed: int = 0, channels: Sequence[int] = (16, 32, 64), blocks: int = 3) -> Network:
    """ResNet-20 (He et al., 2016, section 4.2), with projection shortcuts: 272,474 parameters."""
    return of_module(ResNet(tuple(channels), blocks, classes=10), seed, 1, 32, 32, 3)
