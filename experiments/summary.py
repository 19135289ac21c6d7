"""The numbers of a sweep: mean and spread over seeds, paired differences, the table and the picture."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jaxopt_nn.numerics.intervals import mean_interval
from jaxopt_nn.reporting.tables import control_scores, human_bytes, last, scores

from .common import picture
from .grid import Cell, short_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SCHEMA = 3
#: What is summarized of a run: its score, the baseline's and the control's, in the report's headline metric, and sizes: of the
#: compressed tensors in memory, and of the file (or folder) that the run wrote, where entropy coding shows.
NUMBERS = ("score", "baseline_score", "control_score", "bytes", "ratio", "file")
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7f7f7f", "#000000")
MARKERS = "osD^vPX"


def record(report: Mapping[str, Any], cell: str, folder: str) -> dict[str, Any]:
    """What is kept of a run's report: the headline metric before and after, over all folds, the last sizes, latencies.

    ``file`` is absent where the run wrote no artifact.

    Raises:
      ValueError: the metric is no finite number.
    """
    name = report["headline"]
    (before, after), end = scores(dict(report)), last(dict(report))
    if any(value is None or not math.isfinite(value) for value in (before.get(name), after.get(name))):
        raise ValueError(f"its {name} is no finite number")
    times = {f"ms@{batch}": time["ms"] for batch, time in end.get("latency", {}).items()}
    control = control_scores(dict(report)).get(name)
    without = {} if control is None else {"control_score": control}
    written = {"file": report["artifact"]["bytes"]} if report.get("artifact") else {}
    return {
        "cell": cell, "seed": report["seed"], "folder": folder, "metric": {"name": name, **report["metrics"][name]},
        "score": after.get(name), "baseline_score": before.get(name), **without, "bytes": end["bytes"],
        "ratio": end["ratio"], **written, **times,
    }  # fmt: skip


def scored(record: Mapping[str, Any]) -> str:
    """A run's score in words."""
    unit = "%" if record["metric"]["unit"] == "%" else ""
    return f"{record['metric']['name']} {score_text(record['score'], None, record['metric'])}{unit}"


def summary(
    config: Mapping[str, Any],
    cells: Sequence[Cell],
    seeds: Sequence[int],
    baseline: str | None,
    records: Sequence[Mapping[str, Any]],
    failed: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """What ``sweep.json`` holds; ``metric`` has name, unit and direction of the number that is compared."""
    runs = {
        cell.name: sorted((r for r in records if r["cell"] == cell.name), key=lambda r: r["seed"]) for cell in cells
    }
    metric = records[0]["metric"] if records else {"name": "score", "unit": "", "better": "higher"}
    against = lambda cell: runs[baseline] if baseline and cell.name != baseline else ()
    return {
        "schema": SCHEMA, "config": dict(config), "seeds": list(seeds), "baseline": baseline, "metric": metric,
        "cells": [cell_entry(cell.name, cell.overrides, runs[cell.name], against(cell)) for cell in cells],
        "failed": list(failed), "missing": len(cells) * len(seeds) - len(records) - len(failed),
    }  # fmt: skip


def cell_entry(
    name: str, overrides: Mapping[str, Any], runs: Sequence[Mapping[str, Any]], baseline: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """A setting: its runs, one for each seed, the spread of each of their numbers, and differences paired by seed.

    ``against_float`` is the difference to the run's own float network, ``against_control`` that to its control, of the runs
    that have one, ``difference`` that to the runs of ``baseline``.
    """
    known = [key for key in (runs[0] if runs else {}) if key in NUMBERS or key.startswith("ms@")]
    numbers = {key: spread([run[key] for run in runs]) for key in known if all(key in run for run in runs)}
    instead = lambda key: [{**run, "score": run[key]} for run in runs if key in run]
    return {
        "name": name, "overrides": dict(overrides), "n": len(runs), "metric": runs[0]["metric"] if runs else None,
        "runs": list(runs), **numbers, "against_float": paired(runs, instead("baseline_score")),
        "against_control": paired(runs, instead("control_score")), "difference": paired(runs, baseline),
    }  # fmt: skip


def spread(values: Sequence[float]) -> dict[str, Any]:
    """``mean``, sample ``std``, the ends ``low`` and ``high`` of the mean's 95% interval (None for one value), and ``n``."""
    several = len(values) > 1
    mean, low, high = mean_interval(values)
    ends = {"low": low if several else None, "high": high if several else None}
    return {"mean": mean, "std": statistics.stdev(values) if several else None, **ends, "n": len(values)}


def paired(own: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The spread of ``own - other`` over the seeds that both have, its ``standard_error`` and ``values``; None of none."""
    theirs = {r["seed"]: r["score"] for r in other}
    differences = [r["score"] - theirs[r["seed"]] for r in own if r["seed"] in theirs]
    if not differences:
        return None
    told = spread(differences)
    error = None if told["std"] is None else told["std"] / len(differences) ** 0.5
    return {**told, "standard_error": error, "values": differences}


def header_and_cells(made: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The table: one line a cell."""
    metric = made["metric"]
    unit = f", {metric['unit']}" if metric["unit"] not in ("", metric["name"]) else ""
    header = ["cell", "n", f"{metric['name']}{unit}", f"float{unit}", "bytes", "ratio", "file"]
    if made["baseline"]:
        header.append("difference, points" if metric["unit"] == "%" else f"difference{unit}")
    return header, [_line(cell, made)[: len(header)] for cell in made["cells"]]


def _line(cell: Mapping[str, Any], made: Mapping[str, Any]) -> list[str]:
    if not cell["n"]:
        return [cell["name"], "0", *["-"] * 6]
    metric = made["metric"]
    difference = "baseline" if cell["name"] == made["baseline"] else "-"
    if found := cell["difference"]:
        difference = f"{score_text(found['mean'], found['standard_error'], metric, '+')} (n={found['n']})"
    scores = [score_text(c["mean"], c["std"], metric) for c in (cell["score"], cell["baseline_score"])]
    sizes = [size_text(cell, "bytes"), f"{cell['ratio']['mean']:.2f}x", size_text(cell, "file")]
    return [cell["name"], str(cell["n"]), *scores, *sizes, difference]


def size_text(cell: Mapping[str, Any], name: str) -> str:
    """Bytes with their standard deviation, where runs differ; ``-`` where a run has none."""
    if name not in cell:
        return "-"
    mean, std = cell[name]["mean"], cell[name]["std"]
    return f"{mean:,.0f}" + (f" ± {std:,.0f}" if std else "")


def score_text(mean: float, error: float | None, metric: Mapping[str, str], sign: str = "") -> str:
    """Shares in percent (differences of them in points)."""
    scale, digits = (100, 2) if metric["unit"] == "%" else (1, 4)
    said = f"{scale * mean:{sign}.{digits}f}"
    return said if error is None else f"{said} ± {scale * error:.{digits}f}"


def controlled(cell: Mapping[str, Any]) -> str:
    """What a cell's controls gave, in words; nothing where it has none."""
    if not (found := cell["against_control"]):
        return ""
    metric, runs = cell["metric"], [run["control_score"] for run in cell["runs"] if "control_score" in run]
    own = spread(runs)
    said, off = score_text(own["mean"], own["std"], metric), score_text(found["mean"], found["standard_error"], metric, "+")
    kind = f"{cell['name']}: control, trained as long in float, {metric['name']} {said}"
    return f"{kind}; this less its control {off} (n={found['n']})"


def draw(made: Mapping[str, Any]) -> bytes:
    """The cells' means with the standard deviation as bars, as PNG: against bytes, or the varied value where these are one."""
    return picture(lambda figure: _draw(figure, made), 7.6, 4.6)


def _draw(figure: Figure, made: Mapping[str, Any]) -> None:
    from matplotlib.transforms import ScaledTranslation

    cells = [cell for cell in made["cells"] if cell["n"]]
    axes = figure.subplots()
    metric = made["metric"]
    scale = 100 if metric["unit"] == "%" else 1
    key = _line_key(cells)
    by_bytes = len({round(cell["bytes"]["mean"]) for cell in cells}) > 1
    numeric = all(isinstance(c["overrides"].get(key), int | float) for c in cells)
    places = {  # bytes to three digits: those that differ by a few, as allocations' do, share a place
        c["name"]: float(f"{c['bytes']['mean']:.3g}") if by_bytes else c["overrides"][key] if numeric else i
        for i, c in enumerate(cells)
    }
    series = _series(cells, key)
    width = min(5.0, 14 / len(series)) if len(set(places.values())) < len(places) else 0.0  # of a shift, in points
    for i, (name, members) in enumerate(series.items()):
        members = sorted(members, key=lambda c: places[c["name"]])
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        beside = ScaledTranslation(width * (i - (len(series) - 1) / 2) / 72, 0, figure.dpi_scale_trans)
        x = [places[c["name"]] for c in members]
        y = [scale * c["score"]["mean"] for c in members]
        errors = [scale * (c["score"]["std"] or 0) for c in members]
        axes.errorbar(
            x, y, yerr=errors, fmt=f"{marker}-", color=colour, capsize=2.5, markersize=5, linewidth=1.2, elinewidth=0.8,
            label=name, transform=axes.transData + beside,
        )  # fmt: skip
        ends = [a + sign * error for sign in (-1, 1) for a, error in zip(y, errors)]
        axes.update_datalim(list(zip([*x, *x], ends)))  # what is shifted does not count by itself
    before = [c["baseline_score"]["mean"] for c in cells]
    axes.axhline(scale * sum(before) / len(before), color="0.6", linestyle=(0, (4, 3)), linewidth=1, label="float")
    if by_bytes:
        _bytes_axis(axes, [c["bytes"]["mean"] for c in cells])
    elif numeric:
        axes.set_xlabel(str(key))
    else:
        axes.set_xticks(range(len(cells)), [c["name"] for c in cells], rotation=30 if len(cells) > 3 else 0, ha="right")
    unit = f", {metric['unit']}" if metric["unit"] not in ("", metric["name"]) else ""
    axes.set_ylabel(f"{metric['name']}{unit}{' (lower is better)' if metric['better'] == 'lower' else ''}")
    axes.margins(x=0.1, y=0.15)
    said = f"; beside the points: {_short(cells)[key]}" if by_bytes and key else ""
    axes.set_title(f"mean ± standard deviation, {len(made['seeds'])} seeds{said}")
    axes.legend(loc="best")
    if by_bytes and key:
        _annotate(figure, axes, [(c["overrides"][key], places[c["name"]], scale * c["score"]["mean"]) for c in cells])


def _line_key(cells: Sequence[Mapping[str, Any]]) -> str | None:
    """The key along which the points are joined: one along which bytes change, of most values, of numbers rather."""

    def worth(key: str) -> tuple[bool, int, bool]:
        sizes = [{round(c["bytes"]["mean"]) for c in members} for members in _series(cells, key).values()]
        values = [c["overrides"][key] for c in cells]
        return max(map(len, sizes)) > 1, len({*map(repr, values)}), all(isinstance(v, int | float) for v in values)

    return max(cells[0]["overrides"], key=worth, default=None)


def _short(cells: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The varied keys and their names in the table."""
    keys = list(cells[0]["overrides"])
    return dict(zip(keys, short_names(keys)))


def _series(cells: Sequence[Mapping[str, Any]], key: str | None) -> dict[str, list[Mapping[str, Any]]]:
    """The cells that differ in ``key`` alone, by what they share."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    short = _short(cells)
    for cell in cells:
        shared = ", ".join(f"{short[k]}={v}" for k, v in cell["overrides"].items() if k != key)
        found.setdefault(shared or "compressed", []).append(cell)
    return found


def _annotate(figure: Figure, axes: Axes, points: Sequence[tuple[Any, float, float]]) -> None:
    """The value beside each ``(value, x, y)``, once for points of one value and place: at the highest, inside the axes."""
    highest: dict[tuple[str, float], float] = {}
    for value, x, y in points:
        highest[str(value), x] = max(y, highest.get((str(value), x), y))
    figure.draw_without_rendering()  # the layout, so that places in pixels are known
    for (text, x), y in highest.items():
        note = axes.annotate(
            text, (x, y), xytext=(6, 5), textcoords="offset points", fontsize=7, color="0.3", in_layout=False
        )
        box = note.get_window_extent()
        across, up = box.x1 > axes.bbox.x1, box.y1 > axes.bbox.y1
        note.xyann = (-6 if across else 6, -5 if up else 5)
        note.set(ha="right" if across else "left", va="top" if up else "bottom")


def _bytes_axis(axes: Axes, sizes: Sequence[float]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if max(sizes) > 2 * min(sizes):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: human_bytes(v)))
    axes.invert_xaxis()
    axes.set_xlabel("stored bytes (smaller to the right)")
