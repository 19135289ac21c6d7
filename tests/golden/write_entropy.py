"""Writes ``tests/golden/entropy.json``: streams of version 1 of the entropy coder, one of each kind, with their symbols.

``python tests/golden/write_entropy.py``. The file is not to be written anew: what it holds must stay readable.
"""

import json
import pathlib

import numpy as np

from jaxopt_nn.coding.entropy import codec, encode, encode_array, model, static

TARGET = pathlib.Path(__file__).with_name("entropy.json")


def cells(shape, alphabet, fill, share):
    rng = np.random.default_rng(7)
    return np.where(rng.random(shape) < share, rng.integers(0, alphabet, shape), fill)


def entry(name, symbols, alphabet, data):
    fill = int(np.bincount(symbols.reshape(-1)).argmax())
    others = {int(i): int(symbols.reshape(-1)[i]) for i in np.flatnonzero(symbols.reshape(-1) != fill)}
    return {
        "name": name, "shape": symbols.shape, "alphabet": alphabet, "fill": fill, "others": others, "data": data.hex()
    }  # fmt: skip


def symbol_entries():
    small, long, wide = cells((9, 7), 5, 2, 0.4), cells(70_000, 16, 3, 0.002), cells((30, 4), 1000, 500, 0.5)
    for mode in ("raw", "rans", "huffman", "adaptive"):
        yield entry(mode, small, 5, encode(small, 5, mode=mode, contexts=False))
    yield entry("constant", np.full((3, 2), 200), 256, encode(np.full((3, 2), 200), 256))
    static.CHUNK_BYTES, static.SEVERAL_LANES = 1, 1
    yield entry("rans, chunks of eight lanes", long, 16, encode(long, 16, mode="rans"))
    static.SUMS = (24,)
    yield entry("rans, wide", wide, 1000, encode(wide, 1000, mode="rans"))
    sheets, high = cells((3, 12, 10), 16, 8, 0.3).astype(np.uint8), cells((40, 30), 3, 1, 0.2).astype(np.uint8)
    for turned in (False, True):
        for arrangement in range(4):
            options = model.Options(True, turned, arrangement, 4 * (arrangement % 2))
            data = model.encode(sheets, 16, 8, codec.ADAPTIVE, 10_000, options)
            yield entry(f"contexts, {options}", sheets, 16, data)
    yield entry("contexts, wide", wide, 1000, model.encode(wide, 1000, 500, codec.ADAPTIVE, 10_000, model.Options(True)))
    yield entry("contexts, zero last", high, 3, model.encode(high, 3, 2, codec.ADAPTIVE, 10_000, model.Options(True)))


def number_entries():
    values = np.arange(-40, 40) / 8
    for dtype in ("float32", "float16", "int16", "uint8", "bool", "complex64"):
        array = values.astype(dtype)
        yield {"dtype": dtype, "numbers": array.tobytes().hex(), "data": encode_array(array).hex()}
    repeated = np.repeat(np.float32([0.1, 0.2, -0.3]), 40)
    yield {"dtype": "float32", "numbers": repeated.tobytes().hex(), "data": encode_array(repeated).hex()}
    noise = np.frombuffer(np.random.default_rng(0).bytes(64), np.uint32)
    yield {"dtype": "uint32", "numbers": noise.tobytes().hex(), "data": encode_array(noise).hex()}


if __name__ == "__main__":
    written = {"symbols": list(symbol_entries()), "numbers": list(number_entries())}
    lines = (f'"{key}": [\n' + ",\n".join(map(json.dumps, entries)) + "\n]" for key, entries in written.items())
    TARGET.write_text("{" + ",\n".join(lines) + "}\n")
