"""What a run says, as files: ``report.json``, ``report.html``, ``report.md`` and plots; and a table in plain text.

``report.json``, schema 4. What a run does not have is absent or null.

- ``config_name``: the config file's stem. ``model``, ``data``, ``title``: strings. ``seed``, ``devices``, ``versions``,
  ``seconds``.
- ``metrics``: metric -> ``{"unit", "better"}``; ``headline``: the metric that stands for all.
- ``baseline`` and ``stages``, of the first fold, whose artifact is written: ``name``, ``metrics`` on the data by which stages
  are compared, ``test`` (of the first and the last, where the former are of validation data), ``params``, ``nonzero``,
  ``bytes``, ``resident_bytes``, ``ratio``, ``bits_per_weight``, ``macs`` for one example, ``leaves``, ``facts`` of methods,
  and ``latency``: batch -> ``{"ms", "ratio", "low", "high"}``, the median, and the paired ratio to the baseline's with its
  95 % interval (``cost.latency``).
- each of ``leaves``: ``path``, ``shape``, ``format``, ``size``, ``nonzero``, ``bits`` a weight, ``bytes``, ``share`` of all
  bytes, ``min``, ``max``; ``macs`` for one example of the sites that read it; ``stage``, where it got its format; ``alone``,
  by how much the loss rises where this leaf alone of the baseline is compressed as at the end, without training.
- ``folds``: one entry a fold, or one (``folds.fold_entry``); ``summary``: means and paired differences (``folds.summary``);
  ``cross_validation``: ``folds``, ``examples``, and ``baseline``, ``final``, ``control`` pooled over the test data of all.
- ``control``: the equal-training control's ``metrics`` and ``test``; null where none was run. ``teacher``: ``metrics``,
  ``params``.
- ``confusion``, for classification with at most 100 classes, over the test data of all folds: ``labels``, ``baseline`` and
  ``final`` (rows: true class), ``changed``: by class ``{"label", "lost", "won"}``, the examples that went right -> wrong and
  wrong -> right.
- ``history``: ``{"stage", "step", "epoch", "metrics", "valid"}`` by stretch of training; ``valid`` at the ends of epochs,
  where there is validation data. ``histograms`` of weights, ``artifact``, ``skipped``: ``{"path", "reason"}``.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

from jaxopt_nn.core import text_table
from jaxopt_nn.core.files import write_file
from jaxopt_nn.reporting import page, plots
from jaxopt_nn.reporting.rows import class_rows, fold_rows, latency_rows
from jaxopt_nn.reporting.tables import (
    LEAF_LEGEND,
    LEGEND,
    Table,
    circumstances,
    fact_tables,
    headline,
    json_text,
    last,
    leaf_rows,
    rows,
    sentences,
)

SCHEMA = 4
#: What a run makes in its directory; the first of the files is the artifact.
FOLDERS = ("checkpoints", "tensorboard")
NETWORK = "network.jn"
FILES = (NETWORK, "report.html", "report.json", "report.md", *plots.PLOTS)


def markdown(report: dict[str, Any], images: Collection[str] = ()) -> str:
    """The report as Markdown, in the page's order; ``images`` are the names of those plots that lie beside it."""
    parts = [f"# {report.get('title') or 'Compression report'}", "", headline(report), ""]
    parts += [f"- {sentence}" for sentence in [*sentences(report), circumstances(report)]]
    parts += ["", "## Stages", "", *text_table.markdown(*rows(report)), "", LEGEND, ""]
    if not has_matplotlib():
        parts += ["No plot: matplotlib is not installed.", ""]
    parts += [*_plots(images, "metric_bytes.png"), *_part("Times over the baseline's, by batch", latency_rows(report))]
    parts += _part("All folds", fold_rows(report))
    parts += _part(f"By layer, after {last(report)['name']}", leaf_rows(last(report)), LEAF_LEGEND)
    parts += [*_plots(images, "leaves.png", "weights.png"), *_part("By class", class_rows(report))]
    parts += _plots(images, "training.png", "gradients.png")
    for name, note, table in fact_tables(report):
        parts += _part(name, table, note)
    listed = [[s["path"], s["reason"]] for s in report["skipped"]]
    return "\n".join([*parts, *_part("Left alone, or not used as packed", (["path", "reason"], listed))])


def _part(title: str, table: Table | None, note: str = "") -> list[str]:
    """A table with its heading; nothing of an empty one."""
    return [f"## {title}", "", *text_table.markdown(*table), "", *([note, ""] if note else [])] if table and table[1] else []


def _plots(images: Collection[str], *names: str) -> list[str]:
    shown = [(name, plots.PLOTS[name]) for name in names if name in images]
    return [line for name, plot in shown for line in (f"![{plot.title}]({name})", "", plot.caption, "")]


def has_matplotlib() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def write(report: dict[str, Any], workdir: Path) -> None:
    """Writes the plots, ``report.html``, ``report.md`` and, last, ``report.json``; each file is whole or not there.

    An older ``report.json`` goes first, and plots that this report hasn't: where a ``report.json`` stands, the other
    files belong to it. A number that is NaN or Inf is null in ``report.json``, and "nan" or "inf" elsewhere.

    Raises:
      TypeError, ValueError: the report can't be kept as JSON; nothing is written or removed.
      OSError: the disk is full, or the place can't be written.
    """
    text = json_text(_finite(report)) + "\n"
    images = plots.images(report) if has_matplotlib() else {}
    words = {"report.html": page.page(report), "report.md": markdown(report, images), "report.json": text}
    (workdir / "report.json").unlink(missing_ok=True)
    for name in plots.PLOTS.keys() - images.keys():
        (workdir / name).unlink(missing_ok=True)
    for name, picture in images.items():
        write_file(workdir / name, picture)
    for name, said in words.items():
        write_file(workdir / name, said.encode(errors="replace"))


def _finite(value: Any) -> Any:
    """The report with None for each number that JSON can't keep; its config is left as it is."""
    if isinstance(value, dict):
        return {key: held if key == "config" else _finite(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(held) for held in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
