"""The artifact comes back equal to the bit, or says what is wrong; nothing half-written is left."""

import errno
import hashlib
import json
import subprocess
import sys
import textwrap
import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxopt_nn.coding import artifact as artifacts
from jaxopt_nn.coding import structure
from jaxopt_nn.coding.artifact import load_artifact, read_files, save_artifact
from jaxopt_nn.core.combine import chain
from jaxopt_nn.methods.prune import prune
from jaxopt_nn.methods.quantize import quantize
from jaxopt_nn.tensors.base import nbytes
from jaxopt_nn.tensors.masked import Masked
from jaxopt_nn.tensors.qtensor import QTensor

RNG = np.random.default_rng(0)
DTYPES = (
    "float32",
    "bfloat16",
    "float16",
    "float8_e4m3fn",
    "int4",
    "uint4",
    "int2",
    "int8",
    "uint8",
    "bool",
    "complex64",
)


def floats(*shape):
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


def packed(method, *shape):
    tree = {"w": floats(*shape)}
    return method.pack(tree, method.init(tree))["w"]


def network():
    """Every kind of node, keys out of order, stored and nested compressed tensors."""
    return {
        "z": {"kernel": packed(chain(prune(sparsity=0.75), quantize(4)), 24, 10), "bias": floats(10)},
        "a": [packed(quantize(3, symmetric=False), 12, 5), (floats(2, 3), None, ())],
        "layers": {1: {"w": packed(prune(sparsity=0.5), 6, 6)}, 0: {}},
        "key": jax.random.key(7),
        "count": jnp.zeros((), jnp.int32),
        "empty": jnp.zeros((0, 3)),
        "host": np.arange(3, dtype=np.float64),
    }


def bits(x):
    """Everything that must survive: type, dtype, shape, bytes."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return str(jax.random.key_impl(x)), bits(jax.random.key_data(x))
    return str(x.dtype), x.shape, np.asarray(x).tobytes()


def assert_equal(got, expected):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    assert [bits(x) for x in jax.tree.leaves(got)] == [bits(x) for x in jax.tree.leaves(expected)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("artifact") / "net"
    tree = network()
    return tree, save_artifact(directory, tree, recipe=[{"name": "prune"}], extra={"note": "é"})


@pytest.fixture
def copy(saved, tmp_path):
    """A copy of the artifact, to be damaged."""
    import shutil

    return shutil.copytree(saved[1], tmp_path / "copy")


def test_comes_back_equal_to_the_bit(saved):
    tree, artifact = saved
    loaded, manifest = load_artifact(artifact)
    assert_equal(loaded, tree)
    assert list(loaded) == list(tree) and list(loaded["layers"]) == [1, 0]
    assert type(loaded["a"]) is list and type(loaded["a"][1]) is tuple and loaded["a"][1][1:] == (None, ())
    assert isinstance(loaded["z"]["kernel"], Masked) and isinstance(loaded["a"][0], QTensor)
    assert manifest["recipe"] == [{"name": "prune"}] and manifest["extra"] == {"note": "é"}
    assert manifest["schema"] == 2 and manifest["versions"]["jax"] == jax.__version__


def test_bytes_are_those_of_the_files_and_little_more_than_the_arrays(saved):
    tree, artifact = saved
    files = [p for p in artifact.path.rglob("*") if p.is_file()]
    assert artifact.bytes == sum(p.stat().st_size for p in files)
    assert artifact.bytes < nbytes(tree) + 8_000
    assert not [p for p in files if b"pickle" in p.read_bytes()]


def test_a_fresh_process_reads_it(saved):
    tree, artifact = saved
    code = f"""
        import hashlib, jax, numpy as np, jaxopt_nn
        tree, _ = jaxopt_nn.load_artifact({str(artifact.path)!r})
        assert isinstance(tree["z"]["kernel"], jaxopt_nn.Masked)
        leaves = jax.tree.leaves((tree["z"], tree["a"], tree["layers"]))
        print(hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in leaves)).hexdigest())
    """
    out = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    leaves = jax.tree.leaves((tree["z"], tree["a"], tree["layers"]))
    assert out.stdout.strip() == hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in leaves)).hexdigest()


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(dtype):
    values = jnp.asarray(RNG.integers(0, 2, (3, 5)), dtype)
    writer = structure.Buffers()
    described = json.loads(json.dumps(structure.describe({"x": values}, "", writer)))
    assert_equal(structure.rebuild(described, "", structure.from_buffers(writer.buffers())), {"x": values})


trees = st.recursive(
    st.none() | st.integers(0, 4).map(lambda n: np.arange(n, dtype=np.int16)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.integers(-2, 2) | st.text("ab/", max_size=2), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(trees)
def test_any_nesting(tree):
    writer = structure.Buffers()
    described = json.loads(json.dumps(structure.describe(tree, "", writer)))
    assert same(structure.rebuild(described, "", structure.from_buffers(writer.buffers())), tree)


def same(got, expected):
    """Equal in kinds, in the order of keys, and in every entry."""
    if isinstance(expected, dict):
        return list(got) == list(expected) and all(same(got[k], expected[k]) for k in expected)
    if isinstance(expected, list | tuple):
        return type(got) is type(expected) and len(got) == len(expected) and all(map(same, got, expected))
    return got is None if expected is None else bits(got) == bits(expected)


def test_many_buffers(monkeypatch, tmp_path):
    monkeypatch.setattr(structure, "BUFFER_BYTES", 100)
    tree = [floats(10), floats(20), floats(100), floats(3)]
    loaded, manifest = load_artifact(save_artifact(tmp_path / "x", tree))
    assert_equal(loaded, tree)
    assert [node["at"] for node in manifest["structure"]["items"]] == [[0, 0], [1, 0], [2, 0], [3, 0]]


def test_no_array_at_all(tmp_path):
    assert load_artifact(save_artifact(tmp_path / "x", {"a": ()}))[0] == {"a": ()}


def test_further_files_are_listed_and_checked(tmp_path):
    files = {"programs/cpu.run": b"run", "note": b""}
    artifact = save_artifact(tmp_path / "x", {"a": floats(3)}, files=files)
    tree, manifest = load_artifact(artifact)
    assert list(tree) == ["a"] and read_files(artifact, manifest) == files
    assert manifest["files"]["programs/cpu.run"] == [3, f"{zlib.crc32(b'run'):08x}"]
    (artifact.path / "programs/cpu.run").write_bytes(b"ruN")
    with pytest.raises(ValueError, match=r"programs/cpu.run: its content is not"):
        load_artifact(artifact)


@pytest.mark.parametrize("name", ["../out", "/out", "arrays/0", "manifest.json", "a//b", "", "a/.", "a\\b"])
def test_names_of_further_files_stay_inside(tmp_path, name):
    with pytest.raises(ValueError, match="no name inside the artifact"):
        save_artifact(tmp_path / "x", {}, files={name: b""})
    assert not list(tmp_path.iterdir())


# -- what can't be saved -----------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    a: object


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"p": {"lr": 0.1}}, "p/lr: float can't be stored"),
        ({"p": [Pair(1)]}, "p/0: Pair can't be stored"),
        ({("a", 1): floats(2)}, "the key"),
        ({"p": np.array([None])}, "p: an array of dtype object"),
        ({"p": np.array(["x"])}, "p: an array of dtype <U1"),
    ],
)
def test_unknown_nodes_are_named(tmp_path, tree, said):
    with pytest.raises(TypeError, match=said):
        save_artifact(tmp_path / "x", tree)
    assert not list(tmp_path.iterdir())


def test_recipe_must_be_json(tmp_path):
    with pytest.raises(TypeError, match="kept as JSON"):
        save_artifact(tmp_path / "x", {}, recipe=quantize(4))
    assert not list(tmp_path.iterdir())


def test_an_existing_target_is_kept(tmp_path):
    save_artifact(tmp_path / "x", [floats(2)])
    with pytest.raises(FileExistsError, match="overwrite=True"):
        save_artifact(tmp_path / "x", [floats(3)])
    assert load_artifact(tmp_path / "x")[0][0].shape == (2,)
    save_artifact(tmp_path / "x", [floats(3)], overwrite=True)
    assert load_artifact(tmp_path / "x")[0][0].shape == (3,)
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_what_is_no_artifact_is_never_overwritten(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"is no artifact .* move it away, or pass another folder"):
        save_artifact(tmp_path / "x", [floats(2)], overwrite=True)
    assert (tmp_path / "x" / "thesis.txt").read_text() == "mine"


def test_a_missing_parent_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no-such"):
        save_artifact(tmp_path / "no-such" / "x", [floats(2)])


@pytest.mark.parametrize("writer", ["_write_arrays", "_write_manifest"])
def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch, writer):
    save_artifact(tmp_path / "x", [jnp.arange(2)])

    def full(path, *args):
        path.parent.joinpath("half").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(artifacts, writer, full)
    for target in ("new", "x"):
        with pytest.raises(OSError, match="No space left"):
            save_artifact(tmp_path / target, [jnp.arange(3)], overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    assert load_artifact(tmp_path / "x")[0][0].tolist() == [0, 1]


def test_an_interruption_while_replacing_keeps_the_old_one(tmp_path, monkeypatch):
    save_artifact(tmp_path / "x", [jnp.arange(2)])
    rename = artifacts.os.rename

    def interrupted(source, target):
        if ".new-" in str(source):
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(artifacts.os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_artifact(tmp_path / "x", [jnp.arange(3)], overwrite=True)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    assert load_artifact(tmp_path / "x")[0][0].tolist() == [0, 1]


def test_the_operating_system_refuses_to_write(tmp_path):
    """No mock: a limit on file sizes makes Orbax's own writer fail, as a full disk does."""
    code = f"""
        import resource, signal, pathlib
        import jax.numpy as jnp, numpy as np
        from jaxopt_nn.coding.artifact import save_artifact
        noise = np.random.default_rng(0).integers(0, 256, 100_000).astype(np.uint8)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        target = pathlib.Path({str(tmp_path)!r})
        try:
            save_artifact(target / "x", [jnp.asarray(noise)])
        except OSError as error:
            print("could not be written" in str(error), list(target.iterdir()))
    """
    out = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "True []"


# -- what can't be read ------------------------------------------------------------------------------------------------


def files_of(directory):
    return sorted(p for p in directory.rglob("*") if p.is_file())


def test_every_file_is_needed(saved, copy):
    for file in files_of(copy):
        content = file.read_bytes()
        file.unlink()
        with pytest.raises(ValueError, match=f"{file.name}: missing"):
            load_artifact(copy)
        file.write_bytes(content)
    assert_equal(load_artifact(copy)[0], saved[0])


def test_every_truncation_and_every_changed_byte_is_seen(copy):
    for file in files_of(copy):
        content = file.read_bytes()
        for at in (0, len(content) // 2, len(content) - 2):
            changed = bytearray(content)
            changed[at] ^= 1
            file.write_bytes(bytes(changed))
            with pytest.raises(ValueError, match=file.name):
                load_artifact(copy)
        file.write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match=file.name):
            load_artifact(copy)
        file.write_bytes(content)


def edited(directory, change):
    """Changes the manifest as one would who knows of its checksum."""
    file = directory / "manifest.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    manifest["sha256"] = artifacts._digest(manifest)
    file.write_text(json.dumps(manifest))


def node_of(manifest, *keys):
    node = manifest["structure"]
    for key in keys:
        node = dict(node["items"])[key] if node["kind"] == "dict" else node["items"][key]
    return node


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m.update(schema=3), "schema 3; this version reads 2"),
        (
            lambda m: node_of(m, "a", 0).update(kind="Oracle"),
            "a/0: kind 'Oracle' is unknown; this version knows .*QTensor",
        ),
        (lambda m: node_of(m, "z", "bias").update(shape=[11]), "z/bias: the checksum of its 44 bytes"),
        (lambda m: node_of(m, "z", "bias").update(shape=[10_000]), "z/bias: float32.10000. needs 40000 bytes"),
        (lambda m: node_of(m, "z", "bias").update(at=[3, 0]), "z/bias: .* the arrays hold 0"),
        (lambda m: node_of(m, "z", "bias").update(crc32=1), "z/bias: the checksum"),
        (
            lambda m: node_of(m, "z", "kernel").update(shape=[24, 11]),
            "z/kernel: the Masked has shape .24, 10., the manifest",
        ),
        (lambda m: node_of(m, "a", 0)["static"].update(color=3), "malformed"),
        (lambda m: node_of(m, "a", 0).pop("kind"), "malformed"),
    ],
)
def test_an_edited_manifest_is_refused(copy, change, said):
    edited(copy, change)
    with pytest.raises(ValueError, match=said):
        load_artifact(copy)


def test_a_manifest_edited_without_its_checksum(copy):
    file = copy / "manifest.json"
    file.write_text(file.read_text().replace("prune", "prone"))
    with pytest.raises(ValueError, match="the file was edited"):
        load_artifact(copy)
    file.write_text("[]")
    with pytest.raises(ValueError, match="schema 'list'"):
        load_artifact(copy)
    file.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="no valid JSON"):
        load_artifact(copy)


def test_arrays_that_orbax_can_not_read(copy):
    for file in files_of(copy / "arrays"):
        file.write_bytes(b"")
    edited(copy, lambda m: m.update(files={name: [0, "00000000"] for name in m["files"]}))
    with pytest.raises(ValueError, match="Orbax can't read the arrays"):
        load_artifact(copy)


def test_no_directory(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such directory"):
        load_artifact(tmp_path / "x")
    (tmp_path / "x").mkdir()
    with pytest.raises(ValueError, match="pass the folder of an artifact"):
        load_artifact(tmp_path / "x")
