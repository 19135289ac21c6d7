"""Residual branches: what a network adds to a value that passes on, so that the network runs without it.

A value *passes* an addition whose other operand is computed from it, by weights: ``y = x + f(x)``. Without the branch ``f`` the
addition gives ``x``. A loop over layers passes what it carries if each iteration does nothing else to it; it then runs with
fewer iterations.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from jaxopt_nn.interpret import jaxprs
from jaxopt_nn.interpret.tags import Key

#: Whose bodies are a part of the program around them.
ENTERED = frozenset("jit pjit closed_call core_call remat remat2 checkpoint".split())
#: They give on what they get.
_SAME = frozenset("copy copy_p name optimization_barrier sharding_constraint reshard mesh_cast pvary".split())
_ADDS = ("add", "add_any")
#: The node of what is computed from nothing.
_CONSTANT = 0


class Addition(NamedTuple):
    """An addition that a value passes.

    Attributes:
      key: of the equation. passing: which operand passes. node: its result.
      skip, branch: the nodes of the value that passes, and of what is added to it.
      kind: shape and dtype of the result.
    """

    key: Key
    passing: int
    node: int
    skip: int
    branch: int
    kind: tuple[Any, ...]


class Graph:
    """The values of a jaxpr as nodes, each after those that it is computed from, through the bodies that are ``ENTERED``.

    Attributes:
      inputs: of each node.
      same: of each node the one that it is where all branches are zero, or None.
      before: of each node the nodes that it is computed from, and itself, as a set of bits.
      additions: in order of evaluation.
      outs: the nodes of the results.
      loops: keys of loops over layers.
    """

    def __init__(self, jaxpr: Any, weights: Sequence[bool]):
        self.inputs: list[tuple[int, ...]] = []
        self.same: list[int | None] = []
        self.before: list[int] = []
        self._passed: list[int] = []  # the node, and those that it is without branches, as bits
        self.additions: list[Addition] = []
        self.loops: list[Key] = []
        self._adding: set[int] = set()  # nodes of additions, and of what loops over layers carry
        self._node(())
        args = [self._node(()) for _ in jaxpr.invars]
        self._weights = sum(1 << n for n, weight in zip(args, weights, strict=True) if weight)
        self._moving = sum(1 << n for n, weight in zip(args, weights, strict=True) if not weight)
        self.args = args
        self.outs = self._run(jaxpr, args, ())

    def _node(self, inputs: Sequence[int], same: int | None = None) -> int:
        n = len(self.inputs)
        inputs = tuple(dict.fromkeys(inputs))
        before = 1 << n
        for i in inputs:
            before |= self.before[i]
        self.inputs.append(inputs)
        self.same.append(same)
        self.before.append(before)
        self._passed.append(1 << n | (0 if same is None else self._passed[same]))
        return n

    def passes(self, node: int) -> tuple[int, int]:
        """What a node is where all branches are zero, as far back as that is known; and past how many additions and loops."""
        count = 0
        while (up := self.same[node]) is not None:
            count += node in self._adding
            node = up
        return node, count

    def _run(self, jaxpr: Any, args: Sequence[int], key: Key) -> list[int]:
        env: dict[Any, int] = dict(zip(jaxpr.invars, args, strict=True)) | dict.fromkeys(jaxpr.constvars, _CONSTANT)
        read = lambda v: _CONSTANT if jaxprs.is_literal(v) else env[v]
        for i, eqn in enumerate(jaxpr.eqns):
            outs = self._equation(eqn, [read(v) for v in eqn.invars], (*key, i))
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def _equation(self, eqn: Any, operands: list[int], key: Key) -> list[int]:
        name = eqn.primitive.name
        if name in ENTERED:
            (body,) = jaxprs.bodies(eqn) or ()
            return self._run(body.jaxpr, operands, (*key, 0))
        if name in _ADDS and (passing := self._passing(eqn, operands)) is not None:
            skip, other = operands[passing], operands[1 - passing]
            branch = self._node([other])
            node = self._node([skip, branch], same=skip)
            kind = (*eqn.outvars[0].aval.shape, str(eqn.outvars[0].aval.dtype))
            self._adding.add(node)
            self.additions.append(Addition(key, passing, node, skip, branch, kind))
            return [node]
        if name in _SAME or _no_cast(eqn):
            return [self._node([n], same=n) for n in operands[: len(eqn.outvars)]]
        node = self._node(operands)
        outs = [node] * len(eqn.outvars)
        if name == "scan" and passing_carry(eqn) is not None:
            n, m = jaxprs.scan_counts(eqn)
            self.loops.append(key)
            outs[:m] = [self._node([node, own], same=own) for own in operands[n : n + m]]
            self._adding.update(outs[:m])
        return outs

    def _passing(self, eqn: Any, operands: list[int]) -> int | None:
        """Which operand of an addition passes it."""
        out = eqn.outvars[0].aval
        if any(v.aval.shape != out.shape or v.aval.dtype != out.dtype for v in eqn.invars):
            return None
        a, b = operands
        if not all(self.before[n] & self._moving for n in (a, b)):
            return None
        found = [bool(self.before[b] & 1 << a), bool(self.before[a] & 1 << b)]
        if not any(found):
            found = [bool(self.before[b] & self._passed[a]), bool(self.before[a] & self._passed[b])]
        if sum(found) != 1:
            return None
        passing = found.index(True)
        skip, other = operands[passing], operands[1 - passing]
        return passing if self.before[other] & self._weights & ~self.before[skip] else None


def _no_cast(eqn: Any) -> bool:
    return eqn.primitive.name == "convert_element_type" and eqn.invars[0].aval.dtype == eqn.outvars[0].aval.dtype


def passing_carry(eqn: Any) -> int | None:
    """Of a ``scan`` that is a loop over layers, which of the carried values they add to, the first; None of another one.

    All that it carries passes each iteration.
    """
    (body,) = jaxprs.bodies(eqn) or ()
    n, m = jaxprs.scan_counts(eqn)
    carry = range(n, n + m)
    graph = Graph(body.jaxpr, [i not in carry for i in range(len(body.jaxpr.invars))])
    found = [graph.passes(out) for out in graph.outs[:m]]
    if any(node != graph.args[i] for (node, _), i in zip(found, carry, strict=True)):
        return None
    return next((i for i, (_, count) in enumerate(found) if count), None)


# -- what goes with a branch -------------------------------------------------------------------------------------------


class Branch(NamedTuple):
    """A branch, and what belongs to it alone.

    Attributes:
      addition: that it is an operand of.
      weights: the places of the leaves from which every way to an output goes through it.
      outer: the nodes of the branches that it lies in, inner first.
    """

    addition: Addition
    weights: tuple[int, ...]
    outer: tuple[int, ...]


def branches(graph: Graph, count: int, outs: Collection[int]) -> list[Branch]:
    """The branches of a program that have weights of their own, in order of evaluation.

    Args:
      count: how many of the first operands are leaves.
      outs: the places of the results that count.
    """
    after = _after(graph, [graph.outs[i] for i in outs])
    inside = {a.branch for a in graph.additions}
    up: dict[int, int | None] = {}  # the nearest branch that a node lies in, itself if it is one
    for node in range(len(graph.inputs) - 1, -1, -1):
        parent = after[node]
        up[node] = node if node in inside else None if parent is None else up.get(parent)

    def outer(node: int | None) -> tuple[int, ...]:
        found = []
        while node is not None and (own := up.get(node)) is not None:
            found.append(own)
            node = after[own]
        return tuple(found)

    weights: dict[int, list[int]] = {}
    for i in range(count):
        for branch in outer(graph.args[i]):
            weights.setdefault(branch, []).append(i)
    return [Branch(a, tuple(weights[a.branch]), outer(a.node)) for a in graph.additions if a.branch in weights]


def _after(graph: Graph, outs: Sequence[int]) -> list[int | None]:
    """Of each node the first one that all its ways to a result go through; None where no way leads to one."""
    end = len(graph.inputs)
    after: list[int | None] = [None] * end
    for node in outs:
        after[node] = end
    for node in range(end - 1, -1, -1):
        if after[node] is not None:
            for i in graph.inputs[node]:
                after[i] = node if (own := after[i]) is None else _common(after, own, node)
    return after


def _common(after: Sequence[int | None], a: int, b: int) -> int:
    """The first node that all ways from both go through; nodes stand in order."""
    while a != b:
        low = min(a, b)
        up = after[low]
        assert up is not None
        a, b = up, max(a, b)
    return a


# -- a program without some branches -----------------------------------------------------------------------------------


class Dropped(NamedTuple):
    """What a program leaves out.

    Attributes:
      passing: ``{key of an addition: which operand it gives}``.
      dead: keys of the equations that nothing needs then.
      unread: the places of the operands that nothing needs.
    """

    passing: Mapping[Key, int]
    dead: frozenset[Key]
    unread: frozenset[int]


NOTHING = Dropped({}, frozenset(), frozenset())


def dropped(jaxpr: Any, outs: Collection[int], passing: Mapping[Key, int]) -> Dropped:
    """A program in which these additions give one operand; ``outs``: the places of the results that count."""
    dead: set[Key] = set()
    live = _needed(jaxpr, [i in outs for i in range(len(jaxpr.outvars))], (), passing, dead)
    return Dropped(passing, frozenset(dead), frozenset(i for i, own in enumerate(live) if not own))


def _needed(jaxpr: Any, outs: Sequence[bool], key: Key, passing: Mapping[Key, int], dead: set[Key]) -> list[bool]:
    """Which operands of a jaxpr its results need."""
    live = {v for v, own in zip(jaxpr.outvars, outs, strict=True) if own and not jaxprs.is_literal(v)}
    for i in range(len(jaxpr.eqns) - 1, -1, -1):
        eqn, own = jaxpr.eqns[i], (*key, i)
        made = [v in live for v in eqn.outvars]
        if not any(made):
            dead.add(own)
            continue
        if own in passing:
            needs = [n == passing[own] for n in range(len(eqn.invars))]
        elif eqn.primitive.name in ENTERED:
            (body,) = jaxprs.bodies(eqn) or ()
            needs = _needed(body.jaxpr, made, (*own, 0), passing, dead)
        else:
            needs = [True] * len(eqn.invars)
        live.update(v for v, need in zip(eqn.invars, needs, strict=True) if need and not jaxprs.is_literal(v))
    return [v in live for v in jaxpr.invars]
