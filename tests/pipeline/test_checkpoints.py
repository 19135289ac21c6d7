"""Positions on disk: nothing good is deleted, what is damaged is passed over, another tree is refused."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxopt_nn.pipeline import checkpoints
from jaxopt_nn.pipeline.checkpoints import Checkpoints, claim, locked

TREE = {"a": jnp.arange(3.0), "b": (jnp.zeros(3), jax.random.key(1))}


def saved(directory, tree=TREE, steps=(1, 2)):
    places = Checkpoints(directory, 0.0)
    for step in steps:
        places.save(step, tree, {"step": step})
    return places


def steps_in(directory):
    return sorted(int(p.name) for p in directory.iterdir() if p.name.isdigit())


def too_many(*args, **kwargs):
    raise OSError(24, "Too many open files")


def refused(*args, **kwargs):
    raise ValueError("RESOURCE_EXHAUSTED: Error opening d/0: Too many open files [OS error 24]\nmore")


@pytest.mark.parametrize(
    ("where", "name", "failing"),
    [
        (checkpoints, "check_files", too_many),
        (checkpoints.Path, "read_bytes", too_many),
        (ocp.CheckpointManager, "restore", refused),
    ],
    ids=["files", "manifest", "arrays"],
)
def test_nothing_is_deleted_where_the_machine_can_not_read(tmp_path, monkeypatch, where, name, failing):
    said = []
    saved(tmp_path)
    places = Checkpoints(tmp_path, 0.0, said.append)
    with (
        monkeypatch.context() as patch,
        pytest.raises(OSError, match=r"2: can't be read .*Too many open .*same command"),
    ):
        patch.setattr(where, name, failing)
        places.restore(TREE)
    assert steps_in(tmp_path) == [1, 2] and not said
    step, tree, meta = places.restore(TREE)
    assert step == 2 and meta == {"step": 2}
    np.testing.assert_array_equal(tree["a"], TREE["a"])
    assert jax.random.key_data(tree["b"][1]).tolist() == jax.random.key_data(TREE["b"][1]).tolist()


def arrays_of(directory, step):
    return max((directory / str(step) / "state").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else -1)


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: flip(arrays_of(d, 2)),
        lambda d: arrays_of(d, 2).unlink(),
        lambda d: (d / "files_2.json").unlink(),
        lambda d: (d / "files_2.json").write_text((d / "files_2.json").read_text()[:50]),
    ],
    ids=["changed", "missing", "not finished", "manifest cut off"],
)
def test_a_damaged_position_makes_place_for_a_new_one(tmp_path, damage):
    said = []
    saved(tmp_path)
    damage(tmp_path)
    places = Checkpoints(tmp_path, 0.0, said.append)
    assert places.restore(TREE)[0] == 1 and len(said) == 1 and "2: damaged, passed over" in said[0]
    places.save(2, {**TREE, "a": jnp.ones(3)}, {})
    step, tree, _ = places.restore(TREE)
    assert step == 2 and tree["a"].tolist() == [1, 1, 1] and len(said) == 1


@pytest.mark.parametrize(
    ("like", "said"),
    [
        (
            {"x": jnp.zeros(3), "y": (jnp.zeros(3), jax.random.key(0))},
            r"holds a float32\[3\], this run needs x float32\[3\]",
        ),
        ({"a": jnp.zeros(3)}, r"holds b/0 float32\[3\], this run needs nothing"),
        ({**TREE, "c": jnp.zeros(2)}, r"holds nothing, this run needs c float32\[2\]"),
        ({**TREE, "a": jnp.zeros((1, 3))}, r"holds a float32\[3\], this run needs a float32\[1, 3\]"),
        ({**TREE, "a": jnp.zeros(3, jnp.bfloat16)}, r"this run needs a bfloat16\[3\]"),
        ({**TREE, "b": (jnp.zeros(3), jax.random.key(1, impl="rbg"))}, r"holds b/1 key<fry>\[\], .* b/1 key<rbg>\[\]"),
    ],
    ids=["paths", "fewer", "more", "shape", "dtype", "key"],
)
def test_a_position_of_another_tree_is_refused_and_kept(place, like, said):
    with pytest.raises(ValueError, match=f"2: .*{said}; it belongs to another config or version: pass another workdir"):
        Checkpoints(place).restore(like)
    assert steps_in(place) == [1, 2]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    directory = tmp_path_factory.mktemp("place")
    saved(directory)
    return directory


def test_a_position_of_an_older_version_is_refused_and_kept(tmp_path):
    saved(tmp_path)
    for file in tmp_path.glob("files_*.json"):
        file.write_text(json.dumps(json.loads(file.read_text())["files"]))
    with pytest.raises(
        ValueError, match=r"version 1 of the format, this package reads version 2; .* pass another workdir"
    ):
        Checkpoints(tmp_path).restore(TREE)
    assert steps_in(tmp_path) == [1, 2]


def test_a_directory_has_one_run_at_a_time(tmp_path):
    said = rf"another run \(pid {os.getpid()}\) is using this workdir; wait for it, or pass another --workdir"
    with locked(tmp_path), pytest.raises(OSError, match=said), locked(tmp_path):
        pass
    code = "import fcntl, os, sys; file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / ".lock")]).returncode == -9
    with locked(tmp_path):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())


def test_a_recipe_may_change_until_a_stage_has_positions(tmp_path):
    config = {"seed": 0, "stages": [{"name": "q", "bits": 4}]}
    mended = {"seed": 0, "stages": [{"name": "q", "bits": 8}, {"name": "p"}]}
    claim(tmp_path, config, ("float",))
    (tmp_path / "fold_0" / "float" / "12").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"different: config\.stages"):
        claim(tmp_path, mended)
    with pytest.raises(ValueError, match=r"different: config.seed \(0 there, 1 here\); pass another"):
        claim(tmp_path, {**mended, "seed": 1}, ("float",))
    claim(tmp_path, mended, ("float",))
    assert json.loads((tmp_path / "config.json").read_text()) == mended
    (tmp_path / "fold_0" / "q" / "3").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"different: config\.stages"):
        claim(tmp_path, config, ("float",))
