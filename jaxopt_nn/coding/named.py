"""A tree as arrays by name and a header: what a safetensors file, a msgpack file and an Orbax checkpoint hold.

An array's name is its path; that of a compressed tensor's child is the tensor's path and the field: ``params/w/codes``. The
header is the JSON of ``coding.structure`` with its own checksum. A container without a header is someone else's, and its
arrays become a plain nested dict.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxopt_nn.coding.structure import Reader, describe, on_device, rebuild
from jaxopt_nn.tensors.base import PyTree, bits_of

SCHEMA = 1
#: What a container calls the header among its metadata.
HEADER = "jaxopt_nn"
#: The name of an array that is a whole tree by itself.
WHOLE = "array"
#: Dtypes that every container knows; an array of another one is kept as its bytes.
PLAIN = {
    "bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64",
    "float16", "bfloat16", "float32", "float64",
}  # fmt: skip


class Named:
    """A writer that gives each array the name ``names(path)``, the path itself if None."""

    def __init__(self, names: Callable[[str], str] | None = None) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        self._names = names

    def add(self, path: str, value: Any) -> dict[str, Any]:
        value = np.asarray(value)
        if not value.size:  # Orbax takes no array without entries, and there is nothing to keep
            return {"dtype": value.dtype.name, "shape": list(value.shape)}
        name = self._names(path) if self._names else path or WHOLE
        if name in self.arrays:
            advice = "names must give each its own" if self._names else "rename the key that holds a '/', or is 1 beside '1'"
            raise ValueError(f"{name}: two arrays have this name; {advice}")
        self.arrays[name] = stored = plain(value)
        renamed = {} if name == (path or WHOLE) else {"name": name}
        return {"dtype": value.dtype.name, "shape": list(value.shape), "crc32": _crc(stored), **renamed}


def encode(tree: PyTree, names: Callable[[str], str] | None = None) -> tuple[str, dict[str, np.ndarray]]:
    """The header, and the arrays by their names: those of ``PLAIN`` dtypes as they are, without a copy.

    Raises:
      TypeError: a node or leaf that can't be stored; named by its path.
      ValueError: two arrays of one name.
    """
    writer = Named(names)
    structure = describe(tree, "", writer)
    return _canonical({"schema": SCHEMA, "crc32": _checksum(structure), "structure": structure}), writer.arrays


def decode(header: str, arrays: Mapping[str, np.ndarray], source: str) -> PyTree:
    """The tree that ``encode`` took, equal to the bit; ``source`` is what messages call the container.

    Raises:
      ValueError: the header or an array is damaged, of an unknown schema, missing or one too many.
    """
    try:
        parsed = json.loads(header)
    except (RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{source}: its header is no valid JSON ({error}); the file was truncated or edited") from error
    if not isinstance(parsed, dict) or parsed.get("schema") != SCHEMA:
        schema = parsed.get("schema") if isinstance(parsed, dict) else type(parsed).__name__
        raise ValueError(f"{source}: its header has schema {schema!r}; this version reads schema {SCHEMA}")
    unread = set(arrays)
    read = _reader(arrays, source, unread)
    try:
        if parsed.get("crc32") != _checksum(parsed.get("structure")):
            raise ValueError(f"{source}: its header is not what its own checksum says; the file was edited")
        tree = rebuild(parsed["structure"], "", read)
    except (AttributeError, KeyError, RecursionError, TypeError) as error:
        raise ValueError(f"{source}: its header is malformed: {error!r}") from error
    if unread:
        raise ValueError(f"{source}: holds arrays that its header does not list: {_some(unread)}; the file was edited")
    return tree


def nested(arrays: Mapping[str, np.ndarray], source: str, separator: str | None = None) -> PyTree:
    """Arrays of a container without a header as a nested dict, split where ``separator`` stands in their names.

    Args:
      separator: None: ``"/"`` if a name holds one, else ``"."``, as PyTorch names parameters.

    Raises:
      ValueError: a name that leads through another array.
    """
    cut = separator or ("/" if any("/" in name for name in arrays) else ".")
    tree: dict[str, Any] = {}
    for name, value in arrays.items():
        *folders, last = name.split(cut)
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
            if not isinstance(node, dict):
                break
        if not isinstance(node, dict) or last in node:
            raise ValueError(f"{source}: {name!r} and another array can't stand in one nested dict; pass another separator")
        node[last] = on_device(value)
    return tree


def plain(value: np.ndarray) -> np.ndarray:
    """The array, contiguous; of a dtype that is not ``PLAIN`` its bytes, uint8 ``[n]``, entries below a byte packed."""
    if value.dtype.name in PLAIN:
        return np.asarray(value, order="C")
    data, bits = np.asarray(value, order="C").reshape(-1).view(np.uint8), bits_of(value.dtype)
    if bits >= 8:
        return data
    return np.packbits(np.unpackbits(data[:, None], axis=1, count=bits, bitorder="little"), bitorder="little")


def _of_plain(stored: np.ndarray, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """The array that ``plain`` took."""
    if dtype.name in PLAIN:
        return stored.reshape(shape)
    bits, size = bits_of(dtype), int(np.prod(shape, dtype=np.int64))
    if bits >= 8:
        return stored.view(dtype).reshape(shape)
    each = np.unpackbits(stored, count=size * bits, bitorder="little").reshape(size, bits)
    codes = np.packbits(each, axis=1, bitorder="little")[:, 0]
    if jnp.issubdtype(dtype, jnp.signedinteger):
        half = 1 << (bits - 1)
        return ((codes ^ half).astype(np.int8) - np.int8(half)).astype(dtype).reshape(shape)
    return codes.view(dtype).reshape(shape)


def _reader(arrays: Mapping[str, np.ndarray], source: str, unread: set[str]) -> Reader:
    """Looks arrays up by name, checks them, and takes their names from ``unread``."""

    def read(node: Mapping[str, Any], path: str) -> np.ndarray:
        name, dtype, shape = node.get("name", path or WHOLE), jnp.dtype(node["dtype"]), tuple(node["shape"])
        if 0 in shape:
            return np.zeros(shape, dtype)
        if name not in arrays:
            raise ValueError(f"{source}: {name} is missing; the header lists it as {dtype.name}{list(shape)}")
        stored = np.asarray(arrays[name], order="C")
        as_bytes = (np.dtype(np.uint8), (-(-math.prod(shape) * bits_of(dtype) // 8),))
        if (stored.dtype, stored.shape) != ((dtype, shape) if dtype.name in PLAIN else as_bytes):
            raise ValueError(
                f"{source}: {name} is {stored.dtype}{list(stored.shape)}, the header says {dtype.name}{list(shape)}; the "
                "file was edited"
            )
        if _crc(stored) != node["crc32"]:
            raise ValueError(f"{source}: {name} is not what the header's checksum says; the file was changed")
        unread.discard(name)
        return _of_plain(stored, dtype, shape)

    return read


def _crc(value: np.ndarray) -> int:
    return zlib.crc32(value.reshape(-1).view(np.uint8).data)


def _canonical(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _checksum(structure: Any) -> int:
    return zlib.crc32(_canonical(structure).encode())


def _some(names: Iterable[str], most: int = 3) -> str:
    listed = sorted(names)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")
