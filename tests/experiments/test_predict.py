"""From an artifact alone to predictions on all devices; what does not fit is named, without a traceback."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import compress, predict
from experiments.models import digits
from jaxopt_nn.core.combine import where
from jaxopt_nn.interpret.inspect import inspect
from jaxopt_nn.interpret.network import Network
from jaxopt_nn.methods.arithmetic import arithmetic
from jaxopt_nn.methods.quantize import quantize
from jaxopt_nn.pipeline.classes import classification, multilabel
from jaxopt_nn.pipeline.store import load, save

FEATURES, CLASSES = 16, 4
REPOSITORY = pathlib.Path(predict.__file__).parent.parent


def own_model(seed, scale=1.0):
    def apply(variables, x):
        return scale * jnp.tanh(x.reshape(len(x), FEATURES)) @ variables["w"] + variables["b"][None]

    rng = np.random.default_rng(seed)
    w = jnp.asarray(rng.standard_normal((FEATURES, CLASSES)), jnp.float32)
    return Network(apply, {"w": w, "b": jnp.zeros(CLASSES)})


def own_data(seed, rows=40):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, 4, 4)).astype(np.float32)
    y = np.tanh(x.reshape(rows, -1)) @ np.asarray(own_model(0).variables["w"])
    return classification(train=(x[:8], y[:8].argmax(-1)), test=(x[8:], y[8:].argmax(-1)))


def pair():
    return own_data(5).test.tree


def inputs():
    return pair()[0]


def nothing():
    return {}


def empty():
    return np.zeros((0, 4, 4), np.float32)


def own_rule():
    return arithmetic("w8a8")


def tiny(**changes):
    return {
        "seed": 0, "model": f"{__name__}:own_model", "batch_size": 8, "data": {"source": f"{__name__}:own_data"},
        "float": {"epochs": 2, "learning_rate": 0.01},
        "stages": [{"name": "q", "method": "quantize", "where": "**/w", "bits": 8, "rule": "w8a16"}], **changes,
    }  # fmt: skip


def saved(directory, extra, bits=8, rules=()):
    network = own_model(0)
    method = where("w", quantize(bits))
    info = inspect(network.apply, network.variables, inputs())
    stored = method.pack(network.variables, method.init(network.variables, info))
    save(directory, network.replace(variables=stored, rules=rules), extra=extra)
    return str(directory)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    config = tiny(stages=[{"name": "q", "method": "quantize", "bits": 8, "rule": "w8a16"}])
    return saved(tmp_path_factory.mktemp("run") / "artifact", {"config": config}, rules=arithmetic("w8a16"))


def test_what_compress_ships_is_what_predict_runs(tmp_path):
    config = tiny(stages=[{"name": "q", "method": "quantize", "where": "w", "bits": 4, "rule": "w4a8"}])
    report = compress.run(config, str(tmp_path), latency=False)
    found = predict.run(report["artifact"]["path"], batch_size=8, repeats=3)
    last = report["stages"][-1]
    assert found["values"] == pytest.approx(last["metrics"], abs=1e-5) and found["metrics"] == report["metrics"]
    assert (found["examples"], found["rule"], found["bytes"]) == (32, "w4a8", report["artifact"]["bytes"])
    assert found["batch_size"] == 8 and found["per_device"] == 1 and len(found["devices"]) == 8
    with pytest.raises(ValueError, match=f"is a run's folder; its artifact is {tmp_path}/network.jn"):
        predict.run(tmp_path)


def test_numbers_and_predictions(artifact, tmp_path):
    found = predict.run(artifact, batch_size=20, repeats=7, output=str(tmp_path / "out.npz"))
    x, y = own_data(0).test.tree
    assert found["values"]["accuracy"] > 0.95
    assert (found["examples"], found["batch_size"], found["per_device"]) == (32, 24, 3)
    times = found["latency_ms"]
    assert times["batches"] == 7 and 0 < times["p50"] <= times["p99"] and times["first"] > 0
    assert found["examples_per_second"] > 0
    json.dumps(found)
    out = np.load(tmp_path / "out.npz")
    np.testing.assert_array_equal(out["classes"], out["outputs"].argmax(-1))
    assert np.mean(out["classes"] == y) == pytest.approx(found["values"]["accuracy"])
    weights = np.asarray(own_model(0).variables["w"])
    np.testing.assert_allclose(out["outputs"], np.tanh(x.reshape(32, -1)) @ weights, atol=0.1)


X = np.zeros((3, 2), np.float32)
SINGLE = np.float32([-1, 0.5, 2])


@pytest.mark.parametrize(
    ("task", "outputs", "classes"),
    [
        (classification(test=(X, np.array([0, 1, 2]))), np.eye(3, dtype=np.float32)[[1, 2, 0]], [1, 2, 0]),
        (classification(test=(X, np.array([0, 1, 1]))), SINGLE[:, None], [0, 1, 1]),
        (classification(test=(X, np.array([0, 1, 1]))), SINGLE, [0, 1, 1]),
        (classification(test=(X, np.array([[0], [1], [1]]))), SINGLE[:, None], [[0], [1], [1]]),
        (multilabel(test=(X, np.array([[0, 1]] * 3))), np.ones((3, 2), np.float32), None),
    ],
    ids=["three classes", "one logit, its axis", "one logit", "one logit, labels with its axis", "several labels"],
)
def test_classes_are_the_answers_that_the_accuracy_counts(tmp_path, task, outputs, classes):
    predict.save(tmp_path / "out.npz", outputs, task)
    out = np.load(tmp_path / "out.npz")
    assert ("classes" in out) == (classes is not None)
    if classes is not None:
        np.testing.assert_array_equal(out["classes"], classes)
        accuracy = predict.graded(outputs, predict.Examples((X,), (X, np.asarray(classes))), task)["accuracy"]
        assert accuracy == 1.0


@pytest.mark.parametrize("name", ["pair", "inputs", "own_data"])
def test_data_from_a_function(artifact, name):
    found = predict.run(artifact, f"{__name__}:{name}", repeats=1)
    assert found["examples"] == 32 and (found["values"] is None) == (name == "inputs")


def test_data_from_a_loader_is_predicted_as_one():
    task = own_data(5)
    x, y = task.test.tree
    batches = [(x[i : i + 12], y[i : i + 12]) for i in range(0, 32, 12)]
    found = predict.of_source(task.replace(test=lambda: iter(batches)))
    assert len(found) == 32
    for array, whole in zip((*found.inputs, *found.batch), (x, x, y), strict=True):
        np.testing.assert_array_equal(array, whole)


def test_data_from_a_file(artifact, tmp_path):
    x, y = pair()
    np.savez(tmp_path / "both.npz", x=x, y=y)
    np.savez(tmp_path / "x.npz", x=x[:5])
    assert predict.run(artifact, str(tmp_path / "both.npz"), repeats=1)["values"]["accuracy"] > 0.9
    found = predict.run(artifact, str(tmp_path / "x.npz"), repeats=1)
    assert found["values"] is None and found["examples"] == 5, "the batch is no larger than the data"
    assert ["accuracy"] not in [line[:1] for line in predict.rows(found)]


def test_the_rule_and_the_model_arguments_are_those_of_the_config(tmp_path):
    x, _ = pair()
    np.savez(tmp_path / "x.npz", x=x)
    outs = []
    for i, (changes, rule) in enumerate(
        [({}, None), ({"model_args": {"scale": 2.0}}, None), ({}, "w8a8"),
         ({"stages": [{"name": "q", "method": "quantize", "bits": 8, "rule": f"{__name__}:own_rule"}]}, "w8a8")]
    ):  # fmt: skip
        where_ = saved(tmp_path / str(i), {"config": tiny(**changes)}, rules=arithmetic(rule) if rule else ())
        found = predict.run(where_, str(tmp_path / "x.npz"), repeats=1, output=str(tmp_path / "out.npz"))
        assert found["rule"] == rule
        outs.append(np.load(tmp_path / "out.npz")["outputs"])
    np.testing.assert_allclose(outs[1], 2 * outs[0], rtol=1e-5, atol=1e-5)
    assert 1e-4 < np.abs(outs[2] - outs[0]).max() < 0.1
    np.testing.assert_array_equal(outs[3], outs[2])


def broken(tmp_path, name):
    """A file or name for ``data`` that can't be used."""
    x, y = pair()
    file = tmp_path / "data.npz"
    arrays = {
        "shape": {"x": np.zeros((9, 5), np.float32)},
        "no x": {"images": x},
        "empty": {"x": x[:0]},
        "scalar": {"x": np.float32(1)},
        "nan": {"x": np.full_like(x, np.nan)},
        "labels": {"x": x, "y": y[:3]},
        "whole one-hot": {"x": x, "y": np.eye(CLASSES, dtype=int)[y]},
        "classes": {"x": x, "y": y + 7},
        "objects": {"x": np.array([None, 1])},
        "text": {"x": np.array(["a", "b"])},
    }
    if name == "damaged":
        np.savez(file, x=x)
        file.write_bytes(file.read_bytes()[:200])
    elif name == "no zip":
        file.write_text("x")
    elif name in arrays:
        np.savez(file, **arrays[name])
    else:
        return name
    return str(file)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("shape", r"the model fails on inputs float32\[B, 5\]: TypeError: cannot reshape .* with inputs as in its training$"),
        ("no x", "holds images; needs x"),
        ("empty", "data=.*: no examples"),
        ("scalar", r"the first axes are the examples, and differ: the array \[\]"),
        ("nan", "NaN or Inf; clean the data first"),
        ("labels", r"the first axes are the examples, and differ: 0 \[32, 4, 4\], 1 \[3\]"),
        ("whole one-hot", "data: labels are one-hot in int64; pass them as floats, or class numbers"),
        ("classes", "data: label .* but there are 4 classes: allowed are 0 to 3"),
        ("text", "is no number; convert it first"),
        ("damaged", "no .npz of arrays, or a damaged one"),
        ("no zip", "data.npz: no .npz of arrays"),
        ("objects", "data.npz: Object arrays cannot be loaded"),
        ("nowhere.npz", "no such file"),
        (f"{__name__}:pear", "has no 'pear'; nearest: pair"),
        (f"{__name__}:nothing", "holds no array; pass"),
        (f"{__name__}:empty", "no examples"),
    ],
)
def test_data_that_does_not_fit_is_named(artifact, tmp_path, name, said):
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        predict.run(artifact, broken(tmp_path, name), repeats=1)


def test_an_image_of_another_size_for_a_flax_model():
    task = classification(test=(np.zeros((3, 8, 8, 1), np.float32), [0, 1, 2]))
    with pytest.raises(ValueError) as caught:
        predict.check_fit(digits.build(0), task, predict.Examples((np.zeros((3, 5, 5, 1), np.float32),), None))
    said = str(caught.value)
    assert said.startswith("the model fails on inputs float32[B, 5, 5, 1]: ScopeParamShapeError: ")
    assert "(64, 300)" in said and "http" not in said and "\n" not in said


def test_whole_numbers_are_noted_where_the_model_takes_floats(artifact, tmp_path):
    x, y = pair()
    np.savez(tmp_path / "bytes.npz", x=(np.abs(x) * 50).astype(np.uint8), y=y)
    found = predict.run(artifact, str(tmp_path / "bytes.npz"), repeats=1)
    assert found["note"].startswith("the inputs are uint8, 0 to ") and ["note", found["note"]] in predict.rows(found)
    assert predict.run(artifact, repeats=1)["note"] is None

    tokens = np.zeros((2, 3), np.int32)
    note = lambda apply, x: predict.scale_note(Network(apply, {"w": jnp.ones((5, 2))}), predict.Examples((x,), None))
    assert note(lambda v, t: v["w"][t], tokens) is None, "a table is looked up by whole numbers"
    assert note(lambda v, t: v["w"][0, 0] * t, tokens.astype(np.float32)) is None
    assert note(lambda v, t: v["w"][0, 0] * t, tokens).startswith("the inputs are int32")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"batch_size": 0}, "batch_size=0: allowed are 1 and more"),
        ({"repeats": 0}, "repeats=0: allowed"),
        ({"output": "no/such/folder/out.npz"}, "no such directory for output"),
    ],
)
def test_arguments_out_of_range(artifact, arguments, said):
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        predict.run(artifact, **arguments)


@pytest.mark.parametrize("extra", [None, {"note": "mine"}, {"config": {"stages": []}}])
def test_an_artifact_without_its_config_says_what_to_do(tmp_path, extra):
    with pytest.raises(ValueError, match=r"does not name the model .* jaxopt_nn.load, "):
        predict.run(saved(tmp_path / "a", extra))


def command(*flags, devices=8):
    environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    line = [sys.executable, "-m", "experiments.predict", *flags]
    return subprocess.run(line, capture_output=True, text=True, cwd=REPOSITORY, env=environment)


def scanned_model(seed):
    def apply(variables, x):
        x = x.reshape(len(x), FEATURES)
        return jax.lax.scan(lambda h, w: (h + jnp.tanh(h @ w), None), x, variables["layers"])[0] @ variables["w"]

    layers = jnp.asarray(np.random.default_rng(seed).standard_normal((3, FEATURES, FEATURES)) / 4, jnp.float32)
    return Network(apply, {"layers": layers, "w": own_model(seed).variables["w"]})


@pytest.mark.slow
def test_calibrated_ranges_of_a_scan_answer_alike_in_another_process_on_all_devices(tmp_path):
    stages = [{"name": "q", "method": "quantize", "bits": 8, "rule": "w8a8-static"}]
    report = compress.run(tiny(model=f"{__name__}:scanned_model", stages=stages), str(tmp_path / "run"), latency=False)
    path, x = report["artifact"]["path"], inputs()
    np.savez(tmp_path / "x.npz", x=x)
    done = command(f"--artifact={path}", f"--data={tmp_path / 'x.npz'}", "--repeats=1", f"--output={tmp_path / 'out.npz'}")
    assert done.returncode == 0, done.stderr
    assert "8 x cpu" in done.stdout and "w8a8, static ranges" in done.stdout
    network = load(path, scanned_model(0).apply)
    assert network.states["layers"].carried.shape == (3,)
    np.testing.assert_allclose(np.load(tmp_path / "out.npz")["outputs"], network(x), rtol=1e-5, atol=1e-5)


def test_the_command(tmp_path):
    config = {**tiny(), "model": "experiments.models.digits:build", "data": {"source": "experiments.data.digits:digits"}}
    from experiments.models.digits import build

    save(tmp_path / "artifact", build(0), extra={"config": config})
    x = np.random.default_rng(0).random((10, 8, 8, 1)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x, y=np.zeros(10, int))
    flags = [f"--artifact={tmp_path / 'artifact'}", f"--data={tmp_path / 'x.npz'}", "--repeats=2", "--batch_size=4"]
    done = command(*flags, f"--output={tmp_path / 'out.npz'}", devices=2)
    assert done.returncode == 0, done.stderr
    lines = dict(line.split("  ", 1) for line in done.stdout.splitlines() if "  " in line)
    assert lines["devices"].strip().startswith("2 x cpu") and lines["batch"].strip() == "4, 2 on each device"
    assert lines["examples"].strip() == "10" and "examples/s" in lines["throughput"]
    assert build(0)(x) == pytest.approx(np.load(tmp_path / "out.npz")["outputs"], abs=1e-5)


def test_the_command_ends_without_a_traceback(tmp_path):
    done = command(f"--artifact={tmp_path}")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "error: " in done.stderr and "is a folder without manifest.json, no artifact; pass the file" in done.stderr
