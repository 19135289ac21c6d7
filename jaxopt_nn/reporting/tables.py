"""What a report says in rows and sentences, for whatever shows it: terminal, Markdown, HTML."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Table = tuple[list[str], list[list[str]]]
Columns = dict[str, Callable[[dict[str, Any]], str]]

#: Column of the table of stages, behind those of the metrics -> what it says of an entry.
COLUMNS: Columns = {
    "nonzero": lambda e: f"{e['nonzero'] / max(e['params'], 1):.1%}",
    "bytes": lambda e: f"{e['bytes']:,}",
    "resident": lambda e: f"{e['resident_bytes']:,}",
    "ratio": lambda e: f"{e['ratio']:.2f}x",
    "bits/w": lambda e: f"{e['bits_per_weight']:.2f}",
}
#: Column of the table of leaves -> what it says of a leaf.
LEAF_COLUMNS: Columns = {
    "path": lambda e: e["path"],
    "shape": lambda e: " x ".join(map(str, e["shape"])) or "scalar",
    "format": lambda e: e["format"],
    "bits/w": lambda e: f"{e['bits']:.2f}",
    "nonzero": lambda e: f"{e['nonzero'] / e['size']:.1%}" if e["size"] else "-",
    "bytes": lambda e: f"{e['bytes']:,}",
    "min": lambda e: "-" if e["min"] is None else f"{e['min']:.3g}",
    "max": lambda e: "-" if e["max"] is None else f"{e['max']:.3g}",
}
#: What the columns of the table of stages mean.
LEGEND = (
    "bytes: everything stored; resident: the form that the backend runs; ratio: the baseline's float32 bytes over "
    "bytes; bits/w: bits over the baseline's parameters; ms@n: median latency of a batch of n"
)


#: Medians whose ratio is below this, or above its reciprocal, are not told apart: those of equal programs, timed in turns on
#: two busy cores, differed by up to a quarter. A report keeps medians only.
NOISE = 1.25


def entries(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The entries of the baseline and of the stages."""
    return [report["baseline"], *report["stages"]]


def last(report: dict[str, Any]) -> dict[str, Any]:
    """The entry of the last stage."""
    return entries(report)[-1]


def scores(report: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The metrics of the baseline and after the last stage: over all folds where there are several, of the test data."""
    if cv := report.get("cross_validation"):
        return cv["baseline"], cv["final"]
    before, after = report["baseline"], last(report)
    return before.get("test", before["metrics"]), after.get("test", after["metrics"])


def shown(report: dict[str, Any], name: str, value: float | None) -> str:
    """A metric's value: a share times 100, any other number with four digits."""
    if value is None or not math.isfinite(value):
        return "-" if value is None else str(value)
    return f"{value:.2%}" if report["metrics"][name]["unit"] == "%" else f"{value:.4g}"


def better_by(report: dict[str, Any], before: dict[str, Any], after: dict[str, Any], name: str = "") -> float | None:
    """By how much a metric (the headline if not named) is better after than before: in points for a share."""
    name = name or report["headline"]
    a, b = before.get(name), after.get(name)
    if a is None or b is None or not (math.isfinite(a) and math.isfinite(b)):
        return None
    kind = report["metrics"][name]
    return (b - a) * (1 if kind["better"] == "higher" else -1) * (100 if kind["unit"] == "%" else 1)


def unit_of(report: dict[str, Any], name: str) -> str:
    """The unit of a metric's differences."""
    unit = report["metrics"][name]["unit"]
    return "points" if unit == "%" else unit


def rows(report: dict[str, Any], without: Sequence[str] = ()) -> Table:
    """Header and cells of the table of baseline and stages: name, metrics, sizes, latencies."""
    columns: Columns = {"stage": lambda e: e["name"]}
    for name in report["metrics"]:
        if name not in without:
            columns[name] = functools.partial(_metric, report, name)
    columns |= COLUMNS
    for batch in report["baseline"]["latency_ms"]:
        columns[f"ms@{batch}"] = functools.partial(_latency, batch=batch)
    return list(columns), [[cell(entry) for cell in columns.values()] for entry in entries(report)]


def _metric(report: dict[str, Any], name: str, entry: dict[str, Any]) -> str:
    return shown(report, name, entry["metrics"].get(name))


def _latency(entry: dict[str, Any], batch: str) -> str:
    return f"{entry['latency_ms'][batch]:.3g}"


def leaf_rows(entry: dict[str, Any]) -> Table:
    """Header and cells of the table of a stage's leaves."""
    return list(LEAF_COLUMNS), [[cell(leaf) for cell in LEAF_COLUMNS.values()] for leaf in entry.get("leaves", ())]


def fact_tables(report: dict[str, Any]) -> list[tuple[str, str, Table]]:
    """``(title, note, table)`` of what the stages' methods tell; the first column is the stage."""
    found: dict[tuple[str, str], Table] = {}
    for entry in report["stages"]:
        for fact in entry.get("facts", ()):
            _, cells = found.setdefault((fact["title"], fact["note"]), (["stage", *fact["header"]], []))
            cells += [[entry["name"], *(x if isinstance(x, str) else f"{x:.4g}" for x in line)] for line in fact["cells"]]
    return [(title, note, table) for (title, note), table in found.items()]


def text(report: dict[str, Any]) -> str:
    """The table in plain text, narrow enough for a terminal, and what the table does not say."""
    header, cells = rows(report, without=but_headline(report))
    return "\n".join([*_aligned([header, *cells]), *sentences(report)])


def but_headline(report: dict[str, Any]) -> list[str]:
    """Metrics that a narrow table leaves out: the loss, where another one stands for all."""
    return [] if report["headline"] == "loss" else ["loss"]


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]


def headline(report: dict[str, Any]) -> str:
    """What was gained and what it cost, in one sentence; metrics over all folds where there are several."""
    ratio, name = last(report)["ratio"], report["headline"]
    gain = f"{ratio:.1f}x smaller than float32" if ratio >= 1.05 else "Not smaller than float32"
    size = f"{report['baseline']['bytes']:,} bytes before, {last(report)['bytes']:,} after"
    before, after = scores(report)
    cv = report.get("cross_validation")
    over = f" over {cv['folds']} folds" if cv else ""
    each = [shown(report, name, numbers.get(name)) for numbers in (before, after)]
    return f"{gain}: {size}; {name}{over} {each[0]} before, {each[1]} after, {_change(report, before, after)}."


def _change(report: dict[str, Any], before: dict[str, Any], after: dict[str, Any]) -> str:
    name = report["headline"]
    change = better_by(report, before, after)
    if change is None:
        return "not to be compared"
    share = report["metrics"][name]["unit"] == "%"
    size = f"{abs(change):.2f}" if share else f"{abs(change):.4g}"
    if abs(change) < (0.005 if share else 1e-9):
        return "nothing lost"
    return f"{size} {unit_of(report, name)} {'gained' if change > 0 else 'lost'}".replace("  ", " ")


def sentences(report: dict[str, Any]) -> list[str]:
    """What the table does not say."""
    name = report["headline"]
    out = [*(f"warning: {said}" for said in report.get("warnings", ())), *_speed(report)]
    if "test" in last(report):
        before, after = (shown(report, name, numbers.get(name)) for numbers in scores(report))
        out.append(f"the table is of the validation data; on the test data, {name} {before} before, {after} after")
    if artifact := report["artifact"]:
        out.append(
            f"artifact: {artifact['bytes']:,} bytes on disk, {_sized(artifact['bytes'], report['baseline']['bytes'])} the "
            f"baseline's arrays; read back, its {name} is {shown(report, name, artifact['metrics_reloaded'].get(name))}"
        )
    if teacher := report.get("teacher"):
        params = teacher["params"]
        out.append(
            f"teacher: {name} {shown(report, name, teacher['metrics'].get(name))}, {params:,} parameters, "
            f"{_times(params, report['baseline']['params'])}"
        )
    if control := report.get("control"):
        found = (report.get("cross_validation") or {}).get("control") or control.get("test", control["metrics"])
        without, within = (shown(report, name, numbers.get(name)) for numbers in (found, scores(report)[1]))
        out.append(f"control: trained as long in float, without the recipe's methods, {name} is {without}; with them {within}")
    if cv := report.get("cross_validation"):
        change, each = better_by(report, cv["baseline"], cv["final"]), cv["of_folds"]["final"]
        of_folds: list[float] = [value for fold in each if (value := fold.get(name)) is not None]
        lost = "" if change is None else f", {_lost(report, change)}"
        out.append(
            f"cross-validation: {cv['folds']} folds, {cv['examples']:,} test examples; baseline "
            f"{shown(report, name, cv['baseline'].get(name))}, final {shown(report, name, cv['final'].get(name))}{lost}"
        )
        if of_folds:
            least, most = (shown(report, name, end(of_folds)) for end in (min, max))
            out.append(f"of single folds, {name} ends between {least} and {most}")
    return out


def _lost(report: dict[str, Any], change: float) -> str:
    share = report["metrics"][report["headline"]]["unit"] == "%"
    return f"lost points {-change:.2f}" if share else f"{'better' if change >= 0 else 'worse'} by {abs(change):.4g}"


def _sized(size: int, other: int) -> str:
    """``8.00x smaller than``, ``1.14x larger than`` or ``as large as`` another number of bytes."""
    if abs(size / other - 1) < 0.005:
        return "as large as"
    return f"{other / size:.2f}x smaller than" if size < other else f"{size / other:.2f}x larger than"


def _times(params: int, own: int) -> str:
    """How many parameters a teacher has, by those of its student."""
    if abs(params / max(own, 1) - 1) < 0.05:
        return "as many as the student"
    return (
        f"{params / max(own, 1):.1f} times as many"
        if params > own
        else f"the student has {own / max(params, 1):.1f} times as many"
    )


def _speed(report: dict[str, Any]) -> list[str]:
    """The last stage's time over the baseline's at every batch, and a plain word where it is slower at some and faster at
    none; nothing where latency was not measured.
    """
    before, after = report["baseline"]["latency_ms"], last(report)["latency_ms"]
    ratios = {batch: after[batch] / before[batch] for batch in before}
    if not ratios:
        return []
    said = ", ".join(f"{ratio:.2f}x at {batch}" for batch, ratio in ratios.items())
    alike = [batch for batch, ratio in ratios.items() if 1 / NOISE < ratio < NOISE]
    which = "all" if len(alike) == len(ratios) else f"at {', '.join(alike)}"
    doubt = f" ({which} within the noise of medians)" if alike else ""
    lead = ""
    if max(ratios.values()) >= NOISE and min(ratios.values()) > 1 / NOISE:
        smaller = last(report)["bytes"] < report["baseline"]["bytes"]
        lead = f"{'smaller, ' if smaller else ''}not faster, on this backend; "
    return [f"{lead}time over the baseline's, by batch: {said}{doubt}"]


def circumstances(report: dict[str, Any]) -> str:
    """Seed, devices and versions in one line."""
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return f"seed {report['seed']}; {', '.join(sorted(set(report['devices'])))}; {versions}"


def human_bytes(value: float) -> str:
    """``12500 -> "12.5 kB"`` (powers of 1000)."""
    power = min(int(math.log10(max(value, 1)) // 3), 3)
    return f"{value / 1000**power:.3g} {('B', 'kB', 'MB', 'GB')[power]}"


def json_text(value: Any) -> str:
    """Indented JSON.

    Raises:
      TypeError: it holds what JSON can't keep.
      ValueError: it holds NaN or Inf.
    """
    return json.dumps(value, indent=2, allow_nan=False, default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"config: {type(value).__name__} {value!r} can't be kept as JSON")
