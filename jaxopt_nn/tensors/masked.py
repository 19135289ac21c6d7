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
from jaxopt_nn.tensors import layout
from jaxopt_nn.tensors.base import Tensor, is_compressed
from jaxopt_nn.tensors.packed import Packed, are_counts, is_count, is_order, require


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["mask", "kept", "frame"],
    meta_fields=["inner_shape", "count", "order", "block"],
)
@dataclasses.dataclass(frozen=True)
class Masked(Tensor):
    """Zero where the mask is False, the inner tensor elsewhere; of the inner tensor's entries only the kept are stored.

    The children lead with the stack axes, wherever those stand in the weight.

    Attributes:
      mask: uint8 ``[S..., bytes]``: one bit a weight, or a block, over the flattened axes that are no stack axes.
      kept: ``[S..., count]`` the inner array's kept entries in flat order, or uint8 ``[S..., bytes]``, the inner tensor's
        codes at their width, less the smallest of their range; layers that keep fewer than the fullest are padded.
      frame: the inner tensor, stack axes first, without its codes, or None where a plain array stands inside.
      inner_shape: shape without the stack axes.
      count: entries that the fullest layer keeps.
      order: which axis of the weight each trailing axis of ``[S..., *inner_shape]`` is (negative numbers); None: in order.
      block: lengths along ``inner_shape`` of the blocks that are kept or zero as one, the last of an axis may be shorter;
        None: each weight by itself.

    Example:
      >>> v = {"kernel": jnp.arange(32.0).reshape(8, 4)}
      >>> method = jn.prune(sparsity=0.75)
      >>> tensor = method.pack(v, method.init(v))["kernel"]
      >>> tensor.kept  # what is stored: 8 numbers, and a bit for each weight
      Array([24., 25., 26., 27., 28., 29., 30., 31.], dtype=float32)
      >>> tensor.nbytes, v["kernel"].nbytes
      (36, 128)
    """

    mask: Array
    kept: Array
    frame: Any
    inner_shape: tuple[int, ...]
    count: int
    order: tuple[int, ...] | None = None
    block: tuple[int, ...] | None = None

    @classmethod
    def pack(cls, mask: Array, inner: Any, stack: Sequence[int] = (), block: Sequence[int] | None = None) -> Masked:
        """Packs ``inner`` under ``mask``; host code, since the count of kept entries is a shape.

        An inner tensor needs ``elementwise, with_elementwise, zero_code, bits, signed``, as ``QTensor`` has them. One that
        has no code for zero (one bit, symmetric) is kept as floats instead.

        Args:
          mask: bool, of inner's shape; True is kept.
          inner: an array or a compressed tensor.
          stack: the stack axes, any.
          block: lengths of the blocks in which the mask is the same, along each axis, 1 along stack axes; stored once a block.

        Raises:
          TypeError: a mask that is not bool, an inner tensor without codes.
          ValueError: a mask of another shape, no entries, a stack axis that the weight has not.
        """
        check_inside("Masked", mask, inner)
        if tuple(mask.shape) != tuple(inner.shape):
            raise ValueError(f"Masked: a mask of shape {tuple(mask.shape)} for a weight of shape {tuple(inner.shape)}")
        if 0 in mask.shape:
            raise ValueError(f"Masked: shape {tuple(mask.shape)} holds no entry; leave the leaf as it is")
        leading = sorted(layout.axes_from_start(stack, mask.ndim, "Masked: stack"))
        order = [*leading, *(a for a in range(mask.ndim) if a not in leading)]
        trimmed, n = layout.trimmed(order, mask.ndim), len(leading)
        if is_compressed(inner) and inner.zero_code() is None:
            inner = inner.densify()
        if trimmed is not None:
            mask, inner = mask.transpose(order), inner.transpose(order)
        frame, entries = None, inner
        if is_compressed(inner):
            entries, frame = inner.elementwise(), inner.with_elementwise(None)
        lead, shape = mask.shape[:n], mask.shape[n:]
        frame = jax.tree.map(lambda p: affine.expand_groups(p, (*lead, *p.shape[n:])), frame)
        rows = np.asarray(mask, bool).reshape(math.prod(lead), math.prod(shape))
        values = np.asarray(entries).reshape(rows.shape)
        count = int(rows.sum(1).max())
        kept = np.zeros((len(rows), count), values.dtype)
        for target, row, keep in zip(kept, values, rows):
            found = row[keep]
            target[: found.size] = found
        stored = kept.reshape(*lead, count)
        if frame is not None:
            qmin, _ = affine.code_range(frame.bits, frame.signed)
            stored = packing.pack_bits_on_host((stored.astype(np.int16) - qmin).astype(np.uint8), frame.bits)
        inside = None if block is None else tuple(block[a] for a in order[n:])
        if inside is not None:
            rows = rows.reshape(len(rows), *shape)[(slice(None), *(slice(None, None, b) for b in inside))]
        bitmap = np.packbits(rows.reshape(*lead, -1), axis=-1, bitorder="little")
        return cls(jax.device_put(bitmap), jax.device_put(stored), frame, tuple(shape), count, trimmed, inside)

    @property
    def shape(self) -> tuple[int, ...]:
        lengths = dict(zip(self._places, self._lengths))
        return tuple(lengths[a] for a in range(len(lengths)))

    @property
    def dtype(self) -> Any:
        return self.kept.dtype if self.frame is None else self.frame.dtype

    @property
    def format(self) -> str:
        return f"{type(self).__name__}({self.dtype if self.frame is None else self.frame.format})"

    def describe(self) -> str:
        """``10 % kept, 4 bits``: the share in the layer that keeps most, and what the kept entries are."""
        sides = "" if self.block is None else f" in blocks of {' x '.join(map(str, self.block))}"
        share = f"{100 * self.count / math.prod(self.inner_shape):.3g} % kept{sides}"
        if self.frame is None:
            return f"{share}, {self.dtype}"
        codes = jax.ShapeDtypeStruct(self._lengths, jnp.uint8)
        packed = dataclasses.replace(self.frame, codes=codes, axis=-1, length=self._lengths[-1])
        return f"{share}, {packed.describe()}"

    @property
    def _grid(self) -> tuple[int, ...]:
        """How many blocks there are along each axis of ``inner_shape``."""
        block = self.block or (1,) * len(self.inner_shape)
        return tuple(-(-n // b) for n, b in zip(self.inner_shape, block))

    def coding(self) -> dict[str, Packed]:
        last = self.mask.ndim - 1
        coding = {"mask": Packed(1, last, self._grid, 0)}
        if self.frame is not None:
            zero = 2 ** (self.frame.bits - 1) if self.frame.signed else None
            coding["kept"] = Packed(self.frame.bits, last, (self.count,), zero)
        return coding

    def check(self) -> None:
        sizes, mask, kept, frame = self.inner_shape, self.mask, self.kept, self.frame
        blocks = self.block is None or (are_counts(self.block) and len(self.block) == len(sizes))
        require(are_counts(sizes) and is_count(self.count) and blocks, self, f"{sizes}, {self.count}, {self.block}")
        require(self.count <= math.prod(sizes), self, f"{self.count} kept entries of {sizes}")
        require(mask.ndim >= 1 and mask.dtype == jnp.uint8, self, f"a mask of {mask.dtype}{list(mask.shape)}")
        ndim = mask.ndim - 1 + len(sizes)
        require(is_order(self.order, ndim) and sorted(self._places) == list(range(ndim)), self, f"order={self.order}")
        require(kept.shape[:-1] == mask.shape[:-1] and kept.ndim == mask.ndim, self, f"{list(kept.shape)} kept entries")
        if frame is None:
            require(kept.shape[-1] == self.count, self, f"{list(kept.shape)} kept entries, not {self.count}")
        else:
            require(is_compressed(frame) and hasattr(frame, "bits"), self, f"{type(frame).__name__} stands inside")
            frame.with_elementwise(jax.ShapeDtypeStruct(self._lengths, jnp.int8 if frame.signed else jnp.uint8)).check()
        fits = all(packed.fits(getattr(self, name).shape) for name, packed in self.coding().items())
        require(fits, self, f"{list(mask.shape)}, {list(kept.shape)} don't hold {self.count} entries of {sizes}")

    @property
    def stack(self) -> tuple[int, ...]:
        """The stack axes."""
        return self._places[: self.mask.ndim - 1]

    @property
    def _lengths(self) -> tuple[int, ...]:
        return (*self.mask.shape[:-1], *self.inner_shape)

    @property
    def _places(self) -> tuple[int, ...]:
        """The weight's axis that each of ``_lengths`` is."""
        n, tail = len(self._lengths), self.order or ()
        return (*range(n - len(tail)), *(n + a for a in tail))

    def _turned(self, x: Any) -> Any:
        """From stack axes first to the weight's order."""
        places = self._places
        return x if self.order is None else x.transpose([places.index(a) for a in range(len(places))])

    def keep(self) -> Array:
        """The mask, bool, in the tensor's shape."""
        return self._turned(self._keep())

    def _keep(self) -> Array:
        block, lead, grid = self.block or (1,) * len(self.inner_shape), self.mask.shape[:-1], self._grid
        keep = packing.unpack_bits(self.mask, 1, math.prod(grid), -1).astype(bool).reshape(*lead, *grid)
        for axis, (n, b) in enumerate(zip(self.inner_shape, block), len(lead)):
            keep = keep if b == 1 else lax.slice_in_dim(jnp.repeat(keep, b, axis=axis), 0, n, axis=axis)
        return keep

    def expand(self) -> Any:
        """The inner tensor (or array) at its full size, zero where the mask is False."""
        keep, frame = self._keep(), self.frame
        if frame is None:
            return self._turned(jnp.where(keep, self._spread(self.kept), jnp.zeros((), self.dtype)))
        qmin, _ = affine.code_range(frame.bits, frame.signed)
        codes = self._spread(packing.unpack_bits(self.kept, frame.bits, self.count, -1))
        codes = (codes.astype(jnp.int16) + np.int16(qmin)).astype(jnp.int8 if frame.signed else jnp.uint8)
        codes = jnp.where(keep, codes, affine.expand_groups(frame.zero_code(), self._lengths))
        return self._turned(frame.with_elementwise(codes))

    def _spread(self, kept: Array) -> Array:
        """Entries back at their places; anything elsewhere."""
        if self.count == 0:
            return jnp.zeros(self._lengths, kept.dtype)
        mask = self.mask
        if self.block is not None:
            mask = packing.pack_bits(self._keep().reshape(*mask.shape[:-1], -1).astype(jnp.uint8), 1, -1)
        # The place of an entry among the kept: ones in the bytes before, and in its byte before it.
        ones = lax.population_count(mask).astype(jnp.int32)
        before = jnp.cumsum(ones, axis=-1) - ones
        below = np.array([2**bit - 1 for bit in range(8)], np.uint8).reshape((1,) * mask.ndim + (8,))
        within = lax.population_count(jnp.expand_dims(mask, -1) & below).astype(jnp.int32)
        place = (jnp.expand_dims(before, -1) + within).reshape(*mask.shape[:-1], -1)
        place = lax.slice_in_dim(place, 0, math.prod(self.inner_shape), axis=-1)
        return jnp.take_along_axis(kept, place, axis=-1, mode="clip").reshape(self._lengths)

    def densify(self) -> Array:
        inner = self.expand()
        return inner.densify() if is_compressed(inner) else inner

    def nest(self, inner: Any) -> Masked:
        """Keeps only the kept entries of ``inner``; of two masks an entry survives both."""
        if hasattr(inner, "keep"):
            return Masked.pack(self.keep() & inner.keep(), inner.expand(), self.stack)
        return Masked.pack(self.keep(), inner, self.stack, self._blocks())

    def _blocks(self) -> list[int] | None:
        """The lengths of blocks along each axis of the weight."""
        if self.block is None:
            return None
        lengths = dict(zip(self._places[len(self.stack) :], self.block))
        return [lengths.get(a, 1) for a in range(self.ndim)]

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

    def _named(self, places: Sequence[int]) -> Masked:
        """The same children as the axes ``places`` of a weight."""
        return dataclasses.replace(self, order=layout.trimmed(places, len(places)))

    def _kept_whole(self, per_axis: Sequence[Any], whole: Sequence[Any]) -> bool:
        """Whether an operation leaves every axis that is no stack axis as it is."""
        return all(per_axis[a] == whole[a] for a in range(self.ndim) if a not in self.stack)

    def leading(self) -> Any:
        return self if 0 in self.stack[:1] else NotImplemented

    def transpose(self, permutation: Sequence[int]) -> Any:
        moved = {a: i for i, a in enumerate(permutation)}
        places = [moved[a] for a in self._places]
        n = self.mask.ndim - 1
        if places[n:] != sorted(places[n:]) or places[:n] != sorted(places[:n]):
            return super().transpose(permutation)
        return self._named(places)

    def index(self, i: Any, axis: int) -> Any:
        axis = axis % self.ndim
        if axis not in self.stack:
            return super().index(i, axis)
        at = self.stack.index(axis)
        layer = self._layers(lambda x: lax.dynamic_index_in_dim(x, i, at, keepdims=False))
        return layer._named([a - (a > axis) for a in self._places if a != axis])

    def slice(self, start: Sequence[int], limit: Sequence[int], strides: Sequence[int] | None = None) -> Any:
        bounds = list(zip(start, limit, strides or [1] * self.ndim))
        if not self.stack or not self._kept_whole(bounds, [(0, size, 1) for size in self.shape]):
            return super().slice(start, limit, strides)
        lead = [bounds[a] for a in self.stack]
        return self._layers(lambda x: lax.slice(x, *zip(*lead, *((0, size, 1) for size in x.shape[len(lead) :]))))

    def dynamic_slice(self, starts: Sequence[Any], sizes: Sequence[int]) -> Any:
        stack, n = self.stack, len(self.stack)
        if not stack or not self._kept_whole(sizes, self.shape):
            return super().dynamic_slice(starts, sizes)
        at, taken = [starts[a] for a in stack], [sizes[a] for a in stack]
        rest = lambda x: [0] * (x.ndim - n)
        return self._layers(lambda x: lax.dynamic_slice(x, [*at, *rest(x)], [*taken, *x.shape[n:]]))

    def rev(self, dimensions: Sequence[int]) -> Any:
        stack = list(self.stack)
        if any(a not in stack for a in dimensions):
            return super().rev(dimensions)
        return self._layers(lambda x: lax.rev(x, [stack.index(a) for a in dimensions]))

    def reshape(self, shape: Sequence[int]) -> Any:
        n, shape = len(shape) - len(self.inner_shape), tuple(shape)
        if self.order is not None or n < 0 or shape[n:] != self.inner_shape:
            return super().reshape(shape)
        old = self.mask.ndim - 1
        return self._layers(lambda x: x.reshape(*shape[:n], *x.shape[old:]))

    def spec(self, partition: PartitionSpec, mesh: Any = None) -> Any:
        """Stack axes are sharded; NotImplemented where another axis is, since the kept entries lie in one stream."""
        entries = (*partition, *[None] * (self.ndim - len(partition)))
        if any(entries[a] is not None for a in range(self.ndim) if a not in self.stack):
            return NotImplemented
        return self._layers(lambda x: PartitionSpec(*(entries[a] for a in self.stack)))

    def cut(self, axis: int, keep: Any) -> Any:
        """Cuts the expanded tensor and packs it again; blocks that are cut apart are kept weight by weight. Host code."""
        keep, axis, blocks = np.asarray(keep), axis % self.ndim, self._blocks()
        wide, mask = _expanded(self)
        wide = wide.cut(axis, keep) if is_compressed(wide) else np.take(np.asarray(wide), keep, axis=axis)
        if wide is NotImplemented:
            return NotImplemented
        if blocks is not None:
            own, first = keep // blocks[axis], np.arange(len(keep)) // blocks[axis] * blocks[axis]
            blocks[axis] = blocks[axis] if np.array_equal(own, own[first]) else 1
        return Masked.pack(np.take(np.asarray(mask), keep, axis=axis), wide, self.stack, blocks)


def check_inside(what: str, mask: Any, inner: Any) -> None:
    """Raises TypeError where a mask is not bool, or a tensor can't stand under one."""
    if mask.dtype != np.bool_:
        raise TypeError(f"{what}: the mask is {mask.dtype}; pass bool, True for what is kept, e.g. mask != 0")
    if is_compressed(inner) and not hasattr(inner, "zero_code"):
        raise TypeError(
            f"{what}: {inner.format} has no codes of single weights, of which a mask could keep some; pass an array, "
            "jaxopt_nn.densify(tensor), or a tensor with codes such as QTensor"
        )


@jax.jit
def _expanded(tensor: Masked) -> tuple[Any, Array]:
    """Its inner tensor at full size, and the mask: one program, where each operation by itself would be one."""
    return tensor.expand(), tensor.keep()
