"""What a structure is: the things that are kept or go as one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxopt_nn.core.cuts import Cut
from jaxopt_nn.core.model import Roles
from jaxopt_nn.tensors.masked import Masked


def _any_leaf(shape: tuple[int, ...], roles: Roles) -> str | None:
    return None


def _each(score: jax.Array, roles: Roles) -> jax.Array:
    return score


def _same(mask: jax.Array, shape: tuple[int, ...], roles: Roles) -> jax.Array:
    return mask


def _masked(mask: jax.Array, leaf: Any, roles: Roles) -> Any:
    return Masked.pack(mask, leaf, roles.stack)


def _cut(mask: jax.Array, cut: Cut, roles: Roles) -> jax.Array | str:
    return cut.leaf(mask)


class Structure(NamedTuple):
    """What is kept or goes as one, and in which patterns.

    Attributes:
      name: in messages.
      takes: ``(shape, roles) -> str | None``: why a leaf can't have it.
      entries: ``(score, roles) -> scores``, float32, one for each thing that is kept or goes. They have as many axes as the
        leaf and each runs along its own, so that roles and allocations hold for them.
      spread: ``(mask, shape, roles) -> bool`` of the leaf's shape, of a mask of the entries.
      pack: ``(mask, leaf, roles) -> compressed tensor``; ``mask`` is that of the entries.
      select: ``(scores, roles, sparsity) -> mask`` where the pattern leaves no choice to an allocation; else None.
      share: the share of zeros where the pattern has only one; else None.
      pattern: ``(n, m)`` where n of every m inputs in a row are kept, for methods that choose them in turn; else None.
      follows: ``(mask, cut, roles) -> mask | str`` for a leaf that a pass has cut; a str says why it is made anew.

    Example:
      >>> rows = jn.Structure(  # whole rows of a matrix
      ...     "rows",
      ...     takes=lambda shape, roles: None if len(shape) == 2 else "is no matrix",
      ...     entries=lambda score, roles: score.mean(1, keepdims=True),
      ...     spread=lambda mask, shape, roles: jnp.broadcast_to(mask, shape),
      ...     pack=lambda mask, leaf, roles: jn.Masked.pack(jnp.broadcast_to(mask, leaf.shape), leaf),
      ... )
      >>> v = {"kernel": jnp.array([[1.0, 2.0], [3.0, 4.0]])}
      >>> method = jn.prune(structure=rows, sparsity=0.5)
      >>> method.view(v, method.init(v))["kernel"]
      Array([[0., 0.],
             [3., 4.]], dtype=float32)
    """

    name: str
    takes: Callable[[tuple[int, ...], Roles], str | None] = _any_leaf
    entries: Callable[[jax.Array, Roles], jax.Array] = _each
    spread: Callable[[jax.Array, tuple[int, ...], Roles], jax.Array] = _same
    pack: Callable[[jax.Array, Any, Roles], Any] = _masked
    select: Callable[[jax.Array, Roles, Any], jax.Array] | None = None
    share: float | None = None
    pattern: tuple[int, int] | None = None
    follows: Callable[[jax.Array, Cut, Roles], jax.Array | str] = _cut


#: Each weight by itself.
single_weights = Structure("single weights")
