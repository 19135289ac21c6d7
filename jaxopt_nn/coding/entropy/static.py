"""Interleaved rANS with one table of frequencies: what an array will cost is known before anything is written."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxopt_nn.coding.entropy import frequencies, rans
from jaxopt_nn.coding.entropy.reader import Reader, damaged, varint

#: The coded bytes from which chunks have several lanes.
SEVERAL_LANES = 1 << 13
#: Bits of a chunk's length, and the coded bytes that it has at least where the array is long enough.
CHUNKS, CHUNK_BYTES = range(16, 23), 1 << 16
#: Bits of the frequencies' sum: up to 16 with states of 32 bits, 24 with states of 64.
SUMS = (8, 10, 12, 14, 16, 24)
#: By how much smaller an array must be to be worth the slower decoding of a longer sum.
SLOWER = {8: 0.0, 10: 0.0, 12: 0.0, 14: 0.0005, 16: 0.0005, 24: 0.0015}


class Plan(NamedTuple):
    """How an array will be written, and in about how many bytes.

    The frequencies are those of the symbols ``first``, ``first + 1``, ... and add up to ``2**bits``.
    """

    size: float
    bits: int
    precision: int
    first: int
    table: bytes
    frequencies: NDArray[np.int64]


def plan(counts: NDArray[np.int64]) -> Plan:
    """The cheapest table for ``counts`` [alphabet], not all zero, and how precise its frequencies are."""
    used = np.flatnonzero(counts)
    first, counts = int(used[0]), counts[used[0] : used[-1] + 1]
    plans: list[Plan] = []
    for precision in range(len(frequencies.PRECISIONS)):
        table, kept = frequencies.written(counts, precision)
        tried = [_plan(counts, bits, precision, first, table, kept) for bits in SUMS if len(used) <= 1 << bits]
        plans += tried
    return min(plans, key=lambda p: p.size * (1 + SLOWER[p.bits]))


def _plan(
    counts: NDArray[np.int64], bits: int, precision: int, first: int, table: bytes, kept: NDArray[np.int64]
) -> Plan:
    scaled = frequencies.scaled(kept, bits)
    some = counts > 0
    payload = float((counts[some] * (bits - np.log2(scaled[some]))).sum()) / 8
    head = 2 + len(varint(first)) + len(varint(len(counts) - 1)) + len(varint(len(table)))
    return Plan(head + len(table) + payload + (8 if bits > 16 else 4), bits, precision, first, table, scaled)


def encode(symbols: NDArray[Any], plan: Plan, mode: int, threads: int | None) -> bytes:
    """``symbols`` [n] uint8 or uint16 as the plan has it."""
    lanes = rans.LANES if plan.size >= SEVERAL_LANES else 1
    length = next((c for c in CHUNKS if plan.size / len(symbols) * (1 << c) >= CHUNK_BYTES), CHUNKS[-1])
    size = len(plan.frequencies)
    table = np.concatenate([np.zeros(plan.first, np.int64), plan.frequencies])
    starts = np.cumsum(table) - table
    wide = plan.bits > 16
    code = rans.encode_wide if wide else rans.encode_lanes
    dtypes = (np.uint64, np.uint64, np.uint32, np.uint64) if wide else (np.uint32, np.uint32, np.uint16, np.uint32)
    frequency, start = table.astype(dtypes[0]), starts.astype(dtypes[1])

    def coded(chunk: NDArray[Any]) -> bytes:
        words, states = np.empty(len(chunk) + 1, dtypes[2]), np.empty(lanes, np.uint64)
        at = code(chunk, frequency, start, plan.bits, words, states)
        return states.astype(_little(dtypes[3])).tobytes() + words[at:].astype(_little(dtypes[2])).tobytes()

    chunks = list(_each(coded, list(_chunks(symbols, 1 << length)), threads))
    head = bytes([mode | (lanes > 1) << 3 | plan.precision << 4, plan.bits | (length - CHUNKS[0]) << 5])
    head += varint(plan.first) + varint(size - 1) + varint(len(plan.table)) + plan.table
    return b"".join([head, *(varint(len(c)) for c in chunks[:-1]), *chunks])


def decode(reader: Reader, mode: int, n: int, alphabet: int, out: NDArray[Any], threads: int | None) -> None:
    """Fills ``out`` [n]."""
    lanes, precision = rans.LANES if mode & 8 else 1, mode >> 4
    packed = reader.byte()
    bits, length = packed & 31, 1 << (CHUNKS[0] + (packed >> 5))
    if bits not in SUMS or precision >= len(frequencies.PRECISIONS):
        raise damaged(f"frequencies of {bits} bits, precision {precision}")
    first = reader.varint(alphabet)
    size = reader.varint(alphabet - first) + 1
    counts = frequencies.read(reader.take(reader.varint(1 << 20)), size, precision)
    used = np.flatnonzero(counts)
    if len(used) > 1 << bits:
        raise damaged(f"{len(used)} symbols have a frequency, {1 << bits} can")
    table = np.concatenate([np.zeros(first, np.int64), frequencies.scaled(counts, bits)])
    pieces = -(-n // length)
    sizes = [reader.varint(1 << 40) for _ in range(pieces - 1)]
    parts = [reader.take(size) for size in sizes]
    parts.append(reader.rest())
    take = _taker(table, bits, lanes, out.dtype)
    good = _each(take, list(zip(parts, _chunks(out, length), strict=True)), threads)
    if not all(list(good)):
        raise damaged("the words of a chunk do not end where its symbols do")


def _taker(table: NDArray[np.int64], bits: int, lanes: int, dtype: Any) -> Callable[[Any], bool]:
    """What decodes one chunk: ``(bytes, out) -> whether it ends as it should``."""
    wide = bits > 16
    word, state = (np.uint32, np.uint64) if wide else (np.uint16, np.uint32)
    if wide:
        starts = np.concatenate([[0], np.cumsum(table)])
        buckets = np.searchsorted(starts[1:], np.arange(1 << 16) << (bits - 16), side="right").astype(np.uint16)
        tables: tuple[Any, ...] = (starts.astype(np.uint64), buckets)
    else:
        symbol_of, step_of = np.empty(1 << bits, dtype), np.empty(1 << bits, np.uint32)
        rans.slot_tables(table, symbol_of, step_of)
        tables = (symbol_of, step_of)

    def take(piece: tuple[memoryview, NDArray[Any]]) -> bool:
        data, out = piece
        head = lanes * np.dtype(state).itemsize
        if len(data) < head or (len(data) - head) % np.dtype(word).itemsize:
            return False
        states = np.frombuffer(data[:head], _little(state)).astype(np.uint64)
        words = np.frombuffer(data[head:], _little(word)).astype(word)
        return (rans.decode_wide if wide else rans.decode_lanes)(words, states, *tables, bits, out)

    return take


def _little(dtype: Any) -> np.dtype:
    return np.dtype(dtype).newbyteorder("<")


def _chunks(array: NDArray[Any], length: int) -> Iterator[NDArray[Any]]:
    return (array[i : i + length] for i in range(0, len(array), length))


def _each(function: Callable[[Any], Any], items: list[Any], threads: int | None) -> Iterator[Any]:
    """``function`` of each item, in order, by that many threads: one a processor by default."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(threads or processors, len(items))
    if workers < 2:
        return map(function, items)
    with ThreadPoolExecutor(workers) as pool:
        return iter(list(pool.map(function, items)))
