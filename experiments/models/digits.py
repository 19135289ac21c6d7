"""Perceptrons on the 8 x 8 digits, as a config builds them: inputs ``[B, 8, 8, 1]``, outputs ``[B, 10]``."""

from collections.abc import Sequence

from . import mlp as mlps
from . import mlp_nnx
from .build import Network, of_module, of_nnx_class

CLASSES = 10


def build(seed: int = 0) -> Network:
    """The 64-300-100-10 network, LeNet-300-100: 50,610 parameters."""
    return mlp(seed)


def mlp(seed: int = 0, hidden: Sequence[int] = (300, 100)) -> Network:
    """Dense layers with ReLU between."""
    return of_module(mlps.MLP((*hidden, CLASSES)), seed, 1, 8, 8, 1)


def lenet300_nnx(seed: int = 0, hidden: Sequence[int] = (300, 100)) -> Network:
    """The same network in NNX: paths are ``layers/0/kernel``, with no collection before them."""
    return of_nnx_class(mlp_nnx.MLP, (64, *hidden, CLASSES), seed)


def teacher(seed: int = 0, hidden: Sequence[int] = (300, 100)) -> Network:
    """The network that a student learns from: 50,610 parameters by default."""
    return mlp(seed, hidden)


def student(seed: int = 0, hidden: Sequence[int] = (16,)) -> Network:
    """A network of 1,210 parameters by default, a fortieth of the teacher's."""
    return mlp(seed, hidden)
