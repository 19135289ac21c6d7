"""Tables, sentences and files of a report."""

import json
import math

import pytest

from jaxopt_nn.pipeline import html, plots, tables
from jaxopt_nn.pipeline import report as reports


def leaf(path, bits, shape=(20, 50), **changed):
    size = math.prod(shape)
    return {
        "path": path, "shape": list(shape), "format": "Masked(QTensor int4)" if bits < 32 else "float32", "bits": bits,
        "size": size, "nonzero": size // 4, "bytes": int(bits * size) // 8, "min": -0.5, "max": 0.25, **changed,
    }  # fmt: skip


def entry(name, accuracy, size, **changed):
    return {
        "name": name, "accuracy": accuracy, "loss": 0.5, "params": 1000, "nonzero": 250, "bytes": size,
        "resident_bytes": 2 * size, "ratio": 4000 / size, "bits_per_weight": size / 125, "latency_ms": {"1": 0.5, "32": 12.0},
        "leaves": [leaf("a/kernel", size / 125), leaf("a/bias", 32.0, (50,))], **changed,
    }  # fmt: skip


def logged(stage, step, **changed):
    return {"stage": stage, "step": step, "epoch": step / 10, "loss": 2 / step, "accuracy": 1 - 0.5 / step, **changed}


REPORT = {
    "schema": 2, "config": {}, "seed": 3, "devices": ["cpu: x"] * 8, "versions": {"jax": "1.2"}, "metric": "accuracy",
    "baseline": entry("baseline", 0.98, 4000),
    "stages": [entry("clip", 0.97, 4000), entry("prune", 0.9, 1500), entry("quantize", 0.95, 400)],
    "artifact": {"path": "x", "bytes": 500, "accuracy_reloaded": 0.95},
    "skipped": [{"path": "a/b", "reason": "x | y"}],
    "history": [
        logged(stage, step, gradient_norms={"a/kernel": 0.1 / step, "b/kernel": 0.0}) for stage in ("float", "quantize")
        for step in (5, 10, 12)
    ],
    "histograms": {"a/kernel": {"edges": [-1.0, -0.25, 0.25, 1.0], "before": [300, 400, 300], "after": [0, 900, 100]}},
}  # fmt: skip
#: What stands at least in a report: a network that was imported, latency not measured.
BARE = {
    **REPORT, "history": [], "histograms": {}, "artifact": None, "skipped": [], "devices": [], "versions": {},
    "baseline": entry("baseline", 0.98, 4000, latency_ms={}, leaves=[]),
    "stages": [entry("quantize", 0.98, 4000, latency_ms={}, leaves=[])],
}  # fmt: skip
CROSS = {"folds": 5, "test_images": 1797, "baseline_accuracy": 0.98, "final_accuracy": 0.975, "lost_points": 0.5}


def test_the_table_says_it_in_columns():
    lines = reports.table({**REPORT, "cross_validation": CROSS}).splitlines()
    assert lines[0].split() == "stage accuracy nonzero bytes resident ratio bits/w ms@1 ms@32".split()
    assert lines[4].split() == ["quantize", "95.00%", "25.0%", "400", "800", "10.00x", "3.20", "0.5", "12"]
    assert len({len(line) for line in lines[:5]}) == 1
    assert lines[5] == "time over the baseline's, by batch: 1.00x at 1, 1.00x at 32 (all within the noise of medians)"
    assert (
        lines[6]
        == "artifact: 500 bytes on disk, 8.00x smaller than the baseline's arrays; read back, its accuracy is 95.00%"
    )
    assert lines[7].endswith("5 folds, 1,797 test images; baseline 98.00%, final 97.50%, lost points 0.50")


def test_a_language_model_has_bits_a_byte_beside_the_accuracy():
    header, cells = tables.rows({**REPORT, "metric": "bits/byte"})
    assert header[1:4] == ["accuracy", "bits/byte", "loss"]
    assert {line[2] for line in cells} == {f"{0.5 / math.log(2):.4f}"} == {"0.7213"}
    assert "0.7213 bits a byte before, 0.7213 after" in tables.headline({**REPORT, "metric": "bits/byte"})


def test_leaves_in_columns():
    header, cells = tables.leaf_rows(
        entry("x", 0.9, 400, leaves=[leaf("a/b", 3.2), leaf("c", 0.0, (0,), min=None, max=None)])
    )
    assert header == ["path", "shape", "format", "bits/w", "nonzero", "bytes", "min", "max"]
    assert cells == [
        ["a/b", "20 x 50", "Masked(QTensor int4)", "3.20", "25.0%", "400", "-0.5", "0.25"],
        ["c", "0", "Masked(QTensor int4)", "0.00", "-", "0", "-", "-"],
    ]
    assert tables.leaf_rows({"name": "baseline"})[1] == []


@pytest.mark.parametrize(
    ("final", "said"),
    [
        (entry("q", 0.95, 400), "10.0x smaller than float32: 4,000 bytes before, 400 after; accuracy 98.00% before, "
                                "95.00% after, 3.00 points lost."),
        (entry("q", 0.985, 4000), "Not smaller than float32: 4,000 bytes before, 4,000 after; accuracy 98.00% before, "
                                  "98.50% after, 0.50 points gained."),
        (entry("q", 0.98, 2000), "2.0x smaller than float32: 4,000 bytes before, 2,000 after; accuracy 98.00% before, "
                                 "98.00% after, nothing lost."),
    ],
)  # fmt: skip
def test_the_headline_is_honest(final, said):
    assert tables.headline({**REPORT, "stages": [final]}) == said


def test_markdown_has_the_same_and_what_was_left_alone():
    text = reports.markdown(REPORT, ["loss.png"])
    for header, cells in (tables.rows(REPORT), tables.leaf_rows(REPORT["stages"][-1])):
        for line in (header, *cells):
            assert "| " + " | ".join(line) + " |" in text
    assert "loss" in tables.rows(REPORT)[0]
    assert "| a/b | x \\| y |" in text and "- seed 3; cpu: x; jax 1.2" in text
    assert "](loss.png)" in text and "weights.png" not in text


@pytest.mark.parametrize(
    ("value", "said"), [(1, "1 B"), (999, "999 B"), (12_500, "12.5 kB"), (2e6, "2 MB"), (5e12, "5e+03 GB")]
)
def test_bytes_for_people(value, said):
    assert tables.human_bytes(value) == said


def test_all_files_are_written_and_those_of_an_older_report_go(tmp_path):
    reports.write(REPORT, tmp_path)
    words = {"report.html", "report.json", "report.md"}
    assert {path.name for path in tmp_path.iterdir()} == words | plots.PLOTS.keys()
    assert json.loads((tmp_path / "report.json").read_text()) == REPORT
    for name in plots.PLOTS:
        assert f"]({name})" in (tmp_path / "report.md").read_text()
    reports.write(BARE, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == words | {"accuracy_bytes.png"}
    assert json.loads((tmp_path / "report.json").read_text()) == BARE


@pytest.mark.parametrize("full", ["accuracy_bytes.png", "report.html", "report.md", "report.json"])
def test_no_report_stands_where_a_file_of_it_could_not_be_written(tmp_path, monkeypatch, full):
    monkeypatch.setattr(plots, "images", lambda report: {"accuracy_bytes.png": b"PNG"})
    reports.write(REPORT, tmp_path)
    write_file = reports.write_file

    def failing(path, content):
        if path.name == full:
            raise OSError(28, "No space left on device")
        write_file(path, content)

    monkeypatch.setattr(reports, "write_file", failing)
    with pytest.raises(OSError, match="No space"):
        reports.write(REPORT, tmp_path)
    assert not (tmp_path / "report.json").exists()


def test_without_matplotlib_the_report_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(reports, "has_matplotlib", lambda: False)
    reports.write(REPORT, tmp_path)
    assert "No plot: matplotlib is not installed" in (tmp_path / "report.md").read_text()
    assert "matplotlib is not installed" in (tmp_path / "report.html").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "report.json", "report.md"}


def test_what_json_can_not_hold_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(TypeError, match="config: set"):
        reports.write({**REPORT, "config": {"a": {1}}}, tmp_path)
    with pytest.raises(ValueError, match="not JSON compliant"):
        reports.write({**REPORT, "config": {"a": float("nan")}}, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_loss_that_is_no_number_is_null_in_json(tmp_path):
    nan, inf = float("nan"), float("inf")
    report = {
        **REPORT, "baseline": {**REPORT["baseline"], "loss": inf}, "teacher": {"accuracy": 0.9, "loss": nan, "params": 9},
        "stages": [*REPORT["stages"][:-1], {**REPORT["stages"][-1], "loss": nan}],
        "cross_validation": {**CROSS, "baseline_loss": inf, "final_loss": nan},
    }  # fmt: skip
    reports.write(report, tmp_path)
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["baseline"].pop("loss") is found["teacher"]["loss"] is found["stages"][-1].pop("loss") is None
    assert found["cross_validation"] == {**CROSS, "baseline_loss": None, "final_loss": None}
    assert found["stages"][:-1] == REPORT["stages"][:-1] and list(found) == list(report)
    assert found["stages"][-1] == {k: v for k, v in REPORT["stages"][-1].items() if k != "loss"}
    assert "| nan |" in (tmp_path / "report.md").read_text()


def test_smaller_and_not_faster_is_said():
    made = {"baseline": entry("baseline", 0.9, 4000), "stages": [entry("quantize", 0.9, 400)], "artifact": {}}
    assert not any("faster" in line for line in tables.sentences(made))
    made["stages"][-1]["latency_ms"] = {"1": 1.0, "32": 11.0}
    assert tables.sentences(made)[0].endswith("by batch: 2.00x at 1, 0.92x at 32 (at 32 within the noise of medians)")


def test_clipped_weights_and_the_teacher_are_said():
    row = {"path": "a/kernel", "min": -2.0, "max": 1.5, "lo": -1.0, "hi": 1.0, "clipped": 0.0123, "on_edge": 0.0}
    stages = [entry("clip", 0.97, 4000, clipping=[row]), entry("quantize", 0.9, 400, clipping=[])]
    report = {**REPORT, "stages": stages, "teacher": {"accuracy": 0.99, "loss": 0.1, "params": 20_000}}
    assert tables.clipping_rows(report)[1] == [["clip", "a/kernel", "-2", "1.5", "-1", "1", "1.230%"]]
    for page in (reports.markdown(report), html.page(report, {})):
        assert "1.230%" in page and "99.00%, 20,000 parameters, 20.0 times as many" in page
    assert "Clipped weights" not in reports.markdown(REPORT) and "Clipped weights" not in html.page(REPORT, {})


@pytest.mark.parametrize(
    ("name", "folder"),
    [("artifact", False), ("artifact", True), ("checkpoints", False), ("report.json", True), ("loss.png", True)],
)
def test_what_stands_in_the_way_of_a_run_is_said_before_it(tmp_path, name, folder):
    (tmp_path / name).mkdir() if folder else (tmp_path / name).write_text("mine")
    with pytest.raises(OSError, match=f"{name}: .*; move it away, or pass another --workdir"):
        reports.open_workdir(tmp_path)
    with pytest.raises(ValueError, match="workdir='': pass the name of a directory"):
        reports.open_workdir("")
