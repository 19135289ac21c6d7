"""What is carried to a network that was cut, against a run that started with the small one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxopt_nn.core.combine import by_path, chain, where
from jaxopt_nn.core.cuts import Cut
from jaxopt_nn.core.gates import every, frozen, later
from jaxopt_nn.core.leafwise import leafwise
from jaxopt_nn.core.model import ModelInfo
from jaxopt_nn.core.paths import leaves_by_path
from jaxopt_nn.core.train import averaging, init_train_state, make_step
from jaxopt_nn.core.transform import LeafTraits, State, identity, why_not_matrix
from jaxopt_nn.interpret.inspect import inspect
from jaxopt_nn.interpret.network import Network
from jaxopt_nn.methods.clip import clip, clip_percentile
from jaxopt_nn.methods.criteria.saliency import saliency
from jaxopt_nn.methods.prune import prune
from jaxopt_nn.methods.quantize import quantize
from jaxopt_nn.methods.unit_masks import mask_units
from jaxopt_nn.passes.cut_units import cut_units

RNG = np.random.default_rng(0)
X, Y = (jnp.asarray(RNG.standard_normal(shape), jnp.float32) for shape in ((9, 6, 4), (9, 3)))


def apply(v, x):
    """A convolution, flattened; a dense layer; a stack of two experts."""
    x = jax.lax.conv_general_dilated(x, v["conv"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
    x = jax.nn.relu(jax.nn.relu(x).reshape(len(x), -1) @ v["up"] + v["bias"][None])
    x = jnp.einsum("ebi,eio->ebo", jnp.broadcast_to(x, (2, *x.shape)), v["experts"])
    return jnp.einsum("ebi,eio->ebo", jax.nn.relu(x), v["mix"]).sum(0) + v["shift"][None]


#: Units that do nothing: what leads to them and away is zero, and under a ReLU no gradient ever moves it.
DEAD = {"conv": {2: [1, 2, 6]}, "up": {0: [8 * t + u for t in range(6) for u in (1, 2, 6)], 1: [0, 5, 7, 8, 9]},
        "bias": {0: [0, 5, 7, 8, 9]}, "experts": {1: [0, 5, 7, 8, 9], 2: [2, 3]}, "mix": {1: [2, 3]}}  # fmt: skip
SHAPES = {"conv": (3, 4, 8), "up": (48, 10), "bias": (10,), "experts": (2, 10, 6), "mix": (2, 6, 3), "shift": (3,)}  # fmt: skip
KEPT = {"conv": [0, 3, 4, 5, 7], "up": [1, 2, 3, 4, 6], "experts": [0, 1, 4, 5]}


def dead_weights():
    v = {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    for name, axes in DEAD.items():
        for axis, units in axes.items():
            v[name][(slice(None),) * axis + (units,)] = 0
    return {name: jnp.asarray(0.5 * x) for name, x in v.items()}


@functools.cache
def cut():
    """The large network, the small one, and what carries over; the small one is also cut by hand."""
    large = Network(apply, dead_weights())
    shrink = cut_units(share=0.0)
    plan = shrink.plan(large, ModelInfo(), X).replace(KEPT)
    small, remap = shrink.execute(large, plan)
    for name, axes in DEAD.items():
        x = np.asarray(large.variables[name])
        for axis, units in axes.items():
            x = np.delete(x, units, axis)
        np.testing.assert_array_equal(small.variables[name], x)
    return large, small, remap


@functools.cache
def info(size):
    network = cut()[0 if size == "large" else 1]
    return inspect(apply, network.variables, X)


def matrices(path, leaf, info):
    return why_not_matrix(path, leaf, info) or LeafTraits()


def learnt_steps(follows=lambda step, count, cut: (cut.beside(step), count)):
    """A learnt step for each output channel, and a carried count."""
    shape = lambda leaf: (1,) * (leaf.ndim - 1) + (leaf.shape[-1],)
    return leafwise(
        matrices,
        lambda path, leaf, known: (jnp.full(shape(leaf), 0.4), jnp.int32(0)),
        lambda leaf, step, count: jnp.clip(leaf, -2 * step, 2 * step),
        update=lambda leaf, step, count, at, grad: count + 1,
        project=lambda leaf, step, count: (leaf, jnp.maximum(step, 0.1)),
        follows=follows,
    )


def learnt_gain():
    """A learnt gain a leaf, and a mask of the leaf's shape: carried by their shapes alone."""
    return leafwise(
        matrices,
        lambda path, leaf, known: (jnp.float32(1.25), jnp.abs(leaf) > 0.1),
        lambda leaf, gain, mask: leaf * mask * gain,
    )


RAMP = optax.linear_schedule(0.0, 0.3, 4)
METHODS = {
    "masks": chain(prune(threshold=RAMP), clip(-1.0, 1.0), quantize(4)),
    "learnt steps": chain(learnt_steps(), every(2, prune(threshold=RAMP))),
    "learnt gains": by_path([("up", learnt_gain()), ("**", later(1, learnt_steps()))]),
    "frozen": chain(frozen(learnt_steps()), where("**", learnt_gain())),
}
OPTIMIZERS = {
    "adam": optax.adam(0.02),
    "momentum": optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.05, momentum=0.9)),
    "average of adamw": averaging(optax.adamw(0.02), 0.9),
    "two optimizers": optax.multi_transform(
        {"params": optax.adam(0.02), "learnt": optax.sgd(0.1, momentum=0.5), "rules": optax.sgd(0.1)},
        {part: part for part in ("params", "learnt", "rules")},
    ),
}


def loss(variables, batch, key):
    return jnp.mean((apply(variables, batch[0]) - batch[1]) ** 2), ({}, {})


@jax.jit
def slopes(variables):
    return jax.grad(lambda v: loss(v, (X, Y), None)[0])(variables)


def started(size, method, optimizer):
    variables = cut()[0 if size == "large" else 1].variables
    return jax.jit(lambda v: init_train_state(v, method, optimizer, jax.random.key(0), info=info(size)))(variables)


def carried(ts, method, optimizer):
    """The train state of the large network on the small one, and what was made anew."""
    _, _, remap = cut()
    params = remap.params(ts.params)
    state, first = remap.state(method, ts.state, params, info("small"))
    fresh = jax.jit(lambda p, s: init_train_state(p, method, optimizer, ts.key, state=s))(params, state)
    opt, second = remap.opt(ts.opt, fresh.opt, method, ts.state)
    return fresh._replace(opt=opt, step=ts.step), first + second


PAIRS = [*zip(METHODS, OPTIMIZERS, strict=True)]


@pytest.mark.parametrize("name, by", [*PAIRS[:2], *(pytest.param(*pair, marks=pytest.mark.slow) for pair in PAIRS[2:])])
def test_a_run_that_was_cut_goes_on_as_one_that_started_small(name, by):
    """Two steps, the cut, two more: parameters, masks, what is learnt and every moment as after four small steps."""
    method, optimizer = METHODS[name], OPTIMIZERS[by]
    step = jax.jit(make_step(loss, method, optimizer))
    ts, small = started("large", method, optimizer), started("small", method, optimizer)
    for _ in range(2):
        ts, small = step(ts, (X, Y))[0], step(small, (X, Y))[0]
    ts, report = carried(ts, method, optimizer)
    assert not report
    assert jax.tree.structure(ts) == jax.tree.structure(small)
    close = functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-6)
    same = lambda a, b: jax.tree.map(close, (a.params, a.learnt, a.carried, a.opt), (b.params, b.learnt, b.carried, b.opt))
    same(ts, small)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), small.params, cut()[1].variables)
    assert all(jax.tree.leaves(moved)) and int(small.step) == 2
    for _ in range(2):
        ts, small = step(ts, (X, Y))[0], step(small, (X, Y))[0]
    same(ts, small)


def test_factored_moments_are_made_anew_and_named():
    """Of a square weight a mean over the columns that were cut has the very shape that it should have: it is wrong."""
    optimizer = optax.adafactor(0.02, min_dim_size_to_factor=2)
    method = identity()
    step = jax.jit(make_step(loss, method, optimizer))
    ts, _ = step(started("large", method, optimizer), (X, Y))
    small, report = carried(ts, method, optimizer)
    fresh = started("small", method, optimizer).opt
    named = {m.path for m in report}
    assert named == {"conv", "up", "experts", "mix"} and all("made anew" in m.reason for m in report.of("anew"))
    old, new, first = (leaves_by_path(tree) for tree in (ts.opt, small.opt, fresh))
    kept = 0
    for place, x in new.items():
        if place.split("/")[-1] in named:
            np.testing.assert_array_equal(x, first[place])
        elif place.endswith("v/params/bias"):
            np.testing.assert_array_equal(x, np.asarray(old[place])[KEPT["up"]])
        else:
            np.testing.assert_array_equal(x, old[place])
            kept += 1
    assert kept >= 6


def test_gradients_and_masks_are_cut_as_their_leaves():
    large, small, remap = cut()
    trees = [jax.tree.map(jnp.asarray, {p: RNG.standard_normal(s) for p, s in SHAPES.items()}) for _ in range(2)]
    masks = jax.tree.map(lambda x: x > 0, trees[1])
    for tree in (trees[0], masks, {"up": masks["up"], "shift": None}):
        made = remap.params(tree)
        for path, leaf in leaves_by_path(made).items():
            x = np.asarray(tree[path])
            for axis, units in DEAD.get(path, {}).items():
                x = np.delete(x, units, axis)
            np.testing.assert_array_equal(leaf, x)
    assert remap.params(large.variables)["shift"] is large.variables["shift"]
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, remap.params(slopes(large.variables)), slopes(small.variables))


def test_an_optimizer_of_parameters_alone():
    large, small, remap = cut()
    optimizer = optax.adam(0.1)
    found = slopes(large.variables)
    update = jax.jit(lambda slopes: optimizer.update(slopes, optimizer.init(slopes)))
    (_, state), (_, wanted) = update(found), update(remap.params(found))
    made, report = remap.opt(state, optimizer.init(small.variables))
    jax.tree.map(np.testing.assert_array_equal, made, wanted)
    assert not report and int(made[0].count) == 1


def test_boxes_masks_and_scores_follow():
    """By hand: boxes of channels, masks of units, and a pruning by gradients, whose criterion knows the small network."""
    large, small, remap = cut()
    masks = {"up": {1: np.arange(10) != 3}, "bias": {0: np.arange(10) != 3}}
    method = where("up", chain(clip_percentile(5, 95, granularity="channel"), prune(saliency, sparsity=RAMP)))
    method = chain(mask_units(masks), method)
    state = method.init(large.variables, info("large"))
    made, report = remap.state(method, state, small.variables, info("small"))
    box, old = made.carried[1][0][0]["up"], state.carried[1][0][0]["up"]
    np.testing.assert_array_equal(box.hi, np.asarray(old.hi)[:, KEPT["up"]])
    assert made.carried[0]["up"].keep[0].tolist() == [True, True, False, True, True]
    known = made.carried[1][0][1]["up"].known
    assert known.matrix(small.variables["up"]).shape == (30, 5) and not report
    seen = jax.jit(method.view)(small.variables, made)
    wanted = remap.params(method.view(large.variables, state))
    jax.tree.map(np.testing.assert_array_equal, seen, wanted)


@pytest.mark.parametrize("group, said", [(6, None), (16, "up: axis 0 has 30 entries, not a multiple of group=16")])
def test_groups_that_the_cut_leaves_whole_and_others(group, said):
    """48 inputs, of which 30 stay: 6 divides both, 16 does not divide what stays."""
    large, small, remap = cut()
    method = where("up", quantize(4, group=group))
    state = method.init(large.variables, info("large"))
    if said:
        with pytest.raises(ValueError, match=said):
            remap.state(method, state, small.variables, info("small"))
        return
    made, report = remap.state(method, state, small.variables, info("small"))
    assert not report and made.carried[0]["up"].form.scale_shape == (30 // group, 5)
    fresh = method.init(small.variables, info("small"))
    assert jax.tree.structure(made) == jax.tree.structure(fresh)


def test_what_lies_beside_a_leaf_in_groups():
    cut = Cut((12, 4), {0: np.array([0, 1, 2, 6, 7, 8]), 1: np.array([3])})
    assert cut.small == (6, 1)
    x = jnp.arange(16.0).reshape(4, 4)
    np.testing.assert_array_equal(cut.beside(x), [[3.0], [11.0]])
    np.testing.assert_array_equal(cut.beside(x[:, :1]), [[0.0], [8.0]])
    np.testing.assert_array_equal(cut.beside(x[:1]), [[3.0]])
    assert cut.beside(jnp.float32(2)) == 2
    assert "the 2 groups of 6 entries along axis 0 are cut apart" == cut.beside(x[:2])
    assert "groups of 2 entries" in cut.beside(jnp.ones((6, 1)))
    assert "1 axes does not lie beside the 2" in cut.beside(jnp.ones(4))


def test_a_state_that_need_not_follow_is_made_anew_and_named():
    """A matrix ``[I, I]`` of a square leaf has the leaf's shape by chance; it is measured again on the small one."""
    gram = lambda leaf: jnp.einsum("...io,...jo->...ij", leaf, leaf)
    method = leafwise(matrices, lambda path, leaf, known: ((), gram(leaf)), lambda leaf, learnt, own: leaf, name="grams")
    weights = {"a": jnp.asarray(RNG.standard_normal((4, 4)), jnp.float32), "b": jnp.ones((4, 2))}
    large = Network(lambda v, x: jax.nn.relu(x @ v["a"]) @ v["b"], weights)
    shrink = cut_units(widths={"a": 2})
    small, remap = shrink.execute(large, shrink.plan(large, ModelInfo(), jnp.ones((1, 4))))
    state, report = remap.state(method, method.init(weights), small.variables)
    np.testing.assert_array_equal(state.carried["a"], gram(small.variables["a"]))
    assert [m.path for m in report.of("anew")] == ["a", "b"] and "[4, 4]" in next(iter(report)).reason
    square = learnt_steps(follows=lambda step, count, cut: "it is of the whole")
    state, report = remap.state(square, square.init(weights), small.variables)
    assert state.learnt["a"].shape == (1, 2) and "it is of the whole" in next(iter(report)).reason


def test_bad_calls():
    large, small, remap = cut()
    with pytest.raises(ValueError, match="'upp' is no leaf of 6; nearest: up"):
        remap.leaf("upp", jnp.ones((48, 10)))
    with pytest.raises(ValueError, match=r"up has shape \[48, 9\], the leaf of the plan \[48, 10\]"):
        remap.leaf("up", jnp.ones((48, 9)))
    silent = identity()._replace(view=lambda params, state: params)
    with pytest.raises(ValueError, match="does not say how its state follows"):
        remap.state(silent, State((), jnp.ones(3)), small.variables)
    with pytest.raises(ValueError, match="fresh is the state of another optimizer"):
        remap.opt(optax.adam(1.0).init(large.variables), optax.sgd(1.0).init(small.variables))
    method = learnt_steps()
    ts = started("large", method, optax.adam(1.0))
    ts = ts._replace(opt=jax.tree.map(lambda x: x + 1, ts.opt))
    made, report = remap.opt(ts.opt, started("small", method, optax.adam(1.0)).opt)
    assert {m.path for m in report} == {"conv", "up", "experts", "mix"}, "whose moments it is nobody said"
    assert made[0].mu["learnt"]["up"].shape == (1, 5)
