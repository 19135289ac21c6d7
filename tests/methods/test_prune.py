"""Pruning against sorted scores, under ties, stacks and schedules."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxopt_nn.core.model import ModelInfo, Roles
from jaxopt_nn.methods.prune import global_budget, magnitude, per_leaf, prune, saliency

PARAMS = {"a": jnp.asarray(np.random.default_rng(0).standard_normal((8, 6)), jnp.float32), "b": jnp.full((4, 5), 0.3)}


def masks(method, params=PARAMS, info=ModelInfo()):
    return {p: np.asarray(c["mask"]) for p, c in method.init(params, info).carried.items()}


@given(st.floats(0, 1), st.integers(0, 2**31), st.booleans())
def test_exactly_the_smallest_go(sparsity, seed, ties):
    w = np.random.default_rng(seed).standard_normal((7, 5)).astype(np.float32)
    w = np.round(w) if ties else w
    mask = masks(prune(sparsity=sparsity), {"w": jnp.asarray(w)})["w"]
    kept = 35 - int(np.rint(np.float32(sparsity) * np.float32(35)))
    order = np.argsort(-np.abs(w).ravel(), kind="stable")
    expected = np.zeros(35, bool)
    expected[order[:kept]] = True
    np.testing.assert_array_equal(mask.ravel(), expected)


def test_a_global_budget_takes_from_the_leaf_with_the_smaller_scores():
    found = masks(prune(sparsity=0.5, allocation=global_budget))
    scores = np.concatenate([np.abs(PARAMS["a"]).ravel(), np.abs(PARAMS["b"]).ravel()])
    kept = np.concatenate([found["a"].ravel(), found["b"].ravel()])
    assert kept.sum() == 34 and scores[kept].min() >= scores[~kept].max()
    assert found["b"].mean() != found["a"].mean()


def test_each_layer_of_a_stack_is_pruned_alike():
    w = jnp.stack([PARAMS["a"], 100 * PARAMS["a"]])
    info = ModelInfo(roles={"w": Roles((0,), (1,), (2,))})
    mask = masks(prune(sparsity=0.5), {"w": w}, info)["w"]
    np.testing.assert_array_equal(mask[0], mask[1])
    np.testing.assert_array_equal(mask[0], masks(prune(sparsity=0.5))["a"])


def test_a_stack_that_is_not_the_leading_axis():
    w = jnp.stack([PARAMS["a"], 100 * PARAMS["a"]], axis=1)
    mask = masks(prune(sparsity=0.5), {"w": w}, ModelInfo(roles={"w": Roles((1,), (0,), (2,))}))["w"]
    np.testing.assert_array_equal(mask[:, 0], masks(prune(sparsity=0.5))["a"])


def test_a_schedule_reaches_its_target_at_its_last_step():
    method = prune(sparsity=optax.polynomial_schedule(0.0, 0.8, 3, 10))
    state = method.init(PARAMS)
    assert all(np.asarray(c["mask"]).all() for c in state.carried.values())
    shares = []
    for step in range(11):
        state = method.update(PARAMS, state, step=step)
        shares.append(1 - np.asarray(state.carried["a"]["mask"]).mean())
    assert shares == sorted(shares) and shares[-1] == pytest.approx(0.8, abs=1 / 48)


def test_pruned_weights_get_no_gradient():
    method = prune(sparsity=0.5)
    state = method.init(PARAMS)
    slope = jax.grad(lambda p: jnp.sum(method.view(p, state)["a"] * 2))(PARAMS)["a"]
    np.testing.assert_array_equal(slope, 2.0 * np.asarray(state.carried["a"]["mask"]))


def test_saliency_is_the_product_with_the_gradient():
    """Largest weights with no gradient go; magnitude would keep them."""
    w = {"w": jnp.array([[10.0, 9.0], [0.1, 0.2]])}
    g = {"w": jnp.array([[0.0, 0.0], [5.0, -5.0]])}
    method = prune(saliency, sparsity=optax.linear_schedule(0.0, 0.5, 1))
    state = method.update(w, method.init(w), step=1, grads=g)
    np.testing.assert_array_equal(state.carried["w"]["mask"], [[False, False], [True, True]])
    with pytest.raises(ValueError, match="saliency needs gradients"):
        prune(saliency, sparsity=0.5).init(w)


def test_a_criterion_and_an_allocation_of_ones_own():
    smallest_first = lambda w, g: -jnp.abs(w)
    only_a = lambda scores, roles, share: {
        p: s > -1.0 if p == "a" else jnp.ones(s.shape, bool) for p, s in scores.items()
    }
    found = masks(prune(smallest_first, sparsity=0.5, allocation=only_a))
    np.testing.assert_array_equal(found["a"], np.abs(PARAMS["a"]) < 1.0)
    assert found["b"].all()


def test_empty_selections_and_bad_weights():
    method = prune(sparsity=0.5)
    biases = {"bias": jnp.ones(3)}
    assert method.init(biases).carried == {} and method.pack(biases, method.init(biases)) == biases
    bad = {"w": PARAMS["a"].at[0, 0].set(jnp.nan)}
    with pytest.raises(ValueError, match="w: NaN or Inf"):
        method.pack(bad, method.init(bad))


def test_allocations_agree_on_one_leaf():
    one = {"w": PARAMS["a"]}
    a, b = (masks(prune(magnitude, sparsity=0.3, allocation=f), one)["w"] for f in (per_leaf, global_budget))
    np.testing.assert_array_equal(a, b)
