"""Exact k-means in one dimension by dynamic programming, on the host in float64.

In an optimal clustering cells are intervals of sorted values, so the least cost of the first ``j`` values in ``q`` cells is
``D_q(j) = min_i D_(q-1)(i) + cost(i, j)`` (Wang & Song 2011). The best ``i`` never falls as ``j`` grows, so a layer is solved
by halving, ``n log n`` costs each (Grønlund et al. 2017); all halves of one depth are solved together, in NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def exact(values: Any, mass: Any = None, *, k: int, origin: bool = False) -> np.ndarray:
    """The centres of least ``sum_n mass_n (value_n - nearest centre)^2``: sorted, float32 ``[k]``, or ``[k - 1]`` without 0.0.

    ``k n log n`` operations and ``8 k n`` bytes for ``n`` different values.

    Args:
      values: ``[n]``, real floats. mass: ``[n]``, at least 0; None: 1 each.
      k: number of centres, 1 or more (2 under ``origin``). Of fewer different values the largest is repeated.
      origin: 0.0 is one of the centres, and values that are zero cost nothing.
    """
    wide = np.asarray(values, np.float64).ravel()
    each = np.ones(wide.shape) if mass is None else np.asarray(mass, np.float64).ravel()
    some = (each > 0) & (wide != 0) if origin else each > 0
    points, places = np.unique(wide[some], return_inverse=True)
    weights = np.bincount(places, each[some], len(points))
    found = _around_zero(points, weights, k - 1) if origin else _centres(points, weights, k)
    free = k - origin
    filled = np.full(free, found[-1] if len(found) else 0.0)
    filled[: len(found)] = np.sort(found)
    return filled.astype(np.float32)


class _Sums:
    """Prefix sums of sorted points about their mean, and the cost of intervals."""

    def __init__(self, points: np.ndarray, weights: np.ndarray) -> None:
        self.shift = float(np.average(points, weights=weights)) if len(points) else 0.0
        moved = points - self.shift
        total = lambda x: np.concatenate([[0.0], np.cumsum(x)])
        self.mass, self.first, self.second = total(weights), total(weights * moved), total(weights * moved**2)

    def cost(self, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """Of the points from ``i`` to ``j - 1`` about their mean."""
        first = self.first[j] - self.first[i]
        return np.maximum(self.second[j] - self.second[i] - first**2 / (self.mass[j] - self.mass[i]), 0.0)

    def mean(self, i: int, j: int) -> float:
        return self.shift + (self.first[j] - self.first[i]) / (self.mass[j] - self.mass[i])


def _layers(sums: _Sums, n: int, k: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """``D_q(j)`` for ``q`` of 0 to ``k`` cells and ``j`` of 0 to ``n`` points, and where the last cell begins."""
    none = np.full(n + 1, np.inf)
    none[0] = 0.0
    least, begins = [none], [np.zeros(n + 1, np.int64)]
    for q in range(1, k + 1):
        best, begin = np.full(n + 1, np.inf), np.zeros(n + 1, np.int64)
        _halve(least[-1], sums, q, n, best, begin)
        least.append(best)
        begins.append(begin)
    return least, begins


def _halve(before: np.ndarray, sums: _Sums, q: int, n: int, best: np.ndarray, begin: np.ndarray) -> None:
    """Fills a layer of ``q`` cells: of each stretch of ends its middle one, then both halves, all stretches at once."""
    low, high = np.array([q]), np.array([n])
    first, last = np.array([q - 1]), np.array([n - 1])
    while len(low):
        middle = (low + high) // 2
        to = np.minimum(last, middle - 1)
        counts = to - first + 1
        starts = np.cumsum(counts) - counts
        own = np.repeat(np.arange(len(middle)), counts)
        i = np.arange(counts.sum()) - starts[own] + first[own]
        costs = before[i] + sums.cost(i, middle[own])
        least = np.minimum.reduceat(costs, starts)
        at = np.minimum.reduceat(np.where(costs == least[own], i, n), starts)
        best[middle], begin[middle] = least, at
        sides = [(low, middle - 1, first, at), (middle + 1, high, at, last)]
        low, high, first, last = (np.concatenate(parts) for parts in zip(*sides))
        some = low <= high
        low, high, first, last = low[some], high[some], first[some], last[some]


def _cut(sums: _Sums, begins: Sequence[np.ndarray], q: int, j: int) -> list[float]:
    """The means of the ``q`` cells of the first ``j`` points."""
    means: list[float] = []
    while q:
        i = int(begins[q][j])
        means.insert(0, sums.mean(i, j))
        q, j = q - 1, i
    return means


def _centres(points: np.ndarray, weights: np.ndarray, k: int) -> list[float]:
    n = len(points)
    if n <= k:
        return list(points)
    sums = _Sums(points, weights)
    _, begins = _layers(sums, n, k)
    return _cut(sums, begins, k, n)


def _around_zero(points: np.ndarray, weights: np.ndarray, k: int) -> list[float]:
    """With a centre at zero beside ``k`` others: points of each sign by themselves, those next to zero going there.

    With ``p`` cells of negative points the cost is ``min_i D_p(i) + sum of w x^2 from i to zero``; so for positive ones, whose
    order is turned.
    """
    if len(points) <= k:
        return list(points)
    below = points < 0
    sides = [_side(points[below], weights[below], k), _side(-points[~below][::-1], weights[~below][::-1], k)]
    costs = [np.array([cost for cost, _ in side]) for side in sides]
    pairs = [(costs[0][p] + costs[1][k - p], p) for p in range(k + 1)]
    p = min(pairs)[1]
    return [*sides[0][p][1], *(-c for c in sides[1][k - p][1])]


def _side(points: np.ndarray, weights: np.ndarray, k: int) -> list[tuple[float, list[float]]]:
    """For each number of cells up to ``k``: the cost of negative points beside a centre at zero, and the centres."""
    n = len(points)
    to_zero = np.concatenate([np.cumsum((weights * points**2)[::-1])[::-1], [0.0]])
    if n == 0:
        return [(0.0, [])] * (k + 1)
    sums = _Sums(points, weights)
    most = min(k, n)
    least, begins = _layers(sums, n, most)
    found = []
    for q in range(k + 1):
        q = min(q, most)
        total = least[q] + to_zero
        j = int(np.argmin(total))
        found.append((float(total[j]), _cut(sums, begins, q, j)))
    return found
