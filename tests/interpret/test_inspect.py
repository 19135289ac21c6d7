"""Sites, roles and reasons, on functions small enough to know the answer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxopt_nn.core.model import Roles
from jaxopt_nn.interpret.flow.moves import reshaped_axes
from jaxopt_nn.interpret.inspect import inspect

X = jnp.ones((4, 8))


def site_of(info, name):
    return next(s for s in info.sites if s.name == name)


def test_a_dot_is_a_site_with_roles_and_macs():
    info = inspect(lambda v, x: x @ v["w"] + v["b"], {"w": jnp.ones((8, 16)), "b": jnp.ones((1, 16))}, X)
    (site,) = info.sites
    assert (site.name, site.kind, site.weight, site.leaf, site.derived) == ("w", "dot", 1, "w", False)
    assert info.roles["w"] == Roles((), (0,), (1,))
    assert site.macs == 4 * 8 * 16
    assert info.coverage == 1.0
    assert "b" not in info.roles and "add" in {leaf.path: leaf.reason for leaf in info.leaves}["b"]


@pytest.mark.parametrize(
    ("use", "shape", "roles"),
    [
        (lambda w, x: x @ w.T, (16, 8), Roles((), (1,), (0,))),
        (lambda w, x: x @ w.reshape(8, 6), (8, 2, 3), Roles((), (0,), (1, 2))),
        (lambda w, x: x @ w.reshape(8, 6), (2, 4, 6), Roles((), (0, 1), (2,))),
        (lambda w, x: jnp.einsum("bi,hid->bhd", x, w), (3, 8, 5), Roles((), (1,), (0, 2))),
        (lambda w, x: jnp.einsum("bi,ibo->bo", x, w), (8, 4, 5), Roles((1,), (0,), (2,))),
        (lambda w, x: x @ w[1], (3, 8, 5), Roles((0,), (1,), (2,))),
        (lambda w, x: x @ w.astype(jnp.bfloat16).astype(jnp.float32), (8, 5), Roles((), (0,), (1,))),
        (lambda w, x: jax.vmap(lambda row, m: m @ row)(x, w), (4, 5, 8), Roles((0,), (2,), (1,))),
        (lambda w, x: lax.scan(lambda c, m: (c @ m, None), x, w)[0], (3, 8, 8), Roles((0,), (1,), (2,))),
        (lambda w, x: lax.fori_loop(0, 3, lambda i, c: c @ w[i], x), (3, 8, 8), Roles((0,), (1,), (2,))),
        (lambda w, x: jax.checkpoint(lambda a, b: a @ b)(x, w), (8, 5), Roles((), (0,), (1,))),
        (lambda w, x: lax.cond(x[0, 0] > 0, lambda a: a @ w, lambda a: a @ w * 2, x), (8, 5), Roles((), (0,), (1,))),
        (lambda w, x: w[jnp.argmax(x, -1)], (8, 5), Roles((), (0,), (1,))),
        (
            lambda w, x: lax.conv_general_dilated(
                x.reshape(4, 2, 2, 2), w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            ),
            (3, 3, 2, 5),
            Roles((), (0, 1, 2), (3,), (0, 1)),
        ),
    ],
)
def test_roles_follow_layout(use, shape, roles):
    info = inspect(lambda v, x: use(v["w"], x), {"w": jnp.ones(shape)}, X)
    assert info.roles["w"] == roles
    assert info.coverage == 1.0


def test_second_use_and_activation_sites_are_numbered():
    def apply(v, x):
        h = x @ v["e"]
        with jax.named_scope("attention"):
            scores = h @ h.T
        return scores @ (h @ v["e"].T)

    info = inspect(apply, {"e": jnp.ones((8, 6))}, X)
    assert [s.name for s in info.sites] == ["e", "@attention#0", "e#1", "@#0"]
    assert info.roles["e"] == Roles((), (0,), (1,))
    assert any("e#1" in m.path for m in info.report.of("note"))


def test_macs_count_loop_iterations():
    w = jnp.ones((3, 8, 8))
    info = inspect(lambda v, x: lax.scan(lambda c, m: (c @ m, None), x, v)[0], w, X)
    assert info.sites[0].macs == 3 * 4 * 8 * 8
    assert info.sites[0].stack == (3,)


@pytest.mark.parametrize(
    ("apply", "by"),
    [
        (lambda w, x: lax.scan(lambda c, u: (jnp.tanh(c + u), None), w, x[None])[0], "scan"),  # a learned initial state
        (lambda w, x: lax.while_loop(lambda c: c.sum() < 9, lambda c: c + x, w), "while"),
        (lambda w, x: lax.cond(x.sum() > 0, lambda: w, lambda: 2 * w) @ x.T, "cond"),
        (lambda w, x: lax.cond(True, lambda: w, lambda: x), "cond"),
    ],
)
def test_a_leaf_that_becomes_an_activation_in_a_loop_or_a_branch_is_read(apply, by):
    (leaf,) = inspect(apply, jnp.ones((8, 8)), jnp.ones((8, 8))).leaves
    assert f"combined with an activation by `{by}`" in leaf.reason


def test_a_derived_weight_is_a_site_and_listed():
    info = inspect(lambda v, x: x @ (v["w"] * v["g"][None, :]), {"w": jnp.ones((8, 5)), "g": jnp.ones(5)}, X)
    (site,) = info.sites
    assert site.derived and site.leaf == "w" and site.leaves == ("w", "g")
    assert [m.kind for m in info.report] == ["derived"]
    assert info.coverage == 1.0


@pytest.mark.parametrize(
    ("use", "word"),
    [
        (lambda w, x: x.sum() * 0.0, "not read"),
        (lambda w, x: x[:, :5] + w[:4], "combined with an activation by `add`"),
        (lambda w, x: x[:, :5] * jnp.exp(w)[:4], "computed on before use by `exp`"),
        (lambda w, x: w, "reaches an output"),
    ],
)
def test_every_matrix_without_a_site_has_a_reason(use, word):
    info = inspect(lambda v, x: use(v["w"], x), {"w": jnp.ones((8, 5))}, X)
    (message,) = info.report.of("no site")
    assert message.path == "w" and word in message.reason
    assert info.coverage == 0.0


def test_a_weight_modulated_by_an_activation_is_named_so():
    info = inspect(lambda v, x: jnp.einsum("bi,bio->bo", x, v[None] * x[:, :, None]), jnp.ones((8, 5)), X)
    assert "combined with an activation by `mul`" in info.report.of("no site").messages[0].reason


def test_a_parameter_times_a_constant_is_a_site():
    info = inspect(lambda v, x: x @ (v["w"].T @ np.ones((8, 5), np.float32)).T[:, :8].T, {"w": jnp.ones((8, 8))}, X)
    assert info.sites[0].leaf == "w" and info.coverage == 1.0


def test_weights_closed_over_are_an_error_that_says_how_to_pass_them():
    w = jax.random.normal(jax.random.key(5), (8, 16))
    with pytest.raises(ValueError, match=r"closes over 128 numbers that look like weights.*apply\(variables, \*inputs\)"):
        inspect(lambda v, x: x @ w + v["b"], {"b": jnp.ones((1, 16))}, X)


def test_a_small_constant_matrix_is_listed_and_no_error():
    dct = np.eye(8, dtype=np.float32)
    info = inspect(lambda v, x: (x @ dct) @ v, jnp.ones((8, 16)), X)
    assert [m.kind for m in info.report] == ["constant"]


def test_a_gathered_constant_table_is_no_weight():
    table = np.ones((100, 8), np.float32)
    info = inspect(lambda v, x: (x + jnp.asarray(table)[x[:, 0].astype(int)]) @ v, jnp.ones((8, 4)), X)
    assert not info.report and [s.leaf for s in info.sites] == [""]


def test_no_arrays_is_an_error():
    with pytest.raises(ValueError, match="holds no array"):
        inspect(lambda v, x: x, {}, X)


def test_nothing_is_run():
    def apply(v, x):
        jax.debug.callback(lambda: pytest.fail("ran"))
        return x @ v

    assert inspect(apply, jax.ShapeDtypeStruct((8, 3), jnp.float32), jax.ShapeDtypeStruct((4, 8), jnp.float32)).sites


def test_the_table_prints_each_site():
    text = str(inspect(lambda v, x: x @ v["w"], {"w": jnp.ones((8, 16))}, X))
    assert "float32[4, 8] x float32[8, 16]" in text and "512" in text and "100.0%" in text


@pytest.mark.parametrize(
    ("old", "new", "pieces"),
    [
        ((2, 3, 4), (6, 4), [([0, 1], [0]), ([2], [1])]),
        ((6, 4), (2, 3, 4), [([0], [0, 1]), ([1], [2])]),
        ((2, 3), (3, 2), [([0, 1], [0, 1])]),
        ((4, 6, 5), (8, 3, 5), [([0, 1], [0, 1]), ([2], [2])]),
        ((0, 3), (3, 0), [([0, 1], [0, 1])]),
        ((), (1,), [([], [0])]),
    ],
)
def test_reshapes_factor(old, new, pieces):
    assert reshaped_axes(old, new) == pieces
