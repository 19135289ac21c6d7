"""Which leaf is added to what a site puts out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxopt_nn.core.paths import leaves_by_path
from jaxopt_nn.interpret.flow.flow import Flow
from jaxopt_nn.interpret.flow.graph import Graph, moves
from jaxopt_nn.interpret.program import trace_model

PyTree = Any


def biases(apply: Callable[..., PyTree], variables: PyTree, *inputs: PyTree) -> dict[str, str]:
    """``{site: path}`` of the leaves that are added to the output of a site, and to nothing else, before it is read.

    Args:
      apply, variables, inputs: as of ``axis_groups``.
    """
    flow = Flow(trace_model(apply, variables, inputs), tuple(leaves_by_path(variables)))
    graph = Graph(flow)
    found: dict[str, str] = {}
    for node in graph.nodes:
        site = flow.program.sites.get(node.key)
        path = None if site is None or site.weight is None else _added(graph, node.outs[0])
        if site is not None and path is not None:
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
