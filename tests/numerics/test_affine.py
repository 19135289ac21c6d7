"""Affine maps against numpy and finite differences, and their bits across programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxopt_nn.numerics import affine

F32 = np.float32
FMAX = float(np.finfo(F32).max)


def normal(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(F32)


def bits_equal(a, b):
    a, b = np.asarray(a), np.asarray(b)
    assert a.dtype == b.dtype and a.shape == b.shape
    np.testing.assert_array_equal(a.view(f"u{a.dtype.itemsize}"), b.view(f"u{b.dtype.itemsize}"))


def repeat(scale, shape):
    for axis, n in enumerate(shape):
        scale = np.repeat(scale, n // scale.shape[axis], axis)
    return scale


def np_codes(x, scale, zero, qmin, qmax):
    v = x * repeat(F32(1) / scale, x.shape)
    z = 0 if zero is None else repeat(zero, x.shape)
    return np.clip(np.round(v + (z - np.floor(z))) + np.floor(z), qmin, qmax).astype(F32)


def test_code_range():
    assert affine.code_range(8, True) == (-128, 127)
    assert affine.code_range(8, True, narrow=True) == (-127, 127)
    assert affine.code_range(3, False) == affine.code_range(3, False, narrow=True) == (0, 7)
    assert affine.code_range(1, True) == (-1, 0)
    for bad in (0, -1, 2.5, True):
        with pytest.raises(ValueError, match="bits="):
            affine.code_range(bad, True)
    with pytest.raises(ValueError, match="bits=1"):
        affine.code_range(1, True, narrow=True)


SHAPES = [((6, 8), (1, 8)), ((6, 8), (3, 8)), ((6, 8), (6, 4)), ((6, 8), (1, 1)), ((2, 6, 8), (2, 3, 1)), ((5,), (1,))]


@pytest.mark.parametrize("shape, scale_shape", SHAPES)
def test_groups(shape, scale_shape):
    x = normal(shape)
    scale = normal(scale_shape, 1)
    np.testing.assert_array_equal(affine.expand_groups(scale, shape), repeat(scale, shape))
    lo, hi = affine.minmax(x, scale_shape)
    cut = [e for d, n in zip(scale_shape, shape) for e in (d, n // d)]
    inner = tuple(range(1, 2 * len(shape), 2))
    np.testing.assert_array_equal(lo, x.reshape(cut).min(inner))
    np.testing.assert_array_equal(hi, x.reshape(cut).max(inner))
    np.testing.assert_array_equal(affine.abs_max(x, list(scale_shape)), np.abs(x).reshape(cut).max(inner))


def test_groups_that_do_not_fit():
    with pytest.raises(ValueError, match="same rank"):
        affine.expand_groups(jnp.ones(3), (2, 3))
    with pytest.raises(ValueError, match="axis 0 of the weight has 300 entries"):
        affine.expand_groups(jnp.ones((7, 1)), (300, 2))
    with pytest.raises(ValueError, match="groups do not divide"):
        affine.minmax(jnp.ones((4, 4)), (3, 4))
    assert affine.expand_groups(2.0, (2, 3)).shape == (2, 3)


def test_expand_groups_makes_no_gather():
    text = jax.jit(lambda s: affine.expand_groups(s, (6, 8))).lower(jnp.ones((3, 1))).as_text()
    assert "gather" not in text and "dot" not in text


def test_empty_array_has_range_zero():
    lo, hi = affine.minmax(jnp.zeros((0, 3)), (1, 3))
    assert lo.shape == (1, 3) and not lo.any() and not hi.any() and not affine.abs_max(jnp.zeros((0, 3)), (1, 3)).any()


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("lo, hi", [
    (-1.0, 2.0), (0.5, 2.0), (-3.0, -1.0), (0.0, 0.0), (-1e-45, 1e-45), (-1e-38, 2e-38), (-FMAX, FMAX), (0.0, FMAX),
    (-FMAX, 0.0), (-0.3 * FMAX, FMAX), (-FMAX, 1e-3),
])  # fmt: skip
def test_affine_params_are_finite_and_hold_zero(bits, lo, hi):
    for signed in (True, False):
        qmin, qmax = affine.code_range(bits, signed)
        scale, zero = affine.affine_params(F32(lo), F32(hi), qmin, qmax)
        assert 2.0**-126 <= scale <= 2.0**126
        assert zero == round(float(zero)) and qmin <= zero <= qmax
        ends = affine.dequantize(jnp.array([qmin, qmax], jnp.float32), scale, zero)
        assert np.isfinite(ends).all()
        x = jnp.array([lo, hi, 0.0], jnp.float32)
        y = affine.fake_quant(x, scale, zero, qmin, qmax)
        assert np.isfinite(y).all() and y[2] == 0
        if 1e-30 < max(abs(lo), abs(hi)) < 1e30 and bits > 1:
            np.testing.assert_allclose(y, x, atol=1.01 * float(scale))


def test_affine_params_are_the_closed_form():
    lo, hi = F32([-1.0, 0.5, -3.0]), F32([2.0, 2.0, -1.0])
    scale, zero = affine.affine_params(lo, hi, 0, 255)
    np.testing.assert_allclose(scale, np.array([3, 2, 3]) / 255, rtol=1e-6)
    np.testing.assert_array_equal(zero, [85, 0, 255])


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("amax", [0.0, 1e-45, 1e-38, 1.0, FMAX])
def test_symmetric_params(bits, amax):
    for signed in (True, False):
        qmin, qmax = affine.code_range(bits, signed)
        scale = affine.symmetric_params(F32(amax), qmin, qmax)
        assert 2.0**-126 <= scale <= 2.0**126
        if amax < 2.0**-126:
            assert scale == 1
        elif amax == 1:
            np.testing.assert_allclose(scale, 1 / max(qmax, 1), rtol=1e-6)
        y = affine.fake_quant(jnp.array([amax, -amax, 0.0], jnp.float32), scale, None, qmin, qmax)
        assert np.isfinite(y).all() and y[2] == 0


def test_bad_weights_show_in_the_scale():
    assert np.isnan(affine.symmetric_params(F32(np.nan), -8, 7))
    assert np.isinf(affine.symmetric_params(F32(np.inf), -8, 7))
    for bad in (np.nan, np.inf):
        assert not np.isfinite(affine.affine_params(F32(0), F32(bad), -8, 7)[0])
    assert not np.isfinite(affine.affine_params(F32(-np.inf), F32(1), -8, 7)[0])


def test_binary_is_sign_times_mean_magnitude():
    x = normal((40, 6))
    scale, zero = affine.binary_params(x, (2, 6))
    alpha = np.abs(x.reshape(2, 20, 6)).mean(1, keepdims=True)
    expected = (np.sign(x).reshape(2, 20, 6) * alpha).reshape(x.shape)
    np.testing.assert_allclose(affine.fake_quant(x, scale, zero, 0, 1), expected, rtol=1e-6)
    np.testing.assert_allclose(affine.fake_quant(x, scale, zero - 1, -1, 0), expected, rtol=1e-6)
    # eq. 5 and 6: no other scale of sign(x) is nearer
    error = lambda a: ((x.reshape(2, 20, 6) - a * np.sign(x).reshape(2, 20, 6)) ** 2).sum()
    assert error(alpha) < min(error(alpha * 1.01), error(alpha * 0.99))
    scale, _ = affine.binary_params(jnp.full((4, 1), FMAX), (1, 1))
    assert np.isfinite(scale).all()
    assert affine.binary_params(jnp.zeros((4, 1)), (1, 1))[0] == 1


@pytest.mark.exact
@settings(max_examples=30, deadline=None)
@given(st.sampled_from(SHAPES), st.integers(1, 8), st.booleans(), st.booleans(), st.integers(0, 99), st.floats(0.05, 2))
def test_quantize_is_numpy_s(shapes, bits, signed, zero_point, seed, shrink):
    """Codes equal numpy's where the range saturates too."""
    shape, scale_shape = shapes
    qmin, qmax = affine.code_range(bits, signed)
    x = normal(shape, seed)
    lo, hi = affine.minmax(x, scale_shape)
    scale, zero = affine.affine_params(lo, hi, qmin, qmax)
    scale, zero = np.asarray(scale * F32(shrink)), np.asarray(zero) if zero_point else None
    codes = affine.quantize(x, scale, zero, qmin, qmax)
    assert codes.dtype == jnp.float32
    np.testing.assert_array_equal(codes, np_codes(x, scale, zero, qmin, qmax))
    assert not np.signbit(np.asarray(codes)[np.asarray(codes) == 0]).any()
    offset = 0 if zero is None else repeat(zero, shape)
    bits_equal(affine.dequantize(codes, scale, zero), ((np.asarray(codes) - offset) * repeat(scale, shape)).astype(F32))


def test_round_half_to_even():
    x = jnp.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5])
    np.testing.assert_array_equal(affine.quantize(x, 1.0, None, -8, 7), [-2, -2, 0, 0, 2, 2])


@pytest.mark.parametrize("scale_shape", [(1, 64), (1, 1), (8, 64), (32, 64)])
def test_same_bits_in_every_program(scale_shape):
    """Eager, jitted, with the scale an argument, a constant, or computed in place; from int8 codes."""
    x = normal((32, 64))
    qmin, qmax = -4, 3

    def params(x):
        lo, hi = affine.minmax(x, scale_shape)
        return affine.affine_params(lo * 0.7, hi * 0.7, qmin, qmax)

    scale, zero = params(x)
    expected = affine.dequantize(affine.quantize(x, scale, zero, qmin, qmax), scale, zero)
    fake = lambda x, s, z: affine.fake_quant(x, s, z, qmin, qmax)
    bits_equal(fake(x, scale, zero), expected)
    bits_equal(jax.jit(fake)(x, scale, zero), expected)
    bits_equal(jax.jit(lambda x: fake(x, scale, zero))(x), expected)
    bits_equal(jax.jit(lambda x: fake(x, *params(x)))(x), expected)
    bits_equal(jax.vmap(fake, in_axes=(0, None, None))(x[None], scale, zero)[0], expected)
    codes = jax.jit(lambda x: affine.quantize(x, scale, zero, qmin, qmax).astype(jnp.int8))(x)
    bits_equal(jax.jit(lambda c: affine.dequantize(c, scale, zero))(codes), expected)
    bits_equal(params(x)[0], jax.jit(params)(x)[0])


def test_bfloat16_is_cast_once():
    x = jnp.asarray(normal((16, 8)), jnp.bfloat16)
    scale = affine.symmetric_params(affine.abs_max(x, (1, 8)), -7, 7)
    y = affine.fake_quant(x, scale, None, -8, 7)
    assert y.dtype == jnp.bfloat16
    wide = affine.dequantize(affine.quantize(x, scale, None, -8, 7), scale, None)
    bits_equal(y, wide.astype(jnp.bfloat16))


@pytest.mark.parametrize("zero", [None, 1.0, 0.5])
def test_derivatives(zero):
    """LSQ eq. 3 entry by entry, a code that is not cut counted as inside."""
    qmin, qmax, s = -2, 3, 0.5
    z = 0.0 if zero is None else zero
    v = np.array([qmin - z - 0.7, qmin - z, -0.6, 0.0, 0.3, 1.1, qmax - z, qmax - z + 0.4])
    x = jnp.asarray(v * s, jnp.float32)
    scale = jnp.float32(s)
    offset = None if zero is None else jnp.float32(zero)
    rounded = np.round(v + z % 1) + np.floor(z)
    inside = (rounded >= qmin) & (rounded <= qmax)
    assert list(inside) == [False, *[True] * 7], "0.7 of a code outside is cut, 0.4 is rounded back"
    codes = np.clip(rounded, qmin, qmax) - z
    per_entry = jax.vmap(jax.grad(lambda x, s: affine.fake_quant(x, s, offset, qmin, qmax), argnums=(0, 1)), (0, None))
    dx, ds = per_entry(x, scale)
    np.testing.assert_array_equal(dx, inside)
    np.testing.assert_allclose(ds, np.where(inside, codes - v, codes), atol=1e-6)
    through = jax.vmap(jax.grad(lambda x: affine.fake_quant(x, scale, offset, qmin, qmax, "pass")))(x)
    np.testing.assert_array_equal(through, np.ones(8))
    if zero is not None:
        dz = jax.vmap(jax.grad(lambda z, x: affine.fake_quant(x, scale, z, qmin, qmax)), (None, 0))(offset, x)
        np.testing.assert_array_equal(dz, np.where(inside, 0.0, -s))


def test_scale_derivative_outside_is_a_finite_difference():
    x, eps = jnp.array([9.0, -9.0]), 1e-3
    f = lambda s: affine.fake_quant(x, s, jnp.float32(1), -4, 3)
    _, slope = jax.jvp(f, (jnp.float32(0.5),), (jnp.float32(1),))
    np.testing.assert_allclose(slope, (f(0.5 + eps) - f(0.5 - eps)) / (2 * eps), rtol=1e-3)
    np.testing.assert_array_equal(slope, [2, -5])


@pytest.mark.parametrize("shape, scale_shape", SHAPES)
def test_scale_gradient_is_summed_over_its_group(shape, scale_shape):
    x, scale = normal(shape), np.abs(normal(scale_shape, 1)) * F32(0.3) + F32(0.1)
    weight = normal(shape, 2)
    loss = lambda x, s: jnp.sum(weight * affine.fake_quant(x, s, None, -4, 3))
    dx, ds = jax.jit(jax.grad(loss, argnums=(0, 1)))(x, scale)
    v = x / repeat(scale, shape)
    inside = (np.round(v) >= -4) & (np.round(v) <= 3)
    each = weight * (np.clip(np.round(v), -4, 3) - np.where(inside, v, 0))
    cut = [e for d, n in zip(scale_shape, shape) for e in (d, n // d)]
    np.testing.assert_allclose(ds, each.reshape(cut).sum(tuple(range(1, 2 * len(shape), 2))), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(dx, weight * inside)


def test_integer_zero_and_bfloat16_scale_are_differentiable_around():
    x = jnp.asarray(normal((4, 2)), jnp.bfloat16)
    zero = jnp.ones((1, 2), jnp.int8)
    loss = lambda x, s: jnp.sum(affine.fake_quant(x, s, zero, -8, 7).astype(jnp.float32))
    dx, ds = jax.grad(loss, argnums=(0, 1))(x, jnp.full((1, 2), 0.25, jnp.bfloat16))
    assert dx.dtype == ds.dtype == jnp.bfloat16 and dx.shape == x.shape


@pytest.mark.parametrize("zero", [None, 1.0, 0.5])
def test_the_true_derivatives_are_finite_differences(zero):
    """``ste="none"``, in all three arguments, between the jumps of rounding and clipping."""
    qmin, qmax, eps = -2, 3, 1e-3
    x = jnp.array([-2.2, -0.6, 0.1, 0.55, 1.4, 2.6], jnp.float32)
    scale = jnp.float32(0.5)
    f = lambda x, s, z: affine.fake_quant(x, s, z, qmin, qmax, "none")
    if zero is None:
        _, slope = jax.jvp(lambda x, s: f(x, s, None), (x, scale), (jnp.ones(6), jnp.float32(1)))
        expected = (f(x + eps, scale + eps, None) - f(x - eps, scale - eps, None)) / (2 * eps)
        np.testing.assert_allclose(slope, expected, rtol=1e-3, atol=1e-4)
        return
    offset = jnp.float32(zero)
    along_x = jax.jvp(lambda x: f(x, scale, offset), (x,), (jnp.ones(6),))[1]
    np.testing.assert_array_equal(along_x, np.zeros(6))
    along_s = jax.jvp(lambda s: f(x, s, offset), (scale,), (jnp.float32(1),))[1]
    np.testing.assert_allclose(
        along_s, (f(x, 0.5 + eps, offset) - f(x, 0.5 - eps, offset)) / (2 * eps), rtol=1e-3, atol=1e-4
    )
    along_z = jax.jvp(lambda z: f(x, scale, z), (offset,), (jnp.float32(1),))[1]
    np.testing.assert_array_equal(along_z, np.full(6, -0.5))
    if zero % 1:  # an integer is itself a jump, of the floor
        np.testing.assert_allclose(
            along_z, (f(x, scale, offset + eps) - f(x, scale, offset - eps)) / (2 * eps), rtol=1e-3
        )


@pytest.mark.parametrize("ste", ["clip", "pass", "none"])
def test_derivatives_under_a_key(ste):
    """The same draw in value and derivative; typed and raw keys; vmap shares the draw."""
    x, scale, key = jnp.asarray(normal((40,))), jnp.float32(0.5), jax.random.key(3)
    f = lambda x, s: affine.fake_quant(x, s, None, -2, 3, ste, key=key)
    codes = affine.quantize(x, scale, None, -2, 3, key=key)
    bits_equal(jax.jit(f)(x, scale), codes * scale)
    v = np.asarray(x) / F32(0.5)
    inside = (np.round(v) >= -2) & (np.round(v) <= 3)
    dx, ds = jax.jit(jax.grad(lambda x, s: jnp.sum(f(x, s)), argnums=(0, 1)))(x, scale)
    np.testing.assert_array_equal(dx, {"clip": inside, "pass": np.ones(40), "none": np.zeros(40)}[ste])
    each = np.asarray(codes) - np.where(inside & (ste != "none"), v, 0)
    np.testing.assert_allclose(ds, each.sum(), rtol=1e-5)
    raw = affine.fake_quant(x, scale, None, -2, 3, ste, key=jax.random.key_data(key))
    bits_equal(raw, f(x, scale))
    stacked = jax.vmap(jax.grad(lambda x: jnp.sum(f(x, scale))))(jnp.stack([x, x]))
    np.testing.assert_array_equal(stacked, np.stack([dx, dx]))


def test_bad_ste():
    with pytest.raises(ValueError, match="ste='round'"):
        affine.fake_quant(jnp.ones(3), 1.0, None, -8, 7, ste="round")


def test_stochastic_rounding_is_unbiased_and_exact_on_codes():
    x = jnp.full((20_000,), 0.3)
    codes = affine.quantize(x, 1.0, None, -8, 7, key=jax.random.key(0))
    assert set(np.unique(codes)) == {0.0, 1.0}
    assert abs(float(codes.mean()) - 0.3) < 4 * np.sqrt(0.21 / 20_000)
    exact = jnp.tile(jnp.array([-8.0, 0.0, 3.0, 127.0]), 5000)
    np.testing.assert_array_equal(affine.quantize(exact, 1.0, None, -128, 127, key=jax.random.key(1)), exact)
    wide = affine.quantize(jnp.array([1e30, -1e30, jnp.nan]), 1.0, None, -128, 127, key=jax.random.key(1))
    np.testing.assert_array_equal(wide, [127, -128, np.nan])
