"""Claim: a shrunken network is at most 1.05x as slow as its module rebuilt by hand at the same widths; a masked one is as slow
as the dense one.

Command: ``python -m experiments.benchmarks.pruning`` (2 minutes), ``--part=mlp`` for one of mlp, resnet, gpt

``kept``: share of the units of each layer; of the GPT residual width, head width and hidden width, all heads. ``MACs``: over
those of the dense network. ``instructions``: of the compiled programs, shrunken / rebuilt. ``shrunken over dense`` and so on:
the two take turns in one run (``jaxopt_nn.cost.latency``), each with its own copy of the weights; the median ratio of their
times in the same rounds, with its 95 % interval.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from flax import linen as nn

import jaxopt_nn as jn
from experiments.models.gpt import GPT
from experiments.models.mlp import MLP
from experiments.models.resnet import ResNet
from jaxopt_nn.cost.latency import interleaved, paired_ratio

from .common import emit

SHARES = (0.25, 0.5, 0.75)
BATCHES = (1, 32, 256)
#: Only two take turns at once: of more, those between would find their weights in the caches less often.
PAIRS = (("masked", "dense"), ("shrunken", "dense"), ("shrunken", "rebuilt"))
#: Timed rounds of a pair at most and at least, and seconds after which none starts.
ROUNDS, LEAST, SECONDS = 200, 12, 1.2
HEADS, KV_HEADS = 4, 2


class Case(NamedTuple):
    """A module at ``kept`` of its widths, its input of one example, and the sizes of the groups that stay whole."""

    module: Callable[[float], nn.Module]
    example: jax.Array
    whole: tuple[int, ...] = ()


def _gpt(kept: float) -> nn.Module:
    return GPT(512, width=round(128 * kept), layers=4, heads=HEADS, kv_heads=KV_HEADS, hidden=round(256 * kept))


CASES = {
    "mlp": Case(lambda kept: MLP((*[round(1024 * kept)] * 3, 10)), jnp.ones((1, 784))),
    "resnet": Case(
        lambda kept: ResNet(tuple(round(n * kept) for n in (16, 32, 64)), blocks=1), jnp.ones((1, 32, 32, 3))
    ),
    "gpt": Case(_gpt, jnp.ones((1, 32), jnp.int32), (KV_HEADS, HEADS // KV_HEADS)),
}


def drawn(module: nn.Module, example: jax.Array) -> Any:
    """Variables of the module, random numbers."""
    rng = np.random.default_rng(0)
    leaf = lambda x: jnp.asarray(np.abs(rng.standard_normal(x.shape)) / math.sqrt(x.size) + 0.01, x.dtype)
    return jax.tree.map(leaf, jax.eval_shape(module.init, jax.random.key(0), example))


def shrunken(case: Case, dense: jn.Network, kept: float) -> tuple[jn.Network, jn.Plan]:
    """The network without the units that go, and the plan."""
    cut = jn.cut_units(jn.scores.random(0), share=0.0)
    plan = cut.plan(dense, jn.ModelInfo(), case.example)
    able = [layer for layer in plan.layers if layer.pinned is None and layer.size not in case.whole]
    plan = plan.replace({layer.name: range(round(kept * layer.size)) for layer in able})
    return cut.execute(dense, plan)[0], plan


def macs(network: jn.Network, example: jax.Array) -> int:
    return sum(site.macs for site in jn.inspect(network.apply, network.variables, example).sites)


def rows(name: str) -> list[dict[str, Any]]:
    case = CASES[name]
    dense = jn.linen(case.module(1.0), drawn(case.module(1.0), case.example))
    whole = jax.jit(dense.apply)
    out = []
    for kept in SHARES:
        small, plan = shrunken(case, dense, kept)
        rebuilt = jn.linen(case.module(kept), jax.tree.map(jnp.copy, small.variables))
        shapes = jax.eval_shape(case.module(kept).init, jax.random.key(0), case.example)
        if jax.tree.map(jnp.shape, shapes) != jax.tree.map(jnp.shape, small.variables):
            raise RuntimeError(f"{name}: the module rebuilt at {kept} of its widths has other shapes than the plan leaves")
        masks = jn.mask_units(plan.masks)
        masked = masks.view(dense.variables, masks.init(dense.variables, jn.ModelInfo()))
        programs = {
            "dense": (whole, dense.variables),
            "masked": (whole, masked),
            "shrunken": (jax.jit(small.apply), small.variables),
            "rebuilt": (jax.jit(rebuilt.apply), rebuilt.variables),
        }
        share = macs(small, case.example) / macs(dense, case.example)
        out += [{"network": name, "kept": f"{kept:.0%}", "MACs": share, **timed(programs, case.example, n)} for n in BATCHES]
    return out


def instructions(compiled: Any) -> str:
    """How many instructions a compiled program has."""
    return str(sum(" = " in line for line in compiled.as_text().splitlines()))


def timed(programs: dict[str, tuple[Any, Any]], example: jax.Array, batch: int) -> dict[str, Any]:
    """A row's milliseconds and ratios."""
    x = jnp.repeat(example, batch, axis=0)
    compiled = {name: run.lower(variables, x).compile() for name, (run, variables) in programs.items()}
    calls = {name: functools.partial(compiled[name], variables, x) for name, (_, variables) in programs.items()}
    out: dict[str, Any] = {"batch": batch, "instructions": " / ".join(map(instructions, map(compiled.get, PAIRS[-1])))}
    ratios = {}
    for name, other in PAIRS:
        found = interleaved({key: calls[key] for key in (other, name)}, repeats=ROUNDS, seconds=SECONDS, least=LEAST)
        out |= {f"{key}, ms": timing.median_ms for key, timing in found.items()}
        ratio, low, high = paired_ratio(found[other].times, found[name].times)
        ratios[f"{name} over {other}"] = f"{ratio:.3f} ({low:.3f} to {high:.3f})"
    return out | ratios


def main(argv: list[str]) -> None:
    emit([row for name in FLAGS.part for row in rows(name)])


FLAGS = flags.FLAGS
if __name__ == "__main__":
    flags.DEFINE_list("part", [*CASES], "which of mlp, resnet, gpt")
    app.run(main)
