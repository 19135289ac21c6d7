"""Stacks of layers: what a network adds to one value, layer by layer; and that value before and after each."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxopt_nn.core.model import AxisGroup, Coupling, Member
from jaxopt_nn.core.paths import leaves_by_path
from jaxopt_nn.interpret import jaxprs
from jaxopt_nn.interpret.flow import dims, extent
from jaxopt_nn.interpret.flow.dims import Dim
from jaxopt_nn.interpret.flow.flow import Flow
from jaxopt_nn.interpret.flow.residuals import ENTERED, Branch, Graph, branches, passing_carry
from jaxopt_nn.interpret.program import Program, trace_model
from jaxopt_nn.interpret.tags import Key

PyTree = Any


class Stack(NamedTuple):
    """Layers that add to one value, one after the other.

    Attributes:
      group: the layers as units; its members are entries of stacked leaves, or whole leaves.
      ends: of each layer its first addition and its last one.
      loop: where they are a loop, its address; None where nobody can look into it.
    """

    group: AxisGroup
    ends: tuple[tuple[Branch, Branch], ...] = ()
    loop: Key | None = None


def stacks(apply: Callable[..., PyTree], variables: PyTree, *inputs: PyTree, alone: bool = False) -> tuple[Coupling, ...]:
    """The stacks of a network; nothing is run.

    Args:
      alone: each branch is a layer of its own, attention and MLP of a transformer apart. A loop's iteration stays one.

    Raises:
      ValueError: as ``axis_groups``.
    """
    flow = Flow(trace_model(apply, variables, inputs), tuple(leaves_by_path(variables)))
    return tuple(Coupling(stack.group, ()) for stack in stacks_of(flow, alone))


def stacks_of(flow: Flow, alone: bool) -> list[Stack]:
    """The stacks of a program, in order of evaluation, loops first."""
    graph = Graph(flow.program.jaxpr, flow.weights)
    every = [*_loops(flow, graph), *_unrolled(flow, graph, alone)]
    names: dict[str, int] = {}
    distinct = []
    for stack in every:
        names[stack.group.name] = n = names.get(stack.group.name, -1) + 1
        group = stack.group
        again = dataclasses.replace(group, name=f"{group.name}#{n}")
        distinct.append(stack if n == 0 else stack._replace(group=again))
    return distinct


def _loops(flow: Flow, graph: Graph) -> list[Stack]:
    """A stack for each kind of entry that loops go along, pinned where an iteration does more than add."""
    loops = []
    for atom in dict.fromkeys(a for axis in flow.loops.values() for a in dims.atoms(axis)):
        members = tuple(
            Member(path, i, "layer", extent.units(axis, atom))
            for path, axes in flow.leaves.items() for i, axis in enumerate(axes) if atom in dims.atoms(axis)
        )  # fmt: skip
        if members and atom.size > 1:
            name = "/".join(_common([m.path for m in members]))
            group = AxisGroup(atom.size, members, atom.cut, atom.shard, name=name)
            loops.append(Stack(group, loop=_loop_of(flow, graph, atom)))
    return loops


def _loop_of(flow: Flow, graph: Graph, atom: Dim) -> Key | None:
    own = (key for key in graph.loops if (axis := flow.loops.get(key)) is not None and dims.root(axis) is atom)
    return next(own, None)


def _unrolled(flow: Flow, graph: Graph, alone: bool) -> list[Stack]:
    paths = tuple(flow.leaves)
    shapes = [(v.aval.shape, str(v.aval.dtype)) for v in flow.program.jaxpr.invars[: len(paths)]]
    listed: set[int] = set()  # branches of stacks that are listed, inside of which there are no others
    written_out = []
    for own in _sequences(graph, branches(graph, len(paths), flow.results[0])):
        kinds = [tuple(sorted(shapes[i] for i in branch.weights)) for branch in own]
        layers = [[branch] for branch in own] if alone else _grouped(own, kinds)
        if len(layers) < 2 or listed.intersection(own[0].outer):
            continue
        listed.update(branch.addition.branch for branch in own)
        weights = [sorted(i for branch in layer for i in branch.weights) for layer in layers]
        members = tuple(
            Member(paths[i], None, "layer", np.asarray(n)) for n, each in enumerate(weights) for i in each
        )  # fmt: skip
        name = _pattern(_main([[paths[i] for i in each] for each in weights], dict(zip(paths, shapes, strict=True))))
        written_out.append(Stack(AxisGroup(len(layers), members, name=name), tuple((each[0], each[-1]) for each in layers)))
    return written_out


def _sequences(graph: Graph, candidates: Sequence[Branch]) -> list[list[Branch]]:
    """Branches that add to values of one shape, each to what the one before it gives or what is computed from that; those
    outside of others first."""
    open_: dict[Any, list[Branch]] = {}
    sequences: list[list[Branch]] = []
    for branch in candidates:
        place = branch.outer[:1], branch.addition.kind
        own = open_.get(place)
        if own is None or not graph.before[branch.addition.skip] & 1 << own[-1].addition.node:
            own = open_[place] = []
            sequences.append(own)
        own.append(branch)
    return sorted(sequences, key=lambda own: len(own[0].outer))


def _grouped(own: list[Branch], kinds: Sequence[Any]) -> list[list[Branch]]:
    """The layers: as few branches in a row as the stack repeats most of itself by, by the shapes of their weights; the others,
    before and after, are layers of their own."""
    n = len(own)
    covered, count, first = 0, 1, 0
    for period in range(1, n // 2 + 1):
        run = 0
        for i in range(n - period - 1, -1, -1):
            run = run + 1 if kinds[i] == kinds[i + period] else 0
            size = run // period * period + period
            if run >= period and (size > covered or (size == covered and period == count)):
                covered, count, first = size, period, i
    inside = range(first, first + covered, count)
    starts = [*range(first), *inside, *range(first + covered, n), n]
    return [own[a:b] for a, b in itertools.pairwise(starts)]


def _common(paths: Sequence[str]) -> list[str]:
    """The names that several paths begin with."""
    first, *rest = (path.split("/") for path in paths)
    alike = lambda i: all(len(path) > i and path[i] == first[i] for path in rest)
    return first[: next((i for i in range(len(first)) if not alike(i)), len(first))]


def _main(layers: Sequence[Sequence[str]], shapes: Mapping[str, Any]) -> list[str]:
    """The leaves of a stack that lie in the part of the tree where most of it lies: weights, and not statistics."""
    top = lambda path: path.split("/")[0]
    size = lambda part: sum(math.prod(shapes[p][0]) for layer in layers for p in layer if top(p) == part)
    shared = sorted(set.intersection(*({top(path) for path in layer} for layer in layers)))
    main = max(shared, key=size, default=None)
    return [path for layer in layers for path in layer if main is None or top(path) == main]


def _pattern(paths: Sequence[str]) -> str:
    """What the paths of several layers begin with, with ``*`` for where they differ."""
    first = _common(paths)
    names = {"/".join(path.split("/")[len(first) :][:1]) for path in paths}
    plain = {re.sub(r"\d+", "*", name) for name in names}
    return "/".join([*first, *(plain if len(plain) == 1 else "*")])


# -- the value that passes, before and after each layer ----------------------------------------------------------------


def layer_values(
    apply: Callable[..., PyTree], variables: PyTree, inputs: tuple[PyTree, ...], wanted: Sequence[str], alone: bool
) -> dict[str, tuple[Any, Any]]:
    """``{stack: (before, after)}``: the value that its layers add to, ``[layers, ...]`` each.

    Args:
      wanted: names of stacks, as ``stacks`` gives them.

    Raises:
      ValueError: a stack that nobody can look into.
    """
    program = trace_model(apply, variables, inputs)
    by_name = {stack.group.name: stack for stack in stacks_of(Flow(program, tuple(leaves_by_path(variables))), alone)}
    for name in wanted:
        if not (by_name[name].ends or by_name[name].loop):
            raise ValueError(
                f"{name}: its loop over layers lies in another loop, and what it adds to can't be measured there; protect it "
                f"(protect={name!r}), or pass a score that looks at weights or the loss"
            )
    return _Values(program, [by_name[name] for name in wanted])(jax.tree.leaves((variables, *inputs)))


class _Values:
    """The values at the ends of layers."""

    def __init__(self, program: Program, wanted: Sequence[Stack]):
        self._program, self._wanted = program, wanted
        self._before = {ends[0].addition.key: ends[0].addition.passing for stack in wanted for ends in stack.ends}
        self._after = {ends[1].addition.key for stack in wanted for ends in stack.ends}
        self._loops = {stack.loop for stack in wanted}
        self._seen: dict[tuple[str, Key], Any] = {}

    def __call__(self, args: Sequence[Any]) -> dict[str, tuple[Any, Any]]:
        self._run(self._program.jaxpr, self._program.consts, args, ())
        found = {}
        for stack in self._wanted:
            if stack.loop is not None:
                found[stack.group.name] = self._seen["loop", stack.loop]
                continue
            before = jnp.stack([self._seen["before", first.addition.key] for first, _ in stack.ends])
            after = jnp.stack([self._seen["after", last.addition.key] for _, last in stack.ends])
            found[stack.group.name] = before, after
        return found

    def _run(self, jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], key: Key) -> list[Any]:
        env: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))
        read = lambda v: v.val if jaxprs.is_literal(v) else env[v]
        drops = jaxprs.last_uses(jaxpr)
        for i, eqn in enumerate(jaxpr.eqns):
            with jaxprs.context_of(eqn):
                outs = self._equation(eqn, [read(v) for v in eqn.invars], (*key, i))
            env.update(zip(eqn.outvars, outs, strict=True))
            for v in drops[i]:
                env.pop(v, None)
        return [read(v) for v in jaxpr.outvars]

    def _equation(self, eqn: Any, operands: list[Any], key: Key) -> list[Any]:
        if eqn.primitive.name in ENTERED:
            (body,) = jaxprs.bodies(eqn) or ()
            return self._run(body.jaxpr, body.consts, operands, (*key, 0))
        if key in self._loops:
            return self._loop(eqn, operands, key)
        outs = jaxprs.bind(eqn, operands)
        if key in self._before:
            self._seen["before", key] = operands[self._before[key]]
        if key in self._after:
            self._seen["after", key] = outs[0]
        return outs

    def _loop(self, eqn: Any, operands: list[Any], key: Key) -> list[Any]:
        (body,) = jaxprs.bodies(eqn) or ()
        n, m = jaxprs.scan_counts(eqn)
        own, at = eqn.params, passing_carry(eqn)
        assert at is not None

        def step(carry: list[Any], xs: list[Any]) -> tuple[list[Any], tuple[list[Any], Any]]:
            outs = jax.core.eval_jaxpr(body.jaxpr, body.consts, *operands[:n], *carry, *xs)
            return outs[:m], (outs[m:], carry[at])

        xs = operands[n + m :]
        carry, (ys, before) = lax.scan(step, operands[n : n + m], xs, own["length"], reverse=own["reverse"])
        last = carry[at][None]
        after = [last, before[:-1]] if own["reverse"] else [before[1:], last]  # entries in the order of the weights
        self._seen["loop", key] = before, jnp.concatenate(after)
        return [*carry, *ys]
