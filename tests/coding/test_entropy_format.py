"""The format: streams that must stay readable, and a reader written from ``FORMAT.md`` alone."""

from __future__ import annotations

import importlib.util
import json
import pathlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxopt_nn.coding.entropy import codec, decode, decode_array, encode, model

HERE = pathlib.Path(__file__).parent
GOLDEN = json.loads((HERE.parent / "golden" / "entropy.json").read_text())
_spec = importlib.util.spec_from_file_location("entropy_reader", HERE / "entropy_reader.py")
reader = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(reader)
FEW = settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def symbols_of(entry) -> np.ndarray:
    flat = np.full(int(np.prod(entry["shape"])), entry["fill"])
    flat[[int(i) for i in entry["others"]]] = list(entry["others"].values())
    return flat.reshape(entry["shape"])


@pytest.mark.parametrize("entry", GOLDEN["symbols"], ids=lambda entry: entry["name"])
def test_streams_of_version_1_stay_readable(entry):
    data, alphabet = bytes.fromhex(entry["data"]), entry["alphabet"]
    np.testing.assert_array_equal(decode(data, entry["shape"], alphabet), symbols_of(entry))
    if np.prod(entry["shape"]) < 1000:  # the reader is slow
        assert reader.decode(data, entry["shape"], alphabet) == symbols_of(entry).reshape(-1).tolist()


@pytest.mark.parametrize("entry", GOLDEN["numbers"], ids=lambda entry: entry["dtype"])
def test_numbers_of_version_1_stay_readable(entry):
    numbers = np.frombuffer(bytes.fromhex(entry["numbers"]), entry["dtype"])
    back = decode_array(bytes.fromhex(entry["data"]), numbers.shape, numbers.dtype)
    assert back.tobytes() == numbers.tobytes()


def test_the_golden_streams_are_of_every_kind():
    heads = [int(entry["data"][:2], 16) for entry in GOLDEN["symbols"]]
    assert {head & 7 for head in heads} == set(range(len(codec.MODES)))
    assert {head >> 3 & 3 for head in heads if head & 7 == codec.ADAPTIVE} == {0, 1, 3}
    assert {head >> 6 for head in heads if head & 7 == codec.ADAPTIVE} == {0, 1, 2}
    assert {int(entry["data"][:2], 16) for entry in GOLDEN["numbers"]} == {0, 1, 2}


@FEW
@given(st.data())
def test_the_reader_of_the_format_reads_what_is_written(data):
    draw = data.draw
    alphabet = draw(st.sampled_from([2, 3, 16, 50, 300, 65536]))
    shape = draw(st.sampled_from([(1,), (60,), (12, 9), (2, 5, 8), (3, 1, 7), (40, 1)]))
    rng, zero = np.random.default_rng(draw(st.integers(0, 2**32))), draw(st.integers(0, alphabet - 1))
    symbols = np.where(rng.random(shape) < 0.4, rng.integers(0, alphabet, shape), zero)
    options = model.Options(True, draw(st.booleans()), draw(st.integers(0, 3)), draw(st.integers(0, 9)))
    modes = (None, "rans", "huffman", "adaptive")
    written = [encode(symbols, alphabet, zero=zero, mode=mode, contexts=False) for mode in modes]
    written.append(model.encode(symbols, alphabet, zero, codec.ADAPTIVE, 10_000, options))
    for stream in written:
        assert reader.decode(stream, shape, alphabet) == symbols.reshape(-1).tolist()
        np.testing.assert_array_equal(decode(stream, shape, alphabet), symbols)
