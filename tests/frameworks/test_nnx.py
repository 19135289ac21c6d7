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
    variables = nnx(model).variables
    paths = leaves_by_path(variables)
    assert {"up/kernel", "up/bias", "norm/mean", "norm/scale", "layers/1/kernel"} <= set(paths)
    assert not any("value" in path for path in paths)
    assert type(variables) is dict and all(isinstance(x, jax.Array) for x in paths.values())


def test_gives_what_the_model_gives(model):
    network = nnx(model)
    apply, variables = network.apply, network.variables
    expected = flax_nnx.jit(lambda m, x: m(x))(model, X)
    chex.assert_trees_all_equal(jax.jit(apply)(variables, X), expected)
    chex.assert_trees_all_equal(rewrite(apply)(variables, X), expected)
    assert [site.name for site in inspect(apply, variables, X).sites] == ["up/kernel", "layers/1/kernel"]


def test_is_pure_and_uses_the_variables_that_it_is_given(model):
    network = nnx(model)
    apply, variables = network.apply, network.variables
    before = jax.tree.map(np.asarray, variables["norm"])
    moved = {**variables, "up": jax.tree.map(jnp.zeros_like, variables["up"])}
    assert not np.array_equal(apply(moved, X), apply(variables, X))
    chex.assert_trees_all_equal(variables["norm"], before)
    chex.assert_trees_all_equal(nnx(model).variables["norm"], before)


def test_both_modes_whatever_the_module_is_in(model):
    """Statistics move, dropout draws from the key, and the module itself stays as it is."""
    fresh = Net(flax_nnx.Rngs(0))
    for mode in ("train", "eval"):
        getattr(fresh, mode)()
        network = nnx(fresh)
        chex.assert_trees_all_equal(network(X), flax_nnx.jit(lambda m, x: m(x))(model, X))
        outs = [network.trained(network.variables, X, key=jax.random.key(k)) for k in (0, 0, 1)]
        chex.assert_trees_all_equal(outs[0], outs[1])
        assert not np.array_equal(outs[0][0], outs[2][0])
        assert set(outs[0][1]) == {"norm/mean", "norm/var"}
        moved = np.asarray(network.apply(network.variables, X) * 0)  # evaluation draws nothing
        assert not moved.any()
    expected = 0.99 * fresh.norm.mean[...] + 0.01 * jnp.mean(fresh.up(X), 0)
    np.testing.assert_allclose(outs[0][1]["norm/mean"], expected, rtol=1e-5)
    assert network.still == {"norm/mean", "norm/var", "layers/0/rngs/key", "layers/0/rngs/count"}


def test_statistics_get_no_gradient(model):
    network = nnx(model)
    apply, variables = network.apply, network.variables
    numbers = {name: variables[name] for name in ("up", "norm")}
    gradient = jax.grad(lambda part: jnp.sum(apply({**variables, **part}, X) ** 2))(numbers)
    assert not np.any(gradient["norm"]["mean"]) and not np.any(gradient["norm"]["var"])
    assert np.any(gradient["norm"]["scale"]) and np.any(gradient["up"]["kernel"])


def test_compressed_weights_beside_statistics(model):
    network = nnx(model)
    apply, variables = network.apply, network.variables
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
        nnx(nnx(model).variables)
