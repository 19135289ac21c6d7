"""The page of a comparison or a sweep: fronts, leaderboards, differences of configs, and what could not be read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any
from urllib.parse import quote

from jaxopt_nn.reporting import html, svg
from jaxopt_nn.reporting.charts import metric_label, scale_of, strip
from jaxopt_nn.reporting.html import Column, Row
from jaxopt_nn.reporting.rows import Scores
from jaxopt_nn.reporting.svg import Chart
from jaxopt_nn.reporting.tables import human_bytes

from .grid import short_names

Comparison = Mapping[str, Any]
Cell = Mapping[str, Any]
#: Differing fields with a column of their own, rows of a chart of differences, costs with a chart of their own.
FIELDS, STRIPS, COSTS = 6, 40, 4
SIZES = {"bytes": "stored bytes", "file": "bytes of the file"}


def page(comparison: Comparison) -> str:
    """The page of what ``comparison.compared`` or a sweep gives."""
    groups = [_group(comparison, number) for number in range(len(comparison["groups"]))]
    said = "".join(f"<li>{escape(text)}</li>" for text in _sentences(comparison))
    top = f'<ul class="said">{said}</ul>'
    return html.document(comparison["title"], [top, *groups, _differences(comparison), _failed(comparison)])


def _sentences(comparison: Comparison) -> list[str]:
    cells = [cell for cell in comparison["cells"] if cell["n"]]
    runs = sum(cell["n"] for cell in cells)
    out = [f"{runs} {'run' if runs == 1 else 'runs'} of {len(cells)} {'setting' if len(cells) == 1 else 'settings'}."]
    if comparison["failed"]:
        out.append(f"{len(comparison['failed'])} could not be read or failed; the last section says why.")
    for number, group in enumerate(comparison["groups"]):
        members = [cell for cell in cells if cell["group"] == number]
        sign = 1 if group["metric"]["better"] == "higher" else -1
        best = max(members, key=lambda cell: sign * cell["score"]["mean"])
        out.append(f"Best {group['metric']['name']}{_on(group)}: {_value(best, 'score')} by {best['name']}, {_size(best)}.")
    return [*out, *comparison.get("sentences", ())]


def _on(group: Mapping[str, Any]) -> str:
    return f" on {group['data']}" if group["data"] else ""


def _size(cell: Cell) -> str:
    return f"{cell['bytes']['mean']:,.0f} bytes"


def _group(comparison: Comparison, number: int) -> str:
    """The charts and tables of the cells of one metric on one data."""
    group = comparison["groups"][number]
    cells = [(f"s{k}", cell) for k, cell in enumerate(comparison["cells"]) if cell["n"] and cell["group"] == number]
    costs = list(dict.fromkeys(key for _, cell in cells for key in cell if key in SIZES or key.startswith("ms@")))
    fronts = [_front(cells, cost) for cost in costs[:COSTS] if sum(cost in cell for _, cell in cells) > 1]
    repeated = any(cell["n"] > 1 for _, cell in cells)
    runs = _runs(cells)
    said = "± is half of the interval that holds the mean over seeds with 95% confidence (Student's t)."
    return html.section(f"{group['metric']['name'].capitalize()}{_on(group)}", [
        html.beside(fronts), _leaderboard(comparison, cells, costs),
        html.details("All runs", runs) if repeated else "", html.beside(_strips(comparison, cells)),
        html.note(said) if repeated else "",
    ])  # fmt: skip


def _front(cells: Sequence[tuple[str, Cell]], cost: str) -> str:
    """The score against a cost: settings with their intervals, runs faint, the front as a line."""
    known = [(key, cell) for key, cell in cells if cost in cell]
    metric = known[0][1]["metric"]
    scale = scale_of(metric)
    timed = cost not in SIZES
    form, label = ("{:.3g}".format, f"median ms at batch {cost[3:]}") if timed else (human_bytes, SIZES[cost])
    places = [cell[cost]["mean"] for _, cell in known]
    ends = [scale * x for _, cell in known for x in (*(run["score"] for run in cell["runs"]), *_ends(cell["score"]))]
    chart = Chart(
        svg.spanning(f"{label} (smaller to the right)", places, log=True, reverse=True, form=form),
        svg.spanning(metric_label(metric["name"], metric), ends, reverse=metric["better"] == "lower"),
        f"{metric['name']} against {label}",
    )  # fmt: skip
    best = sorted((cell[cost]["mean"], scale * cell["score"]["mean"]) for _, cell in known if cost in cell["front"])
    chart.line(best, 1, "thin")
    for key, cell in known:
        series = 1 if cost in cell["front"] else 0
        x, y = cell[cost]["mean"], scale * cell["score"]["mean"]
        tip = f"{cell['name']}\n{metric['name']} {_value(cell, 'score')}, n={cell['n']}\n{form(x)}{' ms' if timed else ''}"
        for run in cell["runs"] if cell["n"] > 1 else ():
            chart.point(x, scale * run["score"], f"{run['folder']}\n{_number(run['score'], metric)}", series, True, run=key)
        if cell["score"]["low"] is not None:
            chart.interval(x, y, *(scale * end for end in _ends(cell["score"])), tip, series, run=key)
        chart.point(x, y, tip, series, run=key)
        if cost in cell["front"]:
            chart.label(x, y, cell["name"])
    caption = "On the front, nothing is both cheaper and better. Better is up, cheaper is to the right."
    legend = {"others": 0, "on the Pareto front": 1}
    return html.figure(f"{metric['name'].capitalize()} against {label}", chart, caption, legend)


def _ends(spread: Mapping[str, Any]) -> list[float]:
    return [math.nan if spread[end] is None else spread[end] for end in ("low", "high")]


def _number(value: float, metric: Mapping[str, str], sign: str = "") -> str:
    """A value of a metric, or with ``sign="+"`` a difference: shares in percent, their differences in points."""
    share = metric["unit"] == "%"
    return f"{100 * value:{sign}.2f}{'' if sign else '%'}" if share else f"{value:{sign}.4g}"


def _value(cell: Cell, name: str) -> str:
    return _number(cell[name]["mean"], cell["metric"])


def _estimate(spread: Mapping[str, Any] | None, metric: Mapping[str, str], sign: str = "") -> str:
    """A mean and half of its interval: ``97.58% ± 1.66``."""
    if not spread:
        return "-"
    mean = _number(spread["mean"], metric, sign)
    if spread["high"] is None:
        return mean
    half = spread["high"] - spread["mean"]
    return f"{mean} ± {f'{100 * half:.2f}' if metric['unit'] == '%' else f'{half:.2g}'}"


def _leaderboard(comparison: Comparison, cells: Sequence[tuple[str, Cell]], costs: Sequence[str]) -> str:
    """A line for each setting, the best first."""
    metric = cells[0][1]["metric"]
    sign = -1 if metric["better"] == "higher" else 1
    fields = list(dict.fromkeys(field for _, cell in cells for field in cell["overrides"]))
    fields = [field for field in fields if len({repr(cell["overrides"].get(field)) for _, cell in cells}) > 1]
    shown = fields if len(fields) <= FIELDS else []
    unit = ", points" if metric["unit"] == "%" else ""
    choices = [Column(short, "text", field, choices=True) for field, short in zip(shown, short_names(shown))]
    columns = [Column("setting", "text"), *choices, Column("n", help="runs, one for each seed")]
    columns += [Column(metric["name"]), Column(f"against float{unit}", help="paired by seed")]
    if comparison["baseline"]:
        columns.append(Column(f"against baseline{unit}", help=f"paired by seed with {comparison['baseline']}"))
    columns += [Column("bytes"), Column("ratio"), *(Column(cost) for cost in costs[1:]), Column("best in", "text")]
    rows = [
        Row(_line(comparison, cell, shown, costs), key, " ".join(f"{f}={v}" for f, v in cell["overrides"].items()))
        for key, cell in sorted(cells, key=lambda pair: sign * pair[1]["score"]["mean"])
    ]
    return html.table("Leaderboard", columns, rows, search=len(rows) > 4)


def _line(comparison: Comparison, cell: Cell, fields: Sequence[str], costs: Sequence[str]) -> list[html.Cell | str]:
    metric = cell["metric"]
    one = cell["n"] == 1 and cell["runs"][0]["folder"]
    line: list[html.Cell | str] = [html.Cell(cell["name"], link=_link(cell["runs"][0]["folder"]) if one else "")]
    line += [_text(cell["overrides"], field) for field in fields]
    line += [str(cell["n"]), _estimate(cell["score"], metric), _estimate(cell["against_float"], metric, "+")]
    if comparison["baseline"]:
        line.append("baseline" if cell["name"] == comparison["baseline"] else _estimate(cell["difference"], metric, "+"))
    line += [f"{cell['bytes']['mean']:,.0f}", f"{cell['ratio']['mean']:.2f}x"]
    line += [f"{cell[cost]['mean']:{',.0f' if cost in SIZES else '.3g'}}" if cost in cell else "-" for cost in costs[1:]]
    return [*line, ", ".join(cell["front"]) or "-"]


def _link(folder: str) -> str:
    """To the report of a run. The dot keeps a colon in the folder's name from being read as a scheme."""
    return f"./{quote(folder)}/report.html"


def _text(fields: Mapping[str, Any], field: str) -> str:
    return str(fields[field]) if field in fields else "-"


def _runs(cells: Sequence[tuple[str, Cell]]) -> str:
    """A line for each run, with a link to its report."""
    metric = cells[0][1]["metric"]
    columns = [Column("run", "text"), Column("seed"), Column(metric["name"]), Column("float"), Column("bytes"), Column("ratio")]
    columns.append(Column("file"))
    rows = [
        [
            html.Cell(run["folder"], link=_link(run["folder"])), str(run["seed"]), _number(run["score"], metric),
            _number(run["baseline_score"], metric), f"{run['bytes']:,}", f"{run['ratio']:.2f}x",
            f"{run['file']:,}" if "file" in run else "-",
        ]
        for _, cell in cells for run in cell["runs"]
    ]  # fmt: skip
    return html.table("Runs", columns, rows, search=len(rows) > 4)


def _strips(comparison: Comparison, cells: Sequence[tuple[str, Cell]]) -> list[str]:
    """Paired differences to the float network, and to the baseline setting where there is one."""
    if not any(cell["n"] > 1 for _, cell in cells):
        return []
    metric = cells[0][1]["metric"]
    unit = "points" if metric["unit"] == "%" else metric["unit"]
    form = lambda value: f"{_number(value, metric, '+')} {unit}".strip()
    out = []
    label = f"difference in {metric['name']}, {unit}".rstrip(", ")
    for key, title in (("against_float", "Against the float network"), ("difference", f"Against {comparison['baseline']}")):
        told = [(cell["name"], cell[key]) for _, cell in cells[:STRIPS] if cell[key]]
        rows = [Scores(name, of["values"], of if of["low"] is not None else {}, [], {}) for name, of in told]
        out.append(strip(title, label, rows, metric, form, zero=True, each="seed"))
    return out


def _differences(comparison: Comparison) -> str:
    """The fields in which configs differ, each with its values and how many settings have them."""
    fields = list(dict.fromkeys(field for cell in comparison["cells"] for field in cell["overrides"]))
    rows = []
    for field in fields:
        counts: dict[str, int] = {}
        for cell in comparison["cells"]:
            text = _text(cell["overrides"], field) if field in cell["overrides"] else "absent"
            counts[text] = counts.get(text, 0) + 1
        rows.append([field, str(len(counts)), "; ".join(f"{text} ({count})" for text, count in counts.items())])
    columns = [Column("field", "text"), Column("values"), Column("each with its number of settings", "prose")]
    table = html.table("Fields that are not the same in all", columns, rows, search=len(rows) > 12)
    return html.section("Differences of the configs", [table])


def _failed(comparison: Comparison) -> str:
    rows = [[entry.get("folder") or f"{entry['cell']}, seed {entry['seed']}", entry["error"]] for entry in comparison["failed"]]
    table = html.table("Runs that are not compared", [Column("run", "text"), Column("reason", "prose")], rows)
    return html.section("Not compared", [table])
