"""Tables, sentences and files of a report."""

import json
import math

import pytest

from jaxopt_nn.core import files
from jaxopt_nn.reporting import page, plots, tables
from jaxopt_nn.reporting import write as reports
from jaxopt_nn.reporting.folds import summary


def leaf(path, bits, shape=(20, 50), **changed):
    size = math.prod(shape)
    return {
        "path": path, "shape": list(shape), "format": "Masked(QTensor int4)" if bits < 32 else "float32", "bits": bits,
        "size": size, "nonzero": size // 4, "bytes": int(bits * size) // 8, "min": -0.5, "max": 0.25,
        "share": bits / 64, "macs": size if len(shape) > 1 else None, "stage": "prune" if bits < 32 else None,
        "alone": 0.125 if bits < 32 else None, **changed,
    }  # fmt: skip


def timed(milliseconds, ratio=1.0):
    return {n: {"ms": ms, "ratio": ratio, "low": 0.95 * ratio, "high": 1.05 * ratio} for n, ms in milliseconds.items()}


def entry(name, accuracy, size, **changed):
    return {
        "name": name, "metrics": {"accuracy": accuracy, "loss": 0.5}, "params": 1000, "nonzero": 250, "bytes": size,
        "resident_bytes": 2 * size, "ratio": 4000 / size, "bits_per_weight": size / 125,
        "macs": 1234, "latency": timed({"1": 0.5, "32": 12.0}),
        "leaves": [leaf("a/kernel", size / 125), leaf("a/bias", 32.0, (50,))], "facts": [], **changed,
    }  # fmt: skip


def logged(stage, step, **changed):
    metrics = {"loss": changed.pop("loss", 2 / step), "accuracy": 1 - 0.5 / step}
    return {"stage": stage, "step": step, "epoch": step / 10, "metrics": metrics, **changed}


KINDS = {"accuracy": {"unit": "%", "better": "higher"}, "loss": {"unit": "nats", "better": "lower"}}


REPORT = {
    "schema": 4, "config": {}, "seed": 3, "devices": ["cpu: x"] * 8, "versions": {"jax": "1.2"}, "metrics": KINDS,
    "headline": "accuracy",
    "baseline": entry("baseline", 0.98, 4000),
    "stages": [entry("clip", 0.97, 4000), entry("prune", 0.9, 1500), entry("quantize", 0.95, 400)],
    "artifact": {"path": "x", "bytes": 500, "metrics_reloaded": {"accuracy": 0.95, "loss": 0.5}},
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
    "baseline": entry("baseline", 0.98, 4000, latency={}, leaves=[]),
    "stages": [entry("quantize", 0.98, 4000, latency={}, leaves=[])],
}  # fmt: skip


def of_folds(report, ends=(0.95, 1.0), sizes=(400, 410), valid=None, control=None):
    """The report over folds that all begin as it does, and end with these accuracies on the test data."""
    folds = [
        {
            "seed": k, "baseline": report["baseline"]["metrics"], **({"valid": valid} if valid else {}),
            "stages": [
                {"name": s["name"], "metrics": s["metrics"], "bytes": size, "ratio": 4000 / size, "nonzero": 250}
                for s in report["stages"]
            ],
            "final": {"accuracy": a, "loss": 0.6}, **({"control": {"accuracy": control, "loss": 0.1}} if control else {}),
        }
        for k, (a, size) in enumerate(zip(ends, sizes, strict=True))
    ]  # fmt: skip
    final = {"accuracy": 0.9749, "loss": 0.6}
    pooled = {"folds": len(ends), "examples": 1797, "baseline": folds[0]["baseline"], "final": final}
    return {**report, "folds": folds, "summary": summary(folds), "cross_validation": pooled}


CROSS = of_folds(REPORT)
#: Numbers that are better lower, in no unit.
ERRORS = {"rmse": {"unit": "", "better": "lower"}, "loss": {"unit": "", "better": "lower"}}


def of_errors(report):
    """The report with an error of 100 minus the accuracy in percent as its headline."""
    turned = lambda e: {**e, "metrics": {"rmse": 100 * (1 - e["metrics"]["accuracy"]), "loss": e["metrics"]["loss"]}}
    baseline, stages = turned(report["baseline"]), list(map(turned, report["stages"]))
    return {**report, "metrics": ERRORS, "headline": "rmse", "baseline": baseline, "stages": stages}


def test_the_table_says_it_in_columns():
    lines = tables.text(REPORT).splitlines()
    assert lines[0].split() == "stage accuracy nonzero bytes resident ratio bits/w MACs ms@1 ms@32".split()
    assert lines[4].split() == ["quantize", "95.00%", "25.0%", "400", "800", "10.00x", "3.20", "1,234", "0.5", "12"]
    assert len({len(line) for line in lines[:5]}) == 1
    assert lines[5] == "no control was run, so what training alone would give is not known: pass control=True"
    assert lines[6:9] == [
        "bytes, MACs and time, stage after stage: clip none of these; prune 2.7x fewer bytes; quantize 3.8x fewer bytes",
        "the zeros of prune save bytes and no time: XLA multiplies them like other numbers, and they are counted in MACs; "
        "units that are cut save both",
        "against the baseline, by batch: no difference seen at 1 (0.95 to 1.05 of its time), 32 (0.95 to 1.05 of its time); "
        "below 1.3x nothing is told",
    ]
    artifact = "artifact: 500 bytes on disk, 8.00x smaller than the baseline's arrays; read back, its accuracy"
    assert lines[9:] == [f"{artifact} is 95.00%"]
    folds = tables.text(CROSS).splitlines()
    assert folds[4].split()[:4] == ["quantize", "95.00%", "±", "0.00"], "of the data by which stages are compared"
    assert folds[5:10] == [
        "metrics in the table: means over 2 folds of the test data ± half of the 95% interval (Student's t)",
        "test data, 1,797 examples, each tested once: accuracy 98.00% ± 0.00 before, 97.50% ± 31.77 after",
        "after less before, paired by fold: -0.50 points, 95% interval -32.27 to +31.27",
        "of single folds, accuracy ends at 95.00%, 100.00%",
        "sizes, times, leaves and artifact are of fold 1; over all folds, bytes end between 400 and 410",
    ]
    assert folds[14] == f"{artifact} on the test data of fold 1 is 95.00%"


def test_a_number_that_is_better_lower_is_said_in_its_own_unit():
    report = of_errors(REPORT)
    header, cells = tables.rows(report)
    assert header[1:3] == ["rmse", "loss"] and [line[1] for line in cells] == ["2", "3", "10", "5"]
    assert "; rmse 2 before, 5 after, 3 lost." in tables.headline(report)
    assert "; rmse 2 before, 1 after, 1 gained." in tables.headline(of_errors({**REPORT, "stages": [entry("q", 0.99, 400)]}))
    assert tables.text(report).splitlines()[0].split()[1] == "rmse"


def test_stages_are_of_the_validation_data_and_the_ends_of_the_test_data():
    ends = [{"accuracy": a, "loss": 0.1} for a in (0.9, 0.875)]
    stages = [*REPORT["stages"][:-1], {**REPORT["stages"][-1], "test": ends[1]}]
    report = {**REPORT, "baseline": {**REPORT["baseline"], "test": ends[0]}, "stages": stages}
    assert tables.headline(report).endswith("accuracy 90.00% before, 87.50% after, 2.50 points lost.")
    said = "the table is of the validation data; on the test data, accuracy 90.00% before, 87.50% after"
    assert said in tables.sentences(report) and tables.rows(report)[1][-1][1] == "95.00%"


def test_leaves_in_columns():
    header, cells = tables.leaf_rows(
        entry("x", 0.9, 400, leaves=[leaf("a/b", 3.2), leaf("c", 0.0, (0,), min=None, max=None, alone=None)])
    )
    assert header == "path,shape,format,stage,bits/w,nonzero,bytes,share,MACs,loss alone,min,max".split(",")
    assert cells == [
        ["a/b", "20 x 50", "Masked(QTensor int4)", "prune", "3.20", "25.0%", "400", "5.0%", "1,000", "+0.125", "-0.5", "0.25"],
        ["c", "0", "Masked(QTensor int4)", "prune", "0.00", "-", "0", "0.0%", "-", "-", "-", "-"],
    ]
    assert tables.leaf_rows({"name": "baseline"})[1] == []


def test_vectors_that_were_left_alone_are_one_line():
    biases = [leaf(f"{i}/bias", 32.0, (50 + i,), min=-i, share=0.1) for i in range(3)]
    header, cells = tables.leaf_rows({"leaves": [biases[0], leaf("0/kernel", 3.2), *biases[1:]]})
    assert [line[0] for line in cells] == ["0/kernel", "3 vectors, 0/bias and others"]
    line = dict(zip(header, cells[1]))
    assert (line["shape"], line["bytes"], line["bits/w"], line["share"]) == ("153", "612", "32.00", "30.0%")
    assert (line["nonzero"], line["min"], line["max"]) == (f"{(12 + 12 + 13) / 153:.1%}", "-2", "0.25")
    header, cells = tables.leaf_rows({"leaves": [leaf("a/bias", 32.0, (50,)), leaf("a/kernel", 32.0)]})
    assert [line[0] for line in cells] == ["a/bias", "a/kernel"] and not {"stage", "loss alone"} & {*header}


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
    text = reports.markdown(REPORT, ["training.png"])
    for header, cells in (tables.rows(REPORT), tables.leaf_rows(REPORT["stages"][-1])):
        for line in (header, *cells):
            assert "| " + " | ".join(line) + " |" in text
    assert "loss" in tables.rows(REPORT)[0]
    assert "| a/b | x \\| y |" in text and "- seed 3; cpu: x; jax 1.2" in text
    assert "](training.png)" in text and "weights.png" not in text


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
    assert {path.name for path in tmp_path.iterdir()} == words | {"metric_bytes.png"}
    assert json.loads((tmp_path / "report.json").read_text()) == BARE


@pytest.mark.parametrize("full", ["metric_bytes.png", "report.html", "report.md", "report.json"])
def test_no_report_stands_where_a_file_of_it_could_not_be_written(tmp_path, monkeypatch, full):
    monkeypatch.setattr(plots, "images", lambda report: {"metric_bytes.png": b"PNG"})
    reports.write(REPORT, tmp_path)
    write_file = files.write_file

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
    assert "<svg" in (tmp_path / "report.html").read_text(), "the page draws by itself"
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "report.json", "report.md"}


def test_what_json_can_not_hold_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(TypeError, match="config: set"):
        reports.write({**REPORT, "config": {"a": {1}}}, tmp_path)
    with pytest.raises(ValueError, match="not JSON compliant"):
        reports.write({**REPORT, "config": {"a": float("nan")}}, tmp_path)
    assert not list(tmp_path.iterdir())


def test_metrics_that_are_no_numbers_are_null_in_json(tmp_path):
    nan, inf = float("nan"), float("inf")
    bad = {"accuracy": 0.9, "loss": nan}
    report = {
        **REPORT, "baseline": {**REPORT["baseline"], "metrics": {"accuracy": nan, "loss": inf}},
        "teacher": {"metrics": bad, "params": 9}, "control": {"metrics": bad},
        "stages": [*REPORT["stages"][:-1], {**REPORT["stages"][-1], "metrics": bad}],
        "cross_validation": {**CROSS["cross_validation"], "final": bad}, "folds": [{**CROSS["folds"][0], "final": bad}] * 2,
        "summary": None,
    }  # fmt: skip
    reports.write(report, tmp_path)
    found, null = json.loads((tmp_path / "report.json").read_text()), {"accuracy": 0.9, "loss": None}
    assert found["baseline"]["metrics"] == {"accuracy": None, "loss": None}
    assert found["teacher"]["metrics"] == found["stages"][-1]["metrics"] == found["cross_validation"]["final"] == null
    assert found["control"] == {"metrics": null}
    assert [fold["final"] for fold in found["folds"]] == [null, null]
    assert found["stages"][:-1] == REPORT["stages"][:-1] and list(found) == list(report)
    assert "| nan |" in (tmp_path / "report.md").read_text()
    assert "not to be compared" in tables.headline(report)


def test_facts_of_methods_and_the_teacher_are_said():
    fact = {"title": "Cut off", "note": "How much.", "header": ["path", "share, %"], "cells": [["a/kernel", 1.23]]}
    stages = [entry("clip", 0.97, 4000, facts=[fact]), entry("quantize", 0.9, 400), entry("again", 0.9, 400, facts=[fact])]
    report = {**REPORT, "stages": stages, "teacher": {"metrics": {"accuracy": 0.99, "loss": 0.1}, "params": 20_000}}
    ((title, note, (header, cells)),) = tables.fact_tables(report)
    assert (title, note, header) == ("Cut off", "How much.", ["stage", "path", "share, %"])
    assert cells == [["clip", "a/kernel", "1.23"], ["again", "a/kernel", "1.23"]]
    for text in (reports.markdown(report), page.page(report)):
        assert "1.23" in text and "99.00%, 20,000 parameters, 20.0 times as many" in text
    assert "Cut off" not in reports.markdown(REPORT) and "Cut off" not in page.page(REPORT)


@pytest.mark.parametrize(
    ("name", "folder"),
    [("network.jn", True), ("checkpoints", False), ("report.json", True), ("training.png", True)],
)
def test_what_stands_in_the_way_of_a_run_is_said_before_it(tmp_path, name, folder):
    (tmp_path / name).mkdir() if folder else (tmp_path / name).write_text("mine")
    with pytest.raises(OSError, match=f"{name}: .*; move it away, or pass another --workdir"):
        files.open_workdir(tmp_path, reports.FOLDERS, reports.FILES)
    with pytest.raises(ValueError, match="workdir='': pass the name of a file or folder"):
        files.open_workdir("")
