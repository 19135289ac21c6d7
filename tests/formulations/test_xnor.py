"""Products of signs: every form of the weight gives the float product's whole numbers, to the bit; the rule and its twin."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

import jaxopt_nn as jn
from jaxopt_nn.formulations import binary, cpu
from jaxopt_nn.formulations.labels import Call
from jaxopt_nn.formulations.table import choices
from jaxopt_nn.numerics import signs
from jaxopt_nn.tensors.binary import Binary

FORMS = {
    "stored": lambda q: q,
    "words": cpu.words,
    "int8": cpu.by_outputs,
    "floats": cpu.decoded,
    "int8, as it lies": lambda q: q.expand(),
}


def normal(shape, seed=0):
    """With zeros of both signs, which count as +1."""
    x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    x.reshape(-1)[::7], x.reshape(-1)[::11] = 0.0, -0.0
    return jnp.asarray(x)


def sign(x):
    return np.where(np.asarray(x) >= 0, 1.0, -1.0).astype(np.float32)


@settings(max_examples=6)
@given(st.integers(1, 70), st.integers(1, 5), st.integers(1, 9), st.integers(1, 3), st.integers(0, 2**31))
def test_words_multiply_as_signs_do(length, m, n, b, seed):
    rng = np.random.default_rng(seed)
    x, w = rng.random((b, m, length)) < 0.5, rng.random((b, length, n)) < 0.5
    rows = jnp.moveaxis(signs.pack_words(jnp.asarray(x), -1), -1, 0)
    columns = jnp.moveaxis(signs.pack_words(jnp.asarray(w), 1), 1, 0)
    out = signs.product(rows, columns, length)
    assert out.dtype == jnp.int32
    np.testing.assert_array_equal(out, np.where(x, 1, -1) @ np.where(w, 1, -1))
    np.testing.assert_array_equal(signs.unpack_words(signs.pack_words(jnp.asarray(x), -1), length, -1), x)


#: Shapes of the weight and the activation, contracted and batch axes of (left, right), and which of them is the weight.
DOTS = {
    "matrix": ((37, 5), (3, 37), ((1,), (0,)), ((), ()), 1),
    "weight at the left": ((5, 65), (65, 4), ((1,), (0,)), ((), ()), 0),
    "a vector": ((33, 4), (33,), ((0,), (0,)), ((), ()), 1),
    "batched": ((2, 33, 4), (2, 3, 33), ((2,), (1,)), ((0,), (0,)), 1),
    "two contracted axes": ((3, 7, 4), (2, 3, 7), ((1, 2), (0, 1)), ((), ()), 1),
    "two free axes": ((40, 3, 4), (2, 5, 40), ((2,), (0,)), ((), ()), 1),
    "batched at the left": ((3, 4, 9), (9, 3, 2), ((2,), (0,)), ((0,), (1,)), 0),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", DOTS)
def test_dots(name, form):
    w_shape, x_shape, contracted, batch, side = DOTS[name]
    w, x, dims = normal(w_shape), normal(x_shape, 1), (contracted, batch)
    q = FORMS[form](Binary.from_signs(w >= 0))
    left, right = (sign(x), sign(w)) if side else (sign(w), sign(x))
    expected = lax.dot_general(left, right, dims, precision="highest")
    found = jax.jit(lambda q, x: binary.sums(q, x, Call(dims, side, None, "float32", 1)))(q, x)
    assert found.dtype == (jnp.float32 if form == "floats" else jnp.int32)
    np.testing.assert_array_equal(found, expected)


def test_every_axis_that_may_be_packed():
    w, x = normal((37, 6)), normal((4, 37), 1)
    call = Call((((1,), (0,)), ((), ())), 1, None, "float32", 1)
    for axis in (0, 1):
        q = Binary.from_signs(w >= 0, axis=axis)
        for held in (q, q.transpose((1, 0)).transpose((1, 0)), q.words(axis)):
            np.testing.assert_array_equal(binary.sums(held, x, call), sign(x) @ sign(w))


CONVS = {
    "same": ((3, 3, 7, 4), (2, 9, 8, 7), {"padding": "SAME"}),
    "strided": ((3, 3, 7, 4), (2, 9, 8, 7), {"window_strides": (2, 1), "padding": "VALID"}),
    "groups": ((3, 3, 3, 8), (2, 9, 8, 6), {"padding": ((1, 2), (3, -1)), "feature_group_count": 2, "rhs_dilation": (2, 1)}),
    "depthwise": ((3, 3, 1, 6), (2, 5, 8, 6), {"padding": "SAME", "feature_group_count": 6}),
    "transposed": ((2, 3, 3, 8), (2, 9, 8, 3), {"padding": ((1, 2), (3, 1)), "lhs_dilation": (2, 3)}),
    "a line": ((5, 33, 4), (2, 11, 33), {"padding": ((4, 0),)}),
    "a point": ((1, 1, 40, 3), (2, 4, 4, 40), {"padding": "VALID"}),
}
LAYOUTS = {3: ("NWC", "WIO", "NWC"), 4: ("NHWC", "HWIO", "NHWC")}


def convolution(name, layout=None):
    w_shape, x_shape, options = CONVS[name]
    options = {"window_strides": (1,) * (len(w_shape) - 2), "dimension_numbers": layout or LAYOUTS[len(w_shape)], **options}
    return normal(w_shape), normal(x_shape, 1), lambda x, w: lax.conv_general_dilated(x, w, **options)


def params_of(conv, x, w):
    return jax.make_jaxpr(conv)(x, w).eqns[0].params


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CONVS)
def test_convolutions(name, form):
    """Padding counts for nothing: it is zero in the float convolution of signs."""
    w, x, conv = convolution(name)
    q, params = FORMS[form](Binary.from_signs(w >= 0)), params_of(conv, x, w)
    found = jax.jit(lambda q, x: binary.conv_sums(q, x, params))(q, x)
    np.testing.assert_array_equal(found, conv(jnp.asarray(sign(x)), jnp.asarray(sign(w))))


def test_channels_first():
    w, x, conv = convolution("same", ("NCHW", "OIHW", "NCHW"))
    w, x = w.transpose((3, 2, 0, 1)), x.transpose((0, 3, 1, 2))
    q = Binary.from_signs(w >= 0, jnp.arange(1.0, 5.0).reshape(4, 1, 1, 1))
    for held in (q, cpu.words(q), q.expand()):
        out = binary.conv(held, x, params_of(conv, x, w))
        np.testing.assert_array_equal(out, conv(jnp.asarray(sign(x)), q.densify()))
    assert cpu.words(q).axis == -3


# -- the rule --------------------------------------------------------------------------------------------------------------


def packed(w, **kw):
    method = jn.binarize(**kw)
    return method.pack({"w": w}, method.init({"w": w}))


def test_a_dot_is_the_papers_formula():
    w, x = normal((40, 6)), normal((3, 40), 1)
    net = jn.Network(lambda v, x: x @ v["w"], packed(w), rules=jn.xnor())
    alpha, k = np.abs(w).mean(0), np.abs(x).mean(1, keepdims=True)
    np.testing.assert_allclose(net(x), sign(x) @ sign(w) * alpha * k, rtol=1e-6)
    plain = net.replace(rules=jn.xnor(scales=False))
    np.testing.assert_array_equal(plain(x), sign(x) @ sign(w) * np.asarray(net.variables["w"].scale))


def test_k_of_a_convolution_is_the_box_filtered_mean_over_channels():
    """By loops over every place (section 3.2)."""
    w, x, conv = convolution("same")
    net = jn.Network(lambda v, x: conv(x, v["w"]), packed(w), rules=jn.xnor())
    a = np.abs(np.asarray(x)).mean(-1)
    k = np.zeros_like(a)
    for b, i, j in np.ndindex(a.shape):
        k[b, i, j] = a[b, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].sum() / 9
    expected = np.asarray(conv(jnp.asarray(sign(x)), jnp.asarray(sign(w)))) * np.abs(w).mean((0, 1, 2)) * k[..., None]
    np.testing.assert_allclose(net(x), expected, rtol=1e-5, atol=1e-6)


SITES = {
    **{name: (normal(w), normal(x, 1), lambda x, w, d=(c, b), s=s: lax.dot_general(*((x, w) if s else (w, x)), d))
       for name, (w, x, c, b, s) in DOTS.items() if name not in ("batched", "batched at the left")},
    **{name: convolution(name) for name in CONVS},
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [name if name in ("matrix", "strided") else pytest.param(name, marks=pytest.mark.slow) for name in SITES]
)
def test_the_twin_in_float_gives_the_same_numbers(name):
    w, x, site = SITES[name]
    stored, rule = packed(w, scale="layer"), jn.xnor()
    apply = lambda v, x: site(x, v["w"])
    view = jn.densify(stored)
    net = jn.Network(apply, stored, rules=rule)
    expected = jn.Network(apply, view, rules=rule.training)(x)
    for held in (net, net.prepared(), net.replace(variables=jn.prepare(stored)), net.prepared("tpu")):
        np.testing.assert_allclose(jax.jit(lambda n, x: n(x))(held, x), expected, rtol=1e-6)
    assert not net.run.explain(net.prepared().variables, x).of("float", "stored")
    mean = lambda v, x: jnp.sum(jn.rewrite(apply, rule.training)(v, x))
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(jax.grad(mean, (0, 1))(view, x)))


def test_the_gradient_of_a_sign_is_one_inside_and_zero_outside():
    w, x = normal((5, 3)), jnp.array([[0.5, -1.0, 1.5, 0.0, -3.0]])
    run = jn.rewrite(lambda v, x: x @ v["w"], jn.xnor(scales=False).training)
    slope = jax.grad(lambda x: run({"w": w}, x).sum())(x)
    inside = np.array([1, 1, 0, 1, 0])
    np.testing.assert_allclose(slope[0], [inside[i] * np.asarray(w)[i].sum() for i in range(5)], rtol=1e-6)


def test_words_run_where_the_rule_is_and_what_runs_is_told():
    stored = packed(normal((40, 6)))
    net = jn.Network(lambda v, x: x @ v["w"], stored, rules=jn.xnor()).prepared()
    assert net.variables["w"].codes.dtype == jnp.uint32 and net.variables["w"].nbytes == 2 * 6 * 4 + 6 * 4
    with choices() as found:
        jax.eval_shape(net.run, net.variables, normal((3, 40)))
    assert [choice.program for choice in found] == ["exclusive or and population count"]
    assert net.replace(rules=()).prepared().variables["w"].codes.dtype == jnp.float32
    text = str(jax.make_jaxpr(lambda n, x: n(x))(net, normal((3, 40))))
    assert "population_count" in text and "dot_general" not in text


def test_what_is_no_binary_weight_is_left_alone_and_named():
    v = {"a": normal((64, 8)), "b": normal((8, 64), 1), "head": normal((64, 3), 2)}
    method = jn.by_path([("a", jn.binarize()), ("b", jn.quantize(4))])
    stored = method.pack(v, method.init(v))
    apply = lambda v, x: x @ v["a"] @ v["b"] @ v["head"]
    net, x = jn.Network(apply, stored, rules=jn.xnor()).prepared(), normal((2, 64), 3)
    said = net.run.explain(net.variables, x).of("float")
    assert [m.path for m in said] == ["b", "head"] and "rule xnor does not take" in said.messages[0].reason
    own = jn.Network(apply, stored, rules=[("a", jn.xnor()), ("**", jn.identity_rule())])
    np.testing.assert_array_equal(net(x), own(x))


def test_a_tied_decoder_has_its_scales_along_what_it_sums_over():
    stored, x = packed(normal((64, 8))), normal((2, 64), 1)
    apply = lambda v, x: x @ v["w"] @ v["w"].T
    net = jn.Network(apply, stored, rules=jn.xnor())
    assert [m.path for m in net.run.explain(net.prepared().variables, x).of("float")] == ["w#1"]
    own = jn.rewrite(lambda v, x: x @ v["w"], jn.xnor())(stored, x) @ jn.densify(stored)["w"].T
    np.testing.assert_allclose(net(x), own, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_program_for_any_batch(tmp_path):
    conv = CONVS["same"][2]
    v = {"conv": normal((3, 3, 8, 16)), "w": normal((576, 10))}

    def apply(v, x):
        options = {"window_strides": (1, 1), "dimension_numbers": LAYOUTS[4], **conv}
        y = lax.conv_general_dilated(x, v["conv"], **options)
        return (y - y.mean((1, 2), keepdims=True)).reshape(x.shape[0], -1) @ v["w"]

    method, x = jn.binarize(), normal((5, 6, 6, 8), 1)
    stored = method.pack(v, method.init(v, jn.inspect(apply, v, x)))
    net = jn.Network(apply, stored, rules=jn.xnor())
    artifact = jn.save(tmp_path / "net", net, programs=jn.exported(net, (x[:2],)))
    np.testing.assert_allclose(jn.load(artifact)(x), net(x), rtol=1e-6)


def test_a_config_names_it():
    from jaxopt_nn.pipeline import registry

    assert registry.rule("xnor") is jn.xnor() and registry.rule("xnor-unscaled") is jn.xnor(scales=False)
    stage, = registry.stages([{
        "name": "x", "method": "binarize", "where": "**/a", "gradient": "scaled", "rule": {"**/a": "xnor", "**": ""},
    }])  # fmt: skip
    assert stage.rule == (("**/a", jn.xnor()), ("**", jn.identity_rule())) == stage.cases
    with pytest.raises(ValueError, match="allowed are True"):
        jn.xnor(scales=2)
