"""Tables, plot and files of a report."""

import json
import struct

import pytest

from jaxopt_nn.pipeline import report as reports


def entry(name, accuracy, size):
    return {
        "name": name, "accuracy": accuracy, "loss": 0.5, "params": 1000, "nonzero": 250, "bytes": size,
        "resident_bytes": 2 * size, "ratio": 4000 / size, "bits_per_weight": size / 125, "latency_ms": {"1": 0.5, "32": 12.0},
    }  # fmt: skip


REPORT = {
    "schema": 1, "config": {}, "seed": 3, "devices": ["cpu: x"] * 8, "versions": {"jax": "1.2"}, "metric": "accuracy",
    "baseline": entry("baseline", 0.98, 4000),
    "stages": [entry("clip", 0.97, 4000), entry("prune", 0.9, 1500), entry("quantize", 0.95, 400)],
    "artifact": {"path": "x", "bytes": 500, "accuracy_reloaded": 0.95},
    "skipped": [{"path": "a/b", "reason": "x | y"}],
}  # fmt: skip
CROSS = {"folds": 5, "test_images": 1797, "baseline_accuracy": 0.98, "final_accuracy": 0.975, "lost_points": 0.5}


def test_the_table_says_it_in_columns():
    lines = reports.table({**REPORT, "cross_validation": CROSS}).splitlines()
    assert lines[0].split() == "stage accuracy nonzero bytes resident ratio bits/w ms@1 ms@32".split()
    assert lines[4].split() == ["quantize", "95.00%", "25.0%", "400", "800", "10.00x", "3.20", "0.5", "12"]
    assert len({len(line) for line in lines[:5]}) == 1
    assert (
        lines[5]
        == "artifact: 500 bytes on disk, 8.00x smaller than the baseline's arrays; read back, its accuracy is 95.00%"
    )
    assert lines[6].endswith("5 folds, 1,797 test images; baseline 98.00%, final 97.50%, lost points 0.50")


def test_markdown_has_the_same_and_what_was_left_alone():
    text = reports.markdown(REPORT)
    header, cells = reports.rows(REPORT)
    assert "loss" in header
    for line in (header, *cells):
        assert "| " + " | ".join(line) + " |" in text
    assert "| a/b | x \\| y |" in text and "- seed 3; cpu: x; jax 1.2" in text


@pytest.mark.parametrize("sizes", [(4000, 4000, 4000), (4000, 1500, 400), (400, 4000, 40)])
@pytest.mark.parametrize("accuracies", [(0.98, 0.9, 0.95), (0.5, 0.5, 0.5)])
def test_the_plot_is_a_png_for_any_report(sizes, accuracies):
    stages = [entry(f"s{i}", a, s) for i, (a, s) in enumerate(zip(accuracies, sizes, strict=True))]
    picture = reports.plot({**REPORT, "stages": stages})
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", picture[16:24])
    assert width > 900 and height > 500


def test_labels_of_one_size_are_joined_and_stand_where_their_neighbours_are_not():
    labels = reports._labels([REPORT["baseline"], *REPORT["stages"]])
    assert [text.split("\n")[:-1] for text, *_ in labels] == [
        ["baseline  98.00%", "clip  97.00%"], ["prune  90.00%"], ["quantize  95.00%"],
    ]  # fmt: skip
    assert [side for *_, side in labels] == [1, -1, 1]


@pytest.mark.parametrize(
    ("value", "said"), [(1, "1 B"), (999, "999 B"), (12_500, "12.5 kB"), (2e6, "2 MB"), (5e12, "5e+03 GB")]
)
def test_bytes_for_people(value, said):
    assert reports.human_bytes(value) == said


def test_without_matplotlib_the_report_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(reports, "has_matplotlib", lambda: False)
    reports.write(REPORT, tmp_path)
    assert "No plot: matplotlib is not installed" in (tmp_path / "report.md").read_text()
    assert json.loads((tmp_path / "report.json").read_text()) == REPORT
    assert not (tmp_path / "accuracy_bytes.png").exists()


def test_what_json_can_not_hold_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(TypeError, match="config: set"):
        reports.write({**REPORT, "config": {"a": {1}}}, tmp_path)
    with pytest.raises(ValueError, match="not JSON compliant"):
        reports.write({**REPORT, "config": {"a": float("nan")}}, tmp_path)
    assert not list(tmp_path.iterdir())


def test_smaller_and_not_faster_is_said():
    made = {"baseline": entry("baseline", 0.9, 4000), "stages": [entry("quantize", 0.9, 400)], "artifact": {}}
    assert not any("faster" in line for line in reports.sentences(made))
    made["stages"][-1]["latency_ms"] = {"1": 1.0, "32": 11.0}
    assert reports.sentences(made)[0].endswith("by batch: 2.00x at 1")
