"""The methods that make a network small, on every model of the corpus: what is packed, its bytes, its runs, its file."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_nn as jn
from tests.corpus import CORPUS, storing
from tests.zoo.base import Model

METHODS = {
    "values": jn.cluster(6),
    "bits": jn.cluster(bits=3),
    "one table": jn.cluster(8, scope="all"),
    "masked values": jn.chain(jn.prune(sparsity=0.5), jn.cluster(8)),
    "vectors": jn.cluster_vectors(8, dim=2, stages=2),
    "binary": jn.binarize(),
    "twn": jn.ternarize(),
    "masked twn": jn.chain(jn.prune(sparsity=0.5), jn.ternarize()),
    "ttq": jn.ternarize("ttq", scale="channel"),
    "channel": jn.low_rank(share=0.7),
    "spatial": jn.low_rank(share=0.7, form="spatial"),
    "tucker": jn.low_rank(share=0.7, form="tucker"),
    "energy": jn.low_rank(energy=0.7, factors=jn.quantize(8)),
    "macs": jn.low_rank(macs=0.7),
    "rate": jn.rate_quantize(1e-4),
    "masked rate": jn.chain(jn.prune(sparsity=0.5), jn.rate_quantize(1e-4, vectors=True)),
    "rank and codes": jn.residual(jn.low_rank(share=0.3), jn.quantize(4)),
    "rank and the largest": jn.residual(jn.low_rank(share=0.3), jn.prune(sparsity=0.9)),
    "values and signs": jn.residual(jn.cluster(4), jn.binarize()),
}
#: Cheap ones: rows; layers of a stack.
FAST = [("mlp_relu", "masked values"), ("vmapped_experts", "rank and codes")]
#: So many methods a model, each in its turn: no model has the same as the next.
EACH = 3


def drawn(count):
    """Pairs of a model and a method, ``count`` for each model, spread over the methods."""
    kinds = list(METHODS)
    step = len(kinds) // count
    return [(name, kinds[(2 * i + step * j) % len(kinds)]) for i, name in enumerate(CORPUS) for j in range(count)]


@pytest.mark.parametrize(("name", "kind"), FAST)
def test_a_network_is_stored(name, kind, tmp_path):
    storing.check(CORPUS[name](), METHODS[kind], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), drawn(EACH))
def test_every_network_is_stored(name, kind, tmp_path):
    storing.check(CORPUS[name](), METHODS[kind], tmp_path)


@pytest.mark.parametrize("kind", ["values", "twn", "rank and codes"])
def test_numpy_arrays_of_64_bits_are_stored(kind, tmp_path):
    """JAX computes with them in 32, and says nothing of it."""
    draw = np.random.default_rng(0).standard_normal
    variables = {"up": draw((12, 16)), "down": draw((16, 8))}
    model = Model("mlp", lambda v, x: jnp.tanh(x @ v["up"]) @ v["down"], variables, (jnp.ones((2, 12)),), "")
    storing.check(model, METHODS[kind], tmp_path)
