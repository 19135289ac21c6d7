"""A mask of one bit a weight, and the kept entries of whatever stands inside."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxopt_nn.numerics import affine, packing
from jaxopt_nn.tensors.base import Tensor, is_compressed
from jaxopt_nn.tensors.qtensor import QTensor


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["mask", "kept", "frame"],
    meta_fields=["inner_shape", "bits", "count", "float_dtype"],
)
@dataclasses.dataclass(frozen=True)
class Masked(Tensor):
    """Zero where the mask is False, the inner tensor elsewhere; of the inner tensor's entries only the kept are stored.

    Attributes:
      mask: uint8 ``[S..., bytes]``: one bit a weight over the flattened axes that are no stack axes (which lead).
      kept: ``[S..., n]`` the inner array's kept entries in flat order, or ``[S..., bytes]`` its codes at their width;
        layers that keep fewer than the fullest one are padded.
      frame: the inner QTensor without its codes, or None where a plain array stands inside.
      inner_shape: shape without the stack axes. bits, count: width and number of packed codes; None for a plain array.
      float_dtype: name of the dtype that ``densify`` gives.
    """

    mask: Array
    kept: Array
    frame: QTensor | None
    inner_shape: tuple[int, ...]
    bits: int | None
    count: int | None
    float_dtype: str

    @classmethod
    def pack(cls, mask: Array, inner: Any, stack_axes: int = 0) -> Masked:
        """Packs ``inner`` (an array or a QTensor) under ``mask`` (bool, same shape); ``stack_axes`` leading axes are stack.

        An inner tensor that can't represent zero exactly (one bit, symmetric) is kept as floats.
        """
        if is_compressed(inner) and not _holds_zero(inner):
            inner = inner.densify()
        dtype = inner.dtype
        frame, bits, values = None, None, inner
        if is_compressed(inner):
            values = inner.elementwise()
            bits, frame = inner.bits, inner.with_elementwise(None)
            qmin, _ = affine.code_range(bits, inner.signed)
            values = (values.astype(jnp.int16) - qmin).astype(jnp.uint8)
        stack, shape = mask.shape[:stack_axes], mask.shape[stack_axes:]
        rows = mask.reshape((*stack, math.prod(shape)))
        count = int(jnp.max(jnp.sum(rows, -1, dtype=jnp.int32)))
        kept = _compacted(rows, values.reshape(rows.shape), count)
        if bits is not None:
            kept = packing.pack_bits(kept, bits, -1)
        bitmap = packing.pack_bits(rows.astype(jnp.uint8), 1, -1)
        return cls(bitmap, kept, frame, tuple(shape), bits, None if bits is None else count, np.dtype(dtype).name)

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.mask.shape[:-1], *self.inner_shape)

    @property
    def dtype(self) -> np.dtype:
        return jnp.dtype(self.float_dtype)

    @property
    def stack_axes(self) -> int:
        return self.mask.ndim - 1

    def keep(self) -> Array:
        """The mask, bool, in the tensor's shape."""
        return packing.unpack_bits(self.mask, 1, math.prod(self.inner_shape), -1).astype(bool).reshape(self.shape)

    def expand(self) -> Any:
        """The inner tensor at its full size, zero where the mask is False."""
        keep = self.keep()
        rows = keep.reshape((*self.mask.shape[:-1], math.prod(self.inner_shape)))
        if self.frame is None:
            return _spread(rows, self.kept, jnp.zeros((), self.dtype)).reshape(self.shape)
        qmin, _ = affine.code_range(self.bits, self.frame.signed)
        codes = packing.unpack_bits(self.kept, self.bits, self.count, -1)
        full = _spread(rows, codes, jnp.zeros((), jnp.uint8)).reshape(self.shape)
        kind = jnp.int8 if self.frame.signed else jnp.uint8
        full = (full.astype(jnp.int16) + qmin).astype(kind)
        zero = jnp.zeros((), kind) if self.frame.zero is None else self.frame.zero.astype(kind)
        return self.frame.with_elementwise(jnp.where(keep, full, affine.expand_groups(zero, self.shape)))

    def densify(self) -> Array:
        inner = self.expand()
        inner = inner.densify() if is_compressed(inner) else inner
        return jnp.where(self.keep(), inner, jnp.zeros((), self.dtype))


def _holds_zero(inner: QTensor) -> bool:
    return inner.zero is None or not jnp.issubdtype(inner.zero.dtype, jnp.floating)


@partial(jax.jit, static_argnums=2)
def _compacted(rows: Array, values: Array, count: int) -> Array:
    """The kept entries of each row, in order, ``count`` of them (padded with zeros)."""
    place = jnp.where(rows, jnp.cumsum(rows, -1, dtype=jnp.int32) - 1, count)

    def one(place: Array, values: Array) -> Array:
        return jnp.zeros((count + 1,), values.dtype).at[place].set(values)[:count]

    flat = jax.vmap(one)(place.reshape((-1, rows.shape[-1])), values.reshape((-1, rows.shape[-1])))
    return flat.reshape((*rows.shape[:-1], count))


def _spread(rows: Array, kept: Array, fill: Array) -> Array:
    """The inverse of ``_compacted``: entries back at their places, ``fill`` elsewhere."""
    if kept.shape[-1] == 0:
        return jnp.full(rows.shape, fill)
    place = jnp.maximum(jnp.cumsum(rows, -1, dtype=jnp.int32) - 1, 0)
    return jnp.where(rows, jnp.take_along_axis(kept, place, axis=-1), fill)
