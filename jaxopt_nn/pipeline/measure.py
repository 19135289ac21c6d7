"""The numbers of one stage: accuracy, true bytes, latency."""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_nn.core.memory import call_bytes, room
from jaxopt_nn.cost.latency import interleaved
from jaxopt_nn.pipeline.evaluate import Evaluation
from jaxopt_nn.pipeline.leaves import leaf_table
from jaxopt_nn.tensors.base import densify, nbytes

PyTree = Any


def devices() -> list[str]:
    """The devices that JAX runs on, by kind; a CPU by its model, since latencies differ a lot between models."""
    kinds = [d.device_kind if d.platform != "cpu" else _cpu_model() for d in jax.devices()]
    return [f"{d.platform}: {kind}" for d, kind in zip(jax.devices(), kinds, strict=True)]


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{named[0] if named else platform.processor() or 'unknown'}, {os.cpu_count()} cores"


class Form(NamedTuple):
    """A network after a stage, as it is stored and as it runs; ``clipping``: what its stage clipped when it began."""

    name: str
    stored: PyTree
    prepared: PyTree
    clipping: Sequence[dict[str, Any]] = ()


def row(form: Form, found: Evaluation, baseline: Form) -> dict[str, Any]:
    """A stage's entry in the report.

    ``params`` and ``nonzero`` count entries of inexact dtype. ``bytes`` are those of the stored form (codes, scales,
    masks, biases, everything), ``resident_bytes`` those of the prepared one; ``ratio`` is the baseline's float32 bytes
    over ``bytes``, ``bits_per_weight`` divides by the baseline's parameters. ``clipping`` has each clipped leaf's least and
    largest weight, its box and the share of weights outside, when the stage began.
    """
    size = nbytes(form.stored)
    return {
        "name": form.name,
        "accuracy": found.accuracy,
        "loss": found.loss,
        "params": _entries(form.prepared),
        "nonzero": int(_nonzero(form.prepared)),
        "bytes": size,
        "resident_bytes": nbytes(form.prepared),
        "ratio": float32_bytes(baseline.stored) / size,
        "bits_per_weight": 8 * size / _entries(baseline.stored),
        "latency_ms": {},
        "leaves": leaf_table(form.stored),
        "clipping": list(form.clipping),
    }


def float32_bytes(variables: PyTree) -> int:
    """Bytes of a tree with its floats at 4 bytes each, whatever their dtype, and complex numbers at 8."""
    numbers = _numbers(variables)
    others = nbytes(variables) - nbytes(numbers)
    return others + sum(x.size * (8 if jnp.iscomplexobj(x) else 4) for x in numbers)


def _numbers(variables: PyTree) -> list[Any]:
    return [x for x in jax.tree.leaves(variables) if jnp.issubdtype(x.dtype, jnp.inexact)]


def _entries(variables: PyTree) -> int:
    return sum(x.size for x in _numbers(jax.eval_shape(densify, variables)))


@jax.jit
def _nonzero(variables: PyTree) -> jax.Array:
    counts = [jnp.count_nonzero(x) for x in _numbers(densify(variables))]
    return sum(counts, jnp.zeros((), jnp.int32))


def latencies(
    networks: Sequence[Callable[..., Any]], variables: Sequence[PyTree], examples: np.ndarray, batches: Sequence[int]
) -> tuple[list[dict[str, float]], dict[str, str]]:
    """For each network, the median latency in ms at each batch size: compiled, on its prepared variables; and the batch
    sizes that were left out, with the reason: some network's call would not fit into memory.

    All networks take turns in one run, so that a machine that gets busy slows down all alike; compilation and the first
    rounds are not counted.
    """
    jitted = [jax.jit(lambda v, x, network=network: network(v, x)) for network in networks]
    out: list[dict[str, float]] = [{} for _ in networks]
    left_out: dict[str, str] = {}
    for batch in batches:
        like = jax.ShapeDtypeStruct((batch, *examples.shape[1:]), jax.dtypes.canonicalize_dtype(examples.dtype))
        need, free = max(call_bytes(run, held, like) for run, held in zip(jitted, variables, strict=True)), room()
        if need > free:
            left_out[str(batch)] = f"a call takes {need / 1e9:.3g} GB, of {free / 1e9:.3g} GB that it may take here"
            continue
        inputs = jnp.asarray(examples[np.arange(batch) % len(examples)])
        calls = {
            str(i): functools.partial(run, held, inputs)
            for i, (run, held) in enumerate(zip(jitted, variables, strict=True))
        }
        for i, timing in interleaved(calls, repeats=30, seconds=2.0).items():
            out[int(i)][str(batch)] = timing.median_ms
    return out, left_out
