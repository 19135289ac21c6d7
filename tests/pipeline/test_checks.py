"""What a network must be is said with its name, shapes and what to do, before any work."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_nn as jn
from jaxopt_nn.core.transform import identity
from jaxopt_nn.interpret.network import Network
from jaxopt_nn.pipeline.checks import check_network, check_outputs
from jaxopt_nn.pipeline.classes import classification
from jaxopt_nn.pipeline.compress import compress
from jaxopt_nn.pipeline.recipe import Stage

X, Y = np.ones((10, 4), np.float32), np.arange(10)
TASK = classification(train=(X, Y), test=(X, Y))


def apply(variables, x):
    return x @ variables["w"]


def network(classes=10, features=4, fn=apply):
    return Network(fn, {"w": jnp.ones((features, classes))})


def test_what_fits():
    check_outputs(network(12), TASK)
    check_outputs(network(), TASK, network())


@pytest.mark.parametrize("classes", [5, 12])
def test_a_teacher_of_other_outputs_is_named_and_the_data_not_blamed(classes):
    said = rf"^the teacher gives float32\[2, {classes}\], the student float32\[2, 10\]: .* in its apply$"
    with pytest.raises(ValueError, match=said):
        check_outputs(network(), TASK, network(classes))


@pytest.mark.parametrize(
    ("fn", "features", "said"),
    [
        (apply, 3, r"fails on inputs float32\[B, 4\]: TypeError: dot_general requires contracting dimensions"),
        (lambda x, v: x @ v["w"], 4, r"TypeError: JAX does not .*; it is called as apply\(variables, \*inputs\)"),
    ],
)
def test_inputs_that_the_network_can_not_take(fn, features, said):
    with pytest.raises(ValueError, match=f"^apply .*{said}") as caught:
        check_outputs(network(features=features, fn=fn), TASK)
    assert isinstance(caught.value.__cause__, TypeError)
    with pytest.raises(ValueError, match=r"^the teacher fails on inputs"):
        check_outputs(network(), TASK, network(features=features, fn=fn))


def test_what_is_no_task_or_network():
    with pytest.raises(TypeError, match=r"task is a tuple; pass a Task, e.g. classification\(train=\(x, y\), test"):
        compress(network(), [Stage("plain", identity())], (X, Y))
    with pytest.raises(TypeError, match=r"network is the function apply; pass a Network: jaxopt_nn.linen\(model, variables\)"):
        compress(apply, [Stage("plain", identity())], TASK)
    with pytest.raises(TypeError, match=r"Network\(apply=rewrite\(...\)\): pass the model's own function, and the rules"):
        Network(jn.rewrite(apply), {})
    with pytest.raises(ValueError, match="still: 'v' is no leaf of the network; nearest: "):
        check_network(Network(apply, {"w": jnp.ones((4, 10))}, still={"v"}))


def test_a_recipe_that_trains_needs_data():
    with pytest.raises(ValueError, match="the recipe trains, and the task has no training data"):
        compress(network(), [Stage("plain", identity(), epochs=1)], classification(test=(X, Y)))


class Normed(nn.Module):
    """BatchNorm whose mode the call can't tell, or can."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(nn.BatchNorm(use_running_average=True)(x))


class Moving(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(10)(nn.BatchNorm(use_running_average=not train, momentum=0.5)(x))


def test_statistics_that_were_never_computed_are_an_error_or_are_trained():
    train = Stage("float", identity(), epochs=2, learning_rate=1e-2)
    fixed = jn.linen(Normed(), Normed().init(jax.random.key(0), X))
    with pytest.raises(ValueError, match="batch_stats/BatchNorm_0/var: running statistics of a network that was never trained"):
        compress(fixed, [train], TASK)
    x = np.random.default_rng(0).standard_normal((10, 4)).astype(np.float32) * 3 + 1
    task = classification(train=(x, Y), test=(x, Y), batch_size=10)
    moving = jn.linen(Moving(), Moving().init(jax.random.key(0), X))
    done = compress(moving, [train], task, latency=False)
    expected = 0.75 * x.mean(0)  # twice half of the way, all rows a batch
    np.testing.assert_allclose(done.params["batch_stats"]["BatchNorm_0"]["mean"], expected, rtol=1e-5)
    filled = dict(fixed.variables) | {"batch_stats": done.params["batch_stats"]}
    compress(fixed.replace(variables=filled), [train], TASK, latency=False)  # computed elsewhere: kept as they are
