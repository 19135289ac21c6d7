"""A damaged file is an error that says so: each byte of a small one, whatever is cut, added or made up."""

import io
import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import jaxopt_nn as jn
from experiments.benchmarks.fuzz_artifact import mutant, network, outcome, parts, sealed
from jaxopt_nn.coding import header
from jaxopt_nn.coding.loader import load_file
from jaxopt_nn.coding.writer import save_file
from tests.coding.test_artifact import floats, packed


def small(folder):
    """A pruned layer in 4 bits, its bias, and a file beside: what an artifact consists of, in few bytes."""
    tree = {"kernel": packed(jn.chain(jn.prune(sparsity=0.75), jn.quantize(4)), 16, 8), "bias": floats(8)}
    return save_file(folder / "whole.jn", tree, extra={"rules": []}, files={"note": b"abc"}).path


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_each_flipped_byte_is_reported(tmp_path, flip):
    """All bytes of the file, one after the other."""
    data = small(tmp_path).read_bytes()
    for i in range(len(data)):
        (tmp_path / "x").write_bytes(data[:i] + bytes([data[i] ^ flip]) + data[i + 1 :])
        with pytest.raises(ValueError, match=r"^/.*/x: ") as error:
            load_file(tmp_path / "x")
        assert len(str(error.value)) < 400
    assert 100 < len(data) < 500


def test_each_end_and_each_byte_more_is_reported(tmp_path):
    data = small(tmp_path).read_bytes()
    for changed in [*(data[:i] for i in range(len(data))), data + b"\0", data + data, b"\0" + data]:
        (tmp_path / "x").write_bytes(changed)
        with pytest.raises(ValueError, match=r"/x: "):
            load_file(tmp_path / "x")


def test_frames_at_other_places_or_of_other_files_are_reported(tmp_path):
    tree = {"a": np.arange(200, dtype=np.uint8), "b": np.arange(200, dtype=np.uint8)[::-1].copy()}
    whole = save_file(tmp_path / "x", tree).path.read_bytes()
    _, frames = parts(whole)
    sizes = [len(header.varint(len(f))) + len(f) + 4 for f in frames]
    first, second = whole[-sum(sizes) : -sizes[1]], whole[-sizes[1] :]
    (tmp_path / "y").write_bytes(whole[: -sum(sizes)] + second + first)
    with pytest.raises(ValueError, match="a: the checksum of its data is wrong"):
        load_file(tmp_path / "y")


HEADERS = {
    "no tree": {},
    "another key": {"tree": None, "more": 1},
    "a list": [],
    "a chunk of nothing": {"tree": None, "chunk": 0},
    "files": {"tree": None, "files": [["a", -1]]},
    "a file twice": {"tree": None, "files": [["a", 1], ["a", 1]]},
    "an unknown dtype": {"tree": "object 3"},
    "text": {"tree": "S9 3"},
    "an unknown kind": {"tree": ["Popen", {}, {}]},
    "a class that is no tensor": {"tree": ["Tensor", {}, {}]},
    "a number of no array": {"tree": 0},
    "a number of a later array": {"tree": [["list", 1, "int8 1"]]},
    "codes of too few bytes": {"tree": "uint8 3/4 0 7"},
    "codes of floats": {"tree": "float32 3/4 0 24"},
    "codes along no axis": {"tree": "uint8 3/4 1 6"},
    "nine bits": {"tree": "uint8 3/9 0 2"},
    "a negative length": {"tree": "float32 -3"},
    "a huge array": {"tree": "float32 999999999999999 999999999999999"},
    "a huge constant": {"tree": "uint8 2000000"},
    "many axes": {"tree": "uint8" + " 1" * 40},
    "a deep tree": {"tree": json.loads("[" * 150 + "]" * 150)},
    "a key of no kind": {"tree": ["key", "none", "uint32 2"]},
    "no kind": {"tree": [None, {}, {}]},
    "keys twice": {"tree": ["dict", ["a", None], ["a", None]]},
    "a tensor of other fields": {"tree": ["QTensor", {"size": 3}, {}]},
    "a tensor without scale": {"tree": ["QTensor", {"bits": 4, "signed": True, "float_dtype": "float32"}, {"codes": "int8 3"}]},
    "a count of millions": {
        "tree": ["NofM", {"n": 10**9, "m": 10**12, "axis": -1, "length": 8}, {"kept": "int8 4", "places": "uint8 1"}]
    },
    "blocks of nothing": {
        "tree": ["Masked", {"inner_shape": [8], "count": 0, "block": [0]}, {"mask": "uint8 1", "kept": "int8 0"}]
    },
    "bits of text": {
        "tree": ["QTensor", {"bits": "4", "signed": True, "float_dtype": "float32"}, {"codes": "int8 1", "scale": "float32 1"}]
    },
    "an axis too far": {
        "tree": [
            "QTensor", {"bits": 4, "signed": True, "float_dtype": "float32", "axis": -3, "length": 2},
            {"codes": "uint8 1 1/4 0 2", "scale": "float32 1 1"},
        ]
    },
}  # fmt: skip


@pytest.mark.parametrize("name", HEADERS)
def test_headers_with_right_checksums_that_say_what_can_not_be(tmp_path, name):
    text = json.dumps(HEADERS[name]).encode()
    (tmp_path / "x").write_bytes(sealed(text, [b"\0\0", b"\1\0"] if "constant" not in name else [b"\1\0"]))
    with pytest.raises(ValueError, match=r"/x: "):
        load_file(tmp_path / "x", max_bytes=2**20)


def test_a_header_that_swells_is_refused_before_it_has_memory(tmp_path):
    for text in (b"[" * (header.HEADER_BYTES + 1), b'{"tree":"' + b" " * header.HEADER_BYTES + b'"}', b"[" * 10**6, b"\xff"):
        (tmp_path / "x").write_bytes(sealed(text, []))
        with pytest.raises(ValueError, match=r"/x: its header"):
            load_file(tmp_path / "x")
    (tmp_path / "x").write_bytes(b"\x8fjnn\x02")
    with pytest.raises(ValueError, match=r"version 2 of the format, this library reads 1; use a newer one"):
        load_file(tmp_path / "x")
    with pytest.raises(ValueError, match="a length of more than 9 bytes"):
        header.read_varint(io.BytesIO(b"\xff" * 20), 20)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    tree = network()
    path = save_file(folder / "whole.jn", tree, recipe=["r"], extra={"x": 1}, files={"f": b"abc"}, chunk=64).path
    return folder, tree, path.read_bytes()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32))
def test_mutants_give_the_documented_error_or_a_sound_tree(sound, seed):
    folder, tree, data = sound
    mutated, right = mutant(data, *parts(data), random.Random(seed))
    (folder / "x").write_bytes(mutated)
    assert not outcome(folder / "x", tree, right or mutated == data).startswith("NEVER")


@pytest.mark.slow
def test_many_mutants_in_a_process_of_limited_memory():
    command = [sys.executable, "-m", "experiments.benchmarks.fuzz_artifact", "--count=20000", "--seed=5"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        said = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)  # of this process alone: other tests have had larger ones
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, said
    assert used.ru_maxrss < 3 * 2**20
