"""Low rank on every model of the zoo: the pack law, what packed networks compute, their bytes, and cuts of what is stored."""

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
    "channel": jn.low_rank(share=0.7),
    "spatial": jn.low_rank(share=0.7, form="spatial"),
    "tucker": jn.low_rank(share=0.7, form="tucker"),
    "energy": jn.low_rank(energy=0.7, factors=jn.quantize(8)),
    "residual": jn.residual(jn.low_rank(share=0.3), jn.quantize(4)),
}
#: A stack, experts, windows.
FAST = {"channel": ("raw_conv", "ensemble"), "spatial": ("raw_conv",), "tucker": ("raw_conv",), "residual": ("ensemble",)}
#: Networks whose weights enter an operation with others before use: a product of factors has none of these.
DENSIFIED = {"lstm": "`concatenate`", "bilstm": "`concatenate`", "weight_norm": "`mul`"}


def runs(name, way):
    model, method = network(name), METHODS[way]
    state = method.init(model.variables, structure(name))
    seen, stored = jax.jit(method.view)(model.variables, state), method.pack(model.variables, state)
    factored, dense = 0, leaves_by_path(seen)
    decoded = leaves_by_path(jax.jit(jn.densify)(stored))
    for (path, x), made in zip(leaves_by_path(stored).items(), decoded.values(), strict=True):
        size = float(jnp.abs(dense[path].astype(jnp.float32)).max(initial=0)) if jn.is_compressed(x) else 0
        step = 2 * float(jnp.max(x.b.scale)) if isinstance(x, jn.Sum) else 0  # a code in the middle between two steps
        assert np.abs(np.asarray(made) - np.asarray(dense[path])).max(initial=0) <= 1e-5 * size + step if size else True, path
        if jn.is_compressed(x):
            factored += 1
            assert x.nbytes == sum(leaf.nbytes for leaf in jax.tree.leaves(x))
            assert way == "residual" or x.nbytes < dense[path].nbytes
    run = jn.rewrite(model.apply)
    both = ((run, stored), (model.apply, jn.densify(stored)))
    ours, theirs = (jax.tree.leaves(jax.jit(f)(v, *model.inputs)) for f, v in both)
    for a, b in zip(ours, theirs, strict=True):
        if jnp.issubdtype(jnp.asarray(a).dtype, jnp.inexact):
            np.testing.assert_allclose(a, b, rtol=0, atol=oracle.OUTPUT * max(np.abs(b).max(initial=0), 1e-6))
    return factored, run.explain(stored, *model.inputs)


@pytest.mark.parametrize(("way", "name"), [(way, name) for way, names in FAST.items() for name in names])
def test_factored_networks_run(way, name):
    factored, report = runs(name, way)
    assert factored and not report.of("densified")


@pytest.mark.slow
@pytest.mark.parametrize("way", METHODS)
@pytest.mark.parametrize("name", ZOO)
def test_every_factored_network_runs(name, way):
    _, report = runs(name, way)
    said = {m.reason.split()[0] for m in report.of("densified")}
    assert said == ({DENSIFIED[name]} if name in DENSIFIED else set())


def cut(name, way, share=0.4):
    """What stays of each factor is what it was; the small network computes what the zeroed one does."""
    model, method = ZOO[name](), METHODS[way]
    info = jn.inspect(model.apply, model.variables, *model.inputs)
    stored = method.pack(model.variables, method.init(model.variables, info))
    plan, execute = planned(Model(name, model.apply, stored, model.inputs, ""), share)
    apply, small = execute(plan)
    dense, made = jax.jit(jn.densify)(stored), leaves_by_path(jax.jit(jn.densify)(small))
    keep = stays(stored, plan)
    kinds = 0
    for (path, before), after in zip(leaves_by_path(stored).items(), leaves_by_path(small).values(), strict=True):
        wanted = keep(path, np.asarray(leaves_by_path(dense)[path]))
        near = 1e-5 * max(np.abs(wanted).max(initial=0), 1e-6)
        np.testing.assert_allclose(made[path], wanted, rtol=0, atol=near, err_msg=path)
        assert type(after) is type(before)
        if isinstance(before, jn.LowRank) and before.shape != after.shape:
            kinds += 1
            assert after.ranks == before.ranks and after.nbytes < before.nbytes
    if any(layer.cut for layer in plan.layers):
        ours, theirs = (jax.tree.leaves(jax.jit(f)(v, *model.inputs)) for f, v in (
            (jn.rewrite(apply), small), (model.apply, oracle.zeroed(dense, plan))))  # fmt: skip
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=oracle.OUTPUT * max(np.abs(b).max(initial=0), 1e-6))
    return kinds


@pytest.mark.parametrize("name", ["raw_conv"])
def test_stored_factors_are_cut(name):
    assert cut(name, "channel")


@pytest.mark.slow
@pytest.mark.parametrize("way", ["channel", "tucker", "residual"])
@pytest.mark.parametrize("name", ZOO)
def test_every_stored_network_is_cut(name, way):
    cut(name, way)
