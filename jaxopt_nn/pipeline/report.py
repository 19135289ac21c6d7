"""What a run says: ``report.json``, ``report.md``, a table in plain text, a plot."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

SCHEMA = 1
#: Column of a table -> what it says of an entry.
COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "stage": lambda e: e["name"],
    "accuracy": lambda e: f"{e['accuracy']:.2%}",
    "loss": lambda e: f"{e['loss']:.4f}",
    "nonzero": lambda e: f"{e['nonzero'] / e['params']:.1%}",
    "bytes": lambda e: f"{e['bytes']:,}",
    "resident": lambda e: f"{e['resident_bytes']:,}",
    "ratio": lambda e: f"{e['ratio']:.2f}x",
    "bits/w": lambda e: f"{e['bits_per_weight']:.2f}",
}


def rows(report: dict[str, Any], without: Sequence[str] = ()) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the table of baseline and stages."""
    entries = [report["baseline"], *report["stages"]]
    columns = {name: cell for name, cell in COLUMNS.items() if name not in without}
    for batch in entries[0]["latency_ms"]:
        columns[f"ms@{batch}"] = functools.partial(_latency, batch=batch)
    return list(columns), [[cell(entry) for cell in columns.values()] for entry in entries]


def _latency(entry: dict[str, Any], batch: str) -> str:
    return f"{entry['latency_ms'][batch]:.3g}"


def table(report: dict[str, Any]) -> str:
    """The table in plain text, narrow enough for a terminal, and what the table does not say."""
    header, cells = rows(report, without=["loss"])
    return "\n".join([*_aligned([header, *cells]), *sentences(report)])


def sentences(report: dict[str, Any]) -> list[str]:
    """What the table does not say."""
    out = _speed(report)
    if artifact := report["artifact"]:
        smaller = report["baseline"]["bytes"] / artifact["bytes"]
        out.append(
            f"artifact: {artifact['bytes']:,} bytes on disk, {smaller:.2f}x smaller than the baseline's arrays; "
            f"read back, its accuracy is {artifact['accuracy_reloaded']:.2%}"
        )
    if cv := report.get("cross_validation"):
        out.append(
            f"cross-validation: {cv['folds']} folds, {cv['test_images']:,} test images; baseline "
            f"{cv['baseline_accuracy']:.2%}, final {cv['final_accuracy']:.2%}, lost points {cv['lost_points']:.2f}"
        )
    return out


def _speed(report: dict[str, Any]) -> list[str]:
    """A plain word where the last stage is smaller and not faster; none where latency was not measured."""
    before, after = report["baseline"]["latency_ms"], report["stages"][-1]["latency_ms"]
    slower = {n: after[n] / before[n] for n in before if after[n] > 1.02 * before[n]}
    if not slower:
        return []
    ratios = ", ".join(f"{ratio:.2f}x at {n}" for n, ratio in slower.items())
    return [f"smaller, not faster, on this backend; time over the baseline's, by batch: {ratios}"]


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]


def markdown(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    header, cells = rows(report)
    parts = ["# Compression report", "", *_markdown_table(header, cells), ""]
    parts += [f"- {sentence}" for sentence in sentences(report)]
    parts += [f"- seed {report['seed']}; {', '.join(sorted(set(report['devices'])))}; "
              + ", ".join(f"{k} {v}" for k, v in report["versions"].items())]  # fmt: skip
    parts += [
        "- bytes: everything stored; resident: the form that the backend runs; ratio: the baseline's float32 bytes over",
        "  bytes; bits/w: bits over the baseline's parameters; ms@n: median latency of a batch of n",
        "",
        "![accuracy against bytes](accuracy_bytes.png)"
        if has_matplotlib()
        else "No plot: matplotlib is not installed.",
        "",
    ]
    if report["skipped"]:
        listed = [[s["path"], s["reason"]] for s in report["skipped"]]
        parts += ["## Left alone, or not used as packed", "", *_markdown_table(["path", "reason"], listed), ""]
    return "\n".join(parts)


def _markdown_table(header: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    lines = [[cell.replace("|", "\\|") for cell in line] for line in (header, *cells)]
    bars = ["| " + " | ".join(line) + " |" for line in lines]
    return [bars[0], "|" + "|".join(" --- " for _ in header) + "|", *bars[1:]]


def has_matplotlib() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def plot(report: dict[str, Any]) -> bytes:
    """Accuracy against stored bytes over the stages, as PNG. Needs matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    entries = [report["baseline"], *report["stages"]]
    size, accuracy = [e["bytes"] for e in entries], [100 * e["accuracy"] for e in entries]
    figure = Figure(figsize=(7.2, 4.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.axhline(accuracy[0], color="0.7", linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    axes.plot(size, accuracy, color="#4878a8", linewidth=1.5, zorder=2)
    axes.scatter(size[1:], accuracy[1:], s=52, color="#4878a8", edgecolor="white", linewidth=1.2, zorder=3)
    axes.scatter(size[:1], accuracy[:1], s=130, marker="*", color="#c44e52", edgecolor="white", linewidth=0.8, zorder=4)
    low, high = min(accuracy), max(accuracy)
    margin = max(0.45 * (high - low), 0.5)
    axes.set_ylim(low - margin, high + margin)
    axes.set_xlim(max(size) * 1.9, min(size) / 1.9)
    for text, x, y, side in _labels(entries):
        axes.annotate(
            text, (x, y), xytext=(0, 10 * side), textcoords="offset points", fontsize=8, color="0.15", ha="center",
            va="bottom" if side > 0 else "top", linespacing=1.3, zorder=5,
            bbox={"boxstyle": "round,pad=0.25", "facecolor": "white", "edgecolor": "none", "alpha": 0.85},
        )  # fmt: skip
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: human_bytes(v)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(which="major", color="0.93", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("stored bytes (log scale, smaller to the right)")
    axes.set_ylabel("test accuracy, %")
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def _labels(entries: Sequence[dict[str, Any]]) -> list[tuple[str, float, float, int]]:
    """``(text, bytes, accuracy in percent, 1 above or -1 below)``; stages of nearly one size share a label.

    A label stands on the side where its neighbours are not.
    """
    groups: list[list[dict[str, Any]]] = []
    for entry in entries:
        if groups and 0.8 < entry["bytes"] / groups[-1][0]["bytes"] < 1.25:
            groups[-1].append(entry)
        else:
            groups.append([entry])
    middle = [sum(e["accuracy"] for e in group) / len(group) for group in groups]
    out = []
    for i, group in enumerate(groups):
        around = [middle[j] for j in (i - 1, i + 1) if 0 <= j < len(groups)]
        side = 1 if not around or sum(around) / len(around) <= middle[i] else -1
        lines = [f"{e['name']}  {e['accuracy']:.2%}" for e in group]
        lines.append(f"{human_bytes(group[-1]['bytes'])}, {group[-1]['ratio']:.1f}x")
        edge = (max if side > 0 else min)(e["accuracy"] for e in group)
        out.append(("\n".join(lines), group[0]["bytes"], 100 * edge, side))
    return out


def human_bytes(value: float) -> str:
    """``12500 -> "12.5 kB"`` (powers of 1000)."""
    power = min(int(math.log10(max(value, 1)) // 3), 3)
    return f"{value / 1000**power:.3g} {('B', 'kB', 'MB', 'GB')[power]}"


def open_workdir(workdir: str | os.PathLike[str]) -> Path:
    """The directory, made where it is missing.

    Raises:
      OSError: it can't be made or written, said before any work is done.
    """
    path = Path(workdir).absolute()
    probe = path / f".writable-{os.getpid()}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(error.errno, f"workdir can't be written ({error.strerror}); pass another", str(path)) from error
    return path


def write(report: dict[str, Any], workdir: Path) -> None:
    """Writes ``accuracy_bytes.png``, ``report.md`` and, last, ``report.json``; each file is whole or not there.

    An older ``report.json`` goes first: where one stands, the other files belong to it.

    Raises:
      OSError: the disk is full, or the place can't be written.
    """
    text = json.dumps(report, indent=2, allow_nan=False, default=_plain) + "\n"
    (workdir / "report.json").unlink(missing_ok=True)
    files = {"report.md": markdown(report).encode(), "report.json": text.encode()}
    if has_matplotlib():
        files = {"accuracy_bytes.png": plot(report), **files}
    for name, content in files.items():
        write_file(workdir / name, content)


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"config: {type(value).__name__} {value!r} can't be kept as JSON")


def write_file(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all: to a temporary neighbour, which is then renamed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
