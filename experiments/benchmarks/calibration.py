"""Claim: one calibration pass with Gram matrices on a GPT takes at most 1.1x the time that its multiplications predict.

Predicted: the plain forward pass, times the multiply-accumulates of forward and Gram matrices (each activation's once) over
those of the forward pass alone. Both are compiled and take turns in one run.

Command: ``python -m experiments.benchmarks.calibration`` (about 2 minutes)
"""

from __future__ import annotations

import math
from typing import Any

import jax

from jaxopt_nn.cost.latency import interleaved
from jaxopt_nn.interpret.inspect import inspect
from jaxopt_nn.interpret.rewrite import capture
from jaxopt_nn.methods.taps import gram

from ..models.gpt import GPT
from .common import emit


def gram_macs(info: Any, tokens: int) -> int:
    """Multiply-accumulates of the Gram matrices of all dots with a weight, of each activation once."""
    seen: dict[Any, int] = {}
    for site in info.sites:
        if site.weight is not None and site.kind == "dot":
            layers = math.prod(site.stack)
            seen[site.reads] = layers * tokens * site.inputs**2
    return sum(seen.values())


def row(name: str, scan: bool, batch: int, time: int) -> dict[str, Any]:
    model = GPT(vocabulary=4096, width=512, layers=6, heads=8, kv_heads=2, hidden=1536, scan=scan)
    tokens = jax.random.randint(jax.random.key(0), (batch, time), 0, 4096)
    variables = model.init(jax.random.key(1), tokens[:1])
    apply = lambda v, x: model.apply(v, x)
    info = inspect(apply, variables, tokens)
    capturing = capture(apply, lambda site: {"gram": gram()} if site.weight is not None and site.kind == "dot" else {})
    zeros = capturing.zeros(variables, tokens)
    measured = jax.jit(lambda totals, v, x: capturing.accumulate(totals, v, x))
    plain = jax.jit(apply)
    held = jax.jit(capturing.accumulate, donate_argnums=0).lower(zeros, variables, tokens).compile().memory_analysis()
    own = plain.lower(variables, tokens).compile().memory_analysis()
    timed = interleaved(
        {"plain": lambda: plain(variables, tokens), "pass": lambda: measured(zeros, variables, tokens)},
        repeats=15, seconds=40,
    )  # fmt: skip
    forward, grams = sum(s.macs for s in info.sites), gram_macs(info, batch * time)
    predicted = timed["plain"].median_ms * (forward + grams) / forward
    return {
        "model": name,
        "plain, ms": timed["plain"].median_ms,
        "GMACs": forward / 1e9,
        "of the Grams": grams / 1e9,
        "predicted, ms": predicted,
        "pass with Grams, ms": timed["pass"].median_ms,
        "over predicted": timed["pass"].median_ms / predicted,
        "statistics, MB": sum(x.nbytes for x in jax.tree.leaves(zeros)) / 1e6,
        "of them updated in place, MB": held.alias_size_in_bytes / 1e6,
        "temporaries, MB": held.temp_size_in_bytes / 1e6,
        "plain, temporaries and logits, MB": (own.temp_size_in_bytes + own.output_size_in_bytes) / 1e6,
    }


def main() -> None:
    emit([row("GPT, 6 layers, unrolled", False, 8, 128), row("GPT, 6 layers, scanned", True, 8, 128)])


if __name__ == "__main__":
    main()
