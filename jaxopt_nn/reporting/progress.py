"""What a run says while it trains: a bar on a terminal, plain lines elsewhere, and TensorBoard's event files.

The bar needs rich, the event files tensorboardX.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

#: Is told of a stretch of training: the history's entry, with ``steps`` and ``seconds_left`` beside.
Watch = Callable[[dict[str, Any]], None]
#: Least seconds between two plain lines about training.
QUIET = 10.0


class Progress:
    """Listens to training; ``say`` prints a line above the bar.

    Args:
      say: gets lines of text where there is no terminal; None prints.
      events: where TensorBoard's files go, a folder for each stage; None writes none.
    """

    def __init__(self, say: Callable[[str], None] | None = None, events: Path | None = None):
        self._print = say or (lambda line: print(line, flush=True))
        self._events = events
        self._writers: dict[str, Any] = {}
        self._bar: Any = None
        self._task: tuple[str, Any] | None = None
        self._spoke = time.monotonic()

    def say(self, line: str) -> None:
        (self._bar.console.print if self._bar else self._print)(line)

    def watch(self, where: str = "", record: bool = True) -> Watch:
        """A listener; ``where`` ("fold 2") stands before the stage's name, ``record`` writes event files."""

        def told(entry: dict[str, Any]) -> None:
            if record and self._events:
                self._record(entry)
            name = f"{where} {entry['stage']}".strip()
            if self._bar:
                self._advance(name, entry)
            elif time.monotonic() - self._spoke > QUIET:
                self._spoke = time.monotonic()
                self._print(f"{name}: step {entry['step']:,} of {entry['steps']:,}, {_text(entry)}{_left(entry)}")

        return told

    @contextlib.contextmanager
    def live(self) -> Iterator[Progress]:
        """Shows a bar where the output is a terminal; closes the event files at the end."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._close)
            if sys.stdout.isatty() and importlib.util.find_spec("rich"):
                self._bar = stack.enter_context(_bar())
                stack.callback(lambda: setattr(self, "_bar", None))
            yield self

    def _advance(self, name: str, entry: dict[str, Any]) -> None:
        if self._task is None or self._task[0] != name:
            if self._task is not None:
                self._bar.remove_task(self._task[1])
            self._task = (name, self._bar.add_task(name, total=entry["steps"], said=""))
        self._bar.update(self._task[1], completed=entry["step"], said=_text(entry))

    def _record(self, entry: dict[str, Any]) -> None:
        from tensorboardX import SummaryWriter

        stage, step = entry["stage"], entry["step"]
        if stage not in self._writers:
            # what a killed run wrote beyond its last position is written again
            self._writers[stage] = SummaryWriter(str(self._events / stage), purge_step=step)
        writer = self._writers[stage]
        for name, value in entry["metrics"].items():
            writer.add_scalar(name, value, step)
        for path, norm in entry.get("gradient_norms", {}).items():
            writer.add_scalar(f"gradient_norm/{path}", norm, step)

    def _close(self) -> None:
        for writer in self._writers.values():
            writer.close()


def _bar() -> Any:
    from rich import progress

    return progress.Progress(
        progress.TextColumn("{task.description}"), progress.BarColumn(bar_width=None), progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[said]}"), progress.TimeRemainingColumn(), transient=True,
    )  # fmt: skip


def _text(entry: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in sorted(entry["metrics"].items(), key=lambda m: m[0] != "loss"))


def _left(entry: dict[str, Any]) -> str:
    if entry["seconds_left"] is None:
        return ""
    minutes, seconds = divmod(round(entry["seconds_left"]), 60)
    return f", {minutes} min {seconds:02d} s left" if minutes else f", {seconds} s left"
