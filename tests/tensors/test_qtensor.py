"""Quantized tensors: the pack law, true bytes, both forms, and every operation against the dense array."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxopt_nn.formulations import products
from jaxopt_nn.formulations.prepare import prepare
from jaxopt_nn.numerics import affine
from jaxopt_nn.tensors import layout
from jaxopt_nn.tensors.base import CompressedTensor, densify, is_compressed, nbytes
from jaxopt_nn.tensors.qtensor import QTensor

BITS = range(1, 9)


def normal(shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def same(a, b):
    """Equal to the bit, -0.0 apart from 0.0."""
    a, b = np.asarray(a), np.asarray(b)
    assert a.dtype == b.dtype and a.shape == b.shape, (a.dtype, b.dtype, a.shape, b.shape)
    np.testing.assert_array_equal(a.view(f"u{a.dtype.itemsize}"), b.view(f"u{b.dtype.itemsize}"))


def params(x, scale_shape, bits, signed, zero, shrink=1.0):
    """Range parameters by min and max, shrunk so that codes saturate."""
    qmin, qmax = affine.code_range(bits, signed)
    if zero == "half":
        scale, offset = affine.binary_params(x, scale_shape)
        return scale, offset + qmin
    if zero:
        lo, hi = affine.minmax(x.astype(jnp.float32) * shrink, scale_shape)
        return affine.affine_params(lo, hi, qmin, qmax)
    return affine.symmetric_params(affine.abs_max(x, scale_shape).astype(jnp.float32) * shrink, qmin, qmax), None


def make(shape=(6, 8), scale_shape=(1, 8), bits=4, signed=True, zero=False, shrink=0.6, dtype=jnp.float32, **kw):
    x = normal(shape, dtype=dtype)
    return QTensor.quantize(x, *params(x, scale_shape, bits, signed, zero, shrink), bits=bits, signed=signed, **kw)


SHAPES = [((6, 8), (1, 8)), ((6, 8), (3, 8)), ((6, 8), (6, 2)), ((6, 8), (1, 1)), ((2, 6, 5), (2, 1, 5)), ((9,), (1,))]


@pytest.mark.exact
@settings(max_examples=12)
@given(
    st.sampled_from(SHAPES), st.integers(1, 8), st.booleans(), st.sampled_from([False, True]), st.floats(0.2, 1.2),
    st.sampled_from([jnp.float32, jnp.bfloat16]),
)  # fmt: skip
def test_pack_law(shapes, bits, signed, zero, shrink, dtype):
    shape, scale_shape = shapes
    x = normal(shape, 3, dtype)
    scale, offset = params(x, scale_shape, bits, signed, zero, shrink)
    q = QTensor.quantize(x, scale, offset, bits=bits, signed=signed)
    same(q.densify(), affine.fake_quant(x, scale, offset, *affine.code_range(bits, signed)))
    assert q.shape == shape and q.dtype == dtype and q.ndim == len(shape) and q.size == x.size
    codes = affine.quantize(x, scale, offset, *affine.code_range(bits, signed))
    np.testing.assert_array_equal(q.elementwise(), codes)
    same(QTensor.from_codes(codes, scale, offset, bits=bits, signed=signed, dtype=dtype).densify(), q.densify())


@pytest.mark.parametrize("signed", [True, False])
def test_one_symmetric_bit(signed):
    x = normal((16, 8))
    q = make((16, 8), (1, 8), 1, signed, "half")
    alpha = np.abs(x).mean(0)
    np.testing.assert_allclose(q.densify(), np.sign(x) * alpha, rtol=1e-6)
    assert q.zero_code() is None and q.zero.dtype == jnp.float32
    assert q.nbytes == 16 * 8 // 8 + 2 * 8 * 4


def test_narrow_range():
    x = normal((6, 8))
    scale = jnp.full((1, 8), 0.1)
    q = QTensor.quantize(x, scale, bits=4, narrow=True)
    assert int(q.elementwise().min()) == -7
    same(q.densify(), affine.fake_quant(x, scale, None, -7, 7))


@pytest.mark.parametrize("bits", BITS)
def test_stored_bytes_as_the_compiler_counts_them(bits):
    n = 256
    q = make((n, n), (1, n), bits)
    x = jnp.ones((1, n))
    assert q.nbytes == n * n * bits // 8 + 4 * n
    compiled = jax.jit(lambda t, x: x @ t.densify()).lower(q, x).compile()
    weights = compiled.memory_analysis().argument_size_in_bytes - x.nbytes - 4 * n
    assert weights <= n * n * bits / 8 * 1.02


def test_packs_where_it_is_cheapest():
    assert make((5, 8), (1, 8), 4).axis == -1
    assert make((8, 8), (1, 8), 4).axis == -2
    assert make((8, 5), (1, 5), 4).axis == -2
    assert make((4, 8, 8), (4, 1, 8), 3, stack=(0,)).axis == -2
    assert make((4, 8, 8), (4, 8, 1), 3, stack=(-2, 0)).axis == -1
    assert make((8, 8), (1, 8), 4, axis=1).axis == -1
    assert make((8, 8), (1, 8), 8).axis is None
    assert make((8,), (1,), 4, stack=(0,)).axis is None
    scalar = QTensor.quantize(jnp.float32(0.7), jnp.float32(0.5), bits=4)
    assert scalar.shape == () and scalar.densify() == 0.5


def test_whole_zero_points_take_a_byte():
    assert make(signed=False, zero=True).zero.dtype == jnp.uint8
    assert make(signed=True, zero=True).zero.dtype == jnp.int8
    x = normal((6, 8))
    assert QTensor.quantize(x, jnp.ones((1, 8)), jnp.full((1, 8), 300.0), bits=8).zero.dtype == jnp.float32
    under_trace = jax.eval_shape(lambda x: QTensor.quantize(x, jnp.ones((1, 8)), x[:1], bits=4), x)
    assert under_trace.zero.dtype == jnp.float32


def test_scales_are_repeated_over_the_stack():
    x = normal((3, 6, 8))
    q = QTensor.quantize(x, jnp.full((1, 1, 8), 0.2), bits=4, stack=(0,))
    assert q.scale.shape == (3, 1, 8)
    same(q.densify(), affine.fake_quant(x, jnp.full((1, 1, 8), 0.2), None, -8, 7))


def test_bad_arguments_name_the_tensor():
    x, s = normal((6, 8)), jnp.ones((1, 8))
    with pytest.raises(ValueError, match="params/k: bits=9"):
        QTensor.quantize(x, s, bits=9, name="params/k")
    with pytest.raises(ValueError, match="params/k: scale: axis 0 of the weight has 6 entries"):
        QTensor.quantize(x, jnp.ones((4, 8)), bits=4, name="params/k")
    with pytest.raises(ValueError, match="params/k: zero: shape"):
        QTensor.quantize(x, s, jnp.ones(8), bits=4, name="params/k")
    with pytest.raises(ValueError, match="holds no entry"):
        QTensor.quantize(jnp.ones((0, 8)), s, bits=4)
    with pytest.raises(ValueError, match="stack axis"):
        QTensor.quantize(x, s, bits=4, stack=(0,), axis=0)
    with pytest.raises(ValueError, match="params/k: stack: 5 is no axis of a weight of 2 axes; allowed are -2 to 1"):
        QTensor.quantize(x, s, bits=4, stack=(5,), name="params/k")
    with pytest.raises(ValueError, match="params/k: dtype int32 is no float"):
        QTensor.quantize(x, s, bits=4, dtype=jnp.int32, name="params/k")
    codes = jnp.zeros((6, 8), int)
    with pytest.raises(ValueError, match="params/k: the code 8 has no value in 4 signed bits; allowed are -8 to 7"):
        QTensor.from_codes(codes + 8, s, bits=4, name="params/k")
    with pytest.raises(ValueError, match="params/k: the code -1 has no value in 4 unsigned bits; allowed are 0 to 15"):
        QTensor.from_codes(codes - 1, s, bits=4, signed=False, name="params/k")
    with pytest.raises(TypeError, match="params/k: the codes are float32, not all of them whole; pass integers from -8 to 7"):
        QTensor.from_codes(codes + 0.5, s, bits=4, name="params/k")


def test_is_a_compressed_tensor_and_no_array():
    q = make()
    assert is_compressed(q) and isinstance(q, CompressedTensor) and not is_compressed(q.codes)
    with pytest.raises(TypeError, match=r"call jaxopt_nn.densify"):
        np.asarray(q)
    with pytest.raises(TypeError):
        jnp.ones((2, 6)) @ q
    tree = {"a": q, "b": jnp.ones(3, jnp.bfloat16), "c": jax.random.key(0)}
    assert nbytes(tree) == q.nbytes + 6 + 8
    assert nbytes({**tree, "step": 3, "rate": 0.5}) == nbytes(tree) + 4 + 4  # Python's numbers become arrays of 32 bits
    same(densify(tree)["a"], q.densify())
    assert densify(tree)["b"] is tree["b"]


# -- transformations of JAX ----------------------------------------------------------------------------------------------


@pytest.fixture(params=[(3, False), (4, True), (8, True)], ids=str)
def stacked(request):
    bits, zero = request.param
    return make((3, 6, 8), (3, 2, 8), bits, zero=zero, stack=(0,))


def test_scan_slices_a_stack(stacked):
    dense = stacked.densify()
    _, layers = lax.scan(lambda c, t: (c, t.densify()), 0, stacked)
    same(layers, dense)
    assert lax.scan(lambda c, t: (c, jnp.array(t.shape)), 0, stacked)[1].tolist() == [[6, 8]] * 3
    for form in (stacked.laid((0, 2, 1)), stacked.laid((0, 1, 2, 1), 2)):
        same(lax.scan(lambda c, t: (c, t.densify()), 0, form)[1], dense)
        same(jax.vmap(lambda t: t.densify())(form), dense)
        same(jax.jit(lambda t, i: t.index(i, 0).densify())(form, 2), dense[2])
        assert form.index(2, 0).codes.ndim == form.codes.ndim - 1


def test_vmap_maps_and_packs(stacked):
    same(jax.vmap(lambda t: t.densify())(stacked), stacked.densify())
    x = normal((3, 6, 8))
    packed = jax.jit(jax.vmap(lambda x, s: QTensor.quantize(x, s, bits=3)))(x, jnp.full((3, 1, 8), 0.2))
    same(packed.densify(), affine.fake_quant(x, jnp.full((3, 1, 8), 0.2), None, -4, 3))
    assert packed.axis == -1 and packed.codes.shape == (3, 6, 3)


def test_jit_grad_and_donation():
    q, x = make(bits=5), normal((4, 6))
    loss = lambda x, t: jnp.sum(jnp.sin(x @ t.densify()))
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(x, q), jax.grad(lambda x: loss(x, q))(x), rtol=1e-6)
    through = jax.grad(lambda s: loss(x, dataclasses.replace(q, scale=s)))(q.scale)
    expected = jax.grad(lambda s: jnp.sum(jnp.sin(x @ (q.elementwise() * s))))(q.scale)
    np.testing.assert_allclose(through, expected, rtol=1e-5)
    dense = q.densify()
    doubled = jax.jit(lambda t: dataclasses.replace(t, scale=t.scale * 2), donate_argnums=0)(q)
    assert q.codes.is_deleted()
    same(doubled.densify(), dense * 2)


def test_abstract_children():
    q = make((6, 8), (2, 8), 3, zero=True)
    like = jax.eval_shape(lambda: q)
    assert isinstance(like.codes, jax.ShapeDtypeStruct)
    assert (like.shape, like.dtype, like.nbytes, like.size) == (q.shape, q.dtype, q.nbytes, q.size)
    ready = prepare({"w": like}, "tpu")["w"]
    assert isinstance(ready.codes, jax.ShapeDtypeStruct) and ready.shape == q.shape
    assert prepare(like, "cpu").shape == (6, 8)


def test_leaves_go_through_a_checkpoint(tmp_path):
    import orbax.checkpoint as ocp

    tree = {"w": make((6, 8), (2, 8), 3, zero=True), "v": make(bits=8, dtype=jnp.bfloat16), "b": jnp.ones(3)}
    leaves, structure = jax.tree.flatten(tree)
    with ocp.StandardCheckpointer() as saver:
        saver.save(tmp_path / "leaves", leaves)
        saver.wait_until_finished()
        back = jax.tree.unflatten(structure, saver.restore(tmp_path / "leaves", leaves))
    jax.tree.map(same, densify(tree), densify(back))
    assert jax.tree.structure(back) == structure


def test_sharding():
    mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    q = make((16, 8), (4, 8), 4, zero=True)
    assert q.axis == -2
    put = lambda t, s: jax.tree.map(lambda x, s: jax.device_put(x, NamedSharding(mesh, s)), t, s)
    columns = q.spec(P(None, "a"))
    assert columns.codes == columns.scale == columns.zero == P(None, "a")
    same(jax.jit(lambda t: t.densify())(put(q, columns)), q.densify())
    assert q.spec(P("a")) is NotImplemented
    rows = q.spec(P("a", "b"), mesh)
    assert rows.codes == rows.scale == P("a", "b")
    same(jax.jit(lambda t: t.densify())(put(q, rows)), q.densify())
    assert make((16, 8), (1, 8), 4).spec(P("a"), mesh).scale == P(None, None)
    assert make((18, 8), (9, 8), 8).spec(P("a"), mesh) is NotImplemented
    assert q.laid((1, 0)).spec(P(("a", "b"), None), mesh).codes == P(None, ("a", "b"))
    assert q.laid((0, 1, 0), 4).spec(P("a", "b"), mesh).codes == P("a", "b", None)


# -- the two forms -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize(
    "bits, signed", [(1, False), (2, True), (2, False), (3, True), (4, True), (4, False), (8, False)]
)
def test_prepared_is_the_same_value(platform, bits, signed):
    q = make((6, 8), (1, 8), bits, signed, zero=not signed)
    ready = prepare({"w": q}, platform)["w"]
    same(ready.densify(), q.densify())
    same(jax.jit(lambda t: t.densify())(ready), q.densify())
    native = platform == "tpu" and bits in (2, 4)
    kind = {2: "int2", 4: "int4"}[bits] if native else "int8"
    assert ready.axis is None and ready.platform == platform and ready.shape == (6, 8)
    if platform == "cpu":  # a network as small as this holds floats
        assert ready.codes.dtype == jnp.float32 and ready.nbytes > q.nbytes and ready.bits == bits
    else:
        # unsigned codes of 8 bits are held less 128
        assert ready.codes.dtype == jnp.dtype(kind if signed or bits == 8 else "u" + kind) and ready.codes.shape == (6, 8)
    if native:
        assert ready.nbytes == q.nbytes
    with pytest.raises(ValueError, match="'cpu', 'gpu', 'tpu'"):
        prepare(q, "abacus")


# -- layout --------------------------------------------------------------------------------------------------------------

WEIGHTS = {
    "channel": dict(scale_shape=(1, 8)),
    "groups": dict(scale_shape=(3, 8), axis=0),
    "groups of outputs and zero": dict(scale_shape=(6, 2), zero=True, bits=2),
    "tensor, 3 bits": dict(scale_shape=(1, 1), bits=3, axis=1),
    "bfloat16": dict(scale_shape=(1, 8), dtype=jnp.bfloat16, bits=8),
}
FORMS = {
    "stored": lambda q: q,
    "turned": lambda q: q.transpose((1, 0)).expand().transpose((1, 0)),
    "outputs first": lambda q: q.laid((1, 0)),
    "split": lambda q: q.laid((0, 1, 0), 3),
    "split columns": lambda q: q.laid((1, 0, 1), 2),
    "tpu": lambda q: prepare(q, "tpu"),
}
IDS = np.array([[0, 5, 2], [1, 1, 99]])
LAYOUT = {
    "transpose": (lambda t: t.transpose((1, 0)), lambda x: x.T),
    "units": (lambda t: t.reshape((1, 6, 1, 8)), lambda x: x.reshape(1, 6, 1, 8)),
    "units off": (lambda t: t.reshape((1, 6, 8)).reshape((6, 8)), lambda x: x),
    "units, turned": (lambda t: t.transpose((1, 0)).reshape((8, 1, 6)), lambda x: x.T.reshape(8, 1, 6)),
    "slice of columns": (lambda t: t.slice((0, 2), (6, 8)), lambda x: x[:, 2:]),
    "slice across groups": (lambda t: t.slice((1, 0), (4, 8)), lambda x: x[1:4]),
    "strides": (lambda t: t.slice((0, 1), (6, 8), (2, 3)), lambda x: x[::2, 1::3]),
    "slice of a group": (lambda t: t.slice((2, 4), (4, 8)), lambda x: x[2:4, 4:8]),
    "dynamic rows": (lambda t, i=3: t.dynamic_slice((jnp.int32(i), 0), (2, 8)), lambda x: x[3:5]),
    "dynamic, clamped": (lambda t: t.dynamic_slice((0, jnp.int32(7)), (6, 3)), lambda x: x[:, 5:]),
    "reversed rows": (lambda t: t.rev((0,)), lambda x: x[::-1]),
    "reversed columns, turned": (lambda t: t.transpose((1, 0)).rev((0,)), lambda x: x.T[::-1]),
    "reversed both": (lambda t: t.rev((0, 1)), lambda x: x[::-1, ::-1]),
    "split rows": (lambda t: t.split((2, 4), 0)[1], lambda x: x[2:]),
    "split columns": (lambda t: t.split((3, 1, 4), -1)[1], lambda x: x[:, 3:4]),
    "index of a row": (lambda t: t.index(jnp.int32(4), 0), lambda x: x[4]),
    "index of a column": (lambda t: t.index(-2, -1), lambda x: x[:, -2]),
    "take rows": (lambda t: t.take(IDS, 0), lambda x: np.take(x, IDS, 0, mode="clip")),
    "take columns": (lambda t: t.take(IDS, -1), lambda x: np.take(x, IDS, 1, mode="clip")),
    "take one": (lambda t: t.take(3, 1), lambda x: x[:, 3]),
}


@pytest.mark.parametrize(
    "weight, form", [*((w, "stored") for w in WEIGHTS), *(("groups", f) for f in FORMS), ("bfloat16", "outputs first")]
)
def test_layout_operations(weight, form):
    q = FORMS[form](make((6, 8), **WEIGHTS[weight]))
    dense = np.asarray(q.densify())
    results = jax.jit(lambda t: {name: op(t).densify() for name, (op, _) in LAYOUT.items()})(q)
    for name, (_, expected) in LAYOUT.items():
        same(results[name], expected(dense))


def test_stored_bytes_are_read_in_place():
    """Operations across the packed axis leave codes packed."""
    q = make((6, 8), (1, 8), 3, axis=0)
    for t in (
        q.slice((0, 1), (6, 4)),
        q.take(jnp.array([1, 2]), 1),
        q.transpose((1, 0)),
        q.index(2, 1),
        q.reshape((6, 1, 8)),
    ):
        assert t.axis is not None and t.codes.dtype == jnp.uint8
    text = jax.jit(lambda t, i: t.take(i, 0).densify()).lower(make((64, 8), (64, 1), 3), jnp.arange(2)).as_text()
    assert "64x8xui8" not in text and "64x8xf32" not in text


RESHAPES = [
    ((6, 8), (1, 8), (6, 2, 4), True), ((6, 8), (6, 1), (2, 3, 8), True), ((6, 8), (1, 1), (48,), True),
    ((6, 8), (6, 8), (4, 12), True), ((6, 8), (6, 1), (48,), True), ((6, 8), (1, 8), (48,), False),
    ((6, 8), (3, 8), (3, 2, 8), True), ((6, 8), (3, 8), (2, 3, 8), False), ((12, 4), (6, 4), (2, 6, 4), True),
    ((12, 4), (2, 4), (4, 3, 4), True), ((2, 3, 8), (2, 3, 1), (6, 8), True), ((2, 3, 8), (1, 3, 8), (6, 8), False),
    ((2, 6, 4), (2, 2, 4), (12, 4), True), ((2, 6, 4), (1, 2, 4), (12, 4), False), ((6, 8), (6, 2), (6, 2, 2, 2), True),
    ((6, 8), (6, 4), (6, 2, 4), True), ((1, 6, 1, 8), (1, 1, 1, 8), (6, 8, 1), True),
]  # fmt: skip


@pytest.mark.parametrize("shape, scale_shape, new, possible", RESHAPES)
def test_reshape_where_scales_permit(shape, scale_shape, new, possible):
    q = make(shape, scale_shape, 4)
    result = q.reshape(new)
    assert (result is not NotImplemented) == possible
    if possible:
        same(result.densify(), q.densify().reshape(new))


@settings(max_examples=200)
@given(st.data())
def test_reshaped_groups_never_lie(data):
    shape = data.draw(st.sampled_from([(4, 6), (2, 2, 6), (1, 4, 6), (24,), (2, 12)]))
    groups = tuple(data.draw(st.sampled_from([d for d in range(1, n + 1) if n % d == 0])) for n in shape)
    new = data.draw(st.sampled_from([(24,), (4, 6), (2, 2, 6), (4, 3, 2), (8, 3), (4, 1, 6), (12, 2)]))

    def repeat(scale, shape):
        for axis, n in enumerate(shape):
            scale = np.repeat(scale, n // scale.shape[axis], axis)
        return scale

    scale, result = np.arange(np.prod(groups)).reshape(groups), layout.reshaped_groups(groups, shape, new)
    if result is not None:
        np.testing.assert_array_equal(repeat(scale.reshape(result), new), repeat(scale, shape).reshape(new))
    elif all(d in (1, n) for d, n in zip(groups, shape)):
        assert new not in ((2, 2, 6), (4, 1, 6)) or shape not in ((4, 6), (1, 4, 6))


def test_cast_rounds_as_often_as_arrays():
    q = make(dtype=jnp.float32, bits=8)
    dense = q.densify()
    for chain in (["bfloat16"], ["float16"], ["bfloat16", "float32"], ["bfloat16", "float32", "float16"]):
        t, x = q, dense
        for dtype in chain:
            t, x = t.cast(dtype), x.astype(dtype)
        assert t.dtype == x.dtype
        same(t.densify(), x)
    assert q.cast("bfloat16").cast("float32").cast("bfloat16").rounding is None
    assert q.cast("bfloat16").cast("float16").cast("float32") is NotImplemented
    assert q.cast(jnp.int32) is NotImplemented


def test_cut():
    q = make((12, 8), (4, 8), 3, zero=True)
    dense = np.asarray(q.densify())
    for axis, keep in ((1, [0, 3, 7]), (0, [0, 1, 2, 9, 10, 11]), (0, [0, 2, 3, 5]), (0, [4])):
        small = q.cut(axis, keep)
        same(small.densify(), np.take(dense, keep, axis))
        assert small.axis == q.axis and small.codes.dtype == jnp.uint8
    assert q.cut(0, [0, 1, 3]) is NotImplemented
    same(q.laid((1, 0)).cut(-1, np.array([1, 2])).densify(), dense[:, 1:3])
    for bad in ([], [12], [-1]):
        with pytest.raises(ValueError, match="axis 0 has 12 entries"):
            q.cut(0, bad)


def test_concatenate():
    x = normal((6, 8))
    parts = [make(), make((6, 5), (1, 1)), make().laid((1, 0))]
    joined = parts[0].concatenate(parts[1:], 1)
    assert joined.scale.shape == (1, 21)
    same(joined.densify(), jnp.concatenate([p.densify() for p in parts], 1))
    grouped = [make((6, 8), (3, 8)), make((4, 8), (2, 1))]
    same(grouped[0].concatenate(grouped[1:], 0).densify(), jnp.concatenate([p.densify() for p in grouped]))
    assert make((6, 8), (3, 8)).concatenate([make((6, 8), (2, 8))], 1) is NotImplemented
    assert make().concatenate([make(bits=3)], 1) is NotImplemented
    whole, half = make(zero=True), QTensor.quantize(x, jnp.ones((1, 8)), jnp.full((1, 8), 0.5), bits=4)
    assert whole.concatenate([half], 1) is NotImplemented


@pytest.mark.parametrize("kind", ["int8", "uint8", "int16"])
@pytest.mark.parametrize("platform", [None, "cpu", "gpu", "tpu"])
def test_narrow_ids_reach_every_row_of_a_long_table(kind, platform):
    """300 rows: the last index fits into no 8 bits."""
    w = jnp.asarray(np.random.default_rng(0).standard_normal((300, 4)), jnp.float32)
    q = QTensor.quantize(w, jnp.full((1, 4), 0.02), bits=8)
    ids = np.array([3, 100, 127], kind)
    held = q if platform is None else prepare({"w": q, "large": large()}, platform)["w"]
    np.testing.assert_array_equal(densify(products.take(held, ids, 0)), np.asarray(q.densify())[ids])


def large():
    """Beside it no network counts as small."""
    return QTensor.quantize(jnp.zeros((2048, 1025)), jnp.ones((1, 1025)), bits=8)
