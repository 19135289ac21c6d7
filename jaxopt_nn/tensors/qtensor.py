"""Integer codes with scales: 1 to 8 bits, stored packed, prepared unpacked."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import PartitionSpec

from jaxopt_nn.numerics import affine, packing
from jaxopt_nn.tensors.base import Tensor


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["codes", "scale", "zero"],
    meta_fields=["bits", "signed", "float_dtype", "axis", "length", "order"],
)
@dataclasses.dataclass(frozen=True)
class QTensor(Tensor):
    """``(codes - zero) * scale``, in one of two forms of equal value.

    Stored: ``axis`` is set, and codes, less their smallest value, are packed at their true width along it. Prepared, or
    8 bits: ``axis`` is None and codes are plain integers.

    Attributes:
      codes: uint8 (packed, or unsigned), int8, or native int4, uint4, int2, uint2.
      scale: float32 (or bfloat16) of the weight's rank; along each axis 1, all entries, or a divisor of them (groups).
      zero: None, or broadcast like ``scale``.
      bits, signed: the range of the codes.
      float_dtype: name of the dtype that ``densify`` gives.
      axis, length: the packed axis, negative, never a stack axis, and its number of entries; None where nothing is packed.
      order: physical order of the trailing axes of prepared codes (negative axes), or None.
    """

    codes: Array
    scale: Array
    zero: Array | None
    bits: int
    signed: bool
    float_dtype: str
    axis: int | None = None
    length: int | None = None
    order: tuple[int, ...] | None = None

    @classmethod
    def quantize(
        cls, x: Array, scale: Array, zero: Array | None, *, bits: int, signed: bool, dtype: str, stack: Sequence[int] = ()
    ) -> QTensor:
        """Rounds ``x`` to codes, in stored form, packed along the axis (none of ``stack``) that gives the fewest bytes.

        Raises:
          ValueError: bits outside 1 to 8, or an ``x`` without entries.
        """
        if not 1 <= bits <= 8:
            raise ValueError(f"QTensor: bits={bits}; allowed are 1 to 8")
        if 0 in x.shape:
            raise ValueError(f"QTensor: shape {tuple(x.shape)} holds no entry; leave the leaf as it is")
        if zero is not None:
            zero = _compact(zero)
        if bits == 8 or x.ndim == len(stack):
            return cls(_codes(x, scale, zero, bits, signed, None), scale, zero, bits, signed, dtype)
        axis = _cheapest_axis(x.shape, bits, stack)
        codes = _codes(x, scale, zero, bits, signed, axis)
        return cls(codes, scale, zero, bits, signed, dtype, axis - x.ndim, x.shape[axis])

    @property
    def shape(self) -> tuple[int, ...]:
        shape = list(self.codes.shape)
        if self.axis is not None:
            shape[self.axis] = self.length
        if self.order is not None:
            head = len(shape) - len(self.order)
            tail = {logical: shape[head + i] for i, logical in enumerate(self.order)}
            shape[head:] = [tail[i] for i in range(-len(self.order), 0)]
        return tuple(shape)

    @property
    def dtype(self) -> np.dtype:
        return jnp.dtype(self.float_dtype)

    def densify(self) -> Array:
        return affine.dequantize(self.elementwise(), self.scale, self.zero, self.dtype)

    def elementwise(self) -> Array:
        """The codes, one integer an entry, in logical order; int8, or uint8 for unsigned codes."""
        codes = self.codes
        if self.axis is not None:
            qmin, _ = affine.code_range(self.bits, self.signed)
            codes = packing.unpack_bits(codes, self.bits, self.length, self.axis)
            return (codes.astype(jnp.int8) + jnp.int8(qmin)) if self.signed else codes
        if self.order is not None:
            head = codes.ndim - len(self.order)
            back = [head + self.order.index(i) for i in range(-len(self.order), 0)]
            codes = codes.transpose((*range(head), *back))
        return codes.astype(jnp.int8 if self.signed else jnp.uint8)

    def with_elementwise(self, codes: Array) -> QTensor:
        """The same scales with other codes, unpacked."""
        return dataclasses.replace(self, codes=codes, axis=None, length=None, order=None)

    def expand(self) -> QTensor:
        return self if self.axis is None and self.order is None else self.with_elementwise(self.elementwise())

    # -- layout --------------------------------------------------------------------------------------------------------

    def _each(self, fn: Any) -> QTensor:
        """``fn(child, is_codes)`` on codes, scale and zero of the expanded form."""
        t = self.expand()
        zero = None if t.zero is None else fn(t.zero, False)
        return dataclasses.replace(t, codes=fn(t.codes, True), scale=fn(t.scale, False), zero=zero)

    def cast(self, dtype: Any) -> QTensor:
        narrowed = jnp.finfo(dtype).bits < jnp.finfo(self.dtype).bits
        if not narrowed and jnp.dtype(dtype) != self.dtype and self.dtype != jnp.float32:
            return NotImplemented  # widening must keep the rounding of the narrow dtype
        return dataclasses.replace(self, float_dtype=jnp.dtype(dtype).name)

    def transpose(self, permutation: Sequence[int]) -> QTensor:
        return self._each(lambda x, _: x.transpose(permutation))

    def reshape(self, shape: Sequence[int]) -> QTensor:
        t = self.expand()
        scale = _reshaped_param(t.scale.shape, t.shape, tuple(shape))
        zero = None if t.zero is None else _reshaped_param(t.zero.shape, t.shape, tuple(shape))
        if scale is None or (t.zero is not None and zero is None):
            return NotImplemented
        return dataclasses.replace(
            t, codes=t.codes.reshape(shape), scale=t.scale.reshape(scale),
            zero=None if t.zero is None else t.zero.reshape(zero),
        )  # fmt: skip

    def slice(self, start: Sequence[int], limit: Sequence[int], strides: Sequence[int] | None = None) -> QTensor:
        t, strides = self.expand(), strides or [1] * self.ndim
        bounds = []
        for child in (t.scale, t.zero):
            per = None if child is None else _sliced_groups(child.shape, t.shape, start, limit, strides)
            if child is not None and per is None:
                return NotImplemented
            bounds.append(per)
        cut = lambda x, b: None if x is None else lax.slice(x, *b)
        return dataclasses.replace(
            t, codes=lax.slice(t.codes, start, limit, strides), scale=cut(t.scale, bounds[0]), zero=cut(t.zero, bounds[1])
        )

    def dynamic_slice(self, starts: Sequence[Any], sizes: Sequence[int]) -> QTensor:
        t = self.expand()
        for child in (t.scale, t.zero):
            if child is not None and any(d not in (1, n) and s != n for d, n, s in zip(child.shape, t.shape, sizes)):
                return NotImplemented

        def cut(x: Array, is_codes: bool) -> Array:
            at = [jnp.zeros_like(i) if x.shape[a] == 1 else i for a, i in enumerate(starts)]
            return lax.dynamic_slice(x, at, [min(s, x.shape[a]) for a, s in enumerate(sizes)])

        return self._each(cut)

    def index(self, i: Any, axis: int) -> QTensor:
        sizes = [1 if a == axis % self.ndim else n for a, n in enumerate(self.shape)]
        zero = jnp.zeros((), jnp.int32)
        part = self.dynamic_slice([jnp.asarray(i) if a == axis % self.ndim else zero for a in range(self.ndim)], sizes)
        return part if part is NotImplemented else part._each(lambda x, _: x.squeeze(axis))

    def split(self, sizes: Sequence[int], axis: int) -> Any:
        ends = np.cumsum(sizes)
        parts = []
        for end, size in zip(ends, sizes):
            start, limit = [0] * self.ndim, list(self.shape)
            start[axis], limit[axis] = int(end - size), int(end)
            parts.append(self.slice(start, limit))
        return NotImplemented if any(p is NotImplemented for p in parts) else parts

    def take(self, indices: Any, axis: int) -> Any:
        """Entries ``indices`` along ``axis``, as a tensor whose ``axis`` is replaced by the axes of ``indices``."""
        axis = axis % self.ndim
        if any(c is not None and c.shape[axis] not in (1, self.shape[axis]) for c in (self.scale, self.zero)):
            return NotImplemented
        t = self
        if self.order is not None or self.axis is not None and self.axis % self.ndim == axis:
            t = self.expand()

        def rows(x: Array) -> Array:
            ids = jnp.zeros_like(indices) if x.shape[axis] == 1 and t.shape[axis] != 1 else indices
            return jnp.take(x, ids, axis=axis, mode="clip")

        zero = None if t.zero is None else rows(t.zero)
        at = None if t.axis is None else (t.axis if t.axis % t.ndim > axis else t.axis)
        if at is not None and at % t.ndim < axis:
            at = at - (jnp.ndim(indices) - 1)
        return dataclasses.replace(t, codes=rows(t.codes), scale=rows(t.scale), zero=zero, axis=at)

    def cut(self, axis: int, keep: Any) -> Any:
        return self.take(jnp.asarray(keep), axis)

    def spec(self, partition: PartitionSpec) -> Any:
        """The children's PartitionSpecs for a weight that is sharded by ``partition``."""
        if self.order is not None or self.axis is not None:
            return NotImplemented
        entries = (*partition, *[None] * (self.ndim - len(partition)))

        def child(x: Array) -> PartitionSpec | None:
            if any(e is not None and d not in (1, n) for e, d, n in zip(entries, x.shape, self.shape)):
                return None
            return PartitionSpec(*(e if d == n and n > 1 else None for e, d, n in zip(entries, x.shape, self.shape)))

        scale, zero = child(self.scale), None if self.zero is None else child(self.zero)
        if scale is None or (self.zero is not None and zero is None):
            return NotImplemented
        return dataclasses.replace(self, codes=PartitionSpec(*entries), scale=scale, zero=zero)

    # -- arithmetic ----------------------------------------------------------------------------------------------------

    def dot_general(
        self, other: Any, dimension_numbers: Any, *, side: str = "rhs", precision: Any = None, preferred_element_type: Any = None
    ) -> Any:
        """Weight-only dot: codes in the other operand's dtype, scales on the output."""
        t, at = self.expand(), 1 if side == "rhs" else 0
        contracting, _ = dimension_numbers
        grouped = sorted({i for p in (t.scale, t.zero) if p is not None for i in contracting[at] if p.shape[i] > 1})
        if grouped or not jnp.issubdtype(other.dtype, jnp.floating):
            return NotImplemented
        dtype = preferred_element_type or jnp.result_type(other.dtype, self.dtype)
        codes = t.codes.astype(other.dtype)
        pair = (other, codes) if at else (codes, other)
        options = {"precision": precision, "preferred_element_type": jnp.float32}
        out = lax.dot_general(*pair, dimension_numbers, **options)
        lay = lambda p, where: to_output(p, where, dimension_numbers, out.ndim)
        spread = lambda p: affine.expand_groups(p.astype(jnp.float32), _ones(t.shape, contracting[at]))
        if t.zero is not None:
            sums = jnp.sum(other.astype(jnp.float32), axis=tuple(contracting[1 - at]), keepdims=True)
            out = out - lay(sums, 1 - at) * lay(spread(t.zero), at)
        return (out * lay(spread(t.scale), at)).astype(dtype)

    def conv(self, lhs: Any, **params: Any) -> Any:
        """Weight-only convolution: codes in the activation's dtype, scales on the output features."""
        t, numbers = self.expand(), params["dimension_numbers"]
        out_axis = numbers.rhs_spec[0]
        varies = any(n > 1 for i, n in enumerate(t.scale.shape) if i != out_axis)
        if t.zero is not None or varies or params["batch_group_count"] != 1:
            return NotImplemented
        dtype = params.get("preferred_element_type") or jnp.result_type(lhs.dtype, self.dtype)
        kept = {k: v for k, v in params.items() if k != "preferred_element_type"}
        out = lax.conv_general_dilated(lhs, t.codes.astype(lhs.dtype), **kept, preferred_element_type=jnp.float32)
        scale = affine.expand_groups(t.scale.astype(jnp.float32), _ones(t.shape, [i for i in range(t.ndim) if i != out_axis]))
        shape = [1] * out.ndim
        shape[numbers.out_spec[1]] = -1
        return (out * scale.reshape(shape)).astype(dtype)


def to_output(param: Array, side: int, dimension_numbers: Any, out_ndim: int) -> Array:
    """Lays a parameter of one operand (1 entry on its contracted axes) along the axes of the dot's output."""
    contracting, batch = dimension_numbers[0][side], dimension_numbers[1][side]
    free = [i for i in range(param.ndim) if i not in (*contracting, *batch)]
    kept = param.transpose((*batch, *free, *contracting)).reshape([param.shape[i] for i in (*batch, *free)])
    if side == 0:
        return kept.reshape((*kept.shape, *[1] * (out_ndim - kept.ndim)))
    head, tail = kept.shape[: len(batch)], kept.shape[len(batch) :]
    return kept.reshape((*head, *[1] * (out_ndim - kept.ndim), *tail))


def _ones(shape: Sequence[int], axes: Sequence[int]) -> tuple[int, ...]:
    return tuple(1 if i in axes else n for i, n in enumerate(shape))


def _compact(zero: Array) -> Array:
    """Zero points that are codes take a byte; the half of one bit stays float32."""
    whole = bool(jnp.all(zero == jnp.round(zero)))
    if not whole:
        return zero
    low = bool(jnp.any(zero < 0))
    return zero.astype(jnp.int8 if low else jnp.uint8)


@partial(jax.jit, static_argnums=(3, 4, 5))
def _codes(x: Array, scale: Array, zero: Array | None, bits: int, signed: bool, axis: int | None) -> Array:
    qmin, qmax = affine.code_range(bits, signed)
    codes = affine.quantize(x, scale, zero, qmin, qmax)
    if axis is None:
        return codes.astype(jnp.int8 if signed else jnp.uint8)
    return packing.pack_bits((codes - qmin).astype(jnp.uint8), bits, axis)


def _cheapest_axis(shape: Sequence[int], bits: int, stack: Sequence[int]) -> int:
    free = [i for i in range(len(shape)) if i not in stack]
    return min(free, key=lambda i: math.prod(shape) // shape[i] * packing.packed_length(shape[i], bits))


def _reshaped_param(param: Sequence[int], old: tuple[int, ...], new: tuple[int, ...]) -> list[int] | None:
    """The shape of a scale after its weight is reshaped, or None where it would no longer be one value a group."""
    out, i, j = [1] * len(new), 0, 0
    while i < len(old) or j < len(new):
        left, right = [i] if i < len(old) else [], [j] if j < len(new) else []
        i, j = i + len(left), j + len(right)
        a, b = math.prod(old[k] for k in left), math.prod(new[k] for k in right)
        while a != b:
            if a < b:
                a, left, i = a * old[i], [*left, i], i + 1
            else:
                b, right, j = b * new[j], [*right, j], j + 1
        counts = [param[k] for k in left if old[k] > 1]
        sizes = [old[k] for k in left if old[k] > 1]
        total = math.prod(counts)
        # runs of equal values must be consecutive: full axes first, then one grouped, then ones
        tail = [c for c, n in zip(counts, sizes)]
        while tail and tail[0] == sizes[len(sizes) - len(tail)]:
            tail = tail[1:]
        if any(c != 1 for c in tail[1:]):
            return None
        for k in right:
            n = math.gcd(total, new[k])
            if new[k] > 1 and total > 1:
                if total % new[k] == 0:
                    out[k], total = new[k], total // new[k]
                elif new[k] % total == 0:
                    out[k], total = total, 1
                else:
                    return None
            del n
        if total != 1:
            return None
    return out


def _sliced_groups(
    param: Sequence[int], shape: Sequence[int], start: Sequence[int], limit: Sequence[int], strides: Sequence[int]
) -> tuple[list[int], list[int], list[int]] | None:
    """The slice of a scale that goes with a slice of its weight, or None where a group would be cut."""
    bounds: tuple[list[int], list[int], list[int]] = ([], [], [])
    for d, n, a, b, s in zip(param, shape, start, limit, strides):
        if d == 1:
            piece = (0, 1, 1)
        elif d == n:
            piece = (a, b, s)
        elif s == 1 and a % (n // d) == 0 and b % (n // d) == 0:
            piece = (a // (n // d), b // (n // d), 1)
        else:
            return None
        for side, value in zip(bounds, piece):
            side.append(value)
    return bounds
