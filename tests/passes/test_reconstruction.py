"""Readers that make up for units that go, against least squares on the data themselves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_nn as jn
from experiments.models.lenet import LeNet5
from jaxopt_nn.passes.reconstruction import DAMPING, refitted
from tests.passes.networks import hidden, mlp, network


def ridge(x, w, off):
    """The rows that stay, by NumPy's least squares on the data with rows for the damping beneath."""
    x, w = np.float64(x), np.float64(w)
    damping = np.sqrt(DAMPING * np.square(x).sum() / x.shape[1])
    stay = np.flatnonzero(~off)
    # the penalty is on the change: w' = w_K + c, the data's part of what is missing is x_D w_D
    left = np.concatenate([x[:, stay], damping * np.eye(len(stay))])
    right = np.concatenate([x[:, off] @ w[off], np.zeros((len(stay), w.shape[1]))])
    return w[stay] + np.linalg.lstsq(left, right, rcond=None)[0]


def with_bias(x, w, off):
    """The same with an intercept: the rows that stay, and what the bias gains."""
    x, w = np.float64(x), np.float64(w)
    rows = ridge(x - x.mean(0), w, off)
    return rows, x.mean(0) @ w - x.mean(0)[~off] @ rows


def test_the_reader_is_the_least_squares_fit():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((40, 4)) @ rng.standard_normal((4, 9)), rng.standard_normal((9, 3))
    off = np.arange(9) % 3 == 1
    found = refitted(w, x.T @ x, off)
    np.testing.assert_allclose(found[~off], ridge(x, w, off), rtol=1e-6)
    assert not found[off].any()
    error = lambda own: np.linalg.norm(x @ own - x @ w)
    assert error(found) < 0.2 * error(np.where(off[:, None], 0, w)), "nine inputs lie in four dimensions"
    stacked = refitted(np.stack([w, 2 * w]), np.stack([x.T @ x] * 2), off)
    np.testing.assert_allclose(stacked, [found, 2 * found])
    np.testing.assert_array_equal(refitted(w, np.zeros((9, 9)), off), np.where(off[:, None], 0, w))


def test_a_network_is_refitted_where_it_reads_units_that_go():
    apply, variables, x = mlp()
    net, cut = jn.Network(apply, variables), jn.cut_units(share=0.5, reconstruct=True)
    info = jn.calibrate(net, cut, [x[:20], x[20:]])
    plan = cut.plan(net, info, x)
    small, _ = cut.execute(cut.mend(net, plan, info), plan)
    plain, _ = cut.execute(net, plan)
    for layer, reader, inputs in zip(plan.layers, ("Dense_1", "Dense_2"), hidden(variables, x), strict=False):
        own, gain = with_bias(inputs, variables["params"][reader]["kernel"], layer.off)
        columns = plan.layers[1].kept if reader == "Dense_1" else np.arange(3)
        close = functools.partial(np.testing.assert_allclose, rtol=2e-3, atol=2e-3)
        close(small.variables["params"][reader]["kernel"], own[:, columns])
        close(small.variables["params"][reader]["bias"], (variables["params"][reader]["bias"] + gain)[columns])
    np.testing.assert_array_equal(
        small.variables["params"]["Dense_0"]["kernel"], plain.variables["params"]["Dense_0"]["kernel"]
    )
    means = lambda n: np.asarray(n(x)).mean(0)
    only = jn.cut_units(widths={"**/Dense_1/kernel": 4}, reconstruct=True)
    plan = only.plan(net, info, x)
    off = lambda n: float(jnp.linalg.norm(n(x) - net(x)))
    fitted = only.execute(only.mend(net, plan, info), plan)[0]
    assert off(fitted) < off(only.execute(net, plan)[0])
    np.testing.assert_allclose(means(fitted), means(net), rtol=1e-3)  # an intercept leaves no mean error
    with pytest.raises(ValueError, match=r"the refit of .* needs its inputs on data; pass info=calibrate"):
        only.mend(net, plan, jn.inspect(apply, variables, x))


def test_a_weight_that_several_sites_read_is_fitted_to_all_of_them():
    rng = np.random.default_rng(0)
    v = {name: jnp.asarray(rng.standard_normal(s), jnp.float32) for name, s in {"a": (5, 8), "b": (8, 3), "c": (3,)}.items()}
    x = jnp.asarray(rng.standard_normal((40, 2, 5)), jnp.float32)
    apply = lambda v, x: jnp.tanh(x[:, 0] @ v["a"]) @ v["b"] + jnp.tanh(2 * x[:, 1] @ v["a"]) @ v["b"] + v["c"][None]
    net, cut = jn.Network(apply, v), jn.cut_units(share=0.5, reconstruct=True)
    info = jn.calibrate(net, cut, [x])
    plan = cut.plan(net, info, x)
    fitted = cut.mend(net, plan, info).variables
    seen = np.concatenate([np.tanh(x[:, 0] @ v["a"]), np.tanh(2 * x[:, 1] @ v["a"])])
    (layer,) = (layer for layer in plan.layers if layer.cut)
    np.testing.assert_allclose(fitted["b"][layer.kept], ridge(seen, v["b"], layer.off), rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(fitted["c"], v["c"])


def test_layers_of_a_scan_have_biases_of_their_own():
    rng = np.random.default_rng(0)
    shapes = {"up": (2, 4, 9), "down": (2, 9, 4), "bias": (2, 4)}
    v = {name: jnp.asarray(rng.standard_normal(s), jnp.float32) for name, s in shapes.items()}
    x = jnp.asarray(rng.standard_normal((50, 4)), jnp.float32)

    def block(h, w):
        return h + jnp.tanh(jax.nn.relu(h @ w["up"]) @ w["down"] + w["bias"][None]), None

    net, cut = jn.Network(lambda v, x: jax.lax.scan(block, x, v)[0], v), jn.cut_units(share=0.3, reconstruct=True)
    info = jn.calibrate(net, cut, [x])
    plan = cut.plan(net, info, x)
    fitted = cut.mend(net, plan, info).variables
    (layer,) = (layer for layer in plan.layers if layer.cut)
    h = x
    for i in range(2):
        w = {name: own[i] for name, own in v.items()}
        rows, gain = with_bias(jax.nn.relu(h @ w["up"]), w["down"], layer.off)
        np.testing.assert_allclose(fitted["down"][i][layer.kept], rows, rtol=2e-3, atol=1e-3)
        np.testing.assert_allclose(fitted["bias"][i], w["bias"] + gain, rtol=2e-3, atol=1e-3)
        h, _ = block(h, w)


_ROWS = 8
ADDED = {
    "in order": (lambda v, y: y + v["b"].reshape(1, -1), (4, 4), True),
    "split": (lambda v, y: (y.reshape(-1, 4, 4) + v["b"][None]).reshape(_ROWS, -1), (4, 4), True),
    "after rows move": (lambda v, y: (y.T + v["b"].reshape(-1, 1)).T, (4, 4), True),
    "heads turned": (lambda v, y: (y.reshape(-1, 4, 4).transpose(0, 2, 1) + v["b"][None]).reshape(_ROWS, -1), (4, 4), False),
    "leaf turned": (lambda v, y: y + v["b"].T.reshape(1, -1), (4, 4), False),
    "backwards": (lambda v, y: y[:, ::-1] + v["b"].reshape(1, -1), (4, 4), False),
    "leaf backwards": (lambda v, y: y + v["b"].reshape(1, -1)[:, ::-1], (4, 4), False),
    "along the rows": (lambda v, y: y + v["b"], (_ROWS, 1), False),
}  # fmt: skip


@pytest.mark.parametrize("name", ADDED)
def test_a_bias_is_refitted_only_where_its_entries_are_the_outputs(name):
    """What the reader and the bias become, against least squares: with an intercept, or without and the bias as it was."""
    add, shape, intercept = ADDED[name]
    rng, width = np.random.default_rng(0), _ROWS if shape == (_ROWS, 1) else 16
    shapes = {"a": (5, 6), "w": (6, width), "b": shape, "z": (width, 3)}
    v = {path: jnp.asarray(rng.standard_normal(s), jnp.float32) for path, s in shapes.items()}
    x = jnp.asarray(rng.standard_normal((_ROWS, 5)), jnp.float32)
    net = jn.Network(lambda v, x: jnp.tanh(add(v, (jax.nn.relu(x @ v["a"]) + 1) @ v["w"])) @ v["z"], v)
    cut = jn.cut_units(widths={"a": 3}, reconstruct=True)
    info = jn.calibrate(net, cut, [x])
    plan = cut.plan(net, info, x)
    fitted, off = cut.mend(net, plan, info).variables, plan.layers[0].off
    inputs = jax.nn.relu(x @ v["a"]) + 1
    rows, gain = with_bias(inputs, v["w"], off) if intercept else (ridge(inputs, v["w"], off), np.zeros(()))
    np.testing.assert_allclose(fitted["w"][~off], rows, rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(fitted["b"], v["b"] + gain.reshape(shape if intercept else ()), rtol=2e-3, atol=2e-3)


def test_the_removal_error_is_that_of_the_refit():
    """Each unit goes alone, and the reader is fitted without it; the penalty on the change counts as error."""
    apply, variables, x = mlp()
    net, found = jn.Network(apply, variables), {}
    spy = lambda units: found.setdefault(units.name, jn.scores.removal_error(units))
    spy.taps = jn.scores.removal_error.taps
    cut = jn.cut_units(spy, share=0.3)
    cut.plan(net, jn.calibrate(net, cut, [x]), x)
    for (name, scores), reader, h in zip(found.items(), ("Dense_1", "Dense_2"), hidden(variables, x), strict=True):
        w, h = np.float64(variables["params"][reader]["kernel"]), np.float64(h)
        damping = DAMPING * np.square(h).sum() / h.shape[1]
        for unit in range(len(w)):
            own = np.zeros_like(w)
            own[np.arange(len(w)) != unit] = ridge(h, w, np.arange(len(w)) == unit)
            error = np.square(h @ own - h @ w).sum() + damping * np.square(own - w).sum()
            assert scores[unit] == pytest.approx(error, rel=1e-3), (name, unit)


def test_channels_of_convolutions_and_a_recipe():
    net, x = network(LeNet5((4, 6), 8), 24, 28, 28, 1)
    y = np.argmax(net(x), 1).astype(np.int32)
    task = jn.classification(train=(x, y), test=(x, y), batch_size=12)
    values = {}
    for reconstruct in (False, True):
        cut = jn.cut_units(widths={"**/Conv_0/kernel": 2}, reconstruct=reconstruct)
        small = jn.compress(net, [jn.Stage("cut", cut)], task, latency=False).network
        values[reconstruct] = float(jnp.linalg.norm(small(x) - net(x)))
        assert jax.tree.map(jnp.shape, small.variables["params"]["Conv_1"]["kernel"]) == (5, 5, 2, 6)
    assert values[True] < 0.8 * values[False]
