"""Weight-only dots and convolutions against dense ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxopt_nn.formulations import products
from jaxopt_nn.formulations.prepare import prepare
from jaxopt_nn.numerics import affine
from jaxopt_nn.tensors.qtensor import QTensor


def normal(shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def make(shape, scale_shape, bits=4, signed=True, zero=False, dtype=jnp.float32):
    x = normal(shape)
    qmin, qmax = affine.code_range(bits, signed)
    lo, hi = affine.minmax(x * 0.7, scale_shape)
    scale, offset = affine.affine_params(lo, hi, qmin, qmax)
    return QTensor.quantize(x, scale, offset if zero else None, bits=bits, signed=signed, dtype=dtype)


def dot(q, x, numbers, side="rhs", **options):
    return products.dot(*((q, x) if side == "lhs" else (x, q)), numbers, **options)


# weight shape, scale shape, other shape, ((weight contracted, other contracted), (weight batch, other batch))
DOTS = {
    "matrix": ((16, 6), (1, 6), (3, 16), ((0,), (1,)), ((), ())),
    "vector": ((16, 6), (1, 6), (16,), ((0,), (0,)), ((), ())),
    "transposed": ((6, 16), (6, 1), (3, 16), ((1,), (1,)), ((), ())),
    "groups": ((16, 6), (4, 6), (3, 16), ((0,), (1,)), ((), ())),
    "more rows than a group holds": ((16, 6), (4, 6), (5, 16), ((0,), (1,)), ((), ())),
    "groups of outputs": ((16, 6), (1, 3), (2, 5, 16), ((0,), (2,)), ((), ())),
    "scale of each input": ((16, 6), (16, 1), (3, 16), ((0,), (1,)), ((), ())),
    "heads": ((8, 2, 6), (1, 2, 6), (3, 4, 8), ((0,), (2,)), ((), ())),
    "heads joined": ((2, 8, 6), (2, 2, 6), (3, 2, 8), ((0, 1), (1, 2)), ((), ())),
    "contracted in another order": ((2, 8, 6), (1, 2, 6), (8, 3, 2), ((1, 0), (0, 2)), ((), ())),
    "batched": ((4, 16, 6), (4, 1, 6), (4, 3, 16), ((1,), (2,)), ((0,), (0,))),
    "batched groups": ((4, 16, 6), (4, 4, 6), (3, 16, 4), ((1,), (1,)), ((0,), (2,))),
    "one scale": ((16, 6), (1, 1), (3, 16), ((0,), (1,)), ((), ())),
    "nothing contracted": ((4, 6), (1, 6), (3,), ((), ()), ((), ())),
}


@pytest.mark.parametrize("side, form, zero", [("rhs", "stored", False), ("lhs", "cpu", False), ("rhs", "cpu", True)])
@pytest.mark.parametrize("name", DOTS)
def test_dot_is_the_dense_one(name, side, form, zero):
    shape, scale_shape, other_shape, contracted, batch = DOTS[name]
    q = make(shape, scale_shape, 4, signed=not zero, zero=zero)
    q = prepare(q, "cpu") if form == "cpu" else q
    x = normal(other_shape, 1)
    swap = (lambda pair: pair) if side == "lhs" else (lambda pair: pair[::-1])
    numbers = (swap(contracted), swap(batch))

    @jax.jit
    def both(q, x):
        dense = q.densify()
        pair = (dense, x) if side == "lhs" else (x, dense)
        return dot(q, x, numbers, side), lax.dot_general(*pair, numbers)

    out, expected = both(q, x)
    assert out.dtype == expected.dtype
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("preferred", [None, jnp.float32])
def test_narrow_activations(dtype, preferred):
    q = make((64, 6), (4, 6), 8, signed=False, zero=True, dtype=dtype)
    x = normal((2, 64), 1, dtype)
    numbers = (((1,), (0,)), ((), ()))
    out = dot(q, x, numbers, dtype=preferred)
    assert out.dtype == (preferred or dtype)
    exact = np.asarray(x, np.float64) @ (
        (np.asarray(q.elementwise(), np.float64) - np.repeat(q.zero, 16, 0)) * np.repeat(q.scale, 16, 0)
    )
    np.testing.assert_allclose(np.asarray(out, np.float64), exact, rtol=1e-2 if preferred is None else 1e-5, atol=1e-2)


def test_a_large_zero_point_does_not_cancel():
    """Off-centre codes: the dot is as exact as the dense one, not as the sum of 255 times the activations."""
    codes = jnp.asarray(np.random.default_rng(0).integers(250, 256, size=(4096, 4)), jnp.uint8)
    q = QTensor.from_codes(codes, jnp.ones((1, 4)), jnp.full((1, 4), 252.0), bits=8, signed=False)
    x = jnp.abs(normal((1, 4096), 1)) + 1
    exact = np.asarray(x, np.float64) @ (np.asarray(codes, np.float64) - 252)
    np.testing.assert_allclose(dot(q, x, (((1,), (0,)), ((), ()))), exact, rtol=5e-6)


def test_gradients_reach_the_other_operand():
    q = make((16, 6), (4, 6))
    numbers = (((1,), (0,)), ((), ()))
    for dtype, tol in ((jnp.float32, 1e-5), (jnp.bfloat16, 3e-2)):
        x = normal((3, 16), 1, dtype)
        run = jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(dot(q, x, numbers).astype(jnp.float32)))))
        plain = jax.grad(lambda x: jnp.sum(jnp.sin(x.astype(jnp.float32) @ q.densify())))
        np.testing.assert_allclose(run(x).astype(jnp.float32), plain(x).astype(jnp.float32), rtol=tol, atol=tol)


def test_stacked_dots_under_scan_and_vmap():
    x = normal((2, 16), 1)
    w = normal((3, 16, 16))
    q = QTensor.quantize(w, jnp.full((3, 1, 16), 0.3), bits=3, stack=(0,))
    numbers = (((1,), (0,)), ((), ()))
    expected = x
    for layer in q.densify():
        expected = expected @ layer
    for form in (q, prepare(q, "cpu")):
        out, _ = lax.scan(lambda c, t: (dot(t, c, numbers), None), x, form)
        np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)
        outs = jax.vmap(lambda t: dot(t, x, numbers))(form)
        np.testing.assert_allclose(outs, jnp.einsum("bi,sio->sbo", x, q.densify()), rtol=1e-4, atol=1e-4)


def test_other_operands_are_left_to_the_caller():
    q = make((16, 6), (1, 6))
    numbers = (((1,), (0,)), ((), ()))
    for dtype in (jnp.int8, jnp.complex64):
        assert dot(q, jnp.ones((3, 16), dtype), numbers) is NotImplemented


CONVS = {
    "plain": dict(kernel=(3, 3, 4, 6), lhs=(2, 8, 8, 4), strides=(1, 1), padding="SAME"),
    "strided, dilated": dict(kernel=(3, 3, 4, 6), lhs=(2, 8, 8, 4), strides=(2, 1), padding="SAME", rhs_dilation=(1, 2)),
    "depthwise": dict(kernel=(3, 3, 1, 8), lhs=(2, 8, 8, 4), strides=(1, 1), padding="VALID", feature_group_count=4),
    "transposed": dict(kernel=(2, 2, 4, 6), lhs=(1, 4, 4, 4), strides=(1, 1), padding=((1, 1), (1, 1)), lhs_dilation=(2, 2)),
}  # fmt: skip


@pytest.mark.parametrize("name", CONVS)
@pytest.mark.parametrize("zero, dtype", [(False, jnp.float32), (True, jnp.float32), (False, jnp.bfloat16)])
def test_conv_is_the_dense_one(name, zero, dtype):
    case = dict(CONVS[name])
    shape, x = case.pop("kernel"), normal(case.pop("lhs"), 1, dtype)
    q = make(shape, (1, 1, 1, shape[-1]), 4, signed=not zero, zero=zero, dtype=dtype)
    params = dict(
        window_strides=case.pop("strides"),
        padding=case.pop("padding"),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        **case,
    )
    out, dense = products.conv(x, q, params), lax.conv_general_dilated(x, q.densify(), **params)
    assert out.dtype == dense.dtype
    tol = 1e-5 if dtype == jnp.float32 else 4e-2
    np.testing.assert_allclose(out.astype(jnp.float32), dense.astype(jnp.float32), rtol=tol, atol=tol)


def test_conv_on_turned_axes_and_what_it_leaves():
    params = dict(window_strides=(1,), padding="SAME", dimension_numbers=("NWC", "WIO", "NWC"))
    x = normal((2, 8, 4), 1)
    q = prepare(make((3, 4, 6), (1, 1, 6)), "cpu")
    assert q.order is not None
    np.testing.assert_allclose(
        products.conv(x, q, params), lax.conv_general_dilated(x, q.densify(), **params), rtol=1e-5, atol=1e-5
    )
    assert products.conv(x, make((3, 4, 6), (1, 2, 6)), params) is NotImplemented
    assert products.conv(x, make((3, 4, 6), (1, 1, 6)), {**params, "batch_group_count": 2}) is NotImplemented
    grad = jax.grad(lambda x: jnp.sum(products.conv(x.astype(jnp.bfloat16), q, params).astype(jnp.float32)))(x)
    assert np.isfinite(grad).all()
