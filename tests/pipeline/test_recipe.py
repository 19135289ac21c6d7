"""Recipes are checked when they are made."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxopt_nn.core.transform import identity
from jaxopt_nn.methods.arithmetic import arithmetic, fake_quant_activations
from jaxopt_nn.methods.clip import clip
from jaxopt_nn.pipeline.recipe import Distill, Stage, check_recipe, control

CLIP, RULE = clip(-1.0, 1.0), fake_quant_activations(8)


def test_the_learning_rate_falls_to_zero_by_half_a_cosine():
    optimizer = Stage("c", CLIP, learning_rate=0.1).updates(10)
    params, state, steps = np.zeros(1), None, []
    state = optimizer.init(params)
    for _ in range(11):
        update, state = optimizer.update(np.ones(1), state, params)
        steps.append(-float(update[0]))
    expected = 0.05 * (1 + np.cos(np.pi * np.arange(11) / 10))  # Adam's step on a constant gradient is the rate itself
    np.testing.assert_allclose(steps, expected, atol=1e-6)


def test_a_schedule_is_taken_as_it_is():
    optimizer = Stage("c", CLIP, learning_rate=optax.constant_schedule(0.25)).updates(3)
    update, _ = optimizer.update(np.ones(1), optimizer.init(np.zeros(1)), np.zeros(1))
    np.testing.assert_allclose(update, [-0.25], rtol=1e-5)


def test_weights_decay_as_adamw_s_and_what_is_learnt_or_gets_no_gradient_does_not():
    optimizer = Stage("c", CLIP, learning_rate=optax.constant_schedule(0.5), weight_decay=0.1).updates(3)
    moved = {"params": {"w": jnp.array([3.0, -2.0]), "mean": jnp.ones(2)}, "learnt": {"w": jnp.full(1, 3.0)}}
    slopes = {"params": {"w": jnp.array([0.3, 0.0]), "mean": jnp.zeros(2)}, "learnt": {"w": jnp.ones(1)}}
    update, _ = optimizer.update(slopes, optimizer.init(moved), moved)
    adamw = optax.adamw(0.5, weight_decay=0.1)
    expected, _ = adamw.update(slopes, adamw.init(moved), moved)
    np.testing.assert_allclose(update["params"]["w"], expected["params"]["w"], rtol=1e-6)
    np.testing.assert_array_equal(update["params"]["mean"], [0.0, 0.0])
    np.testing.assert_allclose(update["learnt"]["w"], [-0.5], rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"ema": 1.0}, ValueError, "ema=1.0; a decay from 0"),
        ({"weight_decay": -0.1}, ValueError, "weight_decay=-0.1"),
        ({"name": "a/b"}, ValueError, "a name that a folder can have"),
        ({"distill": {"temperature": 2.0}}, TypeError, "distill is a dict; pass Distill"),
        ({"name": ""}, ValueError, "needs a name"),
        ({"transform": "prune"}, TypeError, "transform is 'prune'; pass a Transform"),
        ({"rule": "w4a8"}, TypeError, "rule is 'w4a8'; pass a Rule"),
        ({"epochs": 1.5}, ValueError, "epochs=1.5"),
        ({"epochs": True}, ValueError, "epochs=True"),
        ({"name": 3}, TypeError, r"Stage: name is 3; pass a string"),
        ({"learning_rate": "1e-3"}, TypeError, "learning_rate='1e-3'; pass a number"),
        ({"learning_rate": 0.0}, ValueError, "learning_rate=0.0"),
        ({"learning_rate": float("nan")}, ValueError, "learning_rate=nan"),
    ],
)
def test_bad_stages(arguments, error, said):
    with pytest.raises(error, match=said):
        Stage(**{"name": "s", "transform": CLIP, **arguments})


def test_a_control_trains_alike_and_does_nothing_else():
    fields = {"epochs": 3, "learning_rate": 0.1, "weight_decay": 0.01, "ema": 0.9, "distill": Distill(2.0)}
    stages = [Stage("a", CLIP), Stage("b", CLIP, rule=arithmetic("w8a8"), training_rule=RULE, thaw=("a",), **fields)]
    plain = [Stage("a", identity()), Stage("b", identity(), **fields)]
    shown = lambda recipe: [{**vars(stage), "transform": stage.transform.traits.name} for stage in recipe]
    assert shown(control(stages)) == shown(plain)


def test_good_recipes():
    stages = check_recipe([Stage("a", CLIP), Stage("b", CLIP, rule=arithmetic("w8a8"), thaw=("a",))])
    assert [s.name for s in stages] == ["a", "b"]


@pytest.mark.parametrize(
    ("recipe", "error", "said"),
    [
        ([], ValueError, "no stage"),
        (Stage("a", CLIP), TypeError, "pass a list"),
        ([CLIP], TypeError, "pass a list"),
        ([Stage("a", CLIP), Stage("a", CLIP)], ValueError, "two stages are called 'a'"),
        ([Stage("baseline", CLIP)], ValueError, "two stages are called 'baseline'"),
        ([Stage("a", CLIP), Stage("b", CLIP, thaw=("c",))], ValueError, r"thaw='c' is no earlier stage; allowed are \['a'\]"),
    ],
)
def test_bad_recipes(recipe, error, said):
    with pytest.raises(error, match=said):
        check_recipe(recipe)
