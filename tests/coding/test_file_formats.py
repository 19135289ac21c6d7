"""Every format of compressed tensors in one file: back to the bit, its codes coded, and damage to its fields refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_nn as jn
from jaxopt_nn.coding.structure import Buffers, describe, from_buffers, rebuild

RNG = np.random.default_rng(0)
KERNEL = np.asarray(RNG.standard_normal((64, 48)) * RNG.exponential(size=(64, 1)) ** 2, np.float32)
V = {"kernel": jnp.asarray(KERNEL), "bias": jnp.asarray(RNG.standard_normal(48), jnp.float32)}
FORMATS = {
    "quantize": jn.quantize(4, group=16), "rate_quantize": jn.rate_quantize(1e-3, vectors=True), "cluster": jn.cluster(11),
    "cluster, no zero": jn.cluster(bits=3, zero=False), "prune, cluster": jn.chain(jn.prune(sparsity=0.8), jn.cluster(12)),
    "vectors": jn.cluster_vectors(16, dim=4), "added vectors": jn.cluster_vectors(16, dim=4, stages=2),
    "low rank": jn.low_rank(4), "low rank of codes": jn.low_rank(share=0.7, factors=jn.quantize(8)),
    "low rank, and what it leaves": jn.residual(jn.low_rank(4), jn.prune(sparsity=0.9)),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_comes_back_to_the_bit(tmp_path, name):
    stored = FORMATS[name].pack(V, FORMATS[name].init(V))
    file = jn.save_file(tmp_path / "tree.jn", stored)
    tree, _ = jn.load_file(file)
    assert jax.tree.structure(tree) == jax.tree.structure(stored)
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(stored), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("name", "least"), [("quantize", 0.15), ("rate_quantize", 0.3), ("cluster", 0.1)])
def test_codes_are_coded(tmp_path, name, least):
    """A row's weights are near zero or large as a whole, so its codes have few bits; packed ones are all as wide."""
    stored = FORMATS[name].pack({"kernel": V["kernel"]}, FORMATS[name].init({"kernel": V["kernel"]}))
    file, plain = jn.save_file(tmp_path / "tree.jn", stored), jn.nbytes(stored)
    header = jn.save_file(tmp_path / "small.jn", jax.tree.map(lambda x: x[..., :0], V["bias"])).bytes
    assert file.bytes - header < (1 - least) * plain


CODEBOOK = FORMATS["cluster"].pack(V, FORMATS["cluster"].init(V))["kernel"]
VECTORS = FORMATS["vectors"].pack(V, FORMATS["vectors"].init(V))["kernel"]
FACTORS = FORMATS["low rank"].pack(V, FORMATS["low rank"].init(V))["kernel"]
SUM = jn.Sum(FACTORS, FACTORS)


@pytest.mark.parametrize(
    ("tensor", "fields"),
    [
        (CODEBOOK, {"bits": 5}), (CODEBOOK, {"signed": True}), (CODEBOOK, {"length": 65}), (CODEBOOK, {"axis": -3}),
        (CODEBOOK, {"table": jnp.zeros((1, 1, 300))}), (CODEBOOK, {"table": jnp.zeros((7, 1, 10))}),
        (CODEBOOK, {"float_dtype": "int8"}), (VECTORS, {"along": -3}), (VECTORS, {"length": 3}),
        (VECTORS, {"table": jnp.zeros((1, 1, 2, 16, 4))}), (VECTORS, {"table": jnp.zeros((1, 1, 1, 300, 4))}),
        (VECTORS, {"table": jnp.zeros((1, 5, 1, 16, 4))}), (VECTORS, {"float_dtype": "what"}),
        (FACTORS, {"axes": (1, -1)}), (FACTORS, {"axes": (1, 2**40)}), (FACTORS, {"axes": (2**40, 1)}),
        (FACTORS, {"axes": (1.0, 1)}), (FACTORS, {"axes": (True, 1)}), (FACTORS, {"axes": ("a", 1)}), (FACTORS, {"axes": (1,)}),
        (FACTORS, {"axes": (2, 1)}), (FACTORS, {"axes": None}), (FACTORS, {"factors": ()}), (FACTORS, {"factors": None}),
        (FACTORS, {"factors": FACTORS.factors[::-1]}), (FACTORS, {"order": (-1, -1)}), (FACTORS, {"order": (-1.0, -2.0)}),
        (FACTORS, {"order": (-1, -2, -3)}), (FACTORS, {"float_dtype": "int8"}), (FACTORS, {"float_dtype": "key"}),
        (SUM, {"float_dtype": "int8"}), (SUM, {"b": FACTORS.transpose((1, 0))}),
    ],
)  # fmt: skip
def test_fields_that_do_not_fit_are_refused(tensor, fields):
    tensor.check()
    with pytest.raises(ValueError, match=type(tensor).__name__):
        dataclasses.replace(tensor, **fields).check()


def test_equal_arrays_are_read_as_two(tmp_path):
    """They take their bytes once; each has the sharding that it was asked for, and may be donated beside the other."""
    mesh = jax.make_mesh((4,), ("m",), devices=jax.devices()[:4], axis_types=(jax.sharding.AxisType.Auto,))
    at = lambda *axes: jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
    tree = {"a": V["kernel"], "b": V["kernel"] + 0}
    file = jn.save_file(tmp_path / "tree.jn", tree)
    assert file.bytes < 1.2 * jn.save_file(tmp_path / "one.jn", {"a": V["kernel"]}).bytes
    again, _ = jn.load_file(file, sharding={"a": at("m"), "b": at(None, "m")})
    assert again["a"].sharding.spec != again["b"].sharding.spec
    for name, x in again.items():
        np.testing.assert_array_equal(x, tree[name])
    part, _ = jn.load_file(file, only="b", sharding={"a": at("m"), "b": at(None, "m")})
    assert part["b"].sharding == at(None, "m")
    plain, _ = jn.load_file(file)
    added = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)(plain)
    np.testing.assert_array_equal(added["b"], V["kernel"] + 1)


@pytest.mark.parametrize("axes", [[1, 2**40], [2**40, 1], [1, -1], [1.0, 1], [True, 1]])
def test_no_shape_is_asked_of_a_tensor_that_is_refused(axes):
    """Its shape is a count of ``axes``: 2**40 of them are more than memory holds, so the check comes first."""
    arrays = Buffers()
    node = describe({"kernel": FACTORS}, "", arrays)
    dict(node["items"])["kernel"]["static"]["axes"] = axes
    with pytest.raises(ValueError, match="kernel: LowRank: axes"):
        rebuild(node, "", from_buffers(arrays.buffers()))
