"""Shared values and vectors whose tables a pass cuts apart: fitted anew to what stays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_nn as jn

RNG = np.random.default_rng(0)
X = RNG.standard_normal((48, 16)).astype(np.float32)
Y = RNG.integers(0, 8, 48)
TASK = jn.classification(train=(X[:32], Y[:32]), test=(X[32:], Y[32:]), batch_size=16)
WEIGHTS = {
    "up": jnp.asarray(RNG.standard_normal((16, 64)) / 4, jnp.float32),
    "mix": jnp.asarray(RNG.standard_normal((64, 64)) / 8, jnp.float32),
    "down": jnp.asarray(RNG.standard_normal((64, 8)) / 8, jnp.float32),
}


def apply(v, x):
    """Three layers."""
    return jax.nn.relu(jax.nn.relu(x @ v["up"]) @ v["mix"]) @ v["down"]


NETWORK = jn.Network(apply, WEIGHTS)


def groups(**options):
    return jn.cluster(4, scope="group", group=4, **options)


def compressed(method, share=0.5):
    stages = [jn.Stage("shared", method, epochs=1), jn.Stage("cut", jn.cut_units(share=share), epochs=1)]
    return jn.compress(NETWORK, stages, TASK, latency=False)


@pytest.mark.parametrize(
    "method, kind",
    [
        (jn.chain(jn.prune(sparsity=0.5), groups(weights="fisher")), jn.Masked),
        (jn.cluster_vectors(8, weights="inputs"), jn.VectorCodebook),
    ],
    ids=["groups", "vectors"],
)
def test_tables_that_a_pass_cuts_apart_are_fitted_to_what_stays(method, kind):
    result = compressed(method)
    assert {path: (x.shape, type(x)) for path, x in result.network.variables.items()} == {
        "up": ((16, 32), kind), "mix": ((32, 32), kind), "down": ((32, 8), kind),
    }  # fmt: skip
    assert any("its state made anew, since" in row["reason"] for row in result.report["skipped"])
    assert np.isfinite(result.network(X)).all()


@pytest.mark.parametrize(
    "method",
    [groups(), groups(weights="fisher", start="density"), jn.cluster_vectors(8), jn.cluster_vectors(8, weights="inputs")],
    ids=["groups", "groups, fisher", "vectors", "vectors, inputs"],
)
def test_they_are_those_of_a_start_on_the_network_that_was_cut(method):
    cut = jn.cut_units(share=0.5)
    known = jn.calibrate(NETWORK, method, [X[:32]], task=TASK)
    small, remap = cut.execute(NETWORK, cut.plan(NETWORK, known, X[:1]))
    info = jn.calibrate(small, method, [X[:32]], task=TASK)
    state, report = remap.state(method, method.init(WEIGHTS, known), small.variables, info)
    fresh = method.init(small.variables, info)
    anew = [row.path for row in report.of("anew")]
    assert "mix" in anew
    for path in anew:
        np.testing.assert_array_equal(state.learnt[path], fresh.learnt[path])
        np.testing.assert_array_equal(state.carried[path].codes, fresh.carried[path].codes)


@pytest.mark.parametrize(
    "method, share, message",
    [
        (groups(), 0.52, "not a multiple of group=4"),
        (jn.cluster_vectors(8), 0.52, "on the network that was cut, not a multiple of dim=4"),
    ],
)
def test_a_cut_that_leaves_no_whole_groups_is_told_before_anything_is_trained(method, share, message):
    with pytest.raises(ValueError, match=message):
        compressed(method, share)
