"""What became of each leaf: how it is stored, how many weights are left, where its values lie."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_nn.core.paths import leaves_by_path, near_misses
from jaxopt_nn.tensors.base import is_compressed, nbytes

PyTree = Any


def leaf_table(stored: PyTree, macs: Mapping[str, int]) -> list[dict[str, Any]]:
    """For each leaf of a network in its stored form, in the tree's order, an entry of a report's ``leaves``.

    ``bits`` counts everything that is stored for a weight: codes, scales, mask; ``share`` is of the bytes of all leaves.
    ``min`` and ``max`` are over the finite entries, None where there is none or where entries have no order (complex numbers,
    PRNG keys); NaN is no zero. ``stage`` and ``alone`` are None, for who knows them. Leaves are decoded one by one, each by
    itself: one call over the tree may hold all of them dense at a time, and compiles anew for every tree, not only for every
    new kind of leaf.

    Args:
      stored: the variables. macs: path -> multiply-accumulates for one example, of the sites that read the leaf; of other
        leaves None is said.
    """
    leaves = leaves_by_path(stored)
    found = jax.device_get([_summary(leaf) for leaf in leaves.values()])
    entries = [_entry(path, leaf, *summary) for (path, leaf), summary in zip(leaves.items(), found, strict=True)]
    total = max(sum(entry["bytes"] for entry in entries), 1)
    more = {"stage": None, "alone": None}
    return [{**e, "share": e["bytes"] / total, "macs": macs.get(e["path"]), **more} for e in entries]


def told_stages(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The report's entries of baseline and stages, each leaf with the ``stage`` in which it got its format.

    Several stages stand there where the format changed several times (``"prune, quantize"``); None where it never did.
    """
    formats = {leaf["path"]: leaf["format"] for leaf in entries[0]["leaves"]}
    stages: dict[str, str] = {}
    told = []
    for entry in entries:
        for leaf in entry["leaves"]:
            if leaf["format"] != formats.get(leaf["path"], leaf["format"]):
                stages[leaf["path"]] = ", ".join(filter(None, (stages.get(leaf["path"]), entry["name"])))
            formats[leaf["path"]] = leaf["format"]
        told.append({**entry, "leaves": [{**leaf, "stage": stages.get(leaf["path"])} for leaf in entry["leaves"]]})
    return told


def _entry(path: str, leaf: Any, nonzero: Any, low: Any, high: Any) -> dict[str, Any]:
    size, stored = math.prod(leaf.shape), nbytes(leaf)
    return {
        "path": path,
        "shape": list(leaf.shape),
        "format": format_of(leaf),
        "bits": 8 * stored / size if size else 0.0,
        "size": size,
        "nonzero": int(nonzero),
        "bytes": stored,
        "min": float(low) if low <= high else None,
        "max": float(high) if low <= high else None,
    }


def format_of(leaf: Any) -> str:
    """How a leaf is stored, in a few words: ``float32``, ``QTensor int4``, ``Masked(QTensor int4)``."""
    return leaf.format if is_compressed(leaf) else str(leaf.dtype)


@jax.jit
def _summary(leaf: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """``(nonzero, min, max)``; ``min > max`` where there is none."""
    x = leaf.densify() if is_compressed(leaf) else leaf
    none = jnp.float32(jnp.inf), jnp.float32(-jnp.inf)
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jnp.int32(x.size), *none
    nonzero = jnp.count_nonzero(x)
    if jnp.iscomplexobj(x) or not x.size:
        return nonzero, *none
    finite = jnp.isfinite(x)
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return nonzero, jnp.min(jnp.where(finite, x, jnp.inf)), jnp.max(jnp.where(finite, x, -jnp.inf))


def histograms(before: PyTree, after: PyTree, paths: Iterable[str], bins: int = 61) -> dict[str, dict[str, list[Any]]]:
    """Histograms of leaves before and after, on common edges: ``{path: {"edges", "before", "after"}}``.

    The ``bins + 1`` edges lie evenly and symmetrically about 0, out to the largest magnitude of both, so that an exact
    zero falls into the middle bin. A bin holds its lower edge, the last one both, as in ``np.histogram``; NaN and Inf are
    left out, complex numbers count as two.

    Args:
      before, after: trees of arrays or compressed tensors; a leaf may have another shape in each.
      paths: of the leaves.
      bins: an odd number.

    Raises:
      ValueError: ``bins`` is even or below 1; a path that one of the trees lacks (near misses are named).
    """
    if bins < 1 or bins % 2 == 0:
        raise ValueError(f"bins={bins}: needs an odd number, so that exact zeros fall into the middle bin")
    trees = {"before": leaves_by_path(before), "after": leaves_by_path(after)}
    out = {}
    for path in paths:
        for name, leaves in trees.items():
            if path not in leaves:
                near = ", ".join(near_misses(path, leaves)) or "it has no leaf"
                raise ValueError(f"{path}: no leaf of the tree `{name}` has this path; nearest: {near}")
        edges, *counts = jax.device_get(_histogram([leaves[path] for leaves in trees.values()], bins))
        out[path] = {"edges": edges.tolist(), **{name: c.tolist() for name, c in zip(trees, counts, strict=True)}}
    return out


@functools.partial(jax.jit, static_argnames="bins")
def _histogram(leaves: Sequence[Any], bins: int) -> list[jax.Array]:
    """The edges ``[bins + 1]`` and the counts ``[bins]`` of each leaf."""
    values = [_flat(leaf.densify() if is_compressed(leaf) else leaf) for leaf in leaves]
    finite = [jnp.isfinite(x) for x in values]
    reach = jnp.max(jnp.stack([jnp.max(jnp.abs(x), initial=0.0, where=ok) for x, ok in zip(values, finite)]))
    reach = jnp.where(reach < jnp.finfo(jnp.float32).tiny, 1.0, reach)
    # From the middle outwards, so that the edges are exact mirror images and the outermost are the reach itself.
    upper = reach * (np.arange(1, bins + 1, 2, dtype=np.float32) / np.float32(bins))
    edges = jnp.concatenate([-upper[::-1], upper])
    places = [jnp.searchsorted(edges[1:-1], x, side="right") for x in values]
    return [edges, *(jnp.zeros(bins, jnp.int32).at[at].add(ok.astype(jnp.int32)) for at, ok in zip(places, finite))]


def _flat(x: jax.Array) -> jax.Array:
    parts = (x.real, x.imag) if jnp.iscomplexobj(x) else (x,)
    return jnp.concatenate([part.astype(jnp.float32).ravel() for part in parts])
