"""Claim: 1e8 float32 weights to int8 per channel within 1.3x of one jitted pass per leaf; peak memory near input + result.

Command: ``python -m experiments.benchmarks.quantize_speed`` (about 2 minutes; Qwix beside where it is installed)

Times are medians of one interleaved run after warm-up. Peak memory is VmHWM of a fresh process for each candidate.
"""

from __future__ import annotations

import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from .common import emit

LEAVES, ROWS, COLUMNS = 10, 2500, 4000  # 1e8 weights


class Wide(nn.Module):
    """The model whose parameters ``weights`` are, for Qwix, which quantizes by module."""

    @nn.compact
    def __call__(self, x: jax.Array) -> list[jax.Array]:
        return [nn.Dense(COLUMNS, use_bias=False, name=f"layer_{i}")(x) for i in range(LEAVES)]


def weights() -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    draw = lambda: jax.device_put(rng.standard_normal((ROWS, COLUMNS), np.float32))
    return {f"layer_{i}": {"kernel": draw()} for i in range(LEAVES)}


@jax.jit
def one_pass(w: jax.Array) -> tuple[jax.Array, jax.Array]:
    scale = jnp.max(jnp.abs(w), axis=0, keepdims=True) / 127
    return jnp.round(w / scale).astype(jnp.int8), scale


def candidates() -> dict[str, Callable[[Any], Any]]:
    """Name -> function of the tree."""
    from jaxopt_nn.methods.quantize import quantize

    method = quantize(8)
    found = {
        "one jitted pass per leaf": lambda tree: jax.tree.map(one_pass, tree),
        "jaxopt_nn": lambda tree: method.pack(tree, method.init(tree)),
    }
    try:
        import qwix
    except ImportError:
        return found
    model = qwix.quantize_model(Wide(), qwix.PtqProvider([qwix.QuantizationRule(weight_qtype=jnp.int8)]))
    like = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, ROWS)))["params"]
    part = lambda tree: {name: like[name] for name in tree}
    found["qwix.quantize_params"] = lambda tree: qwix.quantize_params(tree, part(tree))
    found["qwix.quantize_params, jitted"] = jax.jit(lambda tree: qwix.quantize_params(tree, part(tree)))
    return found


def timings(rounds: int = 9) -> dict[str, float]:
    tree, found = weights(), candidates()
    times: dict[str, list[float]] = {name: [] for name in found}
    for i in range(rounds + 1):
        for name, fun in found.items():
            start = time.perf_counter()
            jax.block_until_ready(fun(tree))
            if i:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(t) for name, t in times.items()}


def high_water() -> int:
    """VmHWM of this process, in bytes."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def peak(name: str) -> None:
    """Runs one candidate once and prints the high-water mark of JAX alone and in the end, and the result's bytes."""
    fun = candidates()[name]
    jnp.zeros(()).block_until_ready()
    start = high_water()
    tree = weights()
    jax.block_until_ready(fun({"layer_0": tree["layer_0"]}))
    out = jax.block_until_ready(fun(tree))
    print(start, high_water(), sum(x.nbytes for x in jax.tree.leaves(out)))


def main() -> None:
    if sys.argv[1:2] == ["--peak"]:
        return peak(sys.argv[2])
    times = timings()
    base = times["one jitted pass per leaf"]
    rows = []
    for name, seconds in times.items():
        command = [sys.executable, "-m", "experiments.benchmarks.quantize_speed", "--peak", name]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        jax_alone, peak_bytes, result = map(int, out)
        over = (peak_bytes - jax_alone - 4 * LEAVES * ROWS * COLUMNS - result) / 1e6
        rows.append(
            {
                "candidate": name,
                "seconds": seconds,
                "ratio": seconds / base,
                "VmHWM, MB": round(peak_bytes / 1e6),
                "of which JAX alone": round(jax_alone / 1e6),
                "over JAX + input + result": round(over),
            }
        )
    emit(rows)


if __name__ == "__main__":
    main()
