"""A reader of the one file, written from ``coding/FORMAT.md``: plain Python and NumPy, no word of the package's own reader.

Symbols are decoded by ``entropy_reader.py``, written from ``coding/entropy/FORMAT.md``; numbers here, from its section 4.
"""

import json
import math
import zlib
from pathlib import Path

import ml_dtypes
import numpy as np

from tests.coding import entropy_reader

PAGE = Path(__file__).parent.parent.parent / "jaxopt_nn" / "coding" / "FORMAT.md"
SYMBOLS = {
    "bool": (2, 0), "uint2": (4, 0), "uint4": (16, 0), "uint8": (256, 0), "int2": (4, 2), "int4": (16, 8), "int8": (256, 128),
}  # fmt: skip


def dictionary():
    """The preset dictionary, from the page itself."""
    block = PAGE.read_text().split("## The preset dictionary")[1].split("```text\n")[1].split("\n```")[0]
    return block.replace("\n", "").encode()


def varint(data, at):
    value = shift = 0
    while True:
        byte, at = data[at], at + 1
        value, shift = value | (byte & 127) << shift, shift + 7
        if byte < 128:
            return value, at


def pieces(data):
    """The header as JSON, and the data of the frames."""
    assert data[:5] == bytes([0x8F, 0x6A, 0x6E, 0x6E, 1])
    length, at = varint(data, 5)
    end = at + length
    crc = zlib.crc32(data[:end])
    assert int.from_bytes(data[end : end + 4], "little") == crc
    text = zlib.decompressobj(-15, zdict=dictionary()).decompress(data[at:end])
    frames, at = [], end + 4
    while at < len(data):
        start = at
        length, at = varint(data, at)
        seal = zlib.crc32(data[start : at + length], (crc + len(frames)) % 2**32)
        assert int.from_bytes(data[at + length : at + length + 4], "little") == seal
        frames.append(data[at : at + length])
        at += length + 4
    return json.loads(text), frames


def decode(data, shape, alphabet):
    return np.array(entropy_reader.decode(data, shape, alphabet), np.int64).reshape(shape)


def decode_array(data, shape, dtype):
    """Numbers of more than a byte, from their turned bits."""
    real = np.dtype(f"f{dtype.itemsize // 2}") if dtype.kind == "c" else dtype
    cells = (*shape, 2) if dtype.kind == "c" else tuple(shape)
    w, unsigned = 8 * real.itemsize, np.dtype(f"<u{real.itemsize}")
    head, at = data[0], 1
    if head == 0:
        return np.frombuffer(data[1:], unsigned).view(dtype).reshape(shape)
    if head == 1:
        turned = np.zeros(cells, np.uint64)
        for plane in range(real.itemsize - 1, -1, -1):
            length, at = varint(data, at) if plane else (len(data) - at, at)
            turned |= decode(data[at : at + length], cells, 256).astype(np.uint64) << np.uint64(8 * plane)
            at += length
    else:
        assert head == 2
        values = np.frombuffer(data[2 : 2 + (data[1] + 1) * real.itemsize], unsigned).astype(np.uint64)
        turned = values[decode(data[2 + len(values) * real.itemsize :], cells, len(values))]
    numbers = [int(x) for x in turned.ravel()]
    if real.kind == "i":
        numbers = [x >> 1 ^ (2**w - 1 if x & 1 else 0) for x in numbers]
    elif real.kind != "u":
        numbers = [x >> 1 | (x & 1) << w - 1 for x in numbers]
    return np.array(numbers, np.uint64).astype(unsigned).view(dtype).reshape(shape)


class Array:
    """One array: what its string says, and its values once they are read."""

    def __init__(self, text):
        plain, _, codes = text.partition("/")
        self.name, *shape = plain.split(" ")
        self.dtype = np.dtype(getattr(ml_dtypes, self.name, self.name))
        self.shape = tuple(map(int, shape))
        self.bits = self.axis = None
        self.wide = self.shape or (1,)
        if codes:
            self.bits, self.axis, *lengths = map(int, codes.split(" "))
            self.lengths = tuple(lengths)
            self.wide = (*self.shape[: self.axis], *self.lengths, *self.shape[self.axis + 1 :])
        self.numbers = self.bits is None and self.dtype.itemsize > 1
        self.parts = []

    def chunks(self, chunk):
        inner = lambda a: math.prod(self.wide[a + 1 :])
        last = len(self.wide) - 1
        a = next(a for a in range(last + 1) if inner(a) <= chunk or a in (last, self.axis))
        run = max(1, chunk // inner(a))
        run = -(-run // 8) * 8 if a == self.axis else run
        for _ in range(math.prod(self.wide[:a])):
            for start in range(0, self.wide[a], run):
                yield (min(run, self.wide[a] - start), *self.wide[a + 1 :])

    def read(self, data, shape):
        if self.numbers:
            self.parts.append(decode_array(data, shape, self.dtype).ravel())
        else:
            alphabet = 2**self.bits if self.bits else SYMBOLS.get(self.name, (256, 0))[0]
            self.parts.append(decode(data, shape, alphabet).ravel())

    def values(self):
        flat = np.concatenate(self.parts) if self.parts else np.zeros(0)
        if self.bits:
            codes = np.moveaxis(flat.reshape(*self.shape[: self.axis], -1, *self.shape[self.axis + 1 :]), self.axis, -1)
            bits = (codes[..., None] >> np.arange(self.bits)) & 1
            packed = np.packbits(bits.reshape(*codes.shape[:-1], -1).astype(np.uint8), axis=-1, bitorder="little")
            return np.moveaxis(packed, -1, self.axis)
        if self.numbers or not self.parts:
            return flat.astype(self.dtype).reshape(self.shape)
        if self.name not in SYMBOLS:
            return flat.astype(np.uint8).view(self.dtype).reshape(self.shape)
        return (flat.astype(np.int64) - SYMBOLS[self.name][1]).astype(self.dtype).reshape(self.shape)


def arrays_of(node):
    """The arrays in the order of the text: strings as ``Array``, numbers as they are."""
    if isinstance(node, str):
        yield Array(node)
    elif type(node) is int:
        yield node
    elif isinstance(node, dict):
        for value in node.values():
            yield from arrays_of(value)
    elif isinstance(node, list):
        kind, *rest = node
        inner = rest if kind in ("list", "tuple") else [v for _, v in rest] if kind == "dict" else [rest[1]]
        for value in inner:
            yield from arrays_of(value)


def built(node, values):
    """The tree: containers as Python's, a compressed tensor as ``(kind, fields, children)``, a key likewise."""
    if node is None:
        return None
    if isinstance(node, str) or type(node) is int:
        return next(values)
    if isinstance(node, dict):
        return {key: built(value, values) for key, value in node.items()}
    kind, *rest = node
    if kind in ("list", "tuple"):
        items = [built(value, values) for value in rest]
        return items if kind == "list" else tuple(items)
    if kind == "dict":
        return {key: built(value, values) for key, value in rest}
    return (kind, rest[0], built(rest[1], values))


def read(path):
    """The tree, the header and the further files."""
    head, frames = pieces(Path(path).read_bytes())
    found, queue, pools = list(arrays_of(head["tree"])), iter(frames), {}

    def pour(name):
        pool = pools.pop(name)
        n = [math.prod(a.shape) for a in pool]
        flat = decode_array(next(queue), (sum(n),), pool[0].dtype)
        for array, part in zip(pool, np.split(flat, np.cumsum(n)[:-1])):
            array.parts.append(part)

    for array in found:
        if type(array) is int or 0 in array.shape:
            continue
        if array.numbers and math.prod(array.shape) <= 4096:
            pool = pools.setdefault(array.name, [])
            pool.append(array)
            if sum(math.prod(a.shape) for a in pool) >= 65536:
                pour(array.name)
            continue
        for shape in array.chunks(head.get("chunk", 4194304)):
            array.read(next(queue), shape)
    while pools:
        pour(next(iter(pools)))
    files = {name: next(queue) for name, _ in head.get("files", [])}
    assert next(queue, None) is None and [len(f) for f in files.values()] == [n for _, n in head.get("files", [])]
    whole = [found[a] if type(a) is int else a for a in found]
    return built(head["tree"], (array.values() for array in whole)), head, files
