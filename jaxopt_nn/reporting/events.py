"""What TensorBoard gets beside the curves of training: the metrics of each stage, the config with its result, the plots."""

from __future__ import annotations

import io
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxopt_nn.core.paths import addresses
from jaxopt_nn.reporting.tables import entries, scores

#: The run's folder among those of the trainings.
FOLDER = "report"


def write_events(report: Mapping[str, Any], images: Mapping[str, bytes], folder: Path) -> None:
    """Writes event files anew into ``folder/report``; needs tensorboardX.

    Scalars ``evaluation/METRIC``, ``bytes`` and ``ratio`` have the number of the stage as their step, 0 for the baseline. The
    fields of the config are the hyper-parameters, with the metrics after the last stage beside.

    Args:
      images: PNGs by file name; matplotlib decodes them.
    """
    from tensorboardX import SummaryWriter

    place = folder / FOLDER
    shutil.rmtree(place, ignore_errors=True)
    with SummaryWriter(str(place)) as writer:
        for step, entry in enumerate(entries(dict(report))):
            for name, value in entry["metrics"].items():
                if value is not None:
                    writer.add_scalar(f"evaluation/{name}", value, step)
            for name in ("bytes", "ratio"):
                writer.add_scalar(name, entry[name], step)
        for name, picture in images.items():
            writer.add_image(name.removesuffix(".png"), _pixels(picture), dataformats="HWC")
        plain = lambda value: value if isinstance(value, bool | int | float | str) else str(value)
        fields = {key: plain(value) for key, value in addresses(report["config"]).items()}
        final = {f"final/{name}": value for name, value in scores(dict(report))[1].items() if value is not None}
        writer.add_hparams(fields, final, name="hparams")


def _pixels(picture: bytes) -> Any:
    """A PNG as ``[height, width, 3]``, float32 in [0, 1]."""
    from matplotlib.image import imread

    return imread(io.BytesIO(picture))[:, :, :3]
