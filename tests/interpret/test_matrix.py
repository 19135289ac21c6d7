"""The matrix of a leaf at every site of the zoo: the activation times it is the site's output, and it goes back to its place.

The oracle is the model itself: one tap keeps a site's activation, another its output, as the interpreter sees them.
"""


import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_nn.core.paths import leaves_by_path
from jaxopt_nn.core.tap import Tap
from jaxopt_nn.interpret import normal
from jaxopt_nn.interpret.inspect import inspect
from jaxopt_nn.interpret.rewrite import capture
from tests.zoo import ZOO

#: Sites without a matrix, with the reason: sharded by hand, or computed from leaves in a way that moves their entries.
NONE = {
    "weight_norm": {},
}


def keep(of):
    """The last rows that a site saw: with a stack, of each entry."""

    def zero(site):
        ids = site.kind == "gather" and of == "input"
        kind = jnp.int32 if ids else jnp.result_type(*(d for d in site.dtypes if "int" not in d))
        return jnp.zeros(_rows_shape(site, of), kind)

    return Tap(zero, lambda acc, x, weight, site: x.astype(acc.dtype), lambda a, b: b, of)


def _rows_shape(site, of):
    """Rows are what ``normal`` gives: found by abstract evaluation of a site of these shapes."""
    avals = [jax.ShapeDtypeStruct(s, jnp.dtype(d)) for s, d in zip(site.shapes, site.dtypes, strict=True)]
    x = jax.eval_shape(lambda a, b: normal.activation(site, a, b), *avals)
    own = len(site.stack) - len(site.slots)
    rows = x.shape[own:] if site.kind == "gather" else x.shape[own:-1]
    if of == "input":
        return rows if site.kind == "gather" else (*rows, site.inputs)
    return (*rows, site.outputs)


@pytest.mark.parametrize("name", list(ZOO))
def test_zoo(name):
    m = ZOO[name]()
    info = inspect(m.apply, m.variables, *m.inputs)
    leaves = leaves_by_path(m.variables)
    sites = {s.name: s for s in info.sites if s.weight is not None}
    _, stats = capture(m.apply, {"**": {"x": keep("input"), "y": keep("output")}})(m.variables, *m.inputs)
    for site in sites.values():
        for use in site.uses:
            w, m = leaves[use.path], use.matrix(leaves[use.path])
            assert m.shape == use.matrix.shape == (*site.stack, site.inputs, site.outputs) and m.dtype == w.dtype
            np.testing.assert_array_equal(use.matrix.put(w, m), w)
            np.testing.assert_array_equal(use.matrix(use.matrix.put(w, 2 * m)), 2 * m)
        if site.derived or site.name not in stats:
            continue
        whole = sum(use.matrix(leaves[use.path]) for use in site.uses)
        rows = lambda a, site=site: a.reshape((-1, *a.shape[len(site.stack) :]))
        for x, w, y in zip(*map(rows, (stats[site.name]["x"], whole, stats[site.name]["y"])), strict=True):
            out = w[x.clip(0, len(w) - 1)] if site.kind == "gather" else x @ w
            np.testing.assert_allclose(out, y, rtol=1e-5, atol=1e-5 * max(1e-3, float(np.abs(y).max())))
