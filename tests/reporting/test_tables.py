"""Sentences of a report say what was measured, and no more."""

import pytest

from jaxopt_nn.reporting import tables


def entry(accuracy=0.98, size=4000, **changed):
    return {
        "metrics": {"accuracy": accuracy, "loss": 0.5}, "params": 1000, "bytes": size, "ratio": 4000 / size,
        "latency_ms": {}, **changed,
    }  # fmt: skip


def report(final, **changed):
    kinds = {"accuracy": {"unit": "%", "better": "higher"}, "loss": {"unit": "nats", "better": "lower"}}
    return {"metrics": kinds, "headline": "accuracy", "baseline": entry(), "stages": [final], "artifact": None, **changed}


def test_the_headline_is_that_of_all_folds():
    cross = {
        "folds": 5, "examples": 1797, "baseline": {"accuracy": 0.9811, "loss": 0.7}, "final": {"accuracy": 0.9766, "loss": 1.4},
        "of_folds": {"baseline": [], "final": [], "ratio": []},
    }  # fmt: skip
    made = report(entry(size=400), cross_validation=cross)
    said = (
        "10.0x smaller than float32: 4,000 bytes before, 400 after; accuracy over 5 folds 98.11% before, 97.66% after, "
    )
    assert tables.headline(made) == f"{said}0.45 points lost."
    assert tables.headline({**made, "headline": "loss"}).endswith("; loss over 5 folds 0.7 before, 1.4 after, 0.7 nats lost.")


@pytest.mark.parametrize(
    ("after", "size", "said"),
    [
        ((2.0, 11.0, 4.0), 400, ("", "2.00x at 1, 1.10x at 32, 0.40x at 1024", " (at 32 within the noise of medians)")),
        (
            (2.0, 11.0, 11.0), 400,
            ("smaller, not faster, on this backend; ", "2.00x at 1, 1.10x at 32, 1.10x at 1024",
             " (at 32, 1024 within the noise of medians)"),
        ),
        ((2.0, 20.0, 20.0), 4000, ("not faster, on this backend; ", "2.00x at 1, 2.00x at 32, 2.00x at 1024", "")),
        ((1.2, 9.0, 10.0), 400, ("", "1.20x at 1, 0.90x at 32, 1.00x at 1024", " (all within the noise of medians)")),
    ],
)  # fmt: skip
def test_all_batches_are_told_and_what_is_noise(after, size, said):
    lead, ratios, doubt = said
    timed = dict(zip(("1", "32", "1024"), (1.0, 10.0, 10.0), strict=True))
    final = entry(size=size, latency_ms=dict(zip(timed, after, strict=True)))
    assert tables.sentences(report(final, baseline=entry(latency_ms=timed))) == [
        f"{lead}time over the baseline's, by batch: {ratios}{doubt}"
    ]


def test_a_control_stands_beside_the_last_stage():
    made = report(entry(0.97), control={"metrics": {"accuracy": 0.99, "loss": 0.1}})
    said = "control: trained as long in float, without the recipe's methods, accuracy is {}; with them {}"
    assert tables.sentences(made) == [said.format("99.00%", "97.00%")]
    tested = report(entry(0.97, test={"accuracy": 0.96}), control={**made["control"], "test": {"accuracy": 0.985}})
    assert said.format("98.50%", "96.00%") in tables.sentences(tested)
    before, after, alike = ({"accuracy": x} for x in (0.9, 0.8, 0.95))
    cross = {"folds": 2, "examples": 9, "baseline": before, "final": after, "control": alike, "of_folds": {"final": []}}
    assert said.format("95.00%", "80.00%") in tables.sentences({**made, "cross_validation": cross})


def test_nothing_is_said_of_latency_that_was_not_measured():
    assert tables.sentences(report(entry())) == []


@pytest.mark.parametrize(
    ("size", "said"), [(500, "8.00x smaller than"), (4560, "1.14x larger than"), (4010, "as large as")]
)
def test_an_artifact_is_smaller_or_larger(size, said):
    made = report(entry(), artifact={"path": "x", "bytes": size, "metrics_reloaded": {"accuracy": 0.95}})
    assert f"on disk, {said} the baseline's arrays; read back" in tables.sentences(made)[0]


@pytest.mark.parametrize(
    ("params", "said"),
    [
        (20_000, "20,000 parameters, 20.0 times as many"),
        (1000, "1,000 parameters, as many as the student"),
        (500, "500 parameters, the student has 2.0 times as many"),
    ],
)
def test_how_large_a_teacher_is(params, said):
    made = report(entry(), teacher={"metrics": {"accuracy": 0.99, "loss": 0.1}, "params": params})
    assert tables.sentences(made) == [f"teacher: accuracy 99.00%, {said}"]
