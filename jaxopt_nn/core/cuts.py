"""What a pass cuts of a network's leaves, and how what lies beside a leaf follows it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_nn.core.model import ModelInfo
from jaxopt_nn.core.report import Recorder
from jaxopt_nn.tensors.base import is_compressed

PyTree = Any


@dataclasses.dataclass(frozen=True, eq=False)
class Cut:
    """What stays of one leaf.

    Attributes:
      shape: of the leaf before.
      axes: ``{axis: int [k]}``, the entries that stay, in order; all of other axes.
      gone: the leaf leaves the tree; None takes its place.
    """

    shape: tuple[int, ...]
    axes: Mapping[int, np.ndarray]
    gone: bool = False

    @property
    def small(self) -> tuple[int, ...]:
        """The shape of the leaf after; ``(0,)`` of one that is gone."""
        if self.gone:
            return (0,)
        return tuple(len(self.axes[i]) if i in self.axes else n for i, n in enumerate(self.shape))

    def leaf(self, x: Any, path: str = "leaf") -> Any:
        """An array of the leaf's shape, abstract perhaps, or a compressed tensor, cut as the leaf is; codes stay as they are.

        Args:
          path: what the leaf is called where it can't be cut.

        Raises:
          ValueError: the groups of codes that share a scale are cut apart.
        """
        if self.gone:
            return None
        if isinstance(x, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(self.small, x.dtype)
        for axis, entries in self.axes.items():
            made = x.cut(axis, entries) if is_compressed(x) else jnp.take(x, entries, axis=axis)
            if made is NotImplemented:
                raise ValueError(
                    f"{path}: {x.describe()}, of shape {list(x.shape)}: its groups along axis {axis} are cut apart; cut the "
                    "network first and compress then, or keep whole groups"
                )
            x = made
        return x

    def along(self, x: Any, axis: int) -> Any:
        """A vector with an entry for each of the leaf's ``axis``, cut as that axis is."""
        return jnp.take(x, self.axes[axis], axis=0) if axis in self.axes else x

    def beside(self, x: Any) -> Any:
        """An array that lies beside the leaf, cut with it; or a str, the reason why it can't be.

        It is a scalar, or has the leaf's rank and along each axis one entry for all, one for each, or one for each block of
        equally many (groups). Blocks are cut whole or not at all.
        """
        if not x.shape:
            return x
        if len(x.shape) != len(self.shape):
            return f"an array of {len(x.shape)} axes does not lie beside the {len(self.shape)} of the leaf"
        for axis, entries in self.axes.items():
            own, length = x.shape[axis], self.shape[axis]
            if own == 1:
                continue
            block = length // own
            whole = entries[::block] // block
            if own * block != length or not np.array_equal(entries, (whole[:, None] * block + np.arange(block)).ravel()):
                return f"the {own} groups of {block} entries along axis {axis} are cut apart"
            x = jnp.take(x, whole, axis=axis)
        return x


@dataclasses.dataclass(frozen=True, eq=False)
class Cuts:
    """What a method needs to carry its state over to the network that a pass has cut.

    Attributes:
      leaves: ``{path: Cut}`` of the leaves that are cut.
      params: the cut network's, as the method sees them.
      info: what is known of the cut network.
      recorder: takes an ``anew`` message for what can't be carried, a ``note`` of what no longer pays.
      moments: None; or what stands for ``learnt`` is an optimizer's moments of it, and this the fresh ones of the cut
        network, which take the place of what can't be carried.
    """

    leaves: Mapping[str, Cut]
    params: PyTree
    info: ModelInfo
    recorder: Recorder
    moments: PyTree | None = None

    def gone(self, path: str) -> bool:
        """Whether the leaf is in the tree no longer."""
        return path in self.leaves and self.leaves[path].gone

    def of_member(self, i: int, params: PyTree) -> Cuts:
        """As member ``i`` of a combinator gets it, which sees ``params``."""
        moments = None if self.moments is None else self.moments[i]
        return dataclasses.replace(self, params=params, info=self.info.of_member(i), moments=moments)


def by_shape(old: PyTree, fresh: PyTree, cut: Cut) -> PyTree:
    """``old`` carried over by the shapes of its arrays; or a str, the reason why it can't be.

    Scalars stay; what has the leaf's shape, and in ``fresh`` (as made on the cut leaf) the cut leaf's, is cut as the leaf is.
    Nothing is concluded from any other shape: a matrix ``[I, I]`` may be square by chance.
    """
    olds, news = jax.tree.leaves(old), jax.tree.leaves(fresh)
    if len(olds) != len(news):
        return "on the cut leaf it has other parts"
    made = []
    for x, new in zip(olds, news, strict=True):
        if x.shape == new.shape == ():
            made.append(x)
        elif (x.shape, new.shape) == (cut.shape, cut.small):
            made.append(cut.leaf(x))
        else:
            return f"an array of shape {list(x.shape)} need not follow the axes of a leaf of shape {list(cut.shape)}"
    return jax.tree.unflatten(jax.tree.structure(fresh), made)
