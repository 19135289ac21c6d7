"""Claim: a tree of 1e8 parameters in 4 bits is saved and loaded in seconds, in the memory of its arrays and a few chunks.

Command: ``python -m experiments.benchmarks.artifact_file [--small] [--layers=24]`` (about 2 minutes, 1 GB)

The tree is a stack of layers of 4-bit codes of normally distributed weights, with float32 scales in groups of 64 and biases.
Each step runs in a process of its own: ``save``; ``load`` whole; ``load, 8 devices``, on eight host devices, each array split
along its last axis from the start; ``load, 1 layer`` of it, by a pattern; and the same tree in the folder of
``save_artifact``. ``seconds`` are of the call alone, after a small tree was saved and loaded, so that nothing is imported or
compiled in it. ``CPU`` are the seconds of all threads: where others use the machine too, they tell more. ``peak`` is what the
resident memory rose by while it ran, at its highest, sampled each 5 ms; ``arrays`` are the bytes of the tree as it lies in
memory, which a load must take and a save has before it starts.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxopt_nn as jn

from .common import emit
from .export_time import peak_memory

STEPS = ("save", "load", "load, 8 devices", "load, 1 layer", "folder, save", "folder, load")
WIDTH, GROUP = 2048, 64


def tree(layers: int, width: int) -> dict[str, Any]:
    """Layers of ``width * width`` codes, drawn from a normal distribution, and their biases."""
    rng = np.random.default_rng(0)
    made = {}
    for i in range(layers):
        codes = np.clip(np.rint(rng.standard_normal((width, width), np.float32) * 2.6), -8, 7).astype(np.int8)
        scale = rng.uniform(0.01, 0.02, (width // GROUP, width)).astype(np.float32)
        made[f"layer_{i}"] = {"kernel": jn.QTensor.from_codes(jnp.asarray(codes), scale, bits=4), "bias": jnp.zeros(width)}
    return made


def warm(path: Path) -> None:
    """Saves and loads a small tree with all kinds of arrays of the large one."""
    jn.save_file(path, tree(1, 256), overwrite=True)
    jn.load_file(path)
    jn.load_artifact(jn.save_artifact(path.with_suffix(".tree"), {"w": jnp.ones(3)}, overwrite=True))


def step(name: str, path: Path, layers: int, width: int) -> dict[str, Any]:
    """One step, timed."""
    folder = path.with_suffix(".folder")
    made = tree(layers, width) if name.endswith("save") else None
    if name == "load, 8 devices":
        mesh = jax.make_mesh((8,), ("model",), axis_types=(AxisType.Auto,))
        split = lambda path, leaf: NamedSharding(mesh, PartitionSpec(*[None] * (leaf.ndim - 1), "model"))
    calls = {
        "save": lambda: jn.save_file(path, made, overwrite=True),
        "load": lambda: jn.load_file(path),
        "load, 8 devices": lambda: jn.load_file(path, sharding=split),
        "load, 1 layer": lambda: jn.load_file(path, only="layer_1/*"),
        "folder, save": lambda: jn.save_artifact(folder, made, overwrite=True),
        "folder, load": lambda: jn.load_artifact(folder),
    }
    warm(path.with_suffix(".warm"))
    with peak_memory() as peak:
        begin, work = time.perf_counter(), time.process_time()
        done = calls[name]()
        if not name.endswith("save"):
            jax.block_until_ready([x for x in jax.tree.leaves(done[0]) if isinstance(x, jax.Array)])
        seconds, work = time.perf_counter() - begin, time.process_time() - work
    held = made if made is not None else done[0]
    arrays = [x for x in jax.tree.leaves(held) if isinstance(x, jax.Array)]
    codes = sum(x.size * 2 for x in arrays if x.dtype == jnp.uint8)
    on_disk = path.stat().st_size if "folder" not in name else sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    return {
        "step": name, "seconds": round(seconds, 2), "CPU, s": round(work, 2), "weights/s": f"{codes / seconds / 1e6:.0f} M",
        "arrays, MB": round(sum(x.nbytes for x in arrays) / 1e6, 1), "peak, MB": round(peak[0] / 1e6, 1),
        "disk, MB": round(on_disk / 1e6, 2), "devices": max(len(x.sharding.device_set) for x in arrays),
    }  # fmt: skip


def measured(name: str, path: Path, layers: int, width: int) -> dict[str, Any]:
    """A step in a process of its own."""
    command = [sys.executable, "-m", __spec__.name, f"--one={name}", f"--path={path}", f"--layers={layers}", f"--width={width}"]
    devices = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"} if "8 devices" in name else {}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **devices})
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--small", action="store_true", help="a hundredth of the weights")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--one", default=None, help="one step, in this process")
    parser.add_argument("--path", default=None)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(step(args.one, Path(args.path), args.layers, args.width)))
        return
    width = WIDTH // 8 if args.small else args.width
    folder = Path(tempfile.mkdtemp())
    try:
        emit([measured(name, folder / "tree.jn", args.layers, width) for name in STEPS])
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
