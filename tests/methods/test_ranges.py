"""Rules with a state: ranges of activations, calibrated and moving, by hand in NumPy; in a scan as in the unrolled network."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_nn as jn
from jaxopt_nn.core.rule import FACTORIES, described, rule_of
from jaxopt_nn.numerics.affine import fake_quant

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.standard_normal((6, 8)), jnp.float32)
STACK = jnp.asarray(RNG.standard_normal((3, 8, 8)) / 3, jnp.float32)
HEAD = jnp.asarray(RNG.standard_normal((8, 5)), jnp.float32)
VARIABLES = {"layers": STACK, "head": HEAD}


def scanned(v, x):
    return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, v["layers"])[0] @ v["head"]


def unrolled(v, x):
    for i in range(3):
        x = jnp.tanh(x @ v[f"layer{i}"])
    return x @ v["head"]


def by_layer(v):
    return {**{f"layer{i}": v["layers"][i] for i in range(3)}, "head": v["head"]}


@functools.cache
def packed(bits):
    """The packed variables of the scanned network, and what they stand for."""
    method = jn.quantize(bits)
    state = method.init(VARIABLES, jn.inspect(scanned, VARIABLES, X))
    return method.pack(VARIABLES, state), method.view(VARIABLES, state)


def by_hand(weights, x, scales, bits):
    """The network with activations as codes of one scale a site, in NumPy."""
    top = 2 ** (bits - 1) - 1
    rounded = lambda x, s: np.clip(np.round(x / s), -top, top) * s
    for w, s in zip(weights["layers"], scales["layers"], strict=True):
        x = np.tanh(rounded(x, s) @ w)
    return rounded(x, scales["head"]) @ weights["head"]


@pytest.mark.parametrize(("name", "w_bits", "a_bits"), [("w8a8", 8, 8), ("w4a5", 4, 5)])
def test_calibrated_ranges_are_the_largest_magnitudes_and_saturate(name, w_bits, a_bits):
    stored, view = packed(w_bits)
    network = jn.calibrated(jn.Network(scanned, stored, jn.static_ranges(name)), [X[:2], X[2:4]])
    weights = jax.tree.map(np.asarray, view)
    inputs, x = [], np.asarray(X[:4])
    for w in weights["layers"]:
        inputs.append(np.abs(x).max())
        x = np.tanh(x @ w)
    np.testing.assert_allclose(network.states["layers"].carried, inputs, rtol=1e-5)
    np.testing.assert_allclose(network.states["head"].carried, np.abs(x).max(), rtol=1e-5)
    top = 2 ** (a_bits - 1) - 1
    scales = jax.tree.map(lambda r: np.asarray(r) / top, {k: s.carried for k, s in network.states.items()})
    wide = 3 * np.asarray(X)  # beyond what calibration saw
    np.testing.assert_allclose(network(wide), by_hand(weights, wide, scales, a_bits), atol=2e-5)
    dynamic = jn.Network(scanned, stored, jn.arithmetic(name))(wide)
    assert np.abs(dynamic - network(wide)).max() > 0.01


def test_a_scan_has_the_ranges_of_the_unrolled_network():
    stored, view = packed(8)
    rule = jn.static_ranges("w8a8")
    once = jn.calibrated(jn.Network(scanned, stored, rule), [X])
    flat = by_layer(view)
    method = jn.quantize(8)
    again = method.pack(flat, method.init(flat, jn.inspect(unrolled, flat, X)))
    apart = jn.calibrated(jn.Network(unrolled, again, rule), [X])
    assert once.states["layers"].carried.shape == (3,) and apart.states["layer1"].carried.shape == ()
    for i in range(3):
        np.testing.assert_allclose(once.states["layers"].carried[i], apart.states[f"layer{i}"].carried, rtol=1e-6)
    np.testing.assert_allclose(once(X), apart(X), atol=1e-5)


def test_the_twin_is_what_is_deployed_with_straight_through_gradients():
    stored, view = packed(8)
    rule = jn.static_ranges("w8a8")
    network = jn.calibrated(jn.Network(scanned, stored, rule), [X])
    twin = jn.rewrite(scanned, rule.training)
    np.testing.assert_allclose(jax.jit(twin)(view, X, states=network.states), network(X), atol=2e-5)
    single = jn.Network(lambda v, x: x @ v, HEAD, rule.training, {"": jn.State((), jnp.asarray(1.0))})
    slope = jax.grad(lambda x: single(x).sum())(X)
    inside = np.abs(X) <= 1.0
    np.testing.assert_allclose(slope, np.where(inside, np.asarray(HEAD).sum(1)[None], 0), rtol=1e-5, atol=1e-6)
    expected = fake_quant(X, jnp.float32(1 / 127), None, -127, 127, "clip") @ HEAD
    np.testing.assert_allclose(single(X), expected, rtol=1e-5, atol=1e-6)


def test_a_moving_average_follows_what_the_forward_pass_sees():
    rule = jn.moving_ranges("w8a8", decay=0.75).training
    run = jn.rewrite(scanned, rule)
    states = run.init(VARIABLES, X, stats={"layers": {"minmax": jnp.zeros((3, 2))}, "head": {"minmax": jnp.array([-2.0, 1.0])}})
    assert states["head"].carried == 2.0 and not states["layers"].carried.any()
    step = jax.jit(lambda states, x: run.measure(VARIABLES, x, states=states)[1])
    old = states
    for x in (X, 2 * X):
        measured = step(old, x)
        new = run.update(VARIABLES, x, states=old, measured=measured, step=0)
        first = np.abs(x).max()
        before = old["layers"].carried[0]
        np.testing.assert_allclose(new["layers"].carried[0], 0.75 * before + 0.25 * first if before > 0 else first, rtol=1e-6)
        seen = np.max(np.abs(measured["head"]["minmax"]))
        np.testing.assert_allclose(new["head"].carried, 0.75 * old["head"].carried + 0.25 * seen, rtol=1e-6)
        old = new
    rows = jnp.where(jnp.arange(6)[:, None] == 5, 100.0, X)
    _, unpadded = run.measure(VARIABLES, rows, states=old, weights=jnp.arange(6) < 5.0)
    assert np.abs(unpadded["layers"]["minmax"][0]).max() < 10, "a row that fills up a batch counts for nothing"


def test_what_a_rule_learns_is_trained_and_what_it_carries_is_updated():
    """``y = (s x) w``, with a learnt ``s`` and a counter: one step of descent by hand."""
    rule = jn.Rule(
        lambda site, state, lhs, rhs: site.run(lhs * state.learnt, rhs),
        lambda site, stats: jn.State(jnp.asarray(0.5), jnp.asarray(0)),
        update=lambda site, state, measured, step: jn.State(state.learnt, state.carried + 1 + step),
    )
    run = jn.rewrite(lambda v, x: x @ v, rule)
    target = X @ HEAD

    def loss(w, batch, key, rules):
        out, measured = run.measure(w, batch, states=rules)
        return jnp.mean(jnp.square(out - target)), ({}, {}, measured)

    optimizer = optax.sgd(0.1)
    update = lambda w, x, rules, measured, step: run.update(w, x, states=rules, measured=measured, step=step)
    step = jax.jit(jn.make_step(loss, jn.identity(), optimizer, update_rules=update))
    start = jn.init_train_state(HEAD, jn.identity(), optimizer, jax.random.key(0), rules=run.init(HEAD, X))
    ts = step(start, X)[0]
    slopes = jax.grad(lambda w, s: jnp.mean(jnp.square((s * X) @ w - target)), (0, 1))(HEAD, 0.5)
    np.testing.assert_allclose(ts.params, HEAD - 0.1 * slopes[0], rtol=1e-5)
    np.testing.assert_allclose(ts.rules[""].learnt, 0.5 - 0.1 * slopes[1], rtol=1e-5)
    assert int(step(ts, X)[0].rules[""].carried) == 1 + 2


@pytest.mark.parametrize(
    ("states", "said"),
    [
        ({}, r"head: rule w8a8, static ranges has no range for it; pass network = calibrated|layers: rule .* no range"),
        ({"tail": jn.State((), jnp.zeros(()))}, r"states\['tail'\]: no rule stands at such a site; .* nearest: "),
        ({"layers": jn.State((), jnp.zeros(4))}, r"states\['layers'\]: holds carried float32\[4\], rule .* float32\[3\] there"),
        ({"head": jn.State(X, jnp.zeros(()))}, r"holds carried float32\[\], learnt float32\[6, 8\], rule .* has carried"),
    ],
)
def test_states_of_another_network_are_named(states, said):
    with pytest.raises(ValueError, match=said):
        jn.Network(scanned, packed(8)[0], jn.static_ranges(), states)(X)


def test_nan_in_what_is_measured_is_named():
    with pytest.raises(ValueError, match="NaN or Inf in the statistic 'minmax'"):
        jn.calibrated(jn.Network(scanned, VARIABLES, jn.static_ranges()), [X.at[0, 0].set(jnp.nan)])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: jn.static_ranges("w8a16"), r"static_ranges\('w8a16'\): allowed are w1 to w8 with a2 to a8, e.g."),
        (lambda: jn.moving_ranges("w9a8"), r"moving_ranges\('w9a8'\): allowed are w1 to w8 with a2 to a8"),
        (lambda: jn.moving_ranges(decay=1.0), r"decay=1.0\): allowed are numbers from 0 to below 1"),
    ],
)
def test_arguments_out_of_range(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_rules_compare_by_what_made_them_and_are_made_anew():
    rule = jn.moving_ranges(decay=0.9)
    assert rule is jn.moving_ranges("w8a8", 0.9) and rule != jn.moving_ranges()
    assert described(rule) == {"factory": "jaxopt_nn.methods.ranges:moving_ranges", "arguments": {"name": "w8a8", "decay": 0.9}}
    assert rule_of(described(rule)) is rule and described(jn.Rule(lambda *a: a)) is None
    assert len(FACTORIES) >= 5
    with pytest.raises(ValueError, match=r"rule 'me:gone' is unknown; import me, where jaxopt_nn.rule_factory registers it"):
        rule_of({"factory": "me:gone", "arguments": {}})
