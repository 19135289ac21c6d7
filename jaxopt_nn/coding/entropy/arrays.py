"""Arrays of numbers to bytes and back, to the bit: byte planes, or a table of the values and their codes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from jaxopt_nn.coding.entropy.codec import decode, encode, shape_of
from jaxopt_nn.coding.entropy.reader import Reader, damaged, varint

#: What the first byte says.
PLAIN, PLANES, TABLE = range(3)
#: A table has at most this many values.
VALUES = 256


def encode_array(array: Any, *, contexts: bool | None = None, threads: int | None = None) -> bytes:
    """Bytes that ``decode_array`` turns into the same array, to the bit (NaNs and negative zeros too).

    The bits of each number are turned so that its exponent fills a byte (floats: sign last; signed integers: sign last,
    small numbers small), and each byte of the numbers is coded by itself; or the values are few, and their codes are.
    Whatever does not shrink is copied.

    Args:
      array: Any shape; booleans, integers, floats or complex numbers of any width, those of ``ml_dtypes`` too.
      contexts: As in ``encode``.
      threads: As in ``encode``.

    Returns:
      The bytes; none for an empty array. Shape and dtype are not in them.

    Raises:
      TypeError: If the array holds objects, strings or dates.

    Example:
      >>> scales = np.full((100, 1), 0.25, np.float32)
      >>> len(jn.entropy.encode_array(scales)), scales.nbytes
      (8, 400)
    """
    array = np.asarray(array)
    kind, unsigned = _form(array.dtype)
    if array.size == 0:
        return b""
    bits = _bits(array, unsigned)
    best = bytes([PLAIN]) + bits.astype(unsigned.newbyteorder("<"), copy=False).tobytes()
    turned = _turned(bits, kind)
    tried = [_planes(turned, kind, contexts, threads)]
    values = np.unique(turned.reshape(-1)[: 1 << 16])
    if turned.dtype.itemsize > 1 and len(values) <= min(VALUES, array.size // 2):
        values = np.unique(turned)
        if len(values) <= VALUES:
            tried.append(_table(turned, values, contexts, threads))
    return min([best, *tried], key=len)


def decode_array(
    data: bytes | bytearray | memoryview, shape: Sequence[int], dtype: Any, *, threads: int | None = None
) -> NDArray[Any]:
    """The array that ``encode_array`` was given.

    Args:
      data: What ``encode_array`` returned.
      shape: The shape that it was given.
      dtype: The dtype that it was given.
      threads: As in ``decode``.

    Returns:
      ``shape`` of ``dtype``.

    Raises:
      ValueError: If the data is damaged in a way that shows.

    Example:
      >>> numbers = np.array([-1.5, 0.0, np.inf], np.float16)
      >>> jn.entropy.decode_array(jn.entropy.encode_array(numbers), numbers.shape, numbers.dtype)
      array([-1.5,  0. ,  inf], dtype=float16)
    """
    dtype, shape, reader = np.dtype(dtype), shape_of(shape), Reader(data)
    kind, unsigned = _form(dtype)
    if math.prod(shape) == 0:
        reader.finish()
        return np.zeros(shape, dtype)
    cells = (*shape, 2) if dtype.kind == "c" else shape
    alphabet, head = 2 if kind == "b" else 256, reader.byte()
    if head == PLAIN:
        raw = reader.take(math.prod(cells) * unsigned.itemsize)
        reader.finish()
        bits = np.frombuffer(raw, unsigned.newbyteorder("<")).astype(unsigned).reshape(cells)
        if kind == "b" and int(bits.max()) > 1:
            raise damaged("a boolean is neither 0 nor 1")
        return _numbers(bits, dtype, shape)
    if head == PLANES:
        turned = np.zeros(cells, unsigned)
        for plane in range(unsigned.itemsize - 1, -1, -1):
            part = reader.take(reader.varint(1 << 40)) if plane else reader.rest()
            turned |= decode(part, cells, alphabet, threads=threads).astype(unsigned) << unsigned.type(8 * plane)
    elif head == TABLE and kind != "b":
        count = reader.byte() + 1
        values = np.frombuffer(reader.take(count * unsigned.itemsize), unsigned.newbyteorder("<")).astype(unsigned)
        turned = values[decode(reader.rest(), cells, count, threads=threads)]
    else:
        raise damaged(f"an array's first byte is {head}")
    return _numbers(_returned(turned, kind), dtype, shape)


def _planes(turned: NDArray[Any], kind: str, contexts: bool | None, threads: int | None) -> bytes:
    """The high byte of all numbers, then the next one, ...; each by the best model of its own."""
    out = [bytes([PLANES])]
    for plane in range(turned.dtype.itemsize - 1, -1, -1):
        part = (turned >> turned.dtype.type(8 * plane)).astype(np.uint8)
        zero = 0 if kind == "b" else int(np.bincount(part.reshape(-1)).argmax())
        data = encode(part, 2 if kind == "b" else 256, zero=zero, contexts=contexts, threads=threads)
        out += [varint(len(data)), data] if plane else [data]
    return b"".join(out)


def _table(turned: NDArray[Any], values: NDArray[Any], contexts: bool | None, threads: int | None) -> bytes:
    """How many values less one, the values in order, and which of them each number is; the commonest is the zero."""
    codes = np.searchsorted(values, turned)
    zero = int(np.bincount(codes.reshape(-1)).argmax())
    data = encode(codes, len(values), zero=zero, contexts=contexts, threads=threads)
    return bytes([TABLE, len(values) - 1]) + values.astype(values.dtype.newbyteorder("<")).tobytes() + data


def _form(dtype: np.dtype) -> tuple[str, np.dtype]:
    """How a number's bits are turned (f, i, u, b), and the unsigned dtype that holds them."""
    known = dtype.kind in "biufc" or (dtype.kind == "V" and hasattr(ml_dtypes, dtype.name))
    if not known or dtype.itemsize // (2 if dtype.kind == "c" else 1) > 8:
        raise TypeError(f"array: got dtype {dtype}; pass booleans, integers, floats or complex numbers of up to 64 bits")
    if dtype.kind == "c":
        return "f", np.dtype(f"u{dtype.itemsize // 2}")
    kind = dtype.kind if dtype.kind != "V" else {"i": "i", "u": "u"}.get(dtype.name[0], "f")
    return kind, np.dtype(f"u{dtype.itemsize}")


def _bits(array: NDArray[Any], unsigned: np.dtype) -> NDArray[Any]:
    """Each number's bits; a complex one is a pair on a last axis, a short integer is widened to a byte."""
    if array.dtype.kind == "V" and array.dtype.name[0] in "iu":
        array = array.astype(np.int8 if array.dtype.name[0] == "i" else np.uint8)
    array = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="), copy=False))
    pairs = array.dtype.kind == "c"
    return array.reshape(*array.shape, 1).view(unsigned) if pairs else array.view(unsigned)


def _numbers(bits: NDArray[Any], dtype: np.dtype, shape: tuple[int, ...]) -> NDArray[Any]:
    """What ``_bits`` was given."""
    if dtype.kind == "V" and dtype.name[0] in "iu":
        whole = bits.view(np.int8 if dtype.name[0] == "i" else np.uint8)
        array = whole.astype(dtype)
        if (array.astype(whole.dtype) != whole).any():
            raise damaged(f"a number does not fit in {dtype}")
        return array
    return bits.view(dtype.newbyteorder("=")).reshape(shape).astype(dtype, copy=False)


def _turned(bits: NDArray[Any], kind: str) -> NDArray[Any]:
    """Floats turned left by one bit, so that the sign comes last; integers 0, -1, 1, -2, ... as 0, 1, 2, 3, ..."""
    one, top = bits.dtype.type(1), bits.dtype.type(8 * bits.dtype.itemsize - 1)
    if kind == "f":
        return bits << one | bits >> top
    return bits << one ^ (bits.dtype.type(0) - (bits >> top)) if kind == "i" else bits


def _returned(turned: NDArray[Any], kind: str) -> NDArray[Any]:
    """What ``_turned`` was given."""
    one, top = turned.dtype.type(1), turned.dtype.type(8 * turned.dtype.itemsize - 1)
    if kind == "f":
        return turned >> one | turned << top
    return turned >> one ^ (turned.dtype.type(0) - (turned & one)) if kind == "i" else turned
