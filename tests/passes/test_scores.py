"""What units are worth, by the definitions, in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_nn as jn
from jaxopt_nn.core.model import AxisGroup, Member
from jaxopt_nn.passes import scores
from jaxopt_nn.passes.scores.base import scored
from jaxopt_nn.passes.units import Units
from tests.passes.networks import mlp

RNG = np.random.default_rng(0)
LEAVES = {
    "a/kernel": RNG.standard_normal((3, 4)).astype(np.float32),
    "a/scale": RNG.standard_normal(4).astype(np.float32),
    "a/var": np.full(4, 100.0, np.float32),
    "a/mean": np.full(4, 50.0, np.float32),
    "b/kernel": RNG.standard_normal((8, 2)).astype(np.float32),
}
MEMBERS = (
    Member("a/kernel", 1, "producer", np.arange(4)),
    Member("a/scale", 0, "vector", np.arange(4)),
    Member("a/mean", 0, "vector", np.arange(4)),
    Member("a/var", 0, "divisor", np.arange(4)),
    Member("b/kernel", 0, "consumer", np.tile(np.arange(4), 2)),
)
UNITS = Units("a/kernel", AxisGroup(4, MEMBERS), LEAVES, still={"a/mean", "a/var"})


def by_hand(u):
    """Fan-in, scale and fan-out of a unit: what it has of each leaf."""
    return np.float64(LEAVES["a/kernel"][:, u]), np.float64(LEAVES["a/scale"][u]), np.float64(LEAVES["b/kernel"][[u, u + 4]])


def test_norms_are_over_all_members_that_are_trained():
    for u in range(4):
        fan_in, scale, fan_out = by_hand(u)
        every = np.concatenate([fan_in, [scale], fan_out.ravel()])
        assert scores.l1_norm(UNITS)[u] == pytest.approx(np.abs(every).sum())
        assert scores.l2_norm(UNITS)[u] == pytest.approx(np.linalg.norm(every))
        assert scores.norm_product(UNITS)[u] == pytest.approx(np.linalg.norm(fan_in) * np.linalg.norm(fan_out))
        assert scores.norm_scale("a/scale")(UNITS)[u] == pytest.approx(abs(scale))
    assert scores.norm_scale("**/gamma")(UNITS) is None


def test_an_entry_of_a_recurrent_kernel_counts_once_for_each_of_its_units():
    kernel = RNG.standard_normal((5, 5))
    members = (Member("h", 1, "producer", np.arange(5)), Member("h", 0, "consumer", np.arange(5)))
    found = Units("h", AxisGroup(5, members), {"h": kernel}).norm(1)
    expected = [np.abs(kernel[u]).sum() + np.abs(kernel[:, u]).sum() - abs(kernel[u, u]) for u in range(5)]
    np.testing.assert_allclose(found, expected)
    gates = RNG.standard_normal((3, 12))  # four gates of three units
    members = (Member("h", 1, "producer", np.tile(np.arange(3), 4)), Member("h", 0, "consumer", np.arange(3)))
    found = Units("h", AxisGroup(3, members), {"h": gates}).norm(1)
    for u in range(3):
        own = np.zeros((3, 12), bool)
        own[u], own[:, u::3] = True, True
        assert found[u] == pytest.approx(np.abs(gates[own]).sum())


def test_the_geometric_median_by_all_pairs():
    members = (
        Member("q", 1, "producer", np.repeat(np.arange(4), 3)),  # heads of three entries
        Member("k", 1, "producer", np.tile(np.arange(4), 2)),
    )
    leaves = {"q": RNG.standard_normal((5, 12)), "k": RNG.standard_normal((2, 8))}
    rows = [np.concatenate([leaves["q"][:, 3 * u : 3 * u + 3].ravel(), leaves["k"][:, u::4].ravel()]) for u in range(4)]
    expected = [sum(np.linalg.norm(a - b) for b in rows) for a in rows]
    np.testing.assert_allclose(scores.geometric_median(Units("q", AxisGroup(4, members), leaves)), expected)
    like = np.ones((6, 1)) * np.array([1.0, 2.0, 30.0, 31.0, 33.0])
    own = Units("w", AxisGroup(5, (Member("w", 1, "producer", np.arange(5)),)), {"w": like})
    assert np.argmin(scores.geometric_median(own)) == 2, "in the middle, though longer than two others"


def test_taylor_is_the_mean_square_of_the_slope_along_a_unit():
    """By finite differences: a unit's entries are scaled by 1 + h in every member."""
    apply, variables, x = mlp()
    y = np.argmax(x[:, :3], 1).astype(np.int32)
    net, task = jn.Network(apply, variables), jn.classification(test=(x[:9], y[:9]), batch_size=4)
    cut = jn.cut_units(jn.scores.taylor, share=0.3)
    info = jn.calibrate(net, cut, task)
    found = {}
    spy = lambda units: found.setdefault(units.name, jn.scores.taylor(units))
    spy.probes = jn.scores.taylor.probes
    jn.cut_units(spy, share=0.3).plan(net, info, x)
    name, u = "params/Dense_1/kernel", 5
    h = 1e-2

    def loss(factor, i):
        own = jax.tree.map(jnp.asarray, variables)["params"]
        for layer, leaf, index in (("Dense_1", "kernel", np.s_[:, u]), ("Dense_1", "bias", u), ("Dense_2", "kernel", u)):
            own[layer] = {**own[layer], leaf: own[layer][leaf].at[index].multiply(factor)}
        return -jax.nn.log_softmax(apply({"params": own}, x[i : i + 1]))[0, y[i]]

    slopes = [(loss(1 + h, i) - loss(1 - h, i)) / (2 * h) for i in range(9)]
    assert found[name][u] == pytest.approx(np.mean(np.square(slopes)), rel=2e-2)
    assert found["params/Dense_0/kernel"][1] == 0, "dead"
    with pytest.raises(ValueError, match="taylor needs the loss on data; pass info=calibrate"):
        cut.plan(net, jn.inspect(apply, variables, x), x)


def test_random_scores_differ_by_layer_and_are_those_of_the_key():
    one, two = (Units(name, UNITS.group, LEAVES) for name in ("one", "two"))
    draw = scores.random(3)
    assert np.array_equal(draw(one), scores.random(jax.random.key(3))(one)) and not np.array_equal(draw(one), draw(two))
    assert not np.array_equal(draw(one), scores.random(4)(one))
    with pytest.raises(ValueError, match="pass key="):
        scores.random(None)


def test_scores_that_are_none():
    with pytest.raises(ValueError, match=r"scores of shape .3,.; pass one for each of 4 units"):
        scored(lambda units: np.ones(3), UNITS)
    with pytest.raises(ValueError, match="1 of 4 scores are NaN"):
        scored(lambda units: [1, 2, np.nan, 4], UNITS)
    with pytest.raises(ValueError, match="its units have 1 to 2 entries in w"):
        Units("w", AxisGroup(2, (Member("w", 0, "producer", np.array([0, 1, 1])),)), {"w": np.ones(3)}).matrix("producer")
