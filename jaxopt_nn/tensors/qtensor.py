"""Integer codes with scales: 1 to 8 bits, stored packed, prepared unpacked."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from jaxopt_nn.numerics import affine
from jaxopt_nn.tensors import encode
from jaxopt_nn.tensors.coded import DATA, STATIC, Coded
from jaxopt_nn.tensors.packed import float_name


@partial(jax.tree_util.register_dataclass, data_fields=DATA, meta_fields=STATIC)
@dataclasses.dataclass(frozen=True)
class QTensor(Coded):
    """``(codes - zero) * scale``: the codes are the integers themselves.

    Attributes:
      codes: uint8 (packed, or unsigned), int8, or native int4, uint4, int2, uint2.
      scale: float32 (or bfloat16) of the weight's rank; along each axis 1 entry, all, or a divisor of them.
      zero: None, or integers or floats that broadcast like ``scale``.
      bits, signed: the range of the codes.
      float_dtype: name of the dtype that ``densify`` gives.
      axis, length: the packed axis, and its number of entries; None where nothing is packed.
      order, rounding, platform: as in ``Coded``; set by ``prepare``.

    Example:
      >>> w = jnp.array([[0.9, -0.4], [0.3, 0.8]])
      >>> q = jn.QTensor.quantize(w, scale=jnp.full((1, 2), 0.25), bits=3)
      >>> q.densify()  # codes -4 to 3, times 0.25
      Array([[ 0.75, -0.5 ],
             [ 0.25,  0.75]], dtype=float32)
      >>> q.codes.dtype.name, q.nbytes  # 4 codes of 3 bits along one axis, 2 scales
      ('uint8', 10)
    """

    integral: ClassVar[bool] = True

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
          bits: 1 to 8.
          signed, narrow: as in ``affine.code_range``.
          dtype: what ``densify`` gives; x's if None.
          stack: axes along which scan or vmap slices: never packed.
          axis: the axis to pack; if None, that outside ``stack`` with the fewest bytes, the first of equals.
          name: what messages call the tensor, such as its path.

        Raises:
          ValueError: bits outside 1 to 8, no entries, a scale or zero that does not fit, an axis that the weight has not, a
            packed stack axis, a dtype of no floats.
        """
        scale, zero, axis = encode.checked(x.shape, scale, zero, bits, signed, stack, axis, name)
        dtype = float_name(x.dtype if dtype is None else dtype, name)
        codes = encode.rounded(x, scale, zero, bits, signed, narrow, axis)
        return cls._made(codes, scale, zero, bits, signed, dtype, axis, x.shape)

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
        """The stored form of codes that were found elsewhere: whole numbers (of any dtype) within the range of ``bits``.

        Raises:
          TypeError: codes that are not whole. ValueError: a code outside the range, or as ``quantize``.
        """
        scale, zero, axis = encode.checked(codes.shape, scale, zero, bits, signed, stack, axis, name)
        low, high = affine.code_range(bits, signed)
        encode.check_codes(codes, low, high, f"{bits} {'signed' if signed else 'unsigned'} bits", name)
        dtype = float_name(dtype, name)
        return cls._made(encode.stored(codes, bits, signed, axis), scale, zero, bits, signed, dtype, axis, codes.shape)

    @classmethod
    def _made(
        cls,
        codes: Array,
        scale: Array,
        zero: Array | None,
        bits: int,
        signed: bool,
        dtype: str,
        axis: int | None,
        shape: tuple[int, ...],
    ) -> QTensor:
        place = (None, None) if axis is None else (axis - len(shape), shape[axis])
        return cls(codes, scale, zero, bits, signed, dtype, *place)

    def levels(self, codes: Array) -> Array:
        return codes

    def elementwise(self) -> Array:
        """The codes, one integer an entry, in the weight's axis order: int8, or uint8 for unsigned codes."""
        return super().elementwise().astype(jnp.int8 if self.signed else jnp.uint8)

    def zero_code(self) -> Array | None:
        """The code that decodes to 0.0, broadcast like ``zero``, or None where there is none for sure."""
        kind = jnp.int8 if self.signed else jnp.uint8
        if self.zero is None:
            return jnp.zeros([1] * self.scale.ndim, kind)
        return self.zero.astype(kind) if jnp.issubdtype(self.zero.dtype, jnp.integer) else None
