"""The activity of units against activations computed by hand."""

import numpy as np
import pytest

from experiments.models.lenet import LeNet5
from jaxopt_nn.interpret.groups import axis_groups
from jaxopt_nn.passes.activity import unit_activity
from jaxopt_nn.passes.plans import dead_units
from tests.passes.networks import hidden, made, mlp


def test_the_largest_activation_of_each_unit():
    apply, variables, x = mlp()
    seen = unit_activity(apply, variables, [x[:20], x[20:40], x[40:]])
    first, second = hidden(variables, x)
    assert list(seen) == ["params/Dense_0/kernel", "params/Dense_1/kernel"]
    np.testing.assert_allclose(seen["params/Dense_0/kernel"], np.abs(first).max(0), rtol=1e-5)
    np.testing.assert_allclose(seen["params/Dense_1/kernel"], np.abs(second).max(0), rtol=1e-5)
    only = unit_activity(apply, variables, [x], axis_groups(apply, variables, x)[1:2])
    assert list(only) == ["params/Dense_1/kernel"]


def test_activations_of_a_flattened_convolution():
    """Channels of the second convolution are read by the dense layer at every place."""
    module = LeNet5((3, 4), 5)
    apply, variables, x = made(module, 6, 28, 28, 1)
    seen = unit_activity(apply, variables, [x[:4], x[4:]])
    _, kept = module.apply(variables, x, capture_intermediates=True)
    second = np.asarray(kept["intermediates"]["Conv_1"]["__call__"][0])
    pooled = second.reshape(6, 4, 2, 4, 2, 4).max((2, 4))
    np.testing.assert_allclose(seen["params/Conv_1/kernel"], np.abs(pooled).max((0, 1, 2)), rtol=1e-5)
    first = np.asarray(kept["intermediates"]["Conv_0"]["__call__"][0]).reshape(6, 12, 2, 12, 2, 3).max((2, 4))
    np.testing.assert_allclose(seen["params/Conv_0/kernel"], np.abs(first).max((0, 1, 2)), rtol=1e-5)


def test_activations_that_are_no_numbers_are_an_error():
    apply, variables, x = mlp()
    x[3, 2] = np.nan
    with pytest.raises(ValueError, match="params/Dense_1/kernel: NaN among"):
        dead_units(apply, variables, x)
