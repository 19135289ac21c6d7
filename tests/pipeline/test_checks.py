"""What a network or data must be is said with its name, shapes and what to do, before any work."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_nn.core.transform import identity
from jaxopt_nn.pipeline.checks import check_logits, check_teacher
from jaxopt_nn.pipeline.compress import compress
from jaxopt_nn.pipeline.data import Data
from jaxopt_nn.pipeline.recipe import Stage

X, Y = np.ones((10, 4), np.float32), np.arange(10)
DATA = Data((X, Y), (X, Y))


def apply(variables, x):
    return x @ variables["w"]


def weights(classes=10, features=4):
    return {"w": jnp.ones((features, classes))}


def test_the_number_of_classes():
    assert check_logits(apply, weights(12), DATA) == 12
    check_teacher(apply, weights(), DATA, 10)


@pytest.mark.parametrize("classes", [5, 12])
def test_a_teacher_of_other_classes_is_named_and_the_data_not_blamed(classes):
    with pytest.raises(ValueError, match=rf"^the teacher gives {classes} classes, the student 10: .* in its apply$"):
        check_teacher(apply, weights(classes), DATA, 10)


def test_a_network_with_too_few_outputs_is_named():
    with pytest.raises(ValueError, match=r"label 9 at 9, but the student gives 5 logits: .* give the student as many"):
        check_logits(apply, weights(5), DATA, "the student")


@pytest.mark.parametrize(
    ("fn", "features", "said"),
    [
        (apply, 3, r"^apply fails on inputs float32\[B, 4\]: TypeError: dot_general requires contracting dimensions"),
        (
            lambda x, v: x @ v["w"],
            4,
            r"float32\[B, 4\]: TypeError: JAX does not .*; it is called as apply\(variables, x\)",
        ),
    ],
)
def test_inputs_that_the_network_can_not_take(fn, features, said):
    with pytest.raises(ValueError, match=said) as caught:
        check_logits(fn, weights(features=features), DATA)
    assert isinstance(caught.value.__cause__, TypeError)
    with pytest.raises(ValueError, match=r"^the teacher fails on inputs"):
        check_teacher(fn, weights(features=features), DATA, 10)


def test_data_that_is_none():
    with pytest.raises(TypeError, match=r"data is a tuple; pass Data\(train=\(x, y\), test=\(x, y\)\)"):
        compress(apply, weights(), [Stage("plain", identity())], (X, Y))
