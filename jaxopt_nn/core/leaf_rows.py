"""A row a leaf: what stands there, how the model uses it, what the program does with it; and the table of all rows."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

from jaxopt_nn.core.text_table import aligned


class Operation(NamedTuple):
    """A dot, a convolution or a lookup of a program, with what it reads: ``dot``, ``("int8[4, 32]", "int8[32, 64]")``."""

    name: str
    operands: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name} {' x '.join(self.operands)}"


@dataclasses.dataclass(frozen=True)
class Run:
    """What a site is in the program.

    Attributes:
      site: its name. operations: what stands there in the program's text, where a loop's body stands once.
      program: that of the formulation table, where one was chosen.
      reason: why it is so, as a full clause, where that is to be said.
      macs: multiply-accumulates of one call of the model.
    """

    site: str
    operations: tuple[Operation, ...]
    program: str = ""
    reason: str = ""
    macs: int = 0

    def __str__(self) -> str:
        if not self.operations:
            return f"no dot ({self.program})" if self.program else "no dot"
        said = ", ".join(f"{n} times {x}" if n > 1 else str(x) for x, n in Counter(self.operations).items())
        return f"{said} ({self.program})" if self.program else said


@dataclasses.dataclass(frozen=True)
class LeafRow:
    """All that is to be said of a leaf.

    Attributes:
      path, shape, dtype: of the leaf, a compressed tensor's those of the array that it stands for.
      format: what stands there, such as ``4 bits, groups of 64``.
      role: how the model uses it: ``dot [I, O]`` with a letter for each axis (S stack, I contracted, O output), ``lookup``,
        ``added``, ``scales``, ``not read``, ...
      runs: what the program does, for each of its sites; a derived site stands in the row of each of its leaves.
      reasons: why it is left alone, in float, densified, assumed, derived.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    format: str
    role: str
    runs: tuple[Run, ...] = ()
    reasons: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def sites(self) -> tuple[str, ...]:
        """The names of its sites."""
        return tuple(run.site for run in self.runs)

    @property
    def kind(self) -> Hashable:
        """Equal for leaves that a table may tell of in one line: vectors that no site reads, other such leaves of one shape."""
        if self.runs:
            return self.path
        vector = sum(n > 1 for n in self.shape) < 2
        return None if vector else self.shape, self.role, self.format, tuple(map(_general, self.reasons))


HEAD = ("leaf", "shape", "role", "format", "runs", "MACs", "notes")


def table(rows: Sequence[LeafRow], limit: int | None) -> str:
    """The rows as text, those with most parameters first; equal notes are one footnote, rows of one kind one line.

    With ``limit=None`` each row has its line.
    """
    kinds: dict[Hashable, list[LeafRow]] = {}
    for row in rows:
        kinds.setdefault(row.path if limit is None else row.kind, []).append(row)
    groups = sorted(kinds.values(), key=lambda group: -sum(row.size for row in group))
    shown, hidden = groups[:limit], groups[limit:] if limit is not None else []
    notes: dict[str, int] = {}
    lines: list[tuple[str, ...]] = [HEAD]
    for group in shown:
        lines += _lines(group, notes, None if limit is None else 4)
    said = aligned([line if notes else line[:-1] for line in lines], left=len(HEAD))
    if hidden:
        left = sum(row.size for group in hidden for row in group)
        said.append(f"... and {sum(map(len, hidden))} more leaves, {left:,} parameters: print(report.table(limit=None))")
    return "\n".join([*said, *(f"[{n}] {text}" for text, n in notes.items())])


def _lines(group: Sequence[LeafRow], notes: dict[str, int], limit: int | None) -> list[tuple[str, ...]]:
    """The lines of a leaf, or of several vectors of one kind; each of its sites has one, up to ``limit``."""
    row = group[0]
    name, shape = row.path, str(list(row.shape))
    if len(group) > 1:
        same = all(other.shape == row.shape for other in group)
        name = f"{row.path} and {len(group) - 1} more"
        shape = shape if same else f"{sum(other.size for other in group):,} entries"
    marks = "".join(f"[{notes.setdefault(_general(reason), len(notes) + 1)}]" for reason in row.reasons)
    runs = {str(run): 0 for run in row.runs}
    for run in row.runs:
        runs[str(run)] += 1
    texts = [text if n == 1 else f"{text} at {n} sites" for text, n in runs.items()] or ["-"]
    if limit is not None and len(texts) > limit:
        texts = [*texts[:limit], f"and {len(texts) - limit} more"]
    macs = sum(run.macs for run in row.runs)
    first = (name, shape, row.role, row.format, texts[0], f"{macs:,}" if macs else "-", marks)
    return [first, *(("", "", "", "", text, "", "") for text in texts[1:])]


def _general(reason: str) -> str:
    """A reason without the place of the operation, so that it holds for several leaves."""
    return re.sub(r"(`[^`]+`) in \S+$", r"\1", reason)


def summary(runs: Iterable[Run], what: str) -> list[str]:
    """``366 dots of activations: float32 x float32; reason``: a line for each kind of operands and reason."""
    counted: Counter[tuple[str, str]] = Counter()
    for run in runs:
        reason = f"; {run.reason}" if run.reason else ""
        for operation in run.operations:
            dtypes = " x ".join(operand.split("[")[0] for operand in operation.operands)
            counted[f"{{}} of {what}: {dtypes}{reason}", operation.name] += 1
        if not run.operations:
            counted[f"{{}} of {what} without a dot{reason}", "site"] += 1
    plural = {"dot": "dots", "convolution": "convolutions", "lookup": "lookups", "site": "sites"}
    return [text.format(f"{n} {name if n == 1 else plural[name]}") for (text, name), n in counted.items()]
