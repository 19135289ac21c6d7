"""Arrays of symbols to bytes and back, each by whichever model makes it smallest."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxopt_nn.coding.entropy.reader import Reader, damaged, varint

#: What the low three bits of the first byte say.
MODES = ("raw", "constant", "rans", "huffman", "adaptive")
RAW, CONSTANT, RANS, HUFFMAN, ADAPTIVE = range(5)
#: Alphabets have at most this many symbols.
LARGEST = 1 << 16
#: Unasked: the most symbols that contexts are tried on, that one counter a decision is, and that it is without contexts.
MIXED, PLAIN, FEW = 1 << 22, 1 << 18, 1 << 15
#: What contexts must save to be worth their slow decoding.
WORTH = 0.01


def encode(
    symbols: NDArray[Any],
    alphabet: int,
    *,
    zero: int = 0,
    contexts: bool | None = None,
    mode: str | None = None,
    threads: int | None = None,
) -> bytes:
    """Bytes that ``decode`` turns into the same symbols: the smallest that a model of this package makes.

    Models are packed bits, one symbol alone, interleaved rANS with a table (order 0, fast), canonical Huffman, and adaptive
    binary decisions by contexts (neighbours, densities of rows and columns; some 5 million symbols a second).

    Args:
      symbols: ``[..., rows, columns]`` integers from 0 to ``alphabet - 1``; the last two axes are what contexts look at.
      alphabet: Number of symbols, 1 to 65536.
      zero: The symbol that means 0. Symbols above it are positive, below it negative; contexts ask first whether a symbol
        is this one.
      contexts: Whether contexts are tried. None: on at most 4 million symbols, and kept where they save 1 % or more.
      mode: One of ``raw``, ``constant``, ``rans``, ``huffman``, ``adaptive``; None: the smallest.
      threads: Threads for chunks of rANS; None: one a processor.

    Returns:
      The bytes; none for an empty array. Shape and alphabet are not in them: ``decode`` wants both.

    Raises:
      ValueError: If a symbol lies outside the alphabet, or ``mode`` can't hold the array.
      TypeError: If the symbols are no integers.

    Example:
      >>> codes = np.zeros((100, 50), np.uint8)
      >>> codes[::10, ::7] = 3
      >>> len(jn.entropy.encode(codes, alphabet=16, mode="raw")), len(jn.entropy.encode(codes, alphabet=16)) < 100
      (2501, True)
    """
    array = _checked(symbols, alphabet, zero, mode)
    if array.size == 0:
        return b""
    from jaxopt_nn.coding.entropy import frequencies, huffman, model, packed, static

    flat = np.require(array, requirements=["C", "W"]).reshape(-1)  # numba would compile anew for what can't be written to
    counts = np.zeros(alphabet, np.int64)
    if not frequencies.count(flat, counts):
        raise ValueError(f"symbols: got {int(flat.max())}; allowed are 0 to alphabet - 1 = {alphabet - 1}")
    if alphabet == 1 or (np.count_nonzero(counts) == 1 and mode in (None, "constant")):
        return bytes([CONSTANT]) + varint(int(flat[0]))
    if mode == "constant":
        raise ValueError(f"mode='constant': the array has {np.count_nonzero(counts)} symbols; pass mode=None")
    width, size, best = (alphabet - 1).bit_length(), array.size, b""
    if mode == "huffman":
        return huffman.encode(flat, counts, HUFFMAN)
    if mode in (None, "rans"):
        plan = static.plan(counts)
        if mode == "rans" or plan.size < size * width / 8:
            best = static.encode(flat, plan, RANS, threads)
    if mode == "raw" or (mode is None and not 0 < len(best) <= -(-size * width // 8) + 1):
        bits = np.empty(-(-size * width // 8), np.uint8)
        packed.pack(flat, width, bits)
        best = bytes([RAW]) + bits.tobytes()
    if mode == "adaptive" or (mode is None and size <= (FEW if contexts is False else PLAIN)):
        room = len(best) if best else 4 * size + 64
        best = model.encode(array, alphabet, zero, ADAPTIVE, room, model.Options()) or best
    if contexts or (contexts is None and size <= MIXED and mode in (None, "adaptive")):
        worth = 0.0 if contexts else WORTH
        best = model.search(array, alphabet, zero, ADAPTIVE, int(len(best) * (1 - worth)), worth) or best
    return best


def decode(
    data: bytes | bytearray | memoryview, shape: Sequence[int], alphabet: int, *, threads: int | None = None
) -> NDArray[Any]:
    """The symbols that ``encode`` was given.

    Args:
      data: What ``encode`` returned.
      shape: The shape that it was given.
      alphabet: The alphabet that it was given.
      threads: Threads for chunks of rANS; None: one a processor.

    Returns:
      ``shape``, uint8 where ``alphabet`` is at most 256, uint16 otherwise; every symbol is below ``alphabet``.

    Raises:
      ValueError: If the data is damaged in a way that shows. There is no checksum: other damage gives other symbols.

    Example:
      >>> data = jn.entropy.encode(np.array([[0, 3], [2, 0]]), alphabet=4)
      >>> jn.entropy.decode(data, shape=(2, 2), alphabet=4)
      array([[0, 3],
             [2, 0]], dtype=uint8)
    """
    shape = shape_of(shape)
    size, reader = math.prod(shape), Reader(data)
    out = np.zeros(shape, dtype_of(alphabet))
    if size == 0:
        reader.finish()
        return out
    from jaxopt_nn.coding.entropy import huffman, model, packed, static

    head = reader.byte()
    if head == CONSTANT:
        out[...] = reader.varint(alphabet)
        reader.finish()
    elif head == RAW:
        width = (alphabet - 1).bit_length()
        bits = np.frombuffer(reader.take(-(-size * width // 8)), np.uint8).copy()
        reader.finish()
        if not packed.unpack(bits, width, alphabet, out.reshape(-1)):
            raise damaged("packed bits hold a symbol outside the alphabet")
    elif head == HUFFMAN:
        huffman.decode(reader, alphabet, out.reshape(-1))
    elif head & 7 == RANS:
        static.decode(reader, head, size, alphabet, out.reshape(-1), threads)
    elif head & 7 == ADAPTIVE:
        model.decode(reader, head, out, alphabet)
    else:
        raise damaged(f"its first byte is {head}")
    return out


def dtype_of(alphabet: int) -> Any:
    """The smallest unsigned dtype of symbols."""
    if not 1 <= whole("alphabet", alphabet) <= LARGEST:
        raise ValueError(f"alphabet: got {alphabet}; allowed are 1 to {LARGEST} symbols")
    return np.uint8 if alphabet <= 256 else np.uint16


def whole(name: str, number: Any) -> int:
    """``number`` as an int."""
    try:
        return operator.index(number)
    except TypeError:
        raise TypeError(f"{name}: got {number!r}; pass a whole number") from None


def shape_of(shape: Sequence[int]) -> tuple[int, ...]:
    """``shape`` as a tuple of ints."""
    extents = tuple(whole("shape", extent) for extent in ([shape] if isinstance(shape, int) else shape))
    if min(extents, default=0) < 0:
        raise ValueError(f"shape: got {extents}; allowed are extents of 0 and more")
    return extents


def _checked(symbols: Any, alphabet: int, zero: int, mode: str | None) -> NDArray[Any]:
    """The symbols in the smallest dtype that holds the alphabet, once all arguments make sense."""
    array, dtype = np.asarray(symbols), dtype_of(alphabet)
    if array.dtype.kind not in "bui" and array.size:
        raise TypeError(f"symbols: got {array.dtype}; pass integers from 0 to alphabet - 1 = {alphabet - 1}")
    if not 0 <= whole("zero", zero) < alphabet:
        raise ValueError(f"zero: got {zero}; allowed are the symbols, 0 to alphabet - 1 = {alphabet - 1}")
    if mode is not None and mode not in MODES:
        raise ValueError(f"mode: got {mode!r}; allowed are {', '.join(map(repr, MODES))}, or None for the smallest")
    if array.dtype != dtype and array.size and (int(array.min()) < 0 or int(array.max()) >= alphabet):
        raise ValueError(f"symbols: got {array.min()} to {array.max()}; allowed are 0 to alphabet - 1 = {alphabet - 1}")
    return array.astype(dtype, copy=False)
