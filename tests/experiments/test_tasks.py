"""Six tasks of a user's own, from a config and from Python: pruned, in 4 bits, reported, shipped, killed and resumed."""

import dataclasses
import importlib
import inspect
import json
import pathlib

import chex
import jax
import numpy as np
import pytest

import configs
import jaxopt_nn as jn
from experiments import common, compress
from experiments.config import checked
from experiments.model import restored
from jaxopt_nn.core.paths import leaves_by_path
from jaxopt_nn.pipeline import data as sources
from jaxopt_nn.pipeline import registry
from jaxopt_nn.reporting.progress import Progress

NAMES = sorted(p.stem.removeprefix("task_") for p in pathlib.Path(configs.__file__).parent.glob("task_*.py"))
#: Less data, where digits are not all of it.
SMALL = {"two_inputs": {"pairs": 1024}, "padded_text": {"batches": 16}}
#: Of the whole configs, the headline that their last stage reaches at least, or at most.
REACHED = {
    "autoencoder": 0.13, "cnn": 0.98, "multilabel": 0.97, "padded_text": 1.34, "two_heads": 0.9, "two_inputs": 1.4,
}  # fmt: skip


def test_there_are_six_of_at_most_twenty_lines_each():
    assert NAMES == sorted(REACHED)
    for name in NAMES:
        module = importlib.import_module(f"experiments.tasks.{name}")
        models = [c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == module.__name__]
        lines = lambda *parts: sum(len(inspect.getsource(part).splitlines()) for part in parts)
        assert lines(module.network, *models) <= 20, f"the model of {name}"
        assert name == "cnn" or lines(module.task) <= 20, f"the task of {name}"


def shrunk(name: str) -> dict:
    """An epoch of each stage, a position after every stretch of steps."""
    config = importlib.import_module(f"configs.task_{name}").get_config().to_dict()
    for training in (config["float"], *config["stages"]):
        training["epochs"] = 1
    return checked({**config, "control": False, "checkpoint_seconds": 0.0, "data": config["data"] | SMALL.get(name, {})})


@dataclasses.dataclass
class Ran:
    """A config's experiment, compiled once, and its undisturbed run."""

    name: str
    experiment: compress.Experiment
    folder: pathlib.Path
    report: dict

    def again(self, folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> dict:
        monkeypatch.setattr(sources, "STRETCH", 12)
        monkeypatch.setattr(compress, "Experiment", lambda config: self.experiment)
        return compress.run(self.experiment.config, str(folder), latency=False)

    @property
    def task(self) -> jn.Task:
        return common.load_task(self.experiment.config)

    def network(self, variables: dict, **fields) -> jn.Network:
        return self.experiment._model.network.replace(variables=variables, **fields)


#: The others take half a minute each to compile.
FAST = ("two_heads", "two_inputs")


@pytest.fixture(scope="module", params=[n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in NAMES])
def ran(request, tmp_path_factory):
    folder, experiment = tmp_path_factory.mktemp(request.param), compress.Experiment(shrunk(request.param))
    with pytest.MonkeyPatch.context() as patch:
        done = Ran(request.param, experiment, folder, {})
        done.report = done.again(folder, patch)
    return done


# -- oracles in NumPy: outputs and the test data, as arrays, to the headline -------------------------------------------


def root_mean_square(outputs, wanted):
    return np.sqrt(np.mean((outputs.astype(np.float64) - wanted) ** 2))


def f1(outputs, batch):
    said, true = outputs > 0, batch[1] > 0
    return 2 * np.sum(said & true) / (np.sum(said) + np.sum(true))


def perplexity(outputs, letters):
    """Over the letters that are no padding, which ``task`` puts first in its alphabet."""
    logits, following = outputs.astype(np.float64), letters[:, 1:]
    losses = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, following[..., None], -1)[..., 0]
    return np.exp(losses[following > 0].mean())


ORACLES = {
    "autoencoder": root_mean_square,
    "cnn": lambda outputs, batch: np.mean(outputs.argmax(-1) == batch[1]),
    "multilabel": f1,
    "padded_text": perplexity,
    "two_heads": lambda outputs, batch: np.mean(
        (outputs["digit"].argmax(-1) == batch["digit"]) & (outputs["turns"].argmax(-1) == batch["turns"])
    ),
    "two_inputs": lambda outputs, batch: root_mean_square(outputs, batch["sum"]),
}


def whole(source):
    """All of a source as one batch."""
    parts = [jax.tree.map(lambda x, real=real: x[real > 0], batch) for batch, real in source.batches(10**6)]
    return jax.tree.map(lambda *each: np.concatenate(each), *parts)


def test_a_config_reports_and_ships_what_numpy_finds(ran):
    report, task = ran.report, ran.task
    assert [stage["name"] for stage in report["stages"]] == ["prune", "quantize"]
    assert report["metrics"] == task.described() and set(task.metrics) <= set(report["metrics"])
    assert all(kind["better"] in ("higher", "lower") for kind in report["metrics"].values())
    loaded = jn.load(report["artifact"]["path"], ran.network({}).apply)
    assert loaded.rules == (("**", jn.arithmetic("w4a8")),)
    assert jn.load_artifact(report["artifact"]["path"])[1]["recipe"] == report["config"]["stages"]
    batch = whole(task.test)
    outputs = jax.device_get(loaded(*task.objective.inputs_of(batch)))
    metrics, headline = report["stages"][-1]["metrics"], report["headline"]
    assert metrics[headline] == pytest.approx(ORACLES[ran.name](outputs, batch), rel=1e-5)
    assert report["artifact"]["metrics_reloaded"] == metrics
    assert json.loads((ran.folder / "report.json").read_text()) == report and (ran.folder / "report.html").exists()


def test_its_weights_are_sparse_and_have_codes_of_four_bits(ran):
    variables = jn.load(ran.folder / "artifact", ran.network({}).apply).variables
    packed = {path: leaf for path, leaf in leaves_by_path(variables).items() if jn.is_compressed(leaf)}
    kernels = {path for path in leaves_by_path(variables) if path.endswith(("kernel", "embedding"))}
    assert packed.keys() == kernels
    zeros = size = 0
    for path, leaf in packed.items():
        weight, step = np.asarray(jn.densify(leaf), np.float64), np.asarray(leaf.frame.scale, np.float64)
        codes = weight / step
        np.testing.assert_allclose(codes, np.round(codes), atol=1e-4, err_msg=path)
        assert leaf.frame.bits == 4 and np.abs(codes).max() < 7.5 and len(np.unique(np.round(codes))) > 4, path
        zeros, size = zeros + np.sum(weight == 0), size + weight.size
    assert zeros / size > ran.experiment.config["stages"][0]["sparsity"] - 1e-3
    last = ran.report["stages"][-1]
    assert last["bytes"] == jn.nbytes(variables) < 0.14 * ran.report["baseline"]["bytes"]


class Killed(Exception):
    pass


def killing(told):
    """A listener that ends the run at the second stretch of fine-tuning in 4 bits: the first one's position is written."""
    heard = []

    def listen(entry):
        told(entry)
        heard.append(entry["stage"])
        if heard.count("quantize") == 2:
            raise Killed

    return listen


def test_a_killed_config_goes_on_to_the_same_numbers(ran, tmp_path, monkeypatch):
    watch = Progress.watch
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Progress, "watch", lambda self, *args, **kwargs: killing(watch(self, *args, **kwargs)))
        ran.again(tmp_path, patch)
    positions = {p.name: [s.name for s in p.iterdir() if s.name.isdigit()] for p in tmp_path.glob("checkpoints/fold_0/*")}
    assert positions.keys() == {"float", "prune", "quantize"} and len(positions["quantize"]) == 1
    assert not (tmp_path / "report.json").exists()
    resumed = ran.again(tmp_path, monkeypatch)
    assert without_times(resumed, tmp_path) == without_times(ran.report, ran.folder)


def without_times(report, folder):
    kept = {name: value for name, value in report.items() if name != "seconds"}
    return json.loads(json.dumps(kept).replace(str(folder), "WORKDIR"))


def test_python_gives_the_numbers_of_the_config_also_when_killed(ran, tmp_path, monkeypatch):
    """The float weights of the config's run, its recipe, and ``compress``."""
    monkeypatch.setattr(sources, "STRETCH", 12)
    config = ran.experiment.config
    network = ran.network(restored(str(ran.folder / "float"), ran.experiment._model.network.variables))
    recipe = registry.stages(config["stages"])
    places = lambda name: jn.Checkpoints(tmp_path / name, seconds=0)
    go = lambda **more: jn.compress(network, recipe, ran.task, latency=False, checkpoints=places, **more)
    with pytest.raises(Killed):
        go(watch=killing(lambda entry: None))
    told = []
    result = go(workdir=tmp_path / "run", watch=told.append)
    assert {entry["stage"] for entry in told} == {"quantize"} and len(told) < len([
        entry for entry in result.report["history"] if entry["stage"] == "quantize"])  # fmt: skip
    for name in ("baseline", "stages", "metrics", "headline", "skipped"):
        assert result.report[name] == ran.report[name], name
    assert result.report["history"] == [e for e in ran.report["history"] if e["stage"] != "float"]
    loaded, of_config = (jn.load(folder / "artifact", network.apply) for folder in (tmp_path / "run", ran.folder))
    chex.assert_trees_all_equal(loaded.variables, result.network.variables, of_config.variables)
    inputs = ran.task.objective.inputs_of(whole(ran.task.test))
    chex.assert_trees_all_equal(result(*inputs), loaded(*inputs))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_whole_config_reaches_what_its_docstring_says(name, tmp_path):
    config = importlib.import_module(f"configs.task_{name}").get_config().to_dict()
    report = compress.run({**config, "control": False}, str(tmp_path), latency=False)
    found = report["stages"][-1]["metrics"][report["headline"]]
    higher = report["metrics"][report["headline"]]["better"] == "higher"
    assert found >= REACHED[name] if higher else found <= REACHED[name]
