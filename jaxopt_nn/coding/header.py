"""The one file's frame: magic, version, header, and frames of bytes, each with its checksum. ``FORMAT.md`` has the bytes."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO

from jaxopt_nn.coding.dictionary import DICTIONARY

MAGIC = b"\x8fjnn"
VERSION = 1
#: Bytes of the header as JSON, at most: a header is small, and what it makes of memory is a multiple of its text.
HEADER_BYTES = 16 * 2**20
#: Chunks that a file may have been coded in, in symbols.
CHUNKS = (8, 2**26)
#: Values inside each other in what a user adds to the header: few enough that every version of Python reads them again.
LEVELS = 100
#: What to do with a damaged file.
AGAIN = "copy the file again, or write it anew"


def written(head: dict[str, Any]) -> bytes:
    """Magic, version, header and their checksum.

    Raises:
      TypeError: what JSON can't hold, or would give back with a key twice. ValueError: a header above ``HEADER_BYTES``, or
        values more than ``LEVELS`` deep.
    """
    for name in ("recipe", "extra"):
        if _deeper(head.get(name), LEVELS):
            raise ValueError(f"{name}: more than {LEVELS} values inside each other; flatten it")
    try:
        text = json.dumps(head, separators=(",", ":"), allow_nan=False).encode()
        json.loads(text, object_pairs_hook=_once)
    except (TypeError, ValueError) as error:
        raise TypeError(f"recipe and extra are kept as JSON: {error}; pass dicts, lists, numbers and strings") from error
    if len(text) > HEADER_BYTES:
        raise ValueError(f"the header has {len(text):,} bytes, most may be {HEADER_BYTES:,}; put less into recipe and extra")
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, DICTIONARY)
    body = packer.compress(text) + packer.flush()
    start = MAGIC + bytes([VERSION]) + varint(len(body)) + body
    return start + zlib.crc32(start).to_bytes(4, "little")


def read(stream: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    """The header at the start of a file of ``size`` bytes, and its checksum; the stream then stands behind it.

    Raises:
      ValueError: no such file, an unknown version, or damage.
    """
    start = stream.read(len(MAGIC) + 1)
    if start[: len(MAGIC)] != MAGIC:
        raise ValueError("its first bytes are others than those that jaxopt_nn.save writes; pass such a file, or copy it again")
    if len(start) == len(MAGIC):
        raise ValueError(f"truncated: it ends after its first {len(MAGIC)} bytes; {AGAIN}")
    if start[-1] != VERSION:
        raise ValueError(f"version {start[-1]} of the format, this library reads {VERSION}; use a newer one")
    length, prefix = read_varint(stream, size)
    body = exactly(stream, length, size)
    checksum = int.from_bytes(exactly(stream, 4, size), "little")
    if zlib.crc32(start + prefix + body) != checksum:
        raise ValueError(f"the checksum of its header is wrong; {AGAIN}")
    unpacker = zlib.decompressobj(-15, zdict=DICTIONARY)
    try:
        text = unpacker.decompress(body, HEADER_BYTES + 1)
    except zlib.error as error:
        raise ValueError(f"its header is no deflate stream ({error}); {AGAIN}") from error
    if len(text) > HEADER_BYTES or not unpacker.eof or unpacker.unused_data:
        raise ValueError(f"its header has more than {HEADER_BYTES:,} bytes, or not those that it says; {AGAIN}")
    return _parsed(text), checksum


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        head = json.loads(text.decode("ascii"), object_pairs_hook=_once, parse_constant=_no_constant)
    except (RecursionError, ValueError) as error:
        raise ValueError(f"its header is no valid JSON ({str(error)[:200]}); {AGAIN}") from error
    if not isinstance(head, dict):
        raise ValueError(f"its header is no JSON object; {AGAIN}")
    return head


def _deeper(value: Any, levels: int) -> bool:
    """Whether values lie in each other more than so many levels deep, also where one is inside itself."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return bool(inner) and (levels == 0 or any(_deeper(each, levels - 1) for each in inner))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice in one object")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def varint(n: int) -> bytes:
    """Seven bits a byte, the lowest first; all bytes but the last have their highest bit set."""
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    return bytes([*out, n])


def read_varint(stream: BinaryIO, size: int) -> tuple[int, bytes]:
    """A length that the rest of the file can hold, and its bytes; raises ValueError else."""
    raw = bytearray()
    while not raw or raw[-1] & 128:
        if len(raw) == 9:
            raise ValueError(f"a length of more than 9 bytes; {AGAIN}")
        raw += exactly(stream, 1, size)
    n = sum((byte & 127) << (7 * k) for k, byte in enumerate(raw))
    if n > size - stream.tell():
        raise ValueError(f"truncated or damaged: {n:,} bytes are to follow, {size - stream.tell():,} do; {AGAIN}")
    return n, bytes(raw)


def exactly(stream: BinaryIO, n: int, size: int) -> bytes:
    """The next ``n`` bytes; raises ValueError where the file ends before."""
    data = stream.read(n) if n <= size - stream.tell() else b""
    if len(data) != n:
        raise ValueError(f"truncated: it ends where {n:,} bytes should be; {AGAIN}")
    return data


class Frames:
    """Frames in their order: ``length, data, checksum``, the checksum from the header's plus the frame's number on."""

    def __init__(self, stream: BinaryIO, checksum: int, size: int = 0) -> None:
        self._stream, self._size, self._first = stream, size, checksum
        self.count = 0
        #: Of the whole content: a checksum of the checksums.
        self.digest = checksum

    def _sealed(self, seal: bytes) -> int:
        self.digest = zlib.crc32(seal, self.digest)
        self.count += 1
        return (self._first + self.count - 1) & 0xFFFFFFFF

    def write(self, data: bytes) -> int:
        """Writes a frame; its bytes, all of them."""
        prefix = varint(len(data))
        seal = zlib.crc32(data, zlib.crc32(prefix, (self._first + self.count) & 0xFFFFFFFF)).to_bytes(4, "little")
        self._sealed(seal)
        for part in (prefix, data, seal):
            self._stream.write(part)
        return len(prefix) + len(data) + len(seal)

    def read(self) -> tuple[Callable[[], bytes], int]:
        """The next frame: a function that checks its data and gives them, and its bytes, all of them."""
        length, prefix = read_varint(self._stream, self._size)
        data, seal = exactly(self._stream, length, self._size), exactly(self._stream, 4, self._size)
        seed = self._sealed(seal)

        def checked() -> bytes:
            if zlib.crc32(data, zlib.crc32(prefix, seed)).to_bytes(4, "little") != seal:
                raise ValueError(f"the checksum of its data is wrong; {AGAIN}")
            return data

        return checked, len(prefix) + length + 4

    def skip(self) -> int:
        """Passes over the next frame; its bytes, all of them."""
        length, prefix = read_varint(self._stream, self._size)
        self._stream.seek(length, 1)
        self._sealed(exactly(self._stream, 4, self._size))
        return len(prefix) + length + 4

    def end(self) -> None:
        """Raises ValueError where something follows the last frame."""
        rest = self._size - self._stream.tell()
        if rest:
            raise ValueError(f"{rest:,} bytes follow its last stream; {AGAIN}")
