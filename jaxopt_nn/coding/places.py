"""Where arrays come from and go to, part by part: shards of JAX arrays, and buffers that devices take without a copy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, Sharding

from jaxopt_nn.core.arguments import in_words
from jaxopt_nn.core.paths import leaves_by_path, near_misses, path_of
from jaxopt_nn.tensors.base import PyTree, is_compressed

Region = tuple[slice, ...]
#: Buffers that start at such an address become arrays on a CPU as they are.
ALIGNED = 64


class Source:
    """An array that is read part by part; of a sharded one each part is put together from the shards that hold it.

    Raises:
      ValueError: other processes hold parts of it.
    """

    def __init__(self, path: str, array: Any) -> None:
        self._shape, self._dtype = tuple(array.shape), np.dtype(array.dtype)
        if isinstance(array, jax.Array):
            if not array.is_fully_addressable:
                raise ValueError(
                    f"{path}: its shards lie on several hosts, and one file is written by one; write jaxopt_nn.to_orbax, or "
                    "gather it first"
                )
            shards = [(_whole(shard.index, self._shape), shard.data) for shard in array.addressable_shards]
            self._parts = list({_key(at): (at, data) for at, data in shards}.values())
        else:
            array = np.asarray(array)
            native = array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
            self._parts = [(tuple(slice(0, n) for n in self._shape), native)]

    def part(self, region: Region | None) -> np.ndarray:
        """A part of the array; without a copy where one shard holds it and lies in this machine's memory."""
        whole = tuple(slice(0, n) for n in self._shape)
        region = whole if region is None else region
        if len(self._parts) == 1:
            return np.asarray(self._parts[0][1])[region]
        out = np.empty([s.stop - s.start for s in region], self._dtype)
        for at, data in self._parts:
            both = _common(at, region)
            if both is not None:
                out[_shifted(both, region)] = np.asarray(data)[_shifted(both, at)]
        return out


class Place:
    """A new array that is filled part by part: whole, or by the shards that devices of this process hold."""

    def __init__(self, shape: Sequence[int], dtype: np.dtype, sharding: Sharding | None) -> None:
        self._shape, self._dtype, self._sharding = tuple(shape), dtype, sharding
        if sharding is None:
            self._indices: dict[Any, Region] = {None: tuple(slice(0, n) for n in shape)}
        else:
            found = sharding.addressable_devices_indices_map(self._shape)
            self._indices = {device: _whole(at or (), self._shape) for device, at in found.items()}
        distinct = {_key(at): at for at in self._indices.values()}
        self._buffers = {key: (at, _buffer([s.stop - s.start for s in at], dtype)) for key, at in distinct.items()}

    def put(self, region: Region, values: np.ndarray) -> None:
        for at, buffer in self._buffers.values():
            both = _common(at, region)
            if both is not None:
                buffer[_shifted(both, at)] = values[_shifted(both, region)]

    def done(self) -> Any:
        """The array: JAX's, or NumPy's for a dtype that JAX would narrow (64 bits, unless enabled)."""
        if jax.dtypes.canonicalize_dtype(self._dtype) != self._dtype:
            return next(iter(self._buffers.values()))[1]
        if self._sharding is None:
            return _given(next(iter(self._buffers.values()))[1], None)
        made = [_given(self._buffers[_key(at)][1], device) for device, at in self._indices.items()]
        self._buffers.clear()
        return jax.make_array_from_single_device_arrays(self._shape, self._sharding, made)


def _given(buffer: np.ndarray, device: Any) -> jax.Array:
    """The buffer as an array; on a CPU it is the array, so nobody may write to it any more."""
    return jax.device_put(buffer, device, may_alias=True)


def _buffer(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + ALIGNED, np.uint8)
    start = -raw.ctypes.data % ALIGNED
    return raw[start : start + size].view(dtype).reshape(shape)


def _whole(at: Sequence[slice], shape: Sequence[int]) -> Region:
    """Slices with their bounds, for every axis."""
    full = (*at, *[slice(None)] * (len(shape) - len(at)))
    return tuple(slice(*s.indices(n)[:2]) for s, n in zip(full, shape))


def _key(at: Region) -> tuple[tuple[int, int], ...]:
    return tuple((s.start, s.stop) for s in at)


def _common(a: Region, b: Region) -> Region | None:
    """What two regions share, or None."""
    both = tuple(slice(max(x.start, y.start), min(x.stop, y.stop)) for x, y in zip(a, b))
    return None if any(s.start >= s.stop for s in both) else both


def _shifted(region: Region, origin: Region) -> Region:
    return tuple(slice(s.start - o.start, s.stop - o.start) for s, o in zip(region, origin))


def named_shardings(sharding: Any, tree: PyTree) -> Callable[[str, str], Sharding | None]:
    """``(path of the array, path of its leaf) -> sharding``, of what ``load_file`` takes as ``sharding``.

    Args:
      sharding: as for ``load_file``.
      tree: abstract; its compressed tensors say how their children are split.

    Raises:
      TypeError: no sharding. ValueError: it names a leaf that is not there.
    """
    if sharding is None or isinstance(sharding, Sharding):
        return lambda path, leaf: sharding
    leaves = leaves_by_path(tree)
    given = {path: sharding(path, x) for path, x in leaves.items()} if callable(sharding) else _by_path(sharding)
    found = dict[str, Sharding]()
    for path, own in given.items():
        for inner, one in _by_path(own).items():
            name = f"{path}/{inner}" if inner else path
            if not isinstance(one, Sharding):
                of = f" of {name}" if name else ""
                raise TypeError(f"sharding{of} is {in_words(one)}; pass a jax.sharding.Sharding, or None")
            found[name] = one
    for path, leaf in leaves.items():
        own = found.get(path)
        if is_compressed(leaf) and isinstance(own, NamedSharding):
            found |= {f"{path}/{k}": v for k, v in _of_children(leaf, own).items()}
            del found[path]
    _check_paths(found, leaves)
    return lambda path, leaf: found.get(path, found.get(leaf))


def _by_path(tree: PyTree) -> dict[str, Any]:
    flat, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: isinstance(x, Sharding))
    return {path_of(keys): x for keys, x in flat}


def _of_children(leaf: Any, own: NamedSharding) -> dict[str, NamedSharding]:
    """How a compressed tensor's children lie where its weight is split so; whole on each device where it can't be split."""
    whole = jax.sharding.PartitionSpec()
    specs = _specs(leaf, own)
    if specs is NotImplemented:
        specs = jax.tree.map(lambda x: whole, leaf)
    flat, _ = jax.tree_util.tree_flatten_with_path(specs, is_leaf=lambda x: isinstance(x, jax.sharding.PartitionSpec))
    shapes = {path_of(keys): x.shape for keys, x in jax.tree_util.tree_flatten_with_path(leaf)[0]}
    made = {path_of(keys): NamedSharding(own.mesh, spec) for keys, spec in flat}
    return {path: one if _splits(one, shapes[path]) else NamedSharding(own.mesh, whole) for path, one in made.items()}


def _specs(leaf: Any, own: NamedSharding) -> Any:
    """How the children are split as the weight is; ``NotImplemented`` also where the weight can't be split so."""
    return leaf.spec(own.spec, own.mesh) if _splits(own, leaf.shape) else NotImplemented


def _splits(sharding: Sharding, shape: Sequence[int]) -> bool:
    """Whether arrays of this shape can be split so: they have the axes, of lengths that the devices divide."""
    try:
        sharding.shard_shape(tuple(shape))
    except (IndexError, ValueError):
        return False
    return True


def check_shardings(arrays: Mapping[str, tuple[Sequence[int], Sharding | None]]) -> None:
    """Raises ValueError, with the path, where an array's shape can't be split as its sharding says."""
    for path, (shape, sharding) in arrays.items():
        if sharding is not None and not _splits(sharding, shape):
            said = sharding.spec if isinstance(sharding, NamedSharding) else sharding
            raise ValueError(
                f"sharding of {path or 'the array'}: {list(shape)} can't be split by {said} over {len(sharding.device_set)} "
                "devices; pass a sharding that divides its axes, or None"
            )


def _check_paths(found: Mapping[str, Any], leaves: Mapping[str, Any]) -> None:
    """Raises ValueError where a sharding is for no leaf, nor an array inside one."""
    for path in found:
        inside = any(path.startswith(f"{leaf}/") for leaf, x in leaves.items() if is_compressed(x))
        if path not in leaves and not inside:
            near = ", ".join(near_misses(path, leaves)) or "no leaf at all"
            raise ValueError(f"sharding: the file holds no {path}; nearest: {near}")


def abstract(shape: Sequence[int], dtype: np.dtype) -> jax.ShapeDtypeStruct:
    """What stands for an array that is not loaded; 64 bits stay."""
    return jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype))
