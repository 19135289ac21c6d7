"""The main job: every config runs, shrunk; own models, own data and checkpoints; mistakes are named."""

import copy
import hashlib
import json
import pathlib
import subprocess
import sys
import types

import absl.flags
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from ml_collections import config_flags

import jaxopt_nn as jn
from experiments import common, compress
from experiments import config as configs
from experiments.model import restored
from jaxopt_nn.interpret.network import Network
from jaxopt_nn.pipeline.checkpoints import locked
from jaxopt_nn.pipeline.classes import classification
from jaxopt_nn.pipeline.compress import Compressor, Sums
from jaxopt_nn.reporting.progress import Progress

TRACES = []
ROOT = pathlib.Path(compress.__file__).parent.parent


def own_model(seed):
    """Softmax regression; the weights say which seed they got."""

    def apply(variables, x):
        TRACES.append(x.shape)
        return x.reshape(len(x), -1) @ variables["w"]

    return Network(apply, {"w": jnp.full((4, 2), 0.01 * seed)})


def own_data(fold, folds, seed):
    x = np.random.default_rng(0).standard_normal((40, 2, 2)).astype(np.float32)
    y = (x[:, 0, 0] > 0).astype(int)
    return classification(train=(x[:32], y[:32]), test=(x[32:], y[32:]))


def no_model():
    return {}


def tiny(**changes):
    return {
        "seed": 0, "model": f"{__name__}:own_model", "checkpoint": "", "batch_size": 8,
        "data": {"source": f"{__name__}:own_data", "folds": 2, "cross_validate": False},
        "float": {"epochs": 5, "learning_rate": 0.1},
        "stages": [{"name": "quantize", "method": "quantize", "bits": 8}], **changes,
    }  # fmt: skip


def test_another_fold_compiles_nothing_that_holds_the_model(tmp_path):
    experiment = compress.Experiment(configs.checked(tiny()))
    results = [experiment.fold(0, tmp_path, Progress(), latency=False)]
    before = len(TRACES)
    results.append(experiment.fold(1, tmp_path, Progress(), latency=False))
    assert len(TRACES) == before > 0
    assert [r.report["seed"] for r in results] == [0, compress.seed_of(0, 1)]


def test_no_fold_shares_its_seed_with_another_fold_or_seed():
    seeds = [compress.seed_of(seed, fold) for seed in range(-2, 20) for fold in range(10)]
    assert len(set(seeds)) == len(seeds) and max(seeds) < 2**31
    assert [compress.seed_of(seed, 0) for seed in (-2, 0, 7)] == [-2, 0, 7]
    assert compress.seed_of(0, 1) == int.from_bytes(hashlib.sha256(b"0/1").digest()[:4], "big") // 2
    bits = np.array([[s >> i & 1 for i in range(31)] for s in seeds if s > 19])
    assert np.all(np.abs(bits.mean(0) - 0.5) < 5 * 0.5 / np.sqrt(len(bits)))


def test_folds_are_pooled_by_their_labels():
    """30 and 10 labels: pooled are sums of hits and losses, no means of means; the mean of folds weighs each alike."""
    task = classification(test=(np.zeros((1, 2), np.float32), [0])).replace(details={})
    sums = lambda hits, loss, n: {"accuracy": (hits, n), "loss": (loss, n)}
    pairs = [(sums(15, 60.0, 30), sums(9, 90.0, 30)), (sums(9, 40.0, 10), sums(8, 50.0, 10))]
    numbers = lambda each: {"baseline": task.result(each[0]), "final": task.result(each[1]), "stages": []}
    remarks = lambda fold: {"warnings": [f"lost {fold}"], "skipped": [{"path": "b", "reason": "is no matrix"}]}
    results = [
        types.SimpleNamespace(sums=Sums(*pair), report={"folds": [numbers(pair)], **remarks(fold)})
        for fold, pair in enumerate(pairs)
    ]
    results[1].report["skipped"].append({"path": "w", "reason": "is cut"})
    found = compress.joined(task, results, 12)
    assert found["warnings"] == ["fold 1: lost 0", "fold 2: lost 1"]
    assert found["skipped"] == [
        {"path": "b", "reason": "is no matrix"}, {"path": "w", "reason": "fold 2: is cut"},
    ]  # fmt: skip
    pooled = found["cross_validation"]
    assert (pooled["folds"], pooled["examples"]) == (2, 12)
    assert pooled["baseline"] == {"accuracy": 24 / 40, "loss": 2.5} and pooled["final"] == {"accuracy": 17 / 40, "loss": 3.5}
    assert found["folds"] == list(map(numbers, pairs))
    ends = found["summary"]["test"]
    assert ends["baseline"]["metrics"]["accuracy"]["mean"] == pytest.approx((0.5 + 0.9) / 2)
    assert ends["final"]["difference"]["accuracy"]["mean"] == pytest.approx((-0.2 - 0.1) / 2)


def command(config, *flags):
    return subprocess.run(
        [sys.executable, "-m", "experiments.compress", f"--config={config}", *flags],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )


def test_the_command(tmp_path):
    text = f"from ml_collections import ConfigDict\ndef get_config(): return ConfigDict({tiny()!r})\n"
    (tmp_path / "tiny.py").write_text(text)
    flags = ["--config.seed=3", "--config.float.epochs=2", f"--workdir={tmp_path / 'run'}"]
    done = command(tmp_path / "tiny.py", f"--config.model={__name__}:own_model", *flags)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[1].split()[:2] == ["stage", "accuracy"] and lines[2].split()[0] == "baseline"
    assert lines[-1] == f"report: {tmp_path / 'run' / 'report.html'}"
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["config"]["seed"] == report["seed"] == 3 and report["config"]["float"]["epochs"] == 2
    assert "orbax" not in done.stderr, "the logs of libraries are no part of the output"


@pytest.mark.parametrize(
    ("flag", "near"), [("--config.sead=1", "seed"), ("--config.stages[0].sparsty=0.5", "sparsity")]
)
def test_a_mistyped_flag_names_the_nearest_field(tmp_path, flag, near):
    done = command("configs/digits_quickstart.py", flag, f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f'Did you mean "{near}"' in done.stderr
    assert not (tmp_path / "run").exists()


def without(config, key):
    return {k: v for k, v in config.items() if k != key}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (tiny(sead=1), "config.sead: no such field; nearest: seed"),
        (
            tiny(data={"source": f"{__name__}:own_data", "fould": 5, "cross_validate": False}),
            "data.source .*own_data has no 'fould'; nearest: fold",
        ),
        (without(tiny(), "float"), "config.float: missing"),
        (tiny(float={"epochs": 1}), "config.float.learning_rate: missing"),
        (tiny(float={"epochs": 1, "learning_rate": 0.1, "distil": {}}), "config.float.distil: .* nearest: distill"),
        (tiny(float={"epochs": 1, "learning_rate": 0.1, "distill": {"temperature": 2.0}}), "needs a teacher"),
        (tiny(start={"how": "slices", "widths": 0.5}), "config.start: needs a teacher"),
        (tiny(start={"how": "luck"}), "config.start.how='luck'"),
        (tiny(teacher={"float": {}}), "config.teacher.model: missing"),
        (tiny(model_args={"width": 3}), "own_model has no argument width, of config.model_args"),
        (tiny(data={"source": "x:y", "cross_validate": True}), "config.data.folds: missing"),
        (tiny(float={"epochs": 1, "learning_rate": -1.0}), "learning_rate=-1.0"),
        (tiny(model="experiments.models.digits:biuld"), "has no 'biuld'; nearest: build"),
        (tiny(model=f"{__name__}:no_model"), "gave dict; it must return a Network"),
        (
            tiny(data={"source": f"{__name__}:tiny", "folds": 2, "cross_validate": False}),
            "tiny gave dict; it must return a Task",
        ),
        (tiny(stages=[{"name": "q", "method": "quantise", "bits": 4}]), "'quantise' is unknown; nearest: quantize"),
        (tiny(checkpoint="x", data={"source": "x:y", "folds": 5, "cross_validate": True}), "can't be cross-validated"),
        (tiny(checkpoint="nowhere"), "config.checkpoint='nowhere': no Orbax checkpoint"),
    ],
)
def test_a_wrong_config_is_named(tmp_path, config, said):
    with pytest.raises(ValueError, match=said):
        compress.run(config, str(tmp_path))
    assert not (tmp_path / "report.json").exists()


@pytest.mark.filterwarnings("ignore:the load_module")  # of ml_collections
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--config.stages[3].sparsity=0.5"], "config.stages has 3: config.stages[0] to [2]"),
        (["--config=qqq.py"], "no such file: 'qqq.py'; shipped configs: bytes_lm_24, "),
        (["--config=qqq.py", "--config.seed=1"], "; pass a Python file with a get_config(), or the name"),
        (["--config=digits_quickstar"], "no such file: 'digits_quickstar'; nearest shipped configs: digits_quickstart"),
        (["--config", "digits_quickstart", "--config.stages[3].sparsity=0.5"], "config.stages has 3"),
        (["--config=LICENSE"], "LICENSE, line 2, is no Python ("),
    ],
)
def test_a_wrong_flag_ends_with_one_line(monkeypatch, flags, said):
    argv = ["compress", "--config=configs/digits_quickstart.py", *flags]
    values = absl.flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", flag_values=values, sys_argv=argv)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(absl.flags, "FLAGS", values)
    with pytest.raises(SystemExit) as ended:
        configs.parsed(argv)
    assert said in ended.value.code and "\n" not in ended.value.code


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections
def test_flags_set_what_a_config_leaves_out(monkeypatch, tmp_path):
    """Shipped configs name few of the optional fields, and the report advises ``--config.control=True``."""
    file = tmp_path / "few.py"
    file.write_text("from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({'seed': 1})\n")
    argv = ["compress", f"--config={file}", "--config.control=True", "--config.checkpoint_seconds=3"]
    values = absl.flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", flag_values=values, sys_argv=argv)
    monkeypatch.setattr(absl.flags, "FLAGS", values)
    configs.parsed(argv)
    given = values["config"].value
    assert (given.seed, given.control, given.checkpoint_seconds, given.checkpoint) == (1, True, 3.0, "")


def test_an_interrupt_ends_with_one_line(capsys):
    with pytest.raises(SystemExit) as ended, common.plain_errors("stopped; so it goes on"):
        raise KeyboardInterrupt
    assert ended.value.code == 130 and capsys.readouterr().err == "\nstopped; so it goes on\n"


QUANTIZE = {"name": "q", "method": "quantize", "bits": 8}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (tiny(stages=[{**QUANTIZE, "where": "**/kernle"}]), "'\\*\\*/kernle' matches no path"),
        (
            tiny(stages=[QUANTIZE, {"name": "p", "method": "prune", "where": "v", "sparsity": 0.5}]),
            "'v' matches no path",
        ),
        (tiny(**{"seed": -1}), "config.seed=-1: allowed are whole numbers from 0"),
    ],
)
def test_what_training_does_not_need_to_show_is_said_before_it(tmp_path, config, said):
    with pytest.raises(ValueError, match=said):
        compress.run(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_mended_recipe_goes_on_from_the_float_network(tmp_path, monkeypatch):
    def failing(self, *args, **kwargs):
        raise RuntimeError("stage")

    monkeypatch.setattr(Compressor, "__call__", failing)
    for config in (tiny(), tiny(stages=[{**QUANTIZE, "bits": 4}])):
        with pytest.raises(RuntimeError, match="stage"):
            compress.run(config, str(tmp_path), latency=False)
    claimed = json.loads((tmp_path / "checkpoints" / "config.json").read_text())
    assert claimed["stages"][0]["bits"] == 4 and [p.name for p in tmp_path.glob("checkpoints/fold_0/*")] == ["float"]


def test_two_runs_do_not_share_a_workdir_and_files_of_the_user_stay(tmp_path):
    with locked(tmp_path), pytest.raises(OSError, match=r"another run .* is using this workdir"):
        compress.run(tiny(), str(tmp_path))
    (tmp_path / "float").write_text("mine")
    with pytest.raises(OSError, match=r"float: .*; move it away, or pass another --workdir"):
        compress.run(tiny(), str(tmp_path))
    assert (tmp_path / "float").read_text() == "mine" and not list(tmp_path.glob("checkpoints/*/*"))


def test_a_control_is_the_float_network_trained_as_long(tmp_path):
    """By one plain stage of as many epochs, from the float weights; of two folds with the same data, the mean of both."""
    data = {**tiny()["data"], "cross_validate": True}
    stages = [{**QUANTIZE, "epochs": 3, "learning_rate": 0.1, "rule": "w8a8"}]
    report = compress.run(tiny(control=True, stages=stages, data=data), str(tmp_path), latency=False)
    floats = own_model(0).replace(variables={"w": np.asarray(restored(str(tmp_path / "float"), own_model(0).variables)["w"])})
    plain = [jn.Stage("control", jn.identity(), epochs=3, learning_rate=0.1)]
    result = jn.compress(floats, plain, own_data(0, 2, 0).replace(batch_size=8), latency=False)
    assert report["control"] == {"metrics": result.stages[-1]["metrics"]}
    assert result.report["history"][-1]["step"] == 3 * 4
    assert not np.array_equal(result.params["w"], floats.variables["w"])
    np.testing.assert_array_equal(result.network.variables["w"], result.params["w"])
    pooled = report["cross_validation"]["control"]
    assert 0 < pooled["loss"] and pooled["accuracy"] * 16 == round(pooled["accuracy"] * 16), "eight examples in each fold"
    assert len(list(tmp_path.glob("checkpoints/fold_*/control/q/12"))) == 2


def test_own_model_own_data_and_a_seed(tmp_path):
    report = compress.run(tiny(seed=2, float={"epochs": 20, "learning_rate": 0.1}), str(tmp_path))
    assert report["baseline"]["params"] == 8 and report["baseline"]["metrics"]["accuracy"] > 0.7
    assert "cross_validation" not in report and report["seed"] == 2


def test_a_checkpoint_takes_the_place_of_training(tmp_path):
    variables = {"w": jnp.arange(8.0).reshape(4, 2)}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "float", variables)
    report = compress.run(tiny(checkpoint=str(tmp_path / "float")), str(tmp_path / "run"))
    x, y = own_data(0, 2, 0).test.tree
    assert report["baseline"]["metrics"]["accuracy"] == np.mean(np.argmax(x.reshape(8, 4) @ np.asarray(variables["w"]), 1) == y)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "other", {"w": jnp.ones((3, 2))})
    with pytest.raises(ValueError, match="no Orbax checkpoint of this model's variables"):
        compress.run(tiny(checkpoint=str(tmp_path / "other")), str(tmp_path / "another"))


def test_a_config_is_not_changed_by_a_run(tmp_path):
    config = tiny()
    before = copy.deepcopy(config)
    compress.Experiment(configs.checked(config))
    assert config == before


def pair(seed, width=6):
    """A network of one hidden layer: teacher and student of several widths."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape) / 2, jnp.float32)

    def apply(variables, x):
        hidden = jnp.maximum(x.reshape(len(x), -1) @ variables["up"] + variables["bias"][None], 0)
        return hidden @ variables["down"]

    return Network(apply, {"up": draw(4, width), "bias": draw(width), "down": draw(width, 2)})


TAUGHT = {
    "model": f"{__name__}:pair", "model_args": {"width": 3},
    "teacher": {
        "model": f"{__name__}:pair", "model_args": {"width": 12}, "float": {"epochs": 8, "learning_rate": 0.05},
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"float": {"epochs": 6, "learning_rate": 0.05, "distill": {"temperature": 2.0, "hard_weight": 0.2}}}, ""),
        ({"start": {"how": "slices", "widths": 0.25}}, "up       12     3  equal    up axis 1: 12 -> 3"),
        ({"start": {"how": "weights", "rename": [("up", "up")]}, "model_args": {"width": 12}}, "up"),
    ],
)
def test_a_student_learns_from_its_teacher(tmp_path, changes, said):
    lines = []
    config = tiny(**{**TAUGHT, **changes})
    report = compress.run(config, str(tmp_path), say=lines.append, latency=False)
    assert report["history"][0]["stage"] == "teacher" and report["teacher"]["params"] == 12 * 7
    assert report["baseline"]["latency"] == {} and said in "\n".join(lines)
    if start := config.get("start"):
        untrained = compress.run(
            {**config, "float": {"epochs": 0, "learning_rate": 0.1}, "start": start}, str(tmp_path / "u"), latency=False
        )
        taught, begun = untrained["teacher"]["metrics"]["loss"], untrained["baseline"]["metrics"]["loss"]
        fresh = compress.run({**untrained["config"], "start": None}, str(tmp_path / "f"), latency=False)
        assert begun != fresh["baseline"]["metrics"]["loss"]
        assert start["how"] == "slices" or begun == taught, "a network of equal width starts as its teacher"


def test_a_teacher_may_have_other_data(tmp_path):
    teacher = {**TAUGHT["teacher"], "data": {"source": f"{__name__}:large_data"}}
    config = tiny(**{**TAUGHT, "teacher": teacher})
    report = compress.run(config, str(tmp_path), latency=False)
    steps = {e["stage"]: e["step"] for e in report["history"]}
    assert steps["teacher"] == 8 * 8 and steps["float"] == 5 * 4


def large_data(fold, folds, seed):
    own = own_data(fold, folds, seed)
    x, y = own.train.tree
    return own.replace(train=(np.tile(x, (2, 1, 1)), np.tile(y, 2)))


def test_slices_must_fit_the_students_widths(tmp_path):
    with pytest.raises(ValueError, match=r"config.start.widths: bias has shape \(6,\), the model's is \(3,\)"):
        compress.run(tiny(**TAUGHT, start={"how": "slices", "widths": 0.5}), str(tmp_path))
    assert not list(tmp_path.iterdir()), "before the teacher is trained"


def test_teacher_and_student_agree_in_classes(tmp_path):
    teacher = {"model": f"{__name__}:three", "float": {"epochs": 1, "learning_rate": 0.05}}
    with pytest.raises(ValueError, match=r"the teacher gives float32\[2, 3\], the student float32\[2, 2\]"):
        compress.run(tiny(teacher=teacher), str(tmp_path))
    assert not list(tmp_path.iterdir()), "before the teacher is trained"


def three(seed):
    return Network(lambda variables, x: x.reshape(len(x), -1) @ variables["w"], {"w": jnp.zeros((4, 3))})


def test_dead_neurons_are_masked_and_the_answers_stay(tmp_path):
    stages = [{"name": "neurons", "method": "prune_neurons"}]
    report = compress.run(tiny(model=f"{__name__}:half_dead", stages=stages), str(tmp_path), latency=False)
    before, (after,) = report["baseline"], report["stages"]
    assert after["metrics"] == before["metrics"]
    assert before["nonzero"] == 7 * 8 and after["nonzero"] == 7 * 4


def half_dead(seed):
    """Half of the hidden units never fire, whatever the input."""
    network = pair(seed, width=8)
    bias = jnp.where(jnp.arange(8) % 2 == 0, -1e3, 1.0)
    return network.replace(variables={**network.variables, "bias": bias})
