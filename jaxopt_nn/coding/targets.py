"""A tree that is to be loaded into the containers of another one."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import Sharding

from jaxopt_nn.core.arguments import in_words
from jaxopt_nn.core.paths import leaves_by_path
from jaxopt_nn.tensors.base import PyTree, is_compressed


def fitted(tree: PyTree, target: PyTree) -> PyTree:
    """``tree`` in the containers of ``target``.

    Raises:
      TypeError: a leaf of ``target`` is no array. ValueError: they have other paths, or a leaf of another shape or dtype.
    """
    leaves, like = leaves_by_path(tree), leaves_by_path(target)
    for path, leaf in like.items():
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            at = f" of {path}" if path else ""
            raise TypeError(f"target{at} is {in_words(leaf)}; pass a tree of arrays or of jax.ShapeDtypeStruct")
    missing, extra = [p for p in like if p not in leaves], [p for p in leaves if p not in like]
    if missing or extra:
        named = lambda paths: ", ".join(path or "an array alone" for path in paths[:3])
        told = [f"{what} {named(paths)}" for what, paths in (("lacks", missing), ("has", extra)) if paths]
        raise ValueError(f"{' and '.join(told)}, where target is otherwise; pass a target of the network that was saved")
    for path, leaf in leaves.items():
        own, wanted = ((tuple(x.shape), x.dtype) for x in (leaf, like[path]))
        if own != wanted:
            raise ValueError(f"{path} is {own[1]}{list(own[0])}, target says {wanted[1]}{list(wanted[0])}")
    return jax.tree.unflatten(jax.tree.structure(target, is_leaf=is_compressed), [leaves[path] for path in like])


def shardings_of(target: PyTree) -> Any:
    """The shardings that the leaves of ``target`` carry, as ``load_file`` takes them; None where they carry none."""
    flat, structure = jax.tree.flatten(target)
    own = [getattr(x, "sharding", None) for x in flat]
    own = [s if isinstance(s, Sharding) and len(s.device_set) > 1 else None for s in own]
    return jax.tree.unflatten(structure, own) if any(own) else None
