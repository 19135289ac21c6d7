"""Claim: on a v5e one row costs a compressed network no more than 1.2 times eight rows, and no float copy is written.

Command: ``python -m experiments.benchmarks.tpu_formulations [--part=mlp|small|large] [--topology=v5e:2x2]`` (about a minute for
``mlp``, two for each GPT on two cores; no TPU, needs libtpu)

Networks of abstract weights, compiled ahead of time: an MLP 4096 x 16384 x 4096, a GPT of 30 layers of width 576 and one of 8
layers of width 2048, both with a tied table of 49152 entries, 64 tokens. ``cycles`` are the compiler's estimates of single
instructions, added up. ``read``: the cycles in which HBM gives the arguments once, at 819 GB/s and 1.5 GHz. The estimates leave
that time out where weights are fetched ahead, so ``over bfloat16`` compares the estimates, with the float network of the same
batch, and ``bound`` the larger of both numbers. ``most`` names the instruction with the largest share. ``copies``: float
arrays of a layer's size, made of weights, that the program writes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_nn.cost.aot import compile_for
from jaxopt_nn.cost.hlo import costs
from jaxopt_nn.formulations.prepare import prepare
from jaxopt_nn.interpret.rewrite import rewrite
from jaxopt_nn.methods.arithmetic import arithmetic
from jaxopt_nn.tensors.qtensor import QTensor

from ..models.gpt import GPT
from .common import emit

#: Name -> bits, entries of a group (-1: one scale for each output), arithmetic.
FORMS = {
    "W8": (8, -1, None),
    "W4": (4, -1, None),
    "W4, groups": (4, 64, None),
    "W8A8": (8, -1, "w8a8"),
}
#: Of a v5e: bytes a second from HBM, cycles a second.
BANDWIDTH, CLOCK = 819e9, 1.5e9
Network = tuple[Callable[..., Any], Any]


def mlp() -> Network:
    weights = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((4096, 16384), (16384, 4096))]
    return lambda v, x: jax.nn.relu(x @ v[0]) @ v[1], weights


def gpt(width: int, layers: int, heads: int, kv_heads: int, hidden: int) -> Network:
    model = GPT(49_152, width, layers, heads, kv_heads, hidden, dtype=jnp.bfloat16)
    weights = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64), jnp.int32))
    return model.apply, jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape, jnp.bfloat16), weights)


def packed(weights: Any, bits: int, group: int) -> Any:
    """The prepared form of every matrix: scales for each output, or for each group of what is contracted."""

    def tensor(path: Any, w: Any) -> Any:
        if w.ndim != 2:
            return w
        contracted = int("embed" in jax.tree_util.keystr(path))
        shape = list(w.shape)
        shape[contracted] = 1 if group == -1 else w.shape[contracted] // group
        scale = jax.ShapeDtypeStruct(shape, jnp.float32)
        return jax.eval_shape(lambda w, s: QTensor.quantize(w, s, bits=bits, narrow=True), w, scale)

    return prepare(jax.tree_util.tree_map_with_path(tensor, weights), "tpu")


def row(name: str, form: str, apply: Callable[..., Any], weights: Any, x: Any, topology: str) -> dict[str, Any]:
    program = compile_for(apply, weights, (x,), topology)
    assert program.module is not None
    cycles, most = max((cost, at) for at, cost in costs(program.module).items())
    copies = program.float_copies() if form != "bfloat16" else []
    where = next(i for c in program.module.computations.values() for i in c if i.name == most)
    return {
        "network": name,
        "form": form,
        "rows": x.shape[-2] if x.dtype == jnp.bfloat16 else x.shape[-1],
        "cycles": program.estimated_cycles,
        "read": round(program.argument_bytes / BANDWIDTH * CLOCK),
        "arguments": program.argument_bytes,
        "temporaries": program.temp_bytes,
        "copies in HBM": sum(not c.on_chip for c in copies),
        "copies on chip": sum(c.on_chip for c in copies),
        "most": f"{cycles / (program.estimated_cycles or 1):.0%} {where.op_name.rpartition('>)/')[2]}",
    }


def measured(name: str, network: Network, inputs: list[Any], group: int, topology: str) -> list[dict[str, Any]]:
    apply, weights = network
    rows = [row(name, "bfloat16", apply, weights, x, topology) for x in inputs]
    for form, (bits, size, rules) in FORMS.items():
        ready = packed(weights, bits, group if size > 0 else size)
        fun = rewrite(apply, arithmetic(rules) if rules else ())
        rows += [row(name, form, fun, ready, x, topology) for x in inputs]
    plain = {r["rows"]: r for r in rows if r["form"] == "bfloat16"}
    bound = lambda r: max(r["cycles"], r["read"])
    over = lambda r, of: round(of(r) / of(plain[r["rows"]]), 3)
    return [{**r, "over bfloat16": over(r, lambda r: r["cycles"]), "bound": over(r, bound)} for r in rows]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--part", choices=("mlp", "small", "large"), default="mlp")
    parser.add_argument("--topology", default="v5e:2x2")
    args = parser.parse_args()
    tokens = jax.ShapeDtypeStruct((1, 64), jnp.int32)
    if args.part == "mlp":
        rows = [jax.ShapeDtypeStruct((n, 4096), jnp.bfloat16) for n in (1, 8, 64)]
        emit(measured("MLP 4096 x 16384 x 4096", mlp(), rows, 128, args.topology))
    elif args.part == "small":
        emit(measured("GPT 30 x 576", gpt(576, 30, 9, 3, 1536), [tokens], 64, args.topology))
    else:
        emit(measured("GPT 8 x 2048", gpt(2048, 8, 32, 32, 8192), [tokens], 64, args.topology))


if __name__ == "__main__":
    main()
