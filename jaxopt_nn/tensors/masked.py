"""A mask of one bit a weight, and the kept entries of whatever stands inside."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import PartitionSpec

from jaxopt_nn.numerics import affine, packing
from jaxopt_nn.tensors.base import Tensor, is_compressed


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["mask", "kept", "frame"],
    meta_fields=["inner_shape", "count"],
)
@dataclasses.dataclass(frozen=True)
class Masked(Tensor):
    """Zero where the mask is False, the inner tensor elsewhere; of the inner tensor's entries only the kept are stored.

    Attributes:
      mask: uint8 ``[S..., bytes]``: one bit a weight over the flattened axes that are no stack axes (which lead).
      kept: ``[S..., count]`` the inner array's kept entries in flat order, or uint8 ``[S..., bytes]``, the inner tensor's
        codes at their width, less the smallest of their range; layers that keep fewer than the fullest are padded.
      frame: the inner tensor without its codes, or None where a plain array stands inside.
      inner_shape: shape without the stack axes.
      count: entries that the fullest layer keeps.
    """

    mask: Array
    kept: Array
    frame: Any
    inner_shape: tuple[int, ...]
    count: int

    @classmethod
    def pack(cls, mask: Array, inner: Any, stack_axes: int = 0) -> Masked:
        """Packs ``inner`` under ``mask``; host code, since the count of kept entries is a shape.

        An inner tensor needs ``elementwise, with_elementwise, zero_code, bits, signed``, as ``QTensor`` has them. One that
        has no code for zero (one bit, symmetric) is kept as floats instead.

        Args:
          mask: bool, of inner's shape; True is kept.
          inner: an array or a compressed tensor.
          stack_axes: how many leading axes are stack axes.

        Raises:
          ValueError: a mask of another shape, no entries.
        """
        if tuple(mask.shape) != tuple(inner.shape):
            raise ValueError(f"Masked: a mask of shape {tuple(mask.shape)} for a weight of shape {tuple(inner.shape)}")
        if 0 in mask.shape:
            raise ValueError(f"Masked: shape {tuple(mask.shape)} holds no entry; leave the leaf as it is")
        if is_compressed(inner) and inner.zero_code() is None:
            inner = inner.densify()
        frame, entries = None, inner
        if is_compressed(inner):
            entries, frame = inner.elementwise(), inner.with_elementwise(None)
        stack, shape = mask.shape[:stack_axes], mask.shape[stack_axes:]
        frame = jax.tree.map(lambda p: affine.expand_groups(p, (*stack, *p.shape[stack_axes:])), frame)
        rows = np.asarray(mask, bool).reshape(math.prod(stack), math.prod(shape))
        values = np.asarray(entries).reshape(rows.shape)
        count = int(rows.sum(1).max())
        kept = np.zeros((len(rows), count), values.dtype)
        for target, row, keep in zip(kept, values, rows):
            found = row[keep]
            target[: found.size] = found
        stored = jnp.asarray(kept.reshape(*stack, count))
        if frame is not None:
            qmin, _ = affine.code_range(frame.bits, frame.signed)
            stored = packing.pack_bits((stored.astype(jnp.int32) - qmin).astype(jnp.uint8), frame.bits, -1)
        bitmap = np.packbits(rows.reshape(*stack, -1), axis=-1, bitorder="little")
        return cls(jnp.asarray(bitmap), stored, frame, tuple(shape), count)

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.mask.shape[:-1], *self.inner_shape)

    @property
    def dtype(self) -> Any:
        return self.kept.dtype if self.frame is None else self.frame.dtype

    @property
    def stack_axes(self) -> int:
        return self.mask.ndim - 1

    def keep(self) -> Array:
        """The mask, bool, in the tensor's shape."""
        return packing.unpack_bits(self.mask, 1, math.prod(self.inner_shape), -1).astype(bool).reshape(self.shape)

    def expand(self) -> Any:
        """The inner tensor (or array) at its full size, zero where the mask is False."""
        keep = self.keep()
        if self.frame is None:
            return jnp.where(keep, self._spread(self.kept), jnp.zeros((), self.dtype))
        frame = self.frame
        qmin, _ = affine.code_range(frame.bits, frame.signed)
        codes = self._spread(packing.unpack_bits(self.kept, frame.bits, self.count, -1))
        codes = (codes.astype(jnp.int16) + np.int16(qmin)).astype(jnp.int8 if frame.signed else jnp.uint8)
        return frame.with_elementwise(jnp.where(keep, codes, affine.expand_groups(frame.zero_code(), self.shape)))

    def _spread(self, kept: Array) -> Array:
        """Entries back at their places; anything elsewhere."""
        if self.count == 0:
            return jnp.zeros(self.shape, kept.dtype)
        # The place of an entry among the kept: ones in the bytes before, and in its byte before it.
        ones = lax.population_count(self.mask).astype(jnp.int32)
        before = jnp.cumsum(ones, axis=-1) - ones
        below = np.array([2**bit - 1 for bit in range(8)], np.uint8).reshape((1,) * self.mask.ndim + (8,))
        within = lax.population_count(jnp.expand_dims(self.mask, -1) & below).astype(jnp.int32)
        place = (jnp.expand_dims(before, -1) + within).reshape(*self.mask.shape[:-1], -1)
        place = lax.slice_in_dim(place, 0, math.prod(self.inner_shape), axis=-1)
        return jnp.take_along_axis(kept, place, axis=-1, mode="clip").reshape(self.shape)

    def densify(self) -> Array:
        inner = self.expand()
        return inner.densify() if is_compressed(inner) else inner

    def cast(self, dtype: Any) -> Any:
        if not jnp.issubdtype(dtype, jnp.floating):
            return NotImplemented
        if self.frame is None:
            return dataclasses.replace(self, kept=self.kept.astype(dtype))
        frame = self.frame.cast(dtype)
        return NotImplemented if frame is NotImplemented else dataclasses.replace(self, frame=frame)

    def _layers(self, fn: Callable[[Array], Any]) -> Masked:
        """``fn`` on every child: all lead with the stack axes."""
        return jax.tree.map(fn, self)

    def index(self, i: Any, axis: int) -> Any:
        axis = axis % self.ndim
        if axis >= self.stack_axes:
            return super().index(i, axis)
        return self._layers(lambda x: lax.dynamic_index_in_dim(x, i, axis, keepdims=False))

    def slice(self, start: Sequence[int], limit: Sequence[int], strides: Sequence[int] | None = None) -> Any:
        n = self.stack_axes
        bounds = list(zip(start, limit, strides or [1] * self.ndim))
        if n == 0 or any(b != (0, size, 1) for b, size in zip(bounds[n:], self.inner_shape)):
            return super().slice(start, limit, strides)
        return self._layers(lambda x: lax.slice(x, *zip(*bounds[:n], *((0, size, 1) for size in x.shape[n:]))))

    def dynamic_slice(self, starts: Sequence[Any], sizes: Sequence[int]) -> Any:
        n = self.stack_axes
        if n == 0 or tuple(sizes[n:]) != self.inner_shape:
            return super().dynamic_slice(starts, sizes)
        at = lambda x: [*starts[:n], *[0] * (x.ndim - n)]
        return self._layers(lambda x: lax.dynamic_slice(x, at(x), [*sizes[:n], *x.shape[n:]]))

    def rev(self, dimensions: Sequence[int]) -> Any:
        if any(a >= self.stack_axes for a in dimensions):
            return super().rev(dimensions)
        return self._layers(lambda x: lax.rev(x, dimensions))

    def reshape(self, shape: Sequence[int]) -> Any:
        n, shape = len(shape) - len(self.inner_shape), tuple(shape)
        if n < 0 or shape[n:] != self.inner_shape:
            return super().reshape(shape)
        old = self.stack_axes
        return self._layers(lambda x: x.reshape(*shape[:n], *x.shape[old:]))

    def spec(self, partition: PartitionSpec, mesh: Any = None) -> Any:
        """Stack axes are sharded; NotImplemented where another axis is, since the kept entries lie in one stream."""
        n = self.stack_axes
        if any(entry is not None for entry in partition[n:]):
            return NotImplemented
        return self._layers(lambda x: PartitionSpec(*partition[:n]))

    def cut(self, axis: int, keep: Any) -> Any:
        """Cuts the expanded tensor and packs it again; host code."""
        wide, mask = self.expand(), jnp.take(self.keep(), np.asarray(keep), axis=axis)
        wide = wide.cut(axis, keep) if is_compressed(wide) else jnp.take(wide, np.asarray(keep), axis=axis)
        return NotImplemented if wide is NotImplemented else Masked.pack(mask, wide, self.stack_axes)
