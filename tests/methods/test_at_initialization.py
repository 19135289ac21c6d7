"""SNIP, GraSP and SynFlow against their definitions on whole matrices of derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from jaxopt_nn.interpret.network import Network
from jaxopt_nn.methods.allocations.global_budget import global_budget
from jaxopt_nn.methods.criteria.snip import grasp, snip
from jaxopt_nn.methods.criteria.synflow import synflow
from jaxopt_nn.methods.prune import prune
from jaxopt_nn.pipeline.calibrate import calibrate
from jaxopt_nn.pipeline.classes import classification

RNG = np.random.default_rng(4)


def apply(v, x):
    return jax.nn.relu(x @ v["a"] + v["bias"][None]) @ v["b"]


V = {
    "a": jnp.asarray(RNG.standard_normal((5, 6)), jnp.float32),
    "b": jnp.asarray(RNG.standard_normal((6, 3)), jnp.float32),
    "bias": jnp.asarray(RNG.standard_normal(6), jnp.float32),
}
X = RNG.standard_normal((14, 5)).astype(np.float32)
Y = RNG.integers(0, 3, 14)
NET = Network(apply, V)
TASK = classification(train=(X, Y), test=(X, Y)).replace(batch_size=14)


def loss(v):
    return optax.softmax_cross_entropy_with_integer_labels(apply(v, X), jnp.asarray(Y)).mean()


def kept(criterion, sparsity, task=TASK, **options):
    method = prune(criterion, sparsity=sparsity, allocation=global_budget)
    state = method.init(V, calibrate(NET, method, task, **options))
    return {path: np.asarray(own.mask) for path, own in state.carried.items()}


def best(scores, sparsity):
    """The masks of the highest scores over all leaves."""
    flat, back = ravel_pytree(scores)
    stays = np.zeros(flat.size, bool)
    stays[np.argsort(-np.asarray(flat), kind="stable")[: flat.size - round(sparsity * flat.size)]] = True
    return back(jnp.asarray(stays, flat.dtype))


@pytest.mark.parametrize("batch_size", [14, 4])
def test_snip_is_the_gradient_over_all_examples(batch_size):
    slopes = jax.grad(loss)(V)
    expected = best({p: jnp.abs(V[p] * slopes[p]) for p in "ab"}, 0.6)
    found = kept(snip, 0.6, TASK.replace(batch_size=batch_size))
    jax.tree.map(np.testing.assert_array_equal, found, jax.tree.map(lambda x: np.asarray(x, bool), expected))


def test_grasp_is_the_hessian_times_the_gradient():
    flat, back = ravel_pytree({p: V[p] for p in "ab"})
    of_flat = lambda row: loss({**V, **back(row)})
    scores = back(flat * (jax.hessian(of_flat)(flat) @ jax.grad(of_flat)(flat)))
    found = kept(grasp, 0.5)
    jax.tree.map(np.testing.assert_array_equal, found, jax.tree.map(lambda x: np.asarray(x, bool), best(scores, 0.5)))


def reference_synflow(rounds, density, upto):
    """Algorithm 1 of the paper in NumPy: masks after ``upto`` of the rounds."""
    a, b, bias = (np.abs(np.asarray(V[p], np.float64)) for p in ("a", "b", "bias"))
    masks = [np.ones_like(a), np.ones_like(b)]
    for k in range(1, upto + 1):
        wa, wb = a * masks[0], b * masks[1]
        into, out = wa.sum(0) + bias, wb.sum(1)  # inputs and outputs of ones
        scores = np.concatenate([(wa * out).ravel(), (wb * into[:, None]).ravel()])
        scores = np.where(np.concatenate([m.ravel() for m in masks]) > 0, scores, -1)
        stays = np.zeros(scores.size)
        stays[np.argsort(-scores, kind="stable")[: round(density ** (k / rounds) * scores.size)]] = 1
        masks = [stays[: a.size].reshape(a.shape), stays[a.size :].reshape(b.shape)]
    return masks


@pytest.mark.parametrize("upto", [1, 3, 5])
def test_synflow_is_the_papers_algorithm(upto):
    rounds, density = 6, 0.05
    left = round(density ** (upto / rounds) * 48)
    found = kept(synflow(rounds, density), 1 - left / 48, task=[X])
    for mask, expected in zip(found.values(), reference_synflow(rounds, density, upto), strict=True):
        np.testing.assert_array_equal(mask, expected > 0)
    one_shot = kept(synflow(1, density), 1 - left / 48, task=[X])
    assert upto < 3 or any((one_shot[p] != found[p]).any() for p in found), "rounds matter"


def test_bad_values():
    for bad in (lambda: synflow(0), lambda: synflow(10, 1.0), lambda: synflow(2.5)):
        with pytest.raises(ValueError, match="synflow"):
            bad()
    broken = NET.replace(variables={**V, "a": V["a"].at[0, 0].set(jnp.inf)})
    with pytest.raises(ValueError, match="NaN or Inf in the statistic 'slope'"):
        calibrate(broken, prune(snip, sparsity=0.5), TASK)
