"""Intervals against closed forms of Student's t and of the binomial, and their coverage by simulation."""

import math

import numpy as np
import pytest

from jaxopt_nn.numerics.intervals import mean_interval, median_interval

#: The 0.975 quantile of Student's t by degrees of freedom. 1 and 2 have closed forms: tan(pi p / 2) and p sqrt(2 / (1 - p^2)),
#: of p = 0.95; the others are of the usual table (Abramowitz and Stegun 1964, table 26.10).
QUANTILES = {1: math.tan(0.475 * math.pi), 2: 0.95 * math.sqrt(2 / (1 - 0.95**2)), 4: 2.776, 9: 2.262, 30: 2.042}


@pytest.mark.parametrize("freedom", QUANTILES)
def test_the_interval_of_a_mean_is_students(rng, freedom):
    values = rng.normal(3, 2, freedom + 1)
    mean, low, high = mean_interval(values)
    error = math.sqrt(sum((x - mean) ** 2 for x in values) / freedom / (freedom + 1))
    assert mean == pytest.approx(sum(values) / (freedom + 1))
    assert (high - mean) / error == pytest.approx(QUANTILES[freedom], rel=2e-4) == (mean - low) / error


def test_one_value_has_no_interval_and_equal_ones_a_point():
    assert mean_interval([2.0]).value == 2.0 and all(map(math.isnan, mean_interval([2.0])[1:]))
    assert mean_interval([2.0] * 3) == (2.0, 2.0, 2.0)


@pytest.mark.parametrize(
    ("n", "k"),
    # the least number in the tail of the sign test at 5 %, two-sided (Conover 1999, table A3: 0 of 6, 1 of 9, 5 of 20, 9 of 30)
    [(6, 1), (8, 1), (9, 2), (20, 6), (30, 10)],
)
def test_the_interval_of_a_median_lies_between_order_statistics(rng, n, k):
    values = rng.permutation(np.arange(1, n + 1))
    assert median_interval(values) == ((n + 1) / 2, k, n + 1 - k)


def test_many_values_have_an_interval_of_the_median_close_to_the_normal_one():
    n = 5000
    estimate, low, high = median_interval(range(1, n + 1))
    half = 1.959964 * math.sqrt(n) / 2
    assert estimate == (n + 1) / 2 and high - estimate == estimate - low == pytest.approx(half, abs=1)


def test_too_few_values_have_no_interval_of_the_median():
    assert all(map(math.isnan, median_interval([1, 2, 3, 4, 5])[1:])) and median_interval([1, 2, 3, 4, 5]).value == 3
    assert median_interval([3.0, 1.0], level=0.5) == (2.0, 1.0, 3.0)


@pytest.mark.parametrize("n", [6, 20, 30])
def test_both_hold_the_truth_as_often_as_they_say(rng, n):
    """Of 2,000 samples; the median's also of a skewed distribution."""
    draws = rng.normal(1.0, 3.0, (2000, n))
    skewed = rng.lognormal(0.0, 1.5, (2000, n))
    cases = ((mean_interval, draws, True), (median_interval, draws, False), (median_interval, skewed, False))
    for interval, samples, exact in cases:
        found = np.array([interval(sample)[1:] for sample in samples])
        share = np.mean((found[:, 0] <= 1) & (1 <= found[:, 1]))
        error = 3 * math.sqrt(0.95 * 0.05 / len(samples))
        assert share >= 0.95 - error and (not exact or share <= 0.95 + error)
