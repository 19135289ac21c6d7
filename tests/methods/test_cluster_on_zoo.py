"""Shared values and vectors on every model of the zoo: the pack law, packed runs, true bytes, cuts of what is stored."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_nn as jn
from jaxopt_nn.core.paths import leaves_by_path
from tests.corpus import oracle
from tests.corpus.cutting import planned
from tests.passes.test_cut_stored import stays
from tests.zoo import ZOO
from tests.zoo.base import Model
from tests.zoo.compressed import network, structure

METHODS = {
    "values": jn.cluster(6),
    "masked": jn.chain(jn.prune(sparsity=0.5), jn.cluster(8)),
    "vectors": jn.cluster_vectors(8, dim=2, stages=2),
}
#: Cheap ones: rows, and layers of a stack.
FAST = [("raw_conv", "values"), ("ensemble", "masked"), ("raw_conv", "vectors")]
#: How far outputs may be apart, over their largest: sums in another order.
NEAR = 3e-4


@functools.cache
def packed(name, kind):
    model, method = network(name), METHODS[kind]
    state = method.init(model.variables, structure(name))
    return model, jax.jit(method.view)(model.variables, state), method.pack(model.variables, state)


def true_bytes(tensor):
    """By the layout as it is documented: codes at their width along one axis, a table of floats for each group."""
    if isinstance(tensor, jn.Masked):
        layers = math.prod(tensor.shape[a] for a in tensor.stack)
        size = math.prod(tensor.shape) // layers
        kept = np.asarray(tensor.keep()).transpose([*tensor.stack, *(a for a in range(tensor.ndim) if a not in tensor.stack)])
        fullest = int(kept.reshape(layers, -1).sum(1).max())
        return layers * (-(-size // 8) + -(-fullest * 3 // 8)) + 4 * 7 * layers
    if isinstance(tensor, jn.VectorCodebook):
        runs = list(tensor.shape)
        runs[tensor.along] //= 2
        n = 1 if tensor.axis is None else runs[tensor.axis]
        layers = math.prod(tensor.groups)
        return 2 * (math.prod(runs) // n * -(-n * 3 // 8)) + 4 * 2 * 8 * 2 * layers
    n = 1 if tensor.axis is None else tensor.shape[tensor.axis]
    return math.prod(tensor.shape) // n * -(-n * 3 // 8 if tensor.axis is not None else 1) + 4 * 5 * math.prod(tensor.groups)


def runs_as_its_view(name, kind):
    model, view, stored = packed(name, kind)
    tensors = {p: x for p, x in leaves_by_path(stored).items() if jn.is_compressed(x)}
    assert tensors
    dense = jax.jit(jn.densify)(stored)
    jax.tree.map(np.testing.assert_array_equal, dense, view)
    for path, x in tensors.items():
        assert x.nbytes == sum(c.nbytes for c in jax.tree.leaves(x)) == true_bytes(x), path
    theirs = jax.tree.leaves(jax.jit(model.apply)(view, *model.inputs))
    prepared = jn.prepare(stored)
    for held in (prepared, jn.prepare(stored, "tpu")):
        jax.tree.map(np.testing.assert_array_equal, jax.jit(jn.densify)(held), view)
    for held in (stored, prepared):
        ours = jax.tree.leaves(jn.rewrite(model.apply)(held, *model.inputs))
        for a, b in zip(ours, theirs, strict=True):
            if jnp.issubdtype(b.dtype, jnp.inexact):
                np.testing.assert_allclose(a, b, rtol=0, atol=NEAR * max(1e-3, np.abs(b).max(initial=0)))


def cut_as_it_is_stored(name, kind, share=0.4):
    model, _, stored = packed(name, kind)
    plan, execute = planned(Model(name, model.apply, stored, model.inputs, ""), share)
    try:
        apply, small = execute(plan)
    except ValueError as error:
        assert "are cut apart; cut the network first" in str(error) and kind == "vectors"
        return
    densify = jax.jit(jn.densify)
    cut, dense, made = stays(stored, plan), densify(stored), leaves_by_path(densify(small))
    for (path, before), after in zip(leaves_by_path(stored).items(), leaves_by_path(small).values(), strict=True):
        np.testing.assert_array_equal(made[path], cut(path, np.asarray(leaves_by_path(dense)[path])), err_msg=path)
        assert type(after) is type(before)
        if jn.is_compressed(after):
            assert after.nbytes == true_bytes(after), path
    if any(layer.cut for layer in plan.layers):
        ours, theirs = (jax.tree.leaves(jax.jit(f)(v, *model.inputs)) for f, v in (
            (apply, densify(small)), (model.apply, oracle.zeroed(dense, plan))))  # fmt: skip
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=oracle.OUTPUT * max(np.abs(b).max(initial=0), 1e-6))


@pytest.mark.parametrize("name, kind", FAST)
def test_a_network_runs_as_its_view_and_is_cut_as_stored(name, kind):
    runs_as_its_view(name, kind)
    cut_as_it_is_stored(name, kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("name", ZOO)
def test_every_network_runs_as_its_view_and_is_cut_as_stored(name, kind):
    runs_as_its_view(name, kind)
    cut_as_it_is_stored(name, kind)
