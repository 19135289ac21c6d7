"""A tree comes back from every container equal to the bit; damaged and foreign ones say what they are."""

import functools
import json
import os
import zlib

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy

from jaxopt_nn.coding import named
from jaxopt_nn.coding.compressed_tensors import from_compressed_tensors, to_compressed_tensors
from jaxopt_nn.coding.linear import refusal
from jaxopt_nn.coding.msgpack import from_msgpack, to_msgpack
from jaxopt_nn.coding.orbax import from_orbax, to_orbax
from jaxopt_nn.coding.safetensors import from_safetensors, to_safetensors
from jaxopt_nn.coding.structure import LEVELS
from jaxopt_nn.core.paths import leaves_by_path, map_with_path
from jaxopt_nn.tensors.base import nbytes
from jaxopt_nn.tensors.masked import Masked
from jaxopt_nn.tensors.qtensor import QTensor
from tests.zoo.compressed import quantized

RNG = np.random.default_rng(0)
DTYPES = [
    "float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2", "float4_e2m1fn", "int4", "uint4", "int2", "uint2",
    "int8", "uint8", "int16", "uint16", "int32", "uint32", "bool", "complex64",
]  # fmt: skip
CONTAINERS = {
    "safetensors": (to_safetensors, from_safetensors, "net.safetensors"),
    "msgpack": (to_msgpack, from_msgpack, "net.msgpack"),
    "orbax": (to_orbax, from_orbax, "net"),
}
each = pytest.mark.parametrize(("write", "read", "name"), CONTAINERS.values(), ids=CONTAINERS)
FLOATS = RNG.standard_normal((6, 5)).astype(np.float32)


@functools.cache
def network():
    """Every kind of node and dtype, keys out of order, stored and nested compressed tensors."""
    wide, mask = RNG.standard_normal((24, 10)).astype(np.float32), RNG.random((24, 10)) < 0.25
    scale = np.full((3, 10), 0.2, np.float32)
    return {
        "z": {"kernel": Masked.pack(mask, QTensor.quantize(wide, scale, bits=4)), "bias": FLOATS[0]},
        "a": [QTensor.quantize(wide, scale, jnp.ones_like(scale), bits=3, signed=False), (FLOATS, None, ())],
        "layers": {1: {"w": Masked.pack(mask, wide)}, 0: {}},
        "key": jax.random.split(jax.random.key(7), 3),
        "dtypes": {name: np.asarray(4 * FLOATS[:3, :3]).astype(name) for name in DTYPES},
        "scalar": jnp.int32(3),
        "empty": jnp.zeros((0, 3), jnp.int4),
        "host": np.arange(3, dtype=np.float64),
    }


def bits(x):
    """Everything that must survive: dtype, shape, bytes."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return str(jax.random.key_impl(x)), bits(jax.random.key_data(x))
    return str(x.dtype), x.shape, np.asarray(x).tobytes()


def assert_equal(got, expected):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    assert [bits(x) for x in jax.tree.leaves(got)] == [bits(x) for x in jax.tree.leaves(expected)]


@each
def test_comes_back_equal_to_the_bit(write, read, name, tmp_path):
    file = write(tmp_path / name, network())
    back = read(file)
    assert_equal(back, network())
    assert list(back) == list(network()) and list(back["layers"]) == [1, 0]
    assert isinstance(back["z"]["kernel"], Masked) and isinstance(back["a"][0], QTensor)
    assert os.listdir(tmp_path) == [name], "nothing temporary is left"


@each
@pytest.mark.parametrize("tree", [jnp.arange(3), {}, None, [(), {"a": None}]], ids=["array", "dict", "None", "nested"])
def test_small_trees(write, read, name, tree, tmp_path):
    assert_equal(read(write(tmp_path / name, tree)), tree)


@each
def test_bytes_are_those_of_the_codes(write, read, name, tmp_path):
    codes = RNG.integers(-8, 8, (512, 256))
    stored = {"w": QTensor.from_codes(codes, RNG.random((8, 256), np.float32), bits=4)}
    written = write(tmp_path / name, stored)
    assert 0.9 * nbytes(stored) < written.bytes < nbytes(stored) + 6_000  # Orbax deflates arrays
    assert written.bytes == sum(p.stat().st_size for p in [written.path, *written.path.rglob("*")] if p.is_file())


@each
def test_nothing_is_replaced_unasked(write, read, name, tmp_path):
    write(tmp_path / name, {"a": jnp.ones(2)})
    with pytest.raises(FileExistsError, match="overwrite=True"):
        write(tmp_path / name, {"a": jnp.zeros(3)})
    assert_equal(read(tmp_path / name), {"a": jnp.ones(2)})
    write(tmp_path / name, {"b": jnp.zeros(3)}, overwrite=True)
    assert_equal(read(tmp_path / name), {"b": jnp.zeros(3)})
    with pytest.raises(FileNotFoundError, match="make it first"):
        write(tmp_path / "missing" / name, {})
    with pytest.raises(FileNotFoundError, match="no such"):
        read(tmp_path / f"{name}2")


def test_an_interruption_while_replacing_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    to_orbax(tmp_path / "net", {"a": jnp.ones(2)})
    rename = os.rename

    def interrupted(source, target):
        if os.path.basename(target) == "net" and ".old-" not in f"{source}{target}":
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        to_orbax(tmp_path / "net", {"a": jnp.zeros(3)}, overwrite=True)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["net"]
    assert_equal(from_orbax(tmp_path / "net"), {"a": jnp.ones(2)})


@each
@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"a": {"b": "text"}}, "a/b: str can't be stored"),
        ({"a": np.array(["x"])}, "a: an array of dtype"),
        ({"a": {"b": jnp.ones(1)}, "a/b": jnp.ones(1)}, "a/b: two arrays have this name"),
        ({1: jnp.ones(1), "1": jnp.ones(1)}, "1: two arrays have this name"),
    ],
)
def test_what_can_not_be_stored_is_named(write, read, name, tree, message, tmp_path):
    with pytest.raises((TypeError, ValueError), match=message):
        write(tmp_path / name, tree)
    assert not list(tmp_path.iterdir())


def test_big_endian_arrays_become_native(tmp_path):
    back = from_safetensors(to_safetensors(tmp_path / "x", {"a": np.arange(3, dtype=">f4")}))
    assert_equal(back, {"a": np.arange(3, dtype=np.float32)})


def test_a_safetensors_file_has_paths_as_names(tmp_path):
    to_safetensors(tmp_path / "x", network())
    arrays = safetensors.numpy.load_file(tmp_path / "x")
    assert {"z/kernel/mask", "z/kernel/kept", "z/kernel/frame/scale", "a/1/0", "layers/1/w/kept", "key"} <= set(arrays)
    assert arrays["a/0/codes"].dtype == np.uint8 and arrays["dtypes/int4"].shape == (5,)
    assert arrays["dtypes/bfloat16"].dtype == jnp.bfloat16
    kept = arrays["z/kernel/kept"]
    np.testing.assert_array_equal(kept, network()["z"]["kernel"].kept)


def test_a_foreign_safetensors_file_becomes_a_nested_dict(tmp_path):
    arrays = {"layers.0.weight": np.ones((2, 3), np.float32), "layers.0.bias": np.zeros(2), "head": np.arange(3)}
    safetensors.numpy.save_file(arrays, tmp_path / "x", metadata={"format": "pt"})
    back = from_safetensors(tmp_path / "x")
    assert jax.tree.map(jnp.shape, back) == {"layers": {"0": {"weight": (2, 3), "bias": (2,)}}, "head": (3,)}
    assert set(from_safetensors(tmp_path / "x", separator="/")) == set(arrays)
    safetensors.numpy.save_file({"a.b": np.ones(1), "a": np.ones(1)}, tmp_path / "y")
    with pytest.raises(ValueError, match="can't stand in one nested dict; pass another separator"):
        from_safetensors(tmp_path / "y")


def test_foreign_files_of_flax_and_orbax(tmp_path):
    tree = {"params": {"w": FLOATS, "b": jnp.ones(3, jnp.bfloat16)}}
    (tmp_path / "x").write_bytes(flax.serialization.to_bytes(tree))
    assert_equal(from_msgpack(tmp_path / "x"), tree)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "y", tree)
    assert_equal(from_orbax(tmp_path / "y"), tree)


def edited(change):
    """A file of ours whose header and arrays ``change`` had in hand."""
    header, arrays = named.encode({"w": FLOATS, "n": jnp.arange(3)})
    parsed = json.loads(header)
    change(parsed, arrays)
    return json.dumps(parsed, separators=(",", ":")), arrays


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header, arrays: arrays.pop("w"), r"net: w is missing; the header lists it as float32\[6, 5\]"),
        (lambda header, arrays: arrays.update(w=arrays["w"] + 1), "net: w is not what the header's checksum says"),
        (lambda header, arrays: arrays.update(w=arrays["w"].astype(np.float16)), r"net: w is float16\[6, 5\], the header says"),
        (lambda header, arrays: arrays.update(w=arrays["w"].T), r"net: w is float32\[5, 6\], the header says"),
        (lambda header, arrays: arrays.update(v=arrays["w"]), "net: holds arrays that its header does not list: v"),
        (lambda header, arrays: header.update(schema=9), "net: its header has schema 9; this version reads schema 1"),
        (lambda header, arrays: header["structure"]["items"].pop(), "net: its header is not what its own checksum says"),
    ],
)
def test_edited_content_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        named.decode(*edited(change), "net")


def signed(structure):
    """A header of that structure with the checksum that belongs to it."""
    return json.dumps({"schema": named.SCHEMA, "crc32": named._checksum(structure), "structure": structure})


@pytest.mark.parametrize("dtype", ["int4", "float8_e4m3fn", "complex64"])
@pytest.mark.parametrize("shape", [[64], [2**50, 2**40], [-1]])
def test_bytes_that_are_not_those_of_the_shape_are_refused(dtype, shape):
    structure = {"kind": "array", "dtype": dtype, "shape": shape, "crc32": zlib.crc32(b"\0")}
    with pytest.raises(ValueError, match=r"net: array is uint8\[1\], the header says .*; the file was edited"):
        named.decode(signed(structure), {"array": np.zeros(1, np.uint8)}, "net")


def lists(depth):
    """A header of lists in lists with the checksum that belongs to it."""
    structure = depth * '{"kind":"list","items":[' + '{"kind":"none"}' + depth * "]}"
    return f'{{"schema":{named.SCHEMA},"crc32":{zlib.crc32(structure.encode())},"structure":{structure}}}'


@pytest.mark.parametrize(
    "header",
    ["[" * 100_000, 3, signed(["dict"]), signed({"kind": "dict", "items": [["a", "b"]]}),
     signed({"kind": "Masked", "static": [], "children": {}})],
    ids=["endless", "number", "list", "text", "static"],
)  # fmt: skip
def test_malformed_headers_are_refused(header):
    with pytest.raises(ValueError, match="net: its header is"):
        named.decode(header, {}, "net")


def test_trees_of_any_depth_get_an_answer():
    deepest = functools.reduce(lambda tree, _: [tree], range(LEVELS), None)
    assert named.decode(*named.encode(deepest), "net") == deepest
    assert named.decode(lists(LEVELS), {}, "net") == deepest
    for depth in LEVELS + 1, 480, 5000:
        with pytest.raises(ValueError, match="net: its header is"):
            named.decode(lists(depth), {}, "net")
    circle: dict = {}
    circle["self"] = circle
    for tree in [deepest], circle:
        with pytest.raises(ValueError, match="more than 100 nodes inside each other"):
            named.encode(tree)


@each
@pytest.mark.parametrize("damage", ["truncated", "flipped", "other"])
def test_damaged_files_are_refused(write, read, name, damage, tmp_path):
    written = write(tmp_path / name, {"w": np.tile(FLOATS, (100, 1)), "q": jnp.arange(4)}).path
    largest = max((p for p in [written, *written.rglob("*")] if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(largest.read_bytes())
    if damage == "truncated":
        data = data[: len(data) // 2]
    elif damage == "flipped":
        data[len(data) // 2] ^= 1
    else:
        data = bytearray(b"no such format at all")
    largest.write_bytes(data)
    with pytest.raises(ValueError, match=str(tmp_path)):
        read(written)


@pytest.mark.slow
@pytest.mark.parametrize("container", [*CONTAINERS, "compressed-tensors"])
@pytest.mark.parametrize("model", ["mlp", "resnet", "gpt_scan", "vit", "lstm", "moe", "nnx_scan", "spectral", "tuple_list"])
def test_quantized_networks_of_the_zoo(model, container, tmp_path):
    """Each comes back equal to the bit; what compressed-tensors can't hold comes back as floats."""
    stored = quantized(model, 4).stored
    if container != "compressed-tensors":
        write, read, name = CONTAINERS[container]
        assert_equal(read(write(tmp_path / name, stored)), stored)
        return
    folder = to_compressed_tensors(tmp_path / "net", stored, others="dense")
    wanted = map_with_path(lambda path, x: x.densify() if path in folder.dense else x, stored)
    assert_equal(from_compressed_tensors(folder), wanted)
    assert all(refusal(x) for path, x in leaves_by_path(stored).items() if path in folder.dense)
