"""Claim: the entropy coder lies within 0.5 % of the order-0 entropy at 300 million symbols a second, and below it by contexts.

Command: ``python -m experiments.benchmarks.entropy_coding [--symbols=10000000]`` (about 4 minutes on two idle cores)

Arrays of independent symbols, and the weights of a LeNet-300-100 on Fashion-MNIST, pruned and quantized as in
``configs/fashion_lenet300_deep.py``, but to 97 % and in fewer epochs. Every coder writes the same symbols; all are timed in
one run, the best of the calls that fit in a second. zlib and zstd get one byte a symbol. ``deep compression``
is the paper's way: Huffman codes of the gaps between weights, 5 bits, and of the kept weights' codes (Han et al. 2016).
The second table is the whole network: ours against Huffman on the same codes and float32 biases.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import constriction
import numpy as np
import zstandard
from absl import app, flags

from configs.fashion_lenet300_deep import get_config
from jaxopt_nn.coding import entropy
from jaxopt_nn.pipeline import registry
from jaxopt_nn.pipeline.compress import Compressor
from jaxopt_nn.tensors.masked import Masked

from ..common import flag_values
from ..config import checked
from ..data.images import fashion_mnist
from ..models.fashion import lenet300
from .common import emit

#: Symbols of 4 bits, the one in the middle means 0.
ALPHABET, ZERO = 16, 8


def drawn(n: int) -> Iterator[tuple[str, np.ndarray]]:
    """Independent symbols: bell-shaped, flat, peaked."""
    rng = np.random.default_rng(0)
    yield "int4 bell", np.clip(np.rint(rng.normal(scale=2.5, size=n)) + ZERO, 0, 15).astype(np.uint8)
    yield "flat over 13", rng.integers(0, 13, n, dtype=np.uint8)
    yield "2 % not 0", np.where(rng.random(n) < 0.02, rng.integers(0, 16, n), ZERO).astype(np.uint8)


def trained() -> tuple[list[tuple[str, np.ndarray]], list[np.ndarray]]:
    """Codes of the three layers and their biases."""
    prune, quantize = checked(get_config())["stages"]
    sparsity = {**prune["sparsity"], "final": 0.97}
    compressor = Compressor(
        registry.stages([{**prune, "sparsity": sparsity, "epochs": 5}, {**quantize, "epochs": 1}])
    )
    network = compressor(lenet300(), fashion_mnist(), seed=0, latency=False, sensitivity=False).network
    layers = sorted(network.variables["params"].items())
    codes = [(f"LeNet-300 {name}", in_codes(layer["kernel"])) for name, layer in layers]
    return codes, [np.asarray(layer["bias"]) for _, layer in layers]


def in_codes(kernel: Masked) -> np.ndarray:
    """The codes of a pruned, quantized kernel, 8 where it is zero."""
    return (np.rint(np.asarray(kernel.densify()) / np.asarray(kernel.frame.scale)) + ZERO).astype(np.uint8)


def entropy_bytes(symbols: np.ndarray) -> float:
    counts = np.bincount(symbols.reshape(-1))
    counts = counts[counts > 0]
    return float((counts * np.log2(symbols.size / counts)).sum()) / 8


def gaps(symbols: np.ndarray, bits: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Distances between the symbols that are not 0 and these symbols; a distance that does not fit gets a zero between."""
    flat = symbols.reshape(-1)
    places = np.flatnonzero(flat != ZERO)
    distance, most = np.diff(places, prepend=-1), 1 << bits
    fillers = (distance - 1) // most
    last = np.cumsum(fillers + 1) - 1
    steps, codes = np.full(last[-1] + 1, most), np.full(last[-1] + 1, ZERO)
    steps[last], codes[last] = distance - fillers * most, flat[places]
    return steps - 1, codes


def paper_bytes(symbols: np.ndarray) -> int:
    """Huffman codes of the gaps and of the kept weights' codes, with their tables."""
    steps, codes = gaps(symbols)
    return len(entropy.encode(steps, 32, mode="huffman")) + len(entropy.encode(codes, ALPHABET, mode="huffman"))


def coders(symbols: np.ndarray) -> Iterator[tuple[str, Callable[[], Any], Callable[[Any], Any]]]:
    """``(name, encode, decode)``."""
    shape, raw = symbols.shape, symbols.tobytes()
    ways: dict[str, dict[str, Any]] = {mode: {"mode": mode} for mode in ("raw", "huffman", "rans")}
    if symbols.size <= 1 << 20:
        ways["contexts"] = {"zero": ZERO, "contexts": True}
    ways["ours"] = {"zero": ZERO}
    for name, settings in ways.items():
        yield name, partial(entropy.encode, symbols, ALPHABET, **settings), lambda x: entropy.decode(x, shape, ALPHABET)
    yield "zlib -9", lambda: zlib.compress(raw, 9), zlib.decompress
    yield "zstd -19", lambda: zstandard.ZstdCompressor(19).compress(raw), zstandard.ZstdDecompressor().decompress
    flat = symbols.reshape(-1).astype(np.int32)
    share = np.bincount(flat, minlength=ALPHABET) / flat.size
    model = constriction.stream.model.Categorical(np.maximum(share, 1e-9), perfect=False)

    def ans() -> np.ndarray:
        coder = constriction.stream.stack.AnsCoder()
        coder.encode_reverse(flat, model)
        return coder.get_compressed()

    yield "constriction", ans, lambda data: constriction.stream.stack.AnsCoder(data).decode(model, flat.size)


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """The result and the least time of at most 20 calls, which end after a second."""
    times: list[float] = []
    while len(times) < 20 and sum(times) < 1:
        start = time.perf_counter()
        result = function()
        times.append(time.perf_counter() - start)
    return result, min(times)


def row(array: str, symbols: np.ndarray, coder: str, size: float, encode: float = 0, decode: float = 0) -> dict[str, Any]:
    bound = entropy_bytes(symbols)
    out = {"array": array, "coder": coder, "bytes": round(size), "over order-0 entropy, %": 100 * (size / bound - 1)}
    if encode:
        out |= {"encode, M symbols/s": symbols.size / encode / 1e6, "decode, M symbols/s": symbols.size / decode / 1e6}
    return out


def rows(array: str, symbols: np.ndarray) -> Iterator[dict[str, Any]]:
    yield row(array, symbols, "order-0 entropy", entropy_bytes(symbols))
    if symbols.ndim > 1:
        yield row(array, symbols, "deep compression", paper_bytes(symbols))
    for name, encode, decode in coders(symbols):
        data, writing = timed(encode)
        back, reading = timed(partial(decode, data))
        back = np.frombuffer(back, np.uint8) if isinstance(back, bytes) else back.reshape(-1)
        assert np.array_equal(back, symbols.reshape(-1)), f"{array}: {name} gives other symbols"
        yield row(array, symbols, name, memoryview(data).nbytes, writing, reading)


def networks(codes: list[np.ndarray], biases: list[np.ndarray]) -> Iterator[dict[str, Any]]:
    """The whole network's codes and biases, several ways."""
    plain = sum(bias.nbytes for bias in biases)
    ours = sum(len(entropy.encode(code, ALPHABET, zero=ZERO)) for code in codes)
    lossless = sum(len(entropy.encode_array(bias)) for bias in biases)
    half = sum(len(entropy.encode_array(bias.astype(np.float16))) for bias in biases)
    dense = sum(len(entropy.encode(code, ALPHABET, mode="huffman")) for code in codes)
    paper = sum(map(paper_bytes, codes))
    yield {"codes": "Huffman", "biases": "float32", "bytes": dense + plain}
    yield {"codes": "deep compression", "biases": "float32", "bytes": paper + plain}
    yield {"codes": "ours", "biases": "float32", "bytes": ours + plain}
    yield {"codes": "ours", "biases": "ours, float32", "bytes": ours + lossless}
    yield {"codes": "ours", "biases": "ours, float16", "bytes": ours + half}


def main(argv: Sequence[str]) -> None:
    given = flag_values(argv)
    for name, symbols in drawn(1 << 18):  # numba compiles
        list(rows(name, symbols.reshape(512, -1)))
    codes, biases = trained()
    emit([line for name, symbols in (*drawn(given.symbols), *codes) for line in rows(name, symbols)])
    whole = list(networks([symbols for _, symbols in codes], biases))
    emit([{**line, "of the paper's, %": 100 * line["bytes"] / whole[1]["bytes"]} for line in whole])


if __name__ == "__main__":
    flags.DEFINE_integer("symbols", 10_000_000, "Independent symbols in each array.")
    app.run(main)
