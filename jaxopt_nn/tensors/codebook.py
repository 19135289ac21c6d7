"""Codes that name entries of a table: weights that share values."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from jaxopt_nn.numerics import affine
from jaxopt_nn.tensors import encode, layout
from jaxopt_nn.tensors.coded import STATIC, Coded
from jaxopt_nn.tensors.packed import Packed, float_name, require

#: Entries of a table up to which a value is picked by comparisons, which fuse; from a longer one it is gathered.
SELECTED = 16


@partial(jax.tree_util.register_dataclass, data_fields=["codes", "table"], meta_fields=[*STATIC, "origin"])
@dataclasses.dataclass(frozen=True)
class Codebook(Coded):
    """``table[code]``: each weight is one of at most 256 values that many share (Han et al. 2016, section 3).

    Attributes:
      codes: uint8 (packed, or an entry each), or native uint4, uint2.
      table: floats ``[groups..., K]``: along each axis of the weight 1 table for all entries, one for each, or one for each run
        of consecutive entries; behind them the values, float32 or the weight's own narrower dtype.
      origin: code 0 is the value 0.0, which the table leaves out: its entries are the codes from 1.
      bits: 1 to 8.
      signed, float_dtype, axis, length, order, rounding, platform: as in ``Coded``; codes are unsigned.

    Example:
      >>> codes = jnp.array([[0, 1, 2, 1], [2, 2, 0, 0]])
      >>> shared = jn.Codebook.from_codes(codes, jnp.array([[[-0.5, 0.25, 0.75]]]))
      >>> shared.densify()
      Array([[-0.5 ,  0.25,  0.75,  0.25],
             [ 0.75,  0.75, -0.5 , -0.5 ]], dtype=float32)
      >>> shared.bits, shared.nbytes  # a byte for the 4 codes of a row, and 3 floats
      (2, 14)
    """

    table: Array = dataclasses.field(kw_only=True)
    origin: bool = dataclasses.field(default=False, kw_only=True)

    scale: ClassVar[Any] = None  # type: ignore[misc]
    zero: ClassVar[Any] = None  # type: ignore[misc]
    scaled: ClassVar[bool] = False
    PARAMS: ClassVar[tuple[str, ...]] = ("table",)

    @classmethod
    def from_codes(
        cls,
        codes: Array,
        table: Array,
        *,
        origin: bool = False,
        dtype: DTypeLike = jnp.float32,
        stack: Sequence[int] = (),
        axis: int | None = None,
        name: str = "weight",
    ) -> Codebook:
        """The stored form.

        Args:
          codes: integers of the weight's shape, below the number of values (one more with ``origin``).
          table: floats ``[groups..., K]``, ``groups`` of the weight's rank, along each axis 1, all, or a divisor; repeated over
            stack axes, so that each layer has its own.
          origin: code 0 is 0.0, and the table begins at code 1.
          dtype: what ``densify`` gives; of a narrower one than float32 the table is stored in it.
          stack: axes along which scan or vmap slices: never packed.
          axis: the axis to pack; if None, that outside ``stack`` with the fewest bytes, the first of equals.
          name: what messages call the tensor, such as its path.

        Raises:
          ValueError: no entries, more than 256 values, a table that does not fit, a code without a value, an axis that the
            weight has not, a packed stack axis, a dtype of no floats.
          TypeError: codes that are not whole.
        """
        shape, table, dtype = tuple(codes.shape), jnp.asarray(table), jnp.dtype(float_name(dtype, name))
        values = table.shape[-1] + origin if table.ndim else 0
        if not 1 <= values <= 256:
            raise ValueError(
                f"{name}: a table of shape {table.shape} has {values} values; allowed are 1 to 256, along its last axis"
            )
        bits = width(values)
        ones = jnp.ones(table.shape[:-1], jnp.float32)
        full, _, axis = encode.checked(shape, ones, None, bits, False, stack, axis, name)
        encode.check_codes(codes, 0, values - 1, f"a table of {values}", name)
        table = affine.expand_groups(table, (*full.shape, table.shape[-1]))
        narrow = dtype if dtype.itemsize < 4 else jnp.float32
        place = (None, None) if axis is None else (axis - len(shape), shape[axis])
        packed = encode.stored(codes, bits, False, axis)
        return dataclasses.replace(
            cls.plain(packed, table.astype(narrow), origin=origin, dtype=dtype), axis=place[0], length=place[1]
        )

    @classmethod
    def plain(cls, codes: Array, table: Array, *, origin: bool = False, dtype: DTypeLike = jnp.float32) -> Codebook:
        """Of codes that are an entry each, as they are: uint8 of the weight's shape; a table ``[groups..., K]``."""
        own = {"bits": width(table.shape[-1] + origin), "signed": False, "float_dtype": jnp.dtype(dtype).name}
        return cls(codes=codes, table=table, origin=origin, **own)  # type: ignore[arg-type]

    def coding(self) -> dict[str, Packed]:
        zero = 0 if self.origin else None
        return {name: packed._replace(zero=zero) for name, packed in super().coding().items()}

    def check(self) -> None:
        require(self.table.ndim >= 1 and type(self.origin) is bool, self, f"table {list(self.table.shape)}, {self.origin}")
        require(1 <= self.values <= 256 and self.bits == width(self.values), self, f"{self.values} values, {self.bits} bits")
        require(self.signed is False, self, "signed codes")
        super().check()

    @property
    def groups(self) -> tuple[int, ...]:
        return self.table.shape[:-1]

    @property
    def values(self) -> int:
        """How many values a code may name."""
        return self.table.shape[-1] + self.origin

    @property
    def costly(self) -> bool:
        return self.values > SELECTED

    @property
    def format(self) -> str:
        return f"{type(self).__name__} {self.bits} bits"

    def describe(self) -> str:
        """``4 bits, 16 shared values``; with runs that share a table, and what a code lies in if that is wider."""
        bits, *rest = super().describe().split(",")
        return ",".join([bits, f" {self.values} shared values", *rest])

    def levels(self, codes: Array) -> Array:
        """The values of codes that lie as ``self.codes`` do: copies of the table's, so equal in every program."""
        table = self.table
        if self.origin:
            table = jnp.concatenate([jnp.zeros((*self.groups, 1), table.dtype), table], -1)
        if self.split_axis is not None:
            raise ValueError(f"{self.format}: codes whose axis is split into groups have no values; expand them first")
        if self.costly:
            return self._gathered(table, codes)
        return _selected([self._along(table[..., k], codes.shape) for k in range(self.values)], codes, 0)

    def _gathered(self, table: Array, codes: Array) -> Array:
        if table.size == self.values:
            return jnp.take(table.reshape(-1), codes.astype(jnp.int32), mode="clip")
        which = jnp.arange(table.size // self.values, dtype=jnp.int32).reshape(self.groups)
        places = self._along(which, codes.shape) * np.int32(self.values) + codes.astype(jnp.int32)
        return jnp.take(table.reshape(-1), places, mode="clip")

    def _along(self, param: Array, shape: Sequence[int]) -> Array:
        """A parameter laid along the axes of the codes: 1 where one stands for all."""
        turned = param.transpose(self.physical)
        return affine.expand_groups(turned, [1 if d == 1 else n for d, n in zip(turned.shape, shape)])

    def of_levels(self, levels: Array) -> Array:
        return levels.astype(jnp.float32).astype(self.rounding or self.dtype).astype(self.dtype)

    def elementwise(self) -> Array:
        """The codes, one an entry, in the weight's axis order: uint8."""
        return super().elementwise().astype(jnp.uint8)

    def zero_code(self) -> Array | None:
        """The code that decodes to 0.0, of the weight's rank, or None where there is none for sure."""
        return jnp.zeros([1] * len(self.groups), jnp.uint8) if self.origin else None

    def _alike(self) -> tuple[Any, ...]:
        return self.origin, *super()._alike()


def width(values: int) -> int:
    """Bits of a code that names one of so many values."""
    return max((values - 1).bit_length(), 1)


def nbytes_of(shape: tuple[int, ...], values: int, stack: Sequence[int]) -> int:
    """Bytes of the packed codes of a ``Codebook`` of so many values."""
    bits = width(values)
    axis = layout.packing_axis(shape, bits, stack)
    length = 1 if axis is None else shape[axis]
    return math.prod(shape) // length * -(-length * bits // 8)


def _selected(entries: Sequence[Array], codes: Array, bit: int) -> Array:
    """The entry that each code names, by a comparison for each of its bits from ``bit`` on."""
    if len(entries) == 1:
        return jnp.broadcast_to(entries[0], codes.shape)
    odd = (codes.astype(jnp.uint8) >> np.uint8(bit)) & np.uint8(1) == 1
    return jnp.where(odd, _selected(entries[1::2], codes, bit + 1), _selected(entries[0::2], codes, bit + 1))
