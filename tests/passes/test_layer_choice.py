"""Which layers go: scores against NumPy and against the loss without a layer; budgets, recipes, errors."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_nn.core.model import ModelInfo
from jaxopt_nn.interpret.inspect import inspect
from jaxopt_nn.interpret.network import Network
from jaxopt_nn.methods.prune import prune
from jaxopt_nn.passes import scores
from jaxopt_nn.passes.allocations import across_layers, per_layer
from jaxopt_nn.passes.cut_layers import cut_layers
from jaxopt_nn.passes.cutting import planned
from jaxopt_nn.pipeline.calibrate import calibrate
from jaxopt_nn.pipeline.compress import compress
from jaxopt_nn.pipeline.numbers import regression
from jaxopt_nn.pipeline.recipe import Stage
from tests.passes.layers import LAYERS, WIDTH, branch, close, cut, drawn, looped, stacked, written_out


def ends(v, x):
    """The value before each layer and after the last, by NumPy."""
    found = [x]
    for w in v["layers"]:
        found.append(found[-1] + branch(w, found[-1]))
    return [np.asarray(y, np.float64) for y in found]


def cosine(a, b):
    return np.mean(np.sum(a * b, -1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1))


@pytest.mark.parametrize("form", ["written out", "looped", "backwards"])
def test_block_influence_is_what_it_says(form):
    v, x = drawn()
    run = {"written out": written_out, "looped": looped}.get(form, lambda v, x: jax.lax.scan(
        lambda x, w: (x + branch(w, x), None), x, v["layers"], reverse=True)[0] @ v["head"])  # fmt: skip
    net = Network(run, v if form == "written out" else stacked(v))
    change = cut_layers(layers=1)
    info = calibrate(net, change, [x[:2], x[2:]])
    (name,) = (key[1] for key in info.stats)
    order = slice(None, None, -1 if form == "backwards" else 1)
    values = ends({"layers": v["layers"][order]}, x)
    wanted = np.array([1 - cosine(a, b) for a, b in itertools.pairwise(values)])[order]
    gone = int(np.argmin(wanted))
    assert change.plan(net, info, x).layers[0].off.tolist() == [i == gone for i in range(LAYERS)]
    measured = info.stats[(), name, "similarity"]
    close(1 - np.diagonal(measured["sum"]) / measured["rows"], wanted)


def test_the_best_block_goes_whole():
    v, x = drawn(layers=5)
    net = Network(functools.partial(written_out, only=range(5)), v)
    values = ends(v, x)
    for n in (1, 2, 3):
        change = cut_layers(scores.angular_distance(n), layers=n)
        plan = change.plan(net, calibrate(net, change, [x]), x)
        angles = [np.arccos(cosine(values[i], values[i + n])) for i in range(6 - n)]
        first = int(np.argmin(angles))
        assert np.flatnonzero(plan.layers[0].off).tolist() == list(range(first, first + n))


@pytest.mark.parametrize("form", ["written out", "looped"])
def test_removal_loss_is_the_loss_without_the_layer(form):
    v, x = drawn()
    net = Network(written_out, v) if form == "written out" else Network(looped, stacked(v))
    y = np.asarray(net(x)) + 0.1
    task = regression(test=(np.asarray(x), y))
    mean = lambda out: np.mean((np.asarray(out) - y) ** 2)
    wanted = [mean(written_out(v, x, [i for i in range(LAYERS) if i != gone])) - mean(net(x)) for gone in range(LAYERS)]
    found = {}

    def score(own):
        found["here"] = scores.removal_loss(own)
        return found["here"]

    score.probes = scores.removal_loss.probes
    change = cut_layers(score, layers=2)
    plan = change.plan(net, calibrate(net, change, task), x)
    close(found["here"], wanted)
    assert set(np.flatnonzero(plan.layers[0].off)) == set(np.argsort(wanted)[:2])


def test_a_stack_that_is_protected_is_not_measured():
    """A loop in a loop, which nobody can look into; the other stack is measured all the same."""
    v, x = drawn()
    both = {**v, "nested": jnp.full((2, 2, WIDTH), 0.1)}

    def apply(v, x):
        within = lambda x, rows: jax.lax.scan(lambda x, row: (x + jnp.sin(x * row[None]), None), x, rows)
        return jax.lax.scan(lambda x, rows: (within(x, rows)[0], None), written_out(v, x), v["nested"])[0]

    net, change = Network(apply, {**both, "head": jnp.eye(WIDTH)}), cut_layers(layers=1)
    with pytest.raises(ValueError, match=r"nested#1: its loop over layers lies in another .*\(protect='nested#1'\)"):
        calibrate(net, change, [x])
    change = cut_layers(layers=1, protect="nested*")
    plan = change.plan(net, calibrate(net, change, [x]), x)
    plain = Network(written_out, v)
    change = cut_layers(layers=1)
    np.testing.assert_array_equal(plan.kept["layers/*"], change.plan(plain, calibrate(plain, change, [x]), x).kept["layers/*"])
    assert {name: len(kept) for name, kept in plan.kept.items()} == {"nested": 2, "nested#1": 2, "layers/*": 3}


@pytest.mark.parametrize("form", ["written out", "looped"])
def test_taylor_is_the_slope_along_a_layer(form):
    v, x = drawn()
    net = Network(written_out, v) if form == "written out" else Network(looped, stacked(v))
    y = np.asarray(net(x)) + 0.1
    change = cut_layers(scores.taylor, layers=1)
    info = calibrate(net, change, regression(test=(np.asarray(x), y)))

    def loss(scale, x, y):
        layers = [jax.tree.map(lambda leaf, i=i: leaf * scale[i], w) for i, w in enumerate(v["layers"])]
        return jnp.mean((written_out({**v, "layers": layers}, x[None])[0] - y) ** 2)

    slopes = jax.vmap(jax.grad(loss), (None, 0, 0))(jnp.ones(LAYERS), x, y)
    gone = int(np.argmin(np.mean(np.square(slopes), 0)))
    assert np.flatnonzero(change.plan(net, info, x).layers[0].off).tolist() == [gone]
    (found,) = info.stats.values()
    close(*found.values(), np.mean(np.square(slopes), 0))


def test_scores_of_weights_see_all_of_a_layer():
    v, x = drawn()
    squares = [sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(w)) for w in v["layers"]]
    for net in Network(written_out, v), Network(looped, stacked(v)):
        plan = cut_layers(scores.l2_norm, layers=1).plan(net, ModelInfo(), x)
        assert np.flatnonzero(plan.layers[0].off).tolist() == [int(np.argmin(squares))]
        with pytest.raises(ValueError, match="its layers have no producer; pass a score of whole layers"):
            cut_layers(scores.norm_product, layers=1).plan(net, ModelInfo(), x)


@pytest.mark.parametrize("allocation", [per_layer, across_layers])
def test_as_many_layers_go_as_are_asked_for(allocation):
    """Also where stacks tie: all have the same weights, and a share of one is a share of all."""
    v, x = drawn(layers=3)
    v = {name: v["layers"] for name in "abc"}

    def apply(v, x):
        for name in "abc":
            for w in v[name]:
                x = x + branch(w, x)
            x = x[1:]
        return x

    def stay(count):
        change = cut_layers(scores.l2_norm, layers=count, allocation=allocation)
        return {name[0]: len(kept) for name, kept in change.plan(Network(apply, v), ModelInfo(), x).kept.items()}

    assert [9 - sum(stay(count).values()) for count in range(1, 7)] == [*range(1, 7)]
    assert stay(3) == {"a": 2, "b": 2, "c": 2} and stay(4) == {"a": 2, "b": 2, "c": 1}
    with pytest.raises(ValueError, match="layers=7 can't go; at most 6 of 9 can"):
        stay(7)


@pytest.mark.parametrize("form", ["written out", "looped"])
def test_multiply_accumulates_are_those_of_the_small_network(form):
    v, x = drawn()
    net = Network(written_out, v) if form == "written out" else Network(looped, stacked(v))
    macs = lambda n: sum(site.macs for site in inspect(n.apply, n.variables, x).sites)
    layer = 2 * 5 * 6 * 8
    assert macs(net) == 4 * layer + 5 * 18
    for share, stay in ((0.2, 3), (0.23, 3), (0.25, 2), (0.7, 1)):
        change = cut_layers(scores.l2_norm, macs=share)
        small, _ = change.execute(net, plan := change.plan(net, ModelInfo(), x))
        assert len(plan.layers[0].kept) == stay and macs(small) == stay * layer + 90
    with pytest.raises(ValueError, match=r"macs=0.8 of 2,010 can't go; at the least 570 stay"):
        cut_layers(scores.l2_norm, macs=0.8).plan(net, ModelInfo(), x)


def test_a_recipe_takes_layers_out():
    v, x = drawn()
    rng = np.random.default_rng(3)
    x = rng.standard_normal((32, WIDTH)).astype(np.float32)
    net = Network(written_out, v)
    task = regression(train=(x, np.asarray(net(x))), test=(x, np.asarray(net(x))), batch_size=8)
    recipe = [
        Stage("prune", prune(sparsity=0.3)),
        Stage("depth", cut_layers(scores.removal_loss, layers=1), epochs=2, learning_rate=1e-2),
    ]
    result = compress(net, recipe, task, latency=())
    first, last = result.stages
    (gone,) = (i for i, w in enumerate(result.params["layers"]) if w["up"] is None)
    assert last["bytes"] < 0.8 * first["bytes"] and last["facts"][0]["cells"][0][:3] == ["layers/*", 4, 3]
    assert last["facts"][0]["cells"][0][3] == f"without {gone}"
    kept = next(i for i in range(LAYERS) if i != gone)
    assert float((result.params["layers"][kept]["up"] == 0).mean()) == pytest.approx(0.3, abs=0.03)  # its mask holds
    assert float(np.sqrt(np.mean((result(x) - net(x)) ** 2))) == pytest.approx(last["metrics"]["rmse"], rel=1e-4)


def test_mistakes():
    v, x = drawn()
    net = Network(written_out, v)
    with pytest.raises(ValueError, match=r"how many layers go. pass one of layers, share, params"):
        cut_layers()
    with pytest.raises(ValueError, match=r"cut_layers\(layers=0\): allowed are the whole numbers from 1"):
        cut_layers(layers=0)
    with pytest.raises(ValueError, match="layers=4 can't go; at most 3 of 4 can, since each stack keeps its least"):
        cut_layers(scores.l2_norm, layers=4).plan(net, ModelInfo(), x)
    with pytest.raises(ValueError, match="block_influence needs the values of units on data; pass info=calibrate"):
        cut_layers(layers=1).plan(net, ModelInfo(), x)
    with pytest.raises(ValueError, match=r"mean_activation.: is of what a site reads, and no site reads a whole layer"):
        cut_layers(scores.mean_activation, layers=1)
    with pytest.raises(ValueError, match=r"angular_distance\(layers=9\): layers/\* has 4 layers"):
        change = cut_layers(scores.angular_distance(9), layers=1)
        change.plan(net, calibrate(net, change, [x]), x)
    small, _, plan = cut(net, x, [0, 1])
    with pytest.raises(ValueError, match=r"layers/2/bias is \[8\], and the plan of cut_layers leaves no leaf"):
        small.apply(v, x)
    with pytest.raises(ValueError, match="go with all of their leaves, which no mask can say"):
        _ = plan.masks
    other = Network(lambda v, x: written_out(v, x) + v["layers"][3]["gain"], v)
    with pytest.raises(ValueError, match="layers/3/gain is read still on these inputs, or in this mode, and is"):
        planned(plan).execute(other, plan)
    with pytest.raises(ValueError, match="NaN or Inf in the statistic 'similarity'"):
        calibrate(net, cut_layers(layers=1), [x * np.nan])
    same = cut_layers(scores.l2_norm, share=0.5, allocation=per_layer).plan(net, ModelInfo(), x)
    assert len(same.layers[0].kept) == 2
