"""Bytes against entropies, and against other coders: constriction, a heap's Huffman code, exact fractions."""

from __future__ import annotations

import collections
import fractions
import heapq
import math

import constriction
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxopt_nn.coding.entropy import adaptive, decode, encode, huffman

FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def order_0(symbols) -> float:
    """Bytes of the order-0 entropy, by its definition."""
    counts = collections.Counter(np.asarray(symbols).reshape(-1).tolist())
    return sum(c * math.log2(symbols.size / c) for c in counts.values()) / 8


def counts_bytes(symbols) -> float:
    """Bytes that tell apart all possible counts of the symbols in use: no code for unknown counts can save them."""
    low, high = int(symbols.min()), int(symbols.max())
    kinds, n = high - low + 1, symbols.size
    return (math.lgamma(n + kinds) - math.lgamma(kinds) - math.lgamma(n + 1)) / math.log(2) / 8


@st.composite
def draws(draw):
    """Independent symbols of some distribution, and their alphabet."""
    alphabet = draw(st.sampled_from([2, 3, 5, 16, 17, 200, 256, 1000, 65536]))
    n = draw(st.sampled_from([1, 10, 100, 3000, 40000]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = draw(st.sampled_from(["dirichlet", "zipf", "bell", "peak"]))
    if shape == "peak":
        weights = np.full(alphabet, draw(st.sampled_from([1e-1, 1e-3, 1e-6])) / alphabet)
        weights[draw(st.integers(0, alphabet - 1))] = 1
    elif shape == "dirichlet":
        weights = rng.gamma(draw(st.sampled_from([0.01, 0.1, 1.0, 10.0])), size=alphabet) + 1e-12
    elif shape == "zipf":
        weights = rng.permutation(1 / np.arange(1, alphabet + 1) ** draw(st.sampled_from([0.5, 1.0, 2.0])))
    else:
        weights = np.exp(-(((np.arange(alphabet) - alphabet / 2) / (alphabet * 0.15 + 0.3)) ** 2) / 2)
    return rng.choice(alphabet, n, p=weights / weights.sum()), alphabet


@FEW
@given(draws())
def test_at_most_half_a_percent_and_64_bytes_over_the_entropy(case):
    """Where the counts themselves weigh more than that (many symbols, few draws), they are added."""
    symbols, alphabet = case
    allowed = 1.005 * order_0(symbols) + 64
    few = alphabet <= 17
    assert len(encode(symbols, alphabet)) <= allowed + (0 if few else counts_bytes(symbols))


@pytest.mark.parametrize("n", [100, 300, 1000, 5000])
@pytest.mark.parametrize("used", [2, 5, 16])
def test_small_arrays_cost_what_learning_costs(n, used):
    """Half the logarithm of n for each free probability (Rissanen), and four bytes."""
    symbols = np.random.default_rng(n).choice(used, n, p=np.arange(1, used + 1) / sum(range(used + 1)))
    assert len(encode(symbols, 16)) <= order_0(symbols) + (used - 1) * math.log2(n) / 16 + 4


def pruned(rows=400, columns=200, seed=0):
    """Codes of a pruned matrix: rows and columns differ in density, half of the rows are empty."""
    rng = np.random.default_rng(seed)
    density = np.where(rng.random(rows) < 0.5, 0, rng.gamma(2.0, size=rows))[:, None] * rng.gamma(2.0, size=columns) / 2
    dense = rng.random((rows, columns)) < 0.03 * density
    return np.where(dense, rng.choice([6, 7, 9, 10], (rows, columns)), 8).astype(np.uint8)


@pytest.mark.parametrize("turn", [False, True])
def test_contexts_beat_the_entropy_of_a_pruned_matrix(turn):
    codes = pruned().T if turn else pruned()
    data = encode(codes, 16, zero=8)
    assert len(data) < 0.9 * order_0(codes)
    assert len(data) < 0.92 * len(encode(codes, 16, zero=8, contexts=False))
    np.testing.assert_array_equal(decode(data, codes.shape, 16), codes)


def test_contexts_are_left_where_they_save_less_than_a_percent():
    codes = np.random.default_rng(0).integers(0, 7, (300, 100))
    assert encode(codes, 7) == encode(codes, 7, contexts=False)


@pytest.mark.parametrize("peaked", [False, True])
def test_as_small_as_constriction_on_the_same_model(peaked):
    rng = np.random.default_rng(0)
    weights = np.array([1, 2, 5, 20, 60, 20, 5, 2]) if peaked else np.array([7, 8, 9, 10, 9, 8, 7, 6])
    symbols = rng.choice(8, 200_000, p=weights / weights.sum()).astype(np.int32)
    frequencies = np.bincount(symbols, minlength=8) / symbols.size
    model = constriction.stream.model.Categorical(frequencies, perfect=False)
    coder = constriction.stream.queue.RangeEncoder()
    coder.encode(symbols, model)
    stack = constriction.stream.stack.AnsCoder()
    stack.encode_reverse(symbols, model)
    ours = len(encode(symbols, 8, mode="rans"))
    assert ours <= 1.002 * min(4 * len(coder.get_compressed()), 4 * len(stack.get_compressed()))


@FEW
@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=300).filter(any))
def test_huffman_lengths_cost_what_a_heap_says(counts):
    lengths = huffman.lengths(np.array(counts))
    heap = [c for c in counts if c]
    heapq.heapify(heap)
    total = heap[0] if len(heap) == 1 else 0
    while len(heap) > 1:
        joined = heapq.heappop(heap) + heapq.heappop(heap)
        total += joined
        heapq.heappush(heap, joined)
    assert sum(c * int(bits) for c, bits in zip(counts, lengths)) == total
    assert [bits > 0 for bits in lengths] == [c > 0 for c in counts]


def test_huffman_lengths_are_limited():
    fibonacci = [1, 1]
    while len(fibonacci) < 40:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    lengths = huffman.lengths(np.array(fibonacci))
    assert 16 < lengths.max() <= huffman.LONGEST and sum(2.0 ** -int(bits) for bits in lengths) == 1


def coded(decisions) -> bytes:
    """The range coder's bytes of ``(probability of a one in 1/65536, decision)``."""
    coder, data = np.zeros(3, np.int64), np.zeros(64, np.uint8)
    adaptive.begin(coder, data, False)
    for one, bit in decisions:
        adaptive.code_bit(coder, data, one, bit, False)
    return data[: adaptive.finish(coder, data)].tobytes()


def test_even_odds_write_the_decisions_themselves():
    """A one takes the lower half: eight decisions at one half are a byte of their complements."""
    assert coded([(32768, int(bit)) for bit in "1011001010010110"]) == bytes([0b01001101, 0b01101001])


@FEW
@given(st.lists(st.tuples(st.integers(1, 15), st.integers(0, 1)), max_size=8))
def test_a_few_decisions_name_the_shortest_number_of_their_interval(decisions):
    """Exact fractions: a one takes the lower part of the interval."""
    low, width = fractions.Fraction(0), fractions.Fraction(1)
    for one, bit in decisions:
        part = width * fractions.Fraction(one, 16)
        low, width = (low, part) if bit else (low + part, width - part)
    data = coded([(one << 12, bit) for one, bit in decisions])
    number = fractions.Fraction(int.from_bytes(data, "big"), 256 ** len(data))
    assert low <= number < low + width
    shorter = math.ceil(low * 256 ** (len(data) - 1)) if data else 0
    assert not data or fractions.Fraction(shorter, 256 ** (len(data) - 1)) >= low + width
