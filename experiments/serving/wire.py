"""Bodies of requests and responses: JSON, ``.npy`` and ``.npz`` to arrays and back, checked against the network's inputs."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

JSON, NPY, NPZ = "application/json", "application/x-npy", "application/x-npz"
FORMATS = (JSON, NPY, NPZ)
#: Bytes of a number in JSON, with comma and indentation, at most; and of all that stands around the numbers.
DIGITS, AROUND = 32, 1 << 16


#: Kinds of the dtypes that bodies hold, as NumPy names them: floats, integers, booleans.
KINDS = "fiub"


class Field(NamedTuple):
    """An input or output of the network as clients see it; ``shape`` is that of one example."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    def __str__(self) -> str:
        return shown(self.dtype, self.shape)


class Decoded(NamedTuple):
    """The inputs of a request, ``[rows, ...]`` each; ``single``: it was one example, without the first axis."""

    arrays: list[np.ndarray]
    rows: int
    single: bool


class Refused(ValueError):
    """A body that the network can't take: which ``field``, what is ``allowed`` there, and what was ``sent``."""

    def __init__(self, field: str, allowed: str, sent: str):
        super().__init__(f"{field}: sent {sent}; allowed is {allowed}")
        self.field, self.allowed, self.sent = field, allowed, sent


def shown(dtype: Any, shape: Sequence[int]) -> str:
    """``float32[8, 28, 28, 1]``."""
    return f"{dtype}[{', '.join(map(str, shape))}]"


def max_bytes(fields: Sequence[Field], max_batch: int) -> int:
    """Bytes of the longest body that may hold ``max_batch`` examples, in any format."""
    return AROUND + max_batch * sum(max(DIGITS, f.dtype.itemsize) * int(np.prod(f.shape, dtype=int)) for f in fields)


def decoded(body: bytes, kind: str, fields: Sequence[Field], max_batch: int) -> Decoded:
    """The inputs that a body holds.

    Args:
      kind: of ``FORMATS``. JSON: ``{"inputs": array}`` or ``{"inputs": {name: array}}``; ``.npy``: the only input;
        ``.npz``, uncompressed: each input by its name.

    Raises:
      Refused: damaged; a name, a shape, a dtype or a number of examples that the network doesn't take; NaN or infinity.
    """
    sent = {JSON: _of_json, NPY: _of_npy, NPZ: _of_npz}[kind](body, fields)
    for name in sent:
        if name not in (f.name for f in fields):
            raise Refused(name, " and ".join(f.name for f in fields), "an input of this name")
    arrays = [_checked(sent[f.name], f, max_batch) if f.name in sent else _missing(f) for f in fields]
    lengths = {f.name: len(x) if x.ndim > len(f.shape) else None for f, x in zip(fields, arrays)}
    rows, *_ = lengths.values()
    for name, length in lengths.items():
        if length != rows:
            each = ", ".join(f"{n} {'one example' if k is None else f'a batch of {k}'}" for n, k in lengths.items())
            raise Refused(name, "as many examples in every input", each)
    return Decoded([x if rows is not None else x[None] for x in arrays], rows or 1, rows is None)


def encoded(arrays: Sequence[np.ndarray], kind: str, fields: Sequence[Field]) -> bytes:
    """The body that holds the outputs, in a format of ``FORMATS``.

    Raises:
      ValueError: NaN or infinity, which JSON can't write; several outputs as ``.npy``.
    """
    named = {f.name: x.astype(f.dtype, copy=False) for f, x in zip(fields, arrays, strict=True)}
    if kind == JSON:
        values = {name: x.tolist() for name, x in named.items()}
        outputs: Any = values["outputs"] if list(values) == ["outputs"] else values
        return json.dumps({"outputs": outputs}, allow_nan=False).encode()
    if kind == NPY:
        (only,) = named.values()
        return npy(only)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, x in named.items():
            archive.writestr(f"{name}.npy", npy(x))
    return out.getvalue()


def npy(array: np.ndarray) -> bytes:
    """An array as the bytes of an ``.npy`` file."""
    out = io.BytesIO()
    np.lib.format.write_array(out, np.asarray(array, order="C"), allow_pickle=False)
    return out.getvalue()


def _missing(field: Field) -> np.ndarray:
    raise Refused(field.name, f"{field}, or a batch of such", "no input of this name")


def _of_json(body: bytes, fields: Sequence[Field]) -> Mapping[str, np.ndarray]:
    names = [f.name for f in fields]
    form = '{"inputs": array}' if names == ["inputs"] else f'{{"inputs": {{{", ".join(map(json.dumps, names))}: arrays}}}}'
    try:
        tree = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused("body", form, f"no JSON ({error})") from error
    if not isinstance(tree, dict) or set(tree) != {"inputs"}:
        raise Refused("body", form, f"an object with {', '.join(tree) or 'no keys'}" if isinstance(tree, dict) else "no object")
    if names == ["inputs"]:
        return {"inputs": _array(tree["inputs"], fields[0])}
    if not isinstance(tree["inputs"], dict):
        raise Refused("inputs", form, "an array without a name")
    known = {f.name: f for f in fields}
    return {name: _array(value, known[name]) if name in known else np.zeros(()) for name, value in tree["inputs"].items()}


def _array(value: Any, field: Field) -> np.ndarray:
    """Nested lists as an array of the field's dtype, where no number changes by it but by rounding to a shorter float."""
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise Refused(field.name, f"{field}, or a batch of such", "lists of unequal lengths") from error
    allowed = {"f": "iuf", "i": "iu", "u": "iu", "b": "b"}[field.dtype.kind]
    if array.size and array.dtype.kind not in allowed:
        raise Refused(field.name, f"numbers for {field.dtype}", _kinds(array.dtype.kind))
    if array.size and field.dtype.kind in "iu":
        info = np.iinfo(field.dtype)
        if array.min() < info.min or array.max() > info.max:
            raise Refused(field.name, f"whole numbers from {info.min} to {info.max}", f"{array.min()} to {array.max()}")
    with np.errstate(over="ignore"):  # infinity is refused by name
        return array.astype(field.dtype)


def _kinds(kind: str) -> str:
    said = {"b": "true or false", "f": "numbers with a point", "i": "whole numbers", "U": "strings"}
    return said.get(kind, "null, objects, or numbers too large")


def _of_npy(body: bytes, fields: Sequence[Field]) -> Mapping[str, np.ndarray]:
    if len(fields) > 1:
        raise Refused("body", f"{NPZ} or {JSON}, with the inputs {', '.join(f.name for f in fields)}", NPY)
    return {fields[0].name: _read_npy(body, fields[0].name)}


def _of_npz(body: bytes, fields: Sequence[Field]) -> Mapping[str, np.ndarray]:
    allowed = "an .npz as numpy.savez writes it"
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            members = {m.filename.removesuffix(".npy"): m for m in archive.infolist()}
            if len(members) > len(fields) or len(members) < len(archive.infolist()):
                names = ", ".join(archive.namelist())[:200]
                raise Refused("body", " and ".join(f.name for f in fields), f"the members {names}")
            if any(m.compress_type != zipfile.ZIP_STORED for m in members.values()):
                raise Refused("body", allowed, "a compressed .npz")
            return {name: _read_npy(archive.read(member), name) for name, member in members.items()}
    except Refused:
        raise
    except Exception as error:  # of a damaged archive: whatever the readers below raise
        raise Refused("body", allowed, f"no .npz ({error})") from error


def _read_npy(data: bytes, name: str) -> np.ndarray:
    """The array of an ``.npy`` file, without a copy. A header can't make it take more memory than the body has."""
    allowed = "an .npy as numpy.save writes it, in C order"
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, dtype = read(stream)
    except Exception as error:  # of a damaged header: whatever the parsers below raise
        raise Refused(name, allowed, f"no .npy ({str(error)[:100]})") from error
    if dtype.hasobject or dtype.kind not in KINDS:
        raise Refused(name, "an array of numbers", f"dtype {dtype}")
    if fortran and len(shape) > 1:
        raise Refused(name, allowed, "Fortran order")
    if min(shape, default=0) < 0:
        raise Refused(name, allowed, f"shape {list(shape)}")
    start = stream.tell()
    size = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if len(data) - start != size:
        raise Refused(name, f"{size} bytes for {shown(dtype, shape)}", f"{len(data) - start} bytes")
    return np.frombuffer(data, dtype, offset=start).reshape(shape)


def _checked(array: np.ndarray, field: Field, max_batch: int) -> np.ndarray:
    """The array, if the network takes it."""
    sent = shown(array.dtype, array.shape)
    lead = array.ndim - len(field.shape)
    if array.dtype != field.dtype:
        raise Refused(field.name, f"{field}, or a batch of such", sent)
    if lead not in (0, 1) or array.shape[lead:] != field.shape:
        raise Refused(field.name, f"{field}, or a batch of such", sent)
    if lead and not 1 <= len(array) <= max_batch:
        raise Refused(field.name, f"1 to {max_batch} examples", str(len(array)))
    if field.dtype.kind == "f" and not np.isfinite(array).all():
        at = tuple(map(int, np.argwhere(~np.isfinite(array))[0]))
        raise Refused(field.name, "finite numbers", f"{array[at]} at {list(at)}")
    return array
