"""Claim: SparseGPT on a layer of 4096 x 4096 compiles in under 20 s and runs in under 60 s on 2 cores; Wanda runs in under 2 s.

Command: ``python -m experiments.benchmarks.oneshot_speed`` (about 2 minutes)

Times of ``init`` with the statistics at hand, compiled for each row anew; the run is the median of ``REPEATS``. Compile time
grows with neither width nor depth. The error is that of the output on what it was calibrated on, ``|x dW|^2 / |x W|^2``.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_nn as jn

from .common import emit

REPEATS = 3
WANDA, SPARSEGPT, TWO_OF_FOUR = (
    "jn.prune(jn.wanda, sparsity=0.5, allocation=jn.per_output)", "jn.sparsegpt(0.5)",
    "jn.sparsegpt(structure=jn.n_of_m(2, 4))",
)  # fmt: skip
MAGNITUDE = "jn.prune(jn.magnitude, sparsity=0.5)"
#: Code, layers of a stack, inputs, outputs.
CASES = [
    (MAGNITUDE, 1, 4096, 4096),
    (WANDA, 1, 4096, 4096),
    (SPARSEGPT, 1, 1024, 1024),
    (SPARSEGPT, 1, 2048, 2048),
    (SPARSEGPT, 1, 4096, 4096),
    (TWO_OF_FOUR, 1, 4096, 4096),
    (WANDA, 16, 1024, 1024),
    (SPARSEGPT, 16, 1024, 1024),
    ("jn.obs(0.5)", 1, 256, 256),
]


def layer(layers: int, inputs: int, outputs: int) -> tuple[Any, Any, dict[str, jax.Array]]:
    """``apply``, variables, and the statistics of inputs that are correlated and of different sizes."""
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.standard_normal((layers, inputs, outputs), np.float32))
    hidden = rng.standard_normal((inputs, inputs // 4), np.float32) / np.sqrt(inputs // 4)
    scale = rng.lognormal(0, 1, inputs).astype(np.float32)
    x = rng.standard_normal((2 * inputs, inputs // 4), np.float32) @ hidden.T + 0.3 * rng.standard_normal(
        (2 * inputs, inputs), np.float32
    )
    gram = jnp.broadcast_to(jnp.asarray((x * scale).T @ (x * scale)), (layers, inputs, inputs))
    square_sum = jnp.diagonal(gram, axis1=-2, axis2=-1)
    apply = lambda v, x: jnp.einsum("sbi,sio->sbo", x, v["kernel"])
    return apply, {"kernel": w}, {"gram": gram, "square_sum": square_sum}


@jax.jit
def error(old: jax.Array, new: jax.Array, gram: jax.Array) -> jax.Array:
    own = lambda d: jnp.sum(d * (gram @ d))
    return own(new - old) / own(old)


def row(code: str, layers: int, inputs: int, outputs: int) -> dict[str, Any]:
    method = eval(code, {"jn": jn})  # the table shows what ran
    apply, v, own = layer(layers, inputs, outputs)
    info = jn.inspect(apply, v, jnp.zeros((layers, 1, inputs)))
    stats = {((), site.name, name): value for site in info.sites for name, value in own.items()}
    start = time.perf_counter()
    init = jax.jit(lambda v, stats: method.init(v, info.with_stats(stats))).lower(v, stats).compile()
    compiled = time.perf_counter() - start
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        state = jax.block_until_ready(init(v, stats))
        times.append(time.perf_counter() - start)
    new = method.view(v, state)["kernel"]
    return {
        "method": code,
        "shape": f"{layers} x {inputs} x {outputs}",
        "compile, s": compiled,
        "run, s": statistics.median(times),
        "zeros, %": 100 * float(jnp.mean(new == 0)),
        "error of the output, %": 100 * float(error(v["kernel"], new, own["gram"])),
    }


def main() -> None:
    emit([row(*case) for case in CASES])


if __name__ == "__main__":
    main()
