"""Counts of symbols as a short table, and as frequencies that add up to a power of two: compiled loops in integers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxopt_nn.coding.entropy.adaptive import code_counts, logistic
from jaxopt_nn.coding.entropy.compiled import compiled
from jaxopt_nn.coding.entropy.reader import damaged

#: Bits after the first that a count may keep.
PRECISIONS = (0, 1, 2, 3, 4, 5, 7, 10, 15)


@compiled
def count(symbols, counts):
    """Adds the occurrences of ``symbols`` [n] to ``counts`` [alphabet] int64; False if one lies outside."""
    size = len(counts)
    four = np.zeros((4, size), np.int64)
    n = len(symbols)
    for i in range(0, n - n % 4, 4):
        for j in range(4):
            symbol = np.int64(symbols[i + j])
            if symbol >= size:
                return False
            four[j, symbol] += 1
    for i in range(n - n % 4, n):
        symbol = np.int64(symbols[i])
        if symbol >= size:
            return False
        four[0, symbol] += 1
    for i in range(size):
        counts[i] += four[0, i] + four[1, i] + four[2, i] + four[3, i]
    return True


@compiled
def scale(weights, order, total, bits, frequencies):
    """Fills ``frequencies`` [n]: about ``weights / total * 2^bits``, at least 1 where a weight is not 0, of sum 2^bits.

    ``order`` [n] sorts the weights, largest first, equal ones as they come: what is over or short is spread one by one
    in this order, in as many rounds as it takes.
    """
    short = 1 << bits
    for i in range(len(weights)):
        frequencies[i] = 0
        if weights[i]:
            frequencies[i] = max(((weights[i] << (bits + 1)) + total) // (2 * total), 1)
        short -= frequencies[i]
    while short != 0:
        for i in order:
            if short > 0 and frequencies[i] > 0:
                frequencies[i] += 1
                short -= 1
            elif short < 0 and frequencies[i] > 1:
                frequencies[i] -= 1
                short += 1
            else:
                break


def scaled(weights: NDArray[np.int64], bits: int) -> NDArray[np.int64]:
    """Frequencies of sum ``2**bits`` for ``weights`` [n], not all zero and at most ``2**bits`` of them not zero."""
    weights = weights >> max(int(weights.max()).bit_length() - 36, 0) | (weights > 0)
    frequencies = np.empty_like(weights)
    scale(weights, np.argsort(-weights, kind="stable"), int(weights.sum()), bits, frequencies)
    return frequencies


def written(counts: NDArray[np.int64], precision: int) -> tuple[bytes, NDArray[np.int64]]:
    """The table of ``counts`` [n] with ``precision`` bits after the first, and the counts as the table has them."""
    kept = counts.copy()
    room = np.empty(8 * len(counts) + 64, np.uint8)
    length = code_counts(kept, precision, room, False, logistic()[2])
    return room[:length].tobytes(), kept


def read(table: Any, size: int, precision: int) -> NDArray[np.int64]:
    """The ``size`` counts of a table; ValueError if it is damaged."""
    counts = np.zeros(size, np.int64)
    data = np.frombuffer(table, np.uint8).copy()
    looked_at = code_counts(counts, precision, data, True, logistic()[2])
    if looked_at < len(data) or not counts.any():
        raise damaged("the table of frequencies does not fit its length")
    return counts
