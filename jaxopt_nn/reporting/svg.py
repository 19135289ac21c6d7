"""Charts as SVG for a page: the style sheet colours them, light and dark, and every mark tells its numbers when pointed at.

A chart is 460 units wide, so that two stand beside each other on a screen, and one is still legible on a telephone.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from html import escape

#: Marks and colours of series, in this order; the style sheet says what ``c0`` looks like.
SHAPES = ("circle", "square", "diamond", "triangle", "down")
COLOURS = 7
WIDTH = 460
#: Estimated width of a character and height of a line, in units of the drawing.
CHARACTER, LINE = 7.0, 15
#: Points of one line that answer the pointer; longer lines answer at evenly chosen ones.
ANSWERING = 150

Box = tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True)
class Axis:
    """What an axis spans and how its numbers are written.

    Args:
      label: what it shows, with the unit.
      low, high: ends, ``low < high``; positive on a log scale.
      log: a log scale.
      reverse: the low end stands at the right, or at the top.
      names: categories in place of numbers, at 0, 1, 2, ... from the left or from the top.
      form: writes a tick; None writes as few digits as tell ticks apart.
    """

    label: str
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    reverse: bool = False
    names: tuple[str, ...] = ()
    form: Callable[[float], str] | None = None

    def place(self, value: float) -> float:
        """Where a value stands between the axis's ends, from 0 to 1."""
        low, high, at = map(math.log, (self.low, self.high, max(value, 1e-300))) if self.log else (self.low, self.high, value)
        share = (at - low) / (high - low)
        return 1 - share if self.reverse else share

    def ticks(self) -> list[tuple[float, str]]:
        """Places and texts of the ticks."""
        if self.names:
            return list(enumerate(self.names))
        values = _log_ticks(self.low, self.high) if self.log else []
        if values:
            return [(value, (self.form or "{:g}".format)(value)) for value in values]
        step = _step(self.high - self.low)
        first = math.ceil(self.low / step - 1e-9)
        values = [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        form = self.form or (f"{{:,.{digits}f}}".format if digits < 6 else "{:.2e}".format)
        return [(value, form(value + 0.0)) for value in values]


def spanning(label: str, values: Iterable[float], *, pad: float = 0.08, least: float = 0.0, **how: object) -> Axis:
    """An axis that holds all finite values with some room, at least ``least`` wide."""
    finite = [v for v in values if math.isfinite(v) and (v > 0 or not how.get("log"))]
    low, high = (min(finite), max(finite)) if finite else (1.0, 1.0)
    if how.get("log"):
        room = max((high / low) ** pad, 1.25)
        return Axis(label, low / room, high * room, **how)  # type: ignore[arg-type]
    alone = 0.02 * abs(high) or 1.0
    room = max(pad * (high - low), (least - (high - low)) / 2) or alone
    return Axis(label, low - room, high + room, **how)  # type: ignore[arg-type]


def named(names: Sequence[str]) -> Axis:
    """An axis of categories, from the top."""
    return Axis("", -0.6, len(names) - 0.4, reverse=True, names=tuple(names))


def _step(span: float, most: int = 6) -> float:
    """The step of 1, 2 or 5 times a power of ten that gives at most so many ticks."""
    power = 10.0 ** math.floor(math.log10(span / most))
    return next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= most)


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, with 2 and 5 between them where these are few; none within less than a factor of three or so."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5)):
        values = [f * 10.0**p for p in powers for f in factors if low <= f * 10.0**p <= high]
        if len(values) >= 3:
            return values[:: -(-len(values) // 6)]
    return []


class Chart:
    """Collects marks; ``html`` draws them.

    Args:
      x, y: the axes.
      alt: what the chart shows, for who can't see it.
      width, height: of the drawing.
    """

    def __init__(self, x: Axis, y: Axis, alt: str, width: int = WIDTH, height: int = 300):
        self._x, self._y, self._alt, self._width, self._height = x, y, alt, width, height
        self._marks: list[str] = []
        self._labels: list[tuple[float, float, str]] = []
        self._points: list[tuple[float, float]] = []
        self._notes: list[float] = []  # where each row of notes at the top ends
        top = 26 if y.label else 10
        left = 12 + CHARACTER * max((min(len(text), 22) for _, text in y.ticks()), default=0)
        self._frame: Box = (left, top, width - 14, height - (40 if x.label else 24))

    def at(self, x: float, y: float) -> tuple[float, float]:
        """The place of a point in the drawing."""
        left, top, right, bottom = self._frame
        return left + self._x.place(x) * (right - left), bottom - self._y.place(y) * (bottom - top)

    def point(
        self, x: float, y: float, tip: str = "", series: int = 0, faint: bool = False, run: str = "", shift: float = 0.0
    ) -> None:
        """A mark, moved to the right by ``shift`` units of the drawing.

        ``run`` ties it to the table's row of that name, so that filtering the table filters the chart.
        """
        if not (math.isfinite(x) and math.isfinite(y)):
            return
        px, py = self.at(x, y)
        px += shift
        self._points.append((px, py))
        shape = _shape(SHAPES[series % len(SHAPES)], px, py, 3.2 if faint else 4.6)
        kind = f"c{series % COLOURS} mark{' faint' if faint else ''}"
        self._marks.append(f'<g class="{kind}"{_tie(run)}>{_title(tip)}{shape}</g>')

    def interval(
        self, x: float, y: float, low: float, high: float, tip: str = "", series: int = 0, across: bool = False,
        run: str = "", shift: float = 0.0,
    ) -> None:  # fmt: skip
        """An error bar through a point: upright, or ``across``; ``run`` and ``shift`` as those of a point."""
        if not (math.isfinite(low) and math.isfinite(high)):
            return
        ends = [self.at(end, y) if across else self.at(x, end) for end in (low, high)]
        (x0, y0), (x1, y1) = [self._inside(px + shift, py) for px, py in ends]
        dx, dy = (0, 4) if across else (4, 0)
        caps = "".join(f"M{x - dx:.1f} {y - dy:.1f}L{x + dx:.1f} {y + dy:.1f}" for x, y in ((x0, y0), (x1, y1)))
        path = f'<path d="M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}{caps}"/>'
        self._marks.append(f'<g class="c{series % COLOURS} bar"{_tie(run)}>{_title(tip)}{path}</g>')

    def line(
        self, points: Sequence[tuple[float, float]], series: int = 0, kind: str = "", tips: Sequence[str] = ()
    ) -> None:
        """A line through the finite points, broken at others; one that stands alone is drawn as a point."""
        runs: list[list[tuple[float, float, int]]] = [[]]
        for i, (x, y) in enumerate(points):
            if math.isfinite(x) and math.isfinite(y):
                runs[-1].append((*self.at(x, y), i))
            elif runs[-1]:
                runs.append([])
        colour = f"c{series % COLOURS}"
        for run in filter(None, runs):
            if len(run) > 1:
                path = "L".join(f"{x:.1f} {y:.1f}" for x, y, _ in run)
                self._marks.append(f'<path class="{colour} line {kind}" d="M{path}"/>')
            for x, y, i in run[:: -(-len(run) // ANSWERING)] if tips or len(run) == 1 else ():
                shape = _shape("circle", x, y, 3) if len(run) == 1 else f'<circle class="hit" cx="{x:.1f}" cy="{y:.1f}" r="7"/>'
                tip = tips[i] if tips else ""
                self._marks.append(f'<g class="{colour} mark">{_title(tip)}{shape}</g>')

    def stairs(self, edges: Sequence[float], heights: Sequence[float], floor: float, series: int, filled: bool) -> None:
        """A histogram: its outline, or its area."""
        corners = [(edges[0], floor)]
        for low, high, value in zip(edges, edges[1:], heights):
            corners += [(low, max(value, floor)), (high, max(value, floor))]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in (self.at(*corner) for corner in [*corners, (edges[-1], floor)]))
        self._marks.append(f'<path class="c{series % COLOURS} {"area" if filled else "line"}" d="M{path}"/>')

    def reference(self, x: float | None = None, y: float | None = None, text: str = "") -> None:
        """A dashed line across the chart, at an x or a y; ``text`` stands at its upper end."""
        left, top, right, bottom = self._frame
        if y is not None:
            at = self.at(self._x.low, y)[1]
            self._marks.insert(0, f'<path class="reference" d="M{left:.1f} {at:.1f}H{right:.1f}"/>')
            return
        assert x is not None
        at = self.at(x, self._y.low)[0]
        self._marks.insert(0, f'<path class="reference" d="M{at:.1f} {top:.1f}V{bottom:.1f}"/>')
        if text:
            row = next((k for k, end in enumerate(self._notes) if end <= at), len(self._notes))
            self._notes[row : row + 1] = [at + CHARACTER * len(text) + 10]
            self._marks.append(f'<text class="stage" x="{at + 4:.1f}" y="{top + 10 + 13 * row:.1f}">{escape(text)}</text>')

    def band(self, low: float, high: float) -> None:
        """A band across the chart between two y, behind all that is drawn."""
        left, _, right, _ = self._frame
        ends = [self._inside(left, self.at(self._x.low, y)[1])[1] for y in (low, high)]
        top, bottom = min(ends), max(ends)
        box = f'x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" height="{bottom - top:.1f}"'
        self._marks.insert(0, f'<rect class="band" {box}/>')

    def label(self, x: float, y: float, text: str, shift: float = 0.0) -> None:
        """A text beside a point, put where it covers no other label and no point; left out where there is no such place."""
        if math.isfinite(x) and math.isfinite(y):
            px, py = self.at(x, y)
            self._labels.append((px + shift, py, text))

    def html(self) -> str:
        """The drawing."""
        left, top, right, bottom = self._frame
        words = _placed(self._labels, self._points, self._frame)
        return "\n".join([
            f'<svg viewBox="0 0 {self._width} {self._height}" role="img" aria-label="{escape(self._alt)}">',
            *self._ticks(), *self._marks, f'<path class="frame" d="M{left:.1f} {top:.1f}V{bottom:.1f}H{right:.1f}"/>',
            *words, "</svg>",
        ])  # fmt: skip

    def _inside(self, x: float, y: float) -> tuple[float, float]:
        left, top, right, bottom = self._frame
        return min(max(x, left), right), min(max(y, top), bottom)

    def _ticks(self) -> list[str]:
        left, top, right, bottom = self._frame
        out = []
        for value, text in self._y.ticks():
            at = self.at(self._x.low, value)[1]
            short = escape(text if len(text) <= 22 else f"{text[:10]}…{text[-11:]}")
            out.append(f'<path class="grid" d="M{left:.1f} {at:.1f}H{right:.1f}"/>')
            out.append(f'<text class="tick" x="{left - 6:.1f}" y="{at + 4:.1f}" text-anchor="end">{_title(text)}{short}</text>')
        ticks = self._x.ticks()
        room = (right - left) / max(len(ticks), 1)
        skip = math.ceil(max((CHARACTER * len(text) + 6 for _, text in ticks), default=1) / max(room, 1))
        for value, text in ticks[::skip]:
            at = self.at(value, self._y.low)[0]
            anchor = "middle" if at + CHARACTER * len(text) / 2 < self._width else "end"
            out.append(f'<path class="grid" d="M{at:.1f} {top:.1f}V{bottom:.1f}"/>')
            out.append(f'<text class="tick" x="{at:.1f}" y="{bottom + 16:.1f}" text-anchor="{anchor}">{escape(text)}</text>')
        if self._x.label:
            at = (left + right) / 2
            place = f'x="{at:.1f}" y="{bottom + 34:.1f}" text-anchor="middle"'
            out.append(f'<text class="axis" {place}>{escape(self._x.label)}</text>')
        if self._y.label:
            out.append(f'<text class="axis" x="4" y="14">{escape(self._y.label)}</text>')
        return out


def _tie(run: str) -> str:
    return f' data-run="{escape(run)}"' if run else ""


def _title(tip: str) -> str:
    return f"<title>{escape(tip)}</title>" if tip else ""


def _shape(shape: str, x: float, y: float, r: float) -> str:
    if shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}"/>'
    if shape == "square":
        return f'<rect x="{x - 0.9 * r:.1f}" y="{y - 0.9 * r:.1f}" width="{1.8 * r:.1f}" height="{1.8 * r:.1f}"/>'
    corners = {
        "diamond": ((0, -1.35), (1.35, 0), (0, 1.35), (-1.35, 0)),
        "triangle": ((0, -1.3), (1.2, 0.9), (-1.2, 0.9)),
        "down": ((0, 1.3), (1.2, -0.9), (-1.2, -0.9)),
    }[shape]
    return f'<path d="M{"L".join(f"{x + r * dx:.1f} {y + r * dy:.1f}" for dx, dy in corners)}z"/>'


def _placed(labels: Sequence[tuple[float, float, str]], points: Sequence[tuple[float, float]], frame: Box) -> list[str]:
    """The labels that find a place inside the frame, each off all others and off all points."""
    taken: list[Box] = [(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    out = []
    left, top, right, bottom = frame
    for x, y, text in labels:
        wide = CHARACTER * len(text)
        sides = itertools.product((6, -6 - wide, -wide / 2), (-13, 13))
        for dx, dy in ((8, 0), (-8 - wide, 0), *sides):
            box = (x + dx, y + dy - LINE / 2, x + dx + wide, y + dy + LINE / 2)
            inside = left <= box[0] and box[2] <= right + 10 and top - 4 <= box[1] and box[3] <= bottom
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                out.append(f'<text class="label" x="{box[0]:.1f}" y="{y + dy + 4:.1f}">{escape(text)}</text>')
                break
    return out


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
