"""Compares runs: a leaderboard, score against bytes and latency, and the fields in which their configs differ.

    jaxopt compare RUN RUN ... [--out=FOLDER]

A RUN is a folder that ``jaxopt compress`` has written. ``compare.html`` and ``compare.json`` go into FOLDER, by default
the folder that all runs share. Runs of one config with other seeds count as one setting, with mean and interval. What can't
be read, or has not finished, is listed with the reason.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

from . import common
from .command import start
from .comparison import compared, write
from .summary import score_text, size_text


def run(runs: Sequence[str], out: str = "") -> dict[str, Any]:
    """Compares runs, and writes ``compare.html`` and ``compare.json``.

    Args:
      runs: their folders.
      out: where the files go, made if missing; empty: the folder that all runs share.

    Returns:
      What ``compare.json`` holds (``comparison.compared``).

    Raises:
      ValueError: no run is named, or none of them can be compared; the reason of each is given.
      FileNotFoundError: a folder does not exist.
      OSError: ``out`` can't be written.
    """
    if not runs:
        raise ValueError("no run is named: pass folders that jaxopt compress has written")
    if missing := [folder for folder in runs if not Path(folder).is_dir()]:
        raise FileNotFoundError(f"{', '.join(missing)}: no such folder; pass folders that jaxopt compress has written")
    out = out or shared(runs)
    comparison = compared([Path(folder) for folder in runs], Path(out))
    if not comparison["cells"]:
        reasons = "; ".join(f"{entry['folder']}: {entry['error']}" for entry in comparison["failed"])
        raise ValueError(f"no run can be compared: {reasons}")
    write(comparison, out, "compare")
    return comparison


def shared(runs: Sequence[str]) -> str:
    """The folder that holds all runs."""
    return os.path.commonpath([os.path.dirname(os.path.abspath(folder)) for folder in runs])


def show(comparison: Mapping[str, Any], page: str) -> None:
    """Prints the settings, the best first, what could not be read, and where the page lies."""
    for number, group in enumerate(comparison["groups"]):
        sign = -1 if group["metric"]["better"] == "higher" else 1
        cells = sorted((c for c in comparison["cells"] if c["group"] == number), key=lambda c: sign * c["score"]["mean"])
        header = ["setting", "n", f"{group['metric']['name']} on {group['data']}", "bytes", "ratio", "file", "best in"]
        lines = []
        for cell in cells:
            score = score_text(cell["score"]["mean"], cell["score"]["std"], cell["metric"])
            sizes = [size_text(cell, "bytes"), f"{cell['ratio']['mean']:.2f}x", size_text(cell, "file")]
            lines.append([cell["name"], str(cell["n"]), score, *sizes, ", ".join(cell["front"]) or "-"])
        common.show(header, lines)
    for entry in comparison["failed"]:
        print(f"not compared: {entry['folder']}: {entry['error']}")
    print(f"page: {page}")


def define_flags() -> None:
    flags.DEFINE_string("out", "", "Where the page goes; by default the folder that all runs share.")


def main(argv: Sequence[str]) -> None:
    flag = common.flag_values(argv[:1])
    if len(argv) < 2:
        raise app.UsageError("name the runs: jaxopt compare RUN RUN ...")
    with common.plain_errors():
        comparison = run(argv[1:], flag.out)
    show(comparison, os.path.join(flag.out or shared(argv[1:]), "compare.html"))


if __name__ == "__main__":
    start(define_flags, main, __doc__)
