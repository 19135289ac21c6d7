"""How the bytes of a compressed tensor's child are codes, for whoever codes them shorter; and what its static data may be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxopt_nn.numerics import packing


class Packed(NamedTuple):
    """A uint8 child that holds codes of ``bits`` each, packed along ``axis`` as ``numerics.packing`` packs them.

    Attributes:
      bits: 1 to 8; symbols are below ``2**bits``.
      axis: of the child, from the start.
      lengths: of the axes that the packed one is, unpacked: one, or several where it was flattened, such as rows and columns.
      zero: the symbol that stands for 0, or that is the most frequent; None: not known.
    """

    bits: int
    axis: int
    lengths: tuple[int, ...]
    zero: int | None = None

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether a child of this shape holds that many codes."""
        return shape[self.axis] == packing.packed_length(math.prod(self.lengths), self.bits)


def require(condition: bool, tensor: Any, text: str) -> None:
    """Raises ValueError where a tensor's children and static data can't be of one tensor."""
    if not condition:
        raise ValueError(f"{type(tensor).__name__}: {text}")


def float_name(dtype: Any, what: str) -> str:
    """The name of a float dtype, as ``float_dtype`` holds it; ``what`` is what messages call the tensor.

    Raises:
      ValueError: it is the dtype of other numbers, or of nothing.
    """
    try:
        name = "None" if dtype is None else jnp.dtype(dtype).name  # None is float64 to NumPy
    except TypeError:
        name = f"{dtype!r:.60}"
    if not is_float(name):
        raise ValueError(f"{what}: dtype {name} is no float; pass what densify shall give, such as float32 or bfloat16")
    return name


def is_count(value: Any, least: int = 0) -> bool:
    """Whether a static field is an integer that can be a length."""
    return type(value) is int and least <= value < 2**48


def are_counts(values: Any, least: int = 1) -> bool:
    return isinstance(values, tuple) and all(is_count(v, least) for v in values)


def is_order(order: Any, ndim: int) -> bool:
    """Whether ``order`` names trailing axes of ``ndim`` ones, from the end; None does."""
    return order is None or (isinstance(order, tuple) and all(type(a) is int and -ndim <= a < 0 for a in order))


def is_float(name: Any) -> bool:
    """Whether a static field names a float dtype."""
    try:
        return isinstance(name, str) and jnp.issubdtype(jnp.dtype(name), jnp.floating)
    except TypeError:
        return False


def float_of(name: str) -> Any:
    """The float dtype of that name as JAX computes with it: NumPy's float64 is float32 unless 64 bits are enabled."""
    return jax.dtypes.canonicalize_dtype(name)
