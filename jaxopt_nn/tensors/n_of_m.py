"""N of every M consecutive entries along an axis: the kept ones, and each one's place among the M."""

from __future__ import annotations

import dataclasses
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
from jaxopt_nn.tensors.masked import Masked, check_inside
from jaxopt_nn.tensors.packed import Packed, is_count, require


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["kept", "places", "frame"],
    meta_fields=["n", "m", "axis", "length"],
)
@dataclasses.dataclass(frozen=True)
class NofM(Tensor):
    """Zero but for ``n`` of every ``m`` consecutive entries along one axis, as NVIDIA's 2:4 (Mishra et al. 2021).

    Attributes:
      kept: the kept entries, in order: of the weight's shape with ``length n / m`` entries along the axis. Of an inner tensor
        its codes, less the smallest of their range, packed at their width along the axis (uint8).
      places: uint8, the place of each kept entry within its ``m``, packed along the axis: two bits each where ``m`` is 4.
      frame: the inner tensor without its codes, or None where a plain array stands inside.
      n, m: how many of how many are kept.
      axis: negative; no stack axis.
      length: of the weight along the axis, a multiple of ``m``.

    Example:
      >>> v = {"kernel": jnp.arange(16.0).reshape(8, 2)}
      >>> method = jn.prune(structure=jn.n_of_m(2, 4))
      >>> tensor = method.pack(v, method.init(v))["kernel"]
      >>> tensor.kept[:, 0]
      Array([ 4.,  6., 12., 14.], dtype=float32)
      >>> tensor.nbytes, v["kernel"].nbytes  # 8 floats of 4 bytes, and 8 places of 2 bits
      (34, 64)
    """

    kept: Array
    places: Array
    frame: Any
    n: int
    m: int
    axis: int
    length: int

    @classmethod
    def pack(cls, mask: Array, inner: Any, m: int, axis: int, stack: Sequence[int] = ()) -> Any:
        """Packs ``inner`` under ``mask``; host code. A mask that keeps not equally many of every ``m`` gives a ``Masked``.

        Args:
          mask: bool, of inner's shape; True is kept.
          inner: an array or a compressed tensor with codes.
          stack: the stack axes, for a ``Masked``.

        Raises:
          TypeError: a mask that is not bool, an inner tensor without codes.
          ValueError: a mask of another shape, an axis that the weight has not, or that ``m`` does not divide.
        """
        check_inside("NofM", mask, inner)
        (axis,) = layout.axes_from_start((axis,), mask.ndim, "NofM: axis")
        if tuple(mask.shape) != tuple(inner.shape) or mask.shape[axis] % m:
            raise ValueError(
                f"NofM: a mask of shape {tuple(mask.shape)} for a weight of shape {tuple(inner.shape)}, in groups of {m} along "
                f"axis {axis}; pass equal shapes that m divides"
            )
        last = np.moveaxis(np.asarray(mask, bool), axis, -1)
        groups = last.reshape(*last.shape[:-1], -1, m)
        counts = np.unique(groups.sum(-1))
        if is_compressed(inner) and inner.zero_code() is None:
            inner = inner.densify()
        if counts.size != 1 or counts[0] in (0, m):
            return Masked.pack(mask, inner, stack)
        frame, entries = None, inner
        if is_compressed(inner):
            entries, frame = inner.elementwise(), inner.with_elementwise(None)
        values = np.moveaxis(np.asarray(entries), axis, -1)[last].reshape(*last.shape[:-1], -1)
        found = np.nonzero(groups)[-1].reshape(values.shape).astype(np.uint8)
        if frame is not None:
            qmin, _ = affine.code_range(frame.bits, frame.signed)
            values = packing.pack_bits_on_host((values.astype(np.int16) - qmin).astype(np.uint8), frame.bits)
        places = packing.pack_bits_on_host(found, _width(m))
        back = lambda x: jax.device_put(np.ascontiguousarray(np.moveaxis(x, -1, axis)))
        return cls(back(values), back(places), frame, int(counts[0]), m, axis - mask.ndim, mask.shape[axis])

    @property
    def shape(self) -> tuple[int, ...]:
        shape = list(self.places.shape)
        shape[self.axis] = self.length
        return tuple(shape)

    @property
    def dtype(self) -> Any:
        return self.kept.dtype if self.frame is None else self.frame.dtype

    @property
    def format(self) -> str:
        return f"{self.n}:{self.m}({self.dtype if self.frame is None else self.frame.format})"

    def describe(self) -> str:
        """``2 of 4 kept, 4 bits``."""
        share = f"{self.n} of {self.m} kept"
        if self.frame is None:
            return f"{share}, {self.dtype}"
        codes = jax.ShapeDtypeStruct(self.shape, jnp.uint8)
        return f"{share}, {dataclasses.replace(self.frame, codes=codes, axis=-1, length=self.shape[-1]).describe()}"

    def coding(self) -> dict[str, Packed]:
        coding = {"places": Packed(_width(self.m), self._place, (self._count,))}
        if self.frame is not None:
            zero = 2 ** (self.frame.bits - 1) if self.frame.signed else None
            coding["kept"] = Packed(self.frame.bits, self._place, (self._count,), zero)
        return coding

    def check(self) -> None:
        places, kept, frame = self.places, self.kept, self.frame
        numbers = is_count(self.n, 1) and is_count(self.m, 2) and self.n < self.m <= 256 and is_count(self.length, 1)
        require(numbers and self.length % self.m == 0, self, f"{self.n} of {self.m} of {self.length}")
        fits = type(self.axis) is int and -places.ndim <= self.axis < 0 and places.dtype == jnp.uint8
        require(fits and kept.ndim == places.ndim, self, f"places {places.dtype}{list(places.shape)}, axis={self.axis}")
        like = list(places.shape)
        like[self._place] = self._count
        if frame is None:
            require(list(kept.shape) == like, self, f"{list(kept.shape)} kept entries, not {like}")
        else:
            require(is_compressed(frame) and hasattr(frame, "bits"), self, f"{type(frame).__name__} stands inside")
            frame.with_elementwise(jax.ShapeDtypeStruct(self.shape, jnp.int8 if frame.signed else jnp.uint8)).check()
        fits = all(packed.fits(getattr(self, name).shape) for name, packed in self.coding().items())
        require(fits, self, f"{list(places.shape)}, {list(kept.shape)} don't hold {self._count} entries along {self.axis}")

    def keep(self) -> Array:
        """The mask, bool, in the tensor's shape."""
        return self._joined(jnp.any(self._at(), axis=self._place + 1))

    @property
    def _place(self) -> int:
        return self.places.ndim + self.axis

    @property
    def _count(self) -> int:
        return self.length // self.m * self.n

    def _grouped(self, kept: Array) -> Array:
        """``[..., groups, n, 1, ...]`` of what has an entry for each that is kept."""
        shape = kept.shape[: self._place] + (-1, self.n, 1) + kept.shape[self._place + 1 :]
        return kept.reshape(shape)

    def _joined(self, groups: Array) -> Array:
        return groups.reshape(self.shape)

    def _at(self) -> Array:
        """bool ``[..., groups, n, m, ...]``: which of the ``m`` each kept entry is."""
        places = packing.unpack_bits(self.places, _width(self.m), self._count, self._place)
        each = np.arange(self.m, dtype=np.uint8).reshape((self.m,) + (1,) * (places.ndim - self._place - 1))
        return self._grouped(places) == each.reshape((1,) * (self._place + 2) + each.shape)

    def _spread(self, kept: Array, rest: Any) -> Array:
        """Entries at their places, ``rest`` elsewhere."""
        at, entries, middle = self._at(), self._grouped(kept), self._place + 1
        pick = lambda x, k: lax.index_in_dim(x, k, middle, keepdims=False)
        wide = rest
        for k in range(self.n):
            wide = jnp.where(pick(at, k), pick(entries, k), wide)
        return self._joined(wide)

    def expand(self) -> Any:
        """The inner tensor (or array) at its full size, zero where nothing is kept."""
        frame = self.frame
        if frame is None:
            return self._spread(self.kept, jnp.zeros((), self.dtype))
        qmin, _ = affine.code_range(frame.bits, frame.signed)
        kind = jnp.int8 if frame.signed else jnp.uint8
        codes = packing.unpack_bits(self.kept, frame.bits, self._count, self._place)
        codes = self._spread((codes.astype(jnp.int16) + np.int16(qmin)).astype(kind), jnp.zeros((), kind))
        codes = jnp.where(self.keep(), codes, affine.expand_groups(frame.zero_code(), self.shape))
        return frame.with_elementwise(codes)

    def densify(self) -> Array:
        inner = self.expand()
        return inner.densify() if is_compressed(inner) else inner

    def nest(self, inner: Any) -> Any:
        """Keeps only the kept entries of ``inner``; of two masks an entry survives both."""
        if isinstance(inner, Masked | NofM):
            return Masked.pack(self.keep() & inner.keep(), inner.expand(), self._stack(inner))
        return NofM.pack(self.keep(), inner, self.m, self.axis, self._stack(inner))

    def _stack(self, inner: Any) -> tuple[int, ...]:
        return tuple(inner.stack) if isinstance(inner, Masked) else ()

    def cast(self, dtype: Any) -> Any:
        if not jnp.issubdtype(dtype, jnp.floating):
            return NotImplemented
        if self.frame is None:
            return dataclasses.replace(self, kept=self.kept.astype(dtype))
        frame = self.frame.cast(dtype)
        return NotImplemented if frame is NotImplemented else dataclasses.replace(self, frame=frame)

    def _each(self, fn: Callable[[Array], Array]) -> NofM:
        """``fn`` of every child, as an array of the weight's axes."""
        frame = None if self.frame is None else self.frame.each_param(fn)
        return dataclasses.replace(self, kept=fn(self.kept), places=fn(self.places), frame=frame)

    def leading(self) -> Any:
        if self._place == 0:
            return NotImplemented
        rows = self.shape[0]
        return self._each(lambda x: x if x.shape[0] == rows else layout.spread_axis(x, 0, rows))

    def transpose(self, permutation: Sequence[int]) -> Any:
        moved = self._each(lambda x: x.transpose(permutation))
        return dataclasses.replace(moved, axis=list(permutation).index(self._place) - self.ndim)

    def index(self, i: Any, axis: int) -> Any:
        axis, length = axis % self.ndim, self.shape[axis % self.ndim]
        if axis == self._place or any(x.shape[axis] not in (1, length) for x in jax.tree.leaves(self)):
            return super().index(i, axis)
        pick = lambda x: lax.dynamic_index_in_dim(x, i if x.shape[axis] == length else 0, axis, keepdims=False)
        layer = self._each(pick)
        return dataclasses.replace(layer, axis=self._place - (axis < self._place) - layer.places.ndim)

    def spec(self, partition: PartitionSpec, mesh: Any = None) -> Any:
        """Axes are sharded but for the packed one, whose groups lie in one stream; then the answer is NotImplemented."""
        entries = (*partition, *[None] * (self.ndim - len(partition)))
        if entries[self._place] is not None:
            return NotImplemented
        if any(x.shape[a] not in (1, self.shape[a]) for x in jax.tree.leaves(self) for a, e in enumerate(entries) if e):
            return NotImplemented
        return jax.tree.map(lambda x: PartitionSpec(*(e if d > 1 else None for e, d in zip(entries, x.shape))), self)

    def cut(self, axis: int, keep: Any) -> Any:
        """A ``Masked`` of the entries ``keep`` of an axis, since groups may be cut apart; host code."""
        wide = self.expand()
        wide = wide.cut(axis, keep) if is_compressed(wide) else jnp.take(wide, np.asarray(keep), axis=axis)
        return NotImplemented if wide is NotImplemented else Masked.pack(jnp.take(self.keep(), np.asarray(keep), axis), wide)


def _width(m: int) -> int:
    """Bits of a place among ``m``."""
    return max((m - 1).bit_length(), 1)
