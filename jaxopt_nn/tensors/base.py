"""What a compressed tensor is: a pytree node that stands where a leaf stood."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

PyTree = Any


@runtime_checkable
class CompressedTensor(Protocol):
    """A frozen pytree dataclass in a leaf's place.

    ``shape`` is computed from the children, so that scan and vmap may slice a stack axis off. Each operation of the
    algebra gives a compressed tensor (or an array, where it computes), or ``NotImplemented``.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> Any: ...
    @property
    def nbytes(self) -> int: ...
    def densify(self) -> jax.Array: ...
    def expand(self) -> Any: ...


class Tensor:
    """Defaults: every operation of the algebra is tried on the expanded form, else ``NotImplemented``."""

    shape: tuple[int, ...]
    dtype: Any

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """True bytes of the children; sub-byte dtypes count their bits."""
        return sum(array_bytes(x) for x in jax.tree.leaves(self))

    def densify(self) -> jax.Array:
        """The float array that the tensor stands for."""
        raise TypeError(f"{type(self).__name__} has no densify")

    def expand(self) -> Any:
        """An equivalent tensor or array without packing along an axis; itself where there is none."""
        return self

    def _expanded(self, operation: str, *args: Any, **kwargs: Any) -> Any:
        wide = self.expand()
        return NotImplemented if wide is self or not is_compressed(wide) else getattr(wide, operation)(*args, **kwargs)

    def cast(self, dtype: Any) -> Any:
        return self._expanded("cast", dtype)

    def transpose(self, permutation: Sequence[int]) -> Any:
        return self._expanded("transpose", permutation)

    def reshape(self, shape: Sequence[int]) -> Any:
        return self._expanded("reshape", shape)

    def index(self, i: Any, axis: int) -> Any:
        return self._expanded("index", i, axis)

    def slice(self, start: Sequence[int], limit: Sequence[int], strides: Sequence[int] | None = None) -> Any:
        return self._expanded("slice", start, limit, strides)

    def dynamic_slice(self, starts: Sequence[Any], sizes: Sequence[int]) -> Any:
        return self._expanded("dynamic_slice", starts, sizes)

    def split(self, sizes: Sequence[int], axis: int) -> Any:
        return self._expanded("split", sizes, axis)

    def take(self, indices: Any, axis: int) -> Any:
        return self._expanded("take", indices, axis)

    def dot_general(self, other: Any, dimension_numbers: Any, **options: Any) -> Any:
        return self._expanded("dot_general", other, dimension_numbers, **options)

    def conv(self, lhs: Any, **params: Any) -> Any:
        return self._expanded("conv", lhs, **params)

    def spec(self, partition: Any) -> Any:
        return self._expanded("spec", partition)

    def cut(self, axis: int, keep: Any) -> Any:
        return self._expanded("cut", axis, keep)


def is_compressed(x: Any) -> bool:
    """Whether ``x`` is a compressed tensor."""
    return isinstance(x, Tensor)


def densify(tree: PyTree) -> PyTree:
    """The tree with every compressed tensor as the float array that it stands for."""
    return jax.tree.map(lambda x: x.densify() if is_compressed(x) else x, tree, is_leaf=is_compressed)


def nbytes(tree: PyTree) -> int:
    """True bytes of all arrays of a tree; sub-byte dtypes count their bits."""
    return sum(array_bytes(x) for x in jax.tree.leaves(tree))


def array_bytes(x: Any) -> int:
    """True bytes of one array or abstract array, rounded up; a typed PRNG key counts its data."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return array_bytes(jax.eval_shape(jax.random.key_data, x))
    return -(-math.prod(x.shape) * bits_of(x.dtype) // 8)


def bits_of(dtype: Any) -> int:
    """Bits of an entry of ``dtype``."""
    return jax.dtypes.itemsize_bits(dtype)
