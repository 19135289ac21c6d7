"""A tree of arrays and compressed tensors as JSON and arrays, and back: the one codec of all containers.

The JSON says how the tree is put together and, for each array, its dtype, its shape and where the container's ``Writer`` put
it. Only known kinds are rebuilt; nothing is imported that a file names.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import pkgutil
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_nn import tensors
from jaxopt_nn.tensors.base import PyTree, Tensor, is_compressed

#: A buffer is closed before it would exceed this many bytes.
BUFFER_BYTES = 64 * 2**20
#: Nodes inside nodes. Far more than a network has, far fewer than end Python's stack: the same answer on every version of it.
LEVELS = 100


class Writer(Protocol):
    """Where the arrays of a tree go."""

    def add(self, path: str, value: Any) -> dict[str, Any]:
        """Keeps the array of the leaf at ``path``; what the reader needs to find it again, as JSON."""


#: Gets the JSON of an array, as ``Writer.add`` gave it, and its path; gives the array, or an abstract one.
Reader = Callable[[Mapping[str, Any], str], Any]


class Buffers:
    """A writer that lays arrays end to end, in the tree's order, into uint8 buffers; an array lies in one as a whole.

    A checkpoint has a fixed price for each array, and a compressed network has many small ones.
    """

    def __init__(self) -> None:
        self._parts: list[list[bytes]] = [[]]
        self._size = 0

    def add(self, path: str, value: Any) -> dict[str, Any]:
        value = np.asarray(value)
        data = value.tobytes()
        if self._size and self._size + len(data) > BUFFER_BYTES:
            self._parts.append([])
            self._size = 0
        at = [len(self._parts) - 1, self._size]
        self._parts[-1].append(data)
        self._size += len(data)
        return {"dtype": value.dtype.name, "shape": list(value.shape), "at": at, "crc32": zlib.crc32(data)}

    def buffers(self) -> dict[str, np.ndarray]:
        joined = {str(i): np.frombuffer(b"".join(parts), np.uint8) for i, parts in enumerate(self._parts)}
        return {name: buffer for name, buffer in joined.items() if buffer.size}


def from_buffers(buffers: Mapping[str, np.ndarray]) -> Reader:
    """The reader of what ``Buffers`` wrote; raises ValueError where bytes are missing or changed."""

    def read(node: Mapping[str, Any], path: str) -> np.ndarray:
        dtype, shape, (name, start) = jnp.dtype(node["dtype"]), tuple(node["shape"]), node["at"]
        size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        data = buffers.get(str(name), np.zeros(0, np.uint8))[start : start + size]
        if data.size != size:
            raise ValueError(
                f"{path}: {dtype.name}{list(shape)} needs {size} bytes at {node['at']}, the arrays hold {data.size}"
            )
        if zlib.crc32(data.tobytes()) != node["crc32"]:
            raise ValueError(f"{path}: the checksum of its {size} bytes is not that of the manifest")
        return np.frombuffer(data.tobytes(), dtype).reshape(shape)

    return read


class _Discard:
    def add(self, path: str, value: Any) -> dict[str, Any]:
        return {}


def check_storable(variables: PyTree) -> None:
    """Raises TypeError, with the path, where a tree holds what can't be stored."""
    describe(variables, "", _Discard())


def describe(node: PyTree, path: str, writer: Writer, level: int = 0) -> dict[str, Any]:
    """The node as JSON; its arrays go to ``writer``."""
    if level > LEVELS:
        raise ValueError(f"{path[:60]}...: more than {LEVELS} nodes inside each other can't be stored; flatten the tree")
    child = lambda key, value: describe(value, f"{path}/{key}" if path else str(key), writer, level + 1)
    if node is None:
        return {"kind": "none"}
    if type(node) is dict:
        for key in node:
            if type(key) not in (str, int):
                raise TypeError(f"{path or 'variables'}: the key {key!r} is neither a string nor an integer")
        return {"kind": "dict", "items": [[key, child(key, value)] for key, value in node.items()]}
    if type(node) in (list, tuple):
        return {"kind": type(node).__name__, "items": [child(i, value) for i, value in enumerate(node)]}
    if is_compressed(node):
        return _describe_tensor(node, path, child)
    if isinstance(node, jax.Array | np.ndarray | np.generic):
        if jnp.issubdtype(node.dtype, jax.dtypes.prng_key):
            key = jnp.asarray(node)
            data = writer.add(path, jax.random.key_data(key))
            return {"kind": "key", "implementation": str(jax.random.key_impl(key)), **data}
        if node.dtype.hasobject or node.dtype.kind in "SUMm":
            raise TypeError(f"{path or 'variables'}: an array of dtype {node.dtype} can't be stored; pass numbers")
        native = node if node.dtype.isnative else node.astype(node.dtype.newbyteorder("="))
        return {"kind": "array", **writer.add(path, native)}
    raise TypeError(
        f"{path or 'variables'}: {type(node).__name__} can't be stored; pass dicts, lists, tuples, None, "
        "arrays and compressed tensors (for Flax: flax.core.unfreeze, nnx.to_pure_dict)"
    )


def _is_frame(fields: Mapping[str, Any]) -> bool:
    """Whether a tensor stands inside another one, which holds its codes: its parts alone are none."""
    return "codes" in fields and fields["codes"] is None


def _describe_tensor(node: Any, path: str, child: Callable[[Any, Any], Any]) -> dict[str, Any]:
    fields = {f.name: getattr(node, f.name) for f in dataclasses.fields(node)}
    if not _is_frame(fields):
        _checked(node, path)  # as the reader does: what can't be read again is not written
    static = {name: value for name, value in fields.items() if _is_static(value)}
    children = {name: child(name, value) for name, value in fields.items() if name not in static}
    return {"kind": type(node).__name__, "shape": _shape_of(node), "static": static, "children": children}


def _shape_of(tensor: Any) -> list[int] | None:
    """None for a frame: a tensor inside another one, which holds its codes."""
    try:
        return list(tensor.shape)
    except AttributeError:
        return None


def _is_static(value: Any) -> bool:
    """Whether a field of a compressed tensor is no pytree of arrays: plain values, and tuples of them."""
    if isinstance(value, tuple):
        return all(map(_is_static, value))
    return value is None or isinstance(value, bool | int | float | str)


@functools.cache
def _import_tensors() -> None:
    """Imports all of ``jaxopt_nn.tensors``: a kind exists once its module was imported, and reading a file names none."""
    for module in pkgutil.iter_modules(tensors.__path__, f"{tensors.__name__}."):
        importlib.import_module(module.name)


def _tensor_kinds(base: type = Tensor) -> dict[str, type]:
    _import_tensors()
    kinds: dict[str, type] = {base.__name__: base} if dataclasses.is_dataclass(base) else {}
    sub: type
    for sub in base.__subclasses__():
        kinds |= _tensor_kinds(sub)
    return kinds


def rebuild(node: dict[str, Any], path: str, read: Reader, level: int = 0) -> Any:
    """The node that ``describe`` gave as JSON, its arrays by ``read``; RecursionError if deeper than ``describe`` goes."""
    if level > LEVELS:
        raise RecursionError(f"more than {LEVELS} nodes inside each other")
    child = lambda key, value: rebuild(value, f"{path}/{key}" if path else str(key), read, level + 1)
    kind = node["kind"]
    if kind == "none":
        return None
    if kind == "dict":
        return {key: child(key, value) for key, value in node["items"]}
    if kind in ("list", "tuple"):
        items = [child(i, value) for i, value in enumerate(node["items"])]
        return items if kind == "list" else tuple(items)
    if kind == "array":
        return on_device(read(node, path))
    if kind == "key":
        return _key(read(node, path), node["implementation"])
    kinds = _tensor_kinds()
    if kind not in kinds:
        raise ValueError(f"{path}: kind {kind!r} is unknown; this version knows {', '.join(sorted(kinds))}")
    static = {name: _as_tuple(value) for name, value in node["static"].items()}
    fields = _absent(kinds[kind]) | static | {name: child(name, value) for name, value in node["children"].items()}
    tensor = kinds[kind](**fields)
    frame = _is_frame(fields)
    if not frame:
        _checked(tensor, path)  # before anything is computed of what the file says, its shape too
    shape = None if frame else list(tensor.shape)
    if "shape" in node and shape != node["shape"]:
        raise ValueError(f"{path}: the {kind} has shape {shape}, the manifest says {node['shape']}")
    return tensor


def _absent(kind: type) -> dict[str, None]:
    """What a field is that a file doesn't name, unless it has a default: the one file leaves fields out that are None."""
    required = lambda field: field.default is field.default_factory is dataclasses.MISSING
    return {field.name: None for field in dataclasses.fields(kind) if required(field)}


def _checked(tensor: Any, path: str) -> None:
    """Raises ValueError, with the path, where the children and fields that a file gave can't be of one tensor."""
    try:
        tensor.check()
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _key(data: Any, implementation: str) -> Any:
    wrap = functools.partial(jax.random.wrap_key_data, impl=implementation)
    return jax.eval_shape(wrap, data) if isinstance(data, jax.ShapeDtypeStruct) else wrap(jnp.asarray(data))


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value


def on_device(value: Any) -> Any:
    """A JAX array; a dtype that JAX would narrow (64 bits, unless enabled) stays with NumPy; abstract ones pass."""
    if not isinstance(value, np.ndarray):
        return value
    return jnp.asarray(value) if jax.dtypes.canonicalize_dtype(value.dtype) == value.dtype else value
