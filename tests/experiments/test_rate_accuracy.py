"""The benchmark of rate and accuracy: its points are made once, and what it says of them is right."""

import json

import numpy as np
import pytest
from matplotlib.figure import Figure

from configs import deep_compression_lenet300
from experiments.benchmarks import rate_accuracy
from experiments.benchmarks.rate_accuracy import (
    CURVES,
    EPOCHS,
    Aim,
    Curve,
    Runs,
    by_point,
    draw,
    on_the_curve,
    rows,
    run,
)
from experiments.data.digits import digits
from experiments.models.digits import mlp
from jaxopt_nn.pipeline import registry

STAGE = {"name": "stage", "where": "**/kernel"}
FLOAT = Curve("float", "", ("",), lambda _: [{**STAGE, "method": "identity", "epochs": 1}])
TINY = (
    Curve("rate", "step", (0.1, 1.0), lambda step: [{**STAGE, "method": "rate_quantize", "penalty": 0.0, "step": step}]),
    Curve("quantize", "bits", (4,), lambda bits: [{**STAGE, "method": "quantize", "bits": bits}]),
)
AIM = Aim("rate", 1000, (0.1, 1.0))


def start(seed):
    return mlp(seed, (16,))


def no_run(*_, **__):
    raise AssertionError("made again")


def test_an_interrupted_benchmark_goes_on_and_makes_no_point_twice(tmp_path, monkeypatch):
    task, notes = digits(0), tmp_path / "points.jsonl"
    first = run(Runs(task, start, FLOAT, tmp_path), TINY, AIM, 1)
    assert [note["method"] for note in first] == ["float", "rate", "rate", "quantize", "compress_to(bytes=1_000)"]
    assert sorted(note["bytes"] for note in first) == sorted(file.stat().st_size for file in tmp_path.glob("*.jn"))
    assert abs(first[-1]["bytes"] - AIM.bytes) <= 0.02 * AIM.bytes

    lines = notes.read_text().splitlines(keepends=True)
    notes.write_text("".join(lines[:-1]) + lines[-1][:20])  # killed while it wrote the last line
    with monkeypatch.context() as patch:
        patch.setattr(Runs, "_compressed", no_run)  # what compress_to found is the one thing that is missing
        again = run(Runs(task, start, FLOAT, tmp_path), TINY, AIM, 1)
    untimed = lambda found: [{name: x for name, x in note.items() if name != "seconds"} for note in found]
    assert untimed(again) == untimed(first)
    assert [json.loads(line)["key"] for line in notes.read_text().splitlines()] == [note["key"] for note in first]

    monkeypatch.setattr(Runs, "_compressed", no_run)
    monkeypatch.setattr(rate_accuracy, "compress_to", no_run)
    assert run(Runs(task, start, FLOAT, tmp_path), TINY, AIM, 1) == again
    other = TINY[1]._replace(stages=lambda bits: [{**STAGE, "method": "quantize", "bits": bits, "granularity": "tensor"}])
    with pytest.raises(AssertionError, match="made again"):  # another recipe of the same name is another point
        Runs(task, start, FLOAT, tmp_path).point(other, 4, 0)


def noted(method, knob, seed, size, accuracy, **more):
    return {"method": method, "knob": knob, "seed": seed, "bytes": size, "accuracy": accuracy, **more}


NOTES = [
    note
    for seed, shift in enumerate((0.0, 0.02))
    for note in (
        noted("float", "", seed, 10_000, 0.9),
        noted("rate", 1.0, seed, 100, 0.7 + shift),
        noted("rate", 0.1, seed, 10_000, 0.8 + shift),
        noted("quantize", 4, seed, 5_000, 0.85),
        noted("aim", [0.1, 1.0], seed, 1000, 0.76 + shift, trials=[{"knob": 0.3}]),
    )
]


def test_means_and_standard_deviations_are_over_seeds():
    row = rows(NOTES, TINY)[1]
    assert (row["method"], row["knob"], row["bytes"], row["seeds"]) == ("rate", "step 1.0", 100, 2)
    assert row["accuracy, %"] == "71.00" and row["std"] == f"{np.std([70, 72], ddof=1):.2f}"


def test_a_point_is_compared_with_its_own_seeds_curve_halfway_in_the_logarithm_of_bytes():
    *each, mean = on_the_curve(NOTES, "rate")
    assert [row["curve there, %"] for row in each] == [75.0, 77.0]
    assert [row["difference"] for row in each] == [1.0, 1.0]
    assert mean == {"seed": "mean", "difference": 1.0, "std": 1.41, "within it": "yes"}


def test_the_picture_has_each_mean_at_its_bytes():
    figure = Figure()
    draw(figure, NOTES, TINY, 60.0)
    (axes,) = figure.axes
    lines = {bars.get_label(): bars.lines[0].get_xydata() for bars in axes.containers}
    assert set(lines) == {"float", "rate", "quantize", "aim"}
    assert np.allclose(lines["rate"], [(100, 71), (10_000, 81)])


def test_every_curve_has_recipes_of_one_length_and_its_knob_is_in_them():
    for curve in CURVES:
        recipes = [curve.stages(value) for value in curve.values]
        assert all(sum(stage["epochs"] for stage in recipe) == EPOCHS for recipe in recipes)
        assert len({json.dumps(recipe) for recipe in recipes}) == len(curve.values)
        registry.stages(recipes[0])
    shipped = deep_compression_lenet300.get_config().stages[0].sparsity.to_dict()
    assert CURVES[1].stages(0.5)[0]["sparsity"] == {**shipped, "final": 0.5}
    assert all(len(curve.values) >= 8 or len(curve.values) == 1 for curve in CURVES)
    assert len(by_point(NOTES)) == 5
