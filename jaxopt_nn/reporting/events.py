"""A finished report for TensorBoard: metrics by stage, the config as hyper-parameters, the plots as images."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxopt_nn.reporting import plots
from jaxopt_nn.reporting.tables import entries, scores

#: Folder of the report's events, beside those of the stages of training.
FOLDER = "report"


def write_events(report: dict[str, Any], workdir: Path) -> None:
    """Writes ``tensorboard/report`` in ``workdir``; that of an older report goes first.

    Scalars ``evaluation/METRIC`` and ``evaluation/bytes`` have the number of the stage as their step, 0 the baseline; metrics
    are means over the folds where there are several. The hyper-parameters are the numbers, words and flags of the config, their
    metrics those of the last stage on the test data. Images are the plots that lie in ``workdir``. Needs tensorboardX.
    """
    from tensorboardX import SummaryWriter

    folder = workdir / "tensorboard" / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    with SummaryWriter(str(folder)) as writer:
        for step, (entry, metrics) in enumerate(zip(entries(report), _by_stage(report), strict=True)):
            for name, value in {**metrics, "bytes": entry["bytes"]}.items():
                writer.add_scalar(f"evaluation/{name}", value, step)
        last = {name: value for name, value in scores(report)[1].items() if value is not None}
        ends = {f"final/{name}": float(value) for name, value in {**last, "bytes": entries(report)[-1]["bytes"]}.items()}
        writer.add_hparams(dict(_fields(report["config"])), ends, name="hparams")
        for name in plots.PLOTS:
            if (workdir / name).exists():
                writer.add_image(f"plots/{Path(name).stem}", _pixels(workdir / name), dataformats="HWC")


def _by_stage(report: dict[str, Any]) -> list[dict[str, float]]:
    """The metrics of the baseline and each stage, on the data by which stages are compared."""
    if over := report.get("summary"):
        means = [over["baseline"], *over["stages"]]
        return [{name: each["mean"] for name, each in stage["metrics"].items()} for stage in means]
    return [entry["metrics"] for entry in entries(report)]


def _fields(value: Any, at: str = "") -> Iterator[tuple[str, bool | int | float | str]]:
    """``("stages[0].bits", 4)`` of each field that a table of hyper-parameters can hold."""
    if isinstance(value, dict):
        for key, held in value.items():
            yield from _fields(held, f"{at}.{key}" if at else key)
    elif isinstance(value, list | tuple):
        for i, held in enumerate(value):
            yield from _fields(held, f"{at}[{i}]")
    elif isinstance(value, bool | int | float | str):
        yield at, value


def _pixels(file: Path) -> Any:
    """A picture as bytes ``[H, W, 3 or 4]``."""
    from matplotlib import image

    return (255 * image.imread(file)).round().astype("uint8")
