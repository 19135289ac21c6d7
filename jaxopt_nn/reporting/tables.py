"""What a report says in rows and sentences, for whatever shows it: terminal, Markdown, HTML."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxopt_nn.core.text_table import aligned
from jaxopt_nn.reporting import costs

Table = tuple[list[str], list[list[str]]]
Columns = dict[str, Callable[[dict[str, Any]], str]]

#: Column of the table of stages, behind those of the metrics -> what it says of an entry.
COLUMNS: Columns = {
    "nonzero": lambda e: f"{e['nonzero'] / max(e['params'], 1):.1%}",
    "bytes": lambda e: f"{e['bytes']:,}",
    "resident": lambda e: f"{e['resident_bytes']:,}",
    "ratio": lambda e: f"{e['ratio']:.2f}x",
    "bits/w": lambda e: f"{e['bits_per_weight']:.2f}",
    "MACs": lambda e: f"{e['macs']:,}",
}
#: Column of the table of leaves -> what it says of a leaf.
LEAF_COLUMNS: Columns = {
    "path": lambda e: e["path"],
    "shape": lambda e: " x ".join(map(str, e["shape"])) or "scalar",
    "format": lambda e: e["format"],
    "stage": lambda e: e["stage"] or "-",
    "bits/w": lambda e: f"{e['bits']:.2f}",
    "nonzero": lambda e: f"{e['nonzero'] / e['size']:.1%}" if e["size"] else "-",
    "bytes": lambda e: f"{e['bytes']:,}",
    "share": lambda e: f"{e['share']:.1%}",
    "MACs": lambda e: "-" if e["macs"] is None else f"{e['macs']:,}",
    "loss alone": lambda e: "-" if e["alone"] is None else f"{e['alone']:+.3g}",
    "min": lambda e: "-" if e["min"] is None else f"{e['min']:.3g}",
    "max": lambda e: "-" if e["max"] is None else f"{e['max']:.3g}",
}
#: What the columns of the table of stages mean.
LEGEND = (
    "bytes: everything stored; resident: the form that the backend runs; ratio: the baseline's float32 bytes over "
    "bytes; bits/w: bits over the baseline's parameters; MACs: multiply-accumulates for one example; ms@n: median latency of a "
    "batch of n"
)
#: What the columns of the table of leaves mean.
LEAF_LEGEND = (
    "stage: where the leaf got its format; bits/w: everything that is stored for a weight, codes, scales and mask; share: of "
    "all stored bytes; MACs: multiply-accumulates for one example; loss alone: by how much the baseline's loss rises where "
    "this leaf alone is compressed, without training; min, max: of the decoded weights"
)


def entries(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The entries of the baseline and of the stages."""
    return [report["baseline"], *report["stages"]]


def last(report: dict[str, Any]) -> dict[str, Any]:
    """The entry of the last stage."""
    return entries(report)[-1]


def scores(report: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The metrics of the baseline and after the last stage, of the test data: means over all folds where there are several."""
    if over := report.get("summary"):
        before, after = ({m: e["mean"] for m, e in over["test"][end]["metrics"].items()} for end in ("baseline", "final"))
        return before, after
    before, after = report["baseline"], last(report)
    return before.get("test", before["metrics"]), after.get("test", after["metrics"])


def control_scores(report: dict[str, Any]) -> dict[str, Any]:
    """The metrics of the control, of the test data, means over folds as in ``scores``; none where none was run."""
    if over := (report.get("summary") or {}).get("test", {}).get("control"):
        return {m: e["mean"] for m, e in over["metrics"].items()}
    control = report.get("control") or {}
    return control.get("test", control.get("metrics", {}))


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
    for batch in report["baseline"]["latency"]:
        columns[f"ms@{batch}"] = functools.partial(_latency, batch=batch)
    over = report.get("summary")
    means = [over["baseline"], *over["stages"]] if over else [{}] * len(entries(report))
    told = [{**entry, "means": each.get("metrics")} for entry, each in zip(entries(report), means, strict=True)]
    return list(columns), [[cell(entry) for cell in columns.values()] for entry in told]


def _metric(report: dict[str, Any], name: str, entry: dict[str, Any]) -> str:
    if entry["means"] is None:
        return shown(report, name, entry["metrics"].get(name))
    return estimate(report, name, entry["means"].get(name))


def estimate(report: dict[str, Any], name: str, over: dict[str, float] | None) -> str:
    """A metric's mean over folds and half of its interval: ``98.05% ± 0.71``."""
    if over is None:
        return "-"
    half = over["high"] - over["mean"]
    share = report["metrics"][name]["unit"] == "%"
    return f"{shown(report, name, over['mean'])} ± {f'{100 * half:.2f}' if share else f'{half:.2g}'}"


def _latency(entry: dict[str, Any], batch: str) -> str:
    return f"{entry['latency'][batch]['ms']:.3g}"


def leaf_rows(entry: dict[str, Any]) -> Table:
    """Header and cells of the table of a stage's leaves; vectors that were left alone stand in one line, the last."""
    leaves = entry.get("leaves", [])
    alone = [leaf for leaf in leaves if leaf["stage"] is None and not leaf["macs"] and sum(n > 1 for n in leaf["shape"]) < 2]
    if len(alone) > 1:
        leaves = [*(leaf for leaf in leaves if leaf not in alone), _together(alone)]
    empty = {name for name, key in _MEASURED.items() if all(leaf[key] is None for leaf in leaves)}
    header = [name for name in LEAF_COLUMNS if name not in empty]
    return header, [[LEAF_COLUMNS[name](leaf) for name in header] for leaf in leaves]


#: Columns that are there only where some leaf has such a number.
_MEASURED = {"stage": "stage", "MACs": "macs", "loss alone": "alone"}


def _together(leaves: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Several leaves as one."""
    total = {key: sum(leaf[key] for leaf in leaves) for key in ("size", "nonzero", "bytes", "share")}
    bits = 8 * total["bytes"] / max(total["size"], 1)
    ends = [leaf for leaf in leaves if leaf["min"] is not None]
    return {
        **leaves[0], **total, "path": f"{len(leaves)} vectors, {leaves[0]['path']} and others", "shape": [total["size"]],
        "format": ", ".join(dict.fromkeys(leaf["format"] for leaf in leaves)), "bits": bits,
        "min": min((leaf["min"] for leaf in ends), default=None), "max": max((leaf["max"] for leaf in ends), default=None),
    }  # fmt: skip


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
    return "\n".join([*aligned([header, *cells]), *sentences(report)])


def but_headline(report: dict[str, Any]) -> list[str]:
    """Metrics that a narrow table leaves out: the loss, where another one stands for all."""
    return [] if report["headline"] == "loss" else ["loss"]


def headline(report: dict[str, Any]) -> str:
    """What was gained and what it cost, in one sentence; metrics over all folds where there are several."""
    ratio, name = last(report)["ratio"], report["headline"]
    gain = f"{ratio:.1f}x smaller than float32" if ratio >= 1.05 else "Not smaller than float32"
    if told := costs.fastest(report):
        gain = f"{gain} and {told[1]:.1f}x faster at a batch of {told[0]}"
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
    warned = [f"warning: {said}" for said in report.get("warnings", ())]
    others = (_over_folds, _tested, _control, _teacher, costs.bought, costs.speed, _artifact)
    return [*warned, *(sentence for part in others for sentence in part(report))]


def _over_folds(report: dict[str, Any]) -> list[str]:
    """What the table's metrics are means of, what they come to on the test data, and which numbers are of one fold alone."""
    over, cv, name = report.get("summary"), report.get("cross_validation"), report["headline"]
    if not over or not cv:
        return []
    data = "the validation data" if "test" in last(report) else "the test data"
    out = [f"metrics in the table: means over {cv['folds']} folds of {data} ± half of the 95% interval (Student's t)"]
    ends = [over["test"][end]["metrics"].get(name) for end in ("baseline", "final")]
    less = over["test"]["final"]["difference"].get(name)
    before, after = (estimate(report, name, end) for end in ends)
    out.append(f"test data, {cv['examples']:,} examples, each tested once: {name} {before} before, {after} after")
    if less is not None:
        mean, *interval = (_signed(report, name, less[key]) for key in ("mean", "low", "high"))
        unit = f" {unit_of(report, name)}".rstrip()
        out.append(f"after less before, paired by fold: {mean}{unit}, 95% interval {' to '.join(interval)}")
    each = [value for fold in report["folds"] if (value := fold["final"].get(name)) is not None]
    if each:
        out.append(f"of single folds, {name} ends at {', '.join(shown(report, name, value) for value in each)}")
    sizes = [fold["stages"][-1]["bytes"] for fold in report["folds"]]
    varied = f"; over all folds, bytes end between {min(sizes):,} and {max(sizes):,}" if min(sizes) < max(sizes) else ""
    return [*out, f"sizes, times, leaves and artifact are of fold 1{varied}"]


def _signed(report: dict[str, Any], name: str, value: float) -> str:
    """A difference of a metric, in points for a share."""
    return f"{100 * value:+.2f}" if report["metrics"][name]["unit"] == "%" else f"{value:+.4g}"


def _tested(report: dict[str, Any]) -> list[str]:
    """That the table is not of the test data, for one run."""
    if "test" not in last(report) or report.get("summary"):
        return []
    name = report["headline"]
    before, after = (shown(report, name, numbers.get(name)) for numbers in scores(report))
    return [f"the table is of the validation data; on the test data, {name} {before} before, {after} after"]


def _control(report: dict[str, Any]) -> list[str]:
    """What training alone gives; or that nobody knows."""
    name, control = report["headline"], report.get("control")
    stages = {stage["name"] for stage in report["stages"]}
    if not control:
        trained = any(entry["stage"] in stages for entry in report.get("history") or ())
        how = "--config.control=True" if "model" in report["config"] else "control=True"
        return [f"no control was run, so what training alone would give is not known: pass {how}"] if trained else []
    over = (report.get("summary") or {}).get("test", {}).get("control")
    if over:
        without = estimate(report, name, over["metrics"].get(name))
    else:
        without = shown(report, name, control.get("test", control["metrics"]).get(name))
    within = shown(report, name, scores(report)[1].get(name))
    return [f"control: trained as long in float, without the recipe's methods, {name} is {without}; with them {within}"]


def _teacher(report: dict[str, Any]) -> list[str]:
    name, teacher = report["headline"], report.get("teacher")
    if not teacher:
        return []
    params, own = teacher["params"], report["baseline"]["params"]
    metric = shown(report, name, teacher["metrics"].get(name))
    return [f"teacher: {name} {metric}, {params:,} parameters, {_times(params, own)}"]


def _artifact(report: dict[str, Any]) -> list[str]:
    name, artifact = report["headline"], report["artifact"]
    if not artifact:
        return []
    size = _sized(artifact["bytes"], report["baseline"]["bytes"])
    again = shown(report, name, artifact["metrics_reloaded"].get(name))
    fold = " on the test data of fold 1" if report.get("summary") else ""
    stored = f"{artifact['bytes']:,} bytes on disk, {size} the baseline's arrays"
    return [f"artifact: {stored}; read back, its {name}{fold} is {again}"]


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
