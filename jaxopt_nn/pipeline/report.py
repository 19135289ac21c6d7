"""What a run says, as files: ``report.json``, ``report.html``, ``report.md`` and plots; and a table in plain text."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from jaxopt_nn.pipeline import html, plots
from jaxopt_nn.pipeline.tables import (
    LEGEND,
    circumstances,
    clipping_rows,
    headline,
    json_text,
    last,
    leaf_rows,
    rows,
    sentences,
)

SCHEMA = 2
MOVE = "move it away, or pass another --workdir"
#: What a run makes in its directory.
FOLDERS = ("artifact", "checkpoints", "tensorboard")
FILES = ("report.html", "report.json", "report.md", *plots.PLOTS)


def table(report: dict[str, Any]) -> str:
    """The table in plain text, narrow enough for a terminal, and what the table does not say."""
    header, cells = rows(report, without=["loss"])
    return "\n".join([*_aligned([header, *cells]), *sentences(report)])


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]


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
    header, cells = clipping_rows(report)
    if cells:
        parts += ["## Clipped weights, when the stage began", "", *_markdown_table(header, cells), ""]
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


def open_workdir(workdir: str | os.PathLike[str]) -> Path:
    """The directory, made where it is missing.

    Raises:
      ValueError: an empty name.
      OSError: it can't be made or written, or something else stands in the place of what a run makes there.
    """
    if not os.fspath(workdir):
        raise ValueError("workdir='': pass the name of a directory; '.' is the current one")
    path = Path(workdir).absolute()
    probe = path / f".writable-{os.getpid()}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(error.errno, f"workdir can't be written ({error.strerror}); pass another", str(path)) from error
    for name in (*FOLDERS, *FILES):
        check_place(path / name, "folder" if name in FOLDERS else "file")
    artifact = path / "artifact"
    if artifact.exists() and not (artifact / "manifest.json").is_file():
        raise OSError(f"{artifact}: a run writes its artifact there, and this is none (no manifest.json in it); {MOVE}")
    return path


def check_place(path: Path, kind: str) -> None:
    """Raises OSError where something else than a ``"folder"`` or ``"file"`` stands at ``path``."""
    if path.exists() and path.is_dir() != (kind == "folder"):
        raise OSError(f"{path}: a run writes a {kind} of that name, and something else stands there; {MOVE}")


def write(report: dict[str, Any], workdir: Path) -> None:
    """Writes the plots, ``report.html``, ``report.md`` and, last, ``report.json``; each file is whole or not there.

    An older ``report.json`` goes first, and plots that this report hasn't: where a ``report.json`` stands, the other
    files belong to it. A test loss that is NaN or Inf is null in ``report.json``, and "nan" or "inf" elsewhere.

    Raises:
      TypeError, ValueError: the report can't be kept as JSON; nothing is written or removed.
      OSError: the disk is full, or the place can't be written.
    """
    scores = {key: _finite(report[key]) for key in ("baseline", "teacher", "cross_validation") if report.get(key)}
    text = json_text({**report, **scores, "stages": [_finite(entry) for entry in report["stages"]]}) + "\n"
    images = plots.images(report) if has_matplotlib() else {}
    words = {"report.html": html.page(report, images), "report.md": markdown(report, images), "report.json": text}
    (workdir / "report.json").unlink(missing_ok=True)
    for name in plots.PLOTS.keys() - images.keys():
        (workdir / name).unlink(missing_ok=True)
    for name, picture in images.items():
        write_file(workdir / name, picture)
    for name, said in words.items():
        write_file(workdir / name, said.encode(errors="replace"))


def _finite(scores: dict[str, Any]) -> dict[str, Any]:
    """Scores with None for each loss that JSON can't keep."""
    return {k: None if k.endswith("loss") and not math.isfinite(v) else v for k, v in scores.items()}


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
