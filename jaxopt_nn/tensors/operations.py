"""Operations on what may be an array or a compressed tensor: the parts of tensors that are made of others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxopt_nn.tensors.base import is_compressed

#: Where it is no method of a tensor of that name.
_ON_ARRAYS: dict[str, Callable[..., Any]] = {
    "cast": lambda x, dtype: x.astype(dtype),
    "transpose": lambda x, permutation: x.transpose(permutation),
    "reshape": lambda x, shape: x.reshape(shape),
    "slice": lambda x, start, limit, strides: lax.slice(x, start, limit, strides),
    "dynamic_slice": lambda x, starts, sizes: lax.dynamic_slice(x, starts, sizes),
    "rev": lambda x, dimensions: lax.rev(x, dimensions),
    "index": lambda x, i, axis: lax.dynamic_index_in_dim(x, i, axis, keepdims=False),
    "take": lambda x, indices, axis: jnp.take(x, indices, axis=axis, mode="clip"),
    "cut": lambda x, axis, keep: jnp.take(x, keep, axis=axis),
    "spec": lambda x, partition, mesh: partition,
    "leading": lambda x: x,
}


def on(x: Any, operation: str, *args: Any) -> Any:
    """A tensor's operation of that name, on it or on an array; of a tensor that is an array at full size, on that."""
    if not is_compressed(x):
        return _ON_ARRAYS[operation](x, *args)
    made = getattr(x, operation)(*args)
    if made is not NotImplemented or is_compressed(wide := x.expand()):
        return made
    return _ON_ARRAYS[operation](wide, *args)


def on_each(parts: Sequence[Any], operation: str, args: Sequence[Sequence[Any]]) -> Any:
    """The operation on each part with its own arguments, as a tuple; NotImplemented where it is so for one of them."""
    made = tuple(on(x, operation, *own) for x, own in zip(parts, args, strict=True))
    return NotImplemented if any(x is NotImplemented for x in made) else made


def expanded(tensor: Any, parts: Sequence[Any]) -> Any:
    """A tensor with its parts at full size, itself where they are."""
    wide = all(not is_compressed(x) or x.expand() is x for x in parts)
    return tensor if wide else tensor.map_parts(lambda x: x.expand() if is_compressed(x) else x)


def dense(x: Any) -> Array:
    """A tensor's float array, an array as it is."""
    return x.densify() if is_compressed(x) else x


def described(parts: Sequence[Any]) -> str:
    """What the parts are, each kind once."""
    return ", ".join(dict.fromkeys(x.describe() if is_compressed(x) else str(x.dtype) for x in parts))


def formats(parts: Sequence[Any]) -> str:
    """The formats of the parts, each once."""
    return ", ".join(dict.fromkeys(x.format if is_compressed(x) else str(x.dtype) for x in parts))


def exact(x: Array, y: Array, dims: Any) -> Array:
    """A product of weights: no backend rounds its operands."""
    return lax.dot_general(x, y, dims, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32)



def is_abstract(tree: Any) -> bool:
    """Whether a tree has abstract arrays."""
    return any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(tree))
