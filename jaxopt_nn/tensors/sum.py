"""The sum of two tensors: a coarse one, and what it leaves."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxopt_nn.tensors import layout, operations
from jaxopt_nn.tensors.base import Tensor
from jaxopt_nn.tensors.packed import float_name, float_of, is_float, require


@partial(jax.tree_util.register_dataclass, data_fields=["a", "b"], meta_fields=["float_dtype"])
@dataclasses.dataclass(frozen=True)
class Sum(Tensor):
    """``a + b``, added in float32 and rounded once to ``float_dtype``. A product is the sum of the products with each.

    Attributes:
      a, b: compressed tensors, or arrays, of one shape.
      float_dtype: name of the dtype that ``densify`` gives.

    Example:
      >>> coarse = jn.LowRank((jnp.array([[1.0], [2.0]]), jnp.array([[3.0, 4.0]])))
      >>> rest = jn.Masked.pack(np.array([[False, True], [False, False]]), jnp.full((2, 2), 0.5))
      >>> jn.Sum(coarse, rest).densify()
      Array([[3. , 4.5],
             [6. , 8. ]], dtype=float32)
    """

    a: Any
    b: Any
    float_dtype: str = "float32"

    def __post_init__(self) -> None:
        """Raises ValueError where ``float_dtype`` is no float: no file would hold such a tensor."""
        object.__setattr__(self, "float_dtype", float_name(self.float_dtype, type(self).__name__))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.a.shape)

    @property
    def dtype(self) -> Any:
        return float_of(self.float_dtype)

    @property
    def format(self) -> str:
        return f"{type(self).__name__}({operations.formats((self.a, self.b))})"

    def describe(self) -> str:
        """``rank 8, float32, plus 4 bits``: what each is."""
        return " plus ".join(operations.described((x,)) for x in (self.a, self.b))

    def map_parts(self, fn: Callable[[Any], Any]) -> Sum:
        return dataclasses.replace(self, a=fn(self.a), b=fn(self.b))

    def expand(self) -> Sum:
        return operations.expanded(self, (self.a, self.b))

    def densify(self) -> Array:
        wide = [operations.dense(x).astype(jnp.float32) for x in (self.a, self.b)]
        return (wide[0] + wide[1]).astype(self.dtype)

    def check(self) -> None:
        shapes = [tuple(x.shape) for x in (self.a, self.b)]
        require(shapes[0] == shapes[1], self, f"parts of shapes {shapes[0]} and {shapes[1]}")
        require(is_float(self.float_dtype), self, f"float_dtype={self.float_dtype!r}")
        super().check()

    def dot_general(self, other: Any, dims: Any, side: int, product: Callable[..., Any]) -> Any:
        return product(other, self.a, None, True) + product(other, self.b, None, True)

    def conv(self, lhs: Any, params: Mapping[str, Any], product: Callable[..., Any]) -> Any:
        return product(lhs, self.a, {}, True) + product(lhs, self.b, {}, True)

    def _both(self, operation: str, *args: Any) -> Any:
        made = operations.on_each((self.a, self.b), operation, [args, args])
        return made if made is NotImplemented else dataclasses.replace(self, a=made[0], b=made[1])

    def cast(self, dtype: Any) -> Any:
        """Of a wider dtype the sum is rounded once: from bfloat16 to float32 it is what it was before rounding."""
        if not jnp.issubdtype(dtype, jnp.floating):
            return NotImplemented
        return dataclasses.replace(self, float_dtype=jnp.dtype(dtype).name)

    def leading(self) -> Any:
        return self._both("leading")

    def transpose(self, permutation: Sequence[int]) -> Any:
        return self._both("transpose", permutation)

    def reshape(self, shape: Sequence[int]) -> Any:
        return self._both("reshape", shape)

    def index(self, i: Any, axis: int) -> Any:
        return self._both("index", i, axis)

    def slice(self, start: Sequence[int], limit: Sequence[int], strides: Sequence[int] | None = None) -> Any:
        return self._both("slice", start, limit, strides)

    def dynamic_slice(self, starts: Sequence[Any], sizes: Sequence[int]) -> Any:
        return self._both("dynamic_slice", starts, sizes)

    def rev(self, dimensions: Sequence[int]) -> Any:
        return self._both("rev", dimensions)

    def take(self, indices: Any, axis: int) -> Any:
        return self._both("take", layout.wide_indices(indices), axis)

    def cut(self, axis: int, keep: Any) -> Any:
        return self._both("cut", axis, keep)

    def spec(self, partition: Any, mesh: Any = None) -> Any:
        return self._both("spec", partition, mesh)
