"""Two methods in one leaf: the second stores what the first leaves; sums of factors, codes and sparse rests."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_nn.core.combine import chain, where
from jaxopt_nn.core.leafwise import leafwise
from jaxopt_nn.core.residual import residual
from jaxopt_nn.core.transform import LeafTraits, State, explain, identity
from jaxopt_nn.interpret.network import Network
from jaxopt_nn.interpret.rewrite import rewrite
from jaxopt_nn.methods.low_rank import low_rank
from jaxopt_nn.methods.prune import prune
from jaxopt_nn.methods.quantize import quantize
from jaxopt_nn.methods.sparsegpt import sparsegpt
from jaxopt_nn.pipeline.calibrate import calibrate
from jaxopt_nn.tensors.low_rank import LowRank
from jaxopt_nn.tensors.sum import Sum
from tests.methods.test_low_rank import PAIR, chosen, correlated, f32, laws, pair


def test_residuals():
    """The second sees the difference, the view is the sum, and it is nearer than either alone."""
    a, b = low_rank(4), chain(prune(sparsity=0.8), quantize(4))
    method = residual(a, b)
    _, seen, packed = laws(method, PAIR)
    first = a.view(PAIR, a.init(PAIR))
    rest = {p: PAIR[p] - first[p] for p in PAIR}
    second = b.view(rest, b.init(rest))
    for p in PAIR:
        np.testing.assert_allclose(seen[p], first[p] + second[p], atol=1e-5)
        assert isinstance(packed[p], Sum) and isinstance(packed[p].a, LowRank) and packed[p].b.frame.bits == 4
        assert packed[p].nbytes == packed[p].a.nbytes + packed[p].b.nbytes
        either = (first, b.view(PAIR, b.init(PAIR)))
        assert np.square(PAIR[p] - seen[p]).sum() < min(np.square(PAIR[p] - x[p]).sum() for x in either)
    x = f32(5, 32)
    np.testing.assert_allclose(rewrite(pair)(packed, x), pair(seen, x), atol=1e-3)


def test_residuals_of_calibrated_methods():
    x = correlated(100, 32)
    net, method = Network(pair, PAIR), residual(low_rank(3, whiten="inputs"), sparsegpt(0.7))
    info = calibrate(net, method, [x])
    seen, packed = laws(method, PAIR, info)[1:]
    assert {type(p).__name__ for p in packed.values()} == {"Sum"}
    plain = residual(low_rank(3), prune(sparsity=0.7))
    other = plain.view(PAIR, plain.init(PAIR))
    error = lambda seen: float(np.square(x @ (PAIR["a"] - seen["a"])).sum())
    assert error(seen) < error(other)


def test_a_leaf_that_one_leaves_alone_is_the_others():
    method = residual(where("a", low_rank(2)), where("b", quantize(4)))
    packed = laws(method, PAIR)[2]
    assert isinstance(packed["a"], LowRank) and packed["b"].bits == 4
    partial = {m.path: m.reason for m in explain(method, PAIR).of("partial")}
    assert partial["a"].startswith("member 1 of the residual") and partial["b"].startswith("member 0 of the residual")


def test_residuals_train_both():
    method = residual(low_rank(2), prune(sparsity=0.5))
    state = method.init(PAIR)
    loss = lambda v, learnt: sum(jnp.sum(x**2) for x in jax.tree.leaves(method.view(v, State(learnt, state.carried))))
    leaves, learnt = jax.grad(loss, (0, 1))(PAIR, state.learnt)
    assert all(bool(x.any()) for x in jax.tree.leaves((leaves, learnt)))


def slopes(method, v, state, along):
    """Of a loss whose gradient at the view is ``along``: by the leaves, and by what is learnt."""
    loss = lambda v, learnt: jnp.sum(method.view(v, State(learnt, state.carried))["w"] * along)
    return jax.grad(loss, (0, 1))(v, state.learnt)


@pytest.mark.parametrize("b", [quantize(8), prune(sparsity=0.5)], ids=["codes", "mask"])
def test_factors_get_the_gradient_of_the_sum(b):
    """Beside codes what they get alone: straight through the codes of what they leave it would be zero.

    Beside a mask what they get alone of the entries that it does not keep.
    """
    v, along, inner = {"w": f32(9, 20)}, f32(9, 20), identity()
    alone, own = chosen(6, inner)
    method, rest = residual(alone, b), {"w": v["w"] - alone.view(v, own)["w"]}
    other = b.init(rest)
    state = State((own.learnt, other.learnt), (own.carried, other.carried))
    kept = b.view(rest, other)["w"] != 0 if b.traits.name == "prune" else jnp.zeros((9, 20), bool)
    leaves, learnt = slopes(method, v, state, along)
    _, wanted = slopes(alone, v, own, jnp.where(kept, 0.0, along))
    for name, x in learnt[0]["w"]["factors"].items():
        np.testing.assert_allclose(x, wanted["w"]["factors"][name], atol=1e-5)
    np.testing.assert_allclose(leaves["w"], along if b.traits.name != "prune" else jnp.where(kept, along, 0.0), atol=1e-5)


def test_the_leaf_gets_the_gradient_through_both_members():
    """A learnt gain and codes of the rest: the leaf's slope is g + (1 - g), the gain's the leaf."""
    gain = leafwise(
        lambda *_: LeafTraits(), lambda *_: (jnp.float32(0.25), ()), lambda leaf, gain, _: leaf * gain,
    )  # fmt: skip
    v, along, method = {"w": f32(9, 20)}, f32(9, 20), residual(gain, quantize(8))
    leaves, learnt = slopes(method, v, method.init(v), along)
    np.testing.assert_allclose(leaves["w"], along, atol=1e-5)
    np.testing.assert_allclose(learnt[0]["w"], jnp.sum(v["w"] * along), rtol=1e-4)
