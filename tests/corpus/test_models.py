"""Every model of the corpus runs, and its numbers are finite; the oracle passes what is right and fails what is wrong."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_nn as jn
from tests.corpus import CORPUS, oracle
from tests.zoo import ZOO

#: Models that run today, whose code reads widths off its variables.
TODAY = ("mlp_relu", "low_rank", "deep_sets", "instance_norm")


@pytest.mark.parametrize("name", CORPUS)
def test_a_model_builds_and_traces(name):
    model = CORPUS[name]()
    assert model.name == name and name not in ZOO
    assert model.note.endswith(".") and "\n" not in model.note
    outputs = jax.tree.leaves(jax.eval_shape(model.apply, model.variables, *model.inputs))
    assert outputs and all(x.dtype == jnp.float32 for x in outputs)
    assert any(x.ndim >= 2 for x in jax.tree.leaves(model.variables))
    assert sum(x.size for x in jax.tree.leaves(model.variables)) <= 12_000
    for path, x in jax.tree_util.tree_leaves_with_path(model.variables):
        assert np.isfinite(x).all() and np.any(x), path


@pytest.mark.slow
@pytest.mark.parametrize("name", CORPUS)
def test_a_model_runs(name):
    model = CORPUS[name]()
    for x in jax.tree.leaves(jax.jit(model.apply)(model.variables, *model.inputs)):
        # A scalar has no range: that it is not zero must do.
        assert np.isfinite(x).all() and (np.ptp(x) if x.ndim else abs(x)) > 1e-3


def passed(model):
    network, cut = jn.Network(model.apply, model.variables), jn.cut_units(share=0.3)

    def execute(plan):
        small, _ = cut.execute(network, plan)
        return small.apply, small.variables

    return cut.plan(network, jn.ModelInfo(), *model.inputs), execute


@pytest.mark.slow
@pytest.mark.parametrize("name", TODAY)
def test_networks_are_cut_as_the_oracle_says(name):
    model = CORPUS[name]()
    plan, execute = passed(model)
    assert any(layer.cut for layer in plan.layers)
    oracle.check(model, plan, execute)


def layer(size, kept, **members):
    """A layer of a plan by hand: ``{path with __ for /: (axis, units)}``, a list of these for several axes of a leaf."""
    axes = [(path, own) for path, all_of in members.items() for own in (all_of if isinstance(all_of, list) else [all_of])]
    made = tuple(
        types.SimpleNamespace(path=path.replace("__", "/"), axis=axis, role="member", units=np.asarray(units))
        for path, (axis, units) in axes
    )
    return types.SimpleNamespace(cut=True, size=size, kept=np.asarray(kept), members=made)


def heads_of_gpt(kept):
    """Whole heads of the first block: 4 of 6 entries each."""
    units = np.repeat(np.arange(4), 6)
    own = {f"blocks__0__attention__{name}": (1, units) for name in "qkv"}
    own |= {f"blocks__0__attention__{name}": (0, units) for name in ("bq", "bv", "o")}
    return [layer(4, kept, **own)]


def heads_of_fused_kernel(kept):
    """Whole heads of one kernel, whose outputs are queries, keys and values."""
    units = np.repeat(np.arange(4), 6)
    own = {"qkv": (1, np.tile(units, 3)), "b": (0, np.tile(units, 3)), "o": (0, units)}
    return [layer(4, kept, **{f"blocks__1__attention__{name}": member for name, member in own.items()})]


def hidden_of_scanned_llama(kept):
    """Of the MLPs of all layers of the stack."""
    units = np.arange(34)
    return [layer(34, kept, blocks__gate=(2, units), blocks__up=(2, units), blocks__down=(1, units))]


def states_of_lstm(kept):
    """Four gates of one kernel, which are rows of it too, below those of the input; then rows of the next layer's."""
    units, none = np.arange(14), lambda n: np.full(n, -1)
    first = [(0, np.r_[none(10), units]), (1, np.tile(units, 4))]
    rows = (0, np.r_[units, none(11)])
    return [layer(14, kept, layers__0__w=first, layers__0__b=(0, np.tile(units, 4)), layers__1__w=rows)]


BY_HAND = {
    "gpt_learned": (heads_of_gpt, [0, 3]),
    "qkv_split": (heads_of_fused_kernel, [1, 2, 3]),
    "llama_scan": (hidden_of_scanned_llama, np.arange(3, 34, 2)),
    "lstm_fused": (states_of_lstm, [0, 1, 5, 6, 7, 13]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_HAND)
def test_models_that_read_their_sizes_are_cut_by_hand(name):
    """The model's own code on the smaller leaves is the zeroed network."""
    model = CORPUS[name]()
    make, kept = BY_HAND[name]
    plan = types.SimpleNamespace(layers=make(kept))
    small = jax.tree.map(jnp.asarray, oracle.restricted(model.variables, plan))
    oracle.check(model, plan, lambda plan: (model.apply, small))
    whole = jax.jit(model.apply)
    off = np.abs(whole(model.variables, *model.inputs) - whole(oracle.zeroed(model.variables, plan), *model.inputs))
    assert off.max() > 1e-3


def plain(cut=True, units=(0, 1, 2, 3), role="consumer"):
    """``tanh(x @ up + b) @ down`` and its plan that keeps units 0 and 2 of 4, by hand."""

    def member(path, axis, role, units):
        return types.SimpleNamespace(path=path, axis=axis, role=role, units=np.asarray(units))

    members = (member("up", 1, "producer", range(4)), member("b", 0, role, range(4)), member("down", 0, "consumer", units))
    layer = types.SimpleNamespace(cut=cut, size=4, kept=np.array([0, 2]), members=members)
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    variables = {"up": draw(3, 4), "b": draw(4), "down": draw(len(units), 2)}
    apply = lambda v, x: jnp.tanh(x @ v["up"] + v["b"][None]) @ v["down"]
    model = types.SimpleNamespace(name="plain", apply=apply, variables=variables, inputs=(draw(5, 3),))
    return model, types.SimpleNamespace(layers=(layer,))


def by_hand(model, keep=(0, 2)):
    v, keep = model.variables, np.array(keep)
    return model.apply, {"up": v["up"][:, keep], "b": v["b"][keep], "down": v["down"][keep]}


def test_the_zeroed_network_is_zero_where_units_go():
    model, plan = plain()
    zero = oracle.zeroed(model.variables, plan)
    off = np.array([1, 3])
    assert not np.any(zero["up"][:, off]) and not np.any(zero["b"][off]) and not np.any(zero["down"][off])
    keep = np.array([0, 2])
    np.testing.assert_array_equal(zero["up"][:, keep], model.variables["up"][:, keep])
    np.testing.assert_array_equal(oracle.restricted(model.variables, plan)["down"], model.variables["down"][keep])
    model, plan = plain(role="divisor")
    assert np.all(oracle.zeroed(model.variables, plan)["b"] == model.variables["b"])
    assert oracle.restricted(model.variables, plan)["b"].shape == (2,)


def test_entries_without_a_unit_and_two_layers_on_one_axis():
    """The axis of ``down`` is 2 heads of width 3, one head and one entry of each go; an entry of no unit stays."""
    member = lambda units: types.SimpleNamespace(path="down", axis=0, role="consumer", units=np.array(units))
    layer = lambda size, kept, units: types.SimpleNamespace(cut=True, size=size, kept=np.array(kept), members=(member(units),))
    heads, widths = layer(2, [1], [0, 0, 0, 1, 1, 1, -1]), layer(3, [0, 2], [0, 1, 2, 0, 1, 2, -1])
    plan = types.SimpleNamespace(layers=(heads, widths))
    x = {"down": jnp.arange(1.0, 8.0)}
    np.testing.assert_array_equal(oracle.zeroed(x, plan)["down"], [0, 0, 0, 4, 0, 6, 7])
    np.testing.assert_array_equal(oracle.restricted(x, plan)["down"], [4, 6, 7])


def test_the_oracle_passes_what_is_right():
    model, plan = plain()
    oracle.check(model, plan, lambda plan: by_hand(model))


def test_the_oracle_fails_other_units():
    model, plan = plain()
    with pytest.raises(AssertionError, match="other entries"):
        oracle.check(model, plan, lambda plan: by_hand(model, (0, 3)))


def test_the_oracle_fails_other_sizes():
    model, plan = plain()
    with pytest.raises(AssertionError, match="the plan says"):
        oracle.check(model, plan, lambda plan: by_hand(model, (0, 2, 3)))


def test_the_oracle_fails_another_function():
    model, plan = plain()
    wrong = lambda v, x: model.apply(v, x) * (1 + 1e-3)
    with pytest.raises(AssertionError, match="output"):
        oracle.check(model, plan, lambda plan: (wrong, by_hand(model)[1]))


def test_the_oracle_fails_a_lost_derivative():
    model, plan = plain()
    wrong = lambda v, x: model.apply({**v, "up": jax.lax.stop_gradient(v["up"])}, x)
    with pytest.raises(AssertionError, match="gradient up"):
        oracle.check(model, plan, lambda plan: (wrong, by_hand(model)[1]))


def test_the_oracle_fails_one_batch_size_only():
    model, plan = plain()
    wrong = lambda v, x: model.apply(v, x.reshape(5, 3))
    with pytest.raises(TypeError, match="reshape"):
        oracle.check(model, plan, lambda plan: (wrong, by_hand(model)[1]))


def test_the_oracle_fails_a_divisor_that_shrinks():
    """A mean over units divides by their number, of which the cut network has fewer."""
    model, plan = plain()
    apply = model.apply
    centred = lambda v, x: apply({**v, "b": v["b"] - v["b"].mean()}, x)
    model = types.SimpleNamespace(**{**vars(model), "apply": centred})
    with pytest.raises(AssertionError, match="output"):
        oracle.check(model, plan, lambda plan: (centred, by_hand(model)[1]))


def test_a_plan_that_is_not_one_fails():
    model, plan = plain(cut=False)
    with pytest.raises(AssertionError, match="cut is False"):
        oracle.zeroed(model.variables, plan)
    model, plan = plain(units=(0, 1, 2, 4))
    with pytest.raises(AssertionError, match="units"):
        oracle.zeroed(model.variables, plan)


def test_a_group_whose_zeros_give_nan_must_be_pinned():
    model, plan = plain()
    divided = lambda v, x: (x @ v["up"] / v["b"][None]) @ v["down"]
    model = types.SimpleNamespace(**{**vars(model), "apply": divided})
    with pytest.raises(AssertionError, match="must stay pinned"):
        oracle.check(model, plan, lambda plan: by_hand(model))
