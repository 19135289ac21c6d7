"""Blocks of a matrix that are kept or go whole."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_nn.core.cuts import Cut
from jaxopt_nn.core.model import Roles
from jaxopt_nn.methods.structures.base import Structure
from jaxopt_nn.tensors.masked import Masked


def blocks(inputs: int, outputs: int) -> Structure:
    """Blocks of ``inputs`` x ``outputs`` weights of the matrix, kept or pruned whole; a TPU's tile is 8 x 128.

    The score of a block is the mean over its weights: of ``magnitude`` its L1 norm, of ``energy`` the square of its L2 norm
    (Narang et al. 2017 take the maximum). Blocks at an edge may be smaller; the share of zeros is counted in blocks. The mask
    is stored once a block.

    Args:
      inputs, outputs: of several input or output axes along the last one, a convolution's channels and not its window; -1:
        along all of them.

    Raises:
      ValueError: lengths that are neither whole numbers from 1 nor -1.

    Example:
      >>> v = {"kernel": jnp.array([[1.0, 1.0, 0.0, 5.0], [1.0, 1.0, 0.0, 0.0]])}
      >>> method = jn.prune(structure=jn.blocks(2, 2), sparsity=0.5)
      >>> state = method.init(v)
      >>> state.carried["kernel"].mask
      Array([[False,  True]], dtype=bool)
      >>> method.view(v, state)["kernel"]
      Array([[0., 0., 0., 5.],
             [0., 0., 0., 0.]], dtype=float32)
    """
    for length in (inputs, outputs):
        if isinstance(length, bool) or not isinstance(length, int) or (length < 1 and length != -1):
            raise ValueError(f"blocks({inputs!r}, {outputs!r}): allowed are whole numbers from 1, in weights, and -1 for all")

    sides = partial(_sides, inputs, outputs)
    return Structure(
        f"blocks({inputs}, {outputs})", _takes, partial(_entries, sides), partial(_spread, sides), partial(_pack, sides),
        follows=partial(_follows, sides),
    )  # fmt: skip


#: ``(shape, roles) -> the length of a block along each axis of a leaf``.
Sides = Callable[[tuple[int, ...], Roles], tuple[int, ...]]


def _sides(inputs: int, outputs: int, shape: tuple[int, ...], roles: Roles) -> tuple[int, ...]:
    found = [1] * len(shape)
    plain = [a for a in roles.input if a not in roles.window]
    for length, axes, every in ((inputs, plain, roles.input), (outputs, list(roles.output), roles.output)):
        for a in every if length == -1 else axes[-1:]:
            found[a] = shape[a] if length == -1 else min(length, shape[a])
    return tuple(found)


def _takes(shape: tuple[int, ...], roles: Roles) -> str | None:
    return None if roles.input and roles.output else "has no matrix of inputs and outputs"


def _entries(sides: Sides, score: jax.Array, roles: Roles) -> jax.Array:
    own = sides(score.shape, roles)
    padded = jnp.pad(score, [(0, -n % b) for n, b in zip(score.shape, own)])
    split = [x for n, b in zip(padded.shape, own) for x in (n // b, b)]
    total = padded.reshape(split).sum(tuple(range(1, len(split), 2)))
    counts: Any = np.ones((1,) * score.ndim, np.float32)
    for a, (n, b) in enumerate(zip(score.shape, own)):
        along = np.minimum(b, n - b * np.arange(-(-n // b))).astype(np.float32)
        counts = counts * along.reshape([-1 if i == a else 1 for i in range(score.ndim)])
    return total / counts


def _spread(sides: Sides, mask: jax.Array, shape: tuple[int, ...], roles: Roles) -> jax.Array:
    for a, (n, b) in enumerate(zip(shape, sides(shape, roles))):
        mask = mask if b == 1 else jax.lax.slice_in_dim(jnp.repeat(mask, b, axis=a), 0, n, axis=a)
    return mask


def _pack(sides: Sides, mask: jax.Array, leaf: Any, roles: Roles) -> Any:
    return Masked.pack(_spread(sides, mask, leaf.shape, roles), leaf, roles.stack, sides(leaf.shape, roles))


def _follows(sides: Sides, mask: jax.Array, cut: Cut, roles: Roles) -> jax.Array | str:
    before, after = sides(cut.shape, roles), sides(cut.small, roles)
    for a, kept in cut.axes.items():
        b = before[a]
        if b == cut.shape[a] and after[a] == cut.small[a]:  # one block along the whole axis
            continue
        whole = np.unique(np.asarray(kept) // b)
        if not np.array_equal(kept, np.concatenate([np.arange(w * b, min((w + 1) * b, cut.shape[a])) for w in whole])):
            return f"blocks of {b} entries along axis {a} are cut apart"
        if any((w + 1) * b > cut.shape[a] for w in whole[:-1]) or after[a] != b:
            return f"blocks along axis {a} are of other lengths"
        mask = jnp.take(mask, whole, axis=a)
    return mask
