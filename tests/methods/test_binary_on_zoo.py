"""Binary and ternary weights on every model of the zoo: the pack law, packed runs, true bytes, cuts, products of signs."""

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
    "binary": jn.binarize(),
    "binary, by layer": jn.binarize("layer"),
    "twn": jn.ternarize(),
    "ttq": jn.ternarize("ttq", scale="channel"),
}
#: Cheap ones: rows, and layers of a stack.
FAST = [("raw_conv", "binary"), ("ensemble", "ttq")]
#: Of the largest output: float sums in another order.
NEAR = 3e-4


def packed(name, kind):
    model, method = network(name), METHODS[kind]
    state = method.init(model.variables, structure(name))
    return model, jax.jit(method.view)(model.variables, state), method.pack(model.variables, state)


def true_bytes(tensor):
    """One bit a weight or two, along one axis, each row rounded up, and the scales in float32 (TTQ: the leaf's dtype, two)."""
    bits = 1 if isinstance(tensor, jn.Binary) else 2
    n = 1 if tensor.axis is None else tensor.shape[tensor.axis]
    codes = math.prod(tensor.shape) // n * (-(-n * bits // 8) if tensor.axis is not None else 1)
    narrow = 2 * min(tensor.dtype.itemsize, 4) if isinstance(tensor, jn.Codebook) else 4
    return codes + narrow * math.prod(tensor.groups)


def runs_as_its_view(name, kind):
    model, view, stored = packed(name, kind)
    tensors = {p: x for p, x in leaves_by_path(stored).items() if jn.is_compressed(x)}
    assert tensors
    for path, x in tensors.items():
        assert x.nbytes == sum(c.nbytes for c in jax.tree.leaves(x)) == true_bytes(x), path
    theirs = jax.tree.leaves(jax.jit(model.apply)(view, *model.inputs))
    words = jn.prepare(stored, activations=1)
    for held in (stored, words, jn.prepare(stored), jn.prepare(stored, "tpu"), jn.prepare(stored, "gpu")):
        jax.tree.map(np.testing.assert_array_equal, jax.jit(jn.densify)(held), view)
    for held in (stored, jn.prepare(stored)):
        near(jn.rewrite(model.apply)(held, *model.inputs), theirs)


def near(ours, theirs):
    for a, b in zip(jax.tree.leaves(ours), theirs, strict=True):
        if jnp.issubdtype(b.dtype, jnp.inexact):
            np.testing.assert_allclose(a, b, rtol=0, atol=NEAR * max(1e-3, np.abs(b).max(initial=0)))


def cut_as_it_is_stored(name, kind, share=0.4):
    model, _, stored = packed(name, kind)
    plan, execute = planned(Model(name, model.apply, stored, model.inputs, ""), share)
    apply, small = execute(plan)
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


def signs_multiply_alike(name):
    """In words, as int8 and as stored: each site's numbers are the same."""
    model, _, stored = packed(name, "binary")
    x = model.inputs
    run = jn.rewrite(model.apply, jn.xnor())
    words, whole = jn.prepare(stored, activations=1), jn.prepare(stored, "gpu")
    assert not run.explain(words, *x).of("stored")
    found = [jax.tree.leaves(jax.jit(run)(held, *x)) for held in (words, whole, stored)]
    for other in found[1:]:
        near(other, found[0])


@pytest.mark.parametrize("name, kind", FAST)
def test_a_network_runs_as_its_view_and_is_cut_as_stored(name, kind):
    runs_as_its_view(name, kind)
    cut_as_it_is_stored(name, kind)


def test_signs_of_a_network_multiply_alike():
    signs_multiply_alike("raw_conv")


@pytest.mark.slow
@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("name", ZOO)
def test_every_network_runs_as_its_view(name, kind):
    runs_as_its_view(name, kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("name", ZOO)
def test_every_network_is_cut_as_stored(name, kind):
    cut_as_it_is_stored(name, kind)


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_signs_of_every_network_multiply_alike(name):
    signs_multiply_alike(name)
