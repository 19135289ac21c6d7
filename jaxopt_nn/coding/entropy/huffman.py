"""Canonical Huffman codes (Huffman 1952), as Deep Compression has them: lengths, tables and the bits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxopt_nn.coding.entropy import frequencies
from jaxopt_nn.coding.entropy.compiled import compiled
from jaxopt_nn.coding.entropy.reader import Reader, damaged, varint

#: The longest code, and the bits that the decoder looks up at once.
LONGEST, LOOKED_UP = 24, 11
#: Lengths are written whole.
EXACT = len(frequencies.PRECISIONS) - 1


@compiled
def merge(counts, parents):
    """Joins the two rarest trees until one is left; ``counts`` [2 n - 1] begins with n leaves, rarest first."""
    n = (len(counts) + 1) // 2
    leaf, tree = 0, n
    for new in range(n, 2 * n - 1):
        for _ in range(2):
            if leaf < n and (tree >= new or counts[leaf] <= counts[tree]):
                pick = leaf
                leaf += 1
            else:
                pick = tree
                tree += 1
            counts[new] += counts[pick]
            parents[pick] = new


def lengths(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bits of each symbol's code, 0 where its count is 0; at most 24, for which counts are halved as often as it takes.

    Example:
      >>> from jaxopt_nn.coding.entropy import huffman
      >>> huffman.lengths(np.array([5, 2, 1, 1, 0])).tolist()
      [1, 2, 3, 3, 0]
    """
    counts = np.array(counts, np.int64)
    used = np.flatnonzero(counts)
    out = np.zeros(len(counts), np.int64)
    if len(used) == 1:
        out[used] = 1
        return out
    while True:
        order = used[np.argsort(counts[used], kind="stable")]
        nodes = np.zeros(2 * len(order) - 1, np.int64)
        nodes[: len(order)] = counts[order]
        parents, depths = np.zeros_like(nodes), np.zeros_like(nodes)
        merge(nodes, parents)
        descend(parents, depths)
        out[order] = depths[: len(order)]
        if out.max() <= LONGEST:
            return out
        counts[used] = (counts[used] + 1) // 2


@compiled
def descend(parents, depths):
    """The depth of each node, the root last and at 0."""
    for i in range(len(parents) - 2, -1, -1):
        depths[i] = depths[parents[i]] + 1


@compiled
def write(symbols, codes, bits, out):
    """Fills ``out`` with the codes, the first bit highest; returns the bytes, the last one's free bits zero."""
    held, kept, at = 0, 0, 0
    for i in range(len(symbols)):
        symbol = symbols[i]
        held = held << bits[symbol] | codes[symbol]
        kept += bits[symbol]
        while kept >= 8:
            kept -= 8
            out[at] = held >> kept
            held &= (1 << kept) - 1
            at += 1
    if kept:
        out[at] = held << (8 - kept)
        at += 1
    return at


@compiled
def read(data, bits, order, first_codes, first_places, lookup, out):
    """Fills ``out`` [n]; False where no code fits, the data ends early, or bytes or bits are left.

    ``order``: the symbols by length, then by number; of length ``l`` the first has the code ``first_codes[l]`` and the place
    ``first_places[l]``. ``lookup`` [2^11]: ``symbol << 5 | length`` of short codes, else 0.
    """
    held, kept, at, used = np.int64(0), 0, 0, 0
    for i in range(len(out)):
        while kept < LONGEST:
            held = (held << 8) & 0xFFFFFFFFFF
            if at < len(data):
                held |= np.int64(data[at])
            kept += 8
            at += 1
        quick = lookup[(held >> (kept - LOOKED_UP)) & ((1 << LOOKED_UP) - 1)]
        length = quick & 31
        if length:
            out[i] = quick >> 5
        else:
            length = 1
            while True:
                code = (held >> (kept - length)) & ((1 << length) - 1)
                number = first_places[length + 1] - first_places[length]
                if 0 <= code - first_codes[length] < number:
                    out[i] = order[first_places[length] + code - first_codes[length]]
                    break
                length += 1
                if length > LONGEST:
                    return False
        kept -= length
        used += length
        if used > 8 * len(data):
            return False
    spare = 8 * len(data) - used
    return spare < 8 and (spare == 0 or (np.int64(data[len(data) - 1]) & ((1 << spare) - 1)) == 0)


def canonical(bits: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Symbols by length and number; the first code and the first place of each length, 0 to 25.

    Raises:
      ValueError: If the lengths are not those of a whole tree.
    """
    numbers = np.bincount(np.minimum(bits, LONGEST + 1), minlength=LONGEST + 2)
    numbers[0] = 0
    whole = sum(int(n) << (LONGEST - length) for length, n in enumerate(numbers[:-1]))
    if numbers[-1] or whole != 1 << (LONGEST - (int(numbers.sum()) == 1)):
        raise damaged("the lengths of Huffman codes don't make a tree")
    codes = np.zeros(LONGEST + 2, np.int64)
    for length in range(1, LONGEST + 2):
        codes[length] = (codes[length - 1] + numbers[length - 1]) << 1
    used = np.flatnonzero(bits)
    return used[np.argsort(bits[used], kind="stable")], codes, np.concatenate([[0], np.cumsum(numbers)[:-1]])


def encode(symbols: NDArray[Any], counts: NDArray[np.int64], mode: int) -> bytes:
    """``symbols`` [n] whose ``counts`` [alphabet] these are."""
    bits = lengths(counts)
    used = np.flatnonzero(bits)
    first, last = int(used[0]), int(used[-1])
    table, _ = frequencies.written(bits[first : last + 1], EXACT)
    order, codes, places = canonical(bits)
    code_of = np.zeros(len(bits), np.int64)
    ranks = np.arange(len(order))
    code_of[order] = codes[bits[order]] + ranks - places[bits[order]]
    out = np.empty(int((counts * bits).sum() + 7) // 8, np.uint8)
    write(symbols, code_of, bits, out)
    head = bytes([mode]) + varint(first) + varint(last - first) + varint(len(table)) + table
    return head + out.tobytes()


def decode(reader: Reader, alphabet: int, out: NDArray[Any]) -> None:
    """Fills ``out`` [n]."""
    first = reader.varint(alphabet)
    size = reader.varint(alphabet - first) + 1
    bits = np.zeros(first + size, np.int64)
    bits[first:] = frequencies.read(reader.take(reader.varint(1 << 20)), size, EXACT)
    order, codes, places = canonical(bits)
    lookup = np.zeros(1 << LOOKED_UP, np.int64)
    for rank, symbol in enumerate(order[: places[LOOKED_UP + 1]]):
        length = int(bits[symbol])
        code = (int(codes[length]) + rank - int(places[length])) << (LOOKED_UP - length)
        lookup[code : code + (1 << (LOOKED_UP - length))] = symbol << 5 | length
    data = np.frombuffer(reader.rest(), np.uint8).copy()
    if not read(data, bits, order, codes, places, lookup, out):
        raise damaged("the Huffman codes do not end where the symbols do")
