"""Symbols and numbers come back; what is damaged raises or stays inside the alphabet."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxopt_nn.coding.entropy import decode, decode_array, encode, encode_array

DTYPES = ["bool", "int8", "uint8", "int16", "uint32", "int64", "float16", "float32", "float64", "complex64", "bfloat16"]
DTYPES += ["int4", "uint4", "float8_e4m3fn", ">f4"]
FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def arrays(draw):
    """An array of symbols, its alphabet, and the symbol that means 0."""
    alphabet = draw(st.sampled_from([1, 2, 3, 15, 16, 17, 255, 256, 257, 4096, 65536]))
    shape = draw(st.lists(st.integers(0, 9), max_size=4).map(tuple))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    zero, used = draw(st.integers(0, alphabet - 1)), draw(st.integers(1, alphabet))
    dense = rng.random(shape) < draw(st.sampled_from([0.0, 0.02, 0.3, 1.0]))
    return np.where(dense, rng.integers(0, used, shape), zero), alphabet, zero


@FEW
@given(arrays(), st.sampled_from([None, "raw", "rans", "adaptive"]), st.sampled_from([None, True, False]))
def test_symbols_come_back(case, mode, contexts):
    symbols, alphabet, zero = case
    data = encode(symbols, alphabet, zero=zero, mode=mode, contexts=contexts)
    back = decode(data, symbols.shape, alphabet)
    assert back.dtype == (np.uint8 if alphabet <= 256 else np.uint16) and back.shape == symbols.shape
    np.testing.assert_array_equal(back, symbols)


@FEW
@given(arrays(), st.sampled_from([None, "raw", "rans", "adaptive"]), st.data())
def test_damage_raises_or_stays_inside_the_alphabet(case, mode, draw):
    symbols, alphabet, zero = case
    data = bytearray(encode(symbols, alphabet, zero=zero, mode=mode))
    for _ in range(draw.draw(st.integers(1, 3))):
        if data:
            data[draw.draw(st.integers(0, len(data) - 1))] ^= draw.draw(st.integers(1, 255))
    data = data[: len(data) - draw.draw(st.integers(0, 2))] + draw.draw(st.binary(max_size=2))
    try:
        back = decode(data, symbols.shape, alphabet)
    except ValueError as error:
        assert "coded data" in str(error)
    else:
        assert back.shape == symbols.shape and int(back.max(initial=0)) < alphabet


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (7, 0), (3, 5), (2, 30, 20)])
def test_numbers_come_back_to_the_bit(dtype, shape):
    dtype = np.dtype(getattr(ml_dtypes, dtype, dtype) if not dtype.startswith(">") else dtype)
    rng = np.random.default_rng(0)
    for scale in (0, 1, 300):
        array = np.array(rng.normal(size=shape) * scale).astype(np.int64 if dtype.kind in "iu" else np.float64).astype(dtype)
        back = decode_array(encode_array(array), array.shape, dtype)
        assert back.dtype == dtype and back.shape == array.shape and back.tobytes() == array.tobytes()
