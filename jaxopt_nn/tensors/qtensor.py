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
from jax.typing import ArrayLike, DTypeLike

from jaxopt_nn.numerics import affine, packing
from jaxopt_nn.tensors import encode, layout, products
from jaxopt_nn.tensors.base import Tensor

#: Codes that a TPU stores and reads packed.
_NATIVE = {(4, True): jnp.int4, (4, False): jnp.uint4, (2, True): jnp.int2, (2, False): jnp.uint2}


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["codes", "scale", "zero"],
    meta_fields=["bits", "signed", "float_dtype", "axis", "length", "order", "rounding"],
)
@dataclasses.dataclass(frozen=True)
class QTensor(Tensor):
    """``(codes - zero) * scale``, in one of two forms of equal value.

    Stored: ``axis`` is set, and codes, less the smallest of their range, are packed at their true width along it.
    Prepared, or 8 bits: ``axis`` is None and codes are plain integers.

    Attributes:
      codes: uint8 (packed, or unsigned), int8, or native int4, uint4, int2, uint2. Its axes may stand in another order.
      scale: float32 (or bfloat16) of the weight's rank and axis order; along each axis 1 entry, all, or a divisor of them
        (each for a run of consecutive entries).
      zero: None, or integers or floats that broadcast like ``scale`` (its own groups).
      bits, signed: the range of the codes.
      float_dtype: name of the dtype that ``densify`` gives.
      axis, length: the packed axis, negative, never a stack axis, and its number of entries; None where nothing is packed.
      order: which axis of the weight each of the trailing axes of ``codes`` is (negative numbers); None: in order.
      rounding: name of a narrower float dtype that values are rounded to before ``float_dtype``, or None.
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
    rounding: str | None = None

    @classmethod
    def quantize(
        cls,
        x: Array,
        scale: ArrayLike,
        zero: ArrayLike | None = None,
        *,
        bits: int,
        signed: bool = True,
        dtype: DTypeLike | None = None,
        stack: Sequence[int] = (),
        axis: int | None = None,
        narrow: bool = False,
        name: str = "weight",
    ) -> QTensor:
        """Rounds ``x`` to codes, in stored form: ``densify()`` is ``affine.fake_quant(x, scale, zero, ...)`` to the bit.

        Args:
          x: floats of any rank.
          scale: of x's rank, per axis 1, all, or a divisor; it is repeated over stack axes, so that each layer has its own.
          zero: None, or like ``scale``. Integers within the code range are stored in a byte each; where a trace hides
            their values they are so only if they come as integers.
          bits: 1 to 8. signed, narrow: as in ``affine.code_range``.
          dtype: what ``densify`` gives; x's if None.
          stack: axes along which scan or vmap slices: never packed.
          axis: the axis to pack; if None, that outside ``stack`` with the fewest bytes, the first of equals.
          name: what messages call the tensor, such as its path.

        Raises:
          ValueError: bits outside 1 to 8, no entries, a scale or zero that does not fit, a packed stack axis.
        """
        scale, zero, axis = encode.checked(x.shape, scale, zero, bits, signed, stack, axis, name)
        codes = encode.rounded(x, scale, zero, bits, signed, narrow, axis)
        return cls._made(codes, scale, zero, bits, signed, dtype or x.dtype, axis, x.shape)

    @classmethod
    def from_codes(
        cls,
        codes: Array,
        scale: ArrayLike,
        zero: ArrayLike | None = None,
        *,
        bits: int,
        signed: bool = True,
        dtype: DTypeLike = jnp.float32,
        stack: Sequence[int] = (),
        axis: int | None = None,
        name: str = "weight",
    ) -> QTensor:
        """The stored form of codes that were found elsewhere: integers (of any dtype) within the range of ``bits``."""
        scale, zero, axis = encode.checked(codes.shape, scale, zero, bits, signed, stack, axis, name)
        return cls._made(encode.stored(codes, bits, signed, axis), scale, zero, bits, signed, dtype, axis, codes.shape)

    @classmethod
    def _made(
        cls,
        codes: Array,
        scale: Array,
        zero: Array | None,
        bits: int,
        signed: bool,
        dtype: DTypeLike,
        axis: int | None,
        shape: tuple[int, ...],
    ) -> QTensor:
        place = (None, None) if axis is None else (axis - len(shape), shape[axis])
        return cls(codes, scale, zero, bits, signed, jnp.dtype(dtype).name, *place)

    # -- what it is ----------------------------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        shape = dict(zip(self._order, self.codes.shape))
        if self.axis is not None and self.length is not None:
            shape[self.axis % len(shape)] = self.length
        return tuple(shape[a] for a in range(len(shape)))

    @property
    def dtype(self) -> np.dtype:
        return jnp.dtype(self.float_dtype)

    @property
    def _order(self) -> tuple[int, ...]:
        """The weight's axis that each axis of ``codes`` is."""
        n, tail = self.codes.ndim, self.order or ()
        return (*range(n - len(tail)), *(n + a for a in tail))

    def densify(self) -> Array:
        value = affine.dequantize(self.elementwise(), self.scale, self.zero, self.rounding or self.dtype)
        return value.astype(self.dtype)

    def elementwise(self) -> Array:
        """The codes, one integer an entry, in the weight's axis order: int8, or uint8 for unsigned codes."""
        wide = self.expand()
        codes = wide.codes.astype(jnp.int8 if self.signed else jnp.uint8)
        return codes.transpose([wide._order.index(a) for a in range(codes.ndim)])

    def with_elementwise(self, codes: Any) -> QTensor:
        """The same scales with other codes, unpacked and in the weight's axis order."""
        return dataclasses.replace(self, codes=codes, axis=None, length=None, order=None)

    def zero_code(self) -> Array | None:
        """The code that decodes to 0.0, broadcast like ``zero``, or None where there is none for sure."""
        kind = jnp.int8 if self.signed else jnp.uint8
        if self.zero is None:
            return jnp.zeros([1] * self.scale.ndim, kind)
        return self.zero.astype(kind) if jnp.issubdtype(self.zero.dtype, jnp.integer) else None

    def expand(self) -> QTensor:
        if self.axis is None or self.length is None:
            return self
        place = self._order.index(self.axis % self.codes.ndim)
        codes = encode.signed_codes(
            packing.unpack_bits(self.codes, self.bits, self.length, place), self.bits, self.signed
        )
        return dataclasses.replace(self, codes=codes, axis=None, length=None)

    def prepared(self, platform: str) -> QTensor:
        """TPU: native 4 and 2 bits, else int8. CPU: int8, of two or three axes those that share scales last (which is
        [out, in] for a matrix with a scale for each output). GPU: int8."""
        wide = self.expand()
        if platform == "tpu":
            kind = _NATIVE.get((self.bits, self.signed), wide.codes.dtype)
            return dataclasses.replace(wide, codes=wide.codes.astype(kind))
        if platform == "cpu" and wide.ndim in (2, 3):
            channels = [a for a, n in enumerate(wide.shape) if wide.scale.shape[a] == n]
            if not {wide.ndim - 2, wide.ndim - 1} & set(channels):
                channels.append(wide.ndim - 1)
            order = [*channels, *(a for a in range(wide.ndim) if a not in channels)]
            codes = wide.codes.transpose([wide._order.index(a) for a in order])
            return dataclasses.replace(wide, codes=codes, order=layout.trimmed(order))
        return wide

    # -- layout --------------------------------------------------------------------------------------------------------

    def _with(self, codes: Array, scale: Array, zero: Array | None, order: Sequence[int], axis: int | None) -> QTensor:
        """The same tensor with other children; ``order`` and ``axis`` name the new weight's axes from the start."""
        axis = None if axis is None else axis - len(order)
        length = None if axis is None else self.length
        tail = layout.trimmed(order)
        return dataclasses.replace(self, codes=codes, scale=scale, zero=zero, order=tail, axis=axis, length=length)

    def _place(self) -> int | None:
        return None if self.axis is None else self.axis % self.codes.ndim

    def _param(self, fn: Any) -> tuple[Any, Any]:
        return fn(self.scale), None if self.zero is None else fn(self.zero)

    def cast(self, dtype: DTypeLike) -> Any:
        """Rounds as often as arrays would be: bfloat16 codes cast to float32 stay on the bfloat16 grid."""
        old, new, rounding = self.dtype, jnp.dtype(dtype), self.rounding
        if not jnp.issubdtype(new, jnp.floating):
            return NotImplemented
        if old not in (jnp.float32, jnp.float64):
            if rounding is not None and new != old:
                return NotImplemented
            rounding = old.name
        return dataclasses.replace(self, float_dtype=new.name, rounding=None if rounding == new.name else rounding)

    def transpose(self, permutation: Sequence[int]) -> QTensor:
        """Codes stay where they are; ``order`` says what their axes now are."""
        moved = {a: i for i, a in enumerate(permutation)}
        place = self._place()
        order = [moved[a] for a in self._order]
        axis = None if place is None else moved[place]
        return self._with(self.codes, *self._param(lambda p: p.transpose(permutation)), order, axis)

    def reshape(self, shape: Sequence[int]) -> Any:
        old, shape = self.shape, tuple(shape)
        groups = self._param(lambda p: layout.reshaped_groups(p.shape, old, shape))
        if groups[0] is None or (self.zero is not None and groups[1] is None):
            return NotImplemented
        scale, zero = self.scale.reshape(groups[0]), None if self.zero is None else self.zero.reshape(groups[1])
        place = self._place()
        if layout.without_units(old) == layout.without_units(shape) and (place is None or old[place] > 1):
            # Only unit axes come or go: codes stay packed and in their order.
            moved = dict(zip((a for a, n in enumerate(old) if n > 1), (a for a, n in enumerate(shape) if n > 1)))
            solid = iter([moved[a] for a in self._order if a in moved])
            order = [next(solid) if n > 1 else a for a, n in enumerate(shape)]
            lengths = {moved[a]: n for a, n in zip(self._order, self.codes.shape) if a in moved}
            codes = self.codes.reshape([lengths.get(a, 1) for a in order])
            return self._with(codes, scale, zero, order, None if place is None else moved[place])
        wide = self.expand()
        codes = wide.codes.transpose([wide._order.index(a) for a in range(wide.ndim)])
        return wide._with(codes.reshape(shape), scale, zero, range(len(shape)), None)

    def slice(self, start: Sequence[int], limit: Sequence[int], strides: Sequence[int] | None = None) -> QTensor:
        strides = strides or [1] * self.ndim
        if self.ndim == 0:
            return self
        bounds = list(zip(start, limit, strides))
        place, shape = self._place(), self.shape
        if place is not None and bounds[place] != (0, shape[place], 1):
            return self.expand().slice(start, limit, strides)

        def cut(param: Array) -> Array:
            pieces = []
            for a, n in enumerate(shape):
                piece = layout.sliced_groups(param.shape[a], n, *bounds[a])
                if piece is None:
                    param, piece = layout.spread_axis(param, a, n), bounds[a]
                pieces.append(piece)
            return lax.slice(param, *zip(*pieces))

        physical = [bounds[a] if a != place else (0, self.codes.shape[p], 1) for p, a in enumerate(self._order)]
        codes = lax.slice(self.codes, *zip(*physical))
        return self._with(codes, *self._param(cut), self._order, place)

    def dynamic_slice(self, starts: Sequence[Any], sizes: Sequence[int]) -> QTensor:
        place, shape = self._place(), self.shape
        if place is not None and sizes[place] != shape[place]:
            return self.expand().dynamic_slice(starts, sizes)
        starts = [0 if size == n else start for start, size, n in zip(starts, sizes, shape)]

        def cut(param: Array) -> Array:
            for a, (size, n) in enumerate(zip(sizes, shape)):
                if size != n and param.shape[a] not in (1, n):
                    param = layout.spread_axis(param, a, n)
            whole = [size == n or d == 1 for size, n, d in zip(sizes, shape, param.shape)]
            at = [0 if w else start for w, start in zip(whole, starts)]
            return lax.dynamic_slice(param, at, [d if w else size for w, d, size in zip(whole, param.shape, sizes)])

        lengths = [self.codes.shape[p] if sizes[a] == shape[a] else sizes[a] for p, a in enumerate(self._order)]
        codes = lax.dynamic_slice(self.codes, [starts[a] for a in self._order], lengths)
        return self._with(codes, *self._param(cut), self._order, place)

    def rev(self, dimensions: Sequence[int]) -> QTensor:
        place = self._place()
        if place in dimensions:
            return self.expand().rev(dimensions)
        codes = lax.rev(self.codes, [p for p, a in enumerate(self._order) if a in dimensions])
        return self._with(codes, *self._param(lambda p: lax.rev(p, dimensions)), self._order, place)

    def index(self, i: ArrayLike, axis: int) -> Any:
        axis, shape = axis % self.ndim, list(self.shape)
        starts = [i if a == axis else 0 for a in range(self.ndim)]
        part = self.dynamic_slice(starts, [1 if a == axis else n for a, n in enumerate(shape)])
        return part.reshape([n for a, n in enumerate(shape) if a != axis])

    def take(self, indices: ArrayLike, axis: int) -> QTensor:
        """Reads the bytes of the entries asked for, along the packed axis too: the rest stays packed."""
        indices, axis, shape = jnp.asarray(indices), axis % self.ndim, self.shape
        indices = jnp.clip(indices, 0, shape[axis] - 1)
        extra, place = indices.ndim - 1, self._place()
        moved = lambda a: a if a < axis else a + extra
        at = self._order.index(axis)
        order: list[int] = []
        for a in self._order:
            order.extend(range(axis, axis + indices.ndim) if a == axis else [moved(a)])
        if place == axis:
            codes = encode.signed_codes(packing.take_bits(self.codes, self.bits, indices, at), self.bits, self.signed)
            place = None
        else:
            codes = jnp.take(self.codes, indices, axis=at, mode="clip")

        def rows(param: Array) -> Array:
            d, n = param.shape[axis], shape[axis]
            if d == 1:
                return param.reshape(param.shape[:axis] + (1,) * indices.ndim + param.shape[axis + 1 :])
            return jnp.take(param, indices // (n // d), axis=axis, mode="clip")

        return self._with(codes, *self._param(rows), order, None if place is None else moved(place))

    def cut(self, axis: int, keep: Any) -> Any:
        """The same form with the entries ``keep`` (host indices) of ``axis``; NotImplemented if groups become uneven.

        Raises:
          ValueError: nothing kept, or an index out of range.
        """
        axis, n = axis % self.ndim, self.shape[axis]
        keep = [int(k) for k in np.asarray(keep)]
        if not keep or min(keep) < 0 or max(keep) >= n:
            raise ValueError(f"cut: axis {axis} has {n} entries; keep at least one of 0 to {n - 1}, not {keep}")
        kept = self._param(lambda p: layout.kept_groups(p.shape[axis], n, keep))
        if kept[0] is None or (self.zero is not None and kept[1] is None):
            return NotImplemented
        wide = self.expand() if self._place() == axis else self
        pick = lambda x, entries, a: jnp.take(x, np.asarray(entries), axis=a)
        scale = pick(self.scale, kept[0], axis)
        zero = None if self.zero is None else pick(self.zero, kept[1], axis)
        at = wide._order.index(axis)
        codes, length = pick(wide.codes, keep, at), self.length
        if wide is not self:
            codes, length = encode.stored(codes, self.bits, self.signed, at), len(keep)
        return dataclasses.replace(self, codes=codes, scale=scale, zero=zero, length=length)

    def spec(self, partition: PartitionSpec, mesh: Any = None) -> Any:
        """The specs of codes, scale and zero for a weight that is sharded by ``partition``.

        An axis along which a child has fewer entries than the weight (packed bytes, groups) is sharded only if ``mesh``
        shows that its devices divide them; otherwise the answer is NotImplemented. An axis of one entry is replicated.
        """
        entries = (*partition, *[None] * (self.ndim - len(partition)))

        def part(entry: Any, d: int, n: int) -> Any:
            if d == 1 or entry is None:
                return None
            if d == n:
                return entry
            names = entry if isinstance(entry, tuple) else (entry,)
            divides = mesh is not None and d % math.prod(mesh.shape[name] for name in names) == 0
            return entry if divides else NotImplemented

        def child(array: Any, order: Sequence[int]) -> Any:
            parts = [part(entries[a], d, self.shape[a]) for d, a in zip(array.shape, order)]
            return NotImplemented if any(p is NotImplemented for p in parts) else PartitionSpec(*parts)

        specs = [child(self.codes, self._order)]
        specs += [child(p, range(self.ndim)) for p in (self.scale, self.zero) if p is not None]
        if any(s is NotImplemented for s in specs):
            return NotImplemented
        zero = None if self.zero is None else specs[2]
        return dataclasses.replace(self, codes=specs[0], scale=specs[1], zero=zero)

    @classmethod
    def concatenate(cls, parts: Sequence[QTensor], axis: int) -> Any:
        """As ``lax.concatenate``; NotImplemented for tensors of different formats."""
        wide = [part.with_elementwise(part.elementwise()) for part in parts]
        kinds = [tuple(None if p is None else p.dtype.name for p in (t.codes, t.scale, t.zero)) for t in wide]
        formats = {(t.bits, t.float_dtype, t.rounding, *kind) for t, kind in zip(wide, kinds)}
        if len(formats) != 1:
            return NotImplemented

        def joined(params: Sequence[Array]) -> Array | None:
            shapes = [
                [n if a == axis else d for a, d in enumerate(p.shape)]
                for p, t in zip(params, wide)
                for n in [t.shape[axis]]
            ]
            like = [max(dims) for dims in zip(*shapes)]
            if any(n not in (1, m) for dims in shapes for a, (n, m) in enumerate(zip(dims, like)) if a != axis):
                return None
            targets = [[dims[axis] if a == axis else m for a, m in enumerate(like)] for dims in shapes]
            return lax.concatenate([affine.expand_groups(p, t) for p, t in zip(params, targets)], axis)

        scale = joined([t.scale for t in wide])
        zero = None if wide[0].zero is None else joined([t.zero for t in wide])  # type: ignore[misc]
        if scale is None or (wide[0].zero is not None and zero is None):
            return NotImplemented
        codes = lax.concatenate([t.codes for t in wide], axis)
        return dataclasses.replace(wide[0], codes=codes, scale=scale, zero=zero)

    # -- arithmetic ----------------------------------------------------------------------------------------------------

    def dot_general(
        self,
        other: Any,
        dimension_numbers: Any,
        *,
        side: str = "rhs",
        precision: Any = None,
        preferred_element_type: Any = None,
    ) -> Any:
        """Weight-only: see ``products.weight_dot``."""
        wide = self.expand()
        dtype = preferred_element_type or jnp.result_type(other.dtype, self.dtype)
        return products.weight_dot(
            wide.codes, wide._order, self.scale, self.zero, other, dimension_numbers, side, precision, dtype
        )

    def conv(self, lhs: Any, **params: Any) -> Any:
        """Weight-only: see ``products.weight_conv``."""
        wide = self.expand()
        codes = wide.codes.transpose([wide._order.index(a) for a in range(wide.ndim)])
        dtype = params.get("preferred_element_type") or jnp.result_type(lhs.dtype, self.dtype)
        return products.weight_conv(codes, self.scale, self.zero, lhs, params, dtype)
