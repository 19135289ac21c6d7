"""The quickstart, shrunk: sizes, folds, the table, the artifact and the validation data."""

import json
import sys
from itertools import pairwise

import numpy as np
import pytest
from sklearn.datasets import load_digits

from configs.digits_quickstart import get_config
from experiments import compress
from experiments import config as configs
from experiments.data.digits import digits
from jaxopt_nn.coding.loader import load_file
from jaxopt_nn.reporting import tables


def shrunk(**changes):
    config = configs.plain(get_config())
    config["float"]["epochs"] = 8
    for stage in config["stages"]:
        stage["epochs"] = 4
    config["data"]["folds"], config["control"] = 2, False
    return {**config, **changes}


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("quickstart")
    lines = []
    return compress.run(shrunk(), str(workdir), say=lines.append), workdir, lines


def test_the_quickstart_is_thirty_times_smaller_and_its_program_too(quickstart):
    """Each stage buys something: masks bytes, the cut bytes and multiply-accumulates, codes bytes."""
    report, workdir, lines = quickstart
    forms = [report["baseline"], *report["stages"]]
    assert [s["name"] for s in forms[1:]] == ["prune", "cut", "quantize"]
    assert [s["params"] for s in forms] == [50_610, 50_610, 13_050, 13_050]
    macs = {True: 64 * 300 + 300 * 100 + 100 * 10, False: 64 * 120 + 120 * 40 + 40 * 10}
    assert [s["macs"] for s in forms] == [macs[True], macs[True], macs[False], macs[False]]
    assert forms[0]["bytes"] == 202_440 and all(after["bytes"] < 0.7 * before["bytes"] for before, after in pairwise(forms))
    assert forms[-1]["ratio"] > 30 and forms[-1]["bits_per_weight"] < 1
    assert 202_440 / report["artifact"]["bytes"] > 16
    assert report["baseline"]["metrics"]["accuracy"] > 0.8 and report["stages"][-1]["metrics"]["accuracy"] > 0.7
    biases = {f"params/Dense_{i}/bias" for i in range(3)}
    assert {s["path"] for s in report["skipped"]} == {*biases, "loss by leaf"}, "a cut network has no leaf of the baseline"
    said = [line for line in lines if ": step " not in line]  # those of a slow machine
    assert len(said) == 2 and said[0].startswith("fold 1 of 2: baseline ")
    assert json.loads((workdir / "report.json").read_text()) == report
    assert report["history"][0]["stage"] == "float" and list(workdir.glob("tensorboard/*/*"))


def test_its_artifact_gives_the_accuracy_of_the_stage(quickstart):
    report, workdir, _ = quickstart
    assert report["artifact"]["metrics_reloaded"] == report["stages"][-1]["test"]
    assert report["artifact"]["path"] == str(workdir / "network.jn")
    _, manifest = load_file(report["artifact"]["path"])
    assert manifest["recipe"] == report["config"]["stages"]


def test_all_images_are_tested_once(quickstart):
    report, *_ = quickstart
    found = report["cross_validation"]
    assert (found["folds"], found["examples"]) == (2, 1797)
    for name, entry in (("baseline", report["baseline"]), ("final", report["stages"][-1])):
        parts = [fold[name]["accuracy"] for fold in report["folds"]]
        assert report["folds"][0][name] == entry["test"]
        assert found[name]["accuracy"] == pytest.approx((899 * parts[0] + 898 * parts[1]) / 1797)
        assert np.sum(report["confusion"][name]) == 1797
        assert np.trace(report["confusion"][name]) == round(1797 * found[name]["accuracy"])


def test_the_table_is_of_all_folds(quickstart):
    """By NumPy, from the folds' own numbers: mean, Student's interval of two folds (t = tan(0.475 pi)), paired differences."""
    report, *_ = quickstart
    t = np.tan(0.475 * np.pi)
    for k, over in enumerate([report["summary"]["baseline"], *report["summary"]["stages"]]):
        of = lambda fold, k=k: (fold["valid"] if k == 0 else fold["stages"][k - 1]["metrics"])["accuracy"]
        each = np.array([of(fold) for fold in report["folds"]])
        mean, half = each.mean(), t * np.ptp(each) / 2
        assert over["metrics"]["accuracy"] == pytest.approx({"mean": mean, "low": mean - half, "high": mean + half, "n": 2})
        less = each - [fold["valid"]["accuracy"] for fold in report["folds"]]
        assert k == 0 or over["difference"]["accuracy"]["mean"] == pytest.approx(less.mean())
    assert tables.rows(report)[1][-1][1] == f"{mean:.2%} ± {100 * half:.2f}"


def test_validation_data_is_seen_by_no_training_and_by_curves(quickstart):
    report, *_ = quickstart
    task = digits(1, 2, 0, valid=0.1)
    parts = [{x.tobytes() for x in source.tree[0]} for source in (task.train, task.valid, task.test)]
    assert (task.train.size, task.valid.size, task.test.size) == (809, 90, 898)
    assert not parts[0] & parts[1] and len(parts[0] | parts[1] | parts[2]) == len({x.tobytes() for x in load_digits().data})
    for stage in ("float", "prune", "cut", "quantize"):
        points = [entry["valid"] for entry in report["history"] if entry["stage"] == stage and "valid" in entry]
        assert len(points) == (8 if stage == "float" else 4) and {*points[0]} == {"accuracy", "loss"}
    assert points[-1] == pytest.approx(report["stages"][-1]["metrics"]), "weights alone are quantized under w4a16"


def test_the_table_is_printed_plain_or_coloured(quickstart, capsys, monkeypatch):
    report, workdir, _ = quickstart
    compress.show(report, str(workdir))
    plain = capsys.readouterr().out
    assert plain.splitlines()[0].startswith("stage ") and plain.splitlines()[-1] == f"report: {workdir}/report.html"
    assert "test data, 1,797 examples, each tested once" in plain
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    for width, coloured in ((60, False), (120, True)):
        monkeypatch.setenv("COLUMNS", str(width))
        compress.show(report, str(workdir))
        shown = capsys.readouterr().out
        assert (shown == plain) != coloured
        ratio = f"{report['stages'][-1]['ratio']:.2f}x"
        assert all(word in shown for word in ("quantize", ratio, "12,880", "each tested once"))
