"""TensorBoard's files hold the report's metrics, its config and its plots."""

import struct

from tensorboardX.proto.event_pb2 import Event

from jaxopt_nn.reporting import events, plots
from jaxopt_nn.reporting import write as reports
from tests.reporting.full_report import full


def records(folder):
    """The values of all events below a folder, in order."""
    out = []
    for file in sorted(folder.rglob("events*")):
        data = file.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + size])
            out += [(event.step, value) for value in event.summary.value]
            data = data[16 + size :]
    return out


def test_metrics_config_and_plots_are_written_once(tmp_path):
    report = full()
    picture = plots.PLOTS["metric_bytes.png"].draw(report)
    for _ in range(2):
        events.write_events(report, {"metric_bytes.png": picture}, tmp_path)
    found = records(tmp_path)
    accuracies = [(step, round(v.simple_value, 4)) for step, v in found if v.tag == "evaluation/accuracy"]
    assert accuracies == [(0, 0.98), (1, 0.97), (2, 0.95)]
    assert [v.simple_value for _, v in found if v.tag == "bytes"] == [4000, 1500, 400]
    (image,) = [v.image for _, v in found if v.tag == "metric_bytes"]
    assert (image.width, image.height) == struct.unpack(">II", picture[16:24])
    (chosen,) = [v for _, v in found if v.tag == "_hparams_/session_start_info"]
    held = chosen.metadata.plugin_data.content
    assert b"stages[0].bits" in held and b"m:build" in held
    final = [round(v.simple_value, 3) for _, v in found if v.tag == "final/accuracy"]
    assert final == [0.945], "the mean over the folds"


def test_a_report_beside_training_curves_is_in_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "images", lambda report: {})
    reports.write(full(), tmp_path)
    assert not (tmp_path / "tensorboard").exists()
    (tmp_path / "tensorboard").mkdir()
    reports.write(full(), tmp_path)
    assert records(tmp_path / "tensorboard" / "report")
