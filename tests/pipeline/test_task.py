"""Ready-made tasks against NumPy and scikit-learn: losses, metrics, weights, padding, soft labels; any parts of a batch."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as oracle

import jaxopt_nn as jn
from jaxopt_nn.pipeline import grade
from jaxopt_nn.pipeline.checks import check_outputs

RNG = np.random.default_rng(0)
#: The network gives what it gets: outputs are inputs.
SAME = jn.Network(lambda v, x: x * v["one"], {"one": jnp.ones(())})


def graded(task, network=SAME):
    """The metrics over batches of 16, the last of which is filled up."""
    return grade.evaluate(network, task)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(grade, "EXAMPLES", 16)


def log_softmax(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


LOGITS = RNG.standard_normal((37, 5)).astype(np.float32)
LABELS = RNG.integers(0, 5, 37)


def test_classes_by_number_one_hot_and_soft():
    hard = graded(jn.classification(test=(LOGITS, LABELS)))
    losses = -log_softmax(LOGITS)[np.arange(37), LABELS]
    np.testing.assert_allclose(hard["loss"], losses.mean(), rtol=1e-6)
    assert hard["accuracy"] == np.mean(LOGITS.argmax(1) == LABELS)
    one_hot = graded(jn.classification(test=(LOGITS, np.eye(5, dtype=np.float32)[LABELS])))
    np.testing.assert_allclose(list(one_hot.values()), list(hard.values()), rtol=1e-6)
    soft = RNG.dirichlet(np.ones(5), 37).astype(np.float32)
    found = graded(jn.classification(test=(LOGITS, soft)))
    np.testing.assert_allclose(found["loss"], -np.mean((soft * log_softmax(LOGITS)).sum(1)), rtol=1e-5)
    assert found["accuracy"] == np.mean(LOGITS.argmax(1) == soft.argmax(1))


@pytest.mark.parametrize("shape", [(37,), (37, 1)])
def test_two_classes_by_one_logit(shape):
    logits, y = LOGITS[:, 0].reshape(shape), LABELS % 2
    found = graded(jn.classification(test=(logits, y)))
    flat = logits.ravel().astype(np.float64)
    np.testing.assert_allclose(found["loss"], np.mean(np.log1p(np.exp(-np.where(y == 1, flat, -flat)))), rtol=1e-5)
    assert found["accuracy"] == np.mean((flat > 0) == (y == 1))


def test_weights_and_ignored_labels_count_as_they_say():
    weights = RNG.uniform(0, 2, 37).astype(np.float32)
    losses = -log_softmax(LOGITS)[np.arange(37), LABELS]
    found = graded(jn.classification(test=(LOGITS, LABELS, weights), weights=2))
    np.testing.assert_allclose(found["loss"], np.average(losses, weights=weights), rtol=1e-5)
    np.testing.assert_allclose(found["accuracy"], np.average(LOGITS.argmax(1) == LABELS, weights=weights), rtol=1e-5)
    y = np.where(LABELS == 2, -1, LABELS)
    kept = y >= 0
    found = graded(jn.classification(test=(LOGITS, y, weights), weights=2, ignore=-1))
    np.testing.assert_allclose(found["loss"], np.average(losses[kept], weights=weights[kept]), rtol=1e-5)
    for ignored in (-1, 100):
        found = graded(jn.classification(test=(LOGITS, np.where(kept, LABELS, ignored)), ignore=ignored))
        np.testing.assert_allclose(found["loss"], losses[kept].mean(), rtol=1e-5)


def test_a_label_that_is_no_class_in_a_later_batch_of_a_loader_gives_no_number():
    for label in (-1, 5):
        batches = [(LOGITS[:16], LABELS[:16]), (LOGITS[16:32], np.where(np.arange(16) == 3, label, LABELS[16:32]))]
        assert math.isnan(graded(jn.classification(test=batches))["loss"])


def test_a_weight_of_an_example_holds_for_all_its_values():
    """Also where an example has as many values as a batch has rows."""
    weights = RNG.uniform(0, 2, 37).astype(np.float32)
    loss = lambda outputs, batch: (jnp.square(outputs), batch["w"])
    wide = RNG.standard_normal((37, 16)).astype(np.float32)
    for values in (LOGITS, wide):
        found = graded(jn.Task(loss, test={"x": values, "w": weights}, inputs="x"))
        np.testing.assert_allclose(found["loss"], np.average(np.mean(values**2, 1), weights=weights), rtol=1e-5)


def test_booleans_are_labels():
    several = np.eye(5, dtype=int)[LABELS]
    for make, outputs, y in ((jn.classification, LOGITS[:, 0], LABELS % 2), (jn.multilabel, LOGITS, several)):
        assert graded(make(test=(outputs, y.astype(bool)))) == graded(make(test=(outputs, y)))


def test_a_metric_that_never_gets_a_sample_is_no_number():
    found = graded(jn.classification(test=(LOGITS, np.full(37, -1)), ignore=-1))
    assert math.isnan(found["loss"]) and math.isnan(found["accuracy"])
    nothing = np.zeros(37, np.float32)
    for make, y in ((jn.classification, LABELS), (jn.multilabel, LOGITS > 0), (jn.regression, LOGITS)):
        assert all(map(math.isnan, graded(make(test=(LOGITS, y, nothing), weights=2)).values()))
    single = jn.multilabel(test=(LOGITS, np.zeros((37, 5), np.int32)))
    assert math.isnan(graded(single)["auc"])


def language_network():
    table = jnp.asarray(RNG.standard_normal((7, 7)), jnp.float32)
    return jn.Network(lambda v, x: v["table"][x], {"table": table}), np.asarray(table)


def test_a_language_model_of_tokens_alone_and_of_padded_batches():
    network, table = language_network()
    tokens = RNG.integers(0, 7, (21, 6))
    losses = -np.take_along_axis(log_softmax(table[tokens[:, :-1]]), tokens[:, 1:, None], -1)[..., 0]
    found = graded(jn.language_model(test=tokens), network)
    np.testing.assert_allclose([found["loss"], found["perplexity"]], [losses.mean(), np.exp(losses.mean())], rtol=1e-5)
    bits = graded(jn.language_model(test=(tokens[:, :-1], tokens[:, 1:]), per="byte"), network)
    np.testing.assert_allclose(bits["bits/byte"], losses.mean() / np.log(2), rtol=1e-5)
    mask = RNG.random((21, 5)) < 0.6
    x, y = tokens[:, :-1], tokens[:, 1:]
    for given in (
        jn.language_model(test={"x": x, "y": np.where(mask, y, -100)}, inputs="x", labels="y", ignore=-100),
        jn.language_model(test={"x": x, "y": y, "m": mask}, inputs="x", labels="y", weights="m"),
    ):
        np.testing.assert_allclose(graded(given, network)["loss"], losses[mask].mean(), rtol=1e-5)
    weights, kept = RNG.uniform(0, 2, (21, 5)).astype(np.float32), y != 3
    both = jn.language_model(test=(x, y, weights), weights=2, ignore=3)
    np.testing.assert_allclose(graded(both, network)["loss"], np.average(losses[kept], weights=weights[kept]), rtol=1e-5)
    with pytest.raises(ValueError, match="allowed are 'token' and 'byte'"):
        jn.language_model(test=tokens, per="word")


def test_several_labels_by_scikit_learn():
    y = (RNG.random((37, 5)) < 0.3).astype(np.int32)
    found = graded(jn.multilabel(test=(LOGITS, y)))
    flat, truth = LOGITS.ravel(), y.ravel()
    np.testing.assert_allclose(found["f1"], oracle.f1_score(truth, flat > 0), rtol=1e-6)
    np.testing.assert_allclose(found["auc"], oracle.roc_auc_score(truth, flat), rtol=1e-6)
    tied = np.round(flat)
    tied_found = graded(jn.multilabel(test=(tied.reshape(37, 5), y)))["auc"]
    np.testing.assert_allclose(tied_found, oracle.roc_auc_score(truth, tied), rtol=1e-6)
    np.testing.assert_allclose(found["loss"], oracle.log_loss(truth, 1 / (1 + np.exp(-flat.astype(np.float64)))), rtol=1e-5)
    batches = [jax.tree.map(lambda x, s=s: x[s : s + 10], (LOGITS, y)) for s in range(0, 37, 10)]
    apart = graded(jn.multilabel(test=batches))
    np.testing.assert_allclose(list(apart.values()), list(found.values()), rtol=1e-6)


def test_numbers_by_scikit_learn():
    y = (LOGITS + RNG.standard_normal((37, 5))).astype(np.float32)
    found = graded(jn.regression(test=(LOGITS, y)))
    expected = {"rmse": oracle.mean_squared_error(y, LOGITS) ** 0.5, "mae": oracle.mean_absolute_error(y, LOGITS),
                "r2": oracle.r2_score(y.ravel(), LOGITS.ravel()), "loss": oracle.mean_squared_error(y, LOGITS)}  # fmt: skip
    np.testing.assert_allclose([found[k] for k in expected], list(expected.values()), rtol=1e-5)
    weights = RNG.uniform(0, 2, 37).astype(np.float32)
    found = graded(jn.regression(test=(LOGITS, y, weights), weights=2))
    np.testing.assert_allclose(found["loss"], oracle.mean_squared_error(y, LOGITS, sample_weight=weights), rtol=1e-5)
    each = oracle.r2_score(y.ravel(), LOGITS.ravel(), sample_weight=np.repeat(weights, 5))
    np.testing.assert_allclose(found["r2"], each, rtol=1e-5)
    far = [(x + 2e5).astype(np.float32) for x in (LOGITS, y)]  # a price, say: its variance is far below the square of its mean
    expected = oracle.r2_score(far[1].astype(np.float64).ravel(), far[0].astype(np.float64).ravel())
    np.testing.assert_allclose(graded(jn.regression(test=tuple(far)))["r2"], expected, rtol=1e-4)
    assert math.isnan(graded(jn.regression(test=(LOGITS, np.full_like(LOGITS, 0.1))))["r2"]), "nothing to explain"


def test_inputs_come_back():
    half = jn.Network(lambda v, x: x * v["one"] / 2, SAME.variables)
    np.testing.assert_allclose(graded(jn.reconstruction(test=LOGITS), half)["loss"], np.mean(LOGITS**2) / 4, rtol=1e-5)
    named = jn.reconstruction(test={"image": LOGITS}, inputs="image")
    np.testing.assert_allclose(graded(named, half)["rmse"], np.sqrt(np.mean(LOGITS**2)) / 2, rtol=1e-5)


def test_a_loss_of_ones_own_with_several_inputs_and_outputs():
    """Two heads, a dict of outputs, a loss that weighs them, a scalar loss, a metric of the whole set."""
    apply = lambda v, a, b: {"sum": (a + b) * v["one"], "gap": a - b}
    batch = {"a": LOGITS[:, 0], "b": LOGITS[:, 1], "y": LOGITS[:, 2]}
    loss = lambda out, batch: jnp.square(out["sum"] - batch["y"]) + 0.5 * jnp.abs(out["gap"])
    largest = jn.Metric(
        lambda out, batch, real: jnp.max(jnp.where(real > 0, out["gap"], -jnp.inf)), float, np.maximum, "lower"
    )
    network = jn.Network(apply, SAME.variables)
    task = jn.Task(loss, test=batch, inputs=("a", "b"), metrics={"largest gap": largest}, headline="largest gap")
    found = graded(task, network)
    a, b, y = batch.values()
    np.testing.assert_allclose(found["loss"], np.mean((a + b - y) ** 2 + 0.5 * abs(a - b)), rtol=1e-5)
    np.testing.assert_allclose(found["largest gap"], (a - b).max(), rtol=1e-6)
    whole = jn.Task(lambda out, batch: jnp.max(out["gap"]), test=batch, inputs=("a", "b"))
    assert graded(whole, network)["loss"] == pytest.approx(np.mean([(a - b)[i : i + 16].max() for i in (0, 16)] + [
        np.concatenate([(a - b)[32:], (a - b)[:0], np.repeat((a - b)[32], 11)]).max()]), rel=1e-5)  # fmt: skip


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: jn.Task("mse", test=LOGITS), TypeError, "Task: loss is 'mse'; pass a function"),
        (lambda: jn.Task(len, test=LOGITS, metrics={"a": len}), TypeError, "metrics\\['a'\\] is the function len; pass"),
        (lambda: jn.Task(len, test=LOGITS, headline="f1"), ValueError, "headline='f1'\\): is none of its metrics"),
        (lambda: jn.Task(len), ValueError, "no test data"),
        (lambda: jn.Task(len, test=LOGITS, train=LOGITS[:, :2]), ValueError, "an example of train has float32\\[2\\] at"),
        (lambda: jn.Task(len, test=(LOGITS, LABELS), train=(LOGITS, LABELS * 1.0)), ValueError, "train has float64.*int64"),
    ],
)  # fmt: skip
def test_bad_tasks(make, error, said):
    with pytest.raises(error, match=said):
        make()


LOSS, MEAN = (lambda o, b: jnp.square(o[:, 0])), jn.metrics.mean_of


def test_two_values_an_example_are_not_two_examples():
    check_outputs(SAME, jn.Task(lambda o, b: o[:, :2], test=LOGITS, metrics={"m": MEAN(lambda o, b: b[:, :2])}), trains=False)


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (jn.classification(test=(LOGITS, LABELS + 1)), "test: label 5 at .* but there are 5 classes: allowed are 0 to 4"),
        (jn.classification(test=(LOGITS, LABELS - 1)), "test: label -1 at"),
        (jn.classification(test=[(LOGITS, LABELS - 1)]), "test: label -1 at"),
        (jn.classification(test=(LOGITS, LOGITS[:, :3])), r"labels are floats \[2, 3\], one for each class, but apply gives"),
        (jn.classification(test={"x": LOGITS, "y": LABELS}, inputs="x"), "the batch is keys .*'x', 'y'.* no entry 1; name"),
        (jn.regression(test=(LOGITS, LABELS.astype(np.float32))), r"targets are \['B'\], but apply gives float32\[2, 5\]"),
        (jn.multilabel(test=(LOGITS, LABELS)), "targets are .* but apply gives"),
        (jn.Task(lambda o, b: o @ o, test=LOGITS), r"the loss fails on outputs float32\[2, 5\] and a batch float32\[2, 5\]"),
        (jn.Task(lambda o, b: o.sum(0), test=LOGITS), r"the loss gives float32\[5\] for 2 examples; it must give values"),
        (jn.Task(lambda o, b: o > 0, test=LOGITS), "the loss gives bool; it must give floats"),
        (jn.Task(lambda o, b: o[:, 0], test=LOGITS, inputs=3), "no entry 3"),
        (
            jn.Task(lambda o, b: o[:, :1] - b[:, 0][None], test=LOGITS),
            r"the loss gives \[2, 2\] for 2 examples and \[3, 3\] for 3: it mixes examples; outputs are float32\[2, 5\]",
        ),
        (
            jn.Task(lambda o, b: (o, b[:, :3]), test=LOGITS),
            r"the loss fails on .*weights \[2, 3\] of values \[2, 5\]: pass one for each example or value",
        ),
        (jn.Task(LOSS, test=LOGITS, metrics={"m": MEAN(lambda o, b: b["y"])}), "the metric 'm' fails on outputs"),
        (
            jn.Task(LOSS, test=LOGITS, metrics={"m": MEAN(lambda o, b: o[:, :1] - b[:, 0][None])}),
            r"the metric 'm' gives \[2, 2\] for 2 examples and \[3, 3\] for 3",
        ),
        (
            jn.Task(LOSS, test=LOGITS, metrics={"m": jn.metrics.auc(lambda o, b: (o[:, :1], b[:, 0], None))}),
            r"the metric 'm' fails on .*predictions are \[2, 1\], what is wanted \[2\]; make them alike",
        ),
    ],
)
def test_outputs_that_do_not_fit_are_named(task, said):
    with pytest.raises(ValueError, match=said):
        check_outputs(SAME, task, trains=False)
