"""Claim: trace + compile of a rewritten function on 24 unrolled blocks: identity at most 1.3x the plain one, W8A8 2x;
over the models of the zoo W8A8 at most 1.5x in the median and 2.5x at the worst. An abstract GPT of 24 layers is planned and
cut in 10 s, its axis groups take 2 s, and neither grows faster than its depth.

Command: ``python -m experiments.benchmarks.trace_time`` (about 3 minutes), ``--part=zoo`` for the zoo alone (about 6; needs the
repository, for ``tests.zoo``), ``--part=cutting`` for the GPT alone (half a minute)
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

import jaxopt_nn as jn
from experiments.models.gpt import GPT
from jaxopt_nn.core.rule import identity_rule
from jaxopt_nn.formulations.prepare import prepare
from jaxopt_nn.interpret.inspect import inspect
from jaxopt_nn.interpret.rewrite import rewrite
from jaxopt_nn.methods.arithmetic import arithmetic
from jaxopt_nn.methods.quantize import quantize

from .common import emit

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


def blocks() -> None:
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
    medians = compared(runs, x)
    emit([{"function": n, "trace + compile, s": t, "ratio": t / medians["plain"]} for n, t in medians.items()])


def compared(runs: dict[str, tuple[Callable[[], Callable[..., Any]], Any]], *inputs: Any) -> dict[str, float]:
    """Median seconds of each of three rounds after the first, all taking turns."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(4):
        for name, (build, v) in runs.items():
            times[name].append(seconds(build, v, *inputs))
    return {name: statistics.median(t[1:]) for name, t in times.items()}


def zoo() -> None:
    from tests.zoo import ZOO

    rows = []
    for name, build in ZOO.items():
        m, method = build(), quantize(8)
        info = inspect(m.apply, m.variables, *m.inputs)
        stored = prepare(method.pack(m.variables, method.init(m.variables, info)))
        runs = {
            "plain": (lambda m=m: lambda *args: m.apply(*args), m.variables),
            "W8A8": (lambda m=m: rewrite(m.apply, arithmetic("w8a8")), stored),
        }
        found = compared(runs, *m.inputs)
        rows.append({"model": name, **found, "ratio": found["W8A8"] / found["plain"]})
    ratios = sorted(row["ratio"] for row in rows)
    emit([*rows, {"model": "median", "ratio": statistics.median(ratios)}, {"model": "worst", "ratio": ratios[-1]}])


def cutting() -> None:
    """GPTs of width 2048, abstract: no number of a weight is read, and nothing is compiled."""
    rows = []
    for layers in (6, 6, 12, 24, 48):  # the first of them warms up
        tokens = jax.ShapeDtypeStruct((1, 128), jnp.int32)
        model = GPT(50_304, width=2048, layers=layers, heads=16, kv_heads=4, hidden=8192)
        network = jn.linen(model, jax.eval_shape(model.init, jax.random.key(0), tokens))
        jax.clear_caches()
        cpu, start = time.process_time(), time.perf_counter()
        groups = jn.axis_groups(network.apply, network.variables, tokens)
        found, middle = time.process_time() - cpu, time.perf_counter()
        half = jn.shrink_widths(0.5, lambda group, leaves: np.zeros(group.size))
        small, _ = half.execute(network, half.plan(network, jn.ModelInfo(), tokens))
        rows.append({
            "layers": layers, "groups": len(groups), "axis_groups, s": middle - start, "CPU, s": found,
            "plan + execute, s": time.perf_counter() - middle, "all, CPU, s": time.process_time() - cpu,
            "parameters": sum(x.size for x in jax.tree.leaves(network.variables)),
            "stay": sum(x.size for x in jax.tree.leaves(small.variables)),
        })  # fmt: skip
    emit(rows[1:])


def main(argv: list[str]) -> None:
    for part in FLAGS.part:
        {"blocks": blocks, "zoo": zoo, "cutting": cutting}[part]()


FLAGS = flags.FLAGS
if __name__ == "__main__":
    flags.DEFINE_list("part", ["blocks"], "which of blocks, zoo, cutting")
    app.run(main)
