"""What a report says beyond metrics and bytes, each against a second way to get it: leaves alone, classes, curves, control."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

import jaxopt_nn as jn
from jaxopt_nn.pipeline import grade
from jaxopt_nn.pipeline.checkpoints import Checkpoints

RNG = np.random.default_rng(0)
X = RNG.standard_normal((150, 6)).astype(np.float32)
Y = np.argmax(X[:, :3] + 0.3 * RNG.standard_normal((150, 3)), 1).astype(np.int32)
TRAIN, VALID, TEST = ((X[a:b], Y[a:b]) for a, b in ((0, 64), (64, 96), (96, 150)))


def apply(variables, x):
    return jnp.maximum(x @ variables["up"] + variables["bias"][None], 0) @ variables["down"]


def weights(*shape):
    return jnp.asarray(RNG.standard_normal(shape) / np.sqrt(shape[0]), jnp.float32)


NETWORK = jn.Network(apply, {"up": weights(6, 16), "bias": jnp.full(16, 0.1), "down": weights(16, 3)})
PACKED = [jn.Stage("w2", jn.quantize(2))]


def task(**changed):
    return jn.classification(**{"train": TRAIN, "test": TEST, "batch_size": 16, **changed})


def alone(result):
    return {leaf["path"]: leaf["alone"] for leaf in result.stages[-1]["leaves"]}


def test_the_loss_of_a_leaf_alone_is_that_of_a_network_with_this_leaf_alone_compressed():
    result = jn.compress(NETWORK, PACKED, task(), latency=False)
    decoded = jn.densify(result.network.variables)
    loss = lambda **leaves: jn.evaluate(NETWORK.replace(variables={**NETWORK.variables, **leaves}), task())["loss"]
    assert alone(result) == {
        "bias": None, "up": loss(up=decoded["up"]) - loss(), "down": loss(down=decoded["down"]) - loss(),
    }  # fmt: skip
    assert all(leaf["alone"] is None for leaf in result.report["baseline"]["leaves"])
    assert min(abs(alone(result)[path]) for path in ("up", "down")) > 1e-3


def test_what_leaves_alone_cost_is_bounded_unless_asked_for(monkeypatch):
    monkeypatch.setattr(grade, "MACS", 1000)
    told = jn.compress(NETWORK, PACKED, task(), latency=False)
    assert set(alone(told).values()) == {None}
    said = {s["path"]: s["reason"] for s in told.report["skipped"]}["loss by leaf"]
    macs = 2 * 54 * (6 * 16 + 16 * 3)
    assert said == f"not measured: of 2 leaves it takes {macs:.1e} multiply-accumulates; pass sensitivity=True"
    with monkeypatch.context() as patch:
        patch.setattr(grade, "accumulated", None)  # nothing is evaluated before that is decided
        decoded = jn.densify(told.network.variables)
        assert f"not measured: {grade.losses_alone(NETWORK, decoded, task(), 6 * 16 + 16 * 3)}" == said
    assert alone(jn.compress(NETWORK, PACKED, task(), latency=False, sensitivity=True))["up"] > 0
    silent = jn.compress(NETWORK, PACKED, task(), latency=False, sensitivity=False)
    assert set(alone(silent).values()) == {None} and "loss by leaf" not in {s["path"] for s in silent.report["skipped"]}


def test_leaves_of_a_network_that_was_cut_have_no_loss_alone():
    cut = jn.cut_units(jn.scores.mean_activation, share=0.5)
    result = jn.compress(NETWORK, [jn.Stage("cut", cut), *PACKED], task(), latency=False)
    assert set(alone(result).values()) == {None}
    assert "the recipe cuts the network" in {s["path"]: s["reason"] for s in result.report["skipped"]}["loss by leaf"]


@pytest.mark.parametrize("soft", [False, True])
def test_confusions_are_those_of_scikit_learn(soft):
    """Of a loader with short batches and examples that do not count."""
    labels = np.eye(3, dtype=np.float32)[TEST[1]] if soft else TEST[1]
    counts = (np.arange(54) % 7 > 0).astype(np.float32)
    parts = [(TEST[0][a:b], labels[a:b], counts[a:b]) for a, b in ((0, 25), (25, 50), (50, 54))]
    train = (TRAIN[0], np.eye(3, dtype=np.float32)[TRAIN[1]] if soft else TRAIN[1], np.ones(64, np.float32))
    result = jn.compress(NETWORK, PACKED, task(train=train, test=parts, weights=2), latency=False)
    kept = counts > 0
    truth = TEST[1][kept]
    before, after = (np.argmax(net(TEST[0]), 1)[kept] for net in (NETWORK, result.network))
    found = result.report["confusion"]
    assert found["labels"] == [0, 1, 2] and not np.array_equal(before, after)
    assert found["baseline"] == confusion_matrix(truth, before).tolist()
    assert found["final"] == confusion_matrix(truth, after).tolist()
    for row in found["changed"]:
        own = truth == row["label"]
        assert row["lost"] == np.sum(own & (before == truth) & (after != truth))
        assert row["won"] == np.sum(own & (before != truth) & (after == truth))


def test_one_logit_has_two_classes():
    net = jn.Network(lambda v, x: x @ v["w"], {"w": weights(6, 1)})
    labels = (TEST[1] > 0).astype(np.int32)
    result = jn.compress(net, PACKED, task(train=None, test=(TEST[0], labels)), latency=False)
    answers = (np.asarray(net(TEST[0]))[:, 0] > 0).astype(int)
    assert result.report["confusion"]["baseline"] == confusion_matrix(labels, answers).tolist()


def test_a_negative_label_late_in_a_loader_counts_for_nothing_in_the_confusions():
    """The first batch alone is checked before the run; what -1 does to the loss is seen there."""
    detail = jn.classification(test=(np.zeros((1, 2), np.float32), [0])).details["confusion"]
    x, y = np.float32([[1, 0], [0, 1], [0, 1]]), np.array([0, 1, -1])
    parts = detail.measure(jnp.asarray(x), (x, y), jnp.ones(3))
    assert detail.compare(parts, parts)["final"] == [[1, 0], [0, 1]]


def test_a_loader_that_shuffles_has_confusions_and_no_changes():
    order = iter(range(100))
    shuffled = lambda: [tuple(part[np.random.default_rng(next(order)).permutation(54)] for part in (TEST[1][:, None], TEST[1]))]
    net = jn.Network(lambda v, x: jnp.eye(3)[x[:, 0]] @ v["w"], {"w": weights(3, 3)})
    result = jn.compress(net, PACKED, jn.classification(test=shuffled), latency=False)
    assert result.report["confusion"]["changed"] is None


def test_what_has_no_single_label_of_few_classes_has_no_confusion():
    ((_, detail),) = task().objective.details
    labels, real = np.zeros(4, np.int32), np.ones(4, np.float32)
    assert len(detail.measure(jnp.zeros((4, 100)), (None, labels), real)) == 3
    assert detail.measure(jnp.zeros((4, 101)), (None, labels), real) == ()
    assert detail.measure(jnp.zeros((4, 2, 3)), (None, np.zeros((4, 2), np.int32)), real) == ()
    assert detail.compare((), ()) is None and jn.regression(test=(X, X[:, :3])).objective.details == ()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    recipe = [
        jn.Stage("clip", jn.clip(-1.0, 1.0), epochs=50, learning_rate=1e-2),
        jn.Stage("w2", jn.quantize(2), epochs=2, learning_rate=1e-2),
    ]
    folder = tmp_path_factory.mktemp("control")
    places = lambda name: Checkpoints(folder / name)
    return recipe, jn.compress(NETWORK, recipe, task(valid=VALID), latency=False, control=True, checkpoints=places), folder


def test_validation_curves_have_a_few_points_and_end_with_the_stage(trained):
    _, result, _ = trained
    points = {
        name: [(e["epoch"], e["valid"]) for e in result.report["history"] if e["stage"] == name and "valid" in e]
        for name in ("clip", "w2")
    }
    assert [epoch for epoch, _ in points["clip"]] == [*range(3, 51, 3), 50], "at most 20, the last one among them"
    for stage in result.stages:
        assert points[stage["name"]][-1][1] == pytest.approx(stage["metrics"])
    assert "valid" not in jn.compress(NETWORK, trained[0][1:], task(), latency=False).report["history"][-1]


def test_a_control_is_the_same_training_without_the_methods(trained):
    recipe, result, folder = trained
    plain = jn.compress(NETWORK, jn.control(recipe), task(valid=VALID), latency=False)
    assert result.report["control"] == {name: plain.stages[-1][name] for name in ("metrics", "test")}
    assert result.report["folds"][0]["control"] == plain.stages[-1]["test"]
    assert {path.name for path in (folder / "control").iterdir()} == {"clip", "w2"}
    assert not any(e["stage"].startswith("control") for e in result.report["history"])
    assert jn.compress(NETWORK, PACKED, task(), latency=False, control=True).report["control"] is None, "nothing is trained"


def test_a_stage_can_not_be_called_as_the_control_is():
    with pytest.raises(ValueError, match="a stage is called 'control'"):
        jn.compress(NETWORK, [jn.Stage("control", jn.clip(-1.0, 1.0), epochs=1)], task(), control=True)
