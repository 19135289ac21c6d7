"""A Linen module becomes a pure function of its variables."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from jaxopt_nn.frameworks.linen import linen
from jaxopt_nn.interpret.inspect import inspect
from jaxopt_nn.interpret.rewrite import rewrite


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(6)(x))
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(nn.relu(x)))

    def doubled(self, x):
        return 2 * x


MODEL = Net()
X = jnp.linspace(-1.0, 1.0, 20).reshape(4, 5)
VARIABLES = MODEL.init(jax.random.key(0), X)


def test_is_the_models_own_apply():
    apply, variables = linen(MODEL, VARIABLES)
    assert variables is VARIABLES
    chex.assert_trees_all_equal(jax.jit(apply)(variables, X), jax.jit(MODEL.apply)(VARIABLES, X))
    info = inspect(apply, variables, X)
    assert [site.name for site in info.sites] == ["params/Dense_0/kernel", "params/Dense_1/kernel"]
    chex.assert_trees_all_equal(rewrite(apply)(variables, X), jax.jit(apply)(variables, X))


def test_keyword_arguments_go_to_every_call():
    apply, variables = linen(MODEL, VARIABLES, method="doubled")
    chex.assert_trees_all_equal(apply(variables, X), 2 * X)
    apply, variables = linen(MODEL, VARIABLES, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(1)})
    y, new = apply(variables, X)
    assert y.shape == (4, 3) and set(new) == {"batch_stats"}


def test_the_inner_tree_is_refused():
    with pytest.raises(ValueError, match=r"none called 'params'; pass what model.init returned"):
        linen(MODEL, VARIABLES["params"])
