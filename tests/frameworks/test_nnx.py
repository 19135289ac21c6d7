"""An NNX module becomes a pure function of a plain dict."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx as flax_nnx

from jaxopt_nn.core.paths import leaves_by_path
from jaxopt_nn.frameworks.nnx import nnx
from jaxopt_nn.interpret.inspect import inspect
from jaxopt_nn.interpret.rewrite import rewrite
from jaxopt_nn.methods.quantize import quantize


class Net(flax_nnx.Module):
    def __init__(self, rngs):
        self.up = flax_nnx.Linear(5, 6, rngs=rngs)
        self.norm = flax_nnx.BatchNorm(6, rngs=rngs)
        self.layers = flax_nnx.List([flax_nnx.Dropout(0.5, rngs=rngs), flax_nnx.Linear(6, 3, rngs=rngs)])

    def __call__(self, x):
        x = flax_nnx.relu(self.norm(self.up(x)))
        for layer in self.layers:
            x = layer(x)
        return x


X = jnp.linspace(-1.0, 1.0, 20).reshape(4, 5)


@pytest.fixture(scope="module")
def model():
    made = Net(flax_nnx.Rngs(0))
    made.eval()
    return made


def test_variables_are_a_plain_dict_whose_paths_have_no_value(model):
    _, variables = nnx(model)
    paths = leaves_by_path(variables)
    assert {"up/kernel", "up/bias", "norm/mean", "norm/scale", "layers/1/kernel"} <= set(paths)
    assert not any("value" in path for path in paths)
    assert type(variables) is dict and all(isinstance(x, jax.Array) for x in paths.values())


def test_gives_what_the_model_gives(model):
    apply, variables = nnx(model)
    expected = flax_nnx.jit(lambda m, x: m(x))(model, X)
    chex.assert_trees_all_equal(jax.jit(apply)(variables, X), expected)
    chex.assert_trees_all_equal(rewrite(apply)(variables, X), expected)
    assert [site.name for site in inspect(apply, variables, X).sites] == ["up/kernel", "layers/1/kernel"]


def test_is_pure_and_uses_the_variables_that_it_is_given(model):
    apply, variables = nnx(model)
    before = jax.tree.map(np.asarray, variables["norm"])
    moved = {**variables, "up": jax.tree.map(jnp.zeros_like, variables["up"])}
    assert not np.array_equal(apply(moved, X), apply(variables, X))
    chex.assert_trees_all_equal(variables["norm"], before)
    model.train()
    try:
        training, variables = nnx(model)
        assert not np.array_equal(training(variables, X), apply(variables, X))
        chex.assert_trees_all_equal(nnx(model)[1]["norm"], before)
    finally:
        model.eval()


def test_statistics_get_no_gradient(model):
    apply, variables = nnx(model)
    numbers = {name: variables[name] for name in ("up", "norm")}
    gradient = jax.grad(lambda part: jnp.sum(apply({**variables, **part}, X) ** 2))(numbers)
    assert not np.any(gradient["norm"]["mean"]) and not np.any(gradient["norm"]["var"])
    assert np.any(gradient["norm"]["scale"]) and np.any(gradient["up"]["kernel"])


def test_compressed_weights_beside_statistics(model):
    apply, variables = nnx(model)
    method = quantize(8)
    state = method.init(variables, inspect(apply, variables, X))
    packed = method.pack(variables, state)
    chex.assert_trees_all_close(rewrite(apply)(packed, X), apply(method.view(variables, state), X), atol=1e-5)
    with pytest.raises(TypeError, match="QTensor"):
        apply(packed, X)


def test_what_is_no_module_is_named(model):
    with pytest.raises(TypeError, match="model is the class Net; pass an instance of an NNX module"):
        nnx(Net)
    with pytest.raises(TypeError, match="model is a dict; pass an instance"):
        nnx(nnx(model)[1])
