"""Small numbers in bytes, and a reader that says where data is damaged."""

from __future__ import annotations

import operator


def damaged(what: str) -> ValueError:
    """The error of data that no encoder writes."""
    return ValueError(f"coded data is damaged, or of a newer version: {what}; read another copy of it")


class Reader:
    """Reads bytes from the front; every mistake is a ``ValueError``."""

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        try:
            self._view = memoryview(data).cast("B")
        except TypeError:
            raise TypeError(f"data: got {type(data).__name__}; pass bytes in one piece") from None
        self._at = 0

    def take(self, count: int) -> memoryview:
        """The next ``count`` bytes."""
        if count > len(self._view) - self._at:
            missing = count - (len(self._view) - self._at)
            raise damaged(f"{missing} bytes are missing after byte {len(self._view)}")
        self._at += count
        return self._view[self._at - count : self._at]

    def byte(self) -> int:
        return self.take(1)[0]

    def varint(self, limit: int) -> int:
        """A number below ``limit``, 7 bits a byte, low bits first, the top bit set where more follow."""
        value, shift = 0, 0
        while True:
            byte = self.byte()
            value |= (byte & 127) << shift
            shift += 7
            if value >= limit:
                raise damaged(f"a number at byte {self._at} is {value}, not below {limit}")
            if byte < 128:
                if byte == 0 and shift > 7:
                    raise damaged(f"the number at byte {self._at} is longer than it need be")
                return value

    def rest(self) -> memoryview:
        """All bytes that are left."""
        return self.take(len(self._view) - self._at)

    def finish(self) -> None:
        """Raises if bytes are left."""
        if self._at != len(self._view):
            raise damaged(f"{len(self._view) - self._at} bytes are left after byte {self._at}")


def varint(value: int) -> bytes:
    """``value`` >= 0 in 7 bits a byte, low bits first, the top bit set where more follow."""
    value, out = operator.index(value), bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
