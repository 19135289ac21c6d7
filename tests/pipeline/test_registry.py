"""Configs name things; what is mistyped is answered with the nearest names."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_nn.methods.prune import magnitude
from jaxopt_nn.pipeline import registry

PARAMS = {"a": {"kernel": jnp.arange(-6.0, 6.0).reshape(4, 3)}, "b": {"kernel": jnp.ones((3, 2))}}


def backwards(weight, grad=None):
    """A criterion of one's own: large weights go first."""
    return -jnp.abs(weight)


def test_a_transform_from_names():
    method = registry.transform("prune", pattern="a/*", criterion="magnitude", sparsity=0.5, allocation="per_leaf")
    seen = method.view(PARAMS, method.init(PARAMS))
    assert int(jnp.count_nonzero(seen["a"]["kernel"])) == 6 and seen["b"]["kernel"] is PARAMS["b"]["kernel"]


def test_a_criterion_of_ones_own():
    method = registry.transform("prune", criterion=f"{__name__}:backwards", sparsity=0.5)
    seen = method.view(PARAMS, method.init(PARAMS))["a"]["kernel"]
    assert float(jnp.abs(seen).max()) <= 3.0


def test_a_schedule():
    method = registry.transform(
        "prune", sparsity={"schedule": "linear", "init_value": 0.0, "end_value": 0.5, "transition_steps": 10}
    )
    state = method.init(PARAMS)
    assert int(jnp.count_nonzero(method.view(PARAMS, state)["a"]["kernel"])) == 11  # one weight is zero by itself
    state = method.update(PARAMS, state, step=10)
    assert int(jnp.count_nonzero(method.view(PARAMS, state)["a"]["kernel"])) == 6


def test_stages_from_a_config():
    made = registry.stages(
        [
            {"name": "p", "method": "prune", "sparsity": 0.5, "epochs": 3, "learning_rate": 0.5},
            {"name": "q", "method": "quantize", "bits": 4, "rule": "w4a8", "thaw": ["p"], "where": "**"},
            {
                "name": "r",
                "method": "identity",
                "learning_rate": {"schedule": "cosine", "init_value": 1, "decay_steps": 2},
            },
        ]
    )
    assert [s.name for s in made] == ["p", "q", "r"]
    assert (made[0].epochs, made[0].learning_rate, made[0].rule) == (3, 0.5, None)
    assert made[1].rule.name == "w4a8" and made[1].thaw == ("p",)
    np.testing.assert_allclose([made[2].learning_rate(t) for t in (0, 1, 2)], [1, 0.5, 0], atol=1e-7)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (
            {"name": "x", "method": "quantise", "bits": 4},
            r"stages\[0\] \(x\): method 'quantise' is unknown; nearest: quantize",
        ),
        ({"name": "x", "method": "quantize", "bit": 4}, "method 'quantize' has no 'bit'; nearest: bits"),
        ({"name": "x", "method": "quantize"}, "method 'quantize' needs bits"),
        ({"name": "x", "method": "quantize", "bits": 9}, r"quantize\(bits=9\)"),
        ({"name": "x", "method": "quantize", "bits": 8, "rule": "8bit"}, r"arithmetic\('8bit'\)"),
        ({"name": "x", "method": "prune", "sparsity": 0.5, "criterion": "magntude"}, "criterion 'magntude'.*magnitude"),
        ({"name": "x", "method": "prune", "sparsity": 0.5, "allocation": "globl"}, "allocation 'globl'.*global_budget"),
        ({"name": "x", "method": "prune", "sparsity": {"schedule": "linaer"}}, "schedule 'linaer'.*linear"),
        (
            {"name": "x", "method": "prune", "sparsity": {"schedule": "linear", "start": 0}},
            "schedule 'linear' has no 'start'",
        ),
        ({"name": "x", "method": "prune", "sparsity": {"end": 1}}, "a mapping is a schedule and needs 'schedule'"),
        ({"name": "x", "method": "clip", "lo": -1.0, "hi": 1.0, "epochs": -1}, "epochs=-1"),
        ({"name": "x"}, r"stages\[0\]: needs 'method'"),
        ({}, r"stages\[0\]: needs 'name', a string; has nothing"),
    ],
)
def test_what_is_mistyped_is_answered_with_the_nearest_names(entry, said):
    with pytest.raises(ValueError, match=said):
        registry.stages([entry])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("prune", "write package.module:name"),
        ("no_such_package.at_all:x", "No module named 'no_such_package'"),
        ("jaxopt_nn.methods.prune:magnitud", "has no 'magnitud'; nearest: magnitude"),
    ],
)
def test_objects_by_address(name, said):
    assert registry.imported("jaxopt_nn.methods.prune:magnitude") is magnitude
    with pytest.raises(ValueError, match=said):
        registry.imported(name)


def test_no_rule_is_weight_only():
    assert registry.rule("") is None and registry.rule(None) is None
    assert registry.rule("jaxopt_nn.core.rule:identity_rule").name == "identity"
