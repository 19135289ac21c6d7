"""Paths of leaves, and patterns over them.

A path is a leaf's full address inside ``variables``, keys joined by ``/``: ``params/encoder/mlp/kernel``. A pattern is a
glob over whole segments: ``*`` stands for anything inside one segment, ``**`` for any number of segments. A path matches
itself, also where its names hold brackets.
"""

from __future__ import annotations

import difflib
import fnmatch
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, KeyEntry, SequenceKey

from jaxopt_nn.tensors.base import is_compressed

PyTree = Any


def path_of(keys: tuple[KeyEntry, ...]) -> str:
    """The path of a leaf whose key path is ``keys``; the ``.value`` of a Flax NNX variable is no part of it."""
    if keys and isinstance(keys[-1], GetAttrKey) and keys[-1].name == "value":
        keys = keys[:-1]
    return "/".join(map(_segment, keys))


def _segment(key: KeyEntry) -> str:
    match key:
        case DictKey() | FlattenedIndexKey():
            return str(key.key)
        case SequenceKey():
            return str(key.idx)
        case GetAttrKey():
            return key.name
    return str(key).strip("[].'\"")


def leaves_by_path(tree: PyTree) -> dict[str, Any]:
    """``{path: leaf}`` in the tree's order; a compressed tensor is one leaf.

    Raises:
      ValueError: two leaves have the same path (a key that holds a ``/``).
    """
    flat, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_compressed)
    found: dict[str, Any] = {}
    for keys, leaf in flat:
        path = path_of(keys)
        if path in found:
            raise ValueError(f"{path}: two leaves have this path; rename the key that holds a '/'")
        found[path] = leaf
    return found


def map_with_path(fn: Callable[..., Any], tree: PyTree, *rest: PyTree) -> PyTree:
    """``jax.tree.map`` with ``fn(path, leaf, *other_leaves)``; a compressed tensor is one leaf."""
    return jax.tree_util.tree_map_with_path(
        lambda keys, *leaves: fn(path_of(keys), *leaves), tree, *rest, is_leaf=is_compressed
    )


def _expression(pattern: str) -> str:
    """The regular expression, without groups, of a pattern, for paths that end in ``/``."""
    return "".join("(?:[^/]*/)*" if segment == "**" else _of_segment(segment) + "/" for segment in pattern.split("/"))


def _of_segment(segment: str) -> str:
    glob = fnmatch.translate(segment)[4:-3].replace(".*", "[^/]*")
    # names may hold brackets (`w[0,0]`): whatever a name means as a glob, it stands for itself too
    return f"(?:{glob}|{re.escape(segment)})" if "[" in segment else glob


@functools.lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(_expression(pattern))


def matches(pattern: str, path: str) -> bool:
    """Whether the glob ``pattern`` matches the whole of ``path``."""
    return _compiled(pattern).fullmatch(path + "/") is not None


def first_match(patterns: Sequence[str]) -> Callable[[str], int | None]:
    """``path -> int | None``: which of the patterns is the first to match it; each path is looked up once.

    All patterns are one regular expression, so that hundreds of them cost hardly more than one.
    """
    together = re.compile("|".join(f"({_expression(pattern)})" for pattern in patterns))

    @functools.cache
    def find(path: str) -> int | None:
        found = together.fullmatch(path + "/")
        return None if found is None or found.lastindex is None else found.lastindex - 1

    return find


def near_misses(name: str, known: Iterable[str], most: int = 3) -> list[str]:
    """The ``known`` names that look most like ``name``."""
    return difflib.get_close_matches(name, list(known), n=most, cutoff=0.3)


def require_match(pattern: str, paths: Iterable[str], what: str = "path") -> list[str]:
    """The ``paths`` that ``pattern`` matches.

    Raises:
      ValueError: none does; see ``no_match``.
    """
    paths = list(paths)
    found = [p for p in paths if matches(pattern, p)]
    if not found:
        raise ValueError(no_match(pattern, paths, what))
    return found


def no_match(pattern: str, paths: Sequence[str], what: str = "path") -> str:
    """What to say of a pattern that matches nothing: the glob that was meant, or the nearest paths."""
    if not any(paths):
        return f"pattern {pattern!r} matches no {what}: there is none to match; pass the whole tree, {{name: array}}"
    globs = meant(pattern, paths)
    if len(globs) > 1:
        cases = ", ".join(f"({glob!r}, ...)" for glob in globs)
        return f"pattern {pattern!r} matches no {what} of {len(paths)}: {GLOBS}; use one case each: by_path([{cases}])"
    if globs:
        return f"pattern {pattern!r} matches no {what} of {len(paths)}: {GLOBS}; did you mean {globs[0]!r}?"
    near = near_misses(pattern.replace("**/", "").replace("*", ""), paths) or paths[:3]
    return f"pattern {pattern!r} matches no {what} of {len(paths)}: {GLOBS}; nearest: {', '.join(near)}"


GLOBS = "patterns are globs over whole paths, * within a name, ** for any number of names"


def meant(pattern: str, paths: Sequence[str]) -> list[str]:
    """The globs that someone may have meant by a pattern that matches nothing, e.g. a regular expression.

    Several where it has alternatives, ``(a|b)``; none where no glob made of it matches a path.
    """
    bare = re.sub(r"\[['\"]?|['\"]?\]", "/", pattern).strip("/") if "']" in pattern or '"]' in pattern else pattern
    options = re.search(r"\(\??:?([^()]*\|[^()]*)\)", bare)
    before, after = (bare[: options.start()], bare[options.end() :]) if options else ("", "")
    texts = [f"{before}{own}{after}" for own in (options[1] if options else bare).split("|")]
    globs = [next((g for g in _globs(text) if any(matches(g, p) for p in paths)), None) for text in texts]
    return [g for g in globs if g is not None] if all(globs) else []


def _globs(text: str) -> list[str]:
    """A regular expression, a name, or a path in another writing as globs, the narrowest first."""
    text = re.sub(r"/+", "/", text.removeprefix("^").removesuffix("$"))
    if text in (".*", ".+"):
        return ["**"]
    loose = re.sub(r"\(\.\*/\)\??|\.\*/", "**/", text)
    loose = re.sub(r"(\.|\\[dw]|\[[^]]*\])[*+]\??", "*", loose).replace("\\", "")
    name = loose.strip("/").replace("**/*", "*")
    dotted = name.replace(".", "/")
    tries = [loose, name, dotted]
    tries += [f"{each}/**" for each in (name, dotted)] + [f"**/{each}" for each in (name, dotted)]
    tries += [f"**/{each}/**" for each in (name, dotted)]
    return [each for each in tries if each]


def addresses(config: Any, at: str = "") -> dict[str, Any]:
    """``{address: value}`` of everything in a config that holds nothing else: ``stages[1].sparsity``."""
    if config and isinstance(config, Mapping):
        inner: Iterator[tuple[str, Any]] = ((f"{at}.{k}" if at else str(k), v) for k, v in config.items())
    elif config and isinstance(config, list | tuple):
        inner = ((f"{at}[{i}]", v) for i, v in enumerate(config))
    else:
        return {at: config}
    return {address: value for key, part in inner for address, value in addresses(part, key).items()}
