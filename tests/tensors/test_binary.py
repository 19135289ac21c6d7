"""Signs of one bit: true bytes, four forms of one value, and every operation against the dense array."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxopt_nn.formulations import cpu
from jaxopt_nn.formulations.prepare import prepare
from jaxopt_nn.tensors.binary import Binary
from jaxopt_nn.tensors.masked import Masked
from jaxopt_nn.tensors.qtensor import QTensor
from tests.tensors.test_qtensor import LAYOUT, same


def make(shape=(6, 8), scale_shape=(1, 8), seed=0, **kw):
    rng = np.random.default_rng(seed)
    scale = jnp.asarray(rng.uniform(0.1, 2.0, scale_shape), jnp.float32)
    return Binary.from_signs(jnp.asarray(rng.random(shape) < 0.5), scale, **kw)


FORMS = {
    "stored": lambda q: q,
    "words of rows": lambda q: q.words(0),
    "words of columns": lambda q: q.words(1),
    "words, as a CPU has them": cpu.words,
    "outputs first": lambda q: q.laid((1, 0)),
    "floats": cpu.decoded,
    "tpu": lambda q: prepare(q, "tpu"),
    "gpu": lambda q: prepare(q, "gpu"),
    "for signs": lambda q: prepare(q, "cpu", activations=1),
}


@settings(max_examples=6)
@given(st.lists(st.integers(1, 19), min_size=1, max_size=3), st.data())
def test_bytes_are_a_bit_each_and_the_scales(shape, data):
    shape = tuple(shape)
    axis = data.draw(st.integers(0, len(shape) - 1))
    scale_shape = tuple(data.draw(st.sampled_from([1, n])) for n in shape)
    q = make(shape, scale_shape, axis=axis)
    assert q.shape == shape and q.bits == 1
    assert q.nbytes == int(np.prod(shape)) // shape[axis] * -(-shape[axis] // 8) + 4 * int(np.prod(scale_shape))
    bits = np.random.default_rng(0)
    scale = bits.uniform(0.1, 2.0, scale_shape).astype(np.float32)
    same(q.densify(), np.where(bits.random(shape) < 0.5, scale, -scale) * np.ones(shape, np.float32))


def test_a_one_bit_quantization_needs_a_zero_point_for_the_same():
    q = make((64, 8))
    codes = jnp.where(q.elementwise() > 0, 0, -1)
    other = QTensor.from_codes(codes, 2 * q.scale, jnp.full((1, 8), -0.5), bits=1)
    same(other.densify(), q.densify())
    assert (q.nbytes, other.nbytes) == (64 + 32, 64 + 64)


def test_bits_are_those_that_are_documented():
    """Little endian; a bit that is set is +1."""
    q = Binary.from_signs(jnp.arange(40) % 3 == 0)
    np.testing.assert_array_equal(q.codes, np.packbits(np.arange(40) % 3 == 0, bitorder="little"))
    np.testing.assert_array_equal(q.words(0).codes.view(np.uint8)[:5], q.codes)
    assert q.words(0).codes.dtype == jnp.uint32 and not np.any(q.words(0).codes.view(np.uint8)[5:])


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_value(form):
    q, made = make(), FORMS[form](make())
    same(made.densify(), q.densify())
    assert isinstance(made, Binary) and made.shape == q.shape and made.zero_code() is None
    np.testing.assert_array_equal(made.elementwise(), q.elementwise())
    same(prepare(made, "tpu").densify(), q.densify())
    assert made.nbytes == sum(x.nbytes for x in jax.tree.leaves(made))


@pytest.mark.parametrize("form", ["stored", "words of rows", "words of columns", "floats"])
def test_layout_operations(form):
    for kw in ({}, {"dtype": jnp.bfloat16}):
        q = FORMS[form](make((6, 8), **kw))
        dense = np.asarray(q.densify())
        results = jax.jit(lambda t: {name: op(t).densify() for name, (op, _) in LAYOUT.items()})(q)
        for name, (_, expected) in LAYOUT.items():
            same(results[name], expected(dense))


@pytest.mark.parametrize("form", ["stored", "words of rows", "words of columns", "floats"])
def test_cut(form):
    q = FORMS[form](make((12, 8), (1, 8)))
    dense = np.asarray(q.densify())
    for axis, keep in ((1, [0, 3, 7]), (0, [0, 1, 2, 9, 10, 11]), (0, [4])):
        small = q.cut(axis, keep)
        same(small.densify(), np.take(dense, keep, axis))
        assert small.axis == q.axis and small.codes.dtype == q.codes.dtype


def test_layers_are_sliced_off_and_stacked_anew():
    q = make((3, 6, 8), (3, 1, 8), stack=(0,))
    assert q.axis != -3
    _, out = jax.lax.scan(lambda c, t: (c, t.densify()), 0, q.leading())
    same(out, q.densify())
    parts = [q.index(i, 0) for i in range(3)]
    same(parts[0].concatenate(parts[1:], 0).densify(), q.densify().reshape(18, 8))


def test_shardings_and_casts():
    q = make((8, 64), (1, 64))
    mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Auto,))
    assert q.spec(P("x"), mesh).scale == P(None, None)
    assert q.cast(jnp.bfloat16).densify().dtype == jnp.bfloat16
    same(q.cast(jnp.bfloat16).densify(), q.densify().astype(jnp.bfloat16))
    assert q.describe() == "signs, 1 bit" and cpu.by_outputs(q).describe() == "signs, 1 bit, in int8" and q.format == "Binary"


def test_a_mask_around_signs_holds_floats():
    """No sign is zero."""
    q = make()
    inside = Masked.pack(jnp.arange(48).reshape(6, 8) % 2 == 0, q)
    assert inside.frame is None and (inside.densify()[:, 1::2] == 0).all()


@pytest.mark.parametrize(
    "arguments, error, said",
    [
        ((jnp.ones((2, 3)),), TypeError, "the signs are float32; pass bool, True for"),
        ((jnp.ones((2, 3), bool), jnp.ones((4, 1))), ValueError, "scale"),
        ((jnp.ones((0, 3), bool),), ValueError, "holds no entry"),
        ((jnp.ones((2, 3), bool), jnp.nan), ValueError, "weight: NaN or Inf among the scales; pass finite ones"),
        ((jnp.ones((2, 3), bool), jnp.array([[1.0], [jnp.inf]])), ValueError, "weight: NaN or Inf among the scales"),
    ],
)
def test_mistakes(arguments, error, said):
    with pytest.raises(error, match=said):
        Binary.from_signs(*arguments)
    with pytest.raises(ValueError, match="weight: dtype int32 is no float; pass what densify shall give"):
        Binary.from_signs(jnp.ones((2, 3), bool), dtype=jnp.int32)
    with pytest.raises(ValueError, match="weight: stack: 5 is no axis of a weight of 2 axes"):
        Binary.from_signs(jnp.ones((2, 3), bool), stack=(5,))
    with pytest.raises(ValueError, match="name one"):
        make().expand().words()
