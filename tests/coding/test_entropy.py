"""Symbols and numbers come back; what is damaged raises or stays inside the alphabet."""

from __future__ import annotations

import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxopt_nn.coding.entropy import compiled, decode, decode_array, encode, encode_array

DTYPES = ["bool", "int8", "uint8", "int16", "uint32", "int64", "float16", "float32", "float64", "complex64", "bfloat16"]
DTYPES += ["int4", "uint4", "float8_e4m3fn", ">f4"]
FEW = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])


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
@given(arrays(), st.sampled_from([None, "raw", "rans", "huffman", "adaptive"]), st.sampled_from([None, True, False]))
def test_symbols_come_back(case, mode, contexts):
    symbols, alphabet, zero = case
    data = encode(symbols, alphabet, zero=zero, mode=mode, contexts=contexts)
    back = decode(data, symbols.shape, alphabet)
    assert back.dtype == (np.uint8 if alphabet <= 256 else np.uint16) and back.shape == symbols.shape
    np.testing.assert_array_equal(back, symbols)


@FEW
@given(arrays(), st.sampled_from([None, "raw", "rans", "huffman", "adaptive"]), st.data())
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
        assert "coded data is damaged" in str(error)
    else:
        assert back.shape == symbols.shape and int(back.max(initial=0)) < alphabet


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (7, 0), (2, 9, 20)])
def test_numbers_come_back_to_the_bit(dtype, shape):
    dtype = np.dtype(getattr(ml_dtypes, dtype, dtype) if not dtype.startswith(">") else dtype)
    rng = np.random.default_rng(0)
    for scale in (0, 100):
        array = np.array(rng.normal(size=shape) * scale).astype(np.int64 if dtype.kind in "iu" else np.float64).astype(dtype)
        back = decode_array(encode_array(array), array.shape, dtype)
        assert back.dtype == dtype and back.shape == array.shape and back.tobytes() == array.tobytes()


@pytest.mark.parametrize("share", [1.0, 0.03])
def test_chunks_come_back_from_any_number_of_threads(share):
    rng = np.random.default_rng(0)
    symbols = np.where(rng.random(400_000) < share, rng.integers(0, 5, 400_000), 0)
    data = [encode(symbols, 5, threads=threads, contexts=False) for threads in (1, 2, None)]
    assert data[0] == data[1] == data[2]
    for threads in (1, 3):
        np.testing.assert_array_equal(decode(data[0], symbols.shape, 5, threads=threads), symbols)


def test_many_symbols_with_long_frequencies_come_back():
    symbols = (np.random.default_rng(0).zipf(1.2, (100, 200)) % 65536).astype(np.uint16)
    for mode in ("rans", "huffman", "adaptive"):
        data = encode(symbols, 65536, mode=mode, contexts=False)
        np.testing.assert_array_equal(decode(data, symbols.shape, 65536), symbols)


@pytest.mark.parametrize("mode", range(8))
def test_few_bytes_for_a_large_shape_are_told_or_read_without_more_memory(mode):
    """A damaged stream may go on for ever: zeros past its end are decisions too."""
    tracemalloc.start()
    for rest in (b"", b"\0", b"\xff" * 9, b"\x10\x03\x02\x02\xff\xff"):
        for flags in (0, 8, 0x48, 0x58):
            try:
                back = decode(bytes([mode | flags]) + rest, (100, 300), 16)
            except ValueError:
                continue
            assert back.shape == (100, 300) and int(back.max()) < 16
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


def test_a_stack_of_matrices_may_be_anything():
    """Sheets that follow each other, read by columns, whose rows are one matrix's."""
    rng = np.random.default_rng(0)
    rows = rng.random((1, 30, 1)) < 0.4
    symbols = np.where(rows & (rng.random((9, 30, 20)) < 0.5), rng.integers(0, 16, (9, 30, 20)), 8)
    one = encode(symbols, 16, zero=8)
    np.testing.assert_array_equal(decode(one, symbols.shape, 16), symbols)
    assert len(one) < sum(len(encode(sheet, 16, zero=8)) for sheet in symbols)


def test_other_layouts_of_memory_and_dtypes_are_the_same_symbols():
    symbols = np.random.default_rng(0).integers(0, 7, (40, 30))
    data = encode(symbols, 7)
    for same in (symbols.astype(">i4"), np.asfortranarray(symbols), symbols.astype(np.int8).tolist(), symbols[::-1][::-1]):
        assert encode(same, 7) == data
    for same in (bytearray(data), memoryview(data), np.frombuffer(data, np.uint8)):
        np.testing.assert_array_equal(decode(same, (40, 30), 7), symbols)


def test_loops_are_compiled_where_nothing_can_be_written(monkeypatch):
    """numba raises where no folder for machine code can be written to."""
    calls = []

    def njit(**settings):
        calls.append(settings)
        if settings.get("cache"):
            raise RuntimeError("cannot cache function 'f': no locator available for file 'f.py'")
        return lambda function: function

    monkeypatch.setattr(compiled.numba, "njit", njit)
    assert compiled.compiled(abs) is abs and calls == [{"nogil": True, "cache": True}, {"nogil": True}]
