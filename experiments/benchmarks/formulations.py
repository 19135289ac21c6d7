"""Claim: on CPU a prepared network is at most as slow as float: the targets below, or a printed line that says what missed.

Command: ``python -m experiments.benchmarks.formulations`` (about 10 minutes; OpenVINO and ONNX Runtime beside where the extra
``bench`` is installed)

A chain of four 4096 x 4096 layers with ReLU between (float32 as [in, out], 268 MB: more than caches hold), LeNet-300-100 and
LeNet-5. Each line is the median of one interleaved run over the batch's candidates, as a share of plain JAX in float32. Ratios
differ a lot between CPU models: the last line names this one's. ``--part`` picks among chain, lenet, peers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from jaxopt_nn.core.combine import where
from jaxopt_nn.cost.latency import interleaved
from jaxopt_nn.formulations.prepare import prepare
from jaxopt_nn.interpret.inspect import inspect
from jaxopt_nn.interpret.rewrite import rewrite
from jaxopt_nn.methods.arithmetic import arithmetic
from jaxopt_nn.methods.quantize import quantize
from jaxopt_nn.tensors.base import nbytes

from ..common import flag_values
from ..models.lenet import LeNet5
from ..models.mlp import lenet300
from . import peers
from .common import emit

WIDTH, DEPTH, GROUP = 4096, 4, 128
#: Arithmetic -> bits, group, and the share of float's time that is aimed at, for each batch.
CHAIN = {
    "w8a8": (8, -1, {1: 0.9, 8: 0.45, 32: 0.55, 256: 0.6}),
    "w8a16": (8, -1, {1: 1.05, 8: 1.05, 32: 0.85, 256: 0.6}),
    "w8a32": (8, -1, {}),
    "w4a16": (4, GROUP, {1: 1.05, 8: 1.05, 32: 0.9, 256: 0.7}),
    "w4a8": (4, GROUP, {1: 1.05, 8: 0.9, 32: 0.9, 256: 0.9}),
    "w4a32": (4, GROUP, {}),
}
LENETS = ("w8a8", "w8a16", "w4a8", "w4a16")
LENET_BATCHES = (1, 32, 1024)


class Chain(nn.Module):
    """Dense layers of one width with ReLU between: `[B, 4096] -> [B, 4096]`."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for _ in range(DEPTH):
            x = nn.relu(nn.Dense(WIDTH, use_bias=False)(x))
        return x


def packed(model: nn.Module, variables: Any, x: jax.Array, bits: int, group: int) -> Any:
    method = where("**/kernel", quantize(bits, group=group))
    return method.pack(variables, method.init(variables, inspect(model.apply, variables, x)))


def timed(cases: dict[str, Callable[[], Any]], seconds: float) -> dict[str, float]:
    return {name: t.median_ms for name, t in interleaved(cases, repeats=300, seconds=seconds).items()}


def runs(model: nn.Module, variables: Any, forms: dict[str, Any], x: jax.Array) -> dict[str, Callable[[], Any]]:
    """``float`` and each arithmetic, compiled."""
    found = {"float": functools.partial(jax.jit(model.apply).lower(variables, x).compile(), variables, x)}
    for name, form in forms.items():
        run = jax.jit(rewrite(model.apply, arithmetic(name))).lower(form, x).compile()
        found[name] = functools.partial(run, form, x)
    return found


def part_chain(seconds: float) -> list[dict[str, Any]]:
    model, rows = Chain(), []
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape, np.float32))
    variables = {"params": {f"Dense_{i}": {"kernel": draw(WIDTH, WIDTH) * (2 / WIDTH) ** 0.5} for i in range(DEPTH)}}
    stored = {key: packed(model, variables, draw(1, WIDTH), *key) for key in {case[:2] for case in CHAIN.values()}}
    for batch in (1, 8, 32, 256):
        x = draw(batch, WIDTH)
        width = lambda name: int(name.split("a")[1])
        ready = {n: prepare(stored[case[:2]], batch=batch, activations=width(n)) for n, case in CHAIN.items()}
        found = timed(runs(model, variables, ready, x), seconds)
        for name, ms in found.items():
            aim = CHAIN[name][2].get(batch) if name in CHAIN else None
            weight = ready.get(name, variables)
            rows.append(_row(f"chain {WIDTH}", batch, name, ms, found["float"], nbytes(weight), aim))
    return rows


def part_lenet(seconds: float) -> list[dict[str, Any]]:
    rows = []
    for title, model in (("LeNet-300-100", lenet300()), ("LeNet-5", LeNet5())):
        images = np.random.default_rng(0).random((max(LENET_BATCHES), 28, 28, 1), np.float32)
        variables = model.init(jax.random.key(0), images[:1])
        ready = {n: prepare(packed(model, variables, images[:1], int(n[1]), -1)) for n in LENETS}
        for batch in LENET_BATCHES:
            found = timed(runs(model, variables, ready, jnp.asarray(images[:batch])), seconds)
            for name, ms in found.items():
                weight = variables if name == "float" else ready[name]
                aim = None if name == "float" else 1.05
                rows.append(_row(title, batch, name, ms, found["float"], nbytes(weight), aim))
    return rows


def part_peers(seconds: float) -> list[dict[str, Any]]:
    """The chain in OpenVINO and ONNX Runtime, each over plain JAX in float32."""
    rng, rows = np.random.default_rng(0), []
    weights = [rng.standard_normal((WIDTH, WIDTH), np.float32) * (2 / WIDTH) ** 0.5 for _ in range(DEPTH)]
    model, variables = Chain(), {"params": {f"Dense_{i}": {"kernel": jnp.asarray(w)} for i, w in enumerate(weights)}}
    made = peers.chains(weights, GROUP)
    for batch in (1, 8, 32, 256):
        x = rng.standard_normal((batch, WIDTH), np.float32)
        found = timed(
            runs(model, variables, {}, x) | {name: functools.partial(run, x) for name, run in made.items()}, seconds
        )
        rows += [_row(f"chain {WIDTH}", batch, name, ms, found["float"], None, None) for name, ms in found.items()]
    return rows


def _row(
    net: str, batch: int, name: str, ms: float, plain: float, weight: int | None, aim: float | None
) -> dict[str, Any]:
    row = {"network": net, "batch": batch, "runs": name, "ms": ms, "over float": ms / plain}
    size = {} if weight is None else {"weights, MB": weight / 1e6}
    goal = {} if aim is None else {"aim": aim, "met": "yes" if ms / plain <= aim else "no"}
    return row | size | goal


PARTS = {"chain": part_chain, "lenet": part_lenet, "peers": part_peers}


def main(argv: Sequence[str]) -> None:
    given = flag_values(argv)
    for name in given.part or list(PARTS):
        emit(PARTS[name](given.seconds))


if __name__ == "__main__":
    flags.DEFINE_list("part", [], f"Which of {', '.join(PARTS)}; all by default.")
    flags.DEFINE_float("seconds", 20, "Timed seconds for each batch.")
    app.run(main)
