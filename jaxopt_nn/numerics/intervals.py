"""Confidence intervals of a mean and of a median, of values that were drawn independently."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """An estimate, and the ends of its confidence interval; the ends are NaN where there are too few values for one."""

    value: float
    low: float
    high: float


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """The mean, and Student's interval ``mean -+ t s / sqrt(n)`` with ``n - 1`` degrees of freedom ("Student" 1908).

    Exact for normal values. Over the folds of a cross-validation it is a little too narrow, since their training sets
    overlap (Bengio and Grandvalet 2004).

    Args:
      values: at least one; of one alone there is no interval.
      level: the share of such intervals that hold the true mean.
    """
    x = np.asarray(values, np.float64)
    mean = float(x.mean())
    if len(x) < 2:
        return Interval(mean, math.nan, math.nan)
    from scipy import special  # loaded here: it would slow down the import of the package

    half = float(special.stdtrit(len(x) - 1, (1 + level) / 2) * x.std(ddof=1) / math.sqrt(len(x)))
    return Interval(mean, mean - half, mean + half)


def median_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """The median, and the interval between two order statistics of the values, whatever their distribution.

    The number of values below the true median is binomial with probability 1/2; the interval from the ``k``-th smallest to the
    ``k``-th largest value misses it with twice the probability of fewer than ``k`` (Conover 1999, section 3.2). The largest
    ``k`` is taken that keeps the level; below 6 values none keeps 95 %.

    Args:
      values: at least one.
      level: the least share of such intervals that hold the true median.
    """
    x = np.sort(np.asarray(values, np.float64))
    n, k, below = len(x), 0, 1  # below: 2**n times the probability of at most k
    while below / 2 ** (n - 1) <= 1 - level:  # a quotient of integers: 2.0**n overflows where n is large
        k += 1
        below += math.comb(n, k)
    low, high = (float(x[k - 1]), float(x[n - k])) if k else (math.nan, math.nan)
    return Interval(float(np.median(x)), low, high)
