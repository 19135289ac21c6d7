"""Reads optimized HLO text: which instructions write an array made of weights, and estimates of cycles.

Values are followed from the entry's parameters through every operation, into loops, branches and fusions.
What depends on weights alone is made of weights; what depends on anything else too, be it by an index, is an
activation. Of a fusion only the result is written.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

#: Operations whose result is no new buffer, or whose buffer is written by a computation that they call.
PASSES_ON = frozenset(
    "parameter constant tuple get-tuple-element bitcast opt-barrier domain after-all "
    "while conditional call async-update async-done".split()
)

_HEADER = re.compile(r"(ENTRY\s+)?%?([\w.\-]+)\s*(?:\(.*)?\{\s*")
_INSTRUCTION = re.compile(r"\s*(ROOT\s+)?%?([\w.\-]+)\s*=\s*(.*)")
_OPCODE = re.compile(r"\s*([\w\-]+)(?=\()")
_ARRAY = re.compile(r"([a-z]\w*)\[([^\]]*)\](.*)")
_CALLED = re.compile(r"\b(calls|to_apply|body|condition|\w+_computations?)=(\{[^}]*\}|%?[\w.\-]+)")
_OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_CYCLES = re.compile(r'"estimated_cycles":"?(\d+)')
_LITERAL = re.compile(r"literal=(\d+)$")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"?(\d+)')


@dataclasses.dataclass(frozen=True)
class Array:
    """An array type. ``dtype`` is in HLO's spelling (``bf16``, ``s4``), ``space`` the number of a memory.

    Of the memories 0 is the device's main one, 5 the host's; others (1 VMEM, 3 CMEM of a v4) are on chip.
    """

    dtype: str
    shape: tuple[int, ...]
    space: int = 0

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def on_chip(self) -> bool:
        return self.space not in (0, 5)

    @property
    def bits(self) -> int:
        """Bits of an entry; a truth value takes a byte."""
        found = re.search(r"\d+", self.dtype)
        return int(found[0]) if found else 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of HLO. ``type``: an ``Array`` or a nested tuple of them; ``attributes``: the rest of it."""

    name: str
    type: Any
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    root: bool

    @property
    def op_name(self) -> str:
        """Where in the traced function it comes from, or ``""``."""
        found = _OP_NAME.search(self.attributes)
        return found[1] if found else ""

    @property
    def called(self) -> dict[str, tuple[str, ...]]:
        """The computations that it calls, by attribute (``calls``, ``body``, ...)."""
        found = _CALLED.findall(_STRING.sub('""', self.attributes))
        return {key: tuple(re.findall(r"[\w.\-]+", names)) for key, names in found}

    @property
    def branches(self) -> tuple[str, ...]:
        """The computations of a conditional, in the order of its operands."""
        called = self.called
        both = (*called.get("true_computation", ()), *called.get("false_computation", ()))
        return called.get("branch_computations", both)


@dataclasses.dataclass(frozen=True)
class Module:
    """Computations by name, each a sequence of instructions in order of execution."""

    computations: Mapping[str, Sequence[Instruction]]
    entry: str


@dataclasses.dataclass(frozen=True)
class Written:
    """An array made of weights alone that the program writes to memory.

    ``name``, ``opcode`` and ``op_name`` (the place in the traced function) tell the instruction, ``array``
    what it writes, ``sources`` the numbers of the entry parameters that it is made of.
    """

    name: str
    opcode: str
    op_name: str
    array: Array
    sources: tuple[int, ...]


def parse(text: str) -> Module:
    """Parses HLO text, with or without ``%`` before names and types before operands.

    Raises:
      ValueError: text without an ENTRY computation.
    """
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        header = _HEADER.fullmatch(line)
        if line.startswith("}"):
            current = None
        elif current is None and header and not line.startswith("HloModule"):
            current = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif current is not None and (found := _INSTRUCTION.fullmatch(re.sub(r"/\*index=\d+\*/", "", line))):
            current.append(_instruction(found[2], found[3], root=bool(found[1])))
    if not entry:
        raise ValueError("no ENTRY computation in the HLO text; pass the whole program, compiled.as_text()")
    return Module(computations, entry)


def written(module: Module, weights: Collection[int]) -> list[Written]:
    """The arrays, of any dtype and size, that are made of weights alone and written, in order of the text.

    Args:
      module: a whole program. weights: the numbers of the entry parameters that are weights.
    """
    flow = _Flow(module, frozenset(weights))
    parameters = sum(i.opcode == "parameter" for i in module.computations[module.entry])
    flow.run(module.entry, [frozenset({n}) for n in range(parameters)], writes=True)
    order = {i.name: n for n, i in enumerate(i for c in module.computations.values() for i in c)}
    return sorted(flow.found.values(), key=lambda w: order[w.name])


def estimated_cycles(module: Module) -> int | None:
    """Sum of the compiler's own estimates, a loop's body times its trip count where known; None without any.

    Estimates are of single instructions: what overlaps is counted as if one after the other.
    """
    if not any(_CYCLES.search(i.attributes) for c in module.computations.values() for i in c):
        return None
    return sum(costs(module).values())


def costs(module: Module) -> dict[str, int]:
    """The estimated cycles of each instruction by name, all its runs together; of branches those of the costliest."""
    found: dict[str, int] = {}

    def visit(computation: str, runs: int) -> None:
        for i in module.computations[computation]:
            called, own = i.called, _CYCLES.search(i.attributes)
            if i.opcode == "while":
                trips = _trips(module, i)
                for key in ("condition", "body"):
                    for inner in called.get(key, ()):
                        visit(inner, runs * trips)
            elif i.opcode == "conditional":
                alone = {b: costs(dataclasses.replace(module, entry=b)) for b in i.branches}
                visit(max(alone, key=lambda b: sum(alone[b].values())), runs)
            elif i.opcode in ("call", "async-start"):
                for inner in (c for names in called.values() for c in names):
                    visit(inner, runs)
            elif own:
                found[i.name] = found.get(i.name, 0) + int(own[1]) * runs

    visit(module.entry, 1)
    return found


def _trips(module: Module, loop: Instruction) -> int:
    """Turns of a loop: as the compiler says, or as its condition, which compares a counter from 0 with a constant; else 1."""
    if told := _TRIPS.search(loop.attributes):
        return int(told[1])
    for name in loop.called.get("condition", ()):
        inside = {i.name: i for i in module.computations[name]}
        for i in inside.values():
            if i.root and i.opcode == "compare" and "direction=LT" in i.attributes:
                limit = inside.get(i.operands[1])
                literal = limit and _LITERAL.search(limit.attributes)
                return int(literal[1]) if literal else 1
    return 1


# -- following weights ---------------------------------------------------------------------------------------

#: The numbers of the parameters that a value is made of, as a frozenset; for a tuple, a tuple of such.
Sources = Any
NOTHING: frozenset[int] = frozenset()


class _Flow:
    """One walk over a program: carries the sources of every value and notes the arrays written."""

    def __init__(self, module: Module, weights: frozenset[int]) -> None:
        self.module, self.weights = module, weights
        self.found: dict[tuple[str, int], Written] = {}

    def run(self, computation: str, arguments: Sequence[Sources], *, writes: bool) -> Sources:
        """The sources of the computation's result; ``writes`` is False inside a fusion."""
        values: dict[str, Sources] = {}
        instructions = self.module.computations[computation]
        for i in instructions:
            if i.opcode == "parameter":
                made_of = arguments[int(i.operands[0])]
            else:
                made_of = self.result(i, [values.get(name, NOTHING) for name in i.operands], writes)
            values[i.name] = _spread(i.type, made_of)
            if writes and i.opcode not in PASSES_ON and not i.opcode.endswith("-start"):
                self.note(i, values[i.name])
        return values[next((i for i in instructions if i.root), instructions[-1]).name]

    def result(self, i: Instruction, operands: list[Sources], writes: bool) -> Sources:
        called = i.called
        if i.opcode == "tuple":
            return tuple(operands)
        if i.opcode == "opt-barrier":
            return operands[0]
        if i.opcode == "get-tuple-element" and isinstance(operands[0], tuple):
            return operands[0][int(i.attributes.split("index=")[1].split(",")[0])]
        if i.opcode == "while":
            return self.loop(called["body"][0], operands[0], writes)
        if i.opcode == "conditional":
            return _merge([self.run(c, [x], writes=writes) for c, x in zip(i.branches, operands[1:])])
        if i.opcode in ("fusion", "call", "async-start"):
            names = (*called.get("calls", ()), *called.get("to_apply", ()))
            return _merge([self.run(c, operands, writes=writes and i.opcode != "fusion") for c in names])
        return _flat(tuple(operands))

    def loop(self, body: str, carry: Sources, writes: bool) -> Sources:
        # Quietly until nothing changes, since an array may turn out an activation; then once for the notes.
        while (grown := _merge([carry, self.run(body, [carry], writes=False)])) != carry:
            carry = grown
        return self.run(body, [carry], writes=writes) if writes else carry

    def note(self, i: Instruction, sources: Sources) -> None:
        for n, (array, made_of) in enumerate(_pairs(i.type, sources)):
            if made_of and made_of <= self.weights:
                self.found[i.name, n] = Written(i.name, i.opcode, i.op_name, array, tuple(sorted(made_of)))


def _flat(sources: Sources) -> frozenset[int]:
    """All parameters of a value, its tuple structure forgotten."""
    return sources if isinstance(sources, frozenset) else NOTHING.union(*map(_flat, sources))


def _spread(type_: Any, sources: Sources) -> Sources:
    """The sources in the structure of the type; where the structures differ, every array gets all of them."""
    if isinstance(type_, Array):
        return _flat(sources)
    if isinstance(sources, tuple) and len(sources) == len(type_):
        return tuple(map(_spread, type_, sources))
    return tuple(_spread(t, _flat(sources)) for t in type_)


def _merge(values: Sequence[Sources]) -> Sources:
    if values and all(isinstance(v, tuple) and len(v) == len(values[0]) for v in values):
        return tuple(map(_merge, zip(*values)))
    return _flat(tuple(values))


def _pairs(type_: Any, sources: Sources) -> list[tuple[Array, frozenset[int]]]:
    if isinstance(type_, Array):
        return [(type_, sources)]
    return [pair for t, s in zip(type_, sources) for pair in _pairs(t, s)]


# -- text ----------------------------------------------------------------------------------------------------


def _instruction(name: str, text: str, root: bool) -> Instruction:
    """``TYPE opcode(operands), attributes``."""
    end = _closing(text, 0) + 1 if text.startswith("(") else text.find(" ")
    opcode = _OPCODE.match(text, end)
    if opcode is None:
        raise ValueError(f"unreadable HLO instruction %{name}: {text[:200]!r}")
    close = _closing(text, opcode.end())
    inside = text[opcode.end() + 1 : close]
    if opcode[1] == "constant":
        return Instruction(name, _type(text[:end]), opcode[1], (), f"{text[close + 1 :]}, literal={inside}", root)
    operands = tuple(_last_word(x) for x in _split(inside))
    return Instruction(name, _type(text[:end]), opcode[1], operands, text[close + 1 :], root)


def _last_word(text: str) -> str:
    return text.split()[-1].lstrip("%")


def _type(text: str) -> Any:
    if text.startswith("("):
        return tuple(_type(part) for part in _split(text[1:-1]))
    found = _ARRAY.match(text)
    if found is None:
        raise ValueError(f"unreadable HLO type: {text[:200]!r}")
    space = re.search(r"S\((\d+)\)", found[3])
    return Array(found[1], tuple(map(int, re.findall(r"\d+", found[2]))), int(space[1]) if space else 0)


def _closing(text: str, start: int) -> int:
    """Where the bracket opened at ``start`` closes."""
    depth = 0
    for at in range(start, len(text)):
        depth += (text[at] in "([{") - (text[at] in ")]}")
        if depth == 0:
            return at
    return len(text)


def _split(text: str) -> list[str]:
    """The parts between the commas that stand in no bracket."""
    parts, depth, start = [], 0, 0
    for at, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append(text[start:at])
            start = at + 1
    return [part.strip() for part in (*parts, text[start:]) if part.strip()]
