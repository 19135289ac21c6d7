"""``kill -9`` at random moments, ten times in one run: the final report is that of an undisturbed run, but for times."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.digits_quickstart import get_config
from experiments import compress
from jaxopt_nn.interpret.network import Network

ROOT = pathlib.Path(compress.__file__).parent.parent
TIMES = ("latency", "seconds")


def shrunk():
    """Two folds of the quickstart, few epochs, trained ranges, a position after every stretch of steps."""
    config = get_config().to_dict()
    config["stages"] = [dict(stage, epochs=6) for stage in config["stages"]]
    config["stages"][2] |= {"rounding": "stochastic", "rule": "w4a8-moving"}
    config["data"]["folds"] = 2
    return {**config, "float": {"epochs": 10, "learning_rate": 1e-3}, "checkpoint_seconds": 0.0}


def started(config: pathlib.Path, workdir: pathlib.Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "experiments.compress", f"--config={config}", f"--workdir={workdir}"]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(config: pathlib.Path, workdir: pathlib.Path) -> None:
    process = started(config, workdir)
    said, _ = process.communicate()
    assert process.returncode == 0, said


def without_times(value, workdir):
    if isinstance(value, dict):
        return {k: without_times(v, workdir) for k, v in value.items() if k not in TIMES}
    if isinstance(value, list):
        return [without_times(v, workdir) for v in value]
    return value.replace(str(workdir), "WORKDIR") if isinstance(value, str) else value


def positions(workdir: pathlib.Path) -> set[str]:
    places = (*workdir.glob("checkpoints/*/*/*"), *workdir.glob("checkpoints/*/control/*/*"))
    return {str(p) for p in places if p.name.isdigit()}


def kill_after_a_step(config: pathlib.Path, workdir: pathlib.Path, chance: random.Random, stage: str = "") -> bool:
    """Lets the run reach one more position (in ``stage``), waits a random moment and kills it; False where it was done."""
    before = positions(workdir)
    process = started(config, workdir)
    while process.poll() is None and not any(f"/{stage}" in place for place in positions(workdir) - before):
        time.sleep(0.01)
    time.sleep(chance.uniform(0.0, 0.4))
    alive = process.poll() is None
    if alive:
        os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    return alive


def plain(seed, width=48):
    """Two layers that read their widths off their variables, so that a pass may cut them."""
    rng = np.random.default_rng(seed)
    weights = lambda *shape: jnp.asarray(rng.standard_normal(shape) / np.sqrt(shape[0]), jnp.float32)

    def apply(v, x):
        return jax.nn.relu(x.reshape(len(x), -1) @ v["up"]) @ v["down"]

    return Network(apply, {"up": weights(64, width), "down": weights(width, 10)})


CUT = {
    "seed": 0, "model": f"{__name__}:plain", "batch_size": 64, "checkpoint_seconds": 0.0,
    "control": True, "data": {"source": "experiments.data.digits:digits", "folds": 5, "valid": 0.1},
    "float": {"epochs": 6, "learning_rate": 1e-3},
    "teacher": {
        "model": f"{__name__}:plain", "model_args": {"width": 96}, "checkpoint": "",
        "float": {"epochs": 6, "learning_rate": 2e-3},
    },
    "stages": [
        {"name": "prune", "method": "prune", "sparsity": 0.5, "epochs": 8, "learning_rate": 1e-3},
        {"name": "cut", "method": "cut_units", "score": "mean_activation", "share": 0.5, "epochs": 8, "learning_rate": 1e-3},
        {"name": "w4", "method": "quantize", "bits": 4, "rule": "w4a8-moving", "epochs": 8, "learning_rate": 1e-3},
        {
            "name": "distil", "method": "identity", "epochs": 8, "learning_rate": 1e-3,
            "distill": {"temperature": 3.0, "hard_weight": 0.2},
        },
    ],
}  # fmt: skip


def written(folder: pathlib.Path, config: dict) -> pathlib.Path:
    file = folder / "config.py"
    file.write_text(f"from ml_collections import ConfigDict\ndef get_config(): return ConfigDict({config!r})\n")
    return file


@pytest.mark.slow
def test_killed_in_every_stage_around_a_pass(tmp_path):
    config, whole, broken = written(tmp_path, CUT), tmp_path / "whole", tmp_path / "broken"
    finish(config, whole)
    chance = random.Random(1)
    assert all(kill_after_a_step(config, broken, chance, name) for name in (*(s["name"] for s in CUT["stages"]), "control"))
    finish(config, broken)
    reports = [without_times(json.loads((d / "report.json").read_text()), d) for d in (whole, broken)]
    assert reports[0] == reports[1]
    assert [stage["params"] for stage in reports[0]["stages"]] == [64 * 48 + 480] + 3 * [64 * 24 + 240]
    assert reports[0]["stages"][2]["metrics"] != reports[0]["stages"][3]["metrics"]


@pytest.mark.slow
def test_ten_kills_change_no_number(tmp_path):
    config = written(tmp_path, shrunk())
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finish(config, whole)
    chance = random.Random(0)
    assert all(kill_after_a_step(config, broken, chance) for _ in range(10))
    assert not (broken / "report.json").exists()
    finish(config, broken)
    reports = [without_times(json.loads((d / "report.json").read_text()), d) for d in (whole, broken)]
    assert reports[0] == reports[1]
    assert len(reports[0]["history"]) > 20
