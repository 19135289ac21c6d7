"""The layout of ``compressed-tensors``: its own files are read, ours are read by it, and what does not fit is named.

The files under ``tests/golden/compressed_tensors`` were written by the package (see ``write_compressed_tensors.py`` there).
"""

import errno
import functools
import importlib.util
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from jaxopt_nn.coding.compressed_tensors import INDEX, from_compressed_tensors, scheme_of, to_compressed_tensors
from jaxopt_nn.coding.linear import laid_out, of_words, refusal, to_words
from jaxopt_nn.coding.safetensors import from_safetensors
from jaxopt_nn.core.paths import leaves_by_path
from jaxopt_nn.formulations.prepare import prepare
from jaxopt_nn.tensors.masked import Masked
from jaxopt_nn.tensors.qtensor import QTensor
from tests.coding.test_containers import assert_equal

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "compressed_tensors"
DECOMPRESS = GOLDEN.parent / "decompress.py"
RNG = np.random.default_rng(0)


def coded(shape, groups, bits, zero=False, **options):
    """Random codes; all of their range."""
    signed = options.pop("signed", not zero)
    codes = RNG.integers(0, 1 << bits, shape) - (1 << bits - 1 if signed else 0)
    zero = RNG.integers(0, 1 << bits, groups) if zero else None
    return QTensor.from_codes(codes, RNG.random(groups, np.float32) + 0.5, zero, bits=bits, signed=signed, **options)


def values(leaf):
    return np.asarray(leaf.densify() if isinstance(leaf, QTensor) else leaf)


@functools.cache
def network():
    """One leaf for each way to lie in the layout; path -> name of the weight in the file."""
    leaves = {
        "params/channel/kernel": coded((64, 12), (1, 12), 8),
        "params/group/kernel": coded((64, 12), (4, 12), 4),
        "params/zeros/kernel": coded((64, 12), (2, 12), 4, zero=True),
        "params/zeros8/kernel": coded((64, 12), (2, 12), 8, zero=True),
        "params/embed/table": coded((12, 64), (12, 1), 4),
        "params/stack/kernel": coded((3, 64, 12), (3, 2, 12), 4, stack=(0,)),
        "params/odd/kernel": coded((33, 5), (1, 1), 2, signed=False),
        "params/one/kernel": coded((64, 12), (1, 12), 1, zero=True),
        "params/narrow/kernel": coded((64, 12), (1, 12), 4, dtype=jnp.bfloat16),
    }
    tree: dict = {"params": {path.split("/")[1]: {path.split("/")[2]: leaf} for path, leaf in leaves.items()}}
    tree["params"]["group"]["bias"] = jnp.ones(12)
    tree["params"]["plain"] = {"kernel": jnp.arange(12.0).reshape(3, 4), "scale": jnp.ones(4, jnp.bfloat16)}
    return tree, {path: path.split("/")[1] + ".weight" for path in leaves} | {"params/embed/table": "embed.table.weight"}


@pytest.mark.parametrize("name", ["mixed", "linear"])
def test_files_of_the_package_have_the_values_that_it_decompresses(name):
    tree = leaves_by_path(from_compressed_tensors(GOLDEN / name))
    wanted = safetensors.numpy.load_file(GOLDEN / name / "decompressed.safetensors")
    assert set(tree) == {path.replace(".", "/") for path in wanted}
    quantized = {path: leaf for path, leaf in tree.items() if isinstance(leaf, QTensor)}
    assert set(quantized) == {path for path in tree if path.endswith("weight") and path != "head/weight"}
    for path, value in wanted.items():
        leaf = tree[path.replace(".", "/")]
        got = leaf.densify() if isinstance(leaf, QTensor) else leaf
        assert got.dtype == value.dtype
        np.testing.assert_array_equal(np.asarray(got), value, err_msg=path)


@pytest.mark.parametrize("name", ["mixed", "linear"])
def test_written_again_they_are_the_same_arrays(name, tmp_path):
    """The package's own packing is the oracle for ours."""
    tree = from_compressed_tensors(GOLDEN / name)
    names = lambda path, layer: path.replace("/", ".")
    to_compressed_tensors(tmp_path / "net", tree, names=names)
    ours = safetensors.numpy.load_file(tmp_path / "net" / "model.safetensors")
    theirs = safetensors.numpy.load_file(GOLDEN / name / "model.safetensors")
    packed_eight = {"layers.out.weight_packed", "layers.out.weight_shape", "layers.out.weight_zero_point"}
    assert set(theirs) - set(ours) == ({"layers.out.weight_packed", "layers.out.weight_shape"} if name == "mixed" else set())
    for array in set(theirs) - packed_eight:
        assert ours[array].dtype == theirs[array].dtype
        np.testing.assert_array_equal(ours[array], theirs[array].reshape(ours[array].shape), err_msg=array)


def test_comes_back_equal_to_the_bit(tmp_path):
    tree, _ = network()
    folder = to_compressed_tensors(tmp_path / "net", tree, config={"model_type": "mine"})
    assert_equal(from_compressed_tensors(folder), tree)
    assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors"] and not folder.dense
    assert json.loads((folder.path / "config.json").read_text())["model_type"] == "mine"


def test_without_our_header_the_values_are_those_of_the_layout(tmp_path):
    """As another reader sees the file: modules by name, weights ``[out, in]``, kernels of floats turned too."""
    tree, names = network()
    folder = to_compressed_tensors(tmp_path / "net", tree)
    file = folder.path / "model.safetensors"
    safetensors.numpy.save_file(safetensors.numpy.load_file(file), file)
    read = leaves_by_path(from_compressed_tensors(folder))
    for path, leaf in leaves_by_path(tree).items():
        place = names.get(path, path.removeprefix("params/").replace("kernel", "weight")).replace(".", "/")
        got = [values(read[f"stack/{i}/weight"]) for i in range(3)] if "stack" in path else values(read[place])
        wanted = values(leaf) if path == "params/embed/table" else np.swapaxes(values(leaf), -1, -2) if leaf.ndim > 1 else leaf
        np.testing.assert_array_equal(np.asarray(got, wanted.dtype), wanted, err_msg=path)


def test_config_says_what_the_package_needs(tmp_path):
    leaves = {"a": coded((64, 8), (1, 8), 8), "b": coded((64, 8), (2, 8), 4), "c": jnp.ones((2, 2))}
    tree = {name: {"kernel": leaf} for name, leaf in leaves.items()}
    folder = to_compressed_tensors(tmp_path / "net", tree, activations=8)
    section = json.loads((folder.path / "config.json").read_text())["quantization_config"]
    eight, four = section["config_groups"].values()
    assert section["format"] == "mixed-precision" and section["ignore"] == ["c"]
    assert eight["format"] == "int-quantized" and eight["targets"] == ["a"]
    assert eight["input_activations"]["strategy"] == "token" and eight["input_activations"]["dynamic"]
    assert four["format"] == "pack-quantized" and four["input_activations"] is None
    assert four["weights"] == {
        "num_bits": 4, "type": "int", "dynamic": False, "symmetric": True, "strategy": "group", "group_size": 32,
    }  # fmt: skip


UNFIT = {
    "mask": (lambda: Masked.pack(RNG.random((8, 4)) < 0.5, coded((8, 4), (1, 4), 4)), r"is a Masked\(QTensor int4\)"),
    "3 bits": (lambda: coded((8, 4), (1, 4), 3), "has codes of 3 bits, which readers of the format pack in different ways"),
    "convolution": (lambda: coded((3, 3, 8, 4), (1, 1, 1, 4), 4), r"has shape \[3, 3, 8, 4\], and the format has matrices"),
    "heads": (lambda: coded((8, 2, 4), (1, 2, 4), 4), r"has shape \[8, 2, 4\]"),
    "packed stack": (lambda: coded((8, 3, 5), (8, 1, 5), 4, axis=0), r"has shape \[8, 3, 5\]"),
    "blocks": (lambda: coded((8, 4), (2, 2), 4), r"has scales \[2, 2\] for \[8, 4\]: groups along two axes"),
    "float zero": (lambda: QTensor.from_codes(jnp.ones((8, 4), int), 1.0 * jnp.ones((1, 4)), 0.5 * jnp.ones((1, 4)), bits=4),
                   "has zero points between the codes"),
    "coarse zero": (lambda: QTensor.from_codes(jnp.ones((8, 4), int), jnp.ones((2, 4)), jnp.ones((1, 4), int), bits=4),
                    r"has zero points \[1, 4\] beside scales \[2, 4\]"),
    "far zero": (lambda: QTensor.from_codes(jnp.ones((8, 4), int), jnp.ones((1, 4)), 9 * jnp.ones((1, 4), int), bits=4),
                 "has zero points 9 to 9 outside the codes, -8 to 7"),
    "prepared": (lambda: prepare(coded((8, 4), (1, 4), 4), "tpu"), "is prepared for tpu"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "reason"), UNFIT.values(), ids=UNFIT)
def test_what_does_not_fit_says_why(make, reason):
    assert re.search(reason, refusal(make()) or "it fits")


def test_all_that_does_not_fit_is_listed_and_written_dense_on_request(tmp_path):
    mask = Masked.pack(RNG.random((8, 4)) < 0.5, RNG.random((8, 4), np.float32))
    three = coded((8, 4), (1, 4), 3)
    tree = {"up": {"kernel": mask}, "down": {"kernel": three}, "fits": {"kernel": coded((64, 12), (1, 12), 4)}}
    with pytest.raises(ValueError, match=r"(?s)up/kernel: is a Masked.*Pass others='dense'") as raised:
        to_compressed_tensors(tmp_path / "net", tree)
    assert "down/kernel: has codes of 3 bits" in str(raised.value) and "fits" not in str(raised.value)
    assert not list(tmp_path.iterdir())
    folder = to_compressed_tensors(tmp_path / "net", tree, others="dense")
    assert list(folder.dense) == ["down/kernel", "up/kernel"]
    dense = {"up": {"kernel": mask.densify()}, "down": {"kernel": three.densify()}, "fits": tree["fits"]}
    assert_equal(from_compressed_tensors(folder), dense)
    section = json.loads((folder.path / "config.json").read_text())["quantization_config"]
    assert section["ignore"] == ["down", "up"] and section["config_groups"]["group_0"]["targets"] == ["fits"]


def test_a_mask_over_codes_becomes_codes_on_request(tmp_path):
    """Zeros have a code: the values stay, in 4 bits each."""
    sparse = Masked.pack(RNG.random((64, 12)) < 0.5, coded((64, 12), (2, 12), 4, zero=True))
    folder = to_compressed_tensors(tmp_path / "net", {"up": {"kernel": sparse}}, others="dense")
    back = from_compressed_tensors(folder)["up"]["kernel"]
    assert isinstance(back, QTensor) and back.bits == 4 and list(folder.dense) == ["up/kernel"]
    np.testing.assert_array_equal(back.densify(), sparse.densify())


def test_arguments_and_names_are_checked(tmp_path):
    tree = {"up": {"kernel": coded((8, 4), (1, 4), 4)}}
    with pytest.raises(ValueError, match="others may be 'error' or 'dense', activations None or 8"):
        to_compressed_tensors(tmp_path / "net", tree, others="skip")
    with pytest.raises(ValueError, match=r"up/kernel: names gave 'up'; .* ends in '\.weight'"):
        to_compressed_tensors(tmp_path / "net", tree, names=lambda path, layer: "up")
    with pytest.raises(ValueError, match=r"a\.weight_packed: two arrays have this name; names must give each its own"):
        to_compressed_tensors(tmp_path / "net", [tree, tree], names=lambda path, layer: "a.weight")
    to_compressed_tensors(tmp_path / "net", tree)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        to_compressed_tensors(tmp_path / "net", tree)
    to_compressed_tensors(tmp_path / "net", tree, names=lambda path, layer: "model.up.weight", overwrite=True)
    assert "model.up.weight_packed" in safetensors.numpy.load_file(tmp_path / "net" / "model.safetensors")
    assert_equal(from_compressed_tensors(tmp_path / "net"), tree)


def changed(folder, **scheme):
    """The configuration of a golden folder with other entries for the weights of its first group."""
    parsed = json.loads((folder / "config.json").read_text())
    parsed["quantization_config"]["config_groups"]["group_0"]["weights"].update(scheme)
    (folder / "config.json").write_text(json.dumps(parsed))


def test_foreign_files_that_can_not_be_read_are_named(tmp_path):
    folder = shutil.copytree(GOLDEN / "linear", tmp_path / "net")
    for scheme, message in (({"num_bits": 3}, "layers.up: 3 bits of int by channel"), ({"type": "float"}, "4 bits of float")):
        changed(folder, num_bits=4, type="int")
        changed(folder, **scheme)
        with pytest.raises(ValueError, match=message):
            from_compressed_tensors(folder)
    changed(folder, num_bits=4, type="int")
    arrays = safetensors.numpy.load_file(folder / "model.safetensors")
    safetensors.numpy.save_file(arrays | {"layers.up.weight_g_idx": np.arange(3)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"layers\.up\.weight_g_idx: this version does not know that part"):
        from_compressed_tensors(folder)
    safetensors.numpy.save_file(arrays | {"layers.up.weight_shape": np.array([9, 90])}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"layers\.up: 4 bits of int by channel \(weight_packed int32\[9, 9\]"):
        from_compressed_tensors(folder)
    (folder / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"has no quantization_config of compressed-tensors; read model\.safetensors with"):
        from_compressed_tensors(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        from_compressed_tensors(folder)


def write_shards(folder):
    """A golden model in two files with an index."""
    whole = safetensors.numpy.load_file(GOLDEN / "mixed" / "model.safetensors")
    shutil.copy(GOLDEN / "mixed" / "config.json", folder)
    place = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(sorted(whole))}
    for file in set(place.values()):
        safetensors.numpy.save_file({n: x for n, x in whole.items() if place[n] == file}, folder / file)
    (folder / INDEX).write_text(json.dumps({"weight_map": place}))


def test_shards_are_read_as_one(tmp_path):
    write_shards(tmp_path)
    assert_equal(from_compressed_tensors(tmp_path), from_compressed_tensors(GOLDEN / "mixed"))


def test_a_model_in_shards_is_replaced_whole(tmp_path):
    write_shards(tmp_path)
    (tmp_path / "config.json").unlink()
    tree = {"up": {"kernel": coded((8, 4), (1, 4), 4)}}
    with pytest.raises(FileExistsError, match=f"{INDEX} exists; pass overwrite=True"):
        to_compressed_tensors(tmp_path, tree)
    (tmp_path / "tokenizer.json").write_text("{}")
    to_compressed_tensors(tmp_path, tree, overwrite=True)
    assert_equal(from_compressed_tensors(tmp_path), tree)
    assert sorted(os.listdir(tmp_path)) == ["config.json", "model.safetensors", "tokenizer.json"]


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "../outside.safetensors"}, r"index\.json: .*'\.\./outside\.safetensors'"),
        ({"a": "/outside.safetensors"}, "'/outside.safetensors'"),
        ({"a": "config.json"}, "'config.json'"),
        ({"a": 3}, "no index of shards"),
        ({}, "lists no shards; allowed are"),
        ([], "no index of shards"),
    ],
)
def test_an_index_names_files_of_its_folder(tmp_path, weight_map, message):
    safetensors.numpy.save_file({"a": np.ones(1)}, tmp_path / "outside.safetensors")
    folder = tmp_path / "net"
    folder.mkdir()
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ValueError, match=message):
        from_compressed_tensors(folder)
    with pytest.raises(ValueError, match=message):
        to_compressed_tensors(folder, {"a": jnp.ones(1)}, overwrite=True)
    assert os.listdir(folder) == [INDEX]


@pytest.mark.parametrize("renames", [0, 1])
def test_weights_never_lie_beside_the_config_of_others(tmp_path, monkeypatch, renames):
    """A process that dies before its first or second rename."""
    trees = [{"up": {"kernel": coded((8, 4), (1, 4), bits)}} for bits in (4, 8)]
    folder = to_compressed_tensors(tmp_path / "net", trees[0]).path
    replace, calls = os.replace, []

    def interrupted(source, target):
        calls.append(target)
        if len(calls) > renames:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        to_compressed_tensors(folder, trees[1], overwrite=True)
    assert not (folder / "config.json").exists()
    assert_equal(from_compressed_tensors(folder), trees[renames])


def test_a_failed_write_changes_nothing(tmp_path, monkeypatch):
    tree = {"up": {"kernel": coded((8, 4), (1, 4), 4)}}
    folder = to_compressed_tensors(tmp_path / "net", tree).path
    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    def no_space(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_text", no_space)
    with pytest.raises(OSError, match="No space left"):
        to_compressed_tensors(folder, {"up": {"kernel": jnp.ones((2, 2))}}, overwrite=True)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_the_file_of_weights_alone_gives_the_tree(tmp_path):
    tree, _ = network()
    folder = to_compressed_tensors(tmp_path / "net", tree)
    assert_equal(from_safetensors(folder.path / "model.safetensors"), tree)


def test_targets_are_matched_by_name_then_expression_then_class():
    group = lambda bits, *targets: {"targets": list(targets), "weights": {"num_bits": bits}}
    section = {"config_groups": {"0": group(8, "Linear"), "1": group(2, "re:.*q_proj"), "2": group(4, "a.q_proj")}}
    bits = lambda module: scheme_of(module, section, "net")["num_bits"]
    assert (bits("a.q_proj"), bits("b.q_proj"), bits("b.mlp")) == (4, 2, 8)
    with pytest.raises(ValueError, match="net: up: no group of quantization_config"):
        scheme_of("up", {"config_groups": {"0": group(4, "down")}}, "net")


@pytest.mark.parametrize(
    "groups",
    [None, [], {"0": 3}, {"0": {"targets": None, "weights": {}}}, {"0": {"targets": [3], "weights": {}}},
     {"0": {"targets": ["re:("], "weights": {}}}, {"0": {"targets": ["up"], "weights": "int4"}}],
)  # fmt: skip
def test_malformed_groups_are_named(groups):
    with pytest.raises(ValueError, match=r"net: up: config_groups of quantization_config in config\.json are malformed"):
        scheme_of("up", {"config_groups": groups}, "net")


def test_a_config_of_endless_lists_is_refused(tmp_path):
    folder = shutil.copytree(GOLDEN / "linear", tmp_path / "net")
    (folder / "config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"config\.json: no JSON of a model"):
        from_compressed_tensors(folder)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_words_hold_the_codes_from_the_least_significant_bit_on(bits):
    codes = RNG.integers(-(1 << bits - 1), 1 << bits - 1, (3, 45)).astype(np.int8)
    words = to_words(codes, bits)
    per_word, unsigned = 32 // bits, codes.astype(np.int64) + (1 << bits - 1)
    for row, word in zip(unsigned, words.astype(np.uint32)):
        assert [int(word[i // per_word]) >> bits * (i % per_word) & (1 << bits) - 1 for i in range(45)] == row.tolist()
    np.testing.assert_array_equal(of_words(words, bits, 45), codes)


def test_a_layer_stands_for_its_weight():
    weight = coded((64, 12), (4, 12), 4)
    layer = laid_out(weight)
    assert layer.shape == (64, 12) and layer.dtype == jnp.float32
    np.testing.assert_array_equal(layer.densify(), weight.densify())
    stack = coded((3, 64, 12), (3, 2, 12), 4, stack=(0,))
    assert laid_out(stack).shape == (3, 64, 12)
    np.testing.assert_array_equal(laid_out(stack).densify(), stack.densify())


def package_python():
    """A Python that has the package: this one, or that of the environment variable; None: neither."""
    here = importlib.util.find_spec("torch") and importlib.util.find_spec("compressed_tensors")
    return sys.executable if here else os.environ.get("COMPRESSED_TENSORS_PYTHON")


@pytest.mark.slow
def test_the_package_decompresses_our_files_to_the_same_values(tmp_path):
    """In a process of its own, as it brings PyTorch."""
    if (python := package_python()) is None:
        pytest.skip(
            "THE DECOMPRESSOR OF compressed-tensors WAS NOT RUN on our files: it is not installed here. Set "
            "COMPRESSED_TENSORS_PYTHON to the interpreter of an environment with torch and compressed-tensors"
        )
    tree, names = network()
    folder = to_compressed_tensors(tmp_path / "net", tree)
    layers = {name.removesuffix(".weight"): values(leaves_by_path(tree)[path]).T for path, name in names.items()}
    layers |= {f"stack.{i}": layer.T for i, layer in enumerate(values(tree["params"]["stack"]["kernel"]))}
    layers |= {"plain": values(tree["params"]["plain"]["kernel"]).T, "embed.table": values(tree["params"]["embed"]["table"])}
    del layers["stack"]
    kinds = {name: ("Embedding" if name == "embed.table" else "Linear", x.shape) for name, x in layers.items()}
    done = subprocess.run([python, DECOMPRESS, folder, json.dumps(kinds)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    got = safetensors.numpy.load_file(folder.path / "decompressed.safetensors")
    for name, wanted in layers.items():
        np.testing.assert_array_equal(got[f"{name}.weight"].astype(wanted.dtype), wanted, err_msg=name)
    np.testing.assert_array_equal(got["group.bias"], tree["params"]["group"]["bias"])
