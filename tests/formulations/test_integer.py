"""Integer dots and convolutions against NumPy's int64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from jaxopt_nn.formulations import integer, products
from jaxopt_nn.formulations.prepare import prepare
from jaxopt_nn.numerics import affine
from jaxopt_nn.tensors.qtensor import QTensor

dot8 = functools.partial(products.dot, activations=8)


def rows(x, axes):
    """Codes (int64) and scales of symmetric rows, in NumPy."""
    scale = np.abs(x).max(axes, keepdims=True).astype(np.float32) * np.float32(1 / 127)
    scale = np.where(scale == 0, np.float32(1), scale)
    return np.rint(x * (np.float32(1) / scale)).astype(np.int64), scale


def tensor(w, bits, scale_shape, signed=True, symmetric=True):
    qmin, qmax = affine.code_range(bits, signed)
    lo, hi = affine.minmax(w, scale_shape)
    if symmetric:
        scale, zero = affine.symmetric_params(jnp.maximum(-lo, hi), qmin, qmax), None
    else:
        scale, zero = affine.affine_params(lo, hi, qmin, qmax)
    return QTensor.quantize(w, scale, zero, bits=bits, signed=signed)


@settings(max_examples=12)
@given(
    st.integers(2, 8),
    st.booleans(),
    st.sampled_from([(1, 1), (1, 6), (4, 6), (4, 1), (16, 6)]),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_dots(bits, signed, scale_shape, symmetric, seed):
    rng = np.random.default_rng(seed)
    w, x = rng.standard_normal((16, 6), np.float32) + 0.3, rng.standard_normal((5, 16), np.float32)
    t = tensor(jnp.asarray(w), bits, scale_shape, signed, symmetric or not signed)
    codes, s_x = rows(x, (1,))
    c = np.asarray(t.elementwise(), np.int64)
    zero = np.zeros_like(w) if t.zero is None else np.asarray(affine.expand_groups(t.zero.astype(jnp.float32), w.shape))
    s_w = np.asarray(affine.expand_groups(t.scale, w.shape), np.float64)
    expected = (codes * s_x.astype(np.float64)) @ ((c - zero) * s_w)
    dims = (((1,), (0,)), ((), ()))
    for form in (t, prepare(t, "cpu")):
        out = dot8(jnp.asarray(x), form, dims)
        np.testing.assert_allclose(out, expected, rtol=2e-5, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("lhs", "w", "dims", "spec", "scale_shape"),
    [
        ((2, 3, 8), (8, 4, 5), (((2,), (0,)), ((), ())), "bti,iho->btho", (1, 4, 5)),
        ((2, 3, 4, 5), (4, 5, 8), (((2, 3), (0, 1)), ((), ())), "btho,hoi->bti", (1, 1, 8)),
        ((3, 7, 8), (3, 8, 5), (((2,), (1,)), ((0,), (0,))), "ebi,eio->ebo", (3, 1, 5)),
        ((3, 7, 8), (3, 8, 5), (((2,), (1,)), ((0,), (0,))), "ebi,eio->ebo", (3, 2, 5)),
        ((7, 3, 8), (5, 8, 3), (((2,), (1,)), ((1,), (2,))), "bei,oie->ebo", (5, 1, 3)),
    ],
)
def test_any_axes_on_either_side(rng, lhs, w, dims, spec, scale_shape):
    x, weight = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in (lhs, w))
    t = tensor(weight, 8, scale_shape)
    codes, scale = integer.quantize_rows(x, dims[0][0])
    expected = jnp.einsum(spec, codes * scale, t.densify(), precision="highest")
    np.testing.assert_allclose(dot8(x, t, dims), expected, rtol=1e-4, atol=1e-4)
    flipped = tuple((b, a) for a, b in dims)
    swapped = dot8(t, x, flipped)
    reference = lax.dot_general(t.densify(), codes * scale, flipped, precision="highest")
    np.testing.assert_allclose(swapped, reference, rtol=1e-4, atol=1e-4)


def test_two_grouped_axes(rng):
    x, w = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((3, 4, 8), (4, 8, 5)))
    t = tensor(w, 8, (4, 2, 5))
    codes, scale = integer.quantize_rows(x, (1, 2))
    expected = jnp.einsum("bij,ijo->bo", codes * scale, t.densify(), precision="highest")
    np.testing.assert_allclose(dot8(x, t, (((1, 2), (0, 1)), ((), ()))), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("signed", [True, False])
def test_a_long_contraction_does_not_overflow_int32(signed):
    """2^18 products of the largest codes: beyond int32 in one sum."""
    n = 2**18
    w = jnp.full((n, 1), -1.0 if signed else 1.0)
    t = QTensor.quantize(w, jnp.full((1, 1), 1 / 128 if signed else 1 / 255), None, bits=8, signed=signed)
    out = dot8(jnp.ones((1, n)), t, (((1,), (0,)), ((), ())))
    assert 127 * 128 * n > 2**31
    np.testing.assert_allclose(out, float(n) * float(w[0, 0]), rtol=1e-5)


@pytest.mark.parametrize("strides,groups,dilation", [((1, 1), 1, (1, 1)), ((2, 1), 1, (1, 2)), ((1, 1), 4, (1, 1))])
def test_convolutions(rng, strides, groups, dilation):
    x = jnp.asarray(rng.standard_normal((2, 7, 6, 4)), jnp.float32)
    w = jnp.asarray(rng.standard_normal((3, 3, 4 // groups, 8)), jnp.float32)
    t = tensor(w, 8, (1, 1, 1, 8))
    numbers = lax.conv_dimension_numbers(x.shape, w.shape, ("NHWC", "HWIO", "NHWC"))
    params = {
        "window_strides": strides,
        "padding": ((1, 1), (2, 0)),
        "lhs_dilation": (1, 1),
        "rhs_dilation": dilation,
        "dimension_numbers": numbers,
        "feature_group_count": groups,
        "batch_group_count": 1,
        "precision": None,
        "preferred_element_type": None,
    }
    codes, scale = integer.quantize_rows(x, (1, 2, 3))
    assert scale.shape == (2, 1, 1, 1) and int(jnp.abs(codes).max()) == 127
    expected = lax.conv_general_dilated(codes * scale, t.densify(), **{**params, "precision": "highest"})
    np.testing.assert_allclose(products.conv(x, t, params, activations=8), expected, rtol=1e-4, atol=1e-4)
    by_tap = tensor(w, 8, (3, 1, 1, 8))
    assert products.conv(x, by_tap, params, activations=8) is NotImplemented


def test_an_empty_row_and_a_bfloat16_row():
    codes, scale = integer.quantize_rows(jnp.array([[0.0, 0.0], [1.25, -2.0]], jnp.bfloat16), (1,), 4)
    np.testing.assert_array_equal(codes, [[0, 0], [4, -7]])
    np.testing.assert_array_equal(scale[0], [1.0])
    assert codes.dtype == jnp.int8 and scale.dtype == jnp.float32


def test_integers_are_what_the_compiler_sees():
    t = tensor(jax.random.normal(jax.random.key(0), (16, 6)), 4, (1, 6))
    text = str(jax.make_jaxpr(lambda x, t: dot8(x, t, (((1,), (0,)), ((), ()))))(jnp.ones((2, 16)), t))
    assert "preferred_element_type=int32" in text


def test_a_large_zero_point_cancels_exactly():
    """Codes near 255 with a zero point of 250: the float sum would lose what is left after the cancellation."""
    n = 2**14
    codes = np.full((n, 1), 251, np.uint8)
    t = QTensor.from_codes(jnp.asarray(codes), jnp.ones((1, 1)), jnp.full((1, 1), 250), bits=8, signed=False)
    x = np.full((1, n), 127, np.float32)
    x[0, 0] = 1.0
    out = dot8(jnp.asarray(x), t, (((1,), (0,)), ((), ())))
    assert float(out[0, 0]) == 127.0 * (n - 1) + 1


@pytest.mark.parametrize(
    "shape, axes",
    [((2, 256), (1,)), ((1, 261), (1,)), ((2, 9, 30, 1), (1, 2, 3)), ((300, 2), (0,)), ((2, 5), (1,)), ((259,), (0,))],
)
def test_pieces_of_a_row_give_its_largest_entry(rng, shape, axes):
    """Whole pieces, pieces that overlap, several axes, axes that do not stand last, few entries; wherever the largest lies."""
    x = rng.standard_normal(shape).astype(np.float32)
    for at in range(0, x.size, 5):
        y = x.copy()
        y.flat[at] = -9.0 if at % 2 else np.nan
        found = integer.row_scale(jnp.asarray(y), axes, folded=True)
        np.testing.assert_array_equal(found, integer.row_scale(jnp.asarray(y), axes))
        assert found.shape == tuple(1 if a in axes else n for a, n in enumerate(shape))
