"""Claim: on a CPU products of signs take a third of the float32 product's time or less from 32 rows on, packing included.

Command: ``python -m experiments.benchmarks.signs`` (half a minute)

Activations ``[batch, inputs]`` times a weight ``[inputs, outputs]``: dense; binary weights under ``jn.xnor(scales=False)``
in words, and as int8. All take turns in one run.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

import jaxopt_nn as jn
from jaxopt_nn.cost.latency import interleaved

from .common import emit

#: Inputs and outputs: the hidden layer of LeNet-5, and a large one.
SHAPES = ((800, 500), (4096, 4096))


def apply(variables: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    return x @ variables["kernel"]


def row(inputs: int, outputs: int, batch: int) -> dict[str, object]:
    """Milliseconds of each, and over dense."""
    variables = {"kernel": jax.random.normal(jax.random.key(0), (inputs, outputs))}
    x = jax.random.normal(jax.random.key(1), (batch, inputs))
    method = jn.binarize()
    stored = method.pack(variables, method.init(variables))
    run = jax.jit(jn.rewrite(apply, jn.xnor(scales=False)))
    forms = {"words": jn.prepare(stored, activations=1), "int8": jn.prepare(stored, "gpu")}
    dense = jax.jit(apply)
    programs = {"dense": partial(dense, variables, x), **{name: partial(run, held, x) for name, held in forms.items()}}
    assert jnp.array_equal(programs["words"](), programs["int8"]())
    times = {name: timing.median_ms for name, timing in interleaved(programs, repeats=10).items()}
    over = {f"{name} over dense": times[name] / times["dense"] for name in forms}
    return {"inputs": inputs, "outputs": outputs, "batch": batch, **{f"{name}, ms": t for name, t in times.items()}, **over}


def main() -> None:
    emit([row(*shape, batch) for shape in SHAPES for batch in (1, 32, 256)])


if __name__ == "__main__":
    main()
