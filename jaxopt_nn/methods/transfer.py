"""Weight transfer: leaves move from one tree to another by path map and shape."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxopt_nn.core.arguments import require
from jaxopt_nn.core.paths import leaves_by_path, map_with_path, near_misses, require_match
from jaxopt_nn.core.report import Message, Report
from jaxopt_nn.core.transform import PyTree
from jaxopt_nn.tensors.base import is_compressed

#: The wildcards of a glob: ``**`` or ``*``, ``?``, ``[...]``.
_WILDCARD = re.compile(r"\*+|\?|\[!?\]?[^\]]*\]")


def transfer_weights(source: PyTree, target: PyTree, rename: Sequence[tuple[str, str]] = ()) -> tuple[PyTree, Report]:
    """Moves leaves of ``source`` into ``target``, where the path exists there, the shape is equal and the values fit.

    Args:
      source: any pytree of arrays.
      target: any pytree of arrays (or ``jax.ShapeDtypeStruct``); its structure, dtypes and other leaves stay.
      rename: ``(pattern, replacement)`` over paths of ``source``; the first pattern that matches a leaf counts, and a leaf
        that none matches keeps its path. The replacement's wildcards take, in order, what the pattern's have matched:
        ``("encoder/*/kernel", "params/enc_*/kernel")``. It may have fewer; ``**`` stands for any number of segments.

    Returns:
      ``target`` with the leaves that moved (a leaf of the same dtype is the source's own array), and a ``Report`` with every
      leaf of both trees, by its own path: ``moved``, from where, and to which dtype it was cast; ``skipped``, and why.

    Raises:
      ValueError: a pattern that matches no leaf, or whose replacement has more wildcards; two leaves for one place; a
        compressed tensor in either tree; nothing moved at all.

    Example:
      >>> source = {"encoder": {"kernel": jnp.ones((2, 2))}, "head": jnp.ones((2, 5))}
      >>> target = {"params": {"kernel": jnp.zeros((2, 2)), "head": jnp.zeros((2, 3))}}
      >>> moved, report = jn.transfer_weights(source, target, rename=[("encoder/*", "params/*"), ("head", "params/head")])
      >>> moved["params"]["kernel"]
      Array([[1., 1.],
             [1., 1.]], dtype=float32)
      >>> print(report)
      skipped  params/head    target keeps its own: head does not fit: shape [2, 5] in source, [2, 3] in target
      moved    params/kernel  from encoder/kernel
      skipped  head           of source does not fit params/head: shape [2, 5] in source, [2, 3] in target
    """
    have, want = leaves_by_path(source), leaves_by_path(target)
    for name, leaves in (("source", have), ("target", want)):
        for path, leaf in leaves.items():
            if is_compressed(leaf):
                raise ValueError(
                    f"{path}: is a {type(leaf).__name__} in {name}; floats move: jaxopt_nn.densify({name})"
                )
    places = _places(list(have), rename)
    origin: dict[str, str] = {}
    for path, place in places.items():
        if place in want and origin.setdefault(place, path) != path:
            raise ValueError(f"{place}: both {origin[place]} and {path} of source would move there; rename one of them")
    why = {place: _unfit(have[path], want[place]) for place, path in origin.items()}
    moved = {place: path for place, path in origin.items() if why[place] is None}
    if not moved:
        raise ValueError(f"nothing moved: {_nothing(places, want, why)}")
    tree = map_with_path(
        lambda path, leaf: jnp.asarray(have[moved[path]], leaf.dtype) if path in moved else leaf, target
    )
    return tree, Report(tuple(_messages(have, want, places, origin, why)))


def _places(paths: Sequence[str], rename: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Where each source path goes."""
    rules = []
    for pair in require(rename, list | tuple, "rename", "a list of pairs [(pattern of source, path in target), ...]"):
        pattern, replacement = require(pair, list | tuple, "an entry of rename", "a pair (pattern of source, path in target)")
        require_match(pattern, paths, "path of source")
        given, asked = len(_WILDCARD.findall(pattern)), len(_WILDCARD.findall(replacement))
        if asked > given:
            raise ValueError(
                f"rename ({pattern!r}, {replacement!r}): {asked} wildcards to fill, but {given} that match"
            )
        rules.append((_capturing(pattern), replacement))

    def place(path: str) -> str:
        for regex, replacement in rules:
            if found := regex.fullmatch(path + "/"):
                return _filled(replacement, iter(found.groups()))
        return path

    return {path: place(path) for path in paths}


def _filled(replacement: str, captured: Iterator[str]) -> str:
    filled = _WILDCARD.sub(lambda _: next(captured).strip("/"), replacement)
    return "/".join(segment for segment in filled.split("/") if segment)  # an empty ** leaves an empty segment


def _capturing(pattern: str) -> re.Pattern[str]:
    """``paths.matches`` as a regular expression with one group for each wildcard, over ``path + "/"``."""

    def group(found: re.Match[str]) -> str:
        glob = found[0]
        if glob[0] == "*":
            return "([^/]*?)"
        return "([^/])" if glob == "?" else f"({'[^' + glob[2:] if glob[1] == '!' else glob})"

    def segment(part: str) -> str:
        if part == "**":
            return "((?:[^/]*/)*?)"
        pieces, at = [], 0
        for found in _WILDCARD.finditer(part):
            pieces += [re.escape(part[at : found.start()]), group(found)]
            at = found.end()
        return "".join([*pieces, re.escape(part[at:]), "/"])

    return re.compile("".join(map(segment, pattern.split("/"))))


def _unfit(leaf: Any, place: Any) -> str | None:
    """Why a leaf does not fit, or None: other shape, or a dtype that can't hold its values or their meaning."""
    if tuple(leaf.shape) != tuple(place.shape):
        return f"shape {list(leaf.shape)} in source, {list(place.shape)} in target"
    kinds = (jnp.floating, jnp.complexfloating, jnp.integer, jnp.bool_)
    same = leaf.dtype == place.dtype or any(all(jnp.issubdtype(x.dtype, k) for x in (leaf, place)) for k in kinds)
    if not same:
        return f"dtype {leaf.dtype} in source, {place.dtype} in target"
    lost = 0 if leaf.dtype == place.dtype else _overflowing(leaf, place.dtype)
    return f"{lost} of {leaf.size} values overflow {place.dtype}" if lost else None


def _overflowing(leaf: Any, dtype: Any) -> int:
    """How many finite values of a leaf lie beyond the range of ``dtype``."""
    xp = np if isinstance(leaf, (np.ndarray, np.generic)) else jnp  # jnp would round NumPy's float64 first
    with np.errstate(over="ignore", invalid="ignore"):
        cast = leaf.astype(dtype)
        if jnp.issubdtype(dtype, jnp.integer):  # these wrap around
            lost = (cast.astype(leaf.dtype) != leaf) | ((cast < 0) != (leaf < 0))
        else:
            lost = xp.isfinite(leaf) & ~xp.isfinite(cast)
    return int(lost.sum())


def _messages(
    have: dict[str, Any], want: dict[str, Any], places: dict[str, str], origin: dict[str, str], why: dict[str, Any]
) -> Iterator[Message]:
    for place, leaf in want.items():
        if place not in origin:
            yield Message("skipped", place, f"target keeps its own: {_absent(place, places.values(), 'source')}")
        elif why[place] is not None:
            yield Message("skipped", place, f"target keeps its own: {origin[place]} does not fit: {why[place]}")
        else:
            before = have[origin[place]].dtype
            cast = "" if before == leaf.dtype else f", cast from {before} to {leaf.dtype}"
            yield Message("moved", place, f"from {origin[place]}{cast}")
    for path, place in places.items():
        if place not in want:
            yield Message("skipped", path, f"of source has no place: {_absent(place, want, 'target')}")
        elif why[place] is not None:
            yield Message("skipped", path, f"of source does not fit {place}: {why[place]}")


def _absent(path: str, known: Any, tree: str) -> str:
    near = near_misses(path, known)
    return f"no {path} in {tree}" + (f"; nearest: {', '.join(near)}" if near else "")


def _nothing(places: dict[str, str], want: dict[str, Any], why: dict[str, Any]) -> str:
    if why:
        place, reason = next(iter(why.items()))
        return f"{place}: {reason}"
    path = next(iter(places.values()), None)
    if path is None or not want:
        return f"{'target' if path else 'source'} holds no array"
    return f"{_absent(path, want, 'target')}; pass rename=[(pattern of source, path in target)]"
