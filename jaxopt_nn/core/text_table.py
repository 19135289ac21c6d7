"""Tables as text: in columns, and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def aligned(lines: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Lines of cells as text in columns: the first ``left`` stand to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    line = lambda cells: "  ".join(c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths)))
    return [line(cells).rstrip() for cells in lines]


def markdown(header: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table in Markdown."""
    lines = [[" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in (header, *cells)]
    bars = ["| " + " | ".join(line) + " |" for line in lines]
    return [bars[0], "|" + "|".join(" --- " for _ in header) + "|", *bars[1:]]
