"""The tables of a report beside those of stages and leaves: all folds, latency against the baseline, classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from jaxopt_nn.reporting.tables import Table, last, shown

Report = dict[str, Any]


class Scores(NamedTuple):
    """The headline metric of a row of the table of folds.

    Attributes:
      name: of the stage, with the data where these are not those of the other rows.
      values: of each fold, NaN where one has none.
      mean: over the folds: ``mean``, ``low``, ``high``, ``n``; empty for one fold.
      differences: of each fold, to that fold's baseline; empty for baselines.
      difference: their mean, as ``mean``.
    """

    name: str
    values: list[float]
    mean: Mapping[str, Any]
    differences: list[float]
    difference: Mapping[str, Any]


def number(value: float | None) -> float:
    """NaN for None."""
    return math.nan if value is None else value


def score_rows(report: Report) -> list[Scores]:
    """Baseline and stages on the data by which they are compared, then, on the test data, what else is known there."""
    metric, folds, over = report["headline"], report.get("folds") or [], report.get("summary") or {}
    tested, validated = over.get("test") or {}, any("valid" in fold for fold in folds)
    pick = lambda entries: [number((entry or {}).get(metric)) for entry in entries]
    base, test = pick(fold.get("valid", fold["baseline"]) for fold in folds), pick(fold["baseline"] for fold in folds)

    def row(name: str, numbers: Iterable[Any], told: Mapping[str, Any] | None, against: list[float] | None = None) -> Scores:
        mean, difference = ((told or {}).get(key, {}).get(metric) or {} for key in ("metrics", "difference"))
        values = pick(numbers)
        return Scores(name, values, mean, [v - b for v, b in zip(values, against or ())], difference)

    out = [row("baseline", [fold.get("valid", fold["baseline"]) for fold in folds], over.get("baseline"))]
    for k, stage in enumerate(report["stages"]):
        out.append(row(stage["name"], [f["stages"][k]["metrics"] for f in folds], over["stages"][k] if over else None, base))
    where = ", test data" if validated else ""
    if validated:
        out.append(row(f"baseline{where}", [fold["baseline"] for fold in folds], tested.get("baseline")))
        out.append(row(f"{last(report)['name']}{where}", [fold["final"] for fold in folds], tested.get("final"), test))
    if any(fold.get("control") for fold in folds):
        out.append(row(f"control{where}", [fold.get("control") for fold in folds], tested.get("control"), test))
    return out


def scored(report: Report, entry: Mapping[str, Any], row: Scores) -> float:
    """The headline of a stage: its mean over folds where there are several; NaN where there is none."""
    return number(row.mean.get("mean", entry["metrics"].get(report["headline"])))


def fold_rows(report: Report) -> Table | None:
    """Header and cells of the headline metric in all folds; None of one fold."""
    name, count = report["headline"], len(report.get("folds") or ())
    if count < 2:
        return None
    value = lambda x: shown(report, name, None if x is None or math.isnan(x) else x)
    header = ["stage", *(f"fold {k + 1}" for k in range(count)), "mean", "95% interval", "difference", "its 95% interval"]
    return header, [
        [
            row.name, *map(value, row.values), value(row.mean.get("mean")), interval(row.mean, value),
            points(report, row.difference.get("mean")), interval(row.difference, lambda x: points(report, x)),
        ]
        for row in score_rows(report)
    ]  # fmt: skip


def points(report: Report, value: float | None) -> str:
    """A difference of the headline metric with its sign; of shares in points."""
    share = report["metrics"][report["headline"]]["unit"] == "%"
    return "-" if value is None else f"{100 * value:+.2f}" if share else f"{value:+.4g}"


def interval(told: Mapping[str, Any], form: Callable[[float], str]) -> str:
    """``low to high``."""
    return "-" if told.get("low") is None else f"{form(told['low'])} to {form(told['high'])}"


def latency_rows(report: Report) -> Table | None:
    """Header and cells of each stage's time over the baseline's, by batch; None where it was not measured."""
    timed = [stage for stage in report["stages"] if stage.get("latency")]
    if not timed:
        return None
    header, cells = ["stage"], [[stage["name"]] for stage in timed]
    for batch in timed[-1]["latency"]:
        header += [f"x at {batch}", f"95% at {batch}"]
        for line, stage in zip(cells, timed, strict=True):
            at = stage["latency"].get(batch) or {}
            line += [f"{at['ratio']:.2f}" if at.get("ratio") else "-", interval(at, "{:.2f}".format)]
    return header, cells


def class_names(report: Report) -> list[str]:
    """The names of the classes of the confusion matrices."""
    confusion = report["confusion"]
    return [str(name) for name in confusion.get("names") or confusion["labels"]]


def class_rows(report: Report) -> Table | None:
    """Header and cells of each class: examples, share answered right before and after, answers that changed."""
    confusion = report.get("confusion")
    if not confusion:
        return None
    changed = confusion.get("changed")
    header = ["class", "examples", "right before", "right after", "change, points"]
    header += ["right to wrong", "wrong to right"] if changed else []
    cells = []
    for k, name in enumerate(class_names(report)):
        total = sum(confusion["baseline"][k])
        right = [confusion[key][k][k] / total if total else math.nan for key in ("baseline", "final")]
        cells.append([name, f"{total:,}", *("-" if math.isnan(share) else f"{share:.1%}" for share in right)])
        cells[-1].append(f"{100 * (right[1] - right[0]):+.1f}" if total else "-")
        cells[-1] += [f"{changed[k][way]:,}" for way in ("lost", "won")] if changed else []
    return header, cells
