"""The format is what its page says: a reader written from it reads what the package writes, and a file of old."""

import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxopt_nn.coding import header, streams
from jaxopt_nn.coding.dictionary import DICTIONARY
from jaxopt_nn.coding.loader import load_file
from jaxopt_nn.coding.writer import save_file
from jaxopt_nn.tensors.base import is_compressed
from jaxopt_nn.tensors.packed import Packed
from tests.coding import format_reader
from tests.coding.test_artifact import bits, network

#: Of the preset dictionary of version 1, which never changes.
DICTIONARY_CRC = 0x8E6A24DB
GOLDEN = Path(__file__).parent.parent / "golden" / "one_file_v1.jn"


def opened(tree):
    """The tree as the page's reader gives it."""
    if is_compressed(tree):
        leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
        return [type(tree).__name__, {jax.tree_util.keystr(k): bits(x) for k, x in leaves}]
    if isinstance(tree, dict):
        return {key: opened(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(opened(value) for value in tree)
    if tree is None:
        return None
    return bits(jax.random.key_data(tree) if jnp.issubdtype(tree.dtype, jax.dtypes.prng_key) else tree)


def theirs(node):
    """The tree of the page's reader, in the same form."""
    if isinstance(node, tuple) and len(node) == 3 and isinstance(node[0], str):
        kind, _, children = node
        return bits(children) if kind == "key" else [kind, dict(_flat(children))]
    if isinstance(node, dict):
        return {key: theirs(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return type(node)(theirs(value) for value in node)
    return None if node is None else bits(node)


def _flat(children, at=""):
    for name, child in children.items():
        if isinstance(child, tuple):
            yield from _flat(child[2], f"{at}.{name}")
        else:
            yield f"{at}.{name}", bits(child)


@pytest.mark.parametrize("chunk", [8, 40, streams.CHUNK])
def test_the_pages_reader_reads_what_is_written(tmp_path, chunk):
    tree = network()
    save_file(tmp_path / "x", tree, recipe=["é"], extra={"n": 1.5}, files={"a/b": b"123", "c": b""}, chunk=chunk)
    got, head, files = format_reader.read(tmp_path / "x")
    assert theirs(got) == opened(tree)
    assert (head["recipe"], head["extra"], files) == (["é"], {"n": 1.5}, {"a/b": b"123", "c": b""})


def test_the_golden_file_of_version_1_stays_readable():
    tree, manifest = load_file(GOLDEN)
    expected = np.load(GOLDEN.with_suffix(".npz"))
    leaves = {jax.tree_util.keystr(k): x for k, x in jax.tree_util.tree_flatten_with_path(tree)[0]}
    assert len(leaves) == len(expected.files) > 20
    for name, x in leaves.items():
        x = jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        assert np.asarray(x).tobytes() == expected[name].tobytes(), name
    assert manifest["recipe"] == [{"name": "prune", "sparsity": 0.75}] and manifest["files"] == {"note": 5}
    assert theirs(format_reader.read(GOLDEN)[0]) == opened(tree)
    for path, dense in {"a": (12, 5), "b": (8, 6)}.items():
        assert tree[path].densify().shape == dense


def test_the_page_holds_the_dictionary_and_the_bytes_at_the_start(tmp_path):
    page = format_reader.PAGE.read_text()
    assert format_reader.dictionary() == DICTIONARY
    assert f"{len(DICTIONARY)} bytes, crc32 `{zlib.crc32(DICTIONARY):08x}`" in page
    assert zlib.crc32(DICTIONARY) == DICTIONARY_CRC
    assert header.MAGIC.hex(" ") in page and str(streams.CHUNK) in page and str(streams.POOLED) in page


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_chunks_cover_an_array_once_and_bytes_end_with_them(data):
    shape = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    bit = data.draw(st.integers(1, 8))
    axis = data.draw(st.integers(0, len(shape) - 1))
    lengths = tuple(data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=2)))
    packed = data.draw(st.sampled_from([None, Packed(bit, axis, lengths)]))
    if packed is not None:
        shape[axis] = -(-int(np.prod(lengths)) * bit // 8)
    seen, symbols = np.zeros(shape, int), 0
    for region, wide in streams.parts(shape, packed, data.draw(st.integers(8, 200))):
        seen[region] += 1
        symbols += int(np.prod(wide))
    assert (seen == 1).all() and symbols == np.prod(streams.unpacked_shape(shape, packed))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**62))
def test_varints(n):
    data = header.varint(n)
    assert format_reader.varint(data, 0) == (n, len(data)) and len(data) <= 9
