"""Truncated SVD, whitened and not, and Tucker-2, against NumPy, least squares, and other choices of the same rank."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_nn.numerics import low_rank, shares

factored = jax.jit(low_rank.factored)
tucker = jax.jit(low_rank.tucker, static_argnums=1)
RNG = np.random.default_rng(0)


def f32(*shape):
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


def inputs(n, width):
    """Correlated, of very different sizes."""
    return f32(n, width) @ (f32(width, width) * jnp.asarray(np.geomspace(1, 0.05, width), jnp.float32)[None])


@pytest.mark.parametrize("shape", [(9, 5), (5, 9), (1, 4), (4, 1), (1, 1)])
def test_factors_are_numpys_truncated_svd(shape):
    w = f32(*shape)
    left, right, energies = factored(w)
    u, s, vt = np.linalg.svd(np.asarray(w, np.float64), full_matrices=False)
    np.testing.assert_allclose(energies, s**2, rtol=1e-4, atol=1e-6)
    for r in range(1, min(shape) + 1):
        wanted = (u[:, :r] * s[:r]) @ vt[:r]
        np.testing.assert_allclose(left[:, :r] @ right[:r], wanted, atol=2e-5)
        # Eckart & Young: what is lost are the squares that go
        np.testing.assert_allclose(np.square(w - left[:, :r] @ right[:r]).sum(), (s[r:] ** 2).sum(), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(left, axis=0), np.linalg.norm(right, axis=1), rtol=1e-4)


def reduced_rank_regression(x, w, r):
    """The matrix of rank r whose outputs are nearest to ``x w`` (Izenman 1975), by the directions of the fitted values."""
    x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
    _, _, vt = np.linalg.svd(x @ w, full_matrices=False)
    fit, *_ = np.linalg.lstsq(x, x @ w, rcond=None)
    return fit @ vt[:r].T @ vt[:r]


@pytest.mark.parametrize("outputs", [5, 14])
def test_whitened_factors_are_the_best_of_each_rank(outputs):
    """As reduced-rank regression has them, and as alternating least squares finds them from random starts."""
    x, w = inputs(60, 8), f32(8, outputs)
    gram = x.T @ x
    left, right, energies = factored(w, gram)
    for r in range(1, min(8, outputs)):
        seen = left[:, :r] @ right[:r]
        wanted = reduced_rank_regression(x, w, r)
        np.testing.assert_allclose(x @ seen, np.asarray(x) @ wanted, atol=5e-3 * float(jnp.abs(x @ w).max()))
        error = float(low_rank.output_error(gram, w - seen))
        np.testing.assert_allclose(error, np.square(x @ (w - seen)).sum(), rtol=1e-2, atol=1e-2)
        np.testing.assert_allclose(error, energies[r:].sum(), rtol=1e-2, atol=1e-2)
    seen, found = left[:, :2] @ right[:2], []
    for seed in range(3):
        b = np.random.default_rng(seed).standard_normal((2, outputs))
        for _ in range(200):
            a = np.linalg.lstsq(x, np.linalg.lstsq(b.T, np.asarray(x @ w, np.float64).T, rcond=None)[0].T, rcond=None)[0]
            b = np.linalg.lstsq(x @ a, x @ w, rcond=None)[0]
        found.append(np.square(x @ (w - a @ b)).sum())
    assert np.square(x @ (w - seen)).sum() <= min(found) * 1.001


def test_whitened_beats_plain_in_outputs_and_loses_in_weights():
    x, w = inputs(80, 10), f32(10, 9)
    gram = x.T @ x
    (a, b, _), (c, d, _) = factored(w, gram), factored(w)
    for r in range(1, 9):
        whitened, plain = w - a[:, :r] @ b[:r], w - c[:, :r] @ d[:r]
        assert low_rank.output_error(gram, whitened) < low_rank.output_error(gram, plain)
        assert np.square(whitened).sum() > np.square(plain).sum()


def test_a_diagonal_scales_the_inputs():
    """Equal to the whole Gram matrix where inputs are not correlated; and to the SVD of scaled weights, scaled back."""
    size, w = jnp.asarray(np.geomspace(1, 9, 6), jnp.float32), f32(6, 7)
    left, right, _ = factored(w, size)
    full = factored(w, jnp.diag(size))
    np.testing.assert_allclose(left[:, :3] @ right[:3], full[0][:, :3] @ full[1][:3], atol=1e-4)
    u, s, vt = np.linalg.svd(np.sqrt(size)[:, None] * np.asarray(w), full_matrices=False)
    np.testing.assert_allclose(left[:, :3] @ right[:3], (u[:, :3] * s[:3]) @ vt[:3] / np.sqrt(size)[:, None], atol=1e-4)
    np.testing.assert_allclose(low_rank.output_error(size, w), low_rank.output_error(jnp.diag(size), w), rtol=1e-5)


def test_gram_matrices_of_any_rank():
    """Fewer rows than inputs, an input that is never seen, none at all: no NaN, and outputs that are kept where they can be."""
    w = f32(8, 6)
    for x in (inputs(3, 8), inputs(40, 8).at[:, 2].set(0.0), jnp.zeros((4, 8))):
        gram = x.T @ x
        left, right, _ = factored(w, gram)
        assert jnp.isfinite(left).all() and jnp.isfinite(right).all()
        np.testing.assert_allclose(x @ (left @ right), x @ w, atol=2e-3 * (1 + float(jnp.abs(x @ w).max())))
    r = low_rank.root(inputs(20, 5).T @ inputs(20, 5) + jnp.eye(5), 0.1)
    assert r.shape == (5, 5)


def test_a_root_squares_to_its_matrix():
    x = inputs(30, 6)
    gram = x.T @ x
    r = low_rank.root(gram, 0.01)
    np.testing.assert_allclose(r.T @ r, gram + 0.01 * jnp.mean(jnp.diagonal(gram)) * jnp.eye(6), rtol=1e-3, atol=1e-2)


def hosvd(w, ranks):
    """The truncated higher-order SVD of the outer modes of ``[I, P, O]``, by NumPy."""
    w = np.asarray(w, np.float64)
    first = np.linalg.svd(w.reshape(len(w), -1), full_matrices=False)[0][:, : ranks[0]]
    last = np.linalg.svd(w.transpose(2, 0, 1).reshape(w.shape[2], -1), full_matrices=False)[0][:, : ranks[1]]
    return np.einsum("ia,ja,jpk,kb,lb->ipl", first, first, w, last, last)


def test_tucker_against_numpy():
    """No sweep: the higher-order SVD. Sweeps: no worse, and no improvement of one mode for the other as it is."""
    w = f32(6, 9, 7)
    made = lambda sweeps: jnp.einsum("ir,rpq,qo->ipo", *tucker(w, (3, 4), sweeps=sweeps))
    error = lambda v: float(np.square(w - v).sum())
    first, last = low_rank.modes(w)
    np.testing.assert_allclose(first, np.linalg.svd(w.reshape(6, -1))[1] ** 2, rtol=1e-4)
    wanted = hosvd(w, (3, 4))
    assert max(first[3:].sum(), last[4:].sum()) * (1 - 1e-4) <= error(made(30))
    assert error(made(30)) <= error(made(1)) * (1 + 1e-5) <= error(wanted) * (1 + 1e-4)
    assert error(wanted) <= (first[3:].sum() + last[4:].sum()) * (1 + 1e-4)
    a, _, b = tucker(w, (3, 4), sweeps=30)
    np.testing.assert_allclose(a.T @ a, np.eye(3), atol=1e-4)
    unfolded = np.einsum("ipo,qo->ipq", w, b).reshape(6, -1)
    best = np.linalg.svd(unfolded)[0][:, :3]
    np.testing.assert_allclose(a @ a.T, best @ best.T, atol=5e-3)
    np.testing.assert_allclose(jnp.einsum("ir,rpq,qo->ipo", *tucker(w, (6, 7))), w, atol=1e-4)


def test_ranks_that_count_are_columns_that_are_zero():
    w = f32(6, 4, 7)
    wide = tucker(w, (5, 6), (jnp.int32(2), jnp.int32(3)))
    narrow = tucker(w, (2, 3))
    product = lambda parts: jnp.einsum("ir,rpq,qo->ipo", *parts)
    np.testing.assert_allclose(product(wide), product(narrow), atol=1e-4)
    assert not wide[0][:, 2:].any() and not wide[1][2:].any() and not wide[1][:, :, 3:].any() and not wide[2][3:].any()


def test_kept_energy():
    np.testing.assert_allclose(low_rank.kept(jnp.array([[6.0, 3.0, 1.0], [0.0, 0.0, 0.0]])), [[0.6, 0.9, 1.0], [1, 1, 1]])


@pytest.mark.parametrize("seed", range(4))
def test_a_budget_is_shared_out(seed):
    """Against all combinations: within the budget, near the best there is, and the best of any price's own cost."""
    rng = np.random.default_rng(seed)
    losses = [np.sort(rng.random(5))[::-1].astype(np.float32) for _ in range(4)]
    costs = [np.sort(rng.integers(1, 40, 5)) for _ in range(4)]
    least = sum(c[0] for c in costs)
    all_of = [
        (sum(loss[i] for loss, i in zip(losses, pick)), sum(c[i] for c, i in zip(costs, pick)))
        for pick in itertools.product(range(5), repeat=4)
    ]
    for budget in (least, least + 10, least + 40, 1000):
        pick = shares.shared([jnp.asarray(x) for x in losses], costs, budget)
        loss, cost = (float(sum(own[i] for own, i in zip(table, pick))) for table in (losses, costs))
        best = min(loss for loss, cost in all_of if cost <= budget)
        assert cost <= budget and loss <= best + 0.25, (loss, best)
    assert loss == pytest.approx(sum(x.min() for x in losses))
