"""What ``save_file`` writes, ``load_file`` reads; what it would refuse is refused before. Places, writers at once, shards."""

import os
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jaxopt_nn as jn
from jaxopt_nn.coding.header import CHUNKS

TREE = {"a": jnp.arange(16.0).reshape(4, 4), "b": jnp.zeros(3)}


def nested(levels):
    value = 1
    for _ in range(levels):
        value = {"a": value}
    return value


REFUSED = {
    "two keys that JSON makes one": ({"extra": {1: "a", "1": "b"}}, TypeError, "the key '1' stands twice"),
    "too deep": ({"extra": nested(101)}, ValueError, "extra: more than 100 values inside each other; flatten it"),
    "an array": ({"files": {"a": np.arange(4)}}, TypeError, r"files\['a'\] is an array .*; pass bytes, such as array.tobytes"),
    "text": ({"files": {"a": "text"}}, TypeError, r"files\['a'\] is 'text'; pass bytes, such as text.encode\(\)"),
    "a number for a name": ({"files": {3: b"1"}}, TypeError, "the name 3 is no string"),
    "a list": ({"files": [b"1"]}, TypeError, "files is a list; pass a dict of bytes by name"),
    "a way out": ({"files": {"../a": b"1"}}, ValueError, "'../a' is no name inside the artifact"),
    "chunks": ({"chunk": CHUNKS[1] + 1}, ValueError, "8 or more and at most 67108864"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_could_not_be_read_is_not_written(tmp_path, name):
    options, error, said = REFUSED[name]
    with pytest.raises(error, match=said):
        jn.save_file(tmp_path / "x.jn", TREE, **options)
    assert not list(tmp_path.iterdir())


def test_what_is_inside_itself_is_refused(tmp_path):
    extra = {}
    extra["a"] = [extra]
    with pytest.raises(ValueError, match="extra: more than 100 values"):
        jn.save_file(tmp_path / "x.jn", TREE, extra=extra)


def test_any_bytes_are_a_file_and_the_deepest_extra_comes_back(tmp_path):
    numbers = np.arange(4, dtype=np.int64)
    files = {"a": memoryview(numbers), "b/c": bytearray(b"12")}
    artifact = jn.save_file(tmp_path / "x.jn", TREE, extra=nested(100), files=files)
    assert jn.load_file(artifact)[1]["extra"] == nested(100)
    assert jn.load_file(artifact)[1]["files"] == {"a": 32, "b/c": 2}


ARGUMENTS = {
    "only, a number": ({"only": 3}, "only is 3; pass a pattern"),
    "only, a list": ({"only": ["b"]}, "only is a list; pass a pattern"),
    "max_bytes": ({"max_bytes": "1GB"}, "max_bytes is '1GB'; pass a number of bytes"),
    "a leaf of target": ({"target": {"k": "x"}}, "target of k is 'x'; pass a tree of arrays"),
    "target": ({"target": 3}, "target is 3; pass a tree of arrays"),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_of_another_kind(tmp_path, name):
    artifact = jn.save_file(tmp_path / "x.jn", TREE)
    options, said = ARGUMENTS[name]
    with pytest.raises(TypeError, match=said):
        jn.load_file(artifact, **options)


def test_a_network_with_arguments_of_another_kind(tmp_path):
    net = jn.Network(lambda v, x: x @ v["a"], TREE)
    for options, said in (
        ({"extra": [1]}, "extra is a list; pass a dict"),
        ({"programs": 3}, "programs is 3; pass what exported"),
        ({"programs": {"cpu": 3}}, r"programs\['cpu'\] is 3; pass what exported"),
    ):
        with pytest.raises(TypeError, match=said):
            jn.save(tmp_path / "x.jn", net, **options)
    assert not list(tmp_path.iterdir())


def test_a_target_without_keys_is_told_in_words(tmp_path):
    artifact = jn.save_file(tmp_path / "x.jn", TREE)
    with pytest.raises(ValueError, match="lacks an array alone and has a, b, where target is otherwise"):
        jn.load_file(artifact, target=jnp.ones(2))


def test_writers_at_one_time_write_whole_files(tmp_path):
    """Eight threads, one name: each succeeds, one of their trees is there, and nothing else is left."""
    failed, barrier = [], threading.Barrier(8)

    def write(i):
        barrier.wait()
        try:
            jn.save_file(tmp_path / "x.jn", {"w": np.full((50, 50), i, np.float32)}, overwrite=True)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and [file.name for file in tmp_path.iterdir()] == ["x.jn"]
    (value,) = np.unique(jn.load_file(tmp_path / "x.jn")[0]["w"])
    assert value in range(8)


def test_a_link_stays_and_its_file_keeps_who_may_read_it(tmp_path):
    (tmp_path / "real").mkdir()
    file, link = tmp_path / "real" / "x.jn", tmp_path / "link.jn"
    jn.save_file(file, TREE)
    file.chmod(0o600)
    link.symlink_to(file)
    jn.save_file(link, {"c": jnp.ones(2)}, overwrite=True)
    assert link.is_symlink() and list(jn.load_file(file)[0]) == ["c"]
    assert file.stat().st_mode & 0o777 == 0o600
    plain = tmp_path / "plain"
    plain.touch()
    assert jn.save_file(tmp_path / "new.jn", TREE).path.stat().st_mode == plain.stat().st_mode


def test_a_pipe_is_not_replaced_and_a_name_may_be_long(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileExistsError, match="is a device or pipe"):
        jn.save_file(tmp_path / "pipe", TREE, overwrite=True)
    assert jn.save_file(tmp_path / ("n" * 250), TREE).bytes > 0


@pytest.fixture
def halves():
    """A sharding over two devices: rows."""
    if jax.device_count() < 2:
        pytest.skip("needs two devices")
    return NamedSharding(jax.sharding.Mesh(np.array(jax.devices()[:2]), ("d",)), PartitionSpec("d"))


def test_what_can_not_be_split_is_named(tmp_path, halves):
    artifact = jn.save_file(tmp_path / "x.jn", {**TREE, "n": jnp.float32(3)})
    for sharding in ({"n": halves}, {"b": halves}, halves):
        with pytest.raises(ValueError, match=r"sharding of [nb]: \[3?\] can't be split by .* over 2 devices"):
            jn.load_file(artifact, sharding=sharding)
    loaded = jn.load_file(artifact, sharding={"a": halves})[0]
    assert loaded["a"].sharding == halves


def test_a_compressed_leaf_that_can_not_be_split_lies_whole(tmp_path, halves):
    """Nine rows on two devices."""
    v = {"odd": jnp.linspace(-1, 1, 9 * 6).reshape(9, 6), "even": jnp.linspace(-1, 1, 8 * 6).reshape(8, 6)}
    method = jn.quantize(8)
    stored = method.pack(v, method.init(v))
    artifact = jn.save_file(tmp_path / "x.jn", stored)
    loaded = jn.load_file(artifact, sharding={"odd": halves, "even": halves})[0]
    assert loaded["odd"].codes.sharding.spec == PartitionSpec() and len(loaded["odd"].codes.sharding.device_set) == 2
    assert loaded["even"].codes.sharding.spec[0] == "d"
    jax.tree.map(np.testing.assert_array_equal, jn.densify(loaded), jn.densify(stored))


def test_a_file_that_ends_after_its_first_bytes(tmp_path):
    artifact = jn.save_file(tmp_path / "x.jn", TREE)
    (tmp_path / "cut").write_bytes(artifact.path.read_bytes()[:4])
    with pytest.raises(ValueError, match="cut: truncated: it ends after its first 4 bytes"):
        jn.load_file(tmp_path / "cut")
