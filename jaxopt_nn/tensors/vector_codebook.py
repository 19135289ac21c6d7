"""Codes that name vectors: runs of weights along one axis share an entry of a table, or sums of entries of several tables."""

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
from jax.typing import DTypeLike

from jaxopt_nn.numerics import affine, packing
from jaxopt_nn.tensors import encode, layout
from jaxopt_nn.tensors.base import Tensor
from jaxopt_nn.tensors.codebook import width
from jaxopt_nn.tensors.decoded import Decoded
from jaxopt_nn.tensors.packed import Packed, float_name, float_of, is_count, is_float, require


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["codes", "table"],
    meta_fields=["along", "float_dtype", "axis", "length"],
)
@dataclasses.dataclass(frozen=True)
class VectorCodebook(Tensor):
    """Each run of ``d`` weights along one axis is ``sum_m table[m, code_m]`` (Gong et al. 2014; Babenko & Lempitsky 2014).

    With one table (``M = 1``) that is product quantization, with several residual or additive quantization.

    Attributes:
      codes: uint8 of the weight's axes with ``n / d`` entries along the axis of the runs, and ``M`` behind them; packed at
        their width along another axis, or the runs'.
      table: floats ``[groups..., M, K, d]``: along each axis of the weight 1, or as many as it has (stack axes).
      along: the axis of the runs, negative; no stack axis.
      float_dtype: name of the dtype that ``densify`` gives.
      axis, length: the packed axis of the weight, negative, and the number of codes along it; None where nothing is packed.

    Example:
      >>> codes = jnp.array([[[0], [1]]])  # a row of two runs, one table
      >>> shared = jn.VectorCodebook.from_codes(codes, jnp.array([[[[[0.5, -1.0], [2.0, 0.0]]]]]), along=1)
      >>> shared.densify()
      Array([[ 0.5, -1. ,  2. ,  0. ]], dtype=float32)
      >>> shared.nbytes  # two codes of one bit in a byte, and a table of four floats
      17
    """

    codes: Array
    table: Array
    along: int
    float_dtype: str
    axis: int | None = None
    length: int | None = None

    @classmethod
    def from_codes(
        cls,
        codes: Array,
        table: Array,
        *,
        along: int,
        dtype: DTypeLike = jnp.float32,
        stack: Sequence[int] = (),
        name: str = "weight",
    ) -> VectorCodebook:
        """The stored form.

        Args:
          codes: integers ``[..., M]``, of the weight's axes with a code for each run along the axis ``along``.
          table: floats ``[groups..., M, K, d]``, repeated over stack axes.
          dtype: what ``densify`` gives; of a narrower one than float32 a single table is stored in it.
          stack: axes along which scan or vmap slices: never packed.
          name: what messages call the tensor, such as its path.

        Raises:
          ValueError: no codes, more than 256 vectors, a table that does not fit, a code without a vector, an axis that the
            weight has not, a dtype of no floats.
          TypeError: codes that are not whole.
        """
        ndim, dtype = codes.ndim - 1, jnp.dtype(float_name(dtype, name))
        stack = layout.axes_from_start(stack, ndim, f"{name}: stack")
        (along,) = layout.axes_from_start((along,), ndim, f"{name}: along")
        groups, shape = table.shape[:-3], codes.shape[:-1]
        fits = len(groups) == ndim and all(d in (1, n) for d, n in zip(groups, shape))
        if 0 in shape or not fits or along in stack or table.shape[-3] != codes.shape[-1] or not 1 <= table.shape[-2] <= 256:
            raise ValueError(
                f"{name}: codes of shape {tuple(codes.shape)} and a table of shape {tuple(table.shape)} for runs along axis "
                f"{along}; needed are codes [..., M], M tables [groups..., M, K, d] with 1 to 256 vectors, 1 or all groups "
                "along each axis, and an axis of runs that is no stack axis"
            )
        k = table.shape[-2]
        encode.check_codes(codes, 0, k - 1, f"a table of {k}", name)
        full = [n if a in stack else d for a, (d, n) in enumerate(zip(groups, shape))]
        bits = width(k)
        axis = None if bits == 8 else layout.packing_axis(shape, bits, stack)
        packed = codes.astype(jnp.uint8) if axis is None else packing.pack_bits(codes, bits, axis)
        place = (None, None) if axis is None else (axis - ndim, shape[axis])
        alone = dtype.itemsize < 4 and table.shape[-3] == 1  # a sum of rounded vectors is not the rounded sum
        held = affine.expand_groups(table, (*full, *table.shape[-3:])).astype(dtype if alone else jnp.float32)
        return cls(packed, held, along - ndim, dtype.name, *place)

    @property
    def groups(self) -> tuple[int, ...]:
        return self.table.shape[:-3]

    @property
    def bits(self) -> int:
        return width(self.table.shape[-2])

    @property
    def signed(self) -> bool:
        return False

    def coding(self) -> dict[str, Packed]:
        if self.axis is None or self.length is None:
            return {}
        return {"codes": Packed(self.bits, self.axis % self.ndim, (self.length,))}

    def check(self) -> None:
        codes, table, ndim = self.codes, self.table, self.codes.ndim - 1
        require(ndim >= 1 and table.ndim == ndim + 3 and codes.dtype == jnp.uint8, self, f"{codes.dtype}{list(codes.shape)}")
        places = [a for a in (self.along, self.axis) if a is not None]
        require(all(type(a) is int and -ndim <= a < 0 for a in places), self, f"axes {places} of {ndim}")
        require(1 <= table.shape[-2] <= 256 and table.shape[-3] == codes.shape[-1], self, f"tables {list(table.shape)}")
        require((self.axis is None) == (self.length is None) and is_float(self.float_dtype), self, f"length={self.length}")
        if self.axis is not None:
            fits = is_count(self.length, 1) and self.coding()["codes"].fits(codes.shape)
            require(fits, self, f"{self.length} codes of {self.bits} bits in {list(codes.shape)}")
        fits = all(d in (1, n) for d, n in zip(self.groups, self.shape))
        require(fits, self, f"tables {list(table.shape)} of a weight of {list(self.shape)}")

    @property
    def shape(self) -> tuple[int, ...]:
        shape = list(self.codes.shape[:-1])
        if self.axis is not None and self.length is not None:
            shape[self.axis] = self.length
        shape[self.along] *= self.table.shape[-1]
        return tuple(shape)

    @property
    def dtype(self) -> np.dtype:
        return float_of(self.float_dtype)

    @property
    def format(self) -> str:
        return f"{type(self).__name__} {self.bits} bits"

    def describe(self) -> str:
        """``2 x 8 bits a run of 4``: of how many tables, the width of a code, the weights that share one."""
        stages, _, run = self.table.shape[-3:]
        return f"{f'{stages} x ' if stages > 1 else ''}{self.bits} bits a run of {run}, {self.table.shape[-2]} shared vectors"

    def unpacked(self) -> Array:
        """The codes, an entry each: uint8 ``[..., M]``."""
        if self.axis is None or self.length is None:
            return self.codes
        return packing.unpack_bits(self.codes, self.bits, self.length, self.axis % self.ndim)

    def densify(self) -> Array:
        return summed(self.unpacked(), self.table.astype(jnp.float32), self.along).astype(self.dtype)

    def expand(self) -> Any:
        """The values, as ``Decoded``: no program runs on codes of vectors."""
        return Decoded.of(self, range(self.ndim), None)

    def zero_code(self) -> None:
        """None: zero has no code."""

    def _places(self) -> list[int]:
        """The axes that are neither packed nor those of the runs, and of which each entry has a table."""
        whole = {self.along % self.ndim, None if self.axis is None else self.axis % self.ndim}
        return [a for a, (d, n) in enumerate(zip(self.groups, self.shape)) if d == n and a not in whole]

    def leading(self) -> Any:
        return self if 0 in self._places() else NotImplemented

    def cast(self, dtype: DTypeLike) -> Any:
        if self.dtype != jnp.float32 or not jnp.issubdtype(dtype, jnp.floating):
            return super().cast(dtype)
        return dataclasses.replace(self, float_dtype=jnp.dtype(dtype).name)

    def index(self, i: Any, axis: int) -> Any:
        axis = axis % self.ndim
        behind = min(a % self.ndim for a in (self.along, self.axis) if a is not None)
        if axis not in self._places() or axis > behind:  # static axes count from the end
            return super().index(i, axis)
        return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, i, axis, keepdims=False), self)

    def dynamic_slice(self, starts: Sequence[Any], sizes: Sequence[int]) -> Any:
        part = [a for a, (size, n) in enumerate(zip(sizes, self.shape)) if size != n]
        if any(a not in self._places() for a in part):
            return super().dynamic_slice(starts, sizes)
        made = self
        for a in part:
            made = jax.tree.map(lambda x, a=a: lax.dynamic_slice_in_dim(x, starts[a], sizes[a], a), made)
        return made

    def spec(self, partition: PartitionSpec, mesh: Any = None) -> Any:
        """Axes with a table for each entry are sharded, and others that are neither packed nor those of the runs."""
        entries = (*partition, *[None] * (self.ndim - len(partition)))
        whole = (self.along % self.ndim, None if self.axis is None else self.axis % self.ndim)
        if any(entry is not None and a in whole for a, entry in enumerate(entries)):
            return NotImplemented
        tables = PartitionSpec(*(entry if d > 1 else None for entry, d in zip(entries, self.groups)))
        return dataclasses.replace(self, codes=PartitionSpec(*entries), table=tables)  # type: ignore[arg-type]

    def cut(self, axis: int, keep: Any) -> Any:
        """With the entries ``keep`` of an axis; NotImplemented where runs are cut apart. Host code.

        Raises:
          ValueError: nothing kept, or an index out of range.
        """
        axis, keep, n = axis % self.ndim, np.asarray(keep), self.shape[axis % self.ndim]
        if keep.size == 0 or keep.min() < 0 or keep.max() >= n:
            raise ValueError(f"cut: axis {axis} has {n} entries; keep at least one of 0 to {n - 1}, not {keep.tolist()}")
        if axis == self.along % self.ndim:
            run = self.table.shape[-1]
            whole = keep[::run] // run
            if not np.array_equal(keep, (whole[:, None] * run + np.arange(run)).ravel()):
                return NotImplemented
            keep = whole
        codes = jnp.take(self.unpacked(), keep, axis=axis)
        table = jnp.take(self.table, keep, axis=axis) if self.groups[axis] == n != 1 else self.table
        length = self.length
        if self.axis is not None:
            at = self.axis % self.ndim
            codes, length = packing.pack_bits(codes, self.bits, at), codes.shape[at]
        return dataclasses.replace(self, codes=codes, table=table, length=length)


def summed(codes: Array, table: Array, along: int) -> Array:
    """The values of codes ``[..., M]`` in tables ``[groups..., M, K, d]``, runs laid out along the axis ``along``; float32."""
    *groups, stages, k, run = table.shape
    which = affine.expand_groups(jnp.arange(math.prod(groups), dtype=jnp.int32).reshape(groups), codes.shape[:-1])
    flat = table.reshape(-1, run)
    total: Any = None
    for m in range(stages):
        part = jnp.take(flat, (which * stages + m) * k + codes[..., m].astype(jnp.int32), axis=0, mode="clip")
        total = part if total is None else total + part
    at = along % len(groups)
    shape = [n * run if a == at else n for a, n in enumerate(codes.shape[:-1])]
    return jnp.moveaxis(total, -1, at + 1).reshape(shape)
