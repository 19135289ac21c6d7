"""TensorBoard's files, read back record by record: metrics by stage, hyper-parameters, images."""

import struct

import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

from jaxopt_nn.reporting.events import write_events
from tests.reporting.test_write import CROSS, REPORT

#: A PNG of one black pixel.
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63606060000000040001f61738550000"
    "000049454e44ae426082"
)


def values(folder):
    """The summary values of all event files of a folder: each record is its length, a checksum, the event, a checksum."""
    found = []
    for file in folder.glob("events*"):
        data, at = file.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + size])
            found += [(value, event.step) for value in event.summary.value]
            at += size + 16
    return found


def test_a_report_in_tensorboard(tmp_path):
    config = {"seed": 3, "stages": [{"bits": 4, "rule": "w4a8"}], "checkpoint": None}
    (tmp_path / "training.png").write_bytes(PIXEL)
    for _ in range(2):  # a run that was repeated has one report
        write_events({**REPORT, "config": config}, tmp_path)
    held = values(tmp_path / "tensorboard" / "report")
    scalars = {(value.tag, step): value.simple_value for value, step in held if value.WhichOneof("value") == "simple_value"}
    assert len(scalars) == 3 * 4 and len(held) == 3 * 4 + 1
    for step, entry in enumerate((REPORT["baseline"], *REPORT["stages"])):
        assert scalars["evaluation/accuracy", step] == pytest.approx(entry["metrics"]["accuracy"])
        assert scalars["evaluation/bytes", step] == entry["bytes"]
    (image,) = [value for value, _ in held if value.WhichOneof("value") == "image"]
    assert image.tag == "plots/training" and (image.image.height, image.image.width) == (1, 1)
    told = values(tmp_path / "tensorboard" / "report" / "hparams")
    plugin = [value.metadata.plugin_data.content for value, _ in told if value.tag.endswith("session_start_info")]
    known = HParamsPluginData.FromString(plugin[0]).session_start_info.hparams
    assert {name: known[name].number_value or known[name].string_value for name in known} == {
        "seed": 3.0, "stages[0].bits": 4.0, "stages[0].rule": "w4a8",
    }  # fmt: skip
    ends = {value.tag: value.simple_value for value, _ in told if value.tag.startswith("final/")}
    assert ends == pytest.approx({"final/accuracy": 0.95, "final/loss": 0.5, "final/bytes": 400})


def test_metrics_are_means_over_the_folds(tmp_path):
    write_events(CROSS, tmp_path)
    ends = {value.tag: value.simple_value for value, _ in values(tmp_path / "tensorboard" / "report" / "hparams")}
    assert ends["final/accuracy"] == pytest.approx(0.975)
