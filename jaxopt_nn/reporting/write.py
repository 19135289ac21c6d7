"""What a run says, as files: ``report.json``, ``report.html``, ``report.md`` and plots; and a table in plain text."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from jaxopt_nn.core.files import write_file
from jaxopt_nn.reporting import page, plots
from jaxopt_nn.reporting.tables import (
    LEGEND,
    circumstances,
    fact_tables,
    headline,
    json_text,
    last,
    leaf_rows,
    rows,
    sentences,
)

SCHEMA = 3
#: What a run makes in its directory.
FOLDERS = ("artifact", "checkpoints", "tensorboard")
FILES = ("report.html", "report.json", "report.md", *plots.PLOTS)


def markdown(report: dict[str, Any], images: Collection[str] = ()) -> str:
    """The report as Markdown; ``images`` are the names of those plots that lie beside it."""
    parts = ["# Compression report", "", headline(report), "", *_markdown_table(*rows(report)), ""]
    parts += [f"- {sentence}" for sentence in [*sentences(report), circumstances(report), LEGEND]]
    parts.append("")
    if not has_matplotlib():
        parts += ["No plot: matplotlib is not installed.", ""]
    for name in images:
        parts += [f"![{plots.PLOTS[name].title}]({name})", "", plots.PLOTS[name].caption, ""]
    header, cells = leaf_rows(last(report))
    if cells:
        parts += ["## Leaves after the last stage", "", *_markdown_table(header, cells), ""]
    for title, note, (header, cells) in fact_tables(report):
        parts += [f"## {title}", "", note, "", *_markdown_table(header, cells), ""]
    if report["skipped"]:
        listed = [[s["path"], s["reason"]] for s in report["skipped"]]
        parts += ["## Left alone, or not used as packed", "", *_markdown_table(["path", "reason"], listed), ""]
    return "\n".join(parts)


def _markdown_table(header: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    lines = [[" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in (header, *cells)]
    bars = ["| " + " | ".join(line) + " |" for line in lines]
    return [bars[0], "|" + "|".join(" --- " for _ in header) + "|", *bars[1:]]


def has_matplotlib() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def write(report: dict[str, Any], workdir: Path) -> None:
    """Writes the plots, ``report.html``, ``report.md`` and, last, ``report.json``; each file is whole or not there.

    An older ``report.json`` goes first, and plots that this report hasn't: where a ``report.json`` stands, the other
    files belong to it. A test loss that is NaN or Inf is null in ``report.json``, and "nan" or "inf" elsewhere.

    Raises:
      TypeError, ValueError: the report can't be kept as JSON; nothing is written or removed.
      OSError: the disk is full, or the place can't be written.
    """
    text = json_text(_finite(report)) + "\n"
    images = plots.images(report) if has_matplotlib() else {}
    words = {"report.html": page.page(report, images), "report.md": markdown(report, images), "report.json": text}
    (workdir / "report.json").unlink(missing_ok=True)
    for name in plots.PLOTS.keys() - images.keys():
        (workdir / name).unlink(missing_ok=True)
    for name, picture in images.items():
        write_file(workdir / name, picture)
    for name, said in words.items():
        write_file(workdir / name, said.encode(errors="replace"))


def _finite(report: dict[str, Any]) -> dict[str, Any]:
    """The report with None for each metric that JSON can't keep."""
    plain = lambda numbers: {k: x if x is None or math.isfinite(x) else None for k, x in numbers.items()}
    metrics = lambda held: {**held, **{k: plain(held[k]) for k in ("metrics", "test") if k in held}}
    found = {**report, "baseline": metrics(report["baseline"]), "stages": list(map(metrics, report["stages"]))}
    found |= {name: metrics(report[name]) for name in ("teacher", "control") if report.get(name)}
    if report["artifact"]:
        found["artifact"] = {**report["artifact"], "metrics_reloaded": plain(report["artifact"]["metrics_reloaded"])}
    if cv := report.get("cross_validation"):
        folds = {key: list(map(plain, cv["of_folds"][key])) for key in ("baseline", "final")}
        ends = {key: plain(cv[key]) for key in ("baseline", "final", "control") if key in cv}
        found["cross_validation"] = {**cv, **ends, "of_folds": {**cv["of_folds"], **folds}}
    return found
