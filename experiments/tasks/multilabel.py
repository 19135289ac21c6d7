"""Several labels an example: which of five properties a handwritten digit has."""

import numpy as np

from jaxopt_nn.pipeline.classes import multilabel
from jaxopt_nn.pipeline.task import Task

from ..data.digits import digits
from ..models.build import Network, of_nnx_class
from ..models.mlp_nnx import MLP

#: Of each digit: even, prime, at least five, drawn with a loop, a multiple of three.
PROPERTIES = np.array([[d % 2 == 0, d in (2, 3, 5, 7), d > 4, d in (0, 6, 8, 9), d % 3 == 0] for d in range(10)], np.int32)


def network(seed: int = 0) -> Network:
    """Images ``[B, 8, 8, 1]`` to logits ``[B, 5]``, in NNX."""
    return of_nnx_class(MLP, (64, 128, 64, 5), seed)


def task(fold: int = 0) -> Task:
    """Images, and int32 ``[B, 5]``, 1 where the digit has the property."""
    plain = digits(fold)
    (images, labels), (tested, truth) = plain.train.tree, plain.test.tree
    return multilabel(train=(images, PROPERTIES[labels]), test=(tested, PROPERTIES[truth]))
