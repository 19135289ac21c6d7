"""Networks in Flax Linen."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.models import gpt as gpt_models
from experiments.models import lenet, resnet, vit
from experiments.models import mlp as mlp_models

from .base import Parts, entry, normal, of_linen, tokens

# Image classifiers


@entry
def mlp() -> Parts:
    """Dense layers: the plainest site, a two-dimensional kernel on the right."""
    return of_linen(mlp_models.MLP((64, 32, 16)), normal(np.random.default_rng(1), 4, 32))


@entry
def lenet300() -> Parts:
    """LeNet-300-100 on 8 x 8 images: axes that groups of 16 do not divide."""
    return of_linen(mlp_models.lenet300(), normal(np.random.default_rng(1), 4, 8, 8, 1))


@entry
def lenet5() -> Parts:
    """LeNet-5-Caffe with 32 hidden units: unpadded convolutions, max-pooling, a flatten between conv and dense."""
    return of_linen(lenet.LeNet5(hidden=32), normal(np.random.default_rng(1), 2, 28, 28, 1))


def _resnet(**kwargs: object) -> Parts:
    images = normal(np.random.default_rng(1), 4, 16, 16, 3)
    module = resnet.ResNet(channels=(16, 32), blocks=2)
    apply, variables, inputs = of_linen(module, images)
    return (functools.partial(module.apply, **kwargs) if kwargs else apply), variables, inputs


@entry
def resnet_eval() -> Parts:
    """BatchNorm with stored statistics, strided 1 x 1 shortcuts, additive joins."""
    images = normal(np.random.default_rng(1), 4, 16, 16, 3)
    return of_linen(resnet.ResNet(channels=(16, 32), blocks=2), images)
