"""Sentences of a report say what was measured, and no more."""

import pytest

from jaxopt_nn.reporting import tables


def entry(accuracy=0.98, size=4000, **changed):
    return {
        "name": "q", "metrics": {"accuracy": accuracy, "loss": 0.5}, "params": 1000, "nonzero": 9, "bytes": size,
        "resident_bytes": size, "bits_per_weight": 3.2, "ratio": 4000 / size,
        "macs": 900, "latency": {}, **changed,
    }  # fmt: skip


def report(final, **changed):
    kinds = {"accuracy": {"unit": "%", "better": "higher"}, "loss": {"unit": "nats", "better": "lower"}}
    base = {"metrics": kinds, "headline": "accuracy", "baseline": entry(), "stages": [final], "artifact": None, "config": {}}
    return {**base, **changed}


def over(mean, half=0.01, n=5):
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}


def folded(before, after, **ends):
    """What a report over five folds holds beside its entries."""
    stand = lambda accuracy, loss: {"metrics": {"accuracy": over(accuracy), "loss": over(loss)}}
    less = {"accuracy": over(after[0] - before[0]), "loss": over(after[1] - before[1])}
    final = {**stand(*after), "difference": less}
    test = {"baseline": stand(*before), "final": final, **ends}
    summary = {"baseline": stand(*before), "stages": [{"name": "q", **final}], "test": test}
    fold = {"final": {"accuracy": after[0]}, "stages": [{"bytes": 400}]}
    return {"summary": summary, "cross_validation": {"folds": 5, "examples": 1797}, "folds": [fold] * 5}


def test_the_headline_is_that_of_all_folds():
    made = report(entry(size=400), **folded((0.9811, 0.7), (0.9766, 1.4)))
    said = (
        "10.0x smaller than float32: 4,000 bytes before, 400 after; accuracy over 5 folds 98.11% before, 97.66% after, "
    )
    assert tables.headline(made) == f"{said}0.45 points lost."
    assert tables.headline({**made, "headline": "loss"}).endswith("; loss over 5 folds 0.7 before, 1.4 after, 0.7 nats lost.")


def test_no_fold_is_taken_for_all():
    """The fold of the entries is the flattering one: its numbers stand nowhere in table and sentences."""
    made = report(entry(0.9889, 400), **folded((0.9811, 0.7), (0.9766, 1.4)))
    header, (first, last) = tables.rows(made)
    assert (first[1], last[1]) == ("98.11% ± 1.00", "97.66% ± 1.00") and last[2] == "1.4 ± 0.01" and header[1] == "accuracy"
    said = "\n".join(tables.sentences(made))
    assert "98.89" not in tables.text(made) and "of fold 1" in said and "bytes end between" not in said
    assert "accuracy 98.11% ± 1.00 before, 97.66% ± 1.00 after" in said
    assert "after less before, paired by fold: -0.45 points, 95% interval -1.45 to +0.55" in said
    sizes = [{"final": {"accuracy": 0.9}, "stages": [{"bytes": n}]} for n in (390, 400)]
    assert "bytes end between 390 and 400" in "\n".join(tables.sentences({**made, "folds": sizes}))


def test_a_control_stands_beside_the_last_stage():
    made = report(entry(0.97), control={"metrics": {"accuracy": 0.99, "loss": 0.1}})
    said = "control: trained as long in float, without the recipe's methods, accuracy is {}; with them {}"
    assert tables.sentences(made) == [said.format("99.00%", "97.00%")]
    tested = report(entry(0.97, test={"accuracy": 0.96}), control={**made["control"], "test": {"accuracy": 0.985}})
    assert said.format("98.50%", "96.00%") in tables.sentences(tested)
    alike = {"metrics": {"accuracy": over(0.95)}, "difference": {"accuracy": over(0.05)}}
    assert said.format("95.00% ± 1.00", "80.00%") in tables.sentences({**made, **folded((0.9, 1), (0.8, 2), control=alike)})


def test_a_control_that_was_not_run_is_said_where_something_was_trained():
    trained = report(entry(0.97), history=[{"stage": "q"}])
    assert tables.sentences(trained) == [
        "no control was run, so what training alone would give is not known: pass control=True"
    ]
    assert tables.sentences({**trained, "config": {"model": "m:build"}})[0].endswith("pass --config.control=True")
    assert tables.sentences({**trained, "history": [{"stage": "float"}]}) == []


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
