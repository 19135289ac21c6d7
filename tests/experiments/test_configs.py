"""Every config is checked, four are run, shrunk; the docstring names the command, the time and what to expect."""

import gzip
import importlib
import pathlib
import struct

import numpy as np
import pytest

import configs
from experiments import compress, gradients, sweep
from experiments.config import checked

FOLDER = pathlib.Path(configs.__file__).parent
NAMES = sorted(p.stem for p in FOLDER.glob("*.py") if p.stem != "__init__")
#: Those that are trained: a language model as it comes, a student and its teacher, a convolutional network pruned on a schedule
#: and rounded, a residual one that is cut. The quickstart is trained in test_compress.py.
TRAINED = ("bytes_lm_ptq", "digits_distill", "fashion_lenet5", "fashion_resnet_structured")
#: Smaller networks of the same kind, by model.
SMALL = {
    "experiments.models.fashion:lenet300": {"hidden": [12, 8]},
    "experiments.models.fashion:lenet5": {"channels": [2, 3], "hidden": 8},
    "experiments.models.fashion:xnor_lenet5": {"channels": [2, 3], "hidden": 8},
    "experiments.models.fashion:resnet": {"channels": [16, 16], "stride": 4},
    "experiments.models.fashion:vit": {"patch": 14, "width": 8, "layers": 1, "heads": 2, "hidden": 12},
    "experiments.models.text:gpt": {"width": 32, "layers": 2, "heads": 2, "kv_heads": 1, "hidden": 32},
}


def write_idx(folder: pathlib.Path) -> None:
    """A miniature Fashion-MNIST in its file format: the class shows in the brightness of a row."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 256), ("t10k", 64)):
        labels = rng.integers(10, size=count).astype(np.uint8)
        images = rng.integers(60, size=(count, 28, 28)).astype(np.uint8)
        images[np.arange(count), 2 * labels + 4] += 150
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            head = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
            (folder / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(head + array.tobytes()))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    write_idx(folder)
    return folder


def shrunk(name: str, images: pathlib.Path) -> dict:
    config = importlib.import_module(f"configs.{name}").get_config().to_dict()
    config["batch_size"] = 16
    if "images" in config["data"]["source"]:
        config["data"] |= {"dir": str(images), "limit": min(config["data"]["limit"], 128)}
    if "folds" in config["data"]:
        config["data"] |= {"folds": 8, "cross_validate": False}
    if "limit" in config["data"] and "text" in config["data"]["source"]:
        config["data"] |= {"limit": 64, "length": 16}
    if config["model"] in SMALL and name != "fashion_slices":
        config["model_args"] = SMALL[config["model"]]
    for training in (config["float"], config.get("teacher", {}).get("float", {}), *config["stages"]):
        if training.get("epochs"):
            training["epochs"] = 2
    return config


@pytest.mark.parametrize("name", NAMES)
def test_a_config_fits_its_network_and_says_what_to_expect(name, images):
    """Model, data, teacher, start and every stage are built and tried on the fresh network; nothing is trained."""
    config = shrunk(name, images)
    experiment = compress.Experiment(checked(config))
    experiment.check()
    text = importlib.import_module(f"configs.{name}").__doc__
    for part in (f"--config={name} ", "Expected", " cores"):
        assert part in text, f"the docstring of configs/{name}.py has no {part!r}"


@pytest.mark.parametrize("name", TRAINED)
def test_a_config_runs(name, images, tmp_path):
    config = shrunk(name, images)
    report = compress.run(config, str(tmp_path), latency=False)
    assert [s["name"] for s in report["stages"]] == [s["name"] for s in config["stages"]]
    assert report["stages"][-1]["bytes"] < report["baseline"]["bytes"]
    assert (tmp_path / "report.html").exists() and (tmp_path / "network.jn").exists()


@pytest.mark.slow
def test_the_study_of_gradients_finds_where_they_vanish(images, tmp_path, monkeypatch):
    monkeypatch.setattr(gradients, "BITS", (4,))
    cases = [c for c in gradients.CASES if c.bits in (0, 4)]
    monkeypatch.setattr(gradients, "CASES", tuple(cases))
    config = shrunk("fashion_gradients", images)
    found = gradients.run(config, str(tmp_path))
    paths = gradients.matrices(found)
    assert len(paths) == 3 and all(found["pass_4"]["last"][p] > 0 for p in paths)
    assert not any(found["none_4"]["last"][p] for p in paths), "the true derivative of rounding is zero"
    assert any(found["none_4"]["last"].values()), "the biases are not rounded"
    hard = found["clip_4_a4-none"]["first"]
    assert hard[paths[-1]] > 0 and not hard[paths[0]] and not hard[paths[1]], "nothing passes a hard-rounded activation"
    assert all(found["clip_4"]["first"][p] < found["pass_4"]["first"][p] for p in paths)
    page = (tmp_path / "findings.md").read_text()
    assert (
        "No kernel gets any gradient in: none_4" in page and (tmp_path / "gradients.png").read_bytes()[:4] == b"\x89PNG"
    )


def test_a_sweep_trains_each_float_network_once(images, tmp_path):
    config = shrunk("fashion_lenet300_qat4", images)
    made = sweep.run(config, {"stages[0].bits": [4, 8]}, str(tmp_path), seeds=1)
    assert len(list((tmp_path / "floats").iterdir())) == 1
    assert not list(tmp_path.glob("bits*/*/checkpoints/*/float"))
    before = {r["baseline_score"] for cell in made["cells"] for r in cell["runs"]}
    assert len(before) == 1 and made["missing"] == 0
