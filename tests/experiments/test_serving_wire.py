"""Bodies of requests: arrays come through as they are, and what the network can't take is refused by name."""

import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from experiments.serving import wire
from experiments.serving.wire import JSON, NPY, NPZ, Field, Refused, decoded, encoded, npy

IMAGE = [Field("inputs", (2, 3), np.dtype(np.float32))]
PAIR = [Field("ids", (4,), np.dtype(np.int32)), Field("mask", (), np.dtype(bool))]
HALF = [Field("inputs", (2,), np.dtype(np.float16))]
X = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
finite = {"allow_nan": False, "allow_infinity": False}


def npz(save=np.savez, **named):
    out = io.BytesIO()
    save(out, **named)
    return out.getvalue()


def text(value):
    return json.dumps({"inputs": value}).encode()


@given(st.data(), st.integers(0, 5))
def test_arrays_come_through(data, rows):
    x = data.draw(arrays.arrays(np.float32, (rows, 2, 3) if rows else (2, 3), elements=st.floats(width=32, **finite)))
    for kind, body in ((NPY, npy(x)), (JSON, text(x.tolist())), (NPZ, npz(inputs=x))):
        got = decoded(body, kind, IMAGE, 5)
        assert (got.rows, got.single) == (rows or 1, not rows)
        np.testing.assert_array_equal(got.arrays[0], x if rows else x[None], strict=True)


@pytest.mark.parametrize("rows", [None, 3])
def test_several_inputs_by_name(rows):
    lead = () if rows is None else (rows,)
    ids, mask = np.full((*lead, 4), 7, np.int32), np.ones(lead, bool)
    for kind, body in ((JSON, text({"mask": mask.tolist(), "ids": ids.tolist()})), (NPZ, npz(ids=ids, mask=mask))):
        got = decoded(body, kind, PAIR, 8)
        assert [x.dtype for x in got.arrays] == [np.int32, bool] and got.rows == (rows or 1)
        np.testing.assert_array_equal(got.arrays[0], ids.reshape(-1, 4))


@given(arrays.arrays(np.float32, (3, 2), elements=st.floats(width=32, **finite)))
def test_outputs_are_read_by_numpy_and_json(x):
    alone, two = [Field("outputs", (2,), x.dtype)], [Field("a/b", (2,), x.dtype), Field("file", (2,), x.dtype)]
    np.testing.assert_array_equal(np.load(io.BytesIO(encoded([x], NPY, alone))), x)
    np.testing.assert_array_equal(np.float32(json.loads(encoded([x], JSON, alone))["outputs"]), x)
    both = np.load(io.BytesIO(encoded([x, -x], NPZ, two)))
    np.testing.assert_array_equal([both["a/b"], both["file"]], [x, -x])
    assert set(json.loads(encoded([x, x], JSON, two))["outputs"]) == {"a/b", "file"}


def test_a_number_that_json_lacks_is_no_answer():
    with pytest.raises(ValueError, match="JSON"):
        encoded([np.float32([[np.nan]])], JSON, [Field("outputs", (1,), np.dtype(np.float32))])


huge = npy(X).replace(b"(1, 2, 3)", b"(1, 2, 9)")
negative = npy(X).replace(b"(1, 2, 3)", b"(-1, 2,-3)").replace(b" \n", b"\n", 1)
REFUSED = {
    "no JSON": (JSON, b"{", IMAGE, "body", "no JSON"),
    "deep": (JSON, b'{"inputs": ' + b"[" * 100_000, IMAGE, "body", "no JSON"),
    "no object": (JSON, b"[1, 2]", IMAGE, "body", "no object"),
    "another key": (JSON, b'{"input": [1]}', IMAGE, "body", "an object with input"),
    "ragged": (JSON, text([[1, 2], [3]]), IMAGE, "inputs", "lists of unequal lengths"),
    "strings": (JSON, text([["a"] * 3] * 2), IMAGE, "inputs", "strings"),
    "null": (JSON, text([[None] * 3] * 2), IMAGE, "inputs", "null"),
    "true": (JSON, text([[True] * 3] * 2), IMAGE, "inputs", "true or false"),
    "NaN": (JSON, b'{"inputs": [[1, 2, 3], [1, NaN, 3]]}', IMAGE, "inputs", r"nan at \[1, 1\]"),
    "too large": (JSON, text([1.0, 1e9]), HALF, "inputs", r"inf at \[1\]"),
    "shape": (JSON, text([[1, 2], [3, 4]]), IMAGE, "inputs", r"float32\[2, 2\]"),
    "nothing": (JSON, text([]), IMAGE, "inputs", r"float32\[0\]"),
    "no rows": (NPY, npy(X[:0]), IMAGE, "inputs", "allowed is 1 to 5 examples"),
    "too many rows": (NPY, npy(np.tile(X, (6, 1, 1))), IMAGE, "inputs", "sent 6; allowed is 1 to 5 examples"),
    "dtype": (NPY, npy(X.astype(float)), IMAGE, "inputs", r"float64\[1, 2, 3\]"),
    "byte order": (NPY, npy(X.astype(">f4")), IMAGE, "inputs", r">f4\[1, 2, 3\]"),
    "axes": (NPY, npy(X[None]), IMAGE, "inputs", r"float32\[1, 1, 2, 3\]"),
    "infinity": (NPY, npy(X - np.float32(np.inf)), IMAGE, "inputs", r"-inf at \[0, 0, 0\]"),
    "no npy": (NPY, b"PK", IMAGE, "inputs", "no .npy"),
    "cut": (NPY, npy(X)[:-1], IMAGE, "inputs", "23 bytes"),
    "longer": (NPY, npy(X) + b"a", IMAGE, "inputs", "25 bytes"),
    "header of more": (NPY, huge, IMAGE, "inputs", "allowed is 72 bytes"),
    "negative shape": (NPY, negative, IMAGE, "inputs", "shape"),
    "Fortran": (NPY, npy(X[0]).replace(b"False", b"True "), IMAGE, "inputs", "Fortran order"),
    "strings in npy": (NPY, npy(np.array(["a"])), IMAGE, "inputs", "dtype <U1"),
    "npy for two": (NPY, npy(X), PAIR, "body", "ids, mask"),
    "no npz": (NPZ, npy(X), IMAGE, "body", "no .npz"),
    "compressed": (NPZ, npz(np.savez_compressed, inputs=X), IMAGE, "body", "a compressed .npz"),
    "another name": (NPZ, npz(ids=np.zeros(4, np.int32), masks=np.ones((), bool)), PAIR, "masks", "ids and mask"),
    "more names": (NPZ, npz(inputs=X, x=X), IMAGE, "body", "the members inputs.npy, x.npy"),
    "no such input": (JSON, text({"ids": [1, 2, 3, 4]}), PAIR, "mask", "no input of this name"),
    "without names": (JSON, text([1, 2]), PAIR, "inputs", "without a name"),
    "a point": (JSON, text({"ids": [1.5, 2, 3, 4], "mask": True}), PAIR, "ids", "numbers with a point"),
    "beyond int32": (JSON, text({"ids": [1, 2, 3, 2**31], "mask": True}), PAIR, "ids", "2147483647"),
    "beyond int64": (JSON, text({"ids": [1, 2, 3, 2**70], "mask": True}), PAIR, "ids", "too large"),
    "two lengths": (JSON, text({"ids": [[1, 2, 3, 4]] * 2, "mask": [True]}), PAIR, "mask", "a batch of 2"),
    "batch and one": (JSON, text({"ids": [[1, 2, 3, 4]], "mask": True}), PAIR, "mask", "mask one example"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name):
    kind, body, fields, field, message = REFUSED[name]
    with pytest.raises(Refused, match=message) as raised:
        decoded(body, kind, fields, 5)
    assert raised.value.field == field and raised.value.allowed and raised.value.sent
    assert str(raised.value).startswith(f"{field}: sent ")


def test_no_pickle_is_read():
    body = io.BytesIO()
    np.save(body, np.array([{}], object), allow_pickle=True)
    with pytest.raises(Refused, match="dtype object"):
        decoded(body.getvalue(), NPY, IMAGE, 5)


@given(st.sampled_from([NPY, NPZ, JSON]), st.binary(max_size=200), st.integers(0, 400), st.sampled_from([IMAGE, PAIR, HALF]))
def test_any_damage_is_refused_or_gives_what_the_network_takes(kind, noise, at, fields):
    whole = {NPY: npy(X), NPZ: npz(inputs=X), JSON: text(X.tolist())}[kind]
    for body in (noise, whole[:at] + noise + whole[at + len(noise) :], whole[:at], whole[: at // 2] + noise + whole[at:]):
        try:
            arrays, rows, _ = decoded(body, kind, fields, 5)
        except Refused as refusal:
            assert str(refusal)
        else:
            assert 1 <= rows <= 5 and [x.shape for x in arrays] == [(rows, *field.shape) for field in fields]
            assert [x.dtype for x in arrays] == [field.dtype for field in fields]
            assert all(np.isfinite(x).all() for x in arrays)


def test_the_longest_body_fits():
    x = np.full((5, 2, 3), -1.2345678e-38, np.float32)
    limit = wire.max_bytes(IMAGE, 5)
    assert all(len(body) <= limit for body in (npy(x), npz(inputs=x), json.dumps({"inputs": x.tolist()}, indent=1).encode()))
