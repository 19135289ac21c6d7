"""Six tasks of a user's own, from a config and from Python: pruned, in 4 bits, reported, shipped, killed and resumed."""

import contextlib
import dataclasses
import functools
import importlib
import inspect
import json
import pathlib

import chex
import jax
import numpy as np
import pytest
from sklearn import datasets

import configs
import jaxopt_nn as jn
from experiments import compress
from experiments.config import checked
from experiments.model import restored
from jaxopt_nn.core.paths import leaves_by_path
from jaxopt_nn.pipeline import compress as pipeline
from jaxopt_nn.pipeline import data as sources
from jaxopt_nn.pipeline import registry
from jaxopt_nn.reporting import plots
from jaxopt_nn.reporting.progress import Progress

NAMES = sorted(p.stem.removeprefix("task_") for p in pathlib.Path(configs.__file__).parent.glob("task_*.py"))
#: What makes an epoch of five steps of 320 training images, of which the last two tasks make other examples.
SMALL = {
    "padded_text": {"data": {"batches": 5}}, "two_heads": {"batch_size": 256}, "two_inputs": {"data": {"pairs": 320}},
}  # fmt: skip
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
    """An epoch of each stage, none of the float training."""
    config = importlib.import_module(f"configs.task_{name}").get_config().to_dict()
    config["float"]["epochs"] = 0
    for stage in config["stages"]:
        stage["epochs"] = 1
    less = SMALL.get(name, {})
    changes = {"control": False, "batch_size": less.get("batch_size", 64)}
    return checked({**config, **changes, "data": config["data"] | less.get("data", {})})


@contextlib.contextmanager
def small():
    """400 of the images; two stretches an epoch, with a position between them in the last stage alone; no plots."""
    images, labels = datasets.load_digits(return_X_y=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "load_digits", lambda return_X_y: (images[:400], labels[:400]))
        patch.setattr(sources, "STRETCH", 3)
        patch.setattr(jn.Checkpoints, "due", lambda self: self._directory.name == "quantize")
        patch.setattr(plots, "images", lambda report: {})
        yield


@dataclasses.dataclass
class Ran:
    """A config's experiment, compiled once, and its undisturbed run."""

    name: str
    experiment: compress.Experiment
    folder: pathlib.Path
    report: dict

    def again(self, folder: pathlib.Path) -> dict:
        with small(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(compress, "Experiment", lambda config: self.experiment)
            return compress.run(self.experiment.config, str(folder), latency=False)

    @property
    def task(self) -> jn.Task:
        return self.experiment.task(0)

    @functools.cached_property
    def artifact(self) -> dict:
        return jn.load_file(self.folder / "network.jn")[0]["variables"]

    def network(self, variables: dict, **fields) -> jn.Network:
        return self.experiment._model.network.replace(variables=variables, **fields)


#: What differs most from classification: outputs and a loss of one's own. The others are slow tests.
OFTEN = ("two_heads",)


@pytest.fixture(scope="module", params=[n if n in OFTEN else pytest.param(n, marks=pytest.mark.slow) for n in NAMES])
def ran(request, tmp_path_factory):
    done = Ran(request.param, compress.Experiment(shrunk(request.param)), tmp_path_factory.mktemp(request.param), {})
    done.report = done.again(done.folder)
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
    assert jn.load_file(report["artifact"]["path"])[1]["recipe"] == report["config"]["stages"]
    batch = whole(task.test)
    outputs = jax.device_get(loaded(*task.objective.inputs_of(batch)))
    metrics, headline = report["stages"][-1]["metrics"], report["headline"]
    assert metrics[headline] == pytest.approx(ORACLES[ran.name](outputs, batch), rel=1e-5)
    assert report["artifact"]["metrics_reloaded"] == metrics
    assert json.loads((ran.folder / "report.json").read_text()) == report and (ran.folder / "report.html").exists()


def test_its_weights_are_sparse_and_have_codes_of_four_bits(ran):
    leaves = leaves_by_path(ran.artifact)
    packed = {path: leaf for path, leaf in leaves.items() if jn.is_compressed(leaf)}
    assert packed.keys() == {path for path in leaves if path.endswith(("kernel", "embedding"))}
    for path, leaf in packed.items():
        assert (type(leaf), leaf.frame.bits) == (jn.Masked, 4), path
        assert leaf.mask.nbytes == -(-leaf.size // 8) and leaf.kept.nbytes == -(-leaf.count // 2), path
    sparsity = 1 - sum(leaf.count for leaf in packed.values()) / sum(leaf.size for leaf in packed.values())
    assert sparsity == pytest.approx(ran.experiment.config["stages"][0]["sparsity"], abs=1e-3)
    last = ran.report["stages"][-1]
    assert last["bytes"] == jn.nbytes(ran.artifact) < 0.14 * ran.report["baseline"]["bytes"]


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
        ran.again(tmp_path)
    positions = {p.name: [s.name for s in p.iterdir() if s.name.isdigit()] for p in tmp_path.glob("checkpoints/fold_0/*")}
    assert positions.keys() == {"prune", "quantize"} and len(positions["quantize"]) == 1
    assert not (tmp_path / "report.json").exists()
    resumed = ran.again(tmp_path)
    assert without_times(resumed, tmp_path) == without_times(ran.report, ran.folder)


def without_times(report, folder):
    kept = {name: value for name, value in report.items() if name != "seconds"}
    return json.loads(json.dumps(kept).replace(str(folder), "WORKDIR"))


@pytest.mark.parametrize("compiled", ["by the config", pytest.param("by itself", marks=pytest.mark.slow)])
def test_python_gives_the_numbers_of_the_config_also_when_killed(ran, tmp_path, monkeypatch, compiled):
    """The float weights of the config's run, its recipe, and ``compress``."""
    if compiled == "by the config":
        monkeypatch.setattr(pipeline, "Compressor", lambda recipe, control: ran.experiment._compressor)
    config = ran.experiment.config
    floats = restored(str(ran.folder / "float"), ran.experiment._model.network.variables)
    network = ran.network(jax.tree.map(np.asarray, floats))  # arrays bound to a device would be compiled for anew
    recipe = registry.stages(config["stages"])
    go = lambda watch: jn.compress(network, recipe, ran.task, latency=False, workdir=tmp_path, watch=watch)
    told = []
    with small():
        with pytest.raises(Killed):
            go(killing(lambda entry: None))
        result = go(told.append)
    assert {entry["stage"] for entry in told} == {"quantize"} and len(told) < len([
        entry for entry in result.report["history"] if entry["stage"] == "quantize"])  # fmt: skip
    for name in ("baseline", "stages", "metrics", "headline", "skipped"):
        assert result.report[name] == ran.report[name], name
    assert result.report["history"] == ran.report["history"]
    loaded = jn.load(tmp_path / "network.jn", network.apply)
    chex.assert_trees_all_equal(loaded.variables, result.network.variables, ran.artifact)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_whole_config_reaches_what_its_docstring_says(name, tmp_path):
    config = importlib.import_module(f"configs.task_{name}").get_config().to_dict()
    report = compress.run({**config, "control": False}, str(tmp_path), latency=False)
    found = report["stages"][-1]["metrics"][report["headline"]]
    higher = report["metrics"][report["headline"]]["better"] == "higher"
    assert found >= REACHED[name] if higher else found <= REACHED[name]
