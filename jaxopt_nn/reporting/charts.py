"""The charts of a report's page. Each is a figure, or nothing where the report has nothing to show in it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxopt_nn.reporting import plots, svg
from jaxopt_nn.reporting.costs import MARGIN
from jaxopt_nn.reporting.html import figure
from jaxopt_nn.reporting.rows import Scores, number, score_rows, scored
from jaxopt_nn.reporting.svg import Chart
from jaxopt_nn.reporting.tables import entries, human_bytes, shown, unit_of

Report = dict[str, Any]
Form = Callable[[float], str]
#: Curves of gradient norms and histograms on one page.
LINES, HISTOGRAMS = 12, 12
ENDS = ("low", "high")


def scale_of(kind: Mapping[str, str]) -> float:
    """What a metric's values are multiplied by to be shown: shares are percents."""
    return 100.0 if kind["unit"] == "%" else 1.0


def metric_label(name: str, kind: Mapping[str, str]) -> str:
    """A metric with its unit, and which way is better where that is down."""
    unit = f", {kind['unit']}" if kind["unit"] not in ("", name) else ""
    return f"{name}{unit}{' (lower is better)' if kind['better'] == 'lower' else ''}"


def score_by_size(report: Report) -> str:
    """The headline against stored bytes: each stage's mean with its interval, each fold's value faint beside it."""
    name = report["headline"]
    kind = report["metrics"][name]
    told = [(entry, row, scored(report, entry, row)) for entry, row in zip(entries(report), score_rows(report))]
    drawn = [(entry, row, score) for entry, row, score in told if math.isfinite(score)]
    if not report["stages"] or not drawn:
        return ""
    scale, sizes = scale_of(kind), [max(entry["bytes"], 1) for entry, *_ in drawn]
    ends = [scale * x for _, row, score in drawn for x in (score, *row.values, *(number(row.mean.get(end)) for end in ENDS))]
    least, down = 1.0 if kind["unit"] == "%" else 0.0, kind["better"] == "lower"
    chart = Chart(
        svg.spanning("stored bytes (smaller to the right)", sizes, pad=0.15, log=True, reverse=True, form=human_bytes),
        svg.spanning(metric_label(name, kind), ends, pad=0.15, least=least, reverse=down),
        f"{name} of each stage against its stored bytes",
    )  # fmt: skip
    chart.line([(size, scale * score) for size, (*_, score) in zip(sizes, drawn)], series=6, kind="thin")
    for k, (entry, row, score) in enumerate(drawn):
        size, beside = sizes[k], 14.0 * sum(0.9 < sizes[k] / other < 1.1 for other in sizes[:k])  # those of one size in a row
        tip = f"{entry['name']}\n{name} {shown(report, name, score)}\n{entry['bytes']:,} bytes, ratio {entry['ratio']:.2f}x"
        for i, value in enumerate(row.values if row.mean else ()):
            fold = f"{entry['name']}, fold {i + 1}\n{shown(report, name, value)}"
            chart.point(size, scale * value, fold, k, faint=True, shift=beside)
        if row.mean:
            low, high = (row.mean[end] for end in ENDS)
            tip += f"\n95% interval {shown(report, name, low)} to {shown(report, name, high)}"
            chart.interval(size, scale * score, scale * low, scale * high, tip, k, shift=beside)
        chart.point(size, scale * score, tip, k, shift=beside)
        chart.label(size, scale * score, entry["name"], beside)
    many = "Large marks are means over folds with 95% intervals, small ones single folds. " if drawn[0][1].mean else ""
    legend = {entry["name"]: k for k, (entry, *_) in enumerate(drawn)}
    return figure("What it costs against bytes", chart, f"{many}Better is up, smaller is to the right.", legend)


def folds(report: Report) -> list[str]:
    """Each fold's headline with mean and interval, and the paired differences to the baseline; nothing for one fold."""
    rows = [row for row in score_rows(report) if any(map(math.isfinite, row.values))]
    if len(report.get("folds") or ()) < 2 or not rows:
        return []
    name = report["headline"]
    kind, unit = report["metrics"][name], unit_of(report, name)
    value = functools.partial(shown, report, name)
    points = lambda value: f"{scale_of(kind) * value:+.3g} {unit}".strip()
    against = [Scores(row.name, row.differences, row.difference, [], {}) for row in rows if row.differences]
    return [
        strip(f"{name.capitalize()} of each fold", metric_label(name, kind), rows, kind, value),
        strip("Paired difference to the baseline", f"difference in {name}, {unit}".rstrip(", "), against, kind, points, True),
    ]


def strip(
    title: str, label: str, rows: Sequence[Scores], kind: Mapping[str, str], form: Form, zero: bool = False, each: str = "fold"
) -> str:
    """A line for each row: its values, one of ``each``, as faint marks, mean and interval across them."""
    if not rows:
        return ""
    scale = scale_of(kind)
    ends = [v for row in rows for v in (*row.values, *(number(row.mean.get(end)) for end in ("low", "high")))]
    chart = Chart(
        svg.spanning(label, [*(scale * v for v in ends), *([0.0] if zero else [])]),
        svg.named([row.name for row in rows]), title, height=60 + 34 * len(rows),
    )  # fmt: skip
    if zero:
        chart.reference(x=0.0)
    for i, row in enumerate(rows):
        for k, value in enumerate(row.values):
            chart.point(scale * value, i - 0.16, f"{row.name}, {each} {k + 1}\n{form(value)}", 0, faint=True)
        if row.mean:
            mean, low, high = (row.mean[key] for key in ("mean", "low", "high"))
            tip = f"{row.name}\nmean {form(mean)}\n95% interval {form(low)} to {form(high)}"
            chart.interval(scale * mean, i + 0.16, scale * low, scale * high, tip, 1, across=True)
            chart.point(scale * mean, i + 0.16, tip, 1)
    return figure(title, chart, "", {f"a {each}": 0, "mean, 95% interval": 1})


def latency(report: Report) -> str:
    """The ratio of each stage's time to the baseline's, by batch, with its interval."""
    stages = [stage for stage in report["stages"] if stage.get("latency")]
    if not stages:
        return ""
    batches = list(stages[-1]["latency"])
    measured = [at for stage in stages for at in stage["latency"].values()]
    ends = [number(at.get(end)) for at in measured for end in ("ratio", "low", "high")]
    chart = Chart(
        svg.Axis("batch", -0.5, len(batches) - 0.5, names=tuple(batches)),
        svg.spanning("time over the baseline's", [*ends, MARGIN, 1 / MARGIN], log=True),
        "time of each stage over the baseline's, by batch",
    )  # fmt: skip
    chart.reference(y=1.0)
    chart.band(1 / MARGIN, MARGIN)
    for k, stage in enumerate(stages):
        shift = 0.5 * (k - (len(stages) - 1) / 2) / len(stages)
        for i, batch in enumerate(batches):
            if at := stage["latency"].get(batch):
                ratio, low, high = (number(at.get(end)) for end in ("ratio", "low", "high"))
                tip = f"{stage['name']}, batch {batch}\n{ratio:.2f}x, 95% interval {low:.2f}x to {high:.2f}x\n{at['ms']:.3g} ms"
                chart.interval(i + shift, ratio, low, high, tip, k + 1)
                chart.point(i + shift, ratio, tip, k + 1)  # the colours of the chart beside it
    caption = (
        "Median of interleaved pairs with its 95% interval; down is faster. What reaches into the grey band is told "
        f"neither faster nor slower: {MARGIN:g}x either way come and go on a busy machine."
    )
    return figure("Latency by batch", chart, caption, {stage["name"]: k + 1 for k, stage in enumerate(stages)})


def curves(report: Report) -> list[str]:
    """A chart for each metric of training and validation over the steps of all stages, three at most."""
    history = report.get("history") or []
    known = dict.fromkeys(name for entry in history for name in (*entry.get("metrics", ()), *(entry.get("valid") or ())))
    names = sorted(known, key=lambda name: (name != "loss", name != report["headline"]))[: plots.CURVES]
    steps = plots.steps(history)
    return [drawn for name in names if (drawn := _curve(report, name, steps))]


def _curve(report: Report, name: str, steps: plots.Steps) -> str:
    kind = report["metrics"].get(name, {"unit": "", "better": ""})
    scale = scale_of(kind)
    lines: dict[int, list[tuple[str, list[tuple[float, float]], list[str]]]] = {0: [], 1: []}
    for stage, places, logged in steps.stages:
        for k, key in enumerate(("metrics", "valid")):
            found = [(float(x), scale * number((entry.get(key) or {}).get(name))) for x, entry in zip(places, logged)]
            kept = [point for point in found if math.isfinite(point[1])]
            what = ("training", "validation")[k]
            lines[k].append((stage, kept, [f"{stage}, step {x:,}\n{what} {name} {y:.4g}" for x, y in kept]))
    values = [y for group in lines.values() for _, points, _ in group for _, y in points]
    if not values:
        return ""
    log = name == "loss" and min(values) > 0 and max(values) > 10 * min(values)
    chart = Chart(
        svg.Axis("steps", steps.spans[0][1], max(steps.spans[-1][2], steps.spans[0][1] + 1), form="{:,.0f}".format),
        svg.spanning(metric_label(name, kind), values, log=log), f"{name} over the steps of all stages",
    )  # fmt: skip
    for stage, start, _ in steps.spans:
        chart.reference(x=start, text=stage)
    for k, group in lines.items():
        for _, points, tips in group:
            chart.line(points, k, "", tips)
    valid = any(points for _, points, _ in lines[1])
    return figure(name.capitalize(), chart, "", {"training": 0, "validation": 1} if valid else {"training": 0})


def gradient_norms(report: Report) -> str:
    """The L2 norm of the gradient of each leaf over the steps, at most twelve, evenly chosen."""
    history = report.get("history") or []
    norms = [entry["gradient_norms"] for entry in history if entry.get("gradient_norms")]
    known = list(dict.fromkeys(path for entry in norms for path in entry))
    paths = [known[i] for i in sorted({round(k * (len(known) - 1) / (LINES - 1)) for k in range(LINES)})] if known else []
    positive = [n for entry in norms for path in paths if 0 < (n := entry.get(path, 0)) < math.inf]
    if not paths:
        return ""
    floor = min(positive, default=1.0) / 3
    steps = plots.steps(history)
    chart = Chart(
        svg.Axis("steps", steps.spans[0][1], max(steps.spans[-1][2], 1), form="{:,.0f}".format),
        svg.spanning("gradient norm", [*positive, floor], log=True), "gradient norm of each leaf over the steps",
    )  # fmt: skip
    for stage, start, _ in steps.spans:
        chart.reference(x=start, text=stage)
    for k, path in enumerate(paths):
        for _, places, logged in steps.stages:
            found = [(x, (entry.get("gradient_norms") or {}).get(path)) for x, entry in zip(places, logged)]
            points = [(x, norm) for x, norm in found if norm is not None]
            tips = [f"{path}\nstep {x:,}\n{'exactly 0' if not y else f'{y:.3g}'}" for x, y in points]
            chart.line([(x, y or floor) for x, y in points], k, "dashed" if k >= svg.COLOURS else "", tips)
    none = any(entry.get(path) == 0 for entry in norms for path in paths)
    if none:
        chart.reference(y=floor)
    out = f"{len(paths)} of {len(known)} leaves, evenly chosen. " if len(paths) < len(known) else ""
    zero = "Norms on the dashed line are exactly 0." if none else ""
    return figure("Gradient norms", chart, f"{out}{zero}".strip(), {path: k for k, path in enumerate(paths)})


def histograms(report: Report) -> list[str]:
    """Histograms of the largest matrices before and after."""
    known = report.get("histograms") or {}
    largest = set(sorted(known, key=lambda path: -sum(known[path]["before"]))[:HISTOGRAMS])
    out = []
    for path, one in known.items():
        most = max(*one["before"], *one["after"], 1)
        if path in largest:
            chart = Chart(
                svg.Axis("weight", one["edges"][0], one["edges"][-1]),
                svg.Axis("count", 0.7, 2.0 * most, log=True, form="{:,.0f}".format),
                f"histogram of {path} before and after", width=320, height=220,
            )  # fmt: skip
            chart.stairs(one["edges"], one["before"], 0.7, 6, filled=True)
            chart.stairs(one["edges"], one["after"], 0.7, 0, filled=False)
            out.append(figure(path, chart, "", {"before": 6, "after": 0}))
    return out
