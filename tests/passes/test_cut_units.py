"""Budgets against networks that are really built, and what can't be met."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_nn as jn
from experiments.models.lenet import LeNet5
from experiments.models.mlp import MLP
from jaxopt_nn.passes import costs
from jaxopt_nn.passes.levels import rounded
from tests.corpus import CORPUS, oracle
from tests.passes.networks import network

KNOWS_NOTHING = jn.ModelInfo()


def macs(net, *inputs):
    return sum(site.macs for site in jn.inspect(net.apply, net.variables, *inputs).sites)


def sizes(variables):
    return sum(x.size for x in jax.tree.leaves(variables))


def executed(net, x, *arguments, **how):
    cut = jn.cut_units(*arguments, **how)
    plan = cut.plan(net, KNOWS_NOTHING, x)
    return cut.execute(net, plan)[0], plan


@pytest.mark.parametrize("allocation", [jn.per_layer, jn.across_layers], ids=["per layer", "across layers"])
def test_a_budget_is_met_by_the_module_of_these_widths_and_not_one_level_before(allocation):
    """Parameters and multiply-accumulates are counted of a module that is written with the widths of the plan."""
    net, x = network(LeNet5((8, 12), 20), 2, 28, 28, 1)
    before = {"params": sizes(net.variables), "macs": macs(net, x)}
    for kind, amount in (("params", 0.4), ("macs", 0.6)):
        small, plan = executed(net, x, **{kind: amount}, allocation=allocation)
        first, second, third = (len(own) for own in list(plan.kept.values())[:3])
        built = jax.eval_shape(LeNet5((first, second), third).init, jax.random.key(0), x)
        counted = {"params": sizes(built), "macs": macs(jn.Network(LeNet5((first, second), third).apply, built), x)}
        assert jax.tree.map(jnp.shape, small.variables) == jax.tree.map(jnp.shape, built)
        assert counted[kind] <= (1 - amount) * before[kind]
        assert counted == {"params": plan.sizes[1], "macs": macs(small, x)}
        gone = sum(layer.size - len(layer.kept) for layer in plan.layers)
        one_less = executed(net, x, share=(gone - 1) / 40, allocation=allocation)[0]
        assert {"params": sizes(one_less.variables), "macs": macs(one_less, x)}[kind] > (1 - amount) * before[kind]


def test_bytes_are_those_of_each_dtype():
    net = jn.Network(
        lambda v, x: jax.nn.relu(jax.nn.relu(x @ v["a"]) @ v["b"].astype(jnp.float32)) @ v["c"],
        {"a": jnp.ones((4, 8)), "b": jnp.ones((8, 8), jnp.bfloat16), "c": jnp.ones((8, 2))},
    )
    small, plan = executed(net, jnp.ones((1, 4)), nbytes=0.5)
    stored = lambda n: sum(x.nbytes for x in jax.tree.leaves(n.variables))
    assert costs.stored_bytes(net, (), None)(plan) == stored(small) <= stored(net) / 2


def attention(v, x):
    """Heads of 4 by 6 entries."""
    split = lambda y: y.reshape(*y.shape[:2], 4, 6)
    q, k, w = (split(x @ v[name]) for name in "qkv")
    found = jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k)), w)
    return found.reshape(*x.shape[:2], 24) @ v["o"]


def transformer():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    return jn.Network(attention, {**{n: draw(5, 24) for n in "qkv"}, "o": draw(24, 5)}), draw(2, 3, 5)


def test_two_halves_of_an_axis_are_a_quarter_and_multiples_are_of_its_length():
    net, x = transformer()
    small, plan = executed(net, x, share=0.5)
    heads, *_ = plan.layers
    assert heads.size == 4 and len(heads.kept) == 2 and small.variables["q"].shape == (5, 6)
    whole = 4 * 5 * 24
    budgeted, plan = executed(net, x, params=0.5)
    assert sizes(budgeted.variables) == plan.sizes[1] <= whole / 2, "counted on the plan, not on each group"
    counted, _ = executed(net, x, macs=0.5)
    assert macs(counted, x) <= macs(net, x) / 2
    only, plan = executed(net, x, share=0.5, multiple=4, protect=["q axis 1 part 1", "v"])
    assert only.variables["q"].shape == (5, 12) and len(plan.layers[0].kept) == 2, "two heads of six"
    both, _ = executed(net, x, share=0.4, multiple=4)
    assert both.variables["q"].shape[1] % 4 == both.variables["v"].shape[1] % 4 == 0 < both.variables["v"].shape[1]


@pytest.mark.parametrize("name", ["mlp_relu", "low_rank"])
def test_the_small_network_is_the_zeroed_one(name):
    model = CORPUS[name]()
    net, cut = jn.Network(model.apply, model.variables), jn.cut_units(macs=0.5, allocation=jn.across_layers)
    plan = cut.plan(net, KNOWS_NOTHING, *model.inputs)
    assert any(layer.cut for layer in plan.layers)

    def execute(plan):
        small, _ = cut.execute(net, plan)
        return small.apply, small.variables

    oracle.check(model, plan, execute, gradients=False)


def mlp(*widths):
    return network(MLP((*widths, 3)), 4, 5)


def kept(plan):
    return [len(own) for own in plan.kept.values()]


def test_the_weakest_of_the_whole_network_go():
    net, x = mlp(8, 8)
    score = lambda units: np.arange(1.0, 9.0) ** (1 if "Dense_0" in units.name else 6)
    _, plan = executed(net, x, score, share=0.5, allocation=jn.across_layers)
    values = {0: np.arange(1.0, 9) / np.arange(1.0, 9).mean(), 1: np.arange(1.0, 9) ** 6 / (np.arange(1.0, 9) ** 6).mean()}
    pairs = sorted((value, layer) for layer, own in values.items() for value in own)[:8]
    assert kept(plan) == [8 - sum(layer == i for _, layer in pairs) for i in range(2)] == [5, 3]
    raw = lambda scores: scores
    assert kept(executed(net, x, lambda units: np.arange(8) + 8 * ("1" in units.name), share=0.4, allocation=raw)[1]) == [2, 8]
    with pytest.raises(ValueError, match=r"allocation: gives \(3,\) values for the 8 units of params/Dense_0/kernel"):
        executed(net, x, share=0.4, allocation=lambda scores: dict.fromkeys(scores, np.ones(3)))


def test_equal_scores_lose_the_same_share_and_dead_layers_go_first():
    net, x = mlp(12, 6)
    for allocation in (jn.per_layer, jn.across_layers):
        _, plan = executed(net, x, lambda units: np.ones(units.size), share=0.5, allocation=allocation)
        assert [own.tolist() for own in plan.kept.values()] == [list(range(6)), list(range(3))]
    dead = lambda units: np.zeros(12) if units.size == 12 else np.arange(1.0, 7.0)
    assert kept(executed(net, x, dead, share=11 / 18, allocation=jn.across_layers)[1]) == [1, 6]
    infinite = lambda units: np.where(np.arange(units.size) < 4, np.inf, 1.0)
    assert kept(executed(net, x, infinite, share=0.5, allocation=jn.across_layers)[1]) == [5, 4]


def test_a_threshold_takes_what_lies_at_or_below_and_leaves_the_best():
    net, x = mlp(12, 6)
    score = lambda units: np.arange(units.size) % 6
    assert kept(executed(net, x, score, threshold=2)[1]) == [6, 3]
    _, plan = executed(net, x, score, threshold=9, least=2)
    assert kept(plan) == [2, 2] and "its best 2 stay, so that the layer keeps 2 of its 12" in str(plan)
    assert kept(executed(net, x, score, threshold=2, multiple=4)[1]) == [8, 4], "up, so that nothing alive goes"


def test_protected_layers_stay_and_layers_keep_their_least():
    net, x = mlp(12, 6)
    _, plan = executed(net, x, share=0.5, protect="**/Dense_0/*")
    assert kept(plan) == [12, 3] and "protected by '**/Dense_0/*'" in str(plan)
    assert kept(executed(net, x, share=0.7, least=3)[1]) == [3, 3]
    assert kept(executed(net, x, share=0.5, multiple=4)[1]) == [4, 4], "10 of 18 go, nearer to 9 than 6"
    assert kept(executed(net, x, share=0.05, multiple=8)[1]) == [12, 6], "6 units, fewer than 8"
    silent = lambda units: None if units.size == 12 else np.arange(6)
    _, plan = executed(net, x, silent, share=0.5)
    assert kept(plan) == [12, 3] and "the score says nothing of it" in str(plan)


@pytest.mark.parametrize(
    "units, size, step, least, up, expected",
    [
        (5, 12, 4, 1, False, 4), (6, 12, 4, 1, False, 8), (1, 12, 4, 1, False, 4), (11, 12, 8, 1, False, 8),
        (12, 12, 8, 1, False, 12), (5, 6, 8, 1, False, 6), (3, 12, 1, 5, False, 5), (3, 12, 4, 5, False, 8),
        (5, 12, 4, 1, True, 8), (0, 12, 1, 1, True, 1),
    ],
)  # fmt: skip
def test_numbers_of_units(units, size, step, least, up, expected):
    assert rounded(units, size, step, least, up) == expected


def test_budgets_that_cant_be_met_say_what_can():
    net, x = mlp(12, 6)
    most = 1 - (5 + 1 + 1 + 1 + 3 + 3) / sizes(net.variables)
    with pytest.raises(ValueError, match=rf"at the least 14 stay .* pass at most params={int(1000 * most) / 1000:.3g}"):
        executed(net, x, params=0.99)
    with pytest.raises(ValueError, match=r"macs=0.95 of .* stay"):
        executed(net, x, macs=0.95, least=4)
    with pytest.raises(ValueError, match=r"share=0.9 of 18 units can't go; at most 12 can \(0.667\)"):
        executed(net, x, share=0.9, least=3)
    with pytest.raises(ValueError, match="no layer"):
        executed(net, x, share=0.5, protect=["**/Dense_7/*"])


def test_latency_is_searched_on_what_is_measured(monkeypatch):
    """The clock is replaced by one that goes with the square root of the parameters."""
    net, x = mlp(16, 12)
    calls = []

    def clock(candidates, example, batches):
        calls.append(batches)
        whole, small = (sizes(weights[0]) for _, weights in candidates)
        return [{}, {str(batches[0]): {"ratio": (small / whole) ** 0.5}}], {}

    monkeypatch.setattr(costs, "latencies", clock)
    small, _ = executed(net, x, latency=0.4, batch=32)
    ratio = (sizes(small.variables) / sizes(net.variables)) ** 0.5
    assert 0.5 < ratio <= 0.6 and set(map(tuple, calls)) == {(32,)} and len(calls) < 10
    with pytest.raises(ValueError, match=r"latency=0.9 of 1 can't go; at the least"):
        executed(net, jax.ShapeDtypeStruct(x.shape, "float32"), latency=0.9)
    assert calls[-1] == [4], "the examples of the inputs"
    monkeypatch.setattr(costs, "latencies", lambda *given: ([{}, {}], {"4": "too large"}))
    with pytest.raises(ValueError, match="batch=4 can't be measured: too large; pass a smaller batch"):
        executed(net, x, latency=0.5)


@pytest.mark.slow
def test_a_wide_network_is_cut_until_it_takes_half_the_time():
    net, _ = mlp(512, 512)
    small, _ = executed(net, jax.ShapeDtypeStruct((512, 5), "float32"), latency=0.5)
    assert sizes(small.variables) < 0.7 * sizes(net.variables)


def test_pinned_units_are_not_cut_by_an_edited_plan():
    net, x = mlp(12, 6)
    cut = jn.cut_units(share=0.5)
    text = json.loads(cut.plan(net, KNOWS_NOTHING, x).to_json())
    last = text["layers"][-1]
    last["pinned"], last["kept"] = None, [0]
    with pytest.raises(ValueError, match="Dense_2/kernel must keep all of its 3 units: it reaches an output of `apply`"):
        cut.execute(net, jn.Plan.from_json(json.dumps(text)))


def test_abstract_networks_are_planned_where_no_weight_is_asked_for():
    net, x = mlp(12, 6)
    abstract = net.replace(variables=jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape, w.dtype), net.variables))
    random = jn.cut_units(jn.scores.random(0), macs=0.5)
    plans = [random.plan(own, KNOWS_NOTHING, x) for own in (net, abstract)]
    assert plans[0].to_json() == plans[1].to_json()
    arrays, shapes = (random.execute(own, plans[0])[0].variables for own in (net, abstract))
    assert jax.tree.map(lambda a: (a.shape, a.dtype), arrays) == jax.tree.map(lambda a: (a.shape, a.dtype), shapes)
    assert all(isinstance(a, jax.ShapeDtypeStruct) for a in jax.tree.leaves(shapes))
    with pytest.raises(ValueError, match=r"Dense_0/kernel: is abstract, so that its weights can't be scored; pass arrays"):
        executed(abstract, x, macs=0.5)


def test_calibration_that_is_empty_or_no_number():
    net, x = mlp(12, 6)
    cut = jn.cut_units(jn.scores.largest_activation, threshold=0.0)
    with pytest.raises(ValueError, match="no batch of inputs"):
        jn.calibrate(net, cut, [])
    with pytest.raises(ValueError, match="NaN or Inf in the statistic 'activity'"):
        jn.calibrate(net, cut, [np.full_like(x, np.nan)])
    x[0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN or Inf; clean the data first"):
        taylor = jn.cut_units(jn.scores.taylor, share=0.5)
        jn.calibrate(net, taylor, jn.classification(test=(x, np.zeros(4, np.int32))))
