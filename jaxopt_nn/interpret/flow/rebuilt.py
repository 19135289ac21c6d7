"""Modules that are built anew at the widths that a plan leaves, beside the network that was cut.

A cut network keeps the numbers of the whole one. In a module that is built at fewer units a number that is a power of a width
is another: the divisor of a mean, ``1/sqrt(d)``. What lies behind it then is a multiple of what it was, which some leaf may
make up for; or it meets something that is no multiple of it (``exp``, the other half of a variance), and the module computes
something else. So it does where the cut network adds what cut units leave in a reduction (``rest``), or cuts a table of
constants by value, of which a smaller module would have another.

Such a number stands beside a sum over units (as a divisor also of their number less one, of an unbiased variance), or scales
what has units. A program doesn't say where its numbers come from: one that is such a power by chance is taken for it.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from jaxopt_nn.core.model import Rebuild
from jaxopt_nn.interpret.flow import dims
from jaxopt_nn.interpret.flow.dims import Axis, Dim
from jaxopt_nn.interpret.flow.flow import Flow
from jaxopt_nn.interpret.flow.graph import Graph, Node, moves
from jaxopt_nn.interpret.flow.products import conv_axes, dot_axes

#: Powers of a width that stand in programs.
POWERS = (Fraction(1), Fraction(-1), Fraction(1, 2), Fraction(-1, 2))
#: Beside products of two activations, each of which may be scaled.
QUARTERS = (Fraction(1, 4), Fraction(-1, 4))
#: Numbers up to this that are added to a multiple of a value: epsilons.
EPSILON = 1e-3
#: How far a number may be from a power, of that: as a float of 16 bits is.
TOLERANCE = 4e-3
#: Of a multiple of their first operand, by a positive number, the same multiple.
_LINEAR = frozenset(
    "abs cumsum dynamic_slice gather neg real reduce_max reduce_min reduce_sum reduce_window_max reduce_window_min "
    "reduce_window_sum sort".split()
)
_ALIKE = frozenset("add add_any concatenate max min select_n sub".split())
_TESTS = frozenset("eq ge gt le lt ne".split())
_PRODUCTS = frozenset("conv_general_dilated dot_general mul".split())
_ROOTS = {"sqrt": Fraction(1, 2), "rsqrt": Fraction(-1, 2), "square": Fraction(2)}

#: Numbers that stand in programs for other reasons too: where no two activations are summed they may be no power.
COMMON = (0.5, 2)

Powers = dict[str, Fraction]


class _Stop(Exception):
    """Why nothing makes up for a multiple."""


class _Number(NamedTuple):
    """A number that is a power of a width: the node that multiplies by it, which of its operands it scales, and the power.

    ``doubt``: why no leaf can make up for it, or None.
    """

    node: int
    operand: int
    power: Fraction
    doubt: str | None = None


def rebuilds(flow: Flow) -> dict[Dim, Rebuild]:
    """Of each atom that may be cut what a module built at fewer of its units computes; equal where it is not listed."""
    graph = Graph(flow)
    search = _Search(graph)
    powers: defaultdict[Dim, defaultdict[str, Fraction]] = defaultdict(lambda: defaultdict(Fraction))
    reasons: dict[Dim, str] = {}
    for atom, reason in _others(flow, graph):
        reasons.setdefault(atom, reason)
    for number, own in search.numbers():
        try:
            taken = search.settled(number)
            if number.doubt and any(taken.values()):
                raise _Stop(number.doubt)
        except _Stop as stop:
            for atom in own:
                reasons.setdefault(atom, f"a number that is a power of its width would be another, and {stop}")
        else:
            for atom in own:
                for path, power in taken.items():
                    powers[atom][path] += power
    atoms = {**powers, **reasons}
    as_data = lambda own: tuple((path, float(power)) for path, power in own.items() if power)
    return {a: Rebuild((), reasons[a]) if a in reasons else Rebuild(as_data(powers[a])) for a in atoms}


def _others(flow: Flow, graph: Graph) -> Iterator[tuple[Dim, str]]:
    """What makes a rebuilt module another one, whatever its weights are."""
    for node in graph.nodes:
        if node.key in flow.rests:
            for atom in _free(flow.rests[node.key]):
                yield atom, f"`{node.name}` over it adds what units that are cut leave there"
        for value, axes in zip(node.ins, node.call.ins, strict=True):
            varies = graph.whole.get(value, ())
            for axis in [axis for axis, own in zip(axes or (), varies, strict=False) if own]:
                for atom in _free(axis):
                    yield atom, f"`{node.name}` meets a table of constants there, of which units keep their own entries"


def _free(axis: Axis) -> list[Dim]:
    return [atom for atom in dict.fromkeys(dims.atoms(axis)) if atom.cut is None]


class _Search:
    """Numbers that are powers of a width, and what makes up for them."""

    def __init__(self, graph: Graph):
        self._graph = graph

    # -- numbers -------------------------------------------------------------------------------------------------------

    def numbers(self) -> list[tuple[_Number, list[Dim]]]:
        """The numbers that are powers of widths, each once, and the atoms of whose lengths they are powers.

        A number beside a sum over units is a power of how many these are; else of the units of what it scales.
        """
        found: dict[tuple[int, int], tuple[_Number, list[Dim]]] = {}
        means = {pair for at in range(len(self._graph.nodes)) for pair in self._of_means(at)}
        for starts in (self._beside_sum, self._of_units):
            for at in range(len(self._graph.nodes)):
                for number, own in starts(at):
                    if starts == self._beside_sum or number[:2] not in means:
                        found.setdefault(number[:2], (number, own))
        return list(found.values())

    def _of_means(self, at: int) -> Iterator[tuple[int, int]]:
        """What divides a sum over axes by their length."""
        node = self._graph.nodes[at]
        if node.name == "reduce_sum":
            count = math.prod(node.call.eqn.invars[0].aval.shape[i] for i in node.call.eqn.params["axes"])
        elif node.name == "reduce_window_sum":
            count = math.prod(node.call.eqn.params["window_dimensions"])
        else:
            return
        if not isinstance(count, int) or not count:  # it may be symbolic
            return
        for place, operand in self._after(node.outs[0]):
            user = self._graph.nodes[place]
            power = count if user.name == "div" else 1 / count
            if _error(self._graph.numbers[user.ins[1 - operand]], power) <= TOLERANCE:
                yield place, operand

    def _beside_sum(self, at: int) -> Iterator[tuple[_Number, list[Dim]]]:
        """The numbers beside the node ``at``, if it sums over units."""
        node = self._graph.nodes[at]
        summed = _summed(node)
        if not any(map(_free, summed)):
            return
        scaled, activations = list(self._after(node.outs[0])), all(value.dynamic for value in node.values[:2])
        if node.name == "dot_general" and activations:
            scaled += [pair for value in node.ins[:2] for pair in self._before(value)]
        powers = (*POWERS, *QUARTERS) if node.name == "dot_general" and activations else POWERS
        for place, operand in dict.fromkeys(scaled):
            yield from self._matches(place, operand, _lengths(summed), powers, less=activations)

    def _of_units(self, at: int) -> Iterator[tuple[_Number, list[Dim]]]:
        """The number by which the node ``at`` scales a value that has units."""
        node = self._graph.nodes[at]
        operand = self._scaled(node)
        if operand is not None:
            lengths = (pair for axis in node.call.ins[operand] or () for pair in _lengths([axis]))
            yield from self._matches(at, operand, lengths, POWERS, less=False)

    def _matches(
        self, place: int, operand: int, lengths: Iterable[tuple[int, list[Dim]]], powers: Sequence[Fraction], less: bool
    ) -> Iterator[tuple[_Number, list[Dim]]]:
        """The number beside an operand as a power of the first length that fits."""
        user = self._graph.nodes[place]
        number = self._graph.numbers[user.ins[1 - operand]]
        for length, own in lengths:
            if not own or not isinstance(length, int) or length < 2:  # it may be symbolic
                continue
            bases = [(length, False)] + [(length - 1, True)] * (less and length > 2)
            near = [(_error(number, base**p), p, one) for base, one in bases for p in powers]
            error, power, one = min(near, key=lambda x: (x[0], x[2]))
            if error <= TOLERANCE and number != 1:
                doubt = "it is one of the width less one" if one else None if less or number not in COMMON else "it may be none"
                yield _Number(place, operand, -power if user.name == "div" else power, doubt), own
                return

    def _after(self, value: int) -> Iterator[tuple[int, int]]:
        """``(node, operand)`` that multiply a value by a number, or what has been made of it by moves and powers."""
        for at in self._graph.users[value]:
            node = self._graph.nodes[at]
            if (operand := self._scaled(node)) is not None:
                yield at, operand
            elif (moves(node) and len(node.outs) == 1) or node.name in _ROOTS:
                yield from self._after(node.outs[0])

    def _before(self, value: int) -> Iterator[tuple[int, int]]:
        """The same in front of a product, within what is linear in an activation."""
        at = self._graph.makers.get(value)
        if at is None:
            return
        node = self._graph.nodes[at]
        if (operand := self._scaled(node)) is not None:
            yield at, operand
            yield from self._before(node.ins[operand])
        elif moves(node) or node.name in ("add", "sub", "neg", "concatenate"):
            for own in node.ins:
                yield from self._before(own)
        elif node.name == "mul":
            for own, other in zip(node.ins, reversed(node.ins), strict=True):
                if other in self._graph.whole or self._graph.leaf(other) is not None:
                    yield from self._before(own)

    def _scaled(self, node: Node) -> int | None:
        """Which operand a product or a quotient scales by a number."""
        if node.name == "mul":
            return next((i for i in (0, 1) if node.ins[1 - i] in self._graph.numbers), None)
        return 0 if node.name == "div" and node.ins[1] in self._graph.numbers else None

    # -- what makes up for them ----------------------------------------------------------------------------------------

    def settled(self, number: _Number) -> Powers:
        """The powers of the ratio of widths by which leaves are to be multiplied."""
        node = self._graph.nodes[number.node]
        try:
            return self._forward(node.outs[0], number.power)
        except _Stop as stop:
            taken: Powers = defaultdict(Fraction)
            try:
                self._backward(node.ins[number.operand], -number.power, taken, number.node)
            except _Stop:
                raise stop from None
            return taken

    def _forward(self, value: int, power: Fraction) -> Powers:
        """A leaf that a multiple meets in a product takes its reciprocal."""
        taken: Powers = defaultdict(Fraction)
        powers, waiting = {value: power}, list(self._graph.users[value])
        self._ends(value)
        heapq.heapify(waiting)
        done = -1
        while waiting:
            at = heapq.heappop(waiting)
            if at == done:
                continue
            done, node = at, self._graph.nodes[at]
            made = self._power(node, at, [powers.get(v, Fraction(0)) for v in node.ins], taken)
            for out in node.outs if made else ():
                self._ends(out)
                powers[out] = made
                for user in self._graph.users[out]:
                    heapq.heappush(waiting, user)
        return taken

    def _ends(self, value: int) -> None:
        if value in self._graph.results:
            raise _Stop("a multiple reaches an output")

    def _power(self, node: Node, at: int, own: Sequence[Fraction], taken: Powers) -> Fraction:
        """The power of a node's results, of those of its operands."""
        name, first = node.name, own[0]
        if name in _PRODUCTS:
            for i in (0, 1):
                path = self._leaf_of(node.ins[1 - i], at) if own[i] and not own[1 - i] else None
                if path is not None:
                    taken[path] -= own[i]
                    return Fraction(0)
            return own[0] + own[1]
        if name == "div":
            return own[0] - own[1]
        if name in _ROOTS:
            return first * _ROOTS[name]
        if name == "integer_pow":
            return first * node.call.eqn.params["y"]
        if (moves(node) or name in _LINEAR) and not any(own[1:]):
            return first
        start = 1 if name == "select_n" else 0
        if name in _ALIKE | _TESTS and not any(own[:start]):
            # zero is any multiple of itself, and next to an epsilon nothing is
            known = {p for v, p in zip(node.ins[start:], own[start:], strict=True) if p or not self._small(v, name)}
            if len(known) == 1:
                return Fraction(0) if name in _TESTS else known.pop()
        raise _Stop(f"`{name}` of a multiple is none")

    def _small(self, value: int, name: str) -> bool:
        number = self._graph.numbers.get(value)
        return number is not None and abs(number) <= (EPSILON if name in ("add", "sub") else 0)

    def _backward(self, value: int, power: Fraction, taken: Powers, user: int) -> None:
        """The leaves that a value is linear in, and nothing else reads, take the factor."""
        graph = self._graph
        if value in graph.results or graph.users[value] != [user]:
            raise _Stop("something else reads it")
        path = self._leaf_of(value, user) or self._leaf_alone(value)
        if path is not None:
            taken[path] += power
            return
        at = graph.makers.get(value)
        if at is None or len(graph.nodes[at].outs) > 1:
            raise _Stop("no leaf takes it")
        node = graph.nodes[at]
        if moves(node) or node.name in ("gather", "neg", "reduce_sum"):
            self._backward(node.ins[0], power, taken, at)
        elif node.name in ("add", "sub", "concatenate"):
            for own in node.ins:
                if graph.numbers.get(own) != 0:
                    self._backward(own, power, taken, at)
        elif node.name in _PRODUCTS:
            self._one_factor(node, at, power, taken)
        else:
            raise _Stop("no leaf takes it")

    def _one_factor(self, node: Node, at: int, power: Fraction, taken: Powers) -> None:
        for own in sorted(node.ins[:2], key=lambda v: self._graph.leaf(v) is None):
            trial: Powers = defaultdict(Fraction)
            try:
                self._backward(own, power, trial, at)
            except _Stop:
                continue
            for path, part in trial.items():
                taken[path] += part
            return
        raise _Stop("no leaf takes it")

    def _leaf_alone(self, value: int) -> str | None:
        """The leaf that a value is as it stands, if no body gets it."""
        path = self._graph.leaves.get(value)
        return path if list(self._graph.leaves.values()).count(path or "") == 1 else None

    def _leaf_of(self, value: int, user: int) -> str | None:
        """The leaf that a value is, if activations meet it nowhere but at this node."""
        path = self._graph.leaf(value)
        return path if path is not None and self._graph.meetings[path] == [user] else None


def _summed(node: Node) -> list[Axis]:
    """The axes over which a node sums."""
    if node.name == "reduce_sum":
        return [node.call.ins[0][i] for i in node.call.eqn.params["axes"]]
    if node.name == "dot_general":
        return [pair[0] for pair in dot_axes(node.call)[0]]
    if node.name == "conv_general_dilated":
        own = conv_axes(node.call)
        return [own.inputs, *own.taps]
    return []


def _lengths(axes: Sequence[Axis]) -> Iterator[tuple[int, list[Dim]]]:
    """Of all axes together, of each, and of each atom how long it is, and the atoms that may be cut."""
    total = 1
    for axis in axes:
        total *= 1 if axis is None else axis.size
    yield total, [a for axis in axes for a in _free(axis)]
    for axis in axes:
        if axis is not None:
            yield axis.size, _free(axis)
            yield from ((atom.size, [atom]) for atom in _free(axis))


def _error(number: float, power: Any) -> float:
    return abs(number - power) / abs(power)
