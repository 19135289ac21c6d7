"""Dense bit packing against an integer-by-integer oracle and ``numpy.packbits``."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxopt_nn.numerics import packing

BITS = range(1, 9)


def oracle(codes: np.ndarray, bits: int) -> np.ndarray:
    """One integer with all codes in it, cut into bytes."""
    stream = sum(int(c) << (i * bits) for i, c in enumerate(codes))
    return np.frombuffer(stream.to_bytes(-(-len(codes) * bits // 8), "little"), np.uint8)


def draw(shape, bits, seed=0):
    return np.random.default_rng(seed).integers(0, 2**bits, size=shape, dtype=np.uint8)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("n", [0, 1, 2, 7, 8, 9, 31, 64])
def test_stream_is_the_oracle_s(bits, n):
    codes = draw((n,), bits, n)
    packed = packing.pack_bits(codes, bits, 0)
    assert packed.dtype == jnp.uint8 and packed.shape == (packing.packed_length(n, bits),)
    np.testing.assert_array_equal(packed, oracle(codes, bits))
    np.testing.assert_array_equal(packing.unpack_bits(packed, bits, n, 0), codes)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 8), st.lists(st.integers(1, 11), min_size=1, max_size=3), st.data())
def test_any_axis(bits, shape, data):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    codes = draw(shape, bits, data.draw(st.integers(0, 99)))
    packed = np.asarray(packing.pack_bits(codes, bits, axis))
    np.testing.assert_array_equal(packed, np.apply_along_axis(functools.partial(oracle, bits=bits), axis, codes))
    np.testing.assert_array_equal(packing.unpack_bits(packed, bits, shape[axis], axis), codes)


def test_one_bit_is_packbits():
    codes = draw((5, 37), 1)
    np.testing.assert_array_equal(packing.pack_bits(codes, 1, 1), np.packbits(codes, axis=1, bitorder="little"))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("axis", [0, 1])
def test_take_reads_single_codes(bits, axis):
    codes = draw((29, 13), bits)
    packed = packing.pack_bits(codes, bits, axis)
    ids = np.array([[0, 3, codes.shape[axis] - 1], [5, 5, 1]])
    np.testing.assert_array_equal(packing.take_bits(packed, bits, ids, axis), np.take(codes, ids, axis))
    np.testing.assert_array_equal(
        jax.jit(lambda i: packing.take_bits(packed, bits, i, axis))(4), np.take(codes, 4, axis)
    )


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_vmap_and_scan(bits):
    codes = draw((4, 10, 3), bits)
    packed = jax.vmap(lambda c: packing.pack_bits(c, bits, -2))(codes)
    np.testing.assert_array_equal(packed, packing.pack_bits(codes, bits, 1))
    _, scanned = jax.lax.scan(lambda c, q: (c, packing.unpack_bits(q, bits, 10, -2)), 0, packed)
    np.testing.assert_array_equal(scanned, codes)


def test_width_is_checked():
    with pytest.raises(ValueError, match="bits=9"):
        packing.pack_bits(np.zeros(3, np.uint8), 9, 0)


@pytest.mark.parametrize("bits", [1, 3, 5])
def test_no_gather_in_the_program(bits):
    packed = jnp.zeros((packing.packed_length(40, bits), 6), jnp.uint8)
    text = jax.jit(lambda q: packing.unpack_bits(q, bits, 40, 0)).lower(packed).as_text()
    assert "gather" not in text and "dynamic" not in text
