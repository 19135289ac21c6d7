"""What the commands share: a config's task, tables, pictures, and errors without a traceback."""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags, logging

import jaxopt_nn
from jaxopt_nn.core.text_table import aligned
from jaxopt_nn.pipeline import registry
from jaxopt_nn.pipeline.task import Task
from jaxopt_nn.reporting import plots, write

from .config import imported

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_BYTES = "Most memory that the file's arrays may take: for large files that you trust."
Table = tuple[Sequence[str], Sequence[Sequence[str]]]


def load_task(config: Mapping[str, Any], fold: int = 0) -> Task:
    """The task of a config, as ``checked`` gives it: its data, loss and metrics.

    Raises:
      ValueError: the source is unknown, has other arguments, or gives something else than a ``Task``.
    """
    source = config["data"]["source"]
    load = imported(source)
    arguments = {k: v for k, v in config["data"].items() if k not in ("source", "cross_validate")}
    known = inspect.signature(load).parameters
    told = {"fold": fold, "seed": config["seed"], "batch_size": config["batch_size"]}
    arguments |= {name: value for name, value in told.items() if name in known}
    task = registry.called(load, f"data.source {source}", arguments)
    if not isinstance(task, Task):
        raise ValueError(
            f"{source} gave {type(task).__name__}; it must return a Task, e.g. jaxopt_nn.classification(train=..., test=...)"
        )
    return task.replace(batch_size=config["batch_size"])


def show(header: Sequence[str], cells: Sequence[Sequence[str]], left: int = 1) -> None:
    """Prints a table: ruled and in bold where the output is a terminal that is wide enough, in plain text elsewhere."""
    cells = [[_printable(cell) for cell in line] for line in cells]
    text = "\n".join(aligned([header, *cells], left))
    if sys.stdout.isatty():
        from rich import box
        from rich.console import Console
        from rich.table import Table as Ruled

        console = Console()
        if max(map(len, text.splitlines())) + len(header) + 2 <= console.width:
            ruled = Ruled(box=box.SIMPLE_HEAD, pad_edge=False)
            for i, column in enumerate(header):
                ruled.add_column(column, justify="left" if i < left else "right", no_wrap=True)
            for line in cells:
                ruled.add_row(*(cell.replace("[", r"\[") for cell in line))
            console.print(ruled)
            return
    print(text)


def _printable(text: str) -> str:
    """Without what a terminal would obey: a file may name its leaves as it likes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def picture(draw: Callable[[Figure], None], width: float, height: float) -> bytes:
    """What ``draw`` draws on a figure of so many inches, in the style of the report's plots, as PNG."""
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with style.context(["default", plots.STYLE]):
        figure = Figure(figsize=(width, height))
        FigureCanvasAgg(figure)
        draw(figure)
        out = io.BytesIO()
        figure.savefig(out, format="png")
        return out.getvalue()


def check_no_run(artifact: str | os.PathLike[str]) -> None:
    """Raises ValueError where the folder of a run stands in the place of its artifact's."""
    for name in (write.NETWORK, "artifact"):
        if (Path(artifact) / name).exists():
            raise ValueError(f"{artifact}: is a run's folder; its artifact is {Path(artifact) / name}")


@contextlib.contextmanager
def plain_errors(stopped: str = "stopped") -> Iterator[None]:
    """Ends the program with the message of an error that says what to do, without a traceback.

    Ctrl-C ends it with ``stopped``, a line that says how to go on, and status 130, as shells have it.
    """
    try:
        yield
    except KeyboardInterrupt:
        print(f"\n{stopped}", file=sys.stderr)
        sys.exit(130)
    except (FloatingPointError, ModuleNotFoundError, OSError, TypeError, ValueError) as error:
        if isinstance(error, TypeError | ValueError) and _of_users_code(error):
            raise
        named = isinstance(error, OSError) and error.strerror and error.filename
        sys.exit(f"error: {error.filename}: {error.strerror}" if named else f"error: {error}")


def _of_users_code(error: BaseException) -> bool:
    """Whether an error was raised by a model, task or loader of the user's, or below it: then its lines are what helps."""
    files = [os.path.abspath(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    ours = [os.path.dirname(os.path.abspath(module.__file__)) + os.sep for module in (jaxopt_nn, sys.modules[__package__])]
    installed = (*ours, *(os.path.abspath(path) + os.sep for path in (sys.prefix, sys.base_prefix)))
    return not files[-1].startswith(tuple(ours)) and any(not file.startswith(installed) for file in files)


def flag_values(argv: Sequence[str]) -> flags.FlagValues:
    """The parsed flags; libraries that log every file are told to be quiet.

    An argument that is no flag ends the program with a message.
    """
    if len(argv) > 1:
        sys.exit(f"error: {' '.join(argv[1:])}: unexpected; arguments are flags, --name=value, and --help lists them")
    given = flags.FLAGS
    if not given["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # Orbax tells of every file
    return given
