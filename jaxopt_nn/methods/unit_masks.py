"""Neuron pruning with masks: whole units of a layer, set to zero in every leaf that they touch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_nn.core.arguments import require
from jaxopt_nn.core.cuts import Cut
from jaxopt_nn.core.leafwise import leafwise
from jaxopt_nn.core.model import Known, ModelInfo
from jaxopt_nn.core.paths import leaves_by_path, near_misses
from jaxopt_nn.core.transform import LeafTraits, PyTree, State, Transform
from jaxopt_nn.tensors.base import is_compressed
from jaxopt_nn.tensors.masked import Masked

#: ``{path: {axis: bool [length of the axis]}}``; True is kept.
Keep = Mapping[str, Mapping[int, Any]]


@partial(jax.tree_util.register_dataclass, data_fields=["keep"], meta_fields=["axes", "stack"])
@dataclasses.dataclass(frozen=True)
class MaskedUnits:
    """State of one leaf: for each of ``axes`` the units that stay, bool ``[length]``; and its stack axes."""

    keep: tuple[Any, ...]
    axes: tuple[int, ...]
    stack: tuple[int, ...]


def mask_units(keep: Keep) -> Transform:
    """Sets whole slices of leaves to zero: ``{path: {axis: bool [length]}}``, True is kept.

    Returns:
      A ``Transform`` whose masks live in ``carried`` and never change. Leaves of two or more axes pack into ``Masked``,
      vectors stay dense; gradients reach kept entries only.

    Raises:
      ValueError: a mask that is no vector of bools, or keeps nothing; at ``init``, a path that is no leaf (near misses
        are named), an axis that the leaf does not have, or a mask of another length.

    Example:
      >>> v = {"up": jnp.ones((2, 3)), "down": jnp.ones((3, 2))}
      >>> keep = np.array([True, False, True])
      >>> method = jn.mask_units({"up": {1: keep}, "down": {0: keep}})
      >>> method.view(v, method.init(v))["up"]
      Array([[1., 0., 1.],
             [1., 0., 1.]], dtype=float32)
    """
    masks = _masks(keep)

    def takes(path: str, leaf: Any, info: ModelInfo) -> LeafTraits | str:
        if path not in masks:
            return "no unit of it is masked"
        if is_compressed(leaf):
            return "is a compressed tensor already"
        return LeafTraits("mask" if len(leaf.shape) >= 2 else None)

    def init(path: str, leaf: Any, known: Known) -> tuple[Any, Any]:
        axes = masks[path]
        for axis, mask in axes.items():
            if not 0 <= axis < len(leaf.shape) or leaf.shape[axis] != len(mask):
                raise ValueError(
                    f"{path}: a mask of {len(mask)} units for axis {axis} of shape {tuple(leaf.shape)}; find the masks on "
                    "a tree of the same shapes"
                )
        return (), MaskedUnits(tuple(map(jnp.asarray, axes.values())), tuple(axes), known.roles.stack)

    def view(leaf: Any, learnt: Any, carried: MaskedUnits) -> Any:
        return jnp.where(_whole(leaf.shape, carried), leaf, jnp.zeros_like(leaf))

    def pack(path: str, leaf: Any, learnt: Any, carried: MaskedUnits) -> Any:
        if len(leaf.shape) < 2 or 0 in leaf.shape:
            return view(leaf, learnt, carried)
        return Masked.pack(_whole(leaf.shape, carried), leaf, carried.stack)

    def follows(learnt: Any, carried: MaskedUnits, cut: Cut) -> tuple[Any, Any]:
        keep = tuple(cut.along(mask, axis) for mask, axis in zip(carried.keep, carried.axes, strict=True))
        return learnt, dataclasses.replace(carried, keep=keep)

    made = leafwise(takes, init, view, pack=pack, follows=follows, name="mask_units")

    def checked_init(params: PyTree, info: ModelInfo = ModelInfo()) -> State:
        known = dict.fromkeys([*(leaf.path for leaf in info.leaves), *leaves_by_path(params)])
        for path in masks:
            if path not in known:
                near = near_misses(path, known) or list(known)[:3]
                raise ValueError(
                    f"mask_units: {path!r} is no leaf of {len(known)}; nearest: {', '.join(near) or 'none'}"
                )
        return made.init(params, info)

    return made._replace(init=checked_init)


def _masks(keep: Any) -> dict[str, dict[int, np.ndarray]]:
    """The masks as arrays."""
    require(keep, Mapping, "mask_units: keep", "a dict {path: {axis: bool [length]}}; True is kept")
    return {path: {axis: _checked(path, axis, m) for axis, m in axes.items()} for path, axes in keep.items()}


def _checked(path: str, axis: int, mask: Any) -> np.ndarray:
    array = np.asarray(mask)
    if array.dtype != bool or array.ndim != 1:
        raise ValueError(
            f"{path}, axis {axis}: {array.dtype}{list(array.shape)}; pass a bool for each entry of the axis"
        )
    if not array.any():
        raise ValueError(
            f"{path}, axis {axis}: the mask keeps none of {array.size} units, fewer than one; keep at least one"
        )
    return array


def _whole(shape: tuple[int, ...], carried: MaskedUnits) -> jax.Array:
    """The mask of the whole leaf, bool."""
    mask = jnp.ones(shape, bool)
    for axis, keep in zip(carried.axes, carried.keep, strict=True):
        mask &= jnp.expand_dims(keep, [i for i in range(len(shape)) if i != axis])
    return mask
