"""A tree as the short JSON of the one file's header, and its arrays in reading order; ``FORMAT.md`` has the grammar."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxopt_nn.coding.structure import LEVELS, describe, rebuild
from jaxopt_nn.numerics import packing
from jaxopt_nn.tensors.base import PyTree, is_compressed
from jaxopt_nn.tensors.packed import Packed

#: Every dtype of which the file holds arrays, by its name in NumPy and ml_dtypes.
DTYPES = {
    "bool", "int2", "int4", "int8", "int16", "int32", "int64", "uint2", "uint4", "uint8", "uint16", "uint32", "uint64",
    "float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz",
    "float8_e8m0fnu", "float4_e2m1fn", "float16", "bfloat16", "float32", "float64", "complex64", "complex128",
}  # fmt: skip
_NUMBER = r"(?:0|[1-9]\d{0,14})"
_ARRAY = re.compile(rf"([a-z][a-z0-9_]*)((?: {_NUMBER})*)(?:/([1-8]) ({_NUMBER})((?: {_NUMBER})+))?")


@dataclasses.dataclass(frozen=True)
class Entry:
    """An array of the tree.

    Attributes:
      path: of the leaf; of a compressed tensor's child, its path and the field.
      leaf: path of the leaf that it is, or is a child of.
      packed: how its bytes are codes, or None.
      same: number of the earlier entry that it equals, and so is not written again; None: it is written.
    """

    path: str
    leaf: str
    dtype: np.dtype
    shape: tuple[int, ...]
    packed: Packed | None = None
    same: int | None = None

    @property
    def nbytes(self) -> int:
        """Bytes on the host, where an entry of any dtype takes at least one."""
        return self.dtype.itemsize * _product(self.shape)

    @property
    def text(self) -> str:
        """``float32 784 300``; of packed codes ``uint8 392 300/4 0 784``."""
        text = " ".join([self.dtype.name, *map(str, self.shape)])
        if self.packed is None:
            return text
        return f"{text}/{self.packed.bits} {self.packed.axis} {' '.join(map(str, self.packed.lengths))}"


def _product(shape: tuple[int, ...]) -> int:
    n = 1  # of Python: never overflows
    for d in shape:
        n *= d
    return n


class _Collected:
    """A writer that only keeps what it gets."""

    def __init__(self) -> None:
        self.values: list[tuple[str, Any]] = []

    def add(self, path: str, value: Any) -> dict[str, Any]:
        self.values.append((path, value))
        return {"at": len(self.values) - 1}


def taken_apart(tree: PyTree) -> tuple[dict[str, Any], list[Entry], list[Any]]:
    """The tree's structure as ``structure.describe`` gives it, its arrays in order, as entries and as they are.

    Raises:
      TypeError, ValueError: as ``describe``.
    """
    writer, known = _Collected(), dict[str, tuple[str, Packed | None]]()
    structure = describe(tree, "", writer)
    _children(tree, "", None, known)
    entries = []
    for path, value in writer.values:
        leaf, packed = known.get(path, (path, None))
        entries.append(Entry(path, leaf, np.dtype(value.dtype), tuple(value.shape), packed))
        if entries[-1].dtype.name not in DTYPES:
            raise TypeError(f"{path or 'variables'}: an array of dtype {value.dtype} can't be stored; pass numbers")
    return structure, entries, [value for _, value in writer.values]


def _children(node: Any, path: str, leaf: str | None, known: dict[str, tuple[str, Packed | None]]) -> None:
    """By path, of each array inside a compressed tensor: the leaf that it is part of, and its packing."""
    under = lambda key: f"{path}/{key}" if path else str(key)
    if isinstance(node, dict):
        for key, value in node.items():
            _children(value, under(key), leaf, known)
    elif isinstance(node, list | tuple):
        for i, value in enumerate(node):
            _children(value, under(i), leaf, known)
    elif is_compressed(node):
        leaf, coding = path if leaf is None else leaf, node.coding()
        for field in dataclasses.fields(node):
            value = getattr(node, field.name)
            if isinstance(value, dict | list | tuple) or is_compressed(value):
                _children(value, under(field.name), leaf, known)
            else:
                known[under(field.name)] = (leaf, coding.get(field.name))


def shortened(structure: Mapping[str, Any], entries: list[Entry]) -> Any:
    """The structure as the header holds it."""
    short, kind = lambda node: shortened(node, entries), structure["kind"]
    if kind == "none":
        return None
    if kind in ("array", "key"):
        entry = entries[structure["at"]]
        node = entry.text if entry.same is None else entry.same
        return node if kind == "array" else ["key", structure["implementation"], node]
    if kind == "dict":
        items = [[key, short(value)] for key, value in structure["items"]]
        return dict(items) if all(type(key) is str for key, _ in items) else ["dict", *items]
    if kind in ("list", "tuple"):
        return [kind, *map(short, structure["items"])]
    static = {name: value for name, value in structure["static"].items() if value is not None}
    children = {name: short(value) for name, value in structure["children"].items()}
    return [kind, static, children]


class Malformed(ValueError):
    """What the header says of the tree can't be."""


def lengthened(node: Any) -> tuple[dict[str, Any], list[Entry]]:
    """The structure as ``structure.rebuild`` takes it, and the arrays in reading order.

    Raises:
      ValueError: it is not as the grammar says, or a shape and a packing don't fit.
    """
    entries: list[Entry] = []
    try:
        return _lengthened(node, "", None, entries, 0), entries
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise Malformed(f"its structure is malformed: {error!r}") from error


def _lengthened(node: Any, path: str, leaf: str | None, entries: list[Entry], level: int) -> dict[str, Any]:
    if level > LEVELS:
        raise Malformed(f"{path[:60]}...: more than {LEVELS} nodes inside each other")
    child = lambda key, value, own=leaf: _lengthened(value, f"{path}/{key}" if path else str(key), own, entries, level + 1)
    if node is None:
        return {"kind": "none"}
    if isinstance(node, str) or type(node) is int:
        return {"kind": "array", "at": _added(node, path, leaf, entries)}
    if isinstance(node, dict):
        return {"kind": "dict", "items": [[key, child(key, value)] for key, value in node.items()]}
    if not isinstance(node, list) or not node or not isinstance(node[0], str):
        raise Malformed(f"{path}: {str(node)[:40]!r} is no node")
    kind, *rest = node
    if kind == "dict":
        keys = [key for key, _ in rest]
        if any(type(key) not in (str, int) for key in keys) or len(set(keys)) != len(keys):
            raise Malformed(f"{path}: keys {str(keys)[:40]}")
        return {"kind": kind, "items": [[key, child(key, value)] for key, value in rest]}
    if kind in ("list", "tuple"):
        return {"kind": kind, "items": [child(i, value) for i, value in enumerate(rest)]}
    if kind == "key":
        implementation, data = rest
        return {"kind": kind, "implementation": implementation, "at": _added(data, path, leaf, entries)}
    static, children = rest
    own = path if leaf is None else leaf
    return {"kind": kind, "static": static, "children": {k: child(k, value, own) for k, value in children.items()}}


def _added(node: Any, path: str, leaf: str | None, entries: list[Entry]) -> int:
    """Appends the entry of an array node; its number."""
    own = path if leaf is None else leaf
    if type(node) is int:
        if not 0 <= node < len(entries) or entries[node].same is not None:
            raise Malformed(f"{path}: the same as array {node} of {len(entries)}")
        entries.append(dataclasses.replace(entries[node], path=path, leaf=own, same=node))
        return len(entries) - 1
    found = _ARRAY.fullmatch(node)
    if found is None or found[1] not in DTYPES:
        raise Malformed(f"{path}: {node[:60]!r} is no array of a known dtype")
    shape = tuple(map(int, found[2].split()))
    if len(shape) > 32:
        raise Malformed(f"{path}: an array of {len(shape)} axes; at most 32")
    packed = None
    if found[3]:
        packed = Packed(int(found[3]), int(found[4]), tuple(map(int, found[5].split())))
        fits = found[1] == "uint8" and packed.axis < len(shape) and len(shape) + len(packed.lengths) <= 32
        if not fits or not _holds(packed, shape):
            raise Malformed(f"{path}: {node!r}: the codes don't fit the array")
    entries.append(Entry(path, own, jnp.dtype(found[1]), shape, packed))
    return len(entries) - 1


def _holds(packed: Packed, shape: tuple[int, ...]) -> bool:
    return shape[packed.axis] == packing.packed_length(_product(packed.lengths), packed.bits)


def put_together(structure: dict[str, Any], read: Callable[[int], Any]) -> PyTree:
    """The tree, its arrays by ``read(number of the entry)``.

    Raises:
      ValueError: an unknown kind of node, or arrays and fields that are not of one tensor.
    """
    try:
        return rebuild(structure, "", lambda node, path: read(node["at"]))
    except (KeyError, IndexError, AttributeError, RecursionError, TypeError) as error:
        raise Malformed(f"its structure is malformed: {error!r}") from error
