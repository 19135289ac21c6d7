"""Signs, one bit each, with scales."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from jaxopt_nn.numerics import packing, signs
from jaxopt_nn.tensors import encode, layout
from jaxopt_nn.tensors.coded import DATA, STATIC, Coded
from jaxopt_nn.tensors.packed import Packed, float_name


@partial(jax.tree_util.register_dataclass, data_fields=DATA, meta_fields=STATIC)
@dataclasses.dataclass(frozen=True)
class Binary(Coded):
    """``scale * sign``: each weight is plus or minus a scale, one bit a weight (Courbariaux et al. 2015).

    No entry is zero, and there is no zero point: a one-bit ``QTensor`` needs one for each scale to say the same.

    Attributes:
      codes: stored, uint8, eight signs to a byte along ``axis``, a bit being 1 for +1; prepared, uint32, 32 of them along what
        is contracted, or +1 and -1 as int8 or floats, an entry each.
      scale: float32, of the weight's rank; along each axis 1 entry, all, or a divisor of them.
      zero: None.
      bits, signed: 1, True.
      float_dtype, axis, length, order, rounding, platform: as in ``Coded``.

    Example:
      >>> w = jnp.array([[0.9, -0.4, 0.2], [-0.3, 0.0, 0.5]])
      >>> q = jn.Binary.from_signs(w >= 0, scale=0.5)
      >>> q.densify()
      Array([[ 0.5, -0.5,  0.5],
             [-0.5,  0.5,  0.5]], dtype=float32)
      >>> q.codes.dtype.name, q.nbytes  # a byte for the 3 signs of a row, and the scale
      ('uint8', 6)
    """

    @classmethod
    def from_signs(
        cls,
        positive: Array,
        scale: ArrayLike = 1.0,
        *,
        dtype: DTypeLike = jnp.float32,
        stack: Sequence[int] = (),
        axis: int | None = None,
        name: str = "weight",
    ) -> Binary:
        """The stored form.

        Args:
          positive: bool, of the weight's shape: True is +1.
          scale: a number, or floats of the weight's rank, per axis 1, all, or a divisor; repeated over stack axes.
          dtype: what ``densify`` gives.
          stack: axes along which scan or vmap slices: never packed.
          axis: the axis to pack; if None, that outside ``stack`` with the fewest bytes, the first of equals.
          name: what messages call the tensor, such as its path.

        Raises:
          ValueError: no entries, a scale that does not fit or is not finite, an axis that the weight has not, a packed stack
            axis, a dtype of no floats.
          TypeError: ``positive`` is not bool.
        """
        if positive.dtype != jnp.bool_:
            raise TypeError(f"{name}: the signs are {positive.dtype}; pass bool, True for +1, e.g. weight >= 0")
        scale = jnp.asarray(scale, jnp.float32)
        scale = scale.reshape([1] * positive.ndim) if scale.ndim == 0 else scale
        scale, _, axis = encode.checked(positive.shape, scale, None, 1, True, stack, axis, name)
        if not isinstance(scale, jax.core.Tracer) and not np.all(np.isfinite(scale)):
            raise ValueError(f"{name}: NaN or Inf among the scales; pass finite ones, such as mean magnitudes of the weight")
        made = cls(signs.signs(positive), scale, None, 1, True, float_name(dtype, name))
        return made if axis is None else made.packed_along(axis)

    @property
    def integral(self) -> bool:  # type: ignore[override]
        """Integer programs run on the signs, where they are integers."""
        return bool(jnp.issubdtype(self.codes.dtype, jnp.integer))

    @property
    def format(self) -> str:
        return type(self).__name__

    def describe(self) -> str:
        """``signs, 1 bit``; and what a sign lies in if that is wider."""
        return super().describe().replace("1 bits", "signs, 1 bit", 1)

    def levels(self, codes: Array) -> Array:
        return codes

    def zero_code(self) -> Array | None:
        """None: no code stands for 0.0."""
        return None

    def packed_along(self, axis: int) -> Self:
        """The same signs, eight to a byte along an axis; the codes' axes in the weight's order."""
        axis = axis % self.ndim
        if self.axis is not None and self._place() == axis and self.order is None and not self._in_words:
            return self
        plain = self.in_order()
        codes = packing.pack_bits((plain.codes > 0).astype(jnp.uint8), 1, axis)
        return dataclasses.replace(plain, codes=codes, axis=axis - self.ndim, length=self.shape[axis])

    def words(self, axis: int | None = None) -> Self:
        """The same signs, 32 to a word, along the axis that they are packed along, or another one."""
        if axis is not None and (self.axis is None or self._place() != axis % self.ndim):
            return self.packed_along(axis).words()
        if self.axis is None:
            raise ValueError(f"{self.format}: signs that are an entry each are packed along no axis yet; name one")
        if self._in_words:
            return self
        place = self.physical.index(self.axis % self.ndim)
        return dataclasses.replace(self, codes=signs.words_of_bytes(self.codes, place))

    def in_entries(self, kind: DTypeLike) -> Self:
        """The same signs as +1 and -1 of that dtype, an entry each, laid as they are."""
        wide = self.expand()
        return dataclasses.replace(wide, codes=wide.codes.astype(kind))

    @property
    def _in_words(self) -> bool:
        return self.codes.dtype == jnp.uint32

    def coding(self) -> dict[str, Packed]:
        """None for words: only bytes are packed as the entropy coder unpacks them."""
        return {} if self._in_words else super().coding()

    def _holds_length(self) -> bool:
        if not self._in_words or self.axis is None or self.length is None:
            return super()._holds_length()
        return self.codes.shape[self.physical.index(self.axis % self.codes.ndim)] == -(-self.length // signs.WORD)

    def expand(self) -> Self:
        if self.axis is None or self.length is None or not self._in_words:
            return super().expand()
        place = self.physical.index(self.axis % self.codes.ndim)
        bits = signs.unpack_words(self.codes, self.length, place)
        return dataclasses.replace(self, codes=signs.signs(bits), axis=None, length=None)

    def _opened(self, codes: Array) -> Array:
        return signs.signs(codes)

    def _closed(self, codes: Array, at: int) -> Array:
        packed = packing.pack_bits((codes > 0).astype(jnp.uint8), 1, at)
        return signs.words_of_bytes(packed, at) if self._in_words else packed

    def take(self, indices: ArrayLike, axis: int) -> Self:
        if self._in_words and self._place() == axis % self.ndim:
            return self.expand().take(layout.wide_indices(indices), axis)
        return super().take(indices, axis)
