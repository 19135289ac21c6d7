"""Claim: a network of 135M parameters in 4 bits is written in any format in under 30 s, without a float copy of its weights.

Command: ``python -m experiments.benchmarks.export_time [--small]`` (about 3 minutes, 2 GB)

The network is ``experiments/models/gpt.py`` at width 576, 30 layers, vocabulary 49,152, with random weights, in groups of 64
along the inputs: scanned and unrolled. Each format is written in a process of its own, which makes the weights first; its
seconds hold the writing alone, with all compilations. ``peak`` is what the resident memory rose by while it wrote, at its
highest, sampled each 5 ms; ``stored`` are the bytes of the weights, ``float`` those of their float32 form. ``jax`` is the
artifact with programs for cpu and tpu. ``--one=safetensors,scanned`` measures one of them in this process.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import jaxopt_nn as jn

from ..export import CONTAINERS
from ..models.gpt import GPT
from .common import emit

FORMATS = ("jax", *CONTAINERS)
LARGE = {"vocabulary": 49_152, "width": 576, "layers": 30, "heads": 9, "kv_heads": 3, "hidden": 1536}
SMALL = {"vocabulary": 512, "width": 64, "layers": 2, "heads": 4, "kv_heads": 2, "hidden": 128}
GROUP = 64


def network(sizes: dict[str, int], scan: bool) -> tuple[jn.Network, jax.Array]:
    """The network with random codes, and an example of its input. No float weight is made."""
    model, tokens = GPT(**sizes, scan=scan), jnp.zeros((1, 16), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)
    net = jn.linen(model, shapes)
    return net.replace(variables=jax.tree.map_with_path(lambda path, x: coded(x, path[-1].key), shapes)), tokens


def coded(shape: jax.ShapeDtypeStruct, name: str) -> Any:
    """A matrix as 4-bit codes in groups along its inputs: an embedding's are its columns; vectors are ones."""
    if name == "scale":
        return jnp.ones(shape.shape, shape.dtype)
    axis = shape.ndim - 1 if name == "embedding" else shape.ndim - 2
    groups = tuple(n // GROUP if a == axis else n for a, n in enumerate(shape.shape))
    codes = jax.random.randint(jax.random.key(0), shape.shape, -8, 8, jnp.int8)
    return jn.QTensor.from_codes(codes, jnp.full(groups, 0.01), bits=4, stack=range(shape.ndim - 2))


def measured(name: str, scan: bool, sizes: dict[str, int], out: Path) -> dict[str, Any]:
    """Writes one format and times it."""
    net, tokens = network(sizes, scan)
    weights = jax.block_until_ready(net.variables)
    with peak_memory() as rise:
        start = time.perf_counter()
        if name == "jax":
            written = jn.save(out / name, net, programs=jn.exported(net, (tokens,), ("cpu", "tpu")))
        else:
            file, write, _ = CONTAINERS[name]
            written = write(out / file, weights)
        seconds = time.perf_counter() - start
    leaves = jax.tree.leaves(weights, is_leaf=jn.is_compressed)
    return {
        "format": name, "layers": "scanned" if scan else "unrolled", "parameters": sum(x.size for x in leaves),
        "seconds": seconds, "bytes": written.bytes, "stored": jn.nbytes(weights), "peak": rise[0],
        "float": 4 * sum(x.size for x in leaves),
    }  # fmt: skip


@contextlib.contextmanager
def peak_memory() -> Iterator[list[int]]:
    """The most bytes that the resident memory rises by during the block, in a list of one."""
    start, rise, done = resident(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            rise[0] = max(rise[0], resident() - start)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield rise
    finally:
        done.set()
        thread.join()


def resident() -> int:
    """Bytes of this process in memory (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return 1024 * int(line.split()[1])
    raise OSError("/proc/self/status tells no resident memory")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--small", action="store_true", help="a network of 0.2M parameters")
    parser.add_argument("--one", help="a format and scanned or unrolled, in this process: jax,scanned")
    given = parser.parse_args()
    sizes = SMALL if given.small else LARGE
    if given.one:
        name, layers = given.one.split(",")
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measured(name, layers == "scanned", sizes, Path(folder))))
        return
    rows = []
    for one in (f"{name},{layers}" for layers in ("scanned", "unrolled") for name in FORMATS):
        words = [sys.executable, "-m", "experiments.benchmarks.export_time", f"--one={one}", *(["--small"] * given.small)]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{one}: {done.stderr[-2000:]}")
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    emit(rows)


if __name__ == "__main__":
    main()
