"""A report as one HTML page that needs no other file and no network."""

from __future__ import annotations

import math
from html import escape
from typing import Any

from jaxopt_nn.reporting import charts, html
from jaxopt_nn.reporting.html import Cell, Column
from jaxopt_nn.reporting.tables import (
    LEAF_LEGEND,
    LEGEND,
    fact_tables,
    headline,
    json_text,
    last,
    leaf_rows,
    rows,
    sentences,
    shown,
    unit_of,
)

Report = dict[str, Any]
#: Columns that hold words; the others hold numbers.
TEXT, PROSE = ("stage", "path", "shape", "format", "class"), ("reason",)
_RERUN = """\
import json, pathlib
from ml_collections import ConfigDict

def get_config():
    return ConfigDict(json.loads(pathlib.Path(__file__).with_name("report.json").read_text())["config"])
"""


def page(report: Report) -> str:
    """The page ``report.html``; a part that the report does not have is not on it."""
    body = [
        _top(report), _stages(report), _folds(report), _leaves(report), _classes(report), _training(report),
        _facts(report), _skipped(report), _reproduce(report),
    ]  # fmt: skip
    return html.document(report.get("title") or "Compression report", body)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


def _top(report: Report) -> str:
    said = "\n".join(f"<li>{escape(_sentence(text))}</li>" for text in sentences(report))
    return f'<p class="headline">{escape(headline(report))}</p>\n' + (f'<ul class="said">\n{said}\n</ul>' if said else "")


def _stages(report: Report) -> str:
    header, cells = rows(report)
    return html.section("Stages", [
        html.table("Baseline and stages", html.columns_of(header, TEXT), cells), html.note(_sentence(LEGEND)),
        html.beside([charts.score_by_size(report), charts.latency(report)]), _latency(report),
    ])  # fmt: skip


def _folds(report: Report) -> str:
    name, count = report["headline"], len(report.get("folds") or ())
    if count < 2:
        return ""
    columns = [Column("stage", "text"), *(Column(f"fold {i + 1}") for i in range(count))]
    columns += [Column("mean"), Column("95 % interval"), Column("difference"), Column("its 95 % interval")]
    lines = []
    for row in charts.score_rows(report):
        lines.append([
            row.name, *(shown(report, name, None if math.isnan(v) else v) for v in row.values),
            shown(report, name, row.mean.get("mean")), _interval(row.mean, lambda v: shown(report, name, v)),
            _points(report, row.difference.get("mean")), _interval(row.difference, lambda v: _points(report, v)),
        ])  # fmt: skip
    unit = unit_of(report, name)
    caption = f"{name} of each fold; differences to the baseline of the same fold{', in ' + unit if unit else ''}"
    said = (
        "Intervals hold the mean over folds with 95 % confidence (Student's t). Folds share training data, so they are no "
        "independent repetitions."
    )
    return html.section("All folds", [html.table(caption, columns, lines), html.beside(charts.folds(report)), html.note(said)])


def _points(report: Report, value: float | None) -> str:
    """A difference of the headline metric, with its sign."""
    share = report["metrics"][report["headline"]]["unit"] == "%"
    return "-" if value is None else f"{100 * value:+.2f}" if share else f"{value:+.4g}"


def _interval(told: dict[str, Any], form: Any) -> str:
    return "-" if told.get("low") is None else f"{form(told['low'])} to {form(told['high'])}"


def _latency(report: Report) -> str:
    """The chart of latency as numbers."""
    timed = [stage for stage in report["stages"] if stage.get("latency")]
    if not timed:
        return ""
    header, cells = ["stage"], [[stage["name"]] for stage in timed]
    for batch in timed[-1]["latency"]:
        header += [f"x at {batch}", f"95 % at {batch}"]
        for line, stage in zip(cells, timed, strict=True):
            at = stage["latency"].get(batch) or {}
            line += [f"{at['ratio']:.2f}" if at else "-", _interval(at, "{:.2f}".format)]
    table = html.table("Time over the baseline's, by batch", html.columns_of(header, TEXT), cells)
    return html.details("Times over the baseline's with their intervals", table)


def _leaves(report: Report) -> str:
    entry = last(report)
    header, cells = leaf_rows(entry)
    drawn = charts.histograms(report)
    grid = html.beside(drawn, small=True)
    known = [leaf["alone"] for leaf in entry.get("leaves", ()) if leaf.get("alone") is not None]
    shares = [leaf["share"] for leaf in entry.get("leaves", ())]
    worst, most = (max(map(abs, values), default=0) or 1 for values in (known, shares))
    lines = [[_leaf_cell(name, text, worst, most) for name, text in zip(header, line, strict=True)] for line in cells]
    table = html.table("Leaves", html.columns_of(header, TEXT), lines, search=len(lines) > 12)
    return html.section(f"By layer, after {entry['name']}", [
        table, html.note(_sentence(LEAF_LEGEND)) if table else "",
        html.details("Histograms of the weights before and after", grid) if len(drawn) > 6 else grid,
    ])  # fmt: skip


def _leaf_cell(name: str, text: str, worst: float, most: float) -> Cell | str:
    """A cell of the table of leaves: shares have bars, rises of the loss a heat."""
    if name == "share":
        return Cell(text, bar=float(text.rstrip("%")) / 100 / most)
    return Cell(text, heat=0.8 * float(text) / worst) if name == "loss alone" and text != "-" else text


def _classes(report: Report) -> str:
    held = report.get("confusion")
    if not held:
        return ""
    names = [str(name) for name in held.get("names") or held["labels"]]
    columns = [Column("true class", "text"), *map(Column, names)]
    matrix = lambda caption, key: html.table(caption, columns, _matrix(names, held[key]), fixed=True)
    after = matrix(f"Confusion after {last(report)['name']}: a row for each true class", "final")
    before = matrix("Confusion of the baseline: a row for each true class", "baseline")
    return html.section("By class", [_changed(report, names), after, html.details("The baseline's confusion", before)])


def _matrix(names: list[str], counts: list[list[int]]) -> list[list[Cell | str]]:
    """Rows of a confusion matrix: what is right is cold, what is wrong warm, by its share of the row."""
    out: list[list[Cell | str]] = []
    for i, (name, line) in enumerate(zip(names, counts, strict=True)):
        heats = [(-1 if i == j else 4) * n / max(sum(line), 1) for j, n in enumerate(line)]
        out.append([name, *(Cell(f"{n:,}", heat=heat) if n else "" for n, heat in zip(line, heats, strict=True))])
    return out


def _changed(report: Report, names: list[str]) -> str:
    """Per class: examples, share right before and after, and how many answers changed each way."""
    held = report["confusion"]
    changed = held.get("changed")
    header = ["class", "examples", "right before", "right after", "change, points"]
    header += ["right to wrong", "wrong to right"] if changed else []
    lines: list[list[Cell | str]] = []
    for i, name in enumerate(names):
        total = sum(held["baseline"][i])
        before, after = (held[key][i][i] / total if total else math.nan for key in ("baseline", "final"))
        share = ["-" if math.isnan(x) else f"{x:.1%}" for x in (before, after)]
        change = 100 * (after - before)
        lines.append([name, f"{total:,}", *share, "-" if math.isnan(change) else f"{change:+.1f}"])
        if changed:
            lines[-1] += [f"{changed[i][way]:,}" for way in ("lost", "won")]
    return html.table("Right answers by class", html.columns_of(header, TEXT), lines, search=len(lines) > 20)


def _training(report: Report) -> str:
    return html.section("Training", [html.beside(charts.curves(report)), html.beside([charts.gradient_norms(report)])])


def _facts(report: Report) -> str:
    parts = []
    for name, note, (header, cells) in fact_tables(report):
        parts += [f"<h3>{escape(name)}</h3>", html.note(note), html.table(name, html.columns_of(header, TEXT), cells)]
    return html.section("What the methods say", parts)


def _skipped(report: Report) -> str:
    listed = [[skipped["path"], skipped["reason"]] for skipped in report["skipped"]]
    table = html.table("Leaves and why", [Column("path", "text"), Column("reason", "prose")], listed, search=len(listed) > 12)
    said = "<p>Nothing: every leaf is compressed and used as packed.</p>"
    return html.section("Left alone, or not used as packed", [table or said])


def _reproduce(report: Report) -> str:
    devices = sorted(set(report["devices"]))
    counted = [f"{report['devices'].count(device)} of {device}" for device in devices]
    pairs = [("seed", report["seed"]), ("devices", "; ".join(counted)), *report["versions"].items()]
    if "model" in report["config"]:
        how = [
            "<p>Save this as again.py beside report.json, which holds the whole config,</p>",
            f"<pre>{escape(_RERUN)}</pre>",
            "<p>and run it with the versions above:</p>",
            "<pre>python -m experiments.compress --config=again.py --workdir=again</pre>",
        ]
    else:
        how = ["<p>Call jaxopt_nn.compress with the same network, data and recipe, the seed and the versions above.</p>"]
    note = html.note("On the same kind of device all numbers come out the same, but for times.")
    config = html.details("The config as JSON", f"<pre>{escape(json_text(report['config']))}</pre>")
    return html.section("How to reproduce it", [html.terms(pairs), *how, note, config])
