"""A program as one graph of values: bodies that run in place are part of it, and what constants alone say is folded.

The bodies of loops and branches stand in it too, each for itself: their results count as results of the program.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_nn.interpret import jaxprs
from jaxopt_nn.interpret.flow.entry import Call
from jaxopt_nn.interpret.flow.moves import Move
from jaxopt_nn.interpret.flow.table import PRIMITIVES
from jaxopt_nn.interpret.flow.ties import Ties, Value, number_of
from jaxopt_nn.interpret.primitives import ELEMENTWISE
from jaxopt_nn.interpret.tags import NONE, Axes, Key, carried

_FOLDS: dict[str, Callable[..., float]] = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b, "div": lambda a, b: a / b,
    "max": max, "min": min, "pow": lambda a, b: a**b, "neg": lambda a: -a, "sqrt": math.sqrt, "rsqrt": lambda a: a**-0.5,
    "exp": math.exp, "log": math.log, "square": lambda a: a * a, "convert_element_type": lambda a: a,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Node:
    """An equation on values that are not constants.

    Attributes:
      call: its axes. values: what is known of its operands.
      ins, outs: numbers of values.
    """

    key: Key
    call: Call
    values: tuple[Value, ...]
    ins: tuple[int, ...]
    outs: tuple[int, ...]

    @property
    def name(self) -> str:
        return self.call.name


class Graph:
    """The values of a program by number, in order of evaluation.

    Attributes:
      nodes: equations. makers: ``{value: position of its node}``. users: ``{value: positions of nodes}``.
      numbers: ``{value: the one number that all of its entries are}``, of constants.
      whole: ``{value: for each of its axes whether entries may differ along it}``, of values of constants alone.
      leaves: ``{value: path}``.
      passed: ``(position of a node, operand)`` of leaves that a loop or a branch hands on to its body.
      results: values that leave the program, or a body of a loop or a branch.
    """

    def __init__(self, flow: Ties):
        self._flow, self._count = flow, 0
        self.nodes: list[Node] = []
        self.makers: dict[int, int] = {}
        self.users: defaultdict[int, list[int]] = defaultdict(list)
        self.numbers: dict[int, float] = {}
        self.whole: dict[int, tuple[bool, ...]] = {}
        self.leaves: dict[int, str] = {}
        self.passed: set[tuple[int, int]] = set()
        self.results: set[int] = set()
        program = flow.program
        args = [self._new() for _ in program.jaxpr.invars]
        self.leaves.update(zip(args, flow.leaves))
        self.results.update(self._run(program.jaxpr, program.consts, args, ()))

    def leaf(self, value: int) -> str | None:
        """The leaf that a value is, up to a number and to where its entries lie."""
        return self._source(value)[0]

    def scaled(self, value: int) -> bool:
        """Whether it is a multiple of that leaf."""
        return self._source(value)[1]

    @functools.cached_property
    def meetings(self) -> defaultdict[str, list[int]]:
        """``{path: positions of the nodes at which a leaf is more than moved or scaled}``."""
        found: defaultdict[str, list[int]] = defaultdict(list)
        for at, node in enumerate(self.nodes):
            if any(self.leaf(out) is None for out in node.outs):
                own = (v for i, v in enumerate(node.ins) if (at, i) not in self.passed)
                for path in {p for p in map(self.leaf, own) if p is not None}:
                    found[path].append(at)
        return found

    def _source(self, value: int) -> tuple[str | None, bool]:
        multiple = False
        while value not in self.leaves:
            node = self.nodes[self.makers[value]] if value in self.makers else None
            if node is None or len(node.outs) > 1:
                return None, multiple
            rest = [v for v in node.ins if v not in self.numbers]
            scaled = node.name in ("mul", "neg") or (node.name == "div" and node.ins[1] in self.numbers)
            if len(rest) != 1 or not (scaled or moves(node)):
                return None, multiple
            (value,), multiple = rest, multiple or scaled
        return self.leaves[value], multiple

    def _new(self) -> int:
        self._count += 1
        return self._count - 1

    def _constant(self, number: float | None, varies: Sequence[bool]) -> int:
        value = self._new()
        self.whole[value] = tuple(varies)
        if number is not None:
            self.numbers[value] = number
        return value

    def _run(self, jaxpr: Any, consts: Sequence[Any], args: Sequence[int], key: Key) -> list[int]:
        env: dict[Any, int] = dict(zip(jaxpr.invars, args, strict=True))
        for v, c in zip(jaxpr.constvars, consts, strict=True):
            env[v] = self._constant(_single(c), [n > 1 for n in np.shape(c)])
        read = lambda v: self._constant(number_of(v), ()) if jaxprs.is_literal(v) else env[v]
        for i, eqn in jaxprs.live(jaxpr):
            outs = self._equation(eqn, [read(v) for v in eqn.invars], (*key, i))
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def _equation(self, eqn: Any, ins: list[int], key: Key) -> list[int]:
        name, bodies = eqn.primitive.name, jaxprs.bodies(eqn) or ()
        if name in jaxprs.DIRECT and name != "shard_map":
            return self._run(bodies[0].jaxpr, bodies[0].consts, ins, (*key, 0))
        call = self._flow.calls.get(key)
        if call is None:
            if all(v in self.whole for v in ins):
                varies = self._varies(eqn, ins)
                return [self._constant(n, own) for n, own in zip(self._folded(eqn, ins), varies, strict=True)]
            call = Call(eqn, tuple((None,) * v.aval.ndim for v in eqn.invars))  # a branch of which all operands have axes
        outs = [self._new() for _ in eqn.outvars]
        for v in ins:
            self.users[v].append(len(self.nodes))
        self.makers |= dict.fromkeys(outs, len(self.nodes))
        node = Node(key, call, self._flow.sources.get(key, ()), tuple(ins), tuple(outs))
        self.nodes.append(node)
        if not bodies and all(v in self.whole for v in ins):  # within a body that keeps axes of constants
            self.whole |= {v: tuple(own) for v, own in zip(outs, self._varies(eqn, ins), strict=True)}
        place = len(self.nodes) - 1
        for i, body in enumerate(bodies):
            args = [self._new() for _ in body.jaxpr.invars]
            self._enter(node, place, i, args)
            ends = self._run(body.jaxpr, body.consts, args, (*key, i))
            self.results.update(ends)
        if node.name in ("scan", "while"):
            self._leave(node, outs, ends)
        return outs

    def _leave(self, node: Node, outs: Sequence[int], ends: Sequence[int]) -> None:
        """A loop's results that constants alone tell."""
        carried = [i for i, own in _arguments(node.call.eqn, 1) if own]
        for place, (out, end, v) in enumerate(zip(outs, ends, node.call.eqn.outvars, strict=True)):
            stays = node.call.ins[carried[place]] is None if place < len(carried) else end in self.whole
            if stays:
                self.whole[out] = tuple(n != 1 for n in v.aval.shape)

    def _enter(self, node: Node, place: int, body: int, args: Sequence[int]) -> None:
        """What a body gets of the leaves, numbers and constants outside."""
        eqn = node.call.eqn
        for (i, loops), inner in zip(_arguments(eqn, body), args, strict=True):
            outer = node.ins[i]
            if loops:
                if node.call.ins[i] is None:  # it stays one of constants alone, and is another in each iteration
                    self.whole[inner] = tuple(n != 1 for n in eqn.invars[i].aval.shape)
                continue
            if node.name in ("scan", "cond") and (path := self.leaf(outer)) is not None:
                self.leaves[inner] = path
                self.passed.add((place, i))
            if outer in self.whole:
                sliced = node.name == "scan" and i >= sum(jaxprs.scan_counts(eqn))
                self.whole[inner] = self.whole[outer][1:] if sliced else self.whole[outer]
            if outer in self.numbers:
                self.numbers[inner] = self.numbers[outer]

    def _varies(self, eqn: Any, ins: Sequence[int]) -> list[Sequence[bool]]:
        """The axes of the results of an equation on constants along which their entries may differ."""
        name, shapes = eqn.primitive.name, [v.aval.shape for v in eqn.outvars]
        entry = PRIMITIVES.get(name)
        if name == "iota":
            return [[i == eqn.params["dimension"] for i in range(len(shapes[0]))]]
        if name in ELEMENTWISE:
            own = [self.whole[v] for v in ins if len(self.whole[v]) == len(shapes[0])]
            return [list(map(any, zip(*own, strict=True)))] if own else [[False] * len(shapes[0])]
        if entry is not None and entry.moves is not None and (found := entry.moves(eqn)) is not None:
            return [self._carried(eqn, ins, move) for move in found]
        return [[n != 1 for n in shape] for shape in shapes]

    def _carried(self, eqn: Any, ins: Sequence[int], move: Move) -> list[bool]:
        axes: Axes = tuple(frozenset({i}) if own else NONE for i, own in enumerate(self.whole[ins[move.operand]]))
        shape = tuple(eqn.invars[move.operand].aval.shape)
        for step in move.steps:
            axes, shape = carried(axes, shape, step), step.result(shape)
        return [bool(behind) for behind in axes]

    def _folded(self, eqn: Any, ins: Sequence[int]) -> list[float | None]:
        name, entry = eqn.primitive.name, PRIMITIVES.get(eqn.primitive.name)
        own = [self.numbers.get(v) for v in ins]
        if not own or None in own:
            return [None] * len(eqn.outvars)
        if entry is not None and entry.moves is not None:
            return [own[0]] * len(eqn.outvars)
        fold = _FOLDS.get(name)
        if name == "integer_pow":
            fold = lambda a: a ** eqn.params["y"]
        try:
            return [float(fold(*own))] if fold is not None else [None] * len(eqn.outvars)
        except (ArithmeticError, TypeError, ValueError):  # an even root of a negative number is complex
            return [None]


def moves(node: Node) -> bool:
    """Whether a node only moves entries of its first operand, or casts them."""
    entry = PRIMITIVES.get(node.name)
    return entry is not None and entry.moves is not None and entry.moves(node.call.eqn) is not None


def _arguments(eqn: Any, body: int) -> list[tuple[int, bool]]:
    """Of a body's arguments the operand that each is at first, and whether a loop carries it on."""
    own = range(len(eqn.invars))
    if eqn.primitive.name == "scan":
        n, m = jaxprs.scan_counts(eqn)
        return [(i, n <= i < n + m) for i in own]
    if eqn.primitive.name == "while":
        n = eqn.params["cond_nconsts"]
        m = n + eqn.params["body_nconsts"]
        return [(i, False) for i in (own[n:m] if body else own[:n])] + [(i, True) for i in own[m:]]
    return [(i, False) for i in (own[1:] if eqn.primitive.name == "cond" else own)]


def _single(const: Any) -> float | None:
    """The one number that a constant's entries are."""
    real = any(jnp.issubdtype(jnp.result_type(const), kind) for kind in (jnp.bool_, jnp.integer, jnp.floating))
    if isinstance(const, jax.core.Tracer) or not real or not 0 < np.size(const) <= 2**20:
        return None
    flat = np.asarray(const).ravel()
    return float(flat[0]) if (flat == flat[0]).all() else None
