"""The pictures of a report, as PNG. Drawing needs matplotlib, and neither uses nor changes the caller's settings of it."""

from __future__ import annotations

import functools
import io
import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxopt_nn.reporting.rows import Scores, score_rows, scored
from jaxopt_nn.reporting.tables import entries, human_bytes, last, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Report = dict[str, Any]
#: Matplotlib's settings on top of its own defaults.
STYLE = {
    "figure.dpi": 150, "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.07, "font.size": 9, "text.color": "0.15",
    "axes.titlesize": 9, "axes.titlelocation": "left", "axes.labelsize": 9, "axes.labelcolor": "0.15",
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "0.55", "axes.axisbelow": True,
    "axes.grid": True, "grid.color": "0.92", "grid.linewidth": 0.8, "xtick.color": "0.35", "ytick.color": "0.35",
    "xtick.labelsize": 8, "ytick.labelsize": 8, "lines.linewidth": 1.5, "legend.frameon": False, "legend.fontsize": 8,
}  # fmt: skip
#: Told apart by all common kinds of colour vision, and in grey (Okabe and Ito 2008).
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#b8b8b8"
WIDTH = 7.6
#: Leaves in one picture: panels of histograms, bars, lines.
PANELS, BARS, LINES = 12, 40, 12
#: Metrics of training in one picture.
CURVES = 3


def _png(draw: Callable[[Report], Figure | None]) -> Callable[[Report], bytes | None]:
    """``draw`` in the common style, rendered; None stays None."""

    @functools.wraps(draw)
    def picture(report: Report) -> bytes | None:
        from matplotlib import style

        with style.context(["default", STYLE]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"Glyph .* missing")  # a name in a script that the font lacks
            figure = draw(report)
            if figure is None:
                return None
            out = io.BytesIO()
            figure.savefig(out, format="png")
            return out.getvalue()

    return picture


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def shortened(names: Iterable[str], most: int) -> list[str]:
    """Names as matplotlib shows them literally: no formula, one line, the middle left out where they are long.

    What is left out is chosen so that different names stay different, where that can be.
    """
    lines = [" ".join(name.split()) for name in names]
    for head in sorted(range(most), key=lambda n: abs(n - most // 2)):
        short = [n if len(n) <= most else f"{n[:head]}…{n[len(n) - most + 1 + head :]}" for n in lines]
        if len({*short}) == len({*lines}):
            break
    return [name.replace("$", r"\$") for name in short]


def left_out(shown: int, known: int, what: str) -> str:
    return f"{shown} of {known} {what}, {known - shown} left out" if shown < known else ""


def _logarithmic(axes: Axes, which: str, form: Callable[[float], str]) -> None:
    """A log scale with plain numbers at 1, 2, 5, 10, ..."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: form(value)))
    axis.set_minor_formatter(NullFormatter())


# -- the headline metric against bytes ---------------------------------------------------------------------------------


@_png
def metric_bytes(report: Report) -> Figure | None:
    """The headline metric against stored bytes over the stages; those without a finite score are left out.

    Where there are several folds, each is a light point, and means have their intervals.
    """
    name = report["headline"]
    kind = report["metrics"][name]
    scale, down = (100 if kind["unit"] == "%" else 1), kind["better"] == "lower"
    scores = [(e, row, scale * scored(report, e, row)) for e, row in zip(entries(report), score_rows(report))]
    finite = [place for place in scores if math.isfinite(place[-1])]
    if not finite or not report["stages"]:
        return None
    found, folds, value = zip(*finite, strict=True)
    size = [max(e["bytes"], 1) for e in found]
    first = 1 if math.isfinite(scores[0][-1]) else 0  # where the stages begin
    figure = _figure(WIDTH, 4.4)
    axes = figure.subplots()
    for baseline in value[:first]:
        axes.axhline(baseline, color="0.7", linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    axes.plot(size, value, color=BLUE, zorder=2)
    axes.scatter(size[first:], value[first:], s=52, color=BLUE, edgecolor="white", linewidth=1.2, zorder=3)
    axes.scatter(
        size[:first], value[:first], s=150, marker="*", color=ORANGE, edgecolor="white", linewidth=0.8, zorder=4
    )
    spread = _folds(axes, size, folds, scale)
    low, high = min([*value, *spread]), max([*value, *spread])
    margin = max(0.45 * (high - low), 0.5 if scale == 100 else 0.02 * max(abs(high), abs(low), 1e-9))
    axes.set_ylim(*((high + margin, low - margin) if down else (low - margin, high + margin)))  # better is up
    _logarithmic(axes, "x", human_bytes)
    wide = max((max(size) / min(size)) ** 0.16, 1.9)
    axes.set_xlim(max(size) * wide, min(size) / wide)
    axes.set_xlabel("stored bytes (log scale, smaller to the right)")
    unit = f", {kind['unit']}" if kind["unit"] else ""
    axes.set_ylabel(f"{shortened([name], 40)[0]}{unit}{' (better is up)' if down else ''}")
    said = [shown(report, name, score / scale) for score in value]
    _place(figure, axes, _labels(found, value, said, -1 if down else 1), list(zip(size, value)))
    return figure


def _folds(axes: Axes, sizes: Sequence[float], rows: Sequence[Scores], scale: float) -> list[float]:
    """Draws the folds of each stage and the intervals of their means; all values that were drawn."""
    out: list[float] = []
    for size, row in zip(sizes, rows, strict=True):
        if row.mean:
            values = [scale * value for value in row.values if math.isfinite(value)]
            ends = [scale * row.mean[end] for end in ("low", "high")]
            axes.scatter([size] * len(values), values, s=26, color=BLUE, alpha=0.35, linewidth=0, zorder=2)
            axes.vlines(size, *ends, color=BLUE, linewidth=1.2, zorder=2)
            out += [*values, *ends]
    return out


def _labels(
    found: Sequence[dict[str, Any]], value: Sequence[float], said: Sequence[str], better: int = 1
) -> list[tuple[str, float, float, int]]:
    """``(text, bytes, value, 1 above or -1 below)``; stages of nearly one size in a row share a label.

    A label stands on the side where its neighbours are not.
    """
    groups: list[list[int]] = []
    for i, entry in enumerate(found):
        if groups and 0.8 < max(entry["bytes"], 1) / max(found[groups[-1][0]]["bytes"], 1) < 1.25:
            groups[-1].append(i)
        else:
            groups.append([i])
    names = shortened([entry["name"] for entry in found], 30)
    middle = [better * sum(value[i] for i in group) / len(group) for group in groups]
    out = []
    for k, group in enumerate(groups):
        around = [middle[j] for j in (k - 1, k + 1) if 0 <= j < len(groups)]
        side = 1 if not around or sum(around) / len(around) <= middle[k] else -1
        lines = [f"{names[i]}  {said[i]}" for i in group]
        lines.append(f"{human_bytes(found[group[-1]]['bytes'])}, {found[group[-1]]['ratio']:.1f}x")
        edge = (max if side * better > 0 else min)(value[i] for i in group)
        out.append(("\n".join(lines), max(found[group[0]]["bytes"], 1), edge, side))
    return out


def _place(
    figure: Figure,
    axes: Axes,
    texts: Sequence[tuple[str, float, float, int]],
    points: Sequence[tuple[float, float]],
) -> None:
    """Writes each label where it covers no other one and no part of the curve: at its point, or off it with a line to it."""
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()
    point, frame, places = figure.dpi / 72, axes.bbox, axes.transData.transform(points)
    line = np.concatenate([places, *(np.linspace(a, b, 60) for a, b in itertools.pairwise(places))])
    taken = [Bbox([at - 2 * point, at + 2 * point]) for at in line]
    taken += [Bbox([at - 6 * point, at + 6 * point]) for at in places]
    for text, x, y, side in texts:
        probe = axes.text(0, 0, text, fontsize=8, linespacing=1.3)
        wide, high = probe.get_window_extent().size
        probe.remove()
        at_x, at_y = axes.transData.transform((x, y))
        boxes = {}
        for k, shift, sign in itertools.product(range(14), (0, 0.4, -0.4), (side, -side)):
            offset = sign * (10 + 12 * k)
            middle = min(max(at_x + shift * wide, frame.x0 + wide / 2), frame.x1 - wide / 2)
            bottom = at_y + offset * point - (high if offset < 0 else 0)
            boxes[middle, offset] = Bbox.from_bounds(middle - wide / 2, bottom, wide, high)
        free = [place for place, box in boxes.items() if not any(box.overlaps(other) for other in taken)]
        inside = [place for place in free if frame.y0 <= boxes[place].y0 and boxes[place].y1 <= frame.y1]
        middle, offset = (inside or free or list(boxes))[0]
        taken.append(boxes[middle, offset])
        axes.annotate(
            text, (x, y), xytext=((middle - at_x) / point, offset), textcoords="offset points", fontsize=8, ha="center",
            va="bottom" if offset > 0 else "top", linespacing=1.3, zorder=5, in_layout=False,
            bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.85},
            arrowprops={"arrowstyle": "-", "color": "0.6", "linewidth": 0.7} if abs(offset) > 10 else None,
        )  # fmt: skip


# -- curves over the steps ---------------------------------------------------------------------------------------------


class Steps(NamedTuple):
    """The history on one axis of steps: entries of each stage with their places, and where stages begin and end."""

    stages: list[tuple[str, list[int], list[dict[str, Any]]]]
    spans: list[tuple[str, int, int]]


def steps(history: Sequence[dict[str, Any]]) -> Steps:
    """The history with each stage behind the one before."""
    stages: list[tuple[str, list[int], list[dict[str, Any]]]] = []
    spans = []
    start = 0
    for name, group in itertools.groupby(history, key=lambda entry: entry["stage"]):
        logged = list(group)
        stages.append((name, [start + entry["step"] for entry in logged], logged))
        end = start + max(entry["step"] for entry in logged)
        spans.append((name, start, end))
        start = end
    return Steps(stages, spans)


def _borders(figure: Figure, panels: Sequence[Axes], spans: Sequence[tuple[str, int, int]]) -> None:
    """A line where a stage begins, and its name above the first panel, in as many rows as it takes."""
    first = panels[0]
    panels[-1].set_xlim(spans[0][1], max(spans[-1][2], spans[0][1] + 1))
    for _, start, _ in spans[1:]:
        for axes in panels:
            axes.axvline(start, color="0.6", linewidth=0.9, linestyle=(0, (3, 3)), zorder=1)
    figure.draw_without_rendering()
    ends: list[float] = []  # of each row of names, in pixels
    for name, (_, start, _) in zip(shortened([name for name, *_ in spans], 30), spans, strict=True):
        left = first.transData.transform((start, 1))[0]
        label = first.annotate(
            name, (start, 1), xycoords=("data", "axes fraction"), xytext=(2, 3), fontsize=8, color="0.3",
            textcoords="offset points",
        )  # fmt: skip
        row = next((k for k, reach in enumerate(ends) if reach <= left), len(ends))
        ends[row : row + 1] = [left + label.get_window_extent().width + 10]
        label.xyann = (2, 3 + 11 * row)


@_png
def training_curves(report: Report) -> Figure | None:
    """Loss and the other metrics of training over the steps of all stages, a panel each."""
    history = report.get("history")
    if not history:
        return None
    over = steps(history)
    known = dict.fromkeys(name for entry in history for name in entry["metrics"])
    names = sorted(known, key=lambda name: (name != "loss", name != report["headline"]))[:CURVES]
    figure = _figure(WIDTH, 1.0 + 1.8 * len(names))
    panels = list(figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0])
    for axes, name in zip(panels, names, strict=True):
        share = report["metrics"].get(name, {}).get("unit") == "%"
        for _, places, logged in over.stages:
            values = [entry["metrics"].get(name, math.nan) * (100 if share else 1) for entry in logged]
            axes.plot(places, values, color=BLUE, marker="o" if len(places) < 3 else "", markersize=3)
        axes.set_ylabel(f"training {shortened([name], 30)[0]}{', %' if share else ''}")
    losses = [x for entry in history if math.isfinite(x := entry["metrics"].get("loss", math.nan))] or [0.0]
    if min(losses) > 0 and max(losses) > 10 * min(losses):
        _logarithmic(panels[0], "y", "{:g}".format)
    panels[-1].set_xlabel("steps")
    _borders(figure, panels, over.spans)
    return figure


@_png
def gradient_norms(report: Report) -> Figure | None:
    """The L2 norm of each leaf's gradient over the steps, leaves coloured from first to last."""
    from matplotlib import colormaps

    history = report.get("history") or []
    logged = [entry["gradient_norms"] for entry in history if entry.get("gradient_norms")]
    if not logged:
        return None
    over = steps(history)
    known = list(dict.fromkeys(path for norms in logged for path in norms))
    paths = [known[i] for i in np.unique(np.linspace(0, len(known) - 1, min(LINES, len(known))).round().astype(int))]
    positive = [norms[path] for norms in logged for path in paths if 0 < norms.get(path, 0) < math.inf]
    floor = min(positive, default=1.0) / 3
    figure = _figure(WIDTH, 3.8 + 0.17 * (-(-len(paths) // 2)))
    axes = figure.subplots()
    axes.set_yscale("log")
    for k, (path, name) in enumerate(zip(paths, shortened(paths, 40), strict=True)):
        color = colormaps["viridis"](0.82 * k / max(len(paths) - 1, 1))
        for _, places, group in over.stages:
            norms = [entry.get("gradient_norms", {}).get(path, math.nan) for entry in group]
            values = [floor if norm == 0 else norm for norm in norms]
            marker = "o" if len(places) < 3 else ""
            axes.plot(places, values, color=color, linestyle=_DASHES[k % len(_DASHES)], marker=marker, markersize=3)
        axes.plot([], [], color=color, linestyle=_DASHES[k % len(_DASHES)], label=f" {name}")
    if any(norms.get(path) == 0 for norms in logged for path in paths):
        axes.axhline(floor, color=ORANGE, linewidth=0.8, alpha=0.5, zorder=1)
        axes.annotate(
            "exactly 0", (1, floor), xycoords=("axes fraction", "data"), xytext=(-2, 3), textcoords="offset points",
            ha="right", fontsize=8, color=ORANGE,
        )  # fmt: skip
    axes.set_xlabel("steps")
    axes.set_ylabel("gradient norm (log scale)")
    figure.legend(
        loc="outside lower center",
        ncols=2,
        title=left_out(len(paths), len(known), "leaves, evenly chosen"),
        title_fontsize=8,
    )
    _borders(figure, [axes], over.spans)
    return figure


_DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1)))

# -- leaves ------------------------------------------------------------------------------------------------------------


@_png
def weight_histograms(report: Report) -> Figure | None:
    """Histograms of the largest matrices, before and after, in small multiples."""
    found = report.get("histograms")
    if not found:
        return None
    shown = set(sorted(found, key=lambda path: -sum(found[path]["before"]))[:PANELS])
    paths = [path for path in found if path in shown]
    columns = min(3, len(paths))
    lines = -(-len(paths) // columns)
    figure = _figure(WIDTH, 0.8 + 1.75 * lines + (1 if lines == 1 else 0))
    titles = shortened(paths, 96 // columns)
    panels = figure.subplots(lines, columns, squeeze=False)
    for axes, path, title in itertools.zip_longest(panels.ravel(), paths, titles):
        if path is None:
            axes.set_visible(False)
            continue
        one = found[path]
        axes.set_yscale("log")
        before = axes.stairs(one["before"], one["edges"], fill=True, color=GREY)
        after = axes.stairs(one["after"], one["edges"], color=BLUE, linewidth=1.2)
        axes.set_title(title, fontsize=7.5)
        axes.set_ylim(0.7, 2 * max(*one["before"], *one["after"], 1))
        axes.set_xlim(one["edges"][0], one["edges"][-1])
        axes.locator_params(axis="x", nbins=5)
    figure.supxlabel("weight", fontsize=9)
    figure.supylabel("count (log scale)", fontsize=9)
    figure.legend(
        [before, after], ["before", "after the last stage"], loc="outside upper right", ncols=2,
        title=left_out(len(paths), len(found), "matrices: the largest"), title_fontsize=8,
    )  # fmt: skip
    return figure


@_png
def leaf_bits(report: Report) -> Figure | None:
    """Stored bits per weight and share of nonzeros of the leaves after the last stage, as bars."""
    from matplotlib.ticker import MaxNLocator

    known = [leaf for leaf in last(report).get("leaves", ()) if leaf["size"]]
    if not known:
        return None
    shown = {leaf["path"] for leaf in sorted(known, key=lambda leaf: -leaf["bytes"])[:BARS]}
    leaves = [leaf for leaf in known if leaf["path"] in shown]
    before = {leaf["path"]: leaf["bits"] for leaf in report["baseline"].get("leaves", ())}
    figure = _figure(WIDTH, 1.0 + 0.23 * len(leaves))
    bits, nonzero = figure.subplots(1, 2, sharey=True)
    places = range(len(leaves))
    widths = [leaf["bits"] for leaf in leaves]
    most = max(*widths, *before.values(), 1)
    shares = [100 * leaf["nonzero"] / leaf["size"] for leaf in leaves]
    bits.barh(places, [before.get(leaf["path"], 0) for leaf in leaves], height=0.72, color="0.9")
    for axes, values, limit, form in ((bits, widths, most, "{:.2f}"), (nonzero, shares, 100, "{:.1f}%")):
        axes.barh(places, values, height=0.72, color=BLUE)
        axes.set_xlim(0, 1.22 * limit)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        for place, value in zip(places, values):
            axes.text(value + 0.012 * limit, place, form.format(value), va="center", fontsize=7.5)
    bits.set_yticks(places, shortened([leaf["path"] for leaf in leaves], 42))
    bits.set_ylim(len(leaves) - 0.4, -0.6)
    bits.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 4, 8, 10]))
    nonzero.set_xticks(range(0, 101, 25))
    bits.set_xlabel("stored bits per weight (light: baseline)")
    nonzero.set_xlabel("nonzero weights, %")
    if note := left_out(len(leaves), len(known), "leaves: those of most bytes"):
        figure.suptitle(note, fontsize=8)
    return figure


# -- all of them -------------------------------------------------------------------------------------------------------


class Plot(NamedTuple):
    """How a picture is drawn, what it shows, and how to read it."""

    draw: Callable[[Report], bytes | None]
    title: str
    caption: str


#: File name -> plot, in the order in which they are shown.
PLOTS = {
    "metric_bytes.png": Plot(
        metric_bytes, "what it costs against bytes",
        "Each point is the network after a stage as it would be deployed: smaller is to the right, better is up; "
        "the star and the dashed line are the baseline; light points are single folds, lines 95% intervals of their mean.",
    ),
    "training.png": Plot(
        training_curves, "training",
        "Means over the training steps since the point before; a dashed line is where a stage begins, so a jump there is "
        "what that stage costs before training heals it.",
    ),
    "leaves.png": Plot(
        leaf_bits, "bits and nonzeros of each leaf",
        "Left: what is stored for a weight, with scales and masks. Right: the share of weights that are not zero.",
    ),
    "weights.png": Plot(
        weight_histograms, "weights before and after",
        "Filled: the baseline. Line: after the last stage; the peak in the middle holds the weights that are zero, "
        "separate peaks are the levels of quantization.",
    ),
    "gradients.png": Plot(
        gradient_norms, "gradient norms",
        "A line for each leaf, dark to light in the order of the tree; a gradient that vanishes sinks, by a factor of ten "
        "at each line of the grid.",
    ),
}  # fmt: skip


def images(report: Report) -> dict[str, bytes]:
    """The PNG of each plot that has something to show, by file name. Needs matplotlib."""
    drawn = {name: plot.draw(report) for name, plot in PLOTS.items()}
    return {name: picture for name, picture in drawn.items() if picture is not None}
