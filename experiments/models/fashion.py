"""Networks for 28 x 28 grey images of ten classes (Fashion-MNIST, MNIST), as a config builds them.

Inputs are ``[B, 28, 28, 1]``, outputs ``[B, 10]``. Sizes are arguments: a config's ``model_args``.
"""

from collections.abc import Sequence

from . import lenet, mlp, mlp_nnx
from . import resnet as resnets
from . import vit as vits
from .build import Network, of_module, of_nnx_class

CLASSES = 10


def lenet300(seed: int = 0, hidden: Sequence[int] = (300, 100)) -> Network:
    """LeNet-300-100 (LeCun et al., 1998): 266,610 parameters; with other ``hidden`` layers, a student or a wider one."""
    return of_module(mlp.MLP((*hidden, CLASSES)), seed, 1, 28, 28, 1)


def lenet300_nnx(seed: int = 0, hidden: Sequence[int] = (300, 100)) -> Network:
    """The same network in NNX: paths are ``layers/0/kernel``, with no collection before them."""
    return of_nnx_class(mlp_nnx.MLP, (784, *hidden, CLASSES), seed)


def lenet5(seed: int = 0, channels: Sequence[int] = (20, 50), hidden: int = 500) -> Network:
    """LeNet-5-Caffe, two 5 x 5 convolutions and two dense layers: 431,080 parameters."""
    return of_module(lenet.LeNet5(tuple(channels), hidden, CLASSES), seed, 1, 28, 28, 1)


def xnor_lenet5(seed: int = 0, channels: Sequence[int] = (20, 50), hidden: int = 500) -> Network:
    """LeNet-5 with BatchNorm in XNOR-Net's block order: 432,220 parameters, and 1,140 stored statistics."""
    return of_module(lenet.XnorLeNet5(tuple(channels), hidden, CLASSES), seed, 1, 28, 28, 1)


def resnet(seed: int = 0, channels: Sequence[int] = (16, 32, 64), blocks: int = 1, stride: int = 1) -> Network:
    """A residual network with BatchNorm, ResNet-8 by default: 77,754 parameters, and 672 stored statistics.

    With ``stride=2``, of the first convolution, the stages see 14 x 14, 7 x 7 and 4 x 4 places.
    """
    return of_module(resnets.ResNet(tuple(channels), blocks, CLASSES, stride), seed, 1, 28, 28, 1)


def vit(seed: int = 0, patch: int = 4, width: int = 64, layers: int = 4, heads: int = 4, hidden: int = 128) -> Network:
    """A vision transformer of 49 patches and a class token by default: 139,018 parameters.

    Raises:
      ValueError: ``patch`` does not divide 28, or ``heads`` not ``width``.
    """
    if patch < 1 or 28 % patch:
        raise ValueError(f"vit(patch={patch}): allowed are the divisors of 28; the rest of the image would not be seen")
    if heads < 1 or width % heads:
        raise ValueError(f"vit(width={width}, heads={heads}): width must be a multiple of heads")
    return of_module(vits.ViT(patch, width, layers, heads, hidden, CLASSES), seed, 1, 28, 28, 1)
