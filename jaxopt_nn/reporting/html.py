"""The kit of all pages: one self-contained file with its style sheet and script inside, tables, charts, sections.

Tables sort by a click or the Enter key on a heading, and filter by words; charts tell their numbers when pointed at. Without
JavaScript everything is still there to read.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import itertools
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from jaxopt_nn.reporting.svg import COLOURS, SHAPES, Chart


@dataclasses.dataclass(frozen=True)
class Column:
    """A table's column.

    Args:
      name: the heading.
      kind: ``"number"`` stands to the right; ``"text"`` and ``"prose"`` to the left, prose wraps.
      help: says what the column means, when the heading is pointed at.
      choices: whether a list above the table chooses the rows by this column's value.
    """

    name: str
    kind: str = "number"
    help: str = ""
    choices: bool = False


@dataclasses.dataclass(frozen=True)
class Cell:
    """A table's cell.

    Args:
      text: what is shown.
      bar: a share from 0 to 1, drawn as a bar behind the text.
      heat: a share from 0 to 1, as the strength of the background; its sign chooses the colour.
      link: a relative address.
    """

    text: str
    bar: float | None = None
    heat: float | None = None
    link: str = ""


@dataclasses.dataclass(frozen=True)
class Row:
    """A table's line; ``run`` ties it to marks of charts, ``words`` are found by the filter beside the cells' texts."""

    cells: Sequence[Cell | str]
    run: str = ""
    words: str = ""


def document(title: str, body: Iterable[str]) -> str:
    """A page; ``title`` is its name and first heading."""
    files = importlib.resources.files(__package__)
    style, script = (files.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{escape(title)}</h1>\n" + "\n".join(filter(None, body))
        + f"\n</main>\n<script>\n{script}</script>\n</body>\n</html>\n"
    )  # fmt: skip


def section(title: str, body: Iterable[str]) -> str:
    """A section with its heading; nothing where its body is empty."""
    parts = [part for part in body if part]
    return "\n".join(["<section>", f"<h2>{escape(title)}</h2>", *parts, "</section>"]) if parts else ""


def note(text: str) -> str:
    """A paragraph in small type."""
    return f'<p class="note">{escape(text)}</p>'


def details(summary: str, body: str) -> str:
    """What is folded away until asked for; open on paper."""
    return f"<details>\n<summary>{escape(summary)}</summary>\n{body}\n</details>"


def terms(pairs: Iterable[tuple[str, object]]) -> str:
    """Names with their values."""
    lines = "\n".join(f"<dt>{escape(str(name))}</dt><dd>{escape(str(value))}</dd>" for name, value in pairs)
    return f"<dl>\n{lines}\n</dl>"


def figure(title: str, chart: Chart, caption: str = "", legend: Mapping[str, int] | None = None) -> str:
    """A chart with heading, legend (name -> number of its series) and caption."""
    below = f"<figcaption>{escape(caption)}</figcaption>\n" if caption else ""
    return f"<figure>\n<h3>{escape(title)}</h3>\n{_legend(legend or {})}{chart.html()}\n{below}</figure>"


def _legend(series: Mapping[str, int]) -> str:
    if not series:
        return ""
    items = "".join(
        f'<li class="c{k % COLOURS}"><span class="swatch {SHAPES[k % len(SHAPES)]}"></span>{escape(name)}</li>'
        for name, k in series.items()
    )
    return f'<ul class="legend">{items}</ul>\n'


def beside(figures: Iterable[str], small: bool = False) -> str:
    """Figures two in a row, or three ``small`` ones, where the page is wide enough; nothing where there is none."""
    drawn = [figure for figure in figures if figure]
    return "\n".join([f'<div class="figures{" small" if small else ""}">', *drawn, "</div>"]) if drawn else ""


def table(
    caption: str,
    columns: Sequence[Column],
    rows: Sequence[Row | Sequence[Cell | str]],
    search: bool = False,
    fixed: bool = False,
) -> str:
    """A table in a box that scrolls by itself; nothing without rows.

    ``search`` puts a field for words above it; a ``fixed`` one, whose order means something, does not sort.
    """
    if not rows:
        return ""
    plain = [row if isinstance(row, Row) else Row(row) for row in rows]
    heads = "".join(
        f'<th scope="col" class="{column.kind}"{_attribute("title", column.help)}'
        f"{' data-choices' if column.choices else ''}>{escape(column.name)}</th>"
        for column in columns
    )
    kind = f"{' data-search' if search else ''}{' data-fixed' if fixed else ''}"
    return "\n".join([
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(caption)}">\n<table{kind}>',
        f"<caption>{escape(caption)}</caption>\n<thead>\n<tr>{heads}</tr>\n</thead>\n<tbody>",
        *(_row(row, columns) for row in plain), "</tbody>\n</table>\n</div>",
    ])  # fmt: skip


def _row(row: Row, columns: Sequence[Column]) -> str:
    cells = [_cell(cell, column.kind) for cell, column in zip(row.cells, columns, strict=True)]
    return f"<tr{_attribute('data-run', row.run)}{_attribute('data-words', row.words)}>{''.join(cells)}</tr>"


def _cell(cell: Cell | str, kind: str) -> str:
    cell = Cell(cell) if isinstance(cell, str) else cell
    style = "" if cell.bar is None else f' style="--bar:{cell.bar:.2%}"'
    if cell.heat is not None:
        style = f' style="--heat:{min(abs(cell.heat), 1):.0%}"'
    drawn = f"{kind}{' bar' if cell.bar is not None else ''}{_heat(cell.heat)}"
    text = f'<a href="{escape(cell.link)}">{escape(cell.text)}</a>' if cell.link else escape(cell.text)
    return f'<td class="{drawn}"{style}>{text}</td>'


def _heat(heat: float | None) -> str:
    return "" if heat is None else " cold" if heat < 0 else " warm"


def _attribute(name: str, value: str) -> str:
    return f' {name}="{escape(value)}"' if value else ""


def columns_of(header: Sequence[str], words: Iterable[str], prose: Iterable[str] = ()) -> list[Column]:
    """Columns by their headings: those of ``words`` and ``prose`` hold text, the others numbers."""
    kinds = dict(itertools.chain(((w, "text") for w in words), ((p, "prose") for p in prose)))
    return [Column(name, kinds.get(name, "number")) for name in header]
