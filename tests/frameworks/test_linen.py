"""A Linen module becomes a pure function of its variables."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_nn.core.tap import Tap
from jaxopt_nn.frameworks.linen import linen
from jaxopt_nn.interpret.inspect import inspect
from jaxopt_nn.interpret.rewrite import capture, rewrite
from jaxopt_nn.methods.quantize import quantize
from jaxopt_nn.tensors.base import is_compressed


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
    network = linen(MODEL, VARIABLES)
    apply, variables = network.apply, network.variables
    assert variables is VARIABLES
    chex.assert_trees_all_equal(jax.jit(apply)(variables, X), jax.jit(MODEL.apply)(VARIABLES, X))
    info = inspect(apply, variables, X)
    assert [site.name for site in info.sites] == ["params/Dense_0/kernel", "params/Dense_1/kernel"]
    chex.assert_trees_all_equal(rewrite(apply)(variables, X), jax.jit(apply)(variables, X))


def test_keyword_arguments_go_to_every_call():
    chex.assert_trees_all_equal(linen(MODEL, VARIABLES, method="doubled")(X), 2 * X)
    y, new = linen(MODEL, VARIABLES, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(1)})(X)
    assert y.shape == (4, 3) and set(new) == {"batch_stats"}


@pytest.mark.parametrize("named", ["train", "training", "is_training", "deterministic", "use_running_average"])
def test_both_modes_are_found_by_the_argument_of_the_call(named):
    """Evaluation by stored statistics and without dropout, training by the batch's and with it; statistics move by path."""
    training = named in ("train", "training", "is_training")
    code = f"def __call__(self, x, {named}):\n    return body(self, x, {named} == {training})"
    scope = {"body": Net.__call__.__wrapped__ if hasattr(Net.__call__, "__wrapped__") else Net.__call__}
    exec(code, scope)
    model = type("Named", (nn.Module,), {"__call__": nn.compact(scope["__call__"]), "__annotations__": {}})()
    network = linen(model, VARIABLES)
    chex.assert_trees_all_equal(network(X), jax.jit(MODEL.apply)(VARIABLES, X))
    key = jax.random.key(5)
    y, changed = network.trained(network.variables, X, key=key)
    keys = dict(zip(("params", "dropout"), jax.random.split(key)))
    expected, new = MODEL.apply(VARIABLES, X, train=True, mutable=["batch_stats"], rngs=keys)
    np.testing.assert_allclose(y, expected, rtol=1e-6)
    assert set(changed) == network.still == {"batch_stats/BatchNorm_0/mean", "batch_stats/BatchNorm_0/var"}
    np.testing.assert_allclose(changed["batch_stats/BatchNorm_0/mean"], new["batch_stats"]["BatchNorm_0"]["mean"], rtol=1e-6)


def test_a_module_of_one_mode_is_trained_as_it_is_evaluated():
    model = nn.Dense(3)
    network = linen(model, model.init(jax.random.key(0), X))
    assert network.training is None and not network.still
    y, changed = network.trained(network.variables, X, key=jax.random.key(0))
    assert not changed and y.shape == (4, 3)


def test_the_inner_tree_is_refused():
    with pytest.raises(ValueError, match=r"none called 'params'; pass what model.init returned"):
        linen(MODEL, VARIABLES["params"])


class Features(nn.Module):
    """Random features, drawn once and kept in a collection that is no parameter."""

    @nn.compact
    def __call__(self, x):
        w = self.variable("constants", "w", lambda: jax.random.normal(jax.random.key(1), (5, 6)))
        return nn.Dense(3)(jnp.cos(x @ w.value))


def test_only_parameters_get_a_gradient_and_everything_else_works_as_before():
    model = Features()
    network = linen(model, model.init(jax.random.key(0), X))
    apply, variables = network.apply, network.variables
    assert network.still == {"constants/w"}
    y, gradient = jax.value_and_grad(lambda v: jnp.sum(apply(v, X) ** 2))(variables)
    assert y == jnp.sum(model.apply(variables, X) ** 2)
    assert not np.any(gradient["constants"]["w"]) and np.any(gradient["params"]["Dense_0"]["kernel"])

    info = inspect(apply, variables, X)
    assert [site.name for site in info.sites] == ["constants/w", "params/Dense_0/kernel"] and info.coverage == 1
    method = quantize(8)
    state = method.init(variables, info)
    packed, run = method.pack(variables, state), rewrite(apply)
    assert is_compressed(packed["constants"]["w"]) and not run.explain(packed, X).of("densified", "float")
    chex.assert_trees_all_close(run(packed, X), apply(method.view(variables, state), X), atol=1e-5)
    y, seen = capture(apply, [("constants/w", Tap(lambda site: 0.0, lambda a, x, weight, site: a + x.sum(), jnp.add))])(
        packed, X
    )
    assert seen["constants/w"] == pytest.approx(float(X.sum()), abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((VARIABLES, MODEL), "model is a dict; pass an instance of a Linen module first"),
        ((Net, VARIABLES), "model is the class Net; pass an instance"),
        ((MODEL, Net), "variables is the class Net; pass what model.init returned"),
    ],
)
def test_swapped_arguments_and_classes_are_named(arguments, said):
    with pytest.raises(TypeError, match=said):
        linen(*arguments)
