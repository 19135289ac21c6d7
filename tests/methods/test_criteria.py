"""Criteria against loops over examples, closed forms and their papers' definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxopt_nn.core.combine import by_path, chain, where
from jaxopt_nn.core.model import Known, ModelInfo, Roles
from jaxopt_nn.core.train import init_train_state, make_step
from jaxopt_nn.interpret.network import Network
from jaxopt_nn.methods.allocations.by_sensitivity import by_sensitivity
from jaxopt_nn.methods.allocations.global_budget import global_budget
from jaxopt_nn.methods.allocations.lamp import lamp
from jaxopt_nn.methods.clip import clip
from jaxopt_nn.methods.criteria.fisher import fisher, obd
from jaxopt_nn.methods.criteria.movement import movement
from jaxopt_nn.methods.criteria.random import random_scores
from jaxopt_nn.methods.prune import prune
from jaxopt_nn.methods.schedules import cubic
from jaxopt_nn.pipeline.calibrate import calibrate
from jaxopt_nn.pipeline.classes import classification
from jaxopt_nn.pipeline.numbers import regression

RNG = np.random.default_rng(11)


def apply(v, x):
    return jnp.tanh(x @ v["a"]) @ v["b"]


V = {"a": jnp.asarray(RNG.standard_normal((6, 5)), jnp.float32), "b": jnp.asarray(RNG.standard_normal((5, 3)), jnp.float32)}
X = RNG.standard_normal((22, 6)).astype(np.float32)
Y = RNG.integers(0, 3, 22)
TASK = classification(train=(X, Y), test=(X, Y)).replace(batch_size=8)
NET = Network(apply, V)


def loss(v, x=X, y=Y):
    return optax.softmax_cross_entropy_with_integer_labels(apply(v, x), jnp.asarray(y)).mean()


def measured(method, net=NET, task=TASK, **options):
    info = calibrate(net, method, task, **options)
    return {(path, name): value for (_, path, name), value in info.stats.items()}


def test_fisher_is_the_mean_square_of_single_gradients():
    """Batches of 8, the last with 6: neither the square of the mean nor the mean over batches."""
    found = measured(prune(fisher, sparsity=0.5))
    single = [jax.grad(loss)(V, X[i : i + 1], Y[i : i + 1]) for i in range(22)]
    for path in V:
        expected = np.mean([np.square(g[path]) for g in single], 0)
        np.testing.assert_allclose(found[path, "fisher"], expected, rtol=2e-5, atol=1e-8)
    method = prune(fisher, sparsity=0.4, allocation=global_budget)
    state = method.init(V, calibrate(NET, method, TASK))
    scores = np.concatenate([(np.square(V[p]) * found[p, "fisher"]).ravel() for p in V])
    kept = np.concatenate([np.asarray(state.carried[p].mask).ravel() for p in V])
    assert kept.sum() == 27 and scores[kept].min() >= scores[~kept].max()


def test_fisher_goes_on_as_a_moving_average():
    method = prune(fisher, sparsity=cubic(0.5, end=4))
    state = method.init(V, calibrate(NET, method, TASK))
    held = state.carried["a"].known.stats["fisher"]
    for step in range(3):
        grads = jax.tree.map(lambda x, step=step: x * (step + 1), V)
        state = method.update(V, state, step=step, grads=grads)
        held = 0.99 * held + 0.01 * jnp.square(grads["a"])
    np.testing.assert_allclose(state.carried["a"].known.stats["fisher"], held, rtol=1e-6)


def test_obd_is_the_diagonal_of_the_hessian():
    """A linear regression: H is the second moment of the inputs, for each output alike; off the diagonal signs average out."""
    x = X[:, :2]
    net = Network(lambda v, x: x @ v["w"], {"w": jnp.ones((2, 2))})
    task = regression(train=(x, np.zeros((22, 2), np.float32)), test=(x, np.zeros((22, 2), np.float32)))
    method = prune(obd(256), sparsity=0.5)
    found = measured(method, net, task)["w", "hessian"]
    exact = jax.hessian(lambda w: jnp.square(x @ w).mean())(jnp.ones((2, 2)))
    np.testing.assert_allclose(found, jnp.einsum("ijij->ij", exact), rtol=0.15)


def test_obd_is_exact_where_the_hessian_is_diagonal():
    x = np.diag([1.0, 2.0, 3.0, 4.0]).astype(np.float32)
    net = Network(lambda v, x: x @ v["w"], {"w": jnp.ones((4, 1))})
    task = regression(train=(x, np.zeros((4, 1), np.float32)), test=(x, np.zeros((4, 1), np.float32)))
    found = measured(prune(obd(1), sparsity=0.5), net, task.replace(batch_size=4))["w", "hessian"]
    np.testing.assert_allclose(found.ravel(), 2 * np.array([1, 4, 9, 16]) / 4, rtol=1e-5)


def test_movement_adds_up_over_a_training():
    """By make_step on a loss whose dense gradient is known; the masked go on collecting."""
    target = {"w": jnp.asarray([[2.0, 0.0], [0.1, 1.0]])}
    start = {"w": jnp.asarray([[1.0, 1.0], [1.0, -1.0]])}
    energy = lambda v, batch, key: (jnp.sum(jnp.square(v["w"] - target["w"])), ({}, {}))
    method, optimizer = prune(movement, sparsity=cubic(0.5, end=3)), optax.sgd(0.05)
    ts = init_train_state(start, method, optimizer, jax.random.key(0))
    step = jax.jit(make_step(energy, method, optimizer))
    held = jnp.zeros((2, 2))
    for _ in range(4):
        slope = 2 * (method.view(ts.params, ts.state)["w"] - target["w"])
        ts, _ = step(ts, None)
        held = held - ts.params["w"] * slope
    np.testing.assert_allclose(ts.carried["w"].known.stats["movement"], held, rtol=1e-5)
    np.testing.assert_array_equal(ts.carried["w"].mask, held >= np.sort(held.ravel())[2])


def test_draws_differ_by_leaf_and_stay():
    v = {"a": jnp.ones((9, 9)), "b": jnp.ones((9, 9))}
    method = prune(random_scores(3), sparsity=cubic(0.8, end=3))
    state, before = method.init(v), None
    for step in range(4):
        state = method.update(v, state, step=step)
        now = {p: np.asarray(own.mask) for p, own in state.carried.items()}
        assert before is None or all((now[p] <= before[p]).all() for p in now)
        before = now
    assert (now["a"] != now["b"]).any() and now["a"].sum() == 16
    again = prune(random_scores(3), sparsity=0.8).init(v)
    np.testing.assert_array_equal(again.carried["a"].mask, now["a"])


def reference_lamp(weights, sparsity):
    """As the definition has it: a loop over the weights of each layer, then a sort of all."""
    shares = []
    for w in weights:
        squares = np.sort(np.square(np.asarray(w, np.float64)).ravel())
        shares.append(np.array([s / squares[i:].sum() for i, s in enumerate(squares)]))
    joined = np.concatenate(shares)
    gone = round(sparsity * joined.size)
    level = np.sort(joined)[gone]
    return [int((own >= level).sum()) for own in shares]


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.8, 0.95])
def test_lamp_is_its_definition(sparsity):
    weights = [RNG.standard_normal((7, 9)) * scale for scale in (0.1, 1.0, 30.0)]
    params = {str(i): jnp.asarray(w, jnp.float32) for i, w in enumerate(weights)}
    method = prune(sparsity=sparsity, allocation=lamp)
    state = method.init(params)
    counts = [int(own.mask.sum()) for own in state.carried.values()]
    assert counts == reference_lamp(weights, sparsity)
    traced = jax.jit(method.init)(params)
    for path, own in state.carried.items():
        np.testing.assert_array_equal(traced.carried[path].mask, own.mask)
    stacked = {"s": jnp.stack(list(params.values()), 1)}
    found = method.init(stacked, ModelInfo(roles={"s": Roles((1,), (0,), (2,))})).carried["s"].mask
    assert found.sum((0, 2)).tolist() == counts


def test_sensitivity_finds_the_best_shares():
    """Against all splits of the total."""
    rises = {"a": [0.0, 0.1, 0.5, 2.0], "b": [0.2, 0.8, 0.9, 1.5], "c": [0.01, 0.02, 0.03, 5.0]}
    levels = (0.25, 0.5, 0.75, 1.0)
    known = {p: Known(Roles((), (0,), (1,)), None, {"rises": jnp.asarray(r, jnp.float32)}) for p, r in rises.items()}
    scores = {p: jnp.asarray(RNG.random((4, 4)), jnp.float32) for p in rises}

    def at(p, gone):
        """The convex curve below the points."""
        points = list(zip((0, *levels), (0, *rises[p])))
        chords = [(a, b) for a in points for b in points if a[0] <= gone / 16 <= b[0]]
        return min(np.interp(gone / 16, (a[0], b[0]), (a[1], b[1])) for a, b in chords)

    for sparsity in (0.1, 0.37, 0.5, 0.75, 0.9):
        gone = round(48 * sparsity)
        masks = by_sensitivity(levels)(scores, known, sparsity)
        counts = {p: 16 - int(m.sum()) for p, m in masks.items()}
        assert sum(counts.values()) == gone
        splits = [(i, j, gone - i - j) for i in range(17) for j in range(17) if 0 <= gone - i - j <= 16]
        cost = lambda split: sum(at(p, n) for p, n in zip(rises, split))
        assert cost(counts.values()) <= min(map(cost, splits)) + 1e-6


def test_sensitivity_is_the_rise_of_the_loss():
    found = measured(prune(sparsity=0.5, allocation=by_sensitivity((0.5, 1.0))))
    order = np.argsort(np.abs(V["a"]).ravel(), kind="stable")
    half = np.asarray(V["a"]).ravel().copy()
    half[order[:15]] = 0
    rises = [loss({**V, "a": a}) - loss(V) for a in (jnp.asarray(half.reshape(6, 5)), jnp.zeros((6, 5)))]
    np.testing.assert_allclose(found["a", "rises"], rises, rtol=1e-4)


def test_each_member_gets_its_own():
    """Behind a clip the loss is that of the clipped network; another leaf has another criterion."""
    method = chain(clip(-0.5, 0.5), by_path([("a", prune(fisher, sparsity=0.5)), ("b", prune(obd(), sparsity=0.5))]))
    info = calibrate(NET, method, TASK)
    clipped = jax.tree.map(lambda x: jnp.clip(x, -0.5, 0.5), V)
    alone = measured(prune(fisher, sparsity=0.5), Network(apply, clipped))
    assert set(info.stats) == {((1, 0), "a", "fisher"), ((1, 1), "b", "hessian")}
    np.testing.assert_allclose(info.stats[(1, 0), "a", "fisher"], alone["a", "fisher"], rtol=1e-5)
    state = method.init(V, info)
    assert [int(own.mask.sum()) for part in state.carried[1] for own in part.values()] == [15, 7]


def test_what_is_missing_is_said():
    with pytest.raises(ValueError, match="a: the statistic 'fisher' of the loss is missing; pass info=calibrate"):
        prune(fisher, sparsity=0.5).init(V)
    with pytest.raises(ValueError, match="or a task= beside batches"):
        calibrate(NET, prune(fisher, sparsity=0.5), [X])
    with pytest.raises(ValueError, match="movement needs gradients"):
        prune(movement, sparsity=0.5)
    with pytest.raises(ValueError, match="scores of either sign"):
        prune(movement, sparsity=cubic(0.5, end=3), allocation=lamp)
    with pytest.raises(ValueError, match="loss of the whole network"):
        calibrate(NET, where("a", prune(fisher, sparsity=0.5)), [X], task=TASK, sequential=True)
    with pytest.raises(ValueError, match="rising shares"):
        by_sensitivity((0.9, 0.5))
