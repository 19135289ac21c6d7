"""What tensors of codes share: packing, groups, parameters of groups, and the algebra on their axes."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import PartitionSpec
from jax.typing import ArrayLike, DTypeLike

from jaxopt_nn.numerics import affine, packing
from jaxopt_nn.tensors import encode, layout
from jaxopt_nn.tensors.base import Tensor, bits_of
from jaxopt_nn.tensors.packed import Packed, float_of, is_count, is_float, is_order, require

DATA = ["codes", "scale", "zero"]
STATIC = ["bits", "signed", "float_dtype", "axis", "length", "order", "rounding", "platform"]


@dataclasses.dataclass(frozen=True)
class Coded(Tensor):
    """``(levels(codes) - zero) * scale``, in one of two forms of equal value; a format says what its codes stand for.

    Stored: ``axis`` is set, and codes, less the smallest of their range, are packed at their true width along it.
    Prepared, or 8 bits: ``axis`` is None and each code is an entry of its own.

    A new format is a subclass in a file of its own: a frozen dataclass, registered with the children ``DATA`` and the
    static ``STATIC`` and whatever it adds, that has ``levels``. One without scales has other ``PARAMS``.

    Attributes:
      codes: uint8 (packed, or unsigned), int8, or native int4, uint4, int2, uint2. Its axes may stand in another order.
      scale: float32 (or bfloat16) of the weight's rank and axis order; along each axis 1 entry, all, or one for each run.
      zero: None, or integers or floats that broadcast like ``scale`` (its own groups).
      bits, signed: the range of the codes.
      float_dtype: name of the dtype that ``densify`` gives.
      axis, length: the packed axis, negative, never a stack axis, and its number of entries; None where nothing is packed.
      order: which axis of the weight each of the trailing axes of ``codes`` is (negative numbers); None: in order. An axis
        named twice is split: first its groups, then the entries of a group.
      rounding: name of a narrower float dtype that values are rounded to before ``float_dtype``, or None.
      platform: what ``prepare`` laid it out for, or None for the stored form.
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
    platform: str | None = None

    #: Whether the levels are the codes themselves, so that integer programs may run on them.
    integral: ClassVar[bool] = False
    #: Whether levels have still to be multiplied by the scale; otherwise it is 1, or there is none.
    scaled: ClassVar[bool] = True
    #: The children that hold what groups of entries share: of the weight's axes, perhaps with more behind them.
    PARAMS: ClassVar[tuple[str, ...]] = ("scale", "zero")

    @abc.abstractmethod
    def levels(self, codes: Array) -> Array:
        """The floats (or integers) that codes stand for, before zero point and scale; they lie as ``self.codes`` do."""

    def of_levels(self, levels: Array) -> Array:
        """The values of levels in the weight's axis order, in the tensor's dtype."""
        return affine.dequantize(levels, self.scale, self.zero, self.rounding or self.dtype).astype(self.dtype)

    # -- what it is ----------------------------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        shape = [1] * len(self.groups)
        for a, n in zip(self.physical, self.codes.shape):
            shape[a] *= n
        if self.axis is not None and self.length is not None:
            shape[self.axis] = self.length
        return tuple(shape)

    @property
    def groups(self) -> tuple[int, ...]:
        """Along each axis of the weight, the number of runs of entries that share parameters."""
        return self.scale.shape

    @property
    def costly(self) -> bool:
        """Whether levels cost more than what they are multiplied with: then backends hold the floats."""
        return False

    @property
    def dtype(self) -> np.dtype:
        return float_of(self.float_dtype)

    @property
    def format(self) -> str:
        return f"{type(self).__name__} {'int' if self.signed else 'uint'}{self.bits}"

    def describe(self) -> str:
        """``4 bits, groups of 64, in int8``: the width, the entries that share a scale, what holds a code if that is wider."""
        runs = [n // d for n, d in zip(self.shape, self.groups) if 1 < d < n]
        groups = f", groups of {' x '.join(map(str, runs))}" if runs else ""
        wider = self.axis is None and bits_of(self.codes.dtype) > self.bits
        return f"{self.bits} bits{groups}" + (f", in {self.codes.dtype}" if wider else "")

    @property
    def physical(self) -> tuple[int, ...]:
        """The weight's axis that each axis of ``codes`` is; a split one is named twice, its groups first."""
        tail = self.order or ()
        return (*range(self.codes.ndim - len(tail)), *(len(self.groups) + a for a in tail))

    @property
    def split_axis(self) -> int | None:
        """The weight's axis that lies as [groups, entries of a group], or None."""
        return next((a for p, a in enumerate(self.physical) if a in self.physical[:p]), None)

    def coded(self) -> Self:
        return self if self.axis is None else self.expand()

    def densify(self) -> Array:
        plain = self.in_order()
        return self.of_levels(plain.levels(plain.codes))

    def in_order(self) -> Self:
        """With each code an entry of its own, in the weight's axis order."""
        return self.with_elementwise(self.elementwise())

    def elementwise(self) -> Array:
        """The codes, one an entry, in the weight's axis order."""
        wide = self.expand()
        return wide.codes.transpose([wide.physical.index(a) for a in range(wide.codes.ndim)])

    def with_elementwise(self, codes: Any) -> Self:
        """The same scales with other codes, unpacked and in the weight's axis order."""
        return dataclasses.replace(self, codes=codes, axis=None, length=None, order=None)

    def expand(self) -> Self:
        if self.axis is not None and self.length is not None:
            place = self.physical.index(self.axis % self.codes.ndim)
            codes = self._opened(packing.unpack_bits(self.codes, self.bits, self.length, place))
            return dataclasses.replace(self, codes=codes, axis=None, length=None)
        if self.split_axis is None:
            return self
        ranked = sorted(range(self.codes.ndim), key=lambda p: (self.physical[p], p))
        return dataclasses.replace(self, codes=self.codes.transpose(ranked).reshape(self.shape), order=None)

    def _opened(self, codes: Array) -> Array:
        """The codes that unpacked bytes stand for."""
        return encode.signed_codes(codes, self.bits, self.signed)

    def _closed(self, codes: Array, at: int) -> Array:
        """Codes, an entry each, packed along the axis ``at``."""
        return encode.stored(codes, self.bits, self.signed, at)

    def leading(self) -> Self:
        if self._whole() == 0:
            return self.expand().leading()
        at, n = self.physical.index(0), self.shape[0]
        rest = [a for a in self.physical if a != 0]
        params = self._params(lambda p: p if p.shape[0] == n else layout.spread_axis(p, 0, n))
        return self._with(jnp.moveaxis(self.codes, at, 0), params, [0, *rest], self._place())

    def laid(self, order: Sequence[int], groups: int = 1) -> Self:
        """Unpacked, with the codes' axes in ``order``; an axis named twice is split into ``groups`` runs."""
        wide = self.in_order()
        shape, names = [], []
        for a, n in enumerate(wide.shape):
            twice = list(order).count(a) == 2
            shape += [groups, n // groups] if twice else [n]
            names += [a, a] if twice else [a]
        places = [names.index(a) + (a in order[:p]) for p, a in enumerate(order)]
        codes = wide.codes.reshape(shape).transpose(places)
        return dataclasses.replace(wide, codes=codes, order=layout.trimmed(order, wide.ndim))

    def coding(self) -> dict[str, Packed]:
        if self.axis is None or self.length is None:
            return {}
        place = self.physical.index(self.axis % self.codes.ndim)
        return {"codes": Packed(self.bits, place, (self.length,), 2 ** (self.bits - 1) if self.signed else None)}

    def check(self) -> None:
        ndim, codes, packed = len(self.groups), self.codes, self.axis is not None
        require(is_count(self.bits, 1) and self.bits <= 8, self, f"bits={self.bits}; codes have 1 to 8")
        floats = is_float(self.float_dtype) and (self.rounding is None or is_float(self.rounding))
        require(type(self.signed) is bool and floats, self, f"{self.signed}, {self.float_dtype}, rounding={self.rounding}")
        require(is_order(self.order, ndim) and len(self.order or ()) <= codes.ndim, self, f"order={self.order}")
        split = codes.ndim - ndim
        require(0 <= split <= 1 and set(self.physical) == set(range(ndim)), self, f"{codes.ndim} axes of a weight of {ndim}")
        require(not (packed and split) and packed == (self.length is not None), self, "packed and split")
        if packed:
            require(type(self.axis) is int and -ndim <= self.axis < 0 and is_count(self.length, 1), self, f"axis={self.axis}")
            require(self._holds_length(), self, f"{self.length} codes of {self.bits} bits in {codes.dtype}{list(codes.shape)}")
        for name in self.PARAMS:
            if (param := getattr(self, name)) is not None:
                fits = len(param.shape) >= ndim and all(d and n % d == 0 for d, n in zip(param.shape, self.shape))
                require(fits, self, f"{name} {list(param.shape)} of a weight of {list(self.shape)}")

    def _holds_length(self) -> bool:
        return self.codes.dtype == jnp.uint8 and self.coding()["codes"].fits(self.codes.shape)

    # -- layout --------------------------------------------------------------------------------------------------------

    def _with(self, codes: Array, params: Mapping[str, Any], order: Sequence[int], axis: int | None) -> Self:
        """The same tensor with other children; ``order`` and ``axis`` name the new weight's axes from the start."""
        made = dataclasses.replace(self, codes=codes, **params)
        ndim = len(made.groups)
        axis = None if axis is None else axis - ndim
        length = None if axis is None else self.length
        return dataclasses.replace(made, order=layout.trimmed(order, ndim), axis=axis, length=length)

    def _place(self) -> int | None:
        return None if self.axis is None else self.axis % self.codes.ndim

    def _whole(self) -> int | None:
        """The axis that is packed or split, of which no part can be taken as the codes lie."""
        return self.split_axis if self.axis is None else self._place()

    def _params(self, fn: Callable[[Array], Array]) -> dict[str, Any]:
        """``fn`` of each parameter as an array of the weight's axes: what ``fn`` does to them is done to each entry behind."""
        ndim, made = len(self.groups), {}
        for name, param in self._given():
            lifted = fn
            for _ in range(param.ndim - ndim):
                lifted = jax.vmap(lifted, in_axes=-1, out_axes=-1)
            made[name] = lifted(param)
        return made

    def each_param(self, fn: Callable[[Array], Array]) -> Self:
        """The same codes, with ``fn`` of each parameter, as an array of the weight's axes."""
        return dataclasses.replace(self, **self._params(fn))

    def _given(self) -> list[tuple[str, Array]]:
        """The parameters that there are, by name."""
        return [(name, param) for name in self.PARAMS if (param := getattr(self, name)) is not None]

    def _grouped(self) -> dict[str, tuple[int, ...]]:
        """The groups of each parameter along the weight's axes."""
        return {name: param.shape[: len(self.groups)] for name, param in self._given()}

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

    def transpose(self, permutation: Sequence[int]) -> Self:
        """Codes stay where they are; ``order`` says what their axes now are."""
        moved = {a: i for i, a in enumerate(permutation)}
        place = self._place()
        order = [moved[a] for a in self.physical]
        axis = None if place is None else moved[place]
        return self._with(self.codes, self._params(lambda p: p.transpose(permutation)), order, axis)

    def reshape(self, shape: Sequence[int]) -> Any:
        old, shape = self.shape, tuple(shape)
        groups = {name: layout.reshaped_groups(own, old, shape) for name, own in self._grouped().items()}
        if None in groups.values():
            return NotImplemented
        behind = len(self.groups)
        params = {name: param.reshape((*(groups[name] or ()), *param.shape[behind:])) for name, param in self._given()}
        place = self._place()
        if layout.without_units(old) == layout.without_units(shape) and (place is None or old[place] > 1):
            # Only unit axes come or go: codes stay packed, split and in their order.
            moved = dict(zip((a for a, n in enumerate(old) if n > 1), (a for a, n in enumerate(shape) if n > 1)))
            kept = [(moved[a], n) for a, n in zip(self.physical, self.codes.shape) if a in moved]
            for unit in (a for a, n in enumerate(shape) if n == 1):
                kept.insert(next((p for p, (a, _) in enumerate(kept) if a > unit), len(kept)), (unit, 1))
            order, lengths = [a for a, _ in kept], [n for _, n in kept]
            return self._with(self.codes.reshape(lengths), params, order, None if place is None else moved[place])
        wide = self.expand()
        codes = wide.codes.transpose([wide.physical.index(a) for a in range(wide.ndim)])
        return wide._with(codes.reshape(shape), params, range(len(shape)), None)

    def slice(self, start: Sequence[int], limit: Sequence[int], strides: Sequence[int] | None = None) -> Self:
        strides = strides or [1] * self.ndim
        if self.ndim == 0:
            return self
        bounds = list(zip(start, limit, strides))
        place, shape = self._whole(), self.shape
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

        physical = [bounds[a] if a != place else (0, self.codes.shape[p], 1) for p, a in enumerate(self.physical)]
        codes = lax.slice(self.codes, *zip(*physical))
        return self._with(codes, self._params(cut), self.physical, self._place())

    def dynamic_slice(self, starts: Sequence[Any], sizes: Sequence[int]) -> Self:
        place, shape = self._whole(), self.shape
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

        lengths = [self.codes.shape[p] if sizes[a] == shape[a] else sizes[a] for p, a in enumerate(self.physical)]
        codes = lax.dynamic_slice(self.codes, [starts[a] for a in self.physical], lengths)
        return self._with(codes, self._params(cut), self.physical, self._place())

    def rev(self, dimensions: Sequence[int]) -> Self:
        place = self._whole()
        if place in dimensions:
            return self.expand().rev(dimensions)
        codes = lax.rev(self.codes, [p for p, a in enumerate(self.physical) if a in dimensions])
        return self._with(codes, self._params(lambda p: lax.rev(p, dimensions)), self.physical, self._place())

    def index(self, i: ArrayLike, axis: int) -> Any:
        axis, shape = axis % self.ndim, list(self.shape)
        starts = [i if a == axis else 0 for a in range(self.ndim)]
        part = self.dynamic_slice(starts, [1 if a == axis else n for a, n in enumerate(shape)])
        return part.reshape([n for a, n in enumerate(shape) if a != axis])

    def take(self, indices: ArrayLike, axis: int) -> Self:
        """Reads the bytes of the entries asked for, along the packed axis too: the rest stays packed."""
        indices, axis, shape = layout.wide_indices(indices), axis % self.ndim, self.shape
        if self.split_axis == axis:
            return self.expand().take(indices, axis)
        indices = jnp.clip(indices, 0, shape[axis] - 1)
        extra, place = indices.ndim - 1, self._place()
        moved = lambda a: a if a < axis else a + extra
        at = self.physical.index(axis)
        order: list[int] = []
        for a in self.physical:
            order.extend(range(axis, axis + indices.ndim) if a == axis else [moved(a)])
        if place == axis:
            codes = self._opened(packing.take_bits(self.codes, self.bits, indices, at))
            place = None
        else:
            codes = jnp.take(self.codes, indices, axis=at, mode="clip")

        def rows(param: Array) -> Array:
            d, n = param.shape[axis], shape[axis]
            if d == 1:
                return param.reshape(param.shape[:axis] + (1,) * indices.ndim + param.shape[axis + 1 :])
            return jnp.take(param, indices // (n // d), axis=axis, mode="clip")

        return self._with(codes, self._params(rows), order, None if place is None else moved(place))

    def cut(self, axis: int, keep: Any) -> Any:
        """The same form with the entries ``keep`` (host indices) of ``axis``; NotImplemented if groups become uneven.

        Raises:
          ValueError: nothing kept, or an index out of range.
        """
        axis, n = axis % self.ndim, self.shape[axis]
        keep = [int(k) for k in np.asarray(keep)]
        if not keep or min(keep) < 0 or max(keep) >= n:
            raise ValueError(f"cut: axis {axis} has {n} entries; keep at least one of 0 to {n - 1}, not {keep}")
        kept = {name: layout.kept_groups(own[axis], n, keep) for name, own in self._grouped().items()}
        if None in kept.values():
            return NotImplemented
        wide = self.expand() if self._whole() == axis else self
        pick = lambda x, entries, a: jnp.take(x, np.asarray(entries), axis=a)
        params: dict[str, Any] = {name: pick(param, kept[name], axis) for name, param in self._given()}
        at = wide.physical.index(axis)
        codes, length = pick(wide.codes, keep, at), self.length
        if self._place() == axis:
            codes, length = self._closed(codes, at), len(keep)
        return dataclasses.replace(self, codes=codes, length=length, **params)

    def spec(self, partition: PartitionSpec, mesh: Any = None) -> Any:
        """The specs of codes and parameters for a weight that is sharded by ``partition``.

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
            first = [a not in order[:p] for p, a in enumerate(order)]
            parts = [part(entries[a] if f else None, d, self.shape[a]) for d, a, f in zip(array.shape, order, first)]
            return NotImplemented if any(p is NotImplemented for p in parts) else PartitionSpec(*parts)

        codes = child(self.codes, self.physical)
        params = {name: child(p, range(self.ndim)) for name, p in self._given()}
        if any(s is NotImplemented for s in (codes, *params.values())):
            return NotImplemented
        return dataclasses.replace(self, codes=codes, **params)

    def concatenate(self, others: Sequence[Any], axis: int) -> Any:
        if any(type(t) is not type(self) for t in others):
            return NotImplemented
        wide: list[Coded] = [t.in_order() for t in (self, *others)]
        first, axis = wide[0], axis % self.ndim
        if len({t._alike() for t in wide}) != 1:
            return NotImplemented
        named = {name: [(getattr(t, name), t.shape) for t in wide] for name, _ in first._given()}
        params: dict[str, Any] = {name: _joined(parts, axis) for name, parts in named.items()}
        if any(param is None for param in params.values()):
            return NotImplemented
        return dataclasses.replace(first, codes=lax.concatenate([t.codes for t in wide], axis), **params)

    def _alike(self) -> tuple[Any, ...]:
        """What tensors must have in common to be concatenated."""
        behind = [(name, param.dtype.name, param.shape[len(self.groups) :]) for name, param in self._given()]
        return self.bits, self.signed, self.float_dtype, self.rounding, self.codes.dtype.name, *behind


def _joined(parts: Sequence[tuple[Array, tuple[int, ...]]], axis: int) -> Array | None:
    """Parameters of tensors of these shapes along the axis at which they are concatenated; None if groups don't fit.

    Along it each entry stands for as many of the weight's as all of them can be divided into.
    """
    run = math.gcd(*(shape[axis] // max(p.shape[axis], 1) for p, shape in parts))
    shapes = [[shape[a] // run if a == axis else d for a, d in enumerate(p.shape)] for p, shape in parts]
    like = list(map(max, zip(*shapes)))
    if any(n not in (1, m) for dims in shapes for a, (n, m) in enumerate(zip(dims, like)) if a != axis):
        return None
    targets = [[dims[axis] if a == axis else m for a, m in enumerate(like)] for dims in shapes]
    return lax.concatenate([affine.expand_groups(p, t) for (p, _), t in zip(parts, targets)], axis)
