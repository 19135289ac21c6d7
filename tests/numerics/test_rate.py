"""Lengths of codes: against loops, an adaptive coder's closed form, and all codes tried."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import betaln, gammaln

from jaxopt_nn.numerics import rate


def sparse(seed, rows=60, columns=40, scale=0.4):
    """Codes whose rows and columns differ in density, some of them empty."""
    rng = np.random.default_rng(seed)
    spread = np.exp(rng.standard_normal((rows, 1))) * np.exp(0.5 * rng.standard_normal((1, columns)))
    codes = np.round(scale * spread * rng.standard_normal((rows, columns)))
    codes[: rows // 4] = 0
    return codes.astype(np.float32)


def by_loops(codes):
    """The length of each code, entry by entry, in float64."""
    rows, columns = codes.shape
    kept = np.count_nonzero(codes)
    mean = (kept + 0.5) / (codes.size + 1)
    going_on = 1 - (kept + 1) / (np.abs(codes).sum() + 2)
    logit = lambda p: np.log(p / (1 - p))
    out = np.zeros(codes.shape)
    for r, c in itertools.product(range(rows), range(columns)):
        in_row = (np.count_nonzero(codes[r]) + rate.PRIOR * mean) / (columns + rate.PRIOR)
        in_column = (np.count_nonzero(codes[:, c]) + rate.PRIOR * mean) / (rows + rate.PRIOR)
        odds = logit(in_row) + logit(in_column) - logit(mean)
        some = 1 / (1 + np.exp(-odds))
        size = int(abs(codes[r, c]))
        share = 1 - some if size == 0 else some / 2 * (1 - going_on) * going_on ** (size - 1)
        out[r, c] = -np.log2(share)
    return out


def test_lengths_are_those_of_the_model():
    codes = sparse(0)
    np.testing.assert_allclose(rate.code_bits(codes, rate.prices(codes)), by_loops(codes), rtol=2e-4, atol=1e-4)


def test_each_matrix_of_a_stack_has_statistics_of_its_own():
    codes = np.stack([sparse(1), sparse(2, scale=1.5)])
    both = rate.code_bits(codes, rate.prices(codes))
    for own, one in zip(both, codes, strict=True):
        np.testing.assert_array_equal(own, rate.code_bits(one, rate.prices(one)))


def test_lengths_are_those_of_a_code():
    """Kraft: the probabilities of all codes of an entry sum up to one."""
    costs = rate.prices(sparse(3))
    share = lambda m: 2.0 ** -np.asarray(rate.code_bits(np.full((60, 40), m, np.float32), costs)) * (2 if m else 1)
    total = sum(map(share, range(90)))
    np.testing.assert_allclose(total, 1, atol=2e-5)


def adaptive_bits(codes):
    """What a coder takes that learns the density of each row as it goes, and the magnitudes' histogram, in closed form."""
    some = codes != 0
    mean = (some.sum() + 0.5) / (some.size + 1)
    a, b = rate.PRIOR * mean, rate.PRIOR * (1 - mean)
    kept = some.sum(1)
    places = -(betaln(a + kept, b + codes.shape[1] - kept) - betaln(a, b)).sum()
    counts = np.bincount(np.abs(codes[some]).astype(int))[1:]
    each = (gammaln(counts + 0.5) - gammaln(0.5)).sum()
    sizes = -(gammaln(0.5 * counts.size) - gammaln(0.5 * counts.size + counts.sum()) + each)
    return (places + sizes) / np.log(2) + some.sum()


@pytest.mark.parametrize("scale", [0.15, 0.4, 1.0])
def test_the_sum_is_near_an_adaptive_coder(scale):
    codes = sparse(4, 200, 120, scale)
    bits = float(rate.code_bits(codes, rate.prices(codes)).sum())
    # columns are known besides, and magnitudes are geometric
    assert 0.8 < bits / adaptive_bits(codes) < 1.05
    _, counts = np.unique(codes, return_counts=True)
    share = counts / codes.size
    assert bits < 0.9 * -(counts * np.log2(share)).sum()  # far below the entropy of the codes without their places


@pytest.mark.parametrize("exchange", [0.0, 0.01, 0.1, 1.0])
def test_no_code_is_better_than_the_chosen_one(exchange):
    rng = np.random.default_rng(5)
    values = (2.5 * rng.standard_normal((60, 40))).astype(np.float32)
    costs, most = rate.prices(sparse(6)), 7
    first, more = np.asarray(rate.entry(costs)), np.asarray(rate.further(costs))
    price = lambda code: np.where(code == 0, 0, first + (abs(code) - 1) * more)
    losses = np.array([(values - code) ** 2 + exchange * price(code) for code in range(-most, most + 1)])
    chosen = np.asarray(rate.choose(values, costs, exchange, most))
    own = np.take_along_axis(losses, (chosen.astype(int) + most)[None], 0)[0]
    assert (own <= losses.min(0) + 1e-5).all()
    nearest = np.clip(np.round(values), -most, most)
    if exchange == 0:
        np.testing.assert_array_equal(chosen, nearest)
    else:
        assert np.count_nonzero(chosen) < np.count_nonzero(nearest)


@pytest.mark.parametrize("codes", [np.zeros((4, 3)), np.ones((4, 3)), np.zeros((1, 1)), np.full((2, 2), 127.0)])
def test_nothing_and_all_alike_have_finite_lengths(codes):
    costs = rate.prices(jnp.asarray(codes, jnp.float32))
    assert np.isfinite(rate.code_bits(codes, costs)).all()
    assert rate.CHEAPEST <= float(rate.entry(costs).min()) and float(rate.entry(costs).max()) <= rate.DEAREST
