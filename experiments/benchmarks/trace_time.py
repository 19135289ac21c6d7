"""Claim: trace + compile of a rewritten function on 24 unrolled blocks: identity at most 1.3x the plain one, W8A8 2x.

Command: ``python -m experiments.benchmarks.trace_time`` (about 3 minutes)
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.benchmarks.common import emit
from jaxopt_nn.core.rule import identity_rule
from jaxopt_nn.formulations.prepare import prepare
from jaxopt_nn.interpret.inspect import inspect
from jaxopt_nn.interpret.rewrite import rewrite
from jaxopt_nn.methods.arithmetic import arithmetic
from jaxopt_nn.methods.quantize import quantize

WIDTH = 64


class Blocks(nn.Module):
    """Pre-norm transformer blocks, unrolled."""

    depth: int = 24

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for _ in range(self.depth):
            x = x + nn.MultiHeadDotProductAttention(4)(nn.LayerNorm()(x))
            x = x + nn.Dense(WIDTH)(nn.gelu(nn.Dense(4 * WIDTH)(nn.LayerNorm()(x))))
        return x


def seconds(build: Callable[[], Callable[..., Any]], *args: Any) -> float:
    """Trace + compile time of a fresh function."""
    jax.clear_caches()
    fun = jax.jit(build())
    start = time.perf_counter()
    fun.lower(*args).compile()
    return time.perf_counter() - start


def main() -> None:
    x = jnp.ones((2, 16, WIDTH))
    model = Blocks()
    variables = model.init(jax.random.key(0), x)
    apply = lambda v, x: model.apply(v, x)
    method = quantize(8)
    stored = prepare(method.pack(variables, method.init(variables, inspect(apply, variables, x))))
    runs = {
        "plain": (lambda: lambda v, x: model.apply(v, x), variables),
        "identity rule": (lambda: rewrite(apply, identity_rule()), variables),
        "weight-only int8": (lambda: rewrite(apply), stored),
        "W8A8": (lambda: rewrite(apply, arithmetic("w8a8")), stored),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(4):
        for name, (build, v) in runs.items():
            times[name].append(seconds(build, v, x))
    medians = {name: statistics.median(t[1:]) for name, t in times.items()}
    emit([{"function": n, "trace + compile, s": t, "ratio": t / medians["plain"]} for n, t in medians.items()])


if __name__ == "__main__":
    main()
