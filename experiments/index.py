"""Lists and compares all runs below a folder.

    jaxopt index FOLDER

Finds every folder below FOLDER in which ``jaxopt compress`` or ``jaxopt sweep`` has run, and writes ``index.html``
and ``index.json`` into FOLDER: a leaderboard with filters, score against bytes and latency, and the fields in which configs
differ. Runs that can't be read or have not finished are listed with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app

from . import common
from .command import start
from .compare import show
from .comparison import compared, runs_under, write


def run(folder: str) -> dict[str, Any]:
    """Compares all runs below a folder, and writes ``index.html`` and ``index.json`` there.

    Returns:
      What ``index.json`` holds (``comparison.compared``).

    Raises:
      ValueError: there is no run below it.
      OSError: it can't be written.
    """
    found = runs_under(Path(folder))
    if not found:
        raise ValueError(f"{folder}: no run lies below it: no folder with a report.json or checkpoints")
    comparison = {**compared(found, Path(folder)), "title": f"Runs in {Path(folder).resolve().name}"}
    write(comparison, folder, "index")
    return comparison


def define_flags() -> None:
    """None."""


def main(argv: Sequence[str]) -> None:
    common.flag_values(argv[:1])
    if len(argv) != 2:
        raise app.UsageError("name one folder: jaxopt index FOLDER")
    with common.plain_errors():
        comparison = run(argv[1])
    show(comparison, str(Path(argv[1]) / "index.html"))


if __name__ == "__main__":
    start(define_flags, main, __doc__)
