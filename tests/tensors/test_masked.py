"""Masks of one bit and the kept entries, over floats and over codes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxopt_nn.formulations import products
from jaxopt_nn.formulations.prepare import prepare
from jaxopt_nn.numerics import affine, topk
from jaxopt_nn.tensors.base import CompressedTensor
from jaxopt_nn.tensors.low_rank import LowRank
from jaxopt_nn.tensors.masked import Masked
from jaxopt_nn.tensors.n_of_m import NofM
from jaxopt_nn.tensors.qtensor import QTensor
from jaxopt_nn.tensors.sum import Sum


def normal(shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def masks(shape, density, seed=1):
    return np.random.default_rng(seed).random(shape) < density


def same(a, b):
    a, b = np.asarray(a), np.asarray(b)
    assert a.dtype == b.dtype and a.shape == b.shape
    np.testing.assert_array_equal(a.view(f"u{a.dtype.itemsize}"), b.view(f"u{b.dtype.itemsize}"))


def inner_tensor(kind, shape, stack=()):
    x = normal(shape)
    scale_shape = tuple(n if a in stack or a == len(shape) - 1 else 1 for a, n in enumerate(shape))
    if kind == "float":
        return x
    if kind == "bfloat16":
        return x.astype(jnp.bfloat16)
    bits, signed = {"int4": (4, True), "uint3 with zero": (3, False), "binary": (1, False), "int8": (8, True)}[kind]
    if kind == "binary":
        scale, zero = affine.binary_params(x, scale_shape)
    else:
        lo, hi = affine.minmax(x * 0.6, scale_shape)
        scale, zero = affine.affine_params(lo, hi, *affine.code_range(bits, signed))
    return QTensor.quantize(x, scale, None if signed else zero, bits=bits, signed=signed, stack=stack)


KINDS = ["float", "bfloat16", "int4", "int8", "uint3 with zero", "binary"]


def dense(x):
    return x.densify() if isinstance(x, QTensor) else x


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0, "one"])
def test_densify_is_the_inner_tensor_under_the_mask(kind, density):
    shape = (7, 9)
    mask = np.arange(63).reshape(shape) == 40 if density == "one" else masks(shape, density)
    inner = inner_tensor(kind, shape)
    m = Masked.pack(mask, inner)
    expected = jnp.where(mask, dense(inner), jnp.zeros((), inner.dtype))
    same(m.densify(), expected)
    same(jax.jit(lambda m: m.densify())(m), expected)
    assert (m.shape, m.dtype, m.count) == (shape, expected.dtype, mask.sum())
    assert isinstance(m, CompressedTensor)
    np.testing.assert_array_equal(m.keep(), mask)
    for platform in ("cpu", "tpu"):
        same(jnp.asarray(densified(prepare(m, platform))), expected)


def densified(x):
    return x if isinstance(x, jax.Array) else x.densify()


@settings(max_examples=8)
@given(st.sampled_from([(1,), (5, 3), (2, 4, 4)]), st.integers(1, 8), st.floats(0, 1), st.integers(0, 9))
def test_any_width_and_density(shape, bits, density, seed):
    x, mask = normal(shape, seed), masks(shape, density, seed)
    q = QTensor.quantize(x, jnp.full([1] * len(shape), 0.3), bits=bits, signed=False)
    same(Masked.pack(mask, q).densify(), jnp.where(mask, q.densify(), 0.0))


def test_bytes():
    n = 1024
    x = normal((n, n))
    mask = topk.keep_largest(jnp.abs(x), n * n // 10)
    kept = jnp.where(mask, x, 0)
    q = QTensor.quantize(kept, affine.symmetric_params(affine.abs_max(kept, (1, n)), -8, 7), bits=4)
    m = Masked.pack(mask, q)
    assert m.nbytes == n * n // 8 + -(-m.count // 2) + 4 * n
    assert 8 * m.nbytes / (n * n) <= 1.5
    compiled = jax.jit(lambda m, x: x @ m.densify()).lower(m, jnp.ones((1, n))).compile()
    stored = compiled.memory_analysis().argument_size_in_bytes - 4 * n
    assert stored <= m.nbytes * 1.02
    same(m.densify(), q.densify())


@pytest.mark.parametrize("kind", KINDS)
def test_stacks(kind):
    shape = (3, 4, 5)
    mask = masks(shape, 0.4)
    inner = inner_tensor(kind, shape, stack=(0,))
    m = Masked.pack(mask, inner, stack=(0,))
    expected = jnp.where(mask, dense(inner), jnp.zeros((), inner.dtype))
    assert m.count == mask.sum((1, 2)).max() and m.shape == shape
    same(m.densify(), expected)
    same(lax.scan(lambda c, t: (c, t.densify()), 0, m)[1], expected)
    same(jax.vmap(lambda t: t.densify())(m), expected)
    same(jax.jit(lambda m, i: m.index(i, 0).densify())(m, 2), expected[2])
    one = m.dynamic_slice((jnp.int32(1), 0, 0), (1, 4, 5))
    assert isinstance(one, Masked)
    same(one.densify(), expected[1:2])
    same(one.reshape((4, 5)).densify(), expected[1])
    same(m.slice((1, 0, 0), (3, 4, 5)).densify(), expected[1:])
    same(m.rev((0,)).densify(), expected[::-1])
    same(m.split((1, 2), 0)[1].densify(), expected[1:])
    specs = m.spec(P("layers"))
    assert jax.tree.structure(specs, is_leaf=lambda s: isinstance(s, P)) == jax.tree.structure(m)
    assert specs.mask == specs.kept == P("layers")
    assert m.spec(P(None, "model")) is NotImplemented


@pytest.mark.parametrize("kind", ["float", "int4", "uint3 with zero"])
@pytest.mark.parametrize("stack", [(1,), (2,), (0, 2)])
def test_a_stack_that_does_not_lead(kind, stack):
    shape = (4, 3, 5)
    mask, inner = masks(shape, 0.4), inner_tensor(kind, shape, stack=stack)
    m = Masked.pack(mask, inner, stack=stack)
    expected = jnp.where(mask, dense(inner), jnp.zeros((), inner.dtype))
    rest = tuple(a for a in range(3) if a not in stack)
    assert (m.shape, m.stack) == (shape, stack) and m.count == mask.sum(rest).max()
    same(m.densify(), expected)
    np.testing.assert_array_equal(m.keep(), mask)
    front = (*stack, *rest)
    turned = m.transpose(front)
    assert isinstance(turned, Masked) and turned.order is None
    same(lax.scan(lambda c, t: (c, t.densify()), 0, turned)[1], expected.transpose(front))
    same(jax.vmap(lambda t: t.densify())(turned), expected.transpose(front))
    axis = stack[-1]
    one = jax.jit(lambda m, i: m.index(i, axis))(m, 2)
    assert isinstance(one, Masked)
    same(one.densify(), jnp.take(expected, 2, axis))
    start, size = [0, 0, 0], list(shape)
    start[axis], size[axis] = 1, 2
    part = m.dynamic_slice(start, size)
    assert isinstance(part, Masked)
    same(part.densify(), lax.dynamic_slice(expected, start, size))
    same(m.split((1, shape[axis] - 1), axis)[1].densify(), jnp.split(expected, [1], axis)[1])
    flat = m.reshape((12, 5))
    assert flat is NotImplemented or np.array_equal(flat.densify(), expected.reshape(12, 5))
    same(m.cut(rest[0], [0, 2]).densify(), jnp.take(expected, jnp.array([0, 2]), rest[0]))
    parts = [None, None, None]
    parts[axis] = "layers"
    specs = m.spec(P(*parts))
    assert specs.mask == specs.kept == P(*(parts[a] for a in stack))
    assert m.spec(P(*("model" if a == rest[0] else None for a in range(3)))) is NotImplemented
    same(m.nest(dense(inner) * 2).densify(), expected * 2)
    assert m.nest(dense(inner)).stack == stack


def test_a_scale_shared_by_all_layers_is_repeated():
    q = QTensor.quantize(normal((3, 4, 5)), jnp.full((1, 1, 5), 0.3), bits=4)
    m = Masked.pack(masks((3, 4, 5), 0.5), q, stack=(0,))
    same(lax.scan(lambda c, t: (c, t.densify()), 0, m)[1], m.densify())


def test_algebra_by_the_expanded_form():
    mask = masks((6, 8), 0.4)
    q = inner_tensor("int4", (6, 8))
    m = Masked.pack(mask, q)
    values = m.densify()
    same(m.transpose((1, 0)).densify(), values.T)
    same(m.reshape((6, 2, 4)).densify(), values.reshape(6, 2, 4))
    same(m.reshape((1, 6, 8)).densify(), values[None])
    same(m.slice((1, 2), (5, 8)).densify(), values[1:5, 2:])
    same(m.take(jnp.array([3, 1]), 0).densify(), values[jnp.array([3, 1])])
    same(m.index(2, 1).densify(), values[:, 2])
    x = normal((3, 6), 1)
    numbers = (((1,), (0,)), ((), ()))
    np.testing.assert_allclose(products.dot(x, m, numbers), x @ values, rtol=1e-5, atol=1e-5)
    floats = Masked.pack(mask, q.densify())
    assert products.dot(x, floats, numbers) is NotImplemented and floats.transpose((1, 0)) is NotImplemented


def test_cast():
    x, mask = normal((6, 8)), masks((6, 8), 0.4)
    for inner in (x, inner_tensor("int4", (6, 8))):
        m = Masked.pack(mask, inner)
        same(m.cast(jnp.bfloat16).densify(), m.densify().astype(jnp.bfloat16))
        assert m.cast(jnp.int32) is NotImplemented


def test_cut():
    mask = masks((6, 8), 0.4)
    for inner in (normal((6, 8)), inner_tensor("uint3 with zero", (6, 8))):
        m = Masked.pack(mask, inner)
        small = m.cut(1, [0, 3, 4])
        assert isinstance(small, Masked) and small.count == mask[:, [0, 3, 4]].sum()
        same(small.densify(), m.densify()[:, np.array([0, 3, 4])])


def test_blocks_that_stay_whole_stay_blocks():
    """A bit a block where whole blocks go, also the shorter last one; else a bit a weight along that axis."""
    grid = np.array([[1, 0, 1], [0, 1, 1]], bool)
    mask = jnp.asarray(np.repeat(np.repeat(grid, 4, 0), 2, 1)[:, :5])
    x = normal((8, 5))
    m = Masked.pack(mask, x, (), (4, 2))
    for axis, keep, block in ((1, [2, 3, 4], (4, 2)), (0, [0, 1], (4, 2)), (1, [1, 2, 3], (4, 1)), (0, [0, 2, 3, 4], (1, 2))):
        small = m.cut(axis, keep)
        assert small.block == block
        same(small.densify(), jnp.take(m.densify(), jnp.array(keep), axis))
        assert small.nbytes == -(-math.prod(-(-n // b) for n, b in zip(small.shape, block)) // 8) + 4 * small.count


def test_nesting():
    x, mask = normal((6, 8)), masks((6, 8), 0.5)
    outer = Masked.pack(mask, x)
    q = inner_tensor("int4", (6, 8))
    both = outer.nest(q)
    same(both.densify(), jnp.where(mask, q.densify(), 0))
    assert both.frame is not None
    again = masks((6, 8), 0.5, 2)
    same(outer.nest(Masked.pack(again, x)).densify(), jnp.where(mask & again, x, 0))
    same(outer.nest(x * 2).densify(), jnp.where(mask, x * 2, 0))
    with pytest.raises(TypeError, match="can't stand inside QTensor"):
        q.nest(x)


def test_abstract_and_checkpoint_leaves():
    m = Masked.pack(masks((3, 4, 5), 0.5), inner_tensor("int4", (3, 4, 5), stack=(0,)), stack=(0,))
    like = jax.eval_shape(lambda: m)
    assert (like.shape, like.dtype, like.nbytes) == (m.shape, m.dtype, m.nbytes)
    assert prepare(like, "tpu").shape == m.shape
    leaves, structure = jax.tree.flatten(m)
    same(jax.tree.unflatten(structure, [np.asarray(x) for x in leaves]).densify(), m.densify())


def test_donation_and_gradient_of_other_arguments():
    m = Masked.pack(masks((6, 8), 0.4), normal((6, 8)))
    values = m.densify()
    x = normal((3, 6), 1)
    np.testing.assert_allclose(
        jax.jit(jax.grad(lambda x, m: jnp.sum(x @ m.densify())))(x, m),
        jnp.tile(values.sum(1), (3, 1)),
        rtol=1e-5,
        atol=1e-6,
    )
    back = jax.jit(lambda m: m.cast(jnp.float32), donate_argnums=0)(m)
    same(back.densify(), values)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"mask of shape \(2, 3\)"):
        Masked.pack(np.ones((2, 3), bool), jnp.ones((3, 2)))
    with pytest.raises(ValueError, match="holds no entry"):
        Masked.pack(np.ones((0, 3), bool), jnp.ones((0, 3)))
    with pytest.raises(ValueError, match="Masked: stack: 5 is no axis of a weight of 2 axes; allowed are -2 to 1"):
        Masked.pack(np.ones((2, 3), bool), jnp.ones((2, 3)), stack=(5,))


@pytest.mark.parametrize("pack", [Masked.pack, lambda mask, inner: NofM.pack(mask, inner, 2, 1)], ids=["Masked", "NofM"])
def test_what_can_stand_under_a_mask(pack):
    mask, low_rank = np.eye(2, dtype=bool), LowRank((jnp.ones((2, 1)), jnp.ones((1, 2))))
    with pytest.raises(TypeError, match=r"the mask is float64; pass bool, True for what is kept, e.g. mask != 0"):
        pack(mask * 0.5, jnp.ones((2, 2)))
    for inner in (low_rank, Sum(low_rank, low_rank), Masked.pack(mask, jnp.ones((2, 2)))):
        with pytest.raises(TypeError, match=r"no codes of single weights, .* pass an array, jaxopt_nn.densify\(tensor\), or"):
            pack(mask, inner)
    same(pack(mask, low_rank.densify()).densify(), mask.astype(np.float32))
