"""The matrix of a leaf: from the array in which weights are kept to ``[S..., I, O]``, and back.

A model hands a leaf to a site through operations that only move entries: it takes a layer of a stack, transposes, reshapes,
slices, broadcasts. A ``Matrix`` holds these as steps, followed by those that bring the operand to its normal form, and replays
them. Casts are no step: a matrix has the leaf's dtype. Every step has its inverse as ``put``, which gets the array that the
step was applied to, since a slice covers a part of it only.

While steps run, the axes that a loop, an index or ``vmap`` takes away stand in front; a step's own axes count behind them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp


class Step(Protocol):
    """One operation on the trailing axes of an array with ``lead`` stack axes in front."""

    def apply(self, w: Any, lead: int) -> Any:
        """What the step makes of ``w``."""

    def put(self, w: Any, new: Any, lead: int) -> Any:
        """``w`` with ``new`` in the place of ``apply(w)``."""

    def result(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of what it makes of an array of this shape, without stack axes."""


@dataclasses.dataclass(frozen=True)
class Transpose:
    """As ``lax.transpose``."""

    permutation: tuple[int, ...]

    def apply(self, w: Any, lead: int) -> Any:
        return jnp.transpose(w, (*range(lead), *(lead + a for a in self.permutation)))

    def put(self, w: Any, new: Any, lead: int) -> Any:
        inverse = sorted(range(len(self.permutation)), key=self.permutation.__getitem__)
        return Transpose(tuple(inverse)).apply(new, lead)

    def result(self, shape: Sequence[int]) -> tuple[int, ...]:
        return tuple(shape[a] for a in self.permutation)


@dataclasses.dataclass(frozen=True)
class Reshape:
    """As ``lax.reshape``; also adds and drops axes of length one."""

    shape: tuple[int, ...]

    def apply(self, w: Any, lead: int) -> Any:
        return jnp.reshape(w, (*w.shape[:lead], *self.shape))

    def put(self, w: Any, new: Any, lead: int) -> Any:
        return jnp.reshape(new, w.shape)

    def result(self, shape: Sequence[int]) -> tuple[int, ...]:
        return self.shape


@dataclasses.dataclass(frozen=True)
class Squeeze:
    """As ``lax.squeeze``."""

    axes: tuple[int, ...]

    def apply(self, w: Any, lead: int) -> Any:
        return jnp.squeeze(w, tuple(lead + a for a in self.axes))

    def put(self, w: Any, new: Any, lead: int) -> Any:
        return jnp.reshape(new, w.shape)

    def result(self, shape: Sequence[int]) -> tuple[int, ...]:
        return tuple(n for a, n in enumerate(shape) if a not in self.axes)


@dataclasses.dataclass(frozen=True)
class Broadcast:
    """As ``lax.broadcast_in_dim``; of equal copies the first is put back."""

    shape: tuple[int, ...]
    dims: tuple[int, ...]

    def apply(self, w: Any, lead: int) -> Any:
        held = dict(zip(self.dims, w.shape[lead:], strict=True))
        thin = (*w.shape[:lead], *(held.get(d, 1) for d in range(len(self.shape))))
        return jnp.broadcast_to(jnp.reshape(w, thin), (*w.shape[:lead], *self.shape))

    def put(self, w: Any, new: Any, lead: int) -> Any:
        held = dict(zip(self.dims, w.shape[lead:], strict=True))
        first = tuple(slice(0, held.get(d, 1)) for d in range(len(self.shape)))
        return jnp.reshape(new[(*[slice(None)] * lead, *first)], w.shape)

    def result(self, shape: Sequence[int]) -> tuple[int, ...]:
        return self.shape


@dataclasses.dataclass(frozen=True)
class Slice:
    """As ``lax.slice``."""

    start: tuple[int, ...]
    limit: tuple[int, ...]
    strides: tuple[int, ...]

    def _index(self, lead: int) -> tuple[slice, ...]:
        return (*[slice(None)] * lead, *map(slice, self.start, self.limit, self.strides))

    def apply(self, w: Any, lead: int) -> Any:
        return w[self._index(lead)]

    def put(self, w: Any, new: Any, lead: int) -> Any:
        return jnp.asarray(w).at[self._index(lead)].set(new)

    def result(self, shape: Sequence[int]) -> tuple[int, ...]:
        return tuple(-(-(b - a) // n) for a, b, n in zip(self.start, self.limit, self.strides, strict=True))


@dataclasses.dataclass(frozen=True)
class Embed:
    """One part of ``lax.concatenate``, zero where the others stand: the parts add up to the whole."""

    shape: tuple[int, ...]
    start: tuple[int, ...]

    def apply(self, w: Any, lead: int) -> Any:
        after = [n - a - own for n, a, own in zip(self.shape, self.start, w.shape[lead:], strict=True)]
        return jnp.pad(w, [(0, 0)] * lead + list(zip(self.start, after, strict=True)))

    def put(self, w: Any, new: Any, lead: int) -> Any:
        own = tuple(slice(a, a + n) for a, n in zip(self.start, w.shape[lead:], strict=True))
        return new[(*[slice(None)] * lead, *own)]

    def result(self, shape: Sequence[int]) -> tuple[int, ...]:
        return self.shape


@dataclasses.dataclass(frozen=True)
class Reverse:
    """As ``lax.rev``."""

    axes: tuple[int, ...]

    def apply(self, w: Any, lead: int) -> Any:
        return jnp.flip(w, [lead + a for a in self.axes])

    def put(self, w: Any, new: Any, lead: int) -> Any:
        return self.apply(new, lead)

    def result(self, shape: Sequence[int]) -> tuple[int, ...]:
        return tuple(shape)


@dataclasses.dataclass(frozen=True)
class Unstack:
    """One entry of ``axis`` at a time, by a loop or a traced index: the axis becomes the last stack axis.

    Attributes:
      axis: which axis. keeps: an axis of length one stays in its place.
    """

    axis: int
    keeps: bool = False

    def apply(self, w: Any, lead: int) -> Any:
        w = jnp.moveaxis(w, lead + self.axis, lead)
        return jnp.expand_dims(w, lead + 1 + self.axis) if self.keeps else w

    def put(self, w: Any, new: Any, lead: int) -> Any:
        new = jnp.squeeze(new, lead + 1 + self.axis) if self.keeps else new
        return jnp.moveaxis(new, lead, lead + self.axis)

    def result(self, shape: Sequence[int]) -> tuple[int, ...]:
        own = [1] if self.keeps else []
        return (*shape[: self.axis], *own, *shape[self.axis + 1 :])


def _replayed(steps: Sequence[Step], w: Any, lead: int = 0) -> list[tuple[Any, int]]:
    """``w`` before each step, and after the last, with the number of its stack axes."""
    stages = [(w, lead)]
    for step in steps:
        w = step.apply(w, lead)
        lead += isinstance(step, Unstack)
        stages.append((w, lead))
    return stages


@dataclasses.dataclass(frozen=True)
class Matrix:
    """How a site reads a leaf: as ``[S..., I, O]``.

    ``matrix(w)`` gives the matrix, ``matrix.put(w, m)`` the leaf with the matrix ``m`` in its place. Both work on arrays,
    under ``jit`` and on ``jax.ShapeDtypeStruct``.

    Attributes:
      leaf: shape of the leaf.
      steps: the operations from the leaf to the matrix.
      shape: ``(*stack, inputs, outputs)``. Stack: first the axes that loops and traced indices take (outermost first), then
        those that the site itself keeps apart (batch axes of a dot, groups of a convolution).
      slots: how many of the stack axes are of the first kind.

    Example:
      >>> def apply(v, x):  # one leaf holds two layers; the first is read transposed
      ...     return x @ v["both"][0].T + x @ v["both"][1]
      >>> v = {"both": jnp.arange(8.0).reshape(2, 2, 2)}
      >>> first, second = (site.uses[0].matrix for site in jn.inspect(apply, v, jnp.ones((1, 2))).sites)
      >>> first(v["both"])
      Array([[0., 2.],
             [1., 3.]], dtype=float32)
      >>> first.put(v["both"], 10 + first(v["both"]))  # the second layer stays
      Array([[[10., 11.],
              [12., 13.]],
      <BLANKLINE>
             [[ 4.,  5.],
              [ 6.,  7.]]], dtype=float32)
    """

    leaf: tuple[int, ...]
    steps: tuple[Step, ...]
    shape: tuple[int, ...]
    slots: int = 0

    @property
    def stack(self) -> tuple[int, ...]:
        return self.shape[:-2]

    @property
    def inputs(self) -> int:
        """Length of I."""
        return self.shape[-2]

    @property
    def outputs(self) -> int:
        """Length of O."""
        return self.shape[-1]

    @property
    def whole(self) -> bool:
        """Whether the site reads all entries of the leaf; of one that is cut in slices it may read a part."""
        if not any(isinstance(step, Slice) for step in self.steps):
            return True
        with jax.ensure_compile_time_eval():
            return bool(jnp.all(self.put(jnp.zeros(self.leaf, bool), jnp.ones(self.shape, bool))))

    def __call__(self, w: Any) -> Any:
        """``w`` as ``[S..., I, O]``, in its own dtype.

        Raises:
          ValueError: ``w`` has another shape than the leaf.
        """
        if isinstance(w, jax.ShapeDtypeStruct):
            return jax.eval_shape(self, w)
        self._check(w, self.leaf, "leaf")
        return _replayed(self.steps, jnp.asarray(w))[-1][0]

    def put(self, w: Any, matrix: Any) -> Any:
        """``w`` with the entries that the site reads replaced by those of ``matrix [S..., I, O]``, cast to its dtype.

        Raises:
          ValueError: another shape.
        """
        if isinstance(w, jax.ShapeDtypeStruct) or isinstance(matrix, jax.ShapeDtypeStruct):
            return jax.eval_shape(self.put, w, matrix)
        self._check(w, self.leaf, "leaf")
        self._check(matrix, self.shape, "matrix (*stack, inputs, outputs)")
        *stages, _ = _replayed(self.steps, jnp.asarray(w))
        new = jnp.asarray(matrix).astype(w.dtype)
        for step, (before, lead) in zip(reversed(self.steps), reversed(stages), strict=True):
            new = step.put(before, new, lead)
        return new

    @staticmethod
    def _check(x: Any, shape: tuple[int, ...], what: str) -> None:
        if tuple(x.shape) != shape:
            raise ValueError(
                f"an array of shape {tuple(x.shape)}, where the site reads a {what} of shape {shape}; pass the leaf that the "
                "site names"
            )
