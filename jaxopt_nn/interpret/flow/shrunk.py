"""A model's function on cut leaves, without a change to the model's code."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxopt_nn.core.passes import Layer, Plan
from jaxopt_nn.core.paths import leaves_by_path, path_of
from jaxopt_nn.interpret.flow import dims, extent
from jaxopt_nn.interpret.flow.dims import Axis, Dim
from jaxopt_nn.interpret.flow.flow import Flow
from jaxopt_nn.interpret.flow.residuals import NOTHING, Dropped, Graph, branches, dropped
from jaxopt_nn.interpret.flow.shrink import shrunk
from jaxopt_nn.interpret.program import trace_model
from jaxopt_nn.tensors.base import is_compressed

PyTree = Any


class Shrunk:
    """``function(variables, *inputs, **keywords)`` on the variables that a plan leaves.

    For each shape of the inputs the function is traced on the whole leaves, abstractly, and what it does is done with the
    sizes that are left. Two are equal if their functions and what they keep are.

    Attributes:
      whole: the function on whole leaves.
      plan: what is kept.
      training: it returns changed leaves beside the outputs, which are cut.

    Raises:
      ValueError: when called, on other shapes than the plan leaves, or where the function, or this shape of inputs, has pinned
        what the plan cuts.
    """

    #: What ``whole`` closes over was accepted when it was planned, and may be large beside the leaves that are left.
    keeps_constants = True

    def __init__(self, whole: Callable[..., PyTree], plan: Plan, *, training: bool = False):
        self.whole, self.plan, self.training = whole, plan, training
        self._identity = (whole, training, tuple((x.name, x.kept.tobytes(), _members(x)) for x in plan.layers if x.cut))
        self._small = {path: cut.small for path, cut in plan.cuts.items()}
        self._gone = frozenset(path for path, cut in plan.cuts.items() if cut.gone)
        self._flows: dict[Any, tuple[Flow, Remains]] = {}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Shrunk) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    def __call__(self, variables: PyTree, *inputs: PyTree, **keywords: Any) -> PyTree:
        leaves = leaves_by_path(variables)
        self._check(leaves)
        flow, (kept, left) = self._flow(variables, inputs, keywords)
        given = [*(leaves.get(path) for path in flow.leaves), *jax.tree.leaves((keywords, inputs))]
        outs = jax.tree.unflatten(flow.program.out_tree, shrunk(flow, kept, given, left))
        if not self.training:
            return outs
        return outs[0], {path: leaf for path, leaf in outs[1].items() if path not in self._gone}

    def _check(self, leaves: dict[str, Any]) -> None:
        for path in {**self.plan.leaves, **leaves}:
            here = tuple(leaves[path].shape) if path in leaves else None
            wanted = None if path in self._gone else self._small.get(path, self.plan.leaves.get(path))
            if here != wanted:
                said = [str(own) if own is not None else "no leaf" for own in (here and list(here), wanted)]
                raise ValueError(
                    f"{path} is {said[0]}, and the plan of {self.plan.name} leaves {said[1]}; pass the variables of the small "
                    "network"
                )

    def _flow(self, variables: PyTree, inputs: tuple[PyTree, ...], keywords: dict[str, Any]) -> Any:
        abstract = lambda x, shape: jax.ShapeDtypeStruct(shape, x.dtype, weak_type=getattr(x, "weak_type", False))
        given, tree = jax.tree.flatten((variables, keywords, inputs))
        key = (tree, tuple(abstract(x, jax.numpy.shape(x)) if hasattr(x, "dtype") else x for x in given))
        if key not in self._flows:
            run = functools.partial(_run, self.whole)
            program = trace_model(run, self._whole(variables), (keywords, *inputs))
            flow = Flow(program, tuple(self.plan.leaves), training=self.training)
            found = flow, remains(flow, self.plan)
            if any(isinstance(c, jax.core.Tracer) for c in flow.program.consts):  # of the caller's own trace
                return found
            self._flows[key] = found
        return self._flows[key]

    def _whole(self, variables: PyTree) -> PyTree:
        """The leaves as ``whole`` takes them, abstract; those that are gone are in the tree again."""
        leaves = leaves_by_path(variables)

        def one(keys: Any, x: Any) -> Any:
            path = path_of(keys)
            if x is None and path not in self._gone:
                return None
            shape, dtype = self.plan.leaves[path], self._dtype(path, leaves) if x is None else x.dtype
            return jax.ShapeDtypeStruct(shape, dtype, weak_type=getattr(x, "weak_type", False))

        leaf = lambda x: x is None or is_compressed(x)
        return jax.tree_util.tree_map_with_path(one, variables, is_leaf=leaf)

    def _dtype(self, path: str, leaves: Mapping[str, Any]) -> Any:
        """The dtype of a leaf that is gone: the one that a leaf like it has by now, of another layer best of all."""
        dtypes, shapes, pattern = self.plan.dtypes, self.plan.leaves, lambda p: re.sub(r"\d+", "*", p)
        alike = [p for p in dtypes if p in leaves and dtypes[p] == dtypes[path]]
        nearness = lambda p: (pattern(p) == pattern(path), shapes[p] == shapes[path])
        nearest = max(alike, key=nearness, default=None)
        return dtypes[path] if nearest is None else leaves[nearest].dtype


def _run(function: Callable[..., PyTree], variables: PyTree, keywords: dict[str, Any], *inputs: PyTree) -> PyTree:
    return function(variables, *inputs, **keywords)


def _members(layer: Layer) -> tuple[Any, ...]:
    return tuple((m.path, m.axis, m.units.tobytes()) for m in layer.members)


def kept_of(flow: Flow, plan: Plan) -> dict[Dim, np.ndarray]:
    """``{atom: the entries that stay}`` of a program, by a plan that may have been made on other shapes of the inputs.

    Raises:
      ValueError: the plan cuts an axis otherwise than the program couples it, or units that the program pins.
    """
    kept = {_atom(flow, layer, plan.name): layer.kept for layer in plan.layers if layer.cut and not layer.whole}
    for path, axes in flow.leaves.items():
        own = plan.cuts[path].axes if path in plan.cuts else {}
        for i, axis in enumerate(axes):
            stay, planned = extent.entries(axis, kept), own.get(i)
            if stay is None and planned is None:
                continue
            if stay is None or planned is None or not np.array_equal(stay, planned):
                raise ValueError(
                    f"{plan.name}: the plan keeps {_said(planned)} of {path} axis {i}, and by the units of the other leaves "
                    f"{_said(stay)} stay; edit a plan by Plan.replace, or plan again"
                )
    return kept


class Remains(NamedTuple):
    """What a plan leaves of a program.

    Attributes:
      kept: as ``kept_of``.
      left: what is left out.
    """

    kept: Mapping[Dim, np.ndarray]
    left: Dropped = NOTHING


def remains(flow: Flow, plan: Plan) -> Remains:
    """What a plan leaves of a program.

    Raises:
      ValueError: as ``kept_of``; leaves that the plan takes out of the tree are read still.
    """
    kept, gone = kept_of(flow, plan), {path for path, cut in plan.cuts.items() if cut.gone}
    return Remains(kept, _without(flow, plan, gone) if gone else NOTHING)


def _without(flow: Flow, plan: Plan, gone: set[str]) -> Dropped:
    """The program without the branches whose weights are gone: all that the plan knows of; in training one may have others."""
    paths, known = tuple(flow.leaves), {m.path for layer in plan.layers if layer.whole for m in layer.members}
    results, changed = flow.results
    found = branches(Graph(flow.program.jaxpr, flow.weights), len(paths), results)
    planned = ((branch.addition, known.intersection(paths[i] for i in branch.weights)) for branch in found)
    out = [addition for addition, own in planned if own and own <= gone]
    counted = [*results, *(i for path, i in changed.items() if path not in gone)]
    left = dropped(flow.program.jaxpr, counted, {a.key: a.passing for a in out})
    if read := sorted(gone - {paths[i] for i in left.unread if i < len(paths)}):
        raise ValueError(
            f"{plan.name}: {read[0]} is read still on these inputs, or in this mode, and is out of the tree ({len(read)} such "
            "leaves); plan again with this network"
        )
    return left


def _said(stay: np.ndarray | None) -> str:
    return "all entries" if stay is None else f"{len(stay)} entries"


def _atom(flow: Flow, layer: Layer, name: str) -> Dim:
    member = layer.members[0]
    assert member.axis is not None
    axis: Axis = flow.leaves[member.path][member.axis]
    for atom in dict.fromkeys(dims.atoms(axis)):
        if atom.size == layer.size and np.array_equal(extent.units(axis, atom), member.units):
            if atom.cut is not None:
                raise ValueError(f"{name}: {layer.name} must keep all of its {layer.size} units: it {atom.cut}")
            return atom
    raise ValueError(
        f"{layer.name}: the plan's {layer.size} units are not those of {member.path} axis {member.axis} ({axis}); plan again "
        "with this network"
    )
