"""Exact selection against numpy's stable sort."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxopt_nn.numerics import topk

FLOATS = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 3e38, np.inf, -np.inf, np.nan]),
    st.floats(width=32, allow_nan=True),
)


def oracle(scores: np.ndarray, k: int) -> np.ndarray:
    """Stable descending sort; NaN after -inf."""
    flat = scores.astype(np.float64).ravel()
    order = np.lexsort((np.arange(flat.size), -np.where(np.isnan(flat), -np.inf, flat), np.isnan(flat)))
    mask = np.zeros(flat.size, bool)
    mask[order[: max(k, 0)]] = True
    return mask.reshape(scores.shape)


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(np.float32, st.sampled_from([(1,), (7,), (3, 4), (2, 3, 2)]), elements=FLOATS), st.integers(-1, 13))
def test_any_floats(scores, k):
    mask = topk.keep_largest(scores, k)
    assert mask.dtype == bool and mask.shape == scores.shape
    np.testing.assert_array_equal(mask, oracle(scores, k))


@pytest.mark.parametrize("k", [0, 1, 499, 500, 2500, 4999, 5000])
def test_ties(k):
    scores = np.random.default_rng(k).integers(0, 4, size=(50, 100)).astype(np.float32)
    mask = topk.keep_largest(scores, k)
    assert int(mask.sum()) == k
    np.testing.assert_array_equal(mask, oracle(scores, k))


def test_traced_k_and_vmap_compile_once():
    scores = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)
    run = jax.jit(jax.vmap(topk.keep_largest))
    for ks in ([1, 2, 3], [64, 0, 30]):
        masks = run(scores, jnp.asarray(ks))
        for row, k, mask in zip(scores, ks, masks):
            np.testing.assert_array_equal(mask, oracle(row, k))
    assert run._cache_size() == 1


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_floats(dtype):
    scores = jnp.asarray(np.random.default_rng(1).normal(size=200), dtype)
    np.testing.assert_array_equal(topk.keep_largest(scores, 77), oracle(np.asarray(scores, np.float32), 77))


def test_integers_are_refused():
    with pytest.raises(TypeError, match="int32"):
        topk.keep_largest(jnp.arange(4), 2)


@settings(max_examples=12, deadline=None)
@given(st.sampled_from([(2, 4), (1, 4), (0, 3), (3, 3), (4, 8)]), st.integers(0, 2), st.integers(0, 50))
def test_n_of_m(nm, axis, seed):
    n, m = nm
    shape = [3, 2, 4]
    shape[axis] = 2 * m
    scores = np.random.default_rng(seed).integers(-2, 3, size=shape).astype(np.float32)
    mask = np.asarray(topk.n_m_mask(scores, n, m, axis))
    moved = np.moveaxis(scores, axis, -1).reshape(-1, m)
    expected = np.stack([oracle(row, n) for row in moved])
    np.testing.assert_array_equal(np.moveaxis(mask, axis, -1).reshape(-1, m), expected)


def test_n_m_refuses_a_remainder():
    with pytest.raises(ValueError, match="not a multiple of m=4"):
        topk.n_m_mask(jnp.ones((6, 2)), 2, 4, 0)
    with pytest.raises(ValueError, match="keep n of every m"):
        topk.n_m_mask(jnp.ones((8, 2)), 5, 4, 0)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("ties", [False, True])
def test_the_largest_of_each_line(axis, ties):
    scores = np.random.default_rng(0).standard_normal((7, 5, 6)).astype(np.float32)
    scores = np.round(scores) if ties else scores
    for k in (-1, 0, 1, 3, 5, 9):
        rank = np.argsort(np.argsort(-scores, axis, kind="stable"), axis)
        np.testing.assert_array_equal(topk.keep_largest_along(jnp.asarray(scores), k, axis), rank < k)
    odd = jnp.asarray([[np.nan, np.inf, -np.inf, -0.0, 0.0]])
    np.testing.assert_array_equal(topk.keep_largest_along(odd, 2, 1), [[False, True, False, True, False]])


@pytest.mark.parametrize("kind", ["random", "ties", "nan", "signs"])
def test_numpy_selects_as_the_device_does(kind):
    rng = np.random.default_rng(3)
    x = rng.standard_normal(61).astype(np.float32)
    if kind == "ties":
        x = np.round(x)
    if kind == "nan":
        x[::5] = np.nan
        x[1::7] = -np.inf
    if kind == "signs":
        x = np.where(x > 1, x, np.where(x > 0, np.float32(0.0), np.float32(-0.0))) * np.float32(1e-42)
    parts = [x[:20].reshape(4, 5), x[20:]]
    for k in (-1, 0, 1, 13, 30, 47, 60, 61, 70):
        found = topk.keep_largest_on_host(parts, k)
        np.testing.assert_array_equal(np.concatenate([m.ravel() for m in found]), topk.keep_largest(jnp.asarray(x), k))
