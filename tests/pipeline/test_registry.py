"""Configs name things; what is mistyped is answered with the nearest names."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_nn.core.combine import by_path
from jaxopt_nn.core.rule import identity_rule
from jaxopt_nn.methods.criteria.magnitude import magnitude
from jaxopt_nn.methods.quantize import quantize
from jaxopt_nn.methods.ranges import moving_ranges, static_ranges
from jaxopt_nn.methods.structures.base import single_weights
from jaxopt_nn.pipeline import registry

PARAMS = {"a": {"kernel": jnp.arange(-6.0, 6.0).reshape(4, 3)}, "b": {"kernel": jnp.ones((3, 2))}}


def backwards(weight, grad, known):
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
    np.testing.assert_allclose([made[2].learning_rate(9)(t) for t in (0, 1, 2)], [1, 0.5, 0], atol=1e-7)


def test_a_mixed_recipe_gives_each_leaf_the_first_case_that_matches():
    cases = [
        {"where": "**/head/kernel", "method": "quantize", "bits": 8},
        {"where": "**/kernel", "method": "quantize", "bits": 4, "group": 2},
    ]
    (stage,) = registry.stages([{"name": "mixed", "cases": cases, "epochs": 1}])
    params = {"up": {"kernel": jnp.ones((4, 3))}, "head": {"kernel": jnp.ones((4, 2))}}
    by_hand = by_path([("**/head/kernel", quantize(8)), ("**/kernel", quantize(4, group=2))])
    packed = [method.pack(params, method.init(params)) for method in (stage.method(1), by_hand)]
    chex.assert_trees_all_equal(*packed)
    assert [packed[0][k]["kernel"].bits for k in ("head", "up")] == [8, 4]
    assert json.loads(json.dumps(cases)) == cases


def test_a_learning_rate_over_a_share_of_the_stage():
    rate = {"schedule": "linear", "init_value": 1.0, "end_value": 0.0, "transition_steps": 0.5}
    (stage,) = registry.stages([{"name": "p", "method": "identity", "learning_rate": rate}])
    moved = []
    optimizer = stage.updates(10)
    state = optimizer.init({"w": jnp.zeros(())})
    for _ in range(7):
        update, state = optimizer.update({"w": jnp.ones(())}, state)
        moved.append(-float(update["w"]))  # Adam under a constant gradient moves by the rate
    np.testing.assert_allclose(moved, [1, 0.8, 0.6, 0.4, 0.2, 0, 0], atol=1e-5)


SCHEDULED = {
    "linear": {"schedule": "linear", "init_value": 0.0, "end_value": 0.5, "transition_steps": 1.0},
    "cubic": {"schedule": "cubic", "final": 0.5, "end": 1.0},
}


@pytest.mark.parametrize("schedule", SCHEDULED.values(), ids=SCHEDULED)
@pytest.mark.parametrize("every", [1, 4])
def test_a_schedule_over_the_whole_stage_ends_at_its_last_step(schedule, every):
    """Also where updates run every 4 of 11 steps."""
    (stage,) = registry.stages([{"name": "p", "method": "prune", "every": every, "sparsity": schedule}])
    method = stage.method(11)
    state, update = method.init(PARAMS), jax.jit(method.update)
    for step in range(11):
        state = update(PARAMS, state, step=step)
    assert int(jnp.count_nonzero(method.view(PARAMS, state)["a"]["kernel"])) == 6


def test_starts_that_are_drawn_get_the_stage_s_key():
    keys = jax.random.split(jax.random.key(0), 2)
    leaf = {"w": jnp.asarray(np.random.default_rng(0).standard_normal((8, 8)), jnp.float32)}
    asked = ({"method": "cluster", "k": 5, "start": "random", "iterations": 1}, {"method": "cluster_vectors", "k": 3, "dim": 2})
    for fields in asked:
        made = [registry.transform(**fields, key=key) for key in (*keys, keys[0])]
        first, second, again = (np.asarray(method.init(leaf).learnt["w"]) for method in made)
        assert (first == again).all() and (first != second).any()
    assert registry.transform("cluster", k=5, key=keys[0]).traits.name == "cluster(5)"  # of no use there


def test_random_codes_differ_by_seed_and_stage():
    entry = {"method": "quantize", "bits": 4, "rounding": "stochastic"}
    draws = set()
    for seed in (0, 1):
        for stage in registry.stages([{"name": "p", **entry}, {"name": "q", **entry}], seed):
            method = stage.method(1)
            draws.add(np.asarray(method.view(PARAMS, method.init(PARAMS))["a"]["kernel"]).tobytes())
    assert len(draws) == 4


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
        (
            {"name": "x", "method": "prune", "sparsity": {"schedule": "cubic", "final": 0.9, "end": 1.5}},
            "sparsity: end=1.5: give a share of the stage, 0.0 to 1.0, or a whole number of steps",
        ),
        (
            {"name": "x", "method": "prune", "sparsity": {"schedule": "cubic", "final": 0.9, "begin": 0.8, "end": 0.4}},
            "0 <= begin <= end .sparsity: begin=0.8, end=0.4 as shares of",
        ),
        ({"name": "x"}, r"stages\[0\] \(x\): needs 'method', a string, or 'cases', a list; has name"),
        ({}, r"stages\[0\] \(no name\): needs 'name', a string"),
        ({"name": "x", "cases": [{"where": "a", "method": "identity"}], "bits": 4}, "'cases' stand beside bits;"),
        ({"name": "x", "cases": [{"method": "clip"}]}, r"cases\[0\]: needs 'where' and 'method', strings; has method"),
        ({"name": "x", "cases": [{"where": "a", "method": "clap"}]}, "method 'clap' is unknown; nearest: clip"),
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
    assert registry.imported("jaxopt_nn.methods.criteria.magnitude:magnitude") is magnitude
    with pytest.raises(ValueError, match=said):
        registry.imported(name)


def test_no_rule_is_weight_only():
    assert registry.rule("") is None and registry.rule(None) is None
    assert registry.rule("jaxopt_nn.core.rule:identity_rule").name == "identity"


def test_names_of_rules_with_ranges_and_of_training_in_float():
    assert registry.rule("w4a8-static") is static_ranges("w4a8")
    assert registry.rule("w8a8-moving") is moving_ranges("w8a8")
    assert registry.training_rule("float") is identity_rule()
    with pytest.raises(ValueError, match=r"rule='w8a8-fixed': allowed are 'w8a8', 'w8a8-static', 'w8a8-moving'"):
        registry.rule("w8a8-fixed")


def test_parts_of_a_pruning_by_name():
    """With arguments or alone, steps as shares, the stage's key for what draws, parts within parts."""
    method = registry.transform(
        "prune", structure="2x3", criterion="energy", allocation="global_budget", sparsity=0.5, pattern="a/*"
    )
    assert method.init(PARAMS).carried[0]["a/kernel"].mask.shape == (2, 1)
    assert registry.transform("prune", structure="2:4").init(PARAMS).carried["a/kernel"].mask.sum() == 6
    long = registry.transform("prune", structure={"name": "n_of_m", "n": 1, "m": 3, "axis": 1})
    assert long.init(PARAMS).carried["a/kernel"].mask.sum() == 4
    keys = [jax.random.key(i) for i in range(2)]
    drawn = [registry.transform("prune", criterion="random", sparsity=0.5, key=key).init(PARAMS) for key in keys]
    assert (drawn[0].carried["a/kernel"].mask != drawn[1].carried["a/kernel"].mask).any()
    regrow = {"name": "rigl", "end": 0.5, "start": "random"}
    method = registry.transform("prune", sparsity=0.5, regrow=regrow, steps=21, key=keys[0])
    state = method.init(PARAMS)
    np.testing.assert_array_equal(state.carried["a/kernel"].mask, drawn[0].carried["a/kernel"].mask)
    new = [method.update(PARAMS, state, step=t, grads=PARAMS).carried["a/kernel"].mask for t in (0, 10)]
    assert (new[0] != state.carried["a/kernel"].mask).any() and (new[1] == state.carried["a/kernel"].mask).all()


def own_structure(width):
    return single_weights._replace(name=f"own {width}")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"structure": "block"}, "structure 'block' is unknown; nearest: blocks"),
        ({"structure": "blocks"}, "structure 'blocks' needs inputs, outputs"),
        ({"structure": {"inputs": 2}}, "structure: a mapping needs 'name'"),
        ({"structure": {"name": "blocks", "inputs": 2, "output": 3}}, "has no 'output'; nearest: outputs"),
        ({"structure": "2:4", "allocation": "erk"}, "leave allocation out"),
        ({"regrow": "rigl", "sparsity": 0.5}, "regrow 'rigl' needs end"),
        ({"regrow": {"name": "rigl", "end": 1.5}, "sparsity": 0.5}, "end=1.5: give a share of the stage"),
        ({"criterion": "movement", "sparsity": 0.5}, "movement needs gradients"),
    ],
)
def test_parts_that_make_no_sense(arguments, match):
    with pytest.raises(ValueError, match=match):
        registry.transform("prune", steps=10, **arguments)


def test_a_structure_of_ones_own_with_arguments():
    method = registry.transform("prune", structure={"name": f"{__name__}:own_structure", "width": 3}, sparsity=0.5)
    assert method.init(PARAMS).carried["a/kernel"].mask.sum() == 6
