"""A report as one HTML page that needs no other file and no network."""

from __future__ import annotations

from html import escape
from typing import Any

from jaxopt_nn.reporting import charts, html
from jaxopt_nn.reporting.html import Cell, Column
from jaxopt_nn.reporting.rows import class_names, class_rows, fold_rows, latency_rows
from jaxopt_nn.reporting.tables import (
    LEAF_LEGEND,
    LEGEND,
    Table,
    fact_tables,
    headline,
    json_text,
    last,
    leaf_rows,
    rows,
    sentences,
    unit_of,
)

Report = dict[str, Any]
#: Columns that hold words; the others hold numbers.
TEXT, PROSE = ("stage", "path", "shape", "format", "class"), ("reason",)
#: Tables of more lines have a field to search in.
SEARCHED = 12
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
    times = latency_rows(report)
    return html.section("Stages", [
        _table("Baseline and stages", rows(report)), html.note(_sentence(LEGEND)),
        html.beside([charts.score_by_size(report), charts.latency(report)]),
        html.details("Times over the baseline's as numbers", _table("Times over the baseline's", times)) if times else "",
    ])  # fmt: skip


def _folds(report: Report) -> str:
    table = fold_rows(report)
    if not table:
        return ""
    name, unit = report["headline"], unit_of(report, report["headline"])
    caption = f"{name} of each fold; differences to the baseline of the same fold{', in ' + unit if unit else ''}"
    said = (
        "Intervals hold the mean over folds with 95% confidence (Student's t). Folds share training data, so they are no "
        "independent repetitions."
    )
    return html.section("All folds", [_table(caption, table), html.beside(charts.folds(report)), html.note(said)])


def _table(caption: str, table: Table) -> str:
    header, cells = table
    return html.table(caption, html.columns_of(header, TEXT, PROSE), cells, search=len(cells) > SEARCHED)


def _leaves(report: Report) -> str:
    entry = last(report)
    header, cells = leaf_rows(entry)
    drawn = charts.histograms(report)
    grid = html.beside(drawn, small=True)
    known = [leaf["alone"] for leaf in entry.get("leaves", ()) if leaf.get("alone") is not None]
    shares = [leaf["share"] for leaf in entry.get("leaves", ())]
    worst, most = (max(map(abs, values), default=0) or 1 for values in (known, shares))
    lines = [[_leaf_cell(name, text, worst, most) for name, text in zip(header, line, strict=True)] for line in cells]
    table = html.table("Leaves", html.columns_of(header, TEXT), lines, search=len(lines) > SEARCHED)
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
    table = class_rows(report)
    if not table:
        return ""
    names, confusion = class_names(report), report["confusion"]
    columns = [Column("true class", "text"), *map(Column, names)]
    matrix = lambda caption, key: html.table(caption, columns, _matrix(names, confusion[key]), fixed=True)
    after = matrix(f"Confusion after {last(report)['name']}: a row for each true class", "final")
    before = matrix("Confusion of the baseline: a row for each true class", "baseline")
    folded = html.details("The baseline's confusion", before)
    return html.section("By class", [_table("Right answers by class", table), after, folded])


def _matrix(names: list[str], counts: list[list[int]]) -> list[list[Cell | str]]:
    """Rows of a confusion matrix: what is right is cold, what is wrong warm, by its share of the row."""
    out: list[list[Cell | str]] = []
    for i, (name, line) in enumerate(zip(names, counts, strict=True)):
        heats = [(-1 if i == j else 4) * n / max(sum(line), 1) for j, n in enumerate(line)]
        out.append([name, *(Cell(f"{n:,}", heat=heat) if n else "" for n, heat in zip(line, heats, strict=True))])
    return out


def _training(report: Report) -> str:
    return html.section("Training", [html.beside(charts.curves(report)), html.beside([charts.gradient_norms(report)])])


def _facts(report: Report) -> str:
    parts = [part for name, note, table in fact_tables(report) for part in (_table(name, table), html.note(note))]
    return html.section("What the methods say", parts)


def _skipped(report: Report) -> str:
    listed = [[skipped["path"], skipped["reason"]] for skipped in report["skipped"]]
    nothing = "<p>Nothing: every leaf is compressed and used as packed.</p>"
    body = _table("Leaves and why", (["path", "reason"], listed)) if listed else nothing
    return html.section("Left alone, or not used as packed", [body])


def _reproduce(report: Report) -> str:
    devices = sorted(set(report["devices"]))
    counted = [f"{report['devices'].count(device)} of {device}" for device in devices]
    pairs = [("seed", report["seed"]), ("devices", "; ".join(counted)), *report["versions"].items()]
    if "model" in report["config"]:
        how = [
            "<p>Save this as again.py beside report.json, which holds the whole config,</p>",
            f"<pre>{escape(_RERUN)}</pre>",
            "<p>and run it with the versions above:</p>",
            "<pre>jaxopt compress --config=again.py --workdir=again</pre>",
        ]
    else:
        how = ["<p>Call jaxopt_nn.compress with the same network, data and recipe, the seed and the versions above.</p>"]
    note = html.note("On the same kind of device all numbers come out the same, but for times.")
    config = html.details("The config as JSON", f"<pre>{escape(json_text(report['config']))}</pre>")
    return html.section("How to reproduce it", [html.terms(pairs), *how, note, config])
