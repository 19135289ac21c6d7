"""The whole of it in one call: for Linen, NNX and plain JAX; what is reported is true; bad input is refused early."""

import dataclasses
import errno
import inspect
import json
import subprocess
import sys
import textwrap

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_nn as jn
from jaxopt_nn.coding import header
from jaxopt_nn.core import files
from jaxopt_nn.cost import latency
from jaxopt_nn.pipeline.compress import Compressor
from jaxopt_nn.reporting import write as reports

RNG = np.random.default_rng(0)
X = RNG.standard_normal((160, 8)).astype(np.float32)
Y = np.argmax(X[:, :3], 1).astype(np.int32)
TEST = (X[96:], Y[96:])


def task(train=(X[:96], Y[:96]), **changed):
    return jn.classification(train=train, test=TEST, **{"batch_size": 16, **changed})


TASK = task()
WRITTEN = {
    "metric_bytes.png", "leaves.png", "training.png", "weights.png", "network.jn", "report.html", "report.md", "report.json",
}  # fmt: skip
NAMES = {"name", "metrics", "params", "nonzero", "bytes", "resident_bytes", "ratio", "bits_per_weight", "macs"}


def weights(*shape):
    return jnp.asarray(RNG.standard_normal(shape) / np.sqrt(shape[0]), jnp.float32)


VARIABLES = {
    "up": {"w": weights(8, 32), "b": jnp.zeros(32)},
    "down": {"w": weights(32, 3)},
    "calls": jnp.zeros(2, jnp.int32),
}


def apply(variables, x):
    return jnp.maximum(x @ variables["up"]["w"] + variables["up"]["b"][None], 0) @ variables["down"]["w"]


def recipe(**last):
    return [
        jn.Stage("clip", jn.clip(-1.5, 1.5), epochs=30, learning_rate=2e-2),
        jn.Stage("prune", jn.prune(sparsity=0.75, allocation=jn.global_budget), epochs=30, learning_rate=2e-2),
        jn.Stage("quantize", jn.quantize(4), **{"epochs": 10, "rule": jn.arithmetic("w4a8"), **last}),
    ]


NETWORK = jn.Network(apply, VARIABLES)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "new" / "workdir"
    return jn.compress(NETWORK, recipe(), TASK, workdir=workdir), workdir


# -- a user's code, at most 15 lines -----------------------------------------------------------------------------------


def with_linen():
    import flax.linen as nn

    model = nn.Sequential([nn.Dense(16), nn.relu, nn.Dense(3)])
    variables = model.init(jax.random.key(0), X[:1])
    network = jn.linen(model, variables)
    method = jn.where("**/kernel", jn.chain(jn.prune(sparsity=0.5), jn.quantize(4)))
    recipe = [jn.Stage("all", method, epochs=1, rule=jn.arithmetic("w4a8"))]
    return jn.compress(network, recipe, TASK, latency=False)


def with_nnx():
    from flax import nnx

    rngs = nnx.Rngs(0)
    model = nnx.Sequential(nnx.Linear(8, 16, rngs=rngs), nnx.BatchNorm(16, rngs=rngs), nnx.Dropout(0.5, rngs=rngs),
                           nnx.relu, nnx.Linear(16, 3, rngs=rngs))  # fmt: skip
    recipe = [jn.Stage("quantize", jn.quantize(8), epochs=1, rule=jn.arithmetic("w8a8"))]
    return jn.compress(jn.nnx(model), recipe, TASK, latency=False)


def with_plain_jax():
    params = [(weights(8, 16), jnp.zeros(16)), (weights(16, 3), jnp.zeros(3))]

    def network(params, x):
        (w0, b0), (w1, b1) = params
        return jax.nn.relu(x @ w0 + b0[None]) @ w1 + b1[None]

    recipe = [jn.Stage("quantize", jn.quantize(2), epochs=1)]
    return jn.compress(jn.Network(network, params), recipe, TASK, latency=False)


@pytest.mark.parametrize(
    ("user", "ratio", "left_alone"),
    [
        (with_linen, 3.0, {"params/layers_0/bias", "params/layers_2/bias"}),
        (with_nnx, 1.7, {"layers/0/bias", "layers/1/mean", "layers/1/scale", "layers/2/rngs/key", "layers/4/bias"}),
        (with_plain_jax, 3.9, {"0/1", "1/1"}),
    ],
)
def test_in_at_most_15_lines(user, ratio, left_alone):
    assert len(inspect.getsource(user).splitlines()) <= 15
    result = user()
    assert result.stages[-1]["ratio"] > ratio
    assert left_alone <= {s["path"] for s in result.report["skipped"]}
    assert result(X[:5]).shape == (5, 3)
    names = ["stage", "baseline", *(s["name"] for s in result.stages)]
    assert [line.split()[0] for line in str(result).splitlines()[: len(names)]] == names


# -- what is reported is true ------------------------------------------------------------------------------------------


def test_the_report_has_its_schema(run):
    result, workdir = run
    report = json.loads((workdir / "report.json").read_text())
    assert report == result.report
    assert list(report) == [
        "schema", "title", "model", "data", "config", "seed", "devices", "versions", "metrics", "headline", "baseline",
        "stages", "control", "artifact", "skipped", "warnings", "history", "histograms", "confusion", "seconds",
        "folds",
    ]  # fmt: skip
    assert (report["model"], report["data"]) == ("386 parameters in 4 leaves", "64 test examples")
    assert report["schema"] == 4 and report["headline"] == "accuracy"
    kinds = {"accuracy": {"unit": "%", "better": "higher"}, "loss": {"unit": "nats", "better": "lower"}}
    assert report["metrics"] == kinds
    for entry in (report["baseline"], *report["stages"]):
        assert set(entry) == NAMES | {"latency", "leaves", "facts"} and set(entry["metrics"]) == set(kinds)
        assert sum(leaf["bytes"] for leaf in entry["leaves"]) == entry["bytes"]
        assert list(entry["latency"]) == ["1", "32", "1024"]
        assert all(0 < each["low"] <= each["ratio"] <= each["high"] and each["ms"] > 0 for each in entry["latency"].values())
        assert {leaf["path"]: leaf["macs"] for leaf in entry["leaves"]} == {
            "calls": None, "up/b": None, "up/w": 8 * 32, "down/w": 32 * 3,
        }  # fmt: skip
        assert sum(leaf["share"] for leaf in entry["leaves"]) == pytest.approx(1)
    assert set(report["artifact"]) == {"path", "bytes", "metrics_reloaded"}
    assert all(set(entry) == {"path", "reason"} for entry in report["skipped"])
    assert [s["name"] for s in report["stages"]] == ["clip", "prune", "quantize"]
    (clipped,) = report["stages"][0]["facts"]
    rows = {row[0]: dict(zip(clipped["header"], row)) for row in clipped["cells"]}
    assert set(rows) == {"up/w", "down/w"} and not report["stages"][1]["facts"]
    weight, up = np.asarray(VARIABLES["up"]["w"]), rows["up/w"]
    assert (up["min"], up["max"]) == (weight.min(), weight.max()) and (up["lo"], up["hi"]) == (-1.5, 1.5)
    assert up["clipped, %"] == pytest.approx(100 * np.mean(np.abs(weight) > 1.5))
    assert {e["stage"] for e in report["history"]} == {"clip", "prune", "quantize"}
    assert set(report["histograms"]) == {"up/w", "down/w"}
    assert {p.name for p in workdir.iterdir()} == WRITTEN | {".lock", "checkpoints"}


def test_bytes_count_everything_stored(run):
    result, _ = run
    base, clip, prune, quantize = result.report["baseline"], *result.stages
    total, in_matrices = 8 * 32 + 32 + 32 * 3, 8 * 32 + 32 * 3
    assert base["params"] == clip["params"] == quantize["params"] == total
    assert base["bytes"] == clip["bytes"] == 4 * total + 8 == base["resident_bytes"]
    kept, other = in_matrices // 4, 4 * 32 + 8
    assert prune["bytes"] == in_matrices // 8 + 4 * kept + other
    scales, biases = 4 * (32 + 3), 4 * 32 + 8
    masks = in_matrices // 8
    assert quantize["bytes"] == pytest.approx(masks + kept / 2 + scales + biases, abs=2)
    # a network as small as this holds floats on CPU, beside scales of 1
    assert quantize["resident_bytes"] == 4 * in_matrices + scales + biases
    for entry in result.stages:
        assert entry["ratio"] == base["bytes"] / entry["bytes"]
        assert entry["bits_per_weight"] == 8 * entry["bytes"] / total
    assert prune["nonzero"] == kept + int(jnp.count_nonzero(result.params["up"]["b"]))
    assert quantize["bytes"] == jn.nbytes(result.network.variables)


def test_the_stored_network_is_what_was_evaluated(run):
    result, _ = run
    accuracy = result.stages[-1]["metrics"]["accuracy"]
    assert np.mean(np.argmax(result(TEST[0]), 1) == TEST[1]) == accuracy == jn.evaluate(result.network, TASK)["accuracy"] > 0.75
    seen = jn.densify(result.network.variables)
    assert float(jnp.abs(result.params["up"]["w"]).max()) <= 1.5, "projection of the first stage holds in the last"
    chex.assert_trees_all_equal(seen["up"]["b"], result.params["up"]["b"])
    assert np.all(np.asarray(seen["up"]["w"])[~np.asarray(result.state.carried[1]["up/w"].mask)] == 0)
    chex.assert_trees_all_equal(seen["calls"], VARIABLES["calls"])


def ramped(top=0.3):
    """Pruning from 0 on in steps of 10 points, then quantization; three steps an epoch at most."""
    ramp = jn.prune(sparsity=lambda step: jnp.minimum(0.1 * step, top))
    return [jn.Stage("prune", ramp, epochs=2, learning_rate=1e-2), jn.Stage("q", jn.quantize(8), epochs=3)]


def kept(result):
    return [int(c.mask.sum()) for c in result.state.carried[0].values()]


def test_the_mask_of_a_stage_is_frozen_in_later_ones_and_a_second_run_traces_nothing():
    traces = []

    def counted(variables, x):
        traces.append(x.shape)
        return apply(variables, x)

    network = jn.Network(counted, VARIABLES)
    compressor = Compressor(ramped())
    first = compressor(network, task((X[:32], Y[:32])), latency=False)
    assert kept(first) == [n - round(0.3 * n) for n in (32 * 3, 8 * 32)]  # the last of 4 steps is step 3
    before = len(traces)
    second = compressor(network, task((X[:32], Y[:32])), seed=1, latency=False)
    assert len(traces) == before > 0
    assert first.stages[-1]["metrics"] != second.stages[-1]["metrics"], "the seed shuffles the minibatches"


def test_the_schedule_of_a_thawed_stage_goes_on_where_it_was():
    """Two steps an epoch: 0 and 1 in its own stage, none in the next, 2 to 5 in the last two; 10 points each."""
    small = task((X[:32], Y[:32]))
    prune, still = (dataclasses.replace(stage, epochs=1) for stage in ramped(top=0.5))
    recipe = [prune, still, *(jn.Stage(name, jn.identity(), epochs=1, thaw=("prune",)) for name in "rs")]
    assert kept(jn.compress(NETWORK, recipe, small, latency=False)) == [48, 128]
    with pytest.raises(ValueError, match=r"'prune': at the last of its 4 steps its sparsity is at 0.3 and ends at 0.5"):
        jn.compress(NETWORK, recipe[:3], small, latency=False)


def test_the_artifact_is_the_network(run):
    result, workdir = run
    loaded, (_, manifest) = jn.load(workdir / "network.jn", apply), jn.load_file(workdir / "network.jn")
    chex.assert_trees_all_equal(loaded.variables, result.network.variables)
    assert jax.tree.structure(loaded.variables) == jax.tree.structure(result.network.variables)
    assert loaded.rules == (("**", jn.arithmetic("w4a8")),) == result.network.rules
    assert [s["name"] for s in manifest["recipe"]] == ["clip", "prune", "quantize"]
    entry = result.report["artifact"]
    assert entry["bytes"] == (workdir / "network.jn").stat().st_size
    assert entry["metrics_reloaded"] == result.stages[-1]["metrics"]


def test_a_fresh_process_gets_the_same_accuracy(run, tmp_path):
    result, workdir = run
    np.savez(tmp_path / "data.npz", x=TEST[0], y=TEST[1])
    code = f"""
        import jax.numpy as jnp, numpy as np, jaxopt_nn as jn
        def apply(v, x):
            return jnp.maximum(x @ v["up"]["w"] + v["up"]["b"][None], 0) @ v["down"]["w"]
        network = jn.load({str(workdir / "network.jn")!r}, apply)
        data = np.load({str(tmp_path / "data.npz")!r})
        print(np.mean(np.argmax(network(data["x"]), 1) == data["y"]))
    """
    out = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert float(out.stdout) == result.stages[-1]["metrics"]["accuracy"]


def test_what_is_left_alone_is_listed_with_its_reason(run):
    reasons = {s["path"]: s["reason"] for s in run[0].report["skipped"]}
    assert set(reasons) == {"up/b", "up/w", "calls"}
    assert reasons["up/w"].startswith("note: keeps 25% of its bytes")  # 8 codes of 4 bits an output, and its scale
    assert "add" in reasons["up/b"] and "int32" in reasons["calls"]


def test_assumptions_and_what_one_stage_left_alone_reach_the_report():
    """A transform that asks for roles which nobody knows, and a stage that takes fewer leaves than the one before it."""
    wide = jn.leafwise(
        lambda path, leaf, info: jn.LeafTraits() if leaf.ndim else "is a scalar",
        lambda path, leaf, roles: ((), ()), lambda leaf, learnt, carried: leaf, needs=frozenset({"roles"}), name="wide",
    )  # fmt: skip
    recipe = [jn.Stage("w", wide), jn.Stage("q", jn.where("down/w", jn.quantize(8)))]
    result = jn.compress(NETWORK, recipe, TASK, latency=False)
    said = [(s["path"], s["reason"]) for s in result.report["skipped"]]
    assert ("up/b", "assumed: roles: last axis is the output, no stack (pass info=inspect(...))") in said
    reason = "partial: member 1 of the chain (quantize(8)): matches no pattern of the recipe"
    assert [path for path, each in said if each == reason] == ["calls", "up/b", "up/w"]


def test_a_batch_that_does_not_fit_is_not_timed_and_named(monkeypatch):
    monkeypatch.setattr(latency, "room", lambda: 20e3)  # [1024, 32] float32 are 131 kB
    result = jn.compress(NETWORK, CHEAP, TASK, latency=(1, 1024))
    assert [list(entry["latency"]) for entry in (result.report["baseline"], *result.stages)] == [["1"], ["1"]]
    said = {s["path"]: s["reason"] for s in result.report["skipped"]}
    assert said["latency, batch 1024"].startswith("not measured: a call takes ")


def decayed(method):
    """A stage after ``method`` under weight decay, in a recipe."""
    still = {"epochs": 2, "learning_rate": 1e-2, "weight_decay": 0.5}
    return [jn.Stage("scale", method, epochs=1, learning_rate=1e-2), jn.Stage("q", jn.quantize(8), **still)]


@pytest.mark.parametrize("thaw", [(), ("scale",)])
def test_what_a_stage_has_learnt_is_frozen_in_later_ones_unless_thawed(thaw):
    factor = jn.leafwise(
        lambda path, leaf, info: jn.LeafTraits() if leaf.ndim == 2 else "is no matrix",
        lambda path, leaf, roles: (jnp.asarray(1.0), ()), lambda leaf, learnt, carried: leaf * learnt,
    )  # fmt: skip
    first, second = decayed(factor)
    alone = jn.compress(NETWORK, [first], TASK, latency=False)
    both = jn.compress(NETWORK, [first, dataclasses.replace(second, thaw=thaw)], TASK, latency=False)
    same = [bool(jnp.all(a == b)) for a, b in zip(alone.state.learnt.values(), both.state.learnt[0].values())]
    assert same == [not thaw] * 2


def test_integer_leaves_pass_through(run):
    assert not np.any(run[0].network.variables["calls"])


# -- bad input ---------------------------------------------------------------------------------------------------------

CHEAP = [jn.Stage("quantize", jn.quantize(4))]


def leaf(value):
    return {**VARIABLES, "up": {**VARIABLES["up"], "w": value}}


@pytest.mark.parametrize(
    ("variables", "error", "said"),
    [
        (leaf(VARIABLES["up"]["w"].at[3, 4].set(jnp.nan)), ValueError, "up/w: 1 of 256 entries are NaN or Inf"),
        (leaf(VARIABLES["up"]["w"].at[0].set(jnp.inf)), ValueError, "up/w: 32 of 256 entries are NaN or Inf"),
        ({}, ValueError, "variables holds no array"),
        ({"up": {}, "down": []}, ValueError, "variables holds no array"),
        (leaf(1.0), TypeError, "up/w: float can't be stored"),
        (jn.quantize(8).pack(VARIABLES, jn.quantize(8).init(VARIABLES)), ValueError, "down/w: is a QTensor; .*densify"),
    ],
)
def test_bad_variables(variables, error, said):
    with pytest.raises(error, match=said):
        jn.compress(jn.Network(apply, variables), CHEAP, TASK)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (lambda v, x: apply(v, x)[None], r"for 2 inputs with labels \[2\] apply gives float32\[1, 2, 3\]; needed are logits"),
        (lambda v, x: apply(v, x).mean(0, keepdims=True), r"apply gives float32\[1, 3\]"),
        (lambda v, x: jnp.argmax(apply(v, x), -1, keepdims=True), r"apply gives int32\[2, 1\]"),
        (lambda v, x: (apply(v, x), {}), r"apply gives PyTreeDef.*needed are logits"),
        (lambda v, x: apply(v, x)[:, :2], "train: label 2 .* but there are 2 classes: allowed are 0 to 1"),
        (lambda v, x: apply(v, x)[:, 0], "train: label 2 .* but there are 2 classes"),
        (lambda v, x: apply(VARIABLES, x) + 0 * v["up"]["b"][0], "apply closes over 352 numbers"),
    ],
)
def test_bad_models(bad, said):
    with pytest.raises(ValueError, match=said):
        jn.compress(jn.Network(bad, VARIABLES), CHEAP, TASK)


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        (jn.Stage("q", jn.where("**/kernel", jn.quantize(4))), "pattern .* matches no path of 4: .*; nearest"),
        (jn.Stage("q", jn.quantize(4, group=3)), "down/w: axis 0 has 32 entries, not a multiple of group=3"),
        (jn.Stage("q", jn.chain(jn.quantize(4), jn.clip(-1.0, 1.0))), "put the member that packs last"),
    ],
)
def test_a_bad_last_stage_is_refused_before_the_first_is_trained(stage, said, monkeypatch):
    first = jn.Stage("first", jn.clip(-1.0, 1.0), epochs=10**9)
    with pytest.raises(ValueError, match=said):
        jn.compress(NETWORK, [first, stage], TASK)


def test_a_stage_after_the_packing_is_refused():
    with pytest.raises(ValueError, match="put the member that packs last"):
        jn.compress(NETWORK, [*CHEAP, jn.Stage("clip", jn.clip(-1.0, 1.0))], TASK)


@pytest.mark.parametrize("size", [0, -3, 2.5, True])
def test_a_batch_that_is_empty_is_refused(size):
    with pytest.raises(ValueError, match=r"batch_size=.*whole numbers from 1"):
        task(batch_size=size)


def test_a_batch_larger_than_the_data_is_one_step_an_epoch():
    stage = jn.Stage("q", jn.quantize(8), epochs=3)
    result = jn.compress(NETWORK, [stage], task(batch_size=10**6), latency=False)
    assert [e["step"] for e in result.report["history"]] == [1, 2, 3]


def test_a_workdir_that_can_not_be_written_is_refused_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    slow = [jn.Stage("clip", jn.clip(-1.0, 1.0), epochs=10**9)]
    with pytest.raises(OSError, match=r"workdir can't be written .*Not a directory.*pass another"):
        jn.compress(NETWORK, slow, TASK, workdir=tmp_path / "file" / "workdir")


@pytest.fixture(scope="module")
def cheap():
    compressor = Compressor(CHEAP)
    return compressor, compressor(NETWORK, TASK, latency=False)


def test_a_loss_that_is_nan_is_shipped_and_another_number_is_said_after_writing(tmp_path):
    endless = jn.Network(lambda v, x: apply(v, x) + jnp.where(x[:, :1] > 0, jnp.inf, 0.0), VARIABLES)
    compressor = Compressor(CHEAP)
    result = compressor(endless, TASK, latency=False)
    compressor.ship(result, TASK, tmp_path)
    assert np.isnan(result.stages[-1]["metrics"]["loss"])
    assert {"report.json", "network.jn"} <= {p.name for p in tmp_path.iterdir()}
    hits, count = result.sums.final["accuracy"]
    result.sums.final["accuracy"] = (hits + 16, count)
    (tmp_path / "report.json").unlink()
    with pytest.raises(RuntimeError, match=r"network.jn: read back, its metrics are .*, in memory they were"):
        compressor.ship(result, TASK, tmp_path)
    assert (tmp_path / "report.json").exists()


@pytest.mark.parametrize("full", ["network.jn", "metric_bytes.png", "report.md", "report.json"])
def test_a_full_disk_leaves_no_half_written_file(cheap, tmp_path, monkeypatch, full):
    compressor, result = cheap
    compressor.ship(result, TASK, tmp_path)
    fsync, write_frame = files.os.fsync, header.Frames.write
    target = {"now": full}

    def no_space(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    def failing(path, content, write=files.write_file):
        if path.name == target["now"]:
            monkeypatch.setattr(files.os, "fsync", no_space)
        write(path, content)

    if full == "network.jn":
        monkeypatch.setattr(header.Frames, "write", no_space)
    monkeypatch.setattr(reports, "write_file", failing)
    with pytest.raises(OSError, match="No space left"):
        compressor.ship(result, TASK, tmp_path)
    assert (files.os.fsync, header.Frames.write) != (fsync, write_frame)
    left = {p.name for p in tmp_path.iterdir()}
    assert left <= WRITTEN
    assert ("report.json" in left) == (full == "network.jn"), "a report stands only where all else belongs to it"
    chex.assert_trees_all_equal(jn.load(tmp_path / "network.jn", apply).variables, result.network.variables)
