"""Captured statistics against the same numbers computed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxopt_nn.core.tap import Tap
from jaxopt_nn.interpret.rewrite import capture

X = jax.random.normal(jax.random.key(0), (4, 8))
W = jax.random.normal(jax.random.key(1), (3, 8, 8)) / 3


def gram(of="input"):
    """Sum of x^T x over all positions."""

    def zero(site):
        return jnp.zeros((site.outputs if of == "output" else site.inputs,) * 2)

    def add(acc, x, weight, site):
        rows = x.reshape((-1, x.shape[-1]))
        return acc + rows.T @ rows

    return Tap(zero, add, lambda a, b: a + b, of)


def test_inputs_of_a_dot():
    out, stats = capture(lambda v, x: jnp.tanh(x @ v[0]) @ v[1], gram())(W[:2], X)
    h = jnp.tanh(X @ W[0])
    np.testing.assert_allclose(stats[""], X.T @ X, rtol=1e-5)
    np.testing.assert_allclose(stats["#1"], h.T @ h, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(out, h @ W[1], rtol=1e-5)


def test_outputs_of_a_dot():
    _, stats = capture(lambda v, x: x @ v, gram("output"))(W[0], X)
    y = X @ W[0]
    np.testing.assert_allclose(stats[""], y.T @ y, rtol=1e-5)


def test_a_scan_over_layers_is_measured_per_layer():
    def apply(v, x):
        body = jax.checkpoint(lambda c, w: (jnp.tanh(c @ w), None))
        return lax.scan(body, x, v)[0]

    out, stats = jax.jit(capture(apply, gram()))(W, X)
    h = X
    for i in range(3):
        np.testing.assert_allclose(stats[""][i], h.T @ h, rtol=1e-4, atol=1e-5)
        h = jnp.tanh(h @ W[i])
    np.testing.assert_allclose(out, h, rtol=1e-5)


@pytest.mark.parametrize("loop", ["scan", "fori", "while"])
def test_iterations_over_time_are_merged(loop):
    def apply(v, x):
        step = lambda c: jnp.tanh(c @ v)
        if loop == "scan":
            return lax.scan(lambda c, _: (step(c), None), x, None, length=3)[0]
        if loop == "fori":
            return lax.fori_loop(0, 3, lambda i, c: step(c), x)
        return lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, step(c[1])), (0, x))[1]

    _, stats = capture(apply, gram())(W[0], X)
    h, total = X, 0
    for _ in range(3):
        total += h.T @ h
        h = jnp.tanh(h @ W[0])
    np.testing.assert_allclose(stats[""], total, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("taken", [True, False])
def test_a_branch_that_is_not_taken_measures_nothing(taken):
    apply = lambda v, x, p: lax.cond(p, lambda a: a @ v["l"], lambda a: a @ v["r"], x)
    _, stats = capture(apply, gram())({"l": W[0], "r": W[1]}, X, taken)
    assert bool(stats["l"].any()) is taken and bool(stats["r"].any()) is not taken


def test_shards_are_merged():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    apply = lambda v, x: jax.shard_map(lambda x, w: x @ w, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"))(
        x, v
    )
    out, stats = jax.jit(capture(apply, gram()))(W[0], X)
    np.testing.assert_allclose(stats[""], X.T @ X, rtol=1e-5)
    np.testing.assert_allclose(out, X @ W[0], rtol=1e-5)


def test_convolutions_are_measured_as_patches():
    x = jax.random.normal(jax.random.key(2), (2, 5, 6, 3))
    w = jax.random.normal(jax.random.key(3), (3, 2, 3, 4))
    numbers = ("NHWC", "HWIO", "NHWC")
    apply = lambda v, x: lax.conv_general_dilated(x, v, (2, 1), "SAME", rhs_dilation=(1, 2), dimension_numbers=numbers)
    rows = []

    def add(acc, patches, weight, site):
        jax.debug.callback(lambda p: rows.append(np.asarray(p)), patches)
        return acc

    tap = Tap(lambda site: jnp.zeros(()), add, lambda a, b: a + b)
    out, _ = capture(apply, tap)(w, x)
    jax.effects_barrier()
    # patches are laid out input feature first: [..., I * kh * kw]
    kernel = w.transpose(2, 0, 1, 3).reshape(-1, 4)
    np.testing.assert_allclose(rows[0] @ kernel, out, rtol=1e-4, atol=1e-4)


def test_it_differentiates_and_maps():
    cap = capture(lambda v, x: x @ v, gram())
    g = jax.grad(lambda x: cap(W[0], x)[1][""].sum())(X)
    np.testing.assert_allclose(g, jax.grad(lambda x: (x.T @ x).sum())(X), rtol=1e-5)
    _, stats = jax.vmap(lambda x: cap(W[0], x))(jnp.stack([X, 2 * X]))
    np.testing.assert_allclose(stats[""][1], 4 * X.T @ X, rtol=1e-5)


def test_no_taps_is_an_error():
    with pytest.raises(TypeError, match="no tap; pass one"):
        capture(lambda v, x: x @ v, {})


@pytest.mark.skipif(len(jax.devices()) < 2, reason="needs two devices")
def test_a_loop_inside_shard_map_measures_each_shard():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    layers = lambda w, x: lax.scan(lambda c, m: (jnp.tanh(c @ m), None), x, w)[0]
    apply = jax.shard_map(layers, mesh=mesh, in_specs=(P(), P("data")), out_specs=P("data"))
    out, stats = capture(apply, gram())(W, X)
    plain, expected = capture(layers, gram())(W, X)
    np.testing.assert_allclose(out, plain, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(stats[""], expected[""], rtol=1e-5, atol=1e-5)
