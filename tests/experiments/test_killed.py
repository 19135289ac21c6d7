"""``kill -9`` at random moments, ten times in one run: the final report is that of an undisturbed run, but for times."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from configs.digits_quickstart import get_config
from experiments import compress

ROOT = pathlib.Path(compress.__file__).parent.parent
TIMES = ("latency_ms", "seconds")


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
    return {str(p) for p in workdir.glob("checkpoints/*/*/*") if p.name.isdigit()}


def kill_after_a_step(config: pathlib.Path, workdir: pathlib.Path, chance: random.Random) -> bool:
    """Lets the run reach one more position, waits a random moment and kills it; False where it was done before."""
    before = positions(workdir)
    process = started(config, workdir)
    while process.poll() is None and not positions(workdir) - before:
        time.sleep(0.01)
    time.sleep(chance.uniform(0.0, 0.4))
    alive = process.poll() is None
    if alive:
        os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    return alive


@pytest.mark.slow
def test_ten_kills_change_no_number(tmp_path):
    config = tmp_path / "config.py"
    config.write_text(f"from ml_collections import ConfigDict\ndef get_config(): return ConfigDict({shrunk()!r})\n")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finish(config, whole)
    chance = random.Random(0)
    assert all(kill_after_a_step(config, broken, chance) for _ in range(10))
    assert not (broken / "report.json").exists()
    finish(config, broken)
    reports = [without_times(json.loads((d / "report.json").read_text()), d) for d in (whole, broken)]
    assert reports[0] == reports[1]
    assert len(reports[0]["history"]) > 20
