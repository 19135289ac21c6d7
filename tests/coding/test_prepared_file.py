"""Whatever form a network is in, its file gives the same arrays back."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_nn as jn
from jaxopt_nn.coding import structure

METHODS = {
    "quantize": lambda: jn.quantize(bits=4),
    "masked codes": lambda: jn.chain(jn.prune(sparsity=0.5), jn.quantize(bits=3)),
    "n:m": lambda: jn.prune(structure=jn.n_of_m(2, 4)),
    "binarize": jn.binarize,
    "ternarize": lambda: jn.ternarize("ttq"),
    "cluster": lambda: jn.cluster(bits=3),
    "vectors": lambda: jn.cluster_vectors(8, dim=2),
    "low rank": lambda: jn.low_rank(rank=3),
    "residual": lambda: jn.residual(jn.low_rank(rank=2), jn.quantize(bits=4)),
}


def packed(kind, rng):
    variables = {"kernel": jnp.asarray(rng.standard_normal((70, 24)), jnp.float32)}
    method = METHODS[kind]()
    info = jn.inspect(lambda v, x: x @ v["kernel"], variables, jnp.ones((2, 70)))
    return method.pack(variables, method.init(variables, info))


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu", "words"])
@pytest.mark.parametrize("kind", METHODS)
def test_a_prepared_network_comes_back_as_it_was(kind, platform, rng, tmp_path):
    stored = packed(kind, rng)
    tree = jn.prepare(stored, activations=1) if platform == "words" else jn.prepare(stored, platform)
    jn.save_file(tmp_path / "tree.jn", tree)
    back = jn.load_file(tmp_path / "tree.jn")[0]
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    for ours, theirs in zip(jax.tree.leaves(back), jax.tree.leaves(tree), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(jn.densify(back)["kernel"], jn.densify(tree)["kernel"])


def test_words_of_another_length_are_told(rng, tmp_path, monkeypatch):
    tensor = jn.prepare(packed("binarize", rng), activations=1)["kernel"]
    assert tensor.codes.dtype == jnp.uint32
    wrong = {"kernel": dataclasses.replace(tensor, length=97)}
    with pytest.raises(ValueError, match="kernel: Binary: 97 codes of 1 bits"):
        jn.save_file(tmp_path / "tree.jn", wrong)
    with monkeypatch.context() as unchecked:  # as somebody else's writer may write it
        unchecked.setattr(structure, "_checked", lambda tensor, path: None)
        jn.save_file(tmp_path / "tree.jn", wrong)
    with pytest.raises(ValueError, match="97 codes of 1 bits"):
        jn.load_file(tmp_path / "tree.jn")
