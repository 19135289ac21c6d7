"""Models written with libraries that know nothing of us."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_nn.core.rule import identity_rule
from jaxopt_nn.interpret.inspect import inspect
from jaxopt_nn.interpret.rewrite import rewrite
from jaxopt_nn.methods.arithmetic import arithmetic
from jaxopt_nn.methods.quantize import quantize

X = jax.random.normal(jax.random.key(0), (2, 8, 16))


def haiku_transformer():
    hk = pytest.importorskip("haiku")

    def forward(x):
        h = hk.MultiHeadAttention(2, 8, w_init=hk.initializers.VarianceScaling(1.0), model_size=16)(x, x, x)
        h = hk.LayerNorm(-1, True, True)(x + h)
        h = hk.Linear(16)(jax.nn.gelu(hk.Linear(32)(h)))
        out, _ = hk.dynamic_unroll(hk.GRU(16), h, hk.GRU(16).initial_state(2), time_major=False)
        return hk.Conv1D(16, 3)(out)

    model = hk.without_apply_rng(hk.transform(forward))
    return model.apply, model.init(jax.random.key(1), X)


def equinox_mixture():
    eqx = pytest.importorskip("equinox")
    keys = jax.random.split(jax.random.key(1), 4)
    layers = (
        eqx.nn.MultiheadAttention(2, 16, key=keys[0]),
        eqx.nn.MLP(16, 16, 32, 2, key=keys[1]),
        eqx.nn.GRUCell(16, 16, key=keys[2]),
        eqx.nn.Conv1d(8, 8, 3, padding=1, key=keys[3]),
    )
    variables, static = eqx.partition(layers, eqx.is_inexact_array)

    def apply(variables, x):
        attention, mlp, cell, conv = eqx.combine(variables, static)

        def one(x):
            h = jax.vmap(mlp)(attention(x, x, x))
            out, _ = jax.lax.scan(lambda c, row: (cell(row, c), None), jnp.zeros(16), h)
            return conv(h + out[None])

        return jax.vmap(one)(x)

    return apply, variables


@pytest.mark.parametrize("build", [haiku_transformer, equinox_mixture])
def test_sites_rewriting_and_integers(build):
    apply, variables = build()
    info = inspect(apply, variables, X)
    assert info.coverage == 1.0
    plain = str(jax.make_jaxpr(apply)(variables, X))
    assert str(jax.make_jaxpr(rewrite(apply, identity_rule()))(variables, X)) == plain
    method = quantize(8)
    state = method.init(variables, info)
    stored = method.pack(variables, state)
    exact = jax.jit(apply)(method.view(variables, state), X)
    np.testing.assert_allclose(rewrite(apply)(stored, X), exact, atol=1e-4, rtol=1e-4)
    integers = rewrite(apply, arithmetic("w8a8"))
    weights = {s.name for s in info.sites if s.weight is not None}
    assert not {m.path for m in integers.explain(stored, X).of("float")} & weights
    scale = float(jnp.abs(exact).max())
    assert float(jnp.abs(integers(stored, X) - exact).max()) < 0.05 * scale
