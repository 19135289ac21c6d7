"""STR: its gradient against the paper's; a decay makes zeros."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxopt_nn.core.train import init_train_state, make_step
from jaxopt_nn.core.transform import State
from jaxopt_nn.methods.learnt_threshold import learnt_threshold
from jaxopt_nn.methods.structures.blocks import blocks
from jaxopt_nn.methods.structures.n_of_m import n_of_m
from jaxopt_nn.tensors.masked import Masked

W = {"w": jnp.asarray(np.random.default_rng(0).standard_normal((6, 8)), jnp.float32)}


def test_gradients_are_those_of_the_paper():
    """Eq. 5 and 6: of kept weights the gradient itself; of s minus the sum of sign(w) g over kept ones, times t (1 - t)."""
    method = learnt_threshold(0.4, decay=0.0)
    state = method.init(W)
    g = jnp.asarray(np.random.default_rng(1).standard_normal((6, 8)), jnp.float32)
    energy = lambda p, learnt: jnp.sum(g * method.view(p, State(learnt, state.carried))["w"])
    by_weight, by_s = jax.grad(energy, (0, 1))(W, state.learnt)
    kept = np.abs(W["w"]) > 0.4
    np.testing.assert_allclose(by_weight["w"], np.where(kept, g, 0), rtol=1e-6)
    np.testing.assert_allclose(by_s["w"][0, 0], -np.sum(np.sign(W["w"]) * g * kept) * 0.4 * 0.6, rtol=1e-5)
    decayed = jax.grad(lambda learnt: energy(W, learnt))
    held = learnt_threshold(0.4, decay=0.5)
    slope = jax.grad(lambda s: jnp.sum(g * held.view(W, State(s, state.carried))["w"]))(state.learnt)
    np.testing.assert_allclose(slope["w"] - decayed(state.learnt)["w"], 0.5 * state.learnt["w"], rtol=1e-4)


def test_of_blocks_the_norm_shrinks():
    method = learnt_threshold(0.9, structure=blocks(2, 4))
    tiles = np.asarray(W["w"]).reshape(3, 2, 2, 4)
    norms = np.sqrt(np.square(tiles).mean((1, 3), keepdims=True))
    expected = tiles * np.maximum(1 - 0.9 / norms, 0)
    np.testing.assert_allclose(method.view(W, method.init(W))["w"], expected.reshape(6, 8), rtol=1e-5, atol=1e-7)
    packed = method.pack(W, method.init(W))["w"]
    assert isinstance(packed, Masked) and packed.block == (2, 4) and 0 < (norms < 0.9).sum() < 6


@pytest.mark.parametrize(("decay", "more"), [(0.0, False), (3.0, True)])
def test_a_decay_makes_zeros(decay, more):
    """Towards a target that is dense: without a decay the threshold falls, with one it rises."""
    target = W["w"]
    method, optimizer = learnt_threshold(0.05, decay=decay), optax.sgd(0.05)
    loss = lambda v, batch, key: (jnp.sum(jnp.square(v["w"] - target)), ({}, {}))
    ts = init_train_state(W, method, optimizer, jax.random.key(0))
    step = jax.jit(make_step(loss, method, optimizer))
    for _ in range(60):
        ts, _ = step(ts, None)
    assert (float(jax.nn.sigmoid(ts.learnt["w"][0, 0])) > 0.05) == more


def test_bad_values():
    for bad in (lambda: learnt_threshold(0.0), lambda: learnt_threshold(decay=-1), lambda: learnt_threshold(decay=np.nan)):
        with pytest.raises(ValueError, match="learnt_threshold"):
            bad()
    with pytest.raises(ValueError, match="as many in each of its groups"):
        learnt_threshold(structure=n_of_m(2, 4))
    with pytest.raises(TypeError, match="pass a Structure"):
        learnt_threshold(structure="blocks")
