"""An epoch is the same as its steps one by one; evaluation is the same as NumPy's."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxopt_nn.core.train import init_train_state
from jaxopt_nn.core.transform import State, identity
from jaxopt_nn.methods.prune import prune
from jaxopt_nn.pipeline.evaluate import evaluator
from jaxopt_nn.pipeline.recipe import Stage
from jaxopt_nn.pipeline.train import Trainer, make_epoch, minibatches

RNG = np.random.default_rng(0)
X = RNG.standard_normal((50, 4)).astype(np.float32)
Y = (X[:, 0] > X[:, 1]).astype(np.int32) + (X[:, 2] > 1)
PARAMS = {"w": jnp.asarray(RNG.standard_normal((4, 3)), jnp.float32), "b": jnp.zeros(3), "steps": jnp.arange(2)}


def apply(variables, x):
    return x @ variables["w"] + variables["b"][None]


def test_minibatches_are_a_permutation_drawn_from_the_key():
    x, y = minibatches(X, Y, 16, jax.random.key(0))
    assert x.shape == (3, 16, 4) and y.shape == (3, 16)
    rows = {tuple(row): label for row, label in zip(X.tolist(), Y.tolist(), strict=True)}
    seen = [tuple(row) for row in x.reshape(-1, 4).tolist()]
    assert len(set(seen)) == 48 and [rows[row] for row in seen] == y.ravel().tolist()
    np.testing.assert_array_equal(x, minibatches(X, Y, 16, jax.random.key(0))[0])
    assert not np.array_equal(x, minibatches(X, Y, 16, jax.random.key(1))[0])
    assert minibatches(X, Y, 64, jax.random.key(0))[0].shape == (1, 50, 4)


def test_an_epoch_is_gradient_descent_step_by_step():
    optimizer = optax.sgd(0.1)
    ts = init_train_state(PARAMS, identity(), optimizer, jax.random.key(0))
    x, y = minibatches(X, Y, 16, jax.random.key(0))
    expected, losses = {k: np.asarray(v, np.float64) for k, v in PARAMS.items()}, []
    for xb, yb in zip(x.astype(np.float64), y, strict=True):
        logits = xb @ expected["w"] + expected["b"]
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        losses.append(-np.mean(np.log(p[np.arange(16), yb])))
        slope = (p - np.eye(3)[yb]) / 16
        expected["w"] = expected["w"] - 0.1 * xb.T @ slope
        expected["b"] = expected["b"] - 0.1 * slope.sum(0)
    ts, loss = make_epoch(apply, identity(), optimizer)(jax.tree.map(jnp.copy, ts), x, y)
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-5)
    chex.assert_trees_all_close(ts.params, jax.tree.map(lambda a, b: a.astype(b.dtype), expected, PARAMS), rtol=1e-5)


def test_training_learns_keeps_masks_and_the_callers_arrays_and_compiles_once():
    method = prune(sparsity=0.5)
    state = method.init(PARAMS)
    chex.clear_trace_counter()
    counted = chex.assert_max_traces(apply, n=2)  # once for its value, once for its shape within the scan
    trainer = Trainer(counted, method, Stage("p", method, epochs=20, learning_rate=0.05), batch_size=16)
    before = jax.tree.map(np.asarray, PARAMS)
    evaluate = evaluator(apply)
    for seed in range(2):
        params, after = trainer(PARAMS, state, (X, Y), jax.random.key(seed))
        chex.assert_trees_all_equal(after, state)
        chex.assert_trees_all_equal(PARAMS, before)
        chex.assert_trees_all_equal(params["steps"], PARAMS["steps"])
        old, new = (evaluate(method.view(p, state), X, Y) for p in (PARAMS, params))
        assert new.loss < 0.8 * old.loss
    assert int(jnp.count_nonzero(method.view(params, state)["w"])) == 6


def test_no_epochs_change_nothing():
    trainer = Trainer(apply, identity(), Stage("p", identity()))
    assert trainer(PARAMS, State(), (X, Y), jax.random.key(0))[0] is PARAMS


def test_a_diverging_loss_names_stage_and_epoch():
    trainer = Trainer(apply, identity(), Stage("wild", identity(), epochs=3, learning_rate=1e38), batch_size=16)
    with pytest.raises(FloatingPointError, match=r"stage 'wild': the loss is .* in epoch [12]; lower learning_rate=1e"):
        trainer(PARAMS, State(), (X, Y), jax.random.key(0))


@pytest.mark.parametrize("size", [1, 15, 16, 17, 50])
def test_evaluation_of_any_size(size):
    chex.clear_trace_counter()
    evaluate = evaluator(chex.assert_max_traces(apply, n=1), batch_size=16)
    x, y = X[:size], Y[:size]
    logits = x.astype(np.float64) @ np.asarray(PARAMS["w"]) + np.asarray(PARAMS["b"])
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    found = evaluate(PARAMS, x, y)
    assert found.correct == int(np.sum(np.argmax(logits, 1) == y)) and found.accuracy == found.correct / size
    np.testing.assert_allclose(found.loss, -np.mean(np.log(p[np.arange(size), y])), rtol=1e-5)
