"""Claim: ``by_path`` with 300 cases, a case a leaf: one view is traced in at most 0.3 s (4.3 s before it was linear).

Command: ``python -m experiments.benchmarks.by_path`` (10 seconds)
"""

from __future__ import annotations

import statistics
import time

import jax
import jax.numpy as jnp

from jaxopt_nn.core.combine import by_path
from jaxopt_nn.methods.quantize import quantize

from .common import emit


def row(cases: int) -> dict[str, object]:
    """Times for a tree of ``cases`` kernels and as many biases; the first of a kind is not counted."""
    params = {
        f"layer_{i}": {
            "kernel": jax.ShapeDtypeStruct((32, 32), jnp.float32),
            "bias": jax.ShapeDtypeStruct((32,), jnp.float32),
        }
        for i in range(cases)
    }
    method = by_path([(f"layer_{i}/kernel", quantize(4 + i % 5)) for i in range(cases)])
    times: dict[str, list[float]] = {"init": [], "view": []}
    for _ in range(4):
        start = time.perf_counter()
        state = method.init(params)
        times["init"].append(time.perf_counter() - start)
        start = time.perf_counter()
        jax.make_jaxpr(lambda p, s: method.view(p, s))(params, state)
        times["view"].append(time.perf_counter() - start)
    return {"cases": cases, **{f"{name}, s": statistics.median(each[1:]) for name, each in times.items()}}


def main() -> None:
    emit([row(cases) for cases in (30, 100, 300)])


if __name__ == "__main__":
    main()
