"""Which leaf is added to what a site puts out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jaxopt_nn.core.model import Site
from jaxopt_nn.core.paths import leaves_by_path
from jaxopt_nn.interpret.flow import dims
from jaxopt_nn.interpret.flow.dims import Axis, Dim
from jaxopt_nn.interpret.flow.entry import Call
from jaxopt_nn.interpret.flow.flow import Flow
from jaxopt_nn.interpret.flow.graph import Graph, moves
from jaxopt_nn.interpret.flow.products import conv_axes, dot_axes
from jaxopt_nn.interpret.program import trace_model

PyTree = Any


def biases(apply: Callable[..., PyTree], variables: PyTree, *inputs: PyTree) -> dict[str, str]:
    """``{site: path}`` of the leaves that are added to the output of a site, and to nothing else, before it is read.

    The entries of such a leaf are the site's stack and outputs ``[S..., O]`` in this order.

    Args:
      apply, variables, inputs: as of ``axis_groups``.
    """
    flow = Flow(trace_model(apply, variables, inputs), tuple(leaves_by_path(variables)))
    graph = Graph(flow)
    found: dict[str, str] = {}
    for node in graph.nodes:
        site = flow.program.sites.get(node.key)
        path = None if site is None or site.weight is None else _added(graph, node.outs[0])
        if site is not None and path is not None and _in_order(flow, site, node.call, flow.leaves[path]):
            found[site.name] = path
    return {site: path for site, path in found.items() if list(found.values()).count(path) == 1}


def _added(graph: Graph, value: int) -> str | None:
    """The leaf that the one reader of a value adds to it."""
    if value in graph.results or len(graph.users[value]) != 1:
        return None
    (at,) = graph.users[value]
    node = graph.nodes[at]
    if moves(node) and len(node.outs) == 1:
        return _added(graph, node.outs[0])
    if node.name != "add":
        return None
    (other,) = [v for v in node.ins if v != value] or [value]
    path, scaled = graph.leaf(other), graph.scaled(other)
    return path if path is not None and not scaled and graph.meetings[path] == [at] else None


def _in_order(flow: Flow, site: Site, call: Call, leaf: Sequence[Axis]) -> bool:
    """Whether a leaf that is added has the axes of the site's stack and outputs, in their order, and none else.

    An axis that stands in the output twice, or in reverse, doesn't tell its entries apart.
    """
    if not all(slot in flow.loops for slot in site.slots):
        return False
    stack, outputs, rows = _axes(site, call)
    own = [f for axis in (*(flow.loops[slot] for slot in site.slots), *stack, *outputs) for f in dims.factors(axis)]
    atoms = [a for f in own for a in set(dims.atoms(f))] + list({a for axis in rows for a in dims.atoms(axis)})
    return (
        len(atoms) == len(set(atoms))
        and not any(map(_turned, own))
        and list(map(_parts, own)) == [_parts(f) for axis in leaf for f in dims.factors(axis)]
    )


def _axes(site: Site, call: Call) -> tuple[list[Axis], list[Axis], list[Axis]]:
    """Of a site's output the axes that it keeps apart by itself, the outputs, and the rows."""
    if site.kind == "conv":
        spec = call.eqn.params["dimension_numbers"].out_spec
        return [], [conv_axes(call).outputs], [axis for i, axis in enumerate(call.outs[0]) if i != spec[1]]
    if site.kind != "dot" or site.weight is None:
        return [], [], list(call.outs[0])
    _, batch, *free = dot_axes(call)
    stack = [batch[i][site.weight] for i in site.stacked]
    return stack, free[site.weight], [pair[0] for i, pair in enumerate(batch) if i not in site.stacked] + free[1 - site.weight]


def _turned(dim: Dim) -> bool:
    own = dims.root(dim)
    return own.kind in ("reverse", "map") or any(map(_turned, own.parts))


def _parts(dim: Dim) -> tuple[str, list[Dim]]:
    return dims.root(dim).kind, dims.atoms(dim)
