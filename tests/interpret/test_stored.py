"""Stored tensors are prepared once, kept as long as they live, and named where nothing can be prepared once."""

import gc

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_nn.formulations import cpu
from jaxopt_nn.formulations.prepare import prepare
from jaxopt_nn.interpret import stored as module
from jaxopt_nn.interpret.stored import Prepared, stored
from jaxopt_nn.methods.prune import prune
from jaxopt_nn.methods.quantize import quantize
from jaxopt_nn.tensors.base import densify

W = {"a": jnp.asarray(np.random.default_rng(0).standard_normal((24, 16)), jnp.float32), "b": jnp.ones(16)}


def packed(method):
    return method.pack(W, method.init(W))


@pytest.mark.parametrize("method", [quantize(4), quantize(8), prune(sparsity=0.5)], ids=["4 bits", "8 bits", "mask"])
def test_each_tensor_is_prepared_once_and_goes_with_its_owner(method, monkeypatch):
    calls = []
    monkeypatch.setattr(module, "prepared_for", lambda x, rules: calls.append(x) or prepare(x))
    ready, variables = Prepared(), packed(method)
    first, second = ready(variables, "ab"), ready({**variables}, "ab")
    assert len(calls) == 1 and first["a"] is second["a"] and first["b"] is W["b"]
    chex.assert_trees_all_equal_shapes_and_dtypes(first["a"], prepare(variables["a"]))
    chex.assert_trees_all_equal(densify(first), densify(variables))
    calls.clear()
    assert len(ready) == 1
    del variables
    gc.collect()
    assert len(ready) == 0


def test_what_is_prepared_already_stays_itself():
    ready, variables = Prepared(), prepare(packed(quantize(4)))
    assert ready(variables, "ab")["a"] is variables["a"]
    del variables
    gc.collect()
    assert len(ready) == 0


def test_stored_tensors_are_named_also_under_a_trace():
    variables = packed(quantize(4))
    assert [m.path for m in stored(variables)] == ["a"] and "jaxopt_nn.prepare" in stored(variables).messages[0].reason
    assert not stored(prepare(variables)) and not stored(W)
    seen = []
    jax.jit(lambda v: seen.append(stored(v)) or v["b"])(variables)
    assert [m.path for m in seen[0]] == ["a"]


def test_the_form_is_that_of_the_whole_network(monkeypatch):
    """Two tensors that would fit a cache alone, and don't together."""
    monkeypatch.setattr(cpu, "SMALL", 500)
    pair = {name: packed(quantize(8))["a"] for name in "ab"}
    together, alone = prepare(pair), {name: prepare(x) for name, x in pair.items()}
    kinds = lambda tree: [type(x).__name__ for x in tree.values()]
    assert kinds(Prepared()(pair, "ab")) == kinds(together) == ["QTensor"] * 2 and kinds(alone) == ["Decoded"] * 2
    assert not stored(together)
