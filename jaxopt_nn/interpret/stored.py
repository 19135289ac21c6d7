"""Stored tensors in a call outside any trace: prepared first, once for as long as they live."""

from __future__ import annotations

import weakref
from collections.abc import Container, Sequence
from typing import Any

import jax

from jaxopt_nn.core.paths import leaves_by_path, map_with_path, matches
from jaxopt_nn.core.report import Message, Report
from jaxopt_nn.core.rule import Rule
from jaxopt_nn.formulations.prepare import prepare_each
from jaxopt_nn.tensors.base import is_compressed

PyTree = Any

SAID = (
    "is in stored form: a call outside jit prepares it first, once; inside jit its codes are unpacked at every call, slower "
    "and on CPU with wrong numbers in some programs: pass jaxopt_nn.prepare(variables)"
)


def prepared_for(variables: PyTree, rules: Sequence[tuple[str, Rule]], platform: str | None = None) -> PyTree:
    """``prepare(variables, platform)``, each weight for the activations that the rule at its path multiplies it with."""

    def width(path: str, leaf: Any) -> int:
        return next((rule.width for pattern, rule in rules if matches(pattern, path)), 16)

    return prepare_each(variables, map_with_path(width, variables), platform)


class Prepared:
    """``prepared(variables)``: stored tensors in the form that the default backend runs, each prepared once.

    What was made is kept by the identity of the tensor, and goes with it: whoever holds the variables pays once, and nothing
    is held for those that are gone.
    """

    def __init__(self, rules: Sequence[tuple[str, Rule]] = ()) -> None:
        self._rules = rules
        self._made: dict[int, tuple[weakref.ref[Any], Any]] = {}

    def __call__(self, variables: PyTree, paths: Container[str]) -> PyTree:
        """``variables`` with the leaves of ``paths`` prepared; not under a trace."""
        tensors = {path: x for path, x in leaves_by_path(variables).items() if is_compressed(x) and path in paths}
        if any(id(x) not in self._made for x in tensors.values()):
            # together: the form depends on how large the network is
            for path, ready in prepared_for(tensors, self._rules).items():
                self._keep(tensors[path], ready)
        found = {path: self._made[id(x)][1] for path, x in tensors.items()}
        return map_with_path(lambda path, x: x if found.get(path) is None else found[path], variables)

    def __len__(self) -> int:
        return len(self._made)

    def _keep(self, tensor: Any, ready: Any) -> None:
        key = id(tensor)
        # a tensor that is prepared already must not be held by its own entry
        ready = None if _same_form(tensor, ready) else ready
        self._made[key] = weakref.ref(tensor, lambda _: self._made.pop(key, None)), ready


def stored(variables: PyTree, rules: Sequence[tuple[str, Rule]] = ()) -> Report:
    """A message for each compressed tensor, arrays or traced, that is not in the form that the default backend runs."""
    tensors = {path: x for path, x in leaves_by_path(variables).items() if is_compressed(x)}
    likes = {path: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), x) for path, x in tensors.items()}
    ready = prepared_for(likes, rules)
    return Report(tuple(Message("stored", path, SAID) for path in likes if not _same_form(likes[path], ready[path])))


def _same_form(a: Any, b: Any) -> bool:
    kinds = [[(x.shape, x.dtype) for x in jax.tree.leaves(tensor)] for tensor in (a, b)]
    structures: list[Any] = [jax.tree.structure(a), jax.tree.structure(b)]
    return bool(structures[0] == structures[1]) and kinds[0] == kinds[1]
