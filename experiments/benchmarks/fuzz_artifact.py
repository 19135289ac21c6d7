"""Loads mutated files: each must give the documented error or a tree, and nothing else.

    python -m experiments.benchmarks.fuzz_artifact [--count=100000] [--seed=0]

Half of the mutants are bytes changed, cut out, doubled or added. In the others the checksums are made right again, so that what
lies behind them is reached: the header's text or its parts, or the data of a frame, were changed. Each mutant is loaded with
``max_bytes`` of 1 MiB, in a process whose memory is limited. Prints how they ended as a JSON line: ``ValueError``, a
tree (only where checksums were made right: then the mutant is a sound file of that tree), or what must never be. The exit
status is 1 where something was.
"""

from __future__ import annotations

import argparse
import collections
import io
import json
import random
import resource
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_nn as jn
from jaxopt_nn.coding import header

from .common import emit

#: What a load may take: arrays, and all else that Python and JAX need.
ARRAYS, PROCESS = 2**20, 6 * 2**30
#: CPU seconds that a load may take.
LONG = 5.0


def network() -> Any:
    """A small tree with every kind of node, and each way to code an array."""
    rng = np.random.default_rng(0)
    floats = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    v = {"a": floats(12, 5), "b": floats(8, 6), "c": floats(2, 8, 4), "d": floats(6, 6), "e": floats(4, 4)}
    method = jn.by_path([
        ("a", jn.quantize(3, symmetric=False)),
        ("b", jn.chain(jn.prune(sparsity=0.75), jn.quantize(4))),
        ("c", jn.prune(structure=jn.n_of_m(2, 4))),
        ("d", jn.prune(sparsity=0.5)),
        ("e", jn.quantize(8)),
    ])  # fmt: skip
    packed = method.pack(v, method.init(v))
    rest = {"key": jax.random.key(7), "n": jnp.zeros((), jnp.int32), "none": None, "empty": jnp.zeros((0, 3))}
    return {**packed, **rest, "list": [floats(3), (jnp.ones(2, jnp.bfloat16),)], "ints": {1: floats(3), 0: np.arange(3.0)}}


def parts(data: bytes) -> tuple[bytes, list[bytes]]:
    """The header's JSON and the data of each frame of a sound file."""
    stream = io.BytesIO(data)
    _, checksum = header.read(stream, len(data))
    stream.seek(len(header.MAGIC) + 1)
    length, _ = header.read_varint(stream, len(data))
    text = zlib.decompressobj(-15, zdict=header.DICTIONARY).decompress(stream.read(length))
    stream.seek(4, 1)
    frames, found = header.Frames(stream, checksum, len(data)), []
    while stream.tell() < len(data):
        found.append(frames.read()[0]())
    return text, found


def sealed(text: bytes, frames: list[bytes]) -> bytes:
    """A file of any header and frames, with right checksums."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, header.DICTIONARY)
    body = packer.compress(text) + packer.flush()
    start = header.MAGIC + bytes([header.VERSION]) + header.varint(len(body)) + body
    stream = io.BytesIO()
    checksum = zlib.crc32(start)
    stream.write(start + checksum.to_bytes(4, "little"))
    out = header.Frames(stream, checksum)
    for data in frames:
        out.write(data)
    return stream.getvalue()


def changed(data: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, cut out, doubled or added."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at = rng.randrange(len(out) + 1)
        what = rng.randrange(6)
        if what == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif what == 1 and at < len(out):
            out[at] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        elif what == 2:
            del out[at : at + rng.choice((1, 2, 16, len(out)))]
        elif what == 3:
            out[at:at] = rng.randbytes(rng.choice((1, 2, 16)))
        elif what == 4:
            out[at:at] = out[at : at + rng.choice((1, 8, 64))]
        else:
            out[at : at + 8] = rng.randbytes(8)
    return bytes(out)


def mutated_json(node: Any, rng: random.Random) -> Any:
    """JSON with one value of it changed, swapped or taken away."""
    places = list(_places(node, []))
    node = json.loads(json.dumps(node))
    holder = node
    *way, last = rng.choice(places)
    for key in way:
        holder = holder[key]
    value = holder[last]
    strange = [None, True, -1, 0, 1, 2, 7, 8, 9, 255, 2**31, 2**47, 10**30, 0.5, "", "x", [], {}, [None], ["list"], "float32 3"]
    kinds = ["QTensor", "Masked", "NofM", "Decoded", "key", "list", "tuple", "dict", "int4 3", "uint8 9/4 0 18", "bool 2 2"]
    what = rng.randrange(6)
    if what == 0:
        del holder[last]
    elif what == 1 and type(value) is int:
        holder[last] = value + rng.choice((-1, 1, 8, 10**6, 10**12))
    elif what == 2 and isinstance(value, str) and value:
        holder[last] = _text(value, rng)
    elif what == 3 and len(places) > 1:
        other = node
        for key in rng.choice(places):
            other = other[key]
        holder[last] = json.loads(json.dumps(other))
    elif what == 4:
        holder[last] = rng.choice(kinds)
    else:
        holder[last] = rng.choice(strange)
    return node


def _text(value: str, rng: random.Random) -> str:
    words = value.split(" ")
    at = rng.randrange(len(words))
    words[at] = rng.choice(("0", "1", "9", "4096", "99999999", "999999999999999", words[at] + "1", words[at][1:], "int4"))
    return " ".join(words)


def _places(node: Any, way: list[Any]) -> Iterator[list[Any]]:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield [*way, key]
        yield from _places(value, [*way, key])


def mutant(data: bytes, text: bytes, frames: list[bytes], rng: random.Random) -> tuple[bytes, bool]:
    """A mutant, and whether its checksums are right."""
    what = rng.randrange(8)
    if what < 4:
        return changed(data, rng), False
    if what == 4:
        return sealed(changed(text, rng), frames), True
    if what == 5:
        at, own = rng.randrange(len(frames)), list(frames)
        own[at] = changed(own[at], rng)
        return sealed(text, own), True
    node = json.loads(text)
    for _ in range(rng.choice((1, 1, 2, 3))):
        node = mutated_json(node, rng) if node else node
    return sealed(json.dumps(node, separators=(",", ":")).encode(), frames), True


def outcome(path: Path, whole: Any, right: bool) -> str:
    """How loading a mutant ends."""
    begin = time.process_time()
    try:
        tree, _ = jn.load_file(path, max_bytes=ARRAYS)
        taken = sum(x.size * x.dtype.itemsize if isinstance(x, np.ndarray) else x.nbytes for x in jax.tree.leaves(tree))
        same = jax.tree.structure(tree) == jax.tree.structure(whole) and all(map(_equal, *map(jax.tree.leaves, (tree, whole))))
        said = "the same tree" if same else "another tree"
        said = said if right else f"NEVER: {said}, damage not reported"
        said = "NEVER: more memory than allowed" if taken > ARRAYS + 4096 else said
    except ValueError:
        said = "ValueError"
    except Exception as error:
        said = f"NEVER: {type(error).__name__}: {str(error)[:150]}"
    return "NEVER: took long" if time.process_time() - begin > LONG else said


def _equal(a: Any, b: Any) -> bool:
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        return a.dtype == b.dtype and _equal(jax.random.key_data(a), jax.random.key_data(b))
    return a.dtype == b.dtype and a.shape == b.shape and np.asarray(a).tobytes() == np.asarray(b).tobytes()


def run(count: int, seed: int, folder: Path) -> dict[str, int]:
    """How ``count`` mutants ended: ``{outcome: number}``; a mutant that ended as none may is kept in the folder."""
    rng, whole = random.Random(seed), network()
    data = jn.save_file(folder / "whole.jn", whole, recipe=["r"], extra={"x": 1}, files={"f": b"abc"}, chunk=64, overwrite=True)
    sound = data.path.read_bytes()
    text, frames = parts(sound)
    assert sealed(text, frames) == sound and outcome(data.path, whole, True) == "the same tree"
    counts: collections.Counter[str] = collections.Counter()
    for i in range(count):
        mutated, right = mutant(sound, text, frames, rng)
        path = folder / "mutant.jn"
        path.write_bytes(mutated)
        said = outcome(path, whole, right or mutated == sound)
        if said.startswith("NEVER"):
            (folder / f"never-{i}.jn").write_bytes(mutated)
        counts[said] += 1
    return dict(counts)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", default=None, help="where mutants that ended badly are kept")
    args = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (PROCESS, PROCESS))
    begin = time.perf_counter()
    counts = run(args.count, args.seed, Path(args.folder or tempfile.mkdtemp()))
    emit([{"mutants": args.count, "seconds": round(time.perf_counter() - begin, 1), **counts}])
    sys.exit(any(said.startswith("NEVER") for said in counts))


if __name__ == "__main__":
    main()
