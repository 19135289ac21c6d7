"""Claim: at 90 % zeros in arbitrary places XLA on CPU multiplies no faster by JAX's sparse format than by the dense matrix.

Command: ``python -m experiments.benchmarks.sparse`` (20 seconds)

Activations ``[batch, 1024]`` times a weight ``[1024, 1024]`` of which the smallest 90 or 99 % are zero: dense, as it was before
pruning; as ``jn.prepare`` holds it; and as BCOO of ``jax.experimental.sparse``. All take turns in one run.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import sparse

import jaxopt_nn as jn
from jaxopt_nn.cost.latency import interleaved

from .common import emit

WIDTH = 1024


def apply(variables: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    return x @ variables["kernel"]


def row(sparsity: float, batch: int) -> dict[str, object]:
    """Milliseconds of each, and over dense."""
    variables = {"kernel": jax.random.normal(jax.random.key(0), (WIDTH, WIDTH))}
    x = jax.random.normal(jax.random.key(1), (batch, WIDTH))
    method = jn.prune(sparsity=sparsity)
    state = method.init(variables)
    prepared = jn.prepare(method.pack(variables, state))
    pattern = sparse.BCOO.fromdense(method.view(variables, state)["kernel"].T)
    programs = {
        "dense": partial(jax.jit(apply), variables, x),
        "prepared": partial(jax.jit(jn.rewrite(apply)), prepared, x),
        "BCOO": partial(jax.jit(lambda w, x: (w @ x.T).T), pattern, x),
    }
    assert jnp.allclose(programs["prepared"](), programs["BCOO"](), atol=1e-3)
    times = {name: timing.median_ms for name, timing in interleaved(programs, repeats=30).items()}
    over = {f"{name} over dense": times[name] / times["dense"] for name in ("prepared", "BCOO")}
    return {"zeros": sparsity, "batch": batch, **{f"{name}, ms": t for name, t in times.items()}, **over}


def main() -> None:
    emit([row(sparsity, batch) for sparsity in (0.9, 0.99) for batch in (1, 32, 256)])


if __name__ == "__main__":
    main()
