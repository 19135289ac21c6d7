"""The matrix of a leaf at every site of the zoo: the activation times it is the site's output, and it goes back to its place.

The oracle is the model itself: one tap keeps a site's activation, another its output, as the interpreter sees them.
"""


import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxopt_nn.core.paths import leaves_by_path
from jaxopt_nn.core.tap import Tap
from jaxopt_nn.formulations.prepare import prepare
from jaxopt_nn.interpret import normal
from jaxopt_nn.interpret.inspect import inspect
from jaxopt_nn.interpret.rewrite import capture, rewrite
from jaxopt_nn.methods.quantize import quantize
from tests.zoo import ZOO


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
        own = [use for use in site.uses if use.operand == site.weight]
        for use in own:
            w, m = leaves[use.path], use.matrix(leaves[use.path])
            assert m.shape == use.matrix.shape == (*site.stack, site.inputs, site.outputs) and m.dtype == w.dtype
            np.testing.assert_array_equal(use.matrix.put(w, m), w)
            np.testing.assert_array_equal(use.matrix(use.matrix.put(w, 2 * m)), 2 * m)
        if site.derived or site.name not in stats:
            continue
        whole = sum(use.matrix(leaves[use.path]) for use in own)
        rows = lambda a, site=site: a.reshape((-1, *a.shape[len(site.stack) :]))
        for x, w, y in zip(*map(rows, (stats[site.name]["x"], whole, stats[site.name]["y"])), strict=True):
            out = w[x.clip(0, len(w) - 1)] if site.kind == "gather" else x @ w
            np.testing.assert_allclose(out, y, rtol=1e-5, atol=1e-5 * max(1e-3, float(np.abs(y).max())))


# -- kinds of sites, by closed forms -------------------------------------------------------------------------------------


def gram():
    return Tap(
        lambda site: jnp.zeros((site.inputs, site.inputs)),
        lambda acc, x, weight, site: acc + x.reshape((-1, site.inputs)).T @ x.reshape((-1, site.inputs)),
        lambda a, b: a + b,
    )


def energy(apply, w, x, name=""):
    """``tr(W^T H W)`` by matrix and Gram, which is the squared norm of the output."""
    out, stats = capture(apply, gram())(w, x)
    site = next(s for s in inspect(apply, w, x).sites if s.name == name)
    m = np.asarray(site.matrix(w), np.float64).reshape((-1, site.inputs, site.outputs))
    h = np.asarray(stats[name], np.float64).reshape((-1, site.inputs, site.inputs))
    return np.einsum("sio,sij,sjo->", m, h, m), np.sum(np.square(np.asarray(out, np.float64)))


@pytest.mark.parametrize(
    ("apply", "w", "x"),
    [
        (lambda w, x: jnp.einsum("bij,jio->bo", x, w), (4, 3, 5), (6, 3, 4)),  # contracted axes in another order
        (lambda w, x: jnp.einsum("bij,ijo->bo", x, w), (3, 4, 5), (6, 3, 4)),
        (lambda w, x: jnp.einsum("oi,bi->ob", w, x), (5, 4), (6, 4)),  # the weight stands left
        (lambda w, x: x @ w[:, ::-1].T[1:3].T, (4, 6), (5, 4)),
        (lambda w, x: jnp.einsum("bei,eio->beo", x, w), (3, 4, 5), (6, 3, 4)),  # experts
        (lambda w, x: jax.vmap(lambda m: x @ m, in_axes=2)(w), (4, 5, 3), (6, 4)),
        (lambda w, x: x @ w.reshape(2, 2, 6).swapaxes(0, 1).reshape(4, 6), (4, 6), (5, 4)),
        (lambda w, x: lax.conv(x, lax.rev(w, (2, 3)), (1, 1), "VALID"), (5, 2, 3, 3), (2, 2, 6, 6)),
        (lambda w, x: lax.conv_general_dilated(x, w, (1, 1), "SAME", feature_group_count=2), (6, 2, 3, 3), (2, 4, 5, 5)),
    ],
)  # fmt: skip
def test_matrix_and_gram_give_the_energy_of_the_output(rng, apply, w, x):
    w, x = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in (w, x))
    ours, theirs = energy(apply, w, x)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_a_reshape_that_reads_its_axes_in_another_order(rng):
    """How JAX batches a convolution over its kernels: the layout, the codes and their values."""
    w, x = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((3, 3, 3, 4, 5), (3, 2, 6, 6, 4)))
    numbers = ("NHWC", "HWIO", "NHWC")
    apply = jax.vmap(lambda w, x: lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=numbers))
    ours, theirs = energy(apply, w, x)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert any(e.params.get("dimensions") for e in jax.make_jaxpr(apply)(w, x).eqns if e.primitive.name == "reshape")
    info = inspect(apply, w, x)
    assert info.roles[""].stack == () and info.roles[""].output == (0, 4)
    method = quantize(4)
    state = method.init(w, info)
    dense, packed = method.view(w, state), method.pack(w, state)
    expected = apply(dense, x)
    for form in (packed, prepare(packed)):
        np.testing.assert_allclose(jax.jit(rewrite(apply))(form, x), expected, rtol=1e-4, atol=1e-4)


def test_of_two_leaves_that_meet_the_other_one_stands_for_the_activation(rng):
    v = {k: jnp.asarray(rng.standard_normal(s), jnp.float32) for k, s in {"a": (8, 2), "b": (2, 6), "w": (8, 6)}.items()}
    info = inspect(lambda v, x: x @ (v["w"] + v["a"] @ v["b"]), v, jnp.ones((3, 8)))
    product, last = info.sites
    assert product.leaf == "a" and product.leaves == ("a", "b") and not product.derived
    assert [use.matrix is None for use in product.uses] == [False, True] and last.leaf == "w" and last.derived


def test_role_sets_would_have_given_another_energy(rng):
    """The case that set this right: flattened by the leaf's own order of axes, the sum is another number."""
    w, x = jnp.asarray(rng.standard_normal((4, 3, 5)), jnp.float32), jnp.asarray(rng.standard_normal((6, 3, 4)), jnp.float32)
    apply = lambda w, x: jnp.einsum("bij,jio->bo", x, w)
    _, stats = capture(apply, gram())(w, x)
    naive = np.asarray(w).reshape(12, 5)
    assert abs(np.einsum("io,ij,jo->", naive, stats[""], naive) / energy(apply, w, x)[1] - 1) > 1e-2


def test_a_layer_taken_by_a_traced_index_has_its_own_statistic(rng):
    w, x = jnp.asarray(rng.standard_normal((3, 4, 4)), jnp.float32) / 2, jnp.asarray(rng.standard_normal((5, 4)), jnp.float32)
    shared = jnp.asarray(rng.standard_normal((4, 4)), jnp.float32) / 2

    def apply(v, x):
        turn = lambda i, c: jnp.tanh(c @ jnp.take(v["stack"], 2 - i, axis=0)) @ v["shared"]
        return lax.fori_loop(0, 3, turn, x)

    _, stats = capture(apply, gram())({"stack": w, "shared": shared}, x)
    grams, total = {}, 0
    for i in (2, 1, 0):
        grams[i] = x.T @ x
        h = jnp.tanh(x @ w[i])
        total, x = total + h.T @ h, h @ shared
    np.testing.assert_allclose(stats["stack"], np.stack([grams[i] for i in range(3)]), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(stats["shared"], total, rtol=1e-4, atol=1e-5)  # one weight, one statistic


def test_a_weight_that_is_doubled_before_use_keeps_its_stack_and_its_places(rng):
    w, x = jnp.asarray(rng.standard_normal((4, 8, 6)), jnp.float32), jnp.asarray(rng.standard_normal((5, 8)), jnp.float32)
    pad = jnp.zeros((1, 2))
    apply = lambda w, x: lax.scan(lambda c, m: (c, c @ (m * 2) + jnp.pad(pad, ((0, 0), (0, 4)))), x, w)[1]
    info = inspect(apply, w, x)
    (site,) = info.sites
    assert site.derived and info.roles[""].stack == (0,) and info.roles[""].input == (1,) and site.stack == (4,)
    np.testing.assert_array_equal(site.matrix(w), w)
    assert not info.report.of("assumed")


@pytest.mark.parametrize(
    ("shapes", "apply", "stack", "matrices"),
    [
        ({"a": (3, 4, 4), "s": (3, 4, 1)}, lambda v, x: scanned(x, jnp.cumsum(v["a"], 1) * v["s"]), (3,), {"s"}),
        ({"a": (3, 4, 4), "s": (3, 4, 1)}, lambda v, x: indexed(x, jnp.cumsum(v["a"], 1) * v["s"]), (3,), {"s"}),
        ({"a": (3, 4, 4), "t": (4, 4)}, lambda v, x: scanned(x, v["a"], v["t"]), (3,), {"a"}),
        ({"a": (3, 1, 4), "t": (4, 4)}, lambda v, x: scanned(x, v["a"], v["t"]), (), {"t"}),
        ({"q": (6, 5), "w": (5, 4)}, lambda v, x: jnp.einsum("bd,bid->bi", x, shared(v["q"] @ v["w"], x)), (), set()),
    ],
)
def test_all_leaves_behind_a_site_have_its_stack_or_no_matrix(rng, shapes, apply, stack, matrices):
    """Of several leaves some are taken apart by a loop, or are known, and others not."""
    v = {k: jnp.asarray(rng.standard_normal(s), jnp.float32) for k, s in shapes.items()}
    site = inspect(apply, v, jnp.ones((3, 4))).sites[-1]
    found = {use.path: use.matrix for use in site.uses if use.matrix is not None}
    assert site.stack == stack and set(found) == matrices
    assert all(matrix.shape == (*stack, site.inputs, site.outputs) for matrix in found.values())


def scanned(x, w, gain=None):
    return lax.scan(lambda c, m: (c @ (m if gain is None else m * gain), None), x, w)[0]


def indexed(x, w):
    return lax.fori_loop(0, 3, lambda i, c: c @ w[i], x)


def shared(w, x):
    return jnp.broadcast_to(w, (len(x), *w.shape))


@pytest.mark.parametrize(
    ("shapes", "apply", "densified"),
    [
        ({"a": (8, 8), "b": (8, 8)}, lambda v, x: scanned(x, jnp.stack([v["a"], v["b"]])), False),
        ({"a": (8, 6), "b": (6, 8)}, lambda v, x: jnp.einsum("bi,iko->bko", x, jnp.stack([v["a"], v["b"].T], 1)), False),
        ({"w": (2, 8, 8)}, lambda v, x: (lambda a, b: x @ a @ b)(*jnp.unstack(v["w"])), False),
        ({"w": (8, 2, 8)}, lambda v, x: (lambda a, b: x @ a @ b)(*jnp.unstack(v["w"], axis=1)), False),
        ({"w": (4, 6)}, lambda v, x: x @ jnp.tile(v["w"], (2, 1)), True),
    ],
)
def test_stacking_unstacking_and_tiling_only_move_entries(rng, shapes, apply, densified):
    """They are primitives of their own since JAX 0.10."""
    v = {k: jnp.asarray(rng.standard_normal(s), jnp.float32) for k, s in shapes.items()}
    x = jnp.asarray(rng.standard_normal((3, 8)), jnp.float32)
    info = inspect(apply, v, x)
    assert not any(site.derived for site in info.sites) and all(info.matrix(path) is not None for path in v)
    keeps = {"**": {"x": keep("input"), "y": keep("output")}}
    stats = capture(apply, keeps)(v, x)[1]
    for site in info.sites:
        whole = sum(use.matrix(v[use.path]) for use in site.uses)
        np.testing.assert_allclose(stats[site.name]["x"] @ whole, stats[site.name]["y"], rtol=1e-4, atol=1e-5)
    method = quantize(8)
    state = method.init(v, info)
    stored, run = method.pack(v, state), rewrite(apply)
    np.testing.assert_allclose(run(stored, x), apply(method.view(v, state), x), rtol=1e-4, atol=1e-4)
    assert bool(run.explain(prepare(stored), x).of("densified")) is densified


def test_a_lookup_of_windows_has_outputs_as_long_as_they_are(rng):
    w, ids = jnp.asarray(rng.standard_normal((12, 6)), jnp.float32), jnp.asarray([0, 5, 9])
    apply = lambda w, ids: jax.vmap(lambda i: lax.dynamic_slice(w, (i, 0), (3, 6)))(ids)
    total = Tap(lambda site: jnp.zeros(site.outputs), lambda acc, y, weight, site: acc + y.sum(0), jnp.add, "output")
    out, stats = capture(apply, total)(w, ids)
    np.testing.assert_allclose(stats[""], out.reshape(3, -1).sum(0), rtol=1e-6)


def test_what_is_assumed_of_a_derived_weight_is_said(rng):
    w, x = jnp.asarray(rng.standard_normal((8, 8)), jnp.float32), jnp.asarray(rng.standard_normal((5, 8)), jnp.float32)
    info = inspect(lambda w, x: x @ jnp.cumsum(w, 0), w, x)
    assert [m.kind for m in info.report] == ["derived", "assumed"] and "cumsum" in info.report.messages[1].reason
    with pytest.raises(ValueError, match="goes through `cumsum`"):
        info.sites[0].matrix(w)


def test_matrix_refuses_another_leaf(rng):
    info = inspect(lambda w, x: x @ w, jnp.ones((4, 5)), jnp.ones((2, 4)))
    with pytest.raises(ValueError, match=r"\(4, 6\).*reads a leaf of shape \(4, 5\)"):
        info.sites[0].matrix(np.ones((4, 6)))
    with pytest.raises(ValueError, match="pass the leaf"):
        info.sites[0].put(np.ones((4, 5)), np.ones((5, 4)))


def test_matrices_are_abstract_and_jittable():
    info = inspect(lambda w, x: jnp.einsum("bij,jio->bo", x, w), jnp.ones((4, 3, 5)), jnp.ones((2, 3, 4)))
    abstract = jax.ShapeDtypeStruct((4, 3, 5), jnp.bfloat16)
    m = info.matrix("")(abstract)
    assert (m.shape, m.dtype) == ((12, 5), jnp.bfloat16)
    back = info.matrix("").put(abstract, m)
    assert (back.shape, back.dtype) == (abstract.shape, abstract.dtype)
    jax.jit(info.sites[0].matrix)(jnp.ones((4, 3, 5)))
