"""What a compressed tensor is: a pytree node that stands where a leaf stood."""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import Array

from jaxopt_nn.tensors.packed import Packed

PyTree = Any


@runtime_checkable
class CompressedTensor(Protocol):
    """A frozen pytree dataclass in a leaf's place.

    ``shape`` is computed from the children, so that scan and vmap may slice a stack axis off: static data holds none,
    and names other axes from the end. Children may be abstract (``jax.ShapeDtypeStruct``) for all but the values.

    ``densify()`` gives the float array, ``nbytes`` the true bytes, ``dtype`` what ``densify`` gives; ``expand()`` is an equal
    tensor with nothing packed along an axis.

    Example:
      >>> v = {"kernel": jnp.linspace(-1, 1, 64).reshape(8, 8)}
      >>> method = jn.quantize(4)
      >>> tensor = method.pack(v, method.init(v))["kernel"]
      >>> isinstance(tensor, jn.CompressedTensor), tensor.shape, tensor.dtype.name
      (True, (8, 8), 'float32')
      >>> tensor.nbytes, tensor.densify().nbytes
      (64, 256)
      >>> len(jax.tree.leaves(tensor))  # a pytree: its children are arrays
      2
    """

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> Any: ...
    @property
    def nbytes(self) -> int: ...
    def densify(self) -> Array: ...
    def expand(self) -> Any: ...


class Tensor(abc.ABC):
    """Defaults of a compressed tensor: every operation is tried on the expanded form, else ``NotImplemented``.

    An operation moves entries: it gives a compressed tensor whose ``densify()`` equals the operation on ``densify()``, to
    the bit. Whoever gets ``NotImplemented`` densifies and says so. Products are programs, which ``formulations`` has; they
    ask a tensor what it is (``coded``).
    """

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Computed from the children."""

    @property
    @abc.abstractmethod
    def dtype(self) -> Any:
        """The float dtype that ``densify`` gives."""

    @abc.abstractmethod
    def densify(self) -> Array:
        """The float array that the tensor stands for."""

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """True bytes of the children; sub-byte dtypes count their bits."""
        return nbytes(jax.tree.leaves(self))

    def expand(self) -> Any:
        """An equivalent tensor or array with nothing packed along an axis; itself where that is so already."""
        return self

    def leading(self) -> Any:
        """An equivalent tensor that ``scan`` may slice: the first axis of each child is the tensor's own."""
        return self

    @property
    def format(self) -> str:
        """What it is, in a few words, for reports."""
        return f"{type(self).__name__} {self.dtype}"

    def describe(self) -> str:
        """What stands there, for a report: ``4 bits, groups of 64``."""
        return self.format

    def coded(self) -> Any:
        """The tensor by its codes (a ``Coded``), an entry each, for programs that run on them; None where it has none."""
        wide = self.expand()
        return None if wide is self or not is_compressed(wide) else wide.coded()

    def map_parts(self, fn: Any) -> Any:
        """The tensor with ``fn(part)`` in the place of each array or tensor whose products or sums it stands for.

        NotImplemented where it is not made of parts.
        """
        return NotImplemented

    def dot_general(self, other: Any, dims: Any, side: int, product: Any) -> Any:
        """``lax.dot_general`` with an array, of what is made of parts; NotImplemented: multiply with what ``densify`` gives.

        Args:
          other: the array. dims: as ``lax.dot_general``. side: which operand the tensor is, 0 or 1.
          product: ``(array, part, dims, last) -> array`` of one of its parts; the result of the last is that of the dot.
        """
        return NotImplemented

    def conv(self, lhs: Any, params: Any, product: Any) -> Any:
        """``lax.conv_general_dilated`` of an array, with the tensor as kernel, as ``dot_general``.

        Args:
          params: of the equation. product: ``(array, kernel, params that differ, last) -> array``.
        """
        return NotImplemented

    def coding(self) -> dict[str, Packed]:
        """By the child's name, which children are packed codes and how; others are arrays of numbers, or tensors."""
        return {}

    def check(self) -> None:
        """Raises ValueError where children and static data, as a file gave them, can't be of one tensor.

        Children may be abstract. Here ``densify`` is traced; a format whose static data could make that large overrides it.
        """
        try:
            dense = jax.eval_shape(lambda tensor: tensor.densify(), self)
        except jax.errors.TracerArrayConversionError:
            return  # host code, which can't be traced
        except Exception as error:
            raise ValueError(f"{type(self).__name__}: its arrays and fields don't fit each other: {error}") from error
        if (dense.shape, dense.dtype) != (tuple(self.shape), self.dtype):
            raise ValueError(f"{type(self).__name__}: stands for {dense.dtype}{dense.shape}, says {self.dtype}{self.shape}")

    def nest(self, inner: Any) -> Any:
        """What packing this first and then ``inner``, made from this one's view, gives.

        Args:
          inner: a compressed tensor, or an array whose values a later member changed.

        Raises:
          TypeError: nothing can stand inside a tensor of this kind.
        """
        raise TypeError(f"{type(inner).__name__} can't stand inside {type(self).__name__}; only a mask holds a tensor")

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        """What stands in the place of an array's operators: a plain ``apply`` got compressed weights."""
        raise TypeError(self.no_array())

    def no_array(self) -> str:
        """What to say where an array was expected."""
        return (
            f"a {type(self).__name__} of shape {self.shape} is no array: run the model as jaxopt_nn.Network(apply, variables) "
            "or jaxopt_nn.rewrite(apply), which compute on compressed weights, or call jaxopt_nn.densify(variables) first"
        )

    __array__ = __jax_array__ = __getitem__ = __iter__ = __len__ = __float__ = __int__ = __bool__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _refuse
    __matmul__ = __rmatmul__ = __pow__ = __rpow__ = __neg__ = __pos__ = __abs__ = _refuse
    __lt__ = __le__ = __gt__ = __ge__ = _refuse

    def __getattr__(self, name: str) -> Any:
        """Raises AttributeError; of what an array has (``T``, ``astype``), says what to do."""
        if hasattr(jax.Array, name) and not hasattr(type(self), name) and not name.startswith("__"):
            raise AttributeError(f"{name}: {self.no_array()}")
        return object.__getattribute__(self, name)

    def _expanded(self, operation: str, *args: Any, **kwargs: Any) -> Any:
        wide = self.expand()
        return NotImplemented if wide is self or not is_compressed(wide) else getattr(wide, operation)(*args, **kwargs)

    def cast(self, dtype: Any) -> Any:
        """To another float dtype."""
        return self._expanded("cast", dtype)

    def transpose(self, permutation: Sequence[int]) -> Any:
        return self._expanded("transpose", permutation)

    def reshape(self, shape: Sequence[int]) -> Any:
        return self._expanded("reshape", shape)

    def index(self, i: Any, axis: int) -> Any:
        """The entry ``i`` (may be traced) of an axis, without that axis."""
        return self._expanded("index", i, axis)

    def slice(self, start: Sequence[int], limit: Sequence[int], strides: Sequence[int] | None = None) -> Any:
        """As ``lax.slice``."""
        return self._expanded("slice", start, limit, strides)

    def dynamic_slice(self, starts: Sequence[Any], sizes: Sequence[int]) -> Any:
        """As ``lax.dynamic_slice``."""
        return self._expanded("dynamic_slice", starts, sizes)

    def rev(self, dimensions: Sequence[int]) -> Any:
        """As ``lax.rev``: the entries of these axes in the opposite order."""
        return self._expanded("rev", dimensions)

    def split(self, sizes: Sequence[int], axis: int) -> Any:
        """As ``lax.split``: a list of tensors."""
        sizes, axis = list(sizes), axis % self.ndim
        parts = []
        for k, size in enumerate(sizes):
            start, limit = [0] * self.ndim, list(self.shape)
            start[axis], limit[axis] = sum(sizes[:k]), sum(sizes[:k]) + size
            parts.append(self.slice(start, limit))
        return NotImplemented if any(part is NotImplemented for part in parts) else parts

    def take(self, indices: Any, axis: int) -> Any:
        """The entries ``indices`` of an axis, which the axes of ``indices`` replace; indices out of range are clipped."""
        return self._expanded("take", indices, axis)

    def concatenate(self, others: Sequence[Any], axis: int) -> Any:
        """As ``lax.concatenate([self, *others], axis)``; NotImplemented for tensors of different formats."""
        return NotImplemented

    def spec(self, partition: Any, mesh: Any = None) -> Any:
        """The ``PartitionSpec`` of each child, in this tensor's structure, for a weight sharded by ``partition``."""
        return NotImplemented

    def cut(self, axis: int, keep: Any) -> Any:
        """The tensor with the entries ``keep`` of an axis only, in the same form; host code."""
        return self._expanded("cut", axis, keep)


def is_compressed(x: Any) -> bool:
    """Whether ``x`` is a compressed tensor.

    A plain array, abstract or not, is none, whatever its dtype.

    Example:
      >>> v = {"kernel": jnp.ones((64, 64)), "bias": jnp.zeros(64)}
      >>> method = jn.where("kernel", jn.quantize(4))
      >>> stored = method.pack(v, method.init(v))
      >>> {path: jn.is_compressed(leaf) for path, leaf in stored.items()}
      {'bias': False, 'kernel': True}
      >>> len(jax.tree.leaves(stored, is_leaf=jn.is_compressed)), len(jax.tree.leaves(stored))
      (2, 3)
    """
    return isinstance(x, Tensor)


def check_dense(tree: PyTree) -> None:
    """Raises TypeError, as an operator on one would, where a tree holds a compressed tensor."""
    for leaf in jax.tree.leaves(tree, is_leaf=is_compressed):
        if is_compressed(leaf):
            raise TypeError(leaf.no_array())


def densify(tree: PyTree) -> PyTree:
    """The tree with every compressed tensor as the float array that it stands for.

    Args:
      tree: any pytree; other leaves pass through.

    Returns:
      A tree of that structure; each tensor's array has its shape and its ``dtype``.

    Example:
      >>> v = {"kernel": jnp.tile(jnp.array([[0.8], [-1.5]]), (16, 4))}
      >>> method = jn.quantize(2)
      >>> stored = method.pack(v, method.init(v))
      >>> jn.densify(stored)["kernel"][:2, 0]
      Array([ 1.5, -1.5], dtype=float32)
    """
    return jax.tree.map(lambda x: x.densify() if is_compressed(x) else x, tree, is_leaf=is_compressed)


def nbytes(tree: PyTree) -> int:
    """True bytes of all arrays of a tree; sub-byte dtypes count their bits.

    Args:
      tree: any pytree of arrays, ``jax.ShapeDtypeStruct`` and compressed tensors. A PRNG key counts its data, a Python number
        as the array that JAX makes of it.

    Example:
      >>> jn.nbytes({"a": jnp.ones((3, 5)), "b": jnp.ones(7, jnp.bfloat16)})
      74
      >>> jn.nbytes(jax.ShapeDtypeStruct((9,), jnp.int4))  # 4.5, rounded up; arr.nbytes says a byte an entry
      5
    """
    return sum(array_bytes(x) for x in jax.tree.leaves(tree))


def array_bytes(x: Any) -> int:
    """True bytes of one array or abstract array, rounded up; a typed PRNG key counts its data."""
    if not hasattr(x, "dtype"):
        x = jax.eval_shape(jnp.asarray, x)
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return array_bytes(jax.eval_shape(jax.random.key_data, x))
    return -(-math.prod(x.shape) * bits_of(x.dtype) // 8)


def bits_of(dtype: Any) -> int:
    """Bits of an entry of ``dtype``."""
    return jax.dtypes.itemsize_bits(dtype)
