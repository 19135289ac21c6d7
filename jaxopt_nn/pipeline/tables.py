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

#: Column of the table of stages -> what it says of an entry.
COLUMNS: Columns = {
    "stage": lambda e: e["name"],
    "accuracy": lambda e: f"{e['accuracy']:.2%}",
    "bits/byte": lambda e: f"{bits_per_byte(e):.4f}",
    "loss": lambda e: f"{e['loss']:.4f}",
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
    """``accuracy`` and ``loss`` of the baseline and after the last stage: over all folds where there are several."""
    if cv := report.get("cross_validation"):
        before, after = ({k: cv.get(f"{when}_{k}") for k in ("accuracy", "loss")} for when in ("baseline", "final"))
        return before, after
    return report["baseline"], last(report)


def bits_per_byte(entry: dict[str, Any]) -> float:
    """The loss, in nats for a byte, in bits."""
    return entry["loss"] / math.log(2)


def rows(report: dict[str, Any], without: Sequence[str] = ()) -> Table:
    """Header and cells of the table of baseline and stages."""
    hidden = {*without} | ({"bits/byte"} if report["metric"] != "bits/byte" else set())
    columns = {name: cell for name, cell in COLUMNS.items() if name not in hidden}
    for batch in report["baseline"]["latency_ms"]:
        columns[f"ms@{batch}"] = functools.partial(_latency, batch=batch)
    return list(columns), [[cell(entry) for cell in columns.values()] for entry in entries(report)]


def _latency(entry: dict[str, Any], batch: str) -> str:
    return f"{entry['latency_ms'][batch]:.3g}"


def leaf_rows(entry: dict[str, Any]) -> Table:
    """Header and cells of the table of a stage's leaves."""
    return list(LEAF_COLUMNS), [[cell(leaf) for cell in LEAF_COLUMNS.values()] for leaf in entry.get("leaves", ())]


def clipping_rows(report: dict[str, Any]) -> Table:
    """Header and cells of the table of what each clipping stage clipped when it began."""
    cells = [
        [entry["name"], row["path"], *(f"{row[k]:.4g}" for k in ("min", "max", "lo", "hi")), f"{row['clipped']:.3%}"]
        for entry in report["stages"]
        for row in entry.get("clipping", ())
    ]
    return ["stage", "path", "min", "max", "lo", "hi", "clipped"], cells


def headline(report: dict[str, Any]) -> str:
    """What was gained and what it cost, in one sentence; accuracies over all folds where there are several."""
    ratio = last(report)["ratio"]
    gain = f"{ratio:.1f}x smaller than float32" if ratio >= 1.05 else "Not smaller than float32"
    size = f"{report['baseline']['bytes']:,} bytes before, {last(report)['bytes']:,} after"
    before, after = scores(report)
    cv = report.get("cross_validation")
    over = f" over {cv['folds']} folds" if cv else ""
    points = 100 * (before["accuracy"] - after["accuracy"])
    change = (
        f"{abs(points):.2f} points {'lost' if points > 0 else 'gained'}" if abs(points) >= 0.005 else "nothing lost"
    )
    said = f"{gain}: {size}; accuracy{over} {before['accuracy']:.2%} before, {after['accuracy']:.2%} after, {change}"
    if report["metric"] == "bits/byte":
        said += f"; {bits_per_byte(before):.4f} bits a byte before, {bits_per_byte(after):.4f} after"
    return f"{said}."


def sentences(report: dict[str, Any]) -> list[str]:
    """What the table does not say."""
    out = _speed(report)
    if artifact := report["artifact"]:
        out.append(
            f"artifact: {artifact['bytes']:,} bytes on disk, {_sized(artifact['bytes'], report['baseline']['bytes'])} the "
            f"baseline's arrays; read back, its accuracy is {artifact['accuracy_reloaded']:.2%}"
        )
    if teacher := report.get("teacher"):
        params = teacher["params"]
        out.append(
            f"teacher: accuracy {teacher['accuracy']:.2%}, {params:,} parameters, "
            f"{_times(params, report['baseline']['params'])}"
        )
    if cv := report.get("cross_validation"):
        out.append(
            f"cross-validation: {cv['folds']} folds, {cv['test_images']:,} test images; baseline "
            f"{cv['baseline_accuracy']:.2%}, final {cv['final_accuracy']:.2%}, lost points {cv['lost_points']:.2f}"
        )
    return out


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
