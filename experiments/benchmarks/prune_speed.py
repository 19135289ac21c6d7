"""Claim: half of a language model's weights are pruned within 5 seconds of a cold start, and packed with 4 bits within 10.

Command: ``python -m experiments.benchmarks.prune_speed`` (1 minute)

The 210 matrices of a model of 135 million parameters (30 blocks of width 576, with grouped keys and values), random, each
allocation in a process of its own: the first call compiles, the second does not. A pack stores masks and 4-bit codes. The
claim is of one share a leaf and of one budget; LAMP sorts all scores, and takes longer.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import jaxopt_nn as jn

from .common import emit

WIDTH, HIDDEN, KEYS, BLOCKS = 576, 1536, 192, 30
SHAPES = {
    "query": (WIDTH, WIDTH), "key": (WIDTH, KEYS), "value": (WIDTH, KEYS), "out": (WIDTH, WIDTH),
    "gate": (WIDTH, HIDDEN), "up": (WIDTH, HIDDEN), "down": (HIDDEN, WIDTH),
}  # fmt: skip
ALLOCATIONS = {"per_leaf": jn.per_leaf, "global_budget": jn.global_budget, "erk": jn.erk, "lamp": jn.lamp}


def weights() -> dict[str, dict[str, jax.Array]]:
    rng = np.random.default_rng(0)
    draw = lambda shape: jax.device_put(rng.standard_normal(shape, np.float32))
    return {f"block_{i}": {name: draw(shape) for name, shape in SHAPES.items()} for i in range(BLOCKS)}


def seconds(fun: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    made = jax.block_until_ready(fun())
    return time.perf_counter() - start, made


def timed(allocation: str) -> dict[str, Any]:
    """Seconds in this process, the first call of each kind from a cold start."""
    variables = weights()
    method = jn.prune(sparsity=0.5, allocation=ALLOCATIONS[allocation])
    cold, _ = seconds(lambda: method.init(variables))
    warm, _ = seconds(lambda: method.init(variables))
    both = jn.chain(method, jn.quantize(4))
    state = both.init(variables)
    packing, _ = seconds(lambda: both.pack(variables, state))
    again, stored = seconds(lambda: both.pack(variables, state))
    found = {"init, cold": cold, "init, warm": warm, "pack, cold": packing, "pack, warm": again}
    return {"allocation": allocation, **{f"{name}, s": t for name, t in found.items()}, "stored, MB": jn.nbytes(stored) / 1e6}


def main() -> None:
    if sys.argv[1:]:
        print(json.dumps(timed(sys.argv[1])))
        return
    rows = []
    for allocation in ALLOCATIONS:
        command = [sys.executable, "-m", "experiments.benchmarks.prune_speed", allocation]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        rows.append(json.loads(out.splitlines()[-1]))
    emit(rows)


if __name__ == "__main__":
    main()
