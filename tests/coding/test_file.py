"""A tree comes back from one file equal to the bit, in few bytes, whole or in part, and lies where it is asked to."""

import errno
import math
import subprocess
import sys
import textwrap

import flax.core
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec, SingleDeviceSharding

import jaxopt_nn as jn
from jaxopt_nn.coding import nodes, places, streams, writer
from jaxopt_nn.coding.loader import load_file, opened, read_file
from jaxopt_nn.coding.writer import save_file
from jaxopt_nn.core.paths import leaves_by_path
from jaxopt_nn.tensors.base import is_compressed
from tests.coding.test_artifact import DTYPES, assert_equal, floats, network, packed
from tests.zoo import ZOO
from tests.zoo.compressed import quantized

RNG = np.random.default_rng(0)


def lenet(sparsity=0.98):
    """The weights of a LeNet-300-100, random, pruned and in 4 bits: a tree like those that files are small for."""
    sizes = ((784, 300), (300, 100), (100, 10))
    v = {f"Dense_{i}": {"bias": jnp.zeros(s[1]), "kernel": floats(*s)} for i, s in enumerate(sizes)}
    method = jn.where("**/kernel", jn.chain(jn.prune(sparsity=sparsity), jn.quantize(4)))
    return {"params": method.pack(v, method.init(v))}


def again(tree, path, **options):
    save_file(path, tree, overwrite=True, **options)
    return load_file(path)[0]


def test_comes_back_equal_to_the_bit(tmp_path):
    tree = network()
    artifact = save_file(tmp_path / "x.jn", tree, recipe=[{"name": "prune"}], extra={"note": "é"}, files={"a/b": b"123"})
    loaded, manifest = load_file(artifact)
    assert_equal(loaded, tree)
    assert list(loaded) == list(tree) and list(loaded["layers"]) == [1, 0]
    assert type(loaded["a"]) is list and type(loaded["a"][1]) is tuple and loaded["a"][1][1:] == (None, ())
    assert (manifest["recipe"], manifest["extra"], manifest["files"]) == ([{"name": "prune"}], {"note": "é"}, {"a/b": 3})
    assert manifest["format"] == 1 and manifest["versions"] == {"jaxopt_nn": jn.__version__, "jax": jax.__version__}
    assert read_file(artifact) == {"a/b": b"123"} and read_file(artifact, lambda name: False) == {}
    assert artifact.bytes == artifact.path.stat().st_size and [p.name for p in tmp_path.iterdir()] == ["x.jn"]


def test_a_fresh_process_reads_it(tmp_path):
    tree = network()["z"]
    artifact = save_file(tmp_path / "x.jn", tree)
    code = f"""
        import jax, numpy as np, jaxopt_nn
        tree, _ = jaxopt_nn.load_file({str(artifact.path)!r})
        assert isinstance(tree["kernel"], jaxopt_nn.Masked)
        print(b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(tree)).hex())
    """
    out = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(tree)).hex()


OTHERS = ("float64", "complex128", "uint2", "float8_e5m2", "float4_e2m1fn", "int64", "uint16")


@pytest.mark.parametrize("dtype", [*DTYPES, *OTHERS])
def test_every_dtype_small_large_and_empty(tmp_path, dtype):
    kind = jnp.dtype(dtype)
    arrays = [np.asarray(RNG.integers(0, 2, shape)).astype(kind) for shape in ((), (3, 5), (0, 4), (5000,), (1, 1, 7))]
    loaded = again(arrays, tmp_path / "x", chunk=1000)
    assert_equal([np.asarray(x) for x in loaded], arrays)
    narrow = jax.dtypes.canonicalize_dtype(kind) != kind
    assert all(isinstance(x, np.ndarray if narrow else jax.Array) for x in loaded)


@pytest.mark.parametrize("value", [np.nan, -np.nan, -0.0, np.inf, 1e-45])
def test_every_bit_of_a_float(tmp_path, value):
    array = np.array([value, 1.0, value], np.float32)
    assert np.asarray(again({"x": array}, tmp_path / "x")["x"]).tobytes() == array.tobytes()


SMALL = (None, (), {}, [], {"a": ()}, [None, ((),)], {1: {"a": None}}, np.float32(3), {"": {"": np.ones(2)}})


@pytest.mark.parametrize("tree", SMALL)
def test_small_trees(tmp_path, tree):
    loaded = again(tree, tmp_path / "x")
    values = lambda tree: [np.asarray(x).tolist() for x in jax.tree.leaves(tree)]
    assert jax.tree.structure(loaded) == jax.tree.structure(tree) and values(loaded) == values(tree)


METHODS = {
    "1 bit": jn.quantize(1), "3 bits": jn.quantize(3, symmetric=False), "8 bits": jn.quantize(8),
    "groups": jn.quantize(5, group=4),
    "pruned": jn.prune(sparsity=0.7), "pruned, 2 bits": jn.chain(jn.prune(sparsity=0.7), jn.quantize(2)),
    "2:4": jn.prune(structure=jn.n_of_m(2, 4)), "2:4, 4 bits": jn.chain(jn.prune(structure=jn.n_of_m(2, 4)), jn.quantize(4)),
    "blocks": jn.chain(jn.prune(structure=jn.blocks(2, 2), sparsity=0.5), jn.quantize(7)),
}  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("chunk", [16, streams.CHUNK])
def test_every_format_comes_back_and_its_codes_are_symbols(tmp_path, name, chunk):
    tree = {"w": packed(METHODS[name], 12, 8), "stacked": packed(METHODS[name], 3, 8, 4)}
    assert_equal(again(tree, tmp_path / "x", chunk=chunk), tree)
    entries = nodes.taken_apart(tree)[1]
    codes = [entry for entry in entries if entry.dtype == np.uint8]
    assert all(entry.packed for entry in codes) and {entry.leaf for entry in entries} == {"w", "stacked"}


@pytest.mark.parametrize("name", sorted(ZOO)[::7])
def test_the_zoo_in_codes(tmp_path, name):
    stored = quantized(name, 4).stored
    try:
        plain = flax.core.unfreeze(stored)
        loaded = again(plain, tmp_path / "x")
    except TypeError:
        pytest.skip("its tree has nodes that no file takes")
    assert_equal(loaded, plain)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_random_trees(tmp_path_factory, data):
    dtype = data.draw(st.sampled_from(["float32", "bfloat16", "int4", "uint8", "int32", "bool"]))
    shapes = data.draw(st.lists(st.lists(st.integers(0, 6), max_size=4), max_size=4))
    seed = data.draw(st.integers(0, 9))
    arrays = [np.random.default_rng(seed).integers(0, 2, shape).astype(jnp.dtype(dtype)) for shape in shapes]
    path = tmp_path_factory.mktemp("x") / "x"
    assert_equal([np.asarray(x) for x in again(arrays, path, chunk=data.draw(st.integers(8, 99)))], arrays)


def test_header_and_checksums_take_less_than_500_bytes(tmp_path):
    artifact = save_file(tmp_path / "x", {"variables": lenet(), "states": {}}, extra={"rules": [], "plans": [], "still": []})
    with opened(artifact) as file:
        file.arrays(set(range(len(file.contents.entries))), lambda path, leaf: None)
        around = file.contents.manifest["header_bytes"] + 6 * len(file.sizes)
    assert artifact.bytes == file.contents.manifest["header_bytes"] + sum(file.sizes)
    assert around < 200 and len(file.sizes) == 7  # a mask and codes for each layer, and all floats in one
    entropy = lambda p: -p * math.log2(p) - (1 - p) * math.log2(1 - p)
    ideal = sum(n * (entropy(0.02) + 0.02 * 4) / 8 for n in (235200, 30000, 1000)) + 410 * 4
    assert artifact.bytes < 1.01 * ideal + 200


def test_equal_arrays_are_written_once_and_come_back_apart(tmp_path):
    shared = np.asarray(floats(300, 300))
    tree = {"a": shared, "b": shared.copy(), "c": {"d": jnp.asarray(shared)}, "e": shared.T.copy(), "s": np.ones(3)}
    tree["t"] = np.ones(3)
    artifact = save_file(tmp_path / "x", tree)
    alone = save_file(tmp_path / "y", {"a": shared, "e": tree["e"], "s": np.ones(3)})
    assert artifact.bytes < alone.bytes + 40
    loaded, _ = load_file(artifact)
    assert_equal({k: np.asarray(v) for k, v in loaded.items() if k != "c"}, {k: v for k, v in tree.items() if k != "c"})
    assert loaded["a"] is not loaded["b"] is not loaded["c"]["d"]  # each may be donated beside the others


def test_codes_whose_padding_is_not_zero_are_kept_as_bytes(tmp_path):
    tensor = packed(jn.quantize(3), 5, 3)
    codes = np.asarray(tensor.codes).copy()
    codes[-1] |= 0x80
    tree = {"w": jn.QTensor(jnp.asarray(codes), tensor.scale, None, 3, True, "float32", tensor.axis, tensor.length)}
    assert_equal(again(tree, tmp_path / "x"), tree)


def test_only_what_is_asked_for_is_read(tmp_path):
    tree = lenet()
    artifact = save_file(tmp_path / "x", tree, files={"f": b"1"}, chunk=1000)
    data = bytearray(artifact.path.read_bytes())
    part, _ = load_file(artifact, only="**/Dense_1/*")
    assert_equal(part["params"]["Dense_1"], tree["params"]["Dense_1"])
    rest = part["params"]["Dense_0"]
    assert isinstance(rest["bias"], jax.ShapeDtypeStruct) and isinstance(rest["kernel"].mask, jax.ShapeDtypeStruct)
    assert jax.tree.structure(part) == jax.tree.structure(tree) and rest["kernel"].shape == (784, 300)
    data[200] ^= 1  # in the first layer's mask, which is not read
    (tmp_path / "y").write_bytes(data)
    assert_equal(load_file(tmp_path / "y", only="**/Dense_1/*")[0]["params"]["Dense_1"], tree["params"]["Dense_1"])
    with pytest.raises(ValueError, match=r"y: params/Dense_0/kernel/mask: the checksum of its data is wrong; copy the file"):
        load_file(tmp_path / "y")
    with pytest.raises(ValueError, match="pattern 'kernel' matches no path of 6"):
        load_file(artifact, only="kernel")


def test_a_target_gives_its_containers_and_is_checked(tmp_path):
    tree = lenet()
    artifact = save_file(tmp_path / "x", tree)
    dense = jax.eval_shape(lambda: flax.core.freeze(jn.densify(tree)))
    loaded, _ = load_file(artifact, target=dense)
    assert isinstance(loaded, flax.core.FrozenDict) and is_compressed(loaded["params"]["Dense_0"]["kernel"])
    assert_equal(flax.core.unfreeze(loaded), tree)
    with pytest.raises(ValueError, match=r"x: params/Dense_0/bias is float32\[300\], target says bfloat16\[300\]"):
        load_file(artifact, target=jax.tree.map(lambda x: x.astype("bfloat16") if x.ndim == 1 else x, jn.densify(tree)))
    with pytest.raises(ValueError, match=r"x: has params/Dense_0/bias, params/Dense_0/kernel, params/Dense_1/bias, where"):
        load_file(artifact, target={"params": {}})


def mesh():
    return jax.make_mesh((8,), ("model",), axis_types=(AxisType.Auto,))


def test_arrays_lie_in_shards_from_the_start(tmp_path):
    """The oracle is ``device_put``: the same shards on the same devices."""
    tree = {"w": packed(jn.quantize(4), 64, 48), "float": floats(16, 40), "bias": floats(8)}
    tree["mask"] = packed(jn.prune(sparsity=0.5), 8, 8)
    artifact = save_file(tmp_path / "x", tree, chunk=512)
    spec = {"w": PartitionSpec(None, "model"), "float": PartitionSpec("model"), "bias": PartitionSpec()}
    spec["mask"] = PartitionSpec("model")
    own = {name: NamedSharding(mesh(), s) for name, s in spec.items()}
    loaded, _ = load_file(artifact, sharding=own)
    assert_equal(loaded, tree)
    expected = jax.device_put(tree["float"], own["float"])
    for a, b in zip(loaded["float"].addressable_shards, expected.addressable_shards, strict=True):
        assert (a.device, a.index) == (b.device, b.index) and (np.asarray(a.data) == np.asarray(b.data)).all()
    assert loaded["w"].codes.sharding.spec == PartitionSpec(None, "model") and loaded["w"].scale.sharding.spec == spec["w"]
    assert loaded["mask"].mask.sharding.is_fully_replicated and len(loaded["mask"].mask.sharding.device_set) == 8
    by_function, _ = load_file(artifact, sharding=lambda path, leaf: own[path] if leaf.ndim == 2 and path != "mask" else None)
    assert by_function["float"].sharding == own["float"] and len(by_function["bias"].sharding.device_set) == 1
    everywhere, _ = load_file(artifact, sharding=NamedSharding(mesh(), PartitionSpec()))
    assert all(len(x.sharding.device_set) == 8 for x in jax.tree.leaves(everywhere))
    placed = {k: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=own[k]) for k, x in jn.densify(tree).items()}
    assert load_file(artifact, target=placed)[0]["float"].sharding == own["float"]


def test_sharded_arrays_are_saved_shard_by_shard(tmp_path):
    host = np.asarray(floats(64, 40))
    for spec in (PartitionSpec("model"), PartitionSpec(None, "model"), PartitionSpec()):
        array = jax.device_put(host, NamedSharding(mesh(), spec))
        source = places.Source("w", array)
        region = (slice(5, 30), slice(3, 40))
        assert (source.part(region) == host[region]).all() and (source.part(None) == host).all()
        assert (np.asarray(again({"w": array}, tmp_path / "x", chunk=100)["w"]) == host).all()


def test_a_sharding_that_fits_nothing_is_named(tmp_path):
    artifact = save_file(tmp_path / "x", {"kernel": floats(3)})
    one = SingleDeviceSharding(jax.devices()[1])
    assert load_file(artifact, sharding={"kernel": one})[0]["kernel"].sharding == one
    with pytest.raises(ValueError, match=r"sharding: the file holds no kernels; nearest: kernel"):
        load_file(artifact, sharding={"kernels": one})
    with pytest.raises(TypeError, match="sharding of kernel is 3; pass a jax"):
        load_file(artifact, sharding={"kernel": 3})


def test_a_small_file_of_a_large_array_needs_leave(tmp_path):
    artifact = save_file(tmp_path / "x", {"w": jnp.zeros((1000, 1000), jnp.int8), "v": jnp.ones(3)})
    assert artifact.bytes < 300
    with pytest.raises(ValueError, match=r"x: its arrays take 1,000,012 bytes, allowed are 1,000,000; pass max_bytes=1000012"):
        load_file(artifact, max_bytes=10**6)
    assert load_file(artifact, only="v", max_bytes=100)[0]["v"].shape == (3,)
    assert load_file(artifact)[0]["w"].shape == (1000, 1000)


@pytest.mark.parametrize(
    ("tree", "error", "message"),
    [
        ({"a": "text"}, TypeError, "a: str can't be stored"),
        ({"a": np.array(["x"])}, TypeError, "a: an array of dtype <U1 can't be stored"),
        ({1.5: np.ones(2)}, TypeError, "the key 1.5 is neither a string nor an integer"),
        ([object()], TypeError, "0: object can't be stored"),
    ],
)
def test_what_can_not_be_stored_is_named(tmp_path, tree, error, message):
    with pytest.raises(error, match=message):
        save_file(tmp_path / "x", tree)
    assert not list(tmp_path.iterdir())


def test_places_and_arguments_are_checked(tmp_path):
    save_file(tmp_path / "x", [floats(2)])
    with pytest.raises(FileExistsError, match="x exists; pass overwrite=True"):
        save_file(tmp_path / "x", [floats(3)])
    with pytest.raises(FileExistsError, match="is a folder; pass the name of a file"):
        save_file(tmp_path, [floats(3)], overwrite=True)
    with pytest.raises(FileNotFoundError, match="no such directory; make it first"):
        save_file(tmp_path / "no-such" / "x", [])
    with pytest.raises(FileNotFoundError, match="no such file; pass the name of what"):
        load_file(tmp_path / "y")
    with pytest.raises(TypeError, match="recipe and extra are kept as JSON"):
        save_file(tmp_path / "y", [], recipe=jn.quantize(4))
    with pytest.raises(ValueError, match="chunk=1: pass a number of symbols, 8 or more"):
        save_file(tmp_path / "y", [], chunk=1)
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_while_writing_leaves_the_old_file(tmp_path, monkeypatch, error):
    save_file(tmp_path / "x", [jnp.arange(2)])

    def fails(*args):
        raise error

    monkeypatch.setattr(writer.header.Frames, "write", fails)
    with pytest.raises(type(error)):
        save_file(tmp_path / "x", [jnp.arange(3)], overwrite=True)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["x"] and load_file(tmp_path / "x")[0][0].tolist() == [0, 1]


def test_contexts_are_tried_on_small_trees_only():
    entry = lambda *shape: nodes.Entry("w", "w", np.dtype(np.uint8), shape)
    assert writer._contexts([entry(900, 1000)], None) is None and writer._contexts([entry(900, 3000)], None) is False
    assert writer._contexts([entry(3000, 3000)], True) is True


def test_paths_of_leaves_are_those_of_the_tree():
    tree = network()
    entries = nodes.taken_apart(tree)[1]
    assert list(dict.fromkeys(e.leaf for e in entries)) and {e.leaf for e in entries} == set(leaves_by_path(tree))
