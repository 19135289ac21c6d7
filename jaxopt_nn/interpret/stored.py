"""Stored tensors in a call outside any trace: prepared first, once for as long as they live."""

from __future__ import annotations

import weakref
from collections.abc import Container
from typing import Any

import jax

from jaxopt_nn.core.paths import leaves_by_path, map_with_path
from jaxopt_nn.core.report import Message, Report
from jaxopt_nn.formulations.prepare import prepare
from jaxopt_nn.tensors.base import is_compressed

PyTree = Any

SAID = (
    "is in stored form: a call outside jit prepares it first, once; inside jit its codes are unpacked at every call, slower "
    "and on CPU with wrong numbers in some programs: pass jaxopt_nn.prepare(variables)"
)


class Prepared:
    """``prepared(variables)``: stored tensors in the form that the default backend runs, each prepared once.

    What was made is kept by the identity of the tensor, and goes with it: whoever holds the variables pays once, and nothing
    is held for those that are gone.
    """

    def __init__(self) -> None:
        self._made: dict[int, tuple[weakref.ref[Any], Any]] = {}

    def __call__(self, variables: PyTree, paths: Container[str]) -> PyTree:
        """``variables`` with the leaves of ``paths`` prepared; not under a trace."""
        return map_with_path(lambda path, x: self._ready(x) if is_compressed(x) and path in paths else x, variables)

    def __len__(self) -> int:
        return len(self._made)

    def _ready(self, tensor: Any) -> Any:
        key = id(tensor)
        if key not in self._made:
            ready = prepare(tensor)
            # a tensor that is prepared already must not be held by its own entry
            ready = None if _same_form(tensor, ready) else ready
            self._made[key] = weakref.ref(tensor, lambda _: self._made.pop(key, None)), ready
        made = self._made[key][1]
        return tensor if made is None else made


def stored(variables: PyTree) -> Report:
    """A message for each compressed tensor, arrays or traced, that is not in the form that the default backend runs."""
    found = []
    for path, leaf in leaves_by_path(variables).items():
        if is_compressed(leaf):
            like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), leaf)
            if not _same_form(like, prepare(like)):
                found.append(Message("stored", path, SAID))
    return Report(tuple(found))


def _same_form(a: Any, b: Any) -> bool:
    kinds = [[(x.shape, x.dtype) for x in jax.tree.leaves(tensor)] for tensor in (a, b)]
    structures: list[Any] = [jax.tree.structure(a), jax.tree.structure(b)]
    return bool(structures[0] == structures[1]) and kinds[0] == kinds[1]
