"""From the arrays of a tree to streams of bytes and back: which arrays share a stream, chunks, symbols. Host code."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxopt_nn.coding import entropy
from jaxopt_nn.coding.nodes import Entry
from jaxopt_nn.numerics import packing
from jaxopt_nn.tensors.packed import Packed

#: Symbols of a chunk, about: what a large array is coded in, so that memory is bounded and chunks are coded in parallel.
CHUNK = 2**22
#: An array of numbers with at most so many shares a stream with its like, and the stream ends once it has ``POOLED``.
SMALL, POOLED = 4096, 2**16
#: Numbers, at most, on which contexts are tried unasked: the lower bits of floats are noise to them.
NUMBERS = 2**14
#: Widths of the integers that are symbols as they are; other dtypes of one byte are symbols by their bytes.
_WIDTHS = {"bool": 1, "int2": 2, "uint2": 2, "int4": 4, "uint4": 4, "int8": 8, "uint8": 8}

Region = tuple[slice, ...]


class Stream(NamedTuple):
    """What a frame holds.

    Attributes:
      entries: numbers of the arrays: one, or those that share it.
      at: which part of the array, by axis; None where it holds arrays whole, end to end.
      symbols: shape of the symbols of that part; of shared arrays, their numbers.
    """

    entries: tuple[int, ...]
    at: Region | None
    symbols: tuple[int, ...]


def is_small(entry: Entry) -> bool:
    """Whether an array shares a stream with others of its dtype."""
    return entry.packed is None and entry.dtype.itemsize > 1 and math.prod(entry.shape) <= SMALL


def streams(entries: Sequence[Entry], chunk: int = CHUNK) -> Iterator[Stream]:
    """The streams of a file in their order. Arrays without entries, or equal to earlier ones, have none."""
    pools: dict[str, list[int]] = {}
    sizes: dict[str, int] = {}

    def pool(name: str) -> Stream:
        return Stream(tuple(pools.pop(name)), None, (sizes.pop(name),))

    for i, entry in enumerate(entries):
        if entry.same is not None or 0 in entry.shape:
            continue
        if not is_small(entry):
            yield from (Stream((i,), *part) for part in parts(entry.shape, entry.packed, chunk))
            continue
        name = entry.dtype.name
        pools.setdefault(name, []).append(i)
        sizes[name] = sizes.get(name, 0) + math.prod(entry.shape)
        if sizes[name] >= POOLED:
            yield pool(name)
    while pools:
        yield pool(next(iter(pools)))


def parts(shape: Sequence[int], packed: Packed | None, chunk: int) -> Iterator[tuple[Region, tuple[int, ...]]]:
    """The chunks of an array: which part of it, and the shape of that part's symbols.

    Runs of the first axis of which ``chunk`` symbols hold an entry or more, but never of one behind the packed axis, which is
    split at multiples of 8 entries, where bytes end.
    """
    last = None if packed is None else packed.axis
    wide = unpacked_shape(shape, packed) or (1,)
    axis = next(a for a in range(len(wide)) if a in (last, len(wide) - 1) or math.prod(wide[a + 1 :]) <= chunk)
    inner = math.prod(wide[axis + 1 :])
    run = max(1, chunk // inner)
    run = -(-run // 8) * 8 if axis == last else run
    for outer in np.ndindex(*wide[:axis]):
        for start in range(0, wide[axis], run):
            stop = min(start + run, wide[axis])
            own = slice(start, stop)
            if packed is not None and axis == last:
                each = math.prod(packed.lengths[1:]) * packed.bits
                own = slice(start * each // 8, -(-stop * each // 8))
            region = (*(slice(i, i + 1) for i in outer), own, *(slice(0, n) for n in shape[axis + 1 :]))
            yield region[: len(shape)], (stop - start, *wide[axis + 1 :])


def unpacked_shape(shape: Sequence[int], packed: Packed | None) -> tuple[int, ...]:
    """The shape of an array's symbols."""
    if packed is None:
        return tuple(shape)
    return (*shape[: packed.axis], *packed.lengths, *shape[packed.axis + 1 :])


def padding_is_zero(array: np.ndarray, packed: Packed) -> bool:
    """Whether the bits behind the last code along the packed axis are 0, as packing leaves them."""
    used = math.prod(packed.lengths) * packed.bits % 8
    if not used or not array.size:
        return True
    last = array.take(-1, axis=packed.axis)
    return not (last >> np.uint8(used)).any()


def encoded(part: np.ndarray, packed: Packed | None, symbols: Sequence[int], contexts: bool | None = None) -> bytes:
    """A part of an array as a frame holds it."""
    if packed is not None:
        codes = packing.unpack_bits_on_host(part, packed.bits, _codes_along(part.shape, packed, symbols), packed.axis)
        return entropy.encode(codes.reshape(symbols), 2**packed.bits, zero=packed.zero or 0, contexts=contexts, threads=1)
    if part.dtype.itemsize == 1:
        width, half = _width(part.dtype)
        codes = np.ascontiguousarray(part).view(np.uint8) if half is None else (part.astype(np.int16) + half).astype(np.uint8)
        return entropy.encode(codes.reshape(symbols), 2**width, zero=int(half or 0), contexts=contexts, threads=1)
    contexts = False if contexts is None and part.size > NUMBERS else contexts
    return entropy.encode_array(part.reshape(symbols), contexts=contexts, threads=1)


def decoded(data: bytes, shape: Sequence[int], dtype: np.dtype, packed: Packed | None, symbols: Sequence[int]) -> np.ndarray:
    """The part of an array, of ``shape``, that ``encoded`` wrote.

    Raises:
      ValueError: the data don't hold it.
    """
    if packed is not None:
        n = _codes_along(shape, packed, symbols)
        codes = entropy.decode(data, tuple(symbols), 2**packed.bits, threads=1)
        flat = codes.reshape(*shape[: packed.axis], n, *shape[packed.axis + 1 :])
        return packing.pack_bits_on_host(flat, packed.bits, packed.axis)
    if dtype.itemsize == 1:
        width, half = _width(dtype)
        codes = entropy.decode(data, tuple(symbols), 2**width, threads=1).reshape(shape)
        return codes.view(dtype) if half is None else (codes.astype(np.int16) - half).astype(dtype)
    return entropy.decode_array(data, tuple(symbols), dtype, threads=1).reshape(shape)


def _codes_along(shape: Sequence[int], packed: Packed, symbols: Sequence[int]) -> int:
    """How many codes a part holds along the packed axis."""
    return math.prod(symbols) // math.prod(n for a, n in enumerate(shape) if a != packed.axis)


def _width(dtype: np.dtype) -> tuple[int, np.int16 | None]:
    """Bits of a symbol, and what is added to a number to make it one; None: its byte is the symbol."""
    width = _WIDTHS.get(dtype.name, 8)
    if not dtype.name.startswith(("int", "bool", "uint")):
        return width, None
    return width, np.int16(2 ** (width - 1) if dtype.name.startswith("int") else 0)
