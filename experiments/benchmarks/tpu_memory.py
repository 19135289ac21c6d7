"""Claim: on a TPU the scanned GPT reads its weights at their packed width and writes no float copy of a layer.

Command: ``python -m experiments.benchmarks.tpu_memory [--topology=v5e:2x2]`` (about a minute; no TPU, needs libtpu)

The program is compiled ahead of time. ``arguments``: the compiler's bytes of all arguments; ``packed``: the true bytes of
the prepared tree and the tokens; ``float copies``: float arrays of a layer's size or more, made of weights, that the program
writes, each named below the table with the operation that writes it.
"""

from __future__ import annotations

import argparse

import jax
import jax.numpy as jnp

from jaxopt_nn.cost.aot import compile_for
from jaxopt_nn.formulations.prepare import prepare
from jaxopt_nn.interpret.inspect import inspect
from jaxopt_nn.interpret.rewrite import rewrite
from jaxopt_nn.methods.arithmetic import arithmetic
from jaxopt_nn.methods.quantize import quantize
from jaxopt_nn.tensors.base import nbytes

from ..models.gpt import GPT
from .common import emit


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--topology", default="v5e:2x2")
    topology = parser.parse_args().topology
    model = GPT(vocabulary=8192, width=512, layers=4, heads=8, kv_heads=4, hidden=2048, scan=True, dtype=jnp.bfloat16)
    tokens = jnp.zeros((1, 128), jnp.int32)
    variables = model.init(jax.random.key(0), tokens)
    apply = lambda v, t: model.apply(v, t)
    info = inspect(apply, variables, tokens)
    rows, named = [], []
    for name, bits, rules in (
        ("float32", None, ()),
        ("int8, weight-only", 8, ()),
        ("int8, W8A8", 8, arithmetic("w8a8")),
        ("int4, weight-only", 4, ()),
        ("int4, W4A8", 4, arithmetic("w4a8")),
        ("int4, groups of 64", 4, ()),
    ):
        ready = variables
        if bits is not None:
            method = quantize(bits, group=64 if "groups" in name else -1)
            ready = prepare(method.pack(variables, method.init(variables, info)), "tpu")
        fun = rewrite(apply, rules)
        program = compile_for(fun, ready, (tokens,), topology)
        copies = program.float_copies() if bits else []
        named += [f"{name}: {copy}" for copy in copies]
        named += [f"{name}: {m.path}: {m.reason}" for m in fun.explain(ready, tokens).of("densified")]
        rows.append(
            {
                "weights": name,
                "arguments": program.argument_bytes,
                "packed": nbytes(ready) + tokens.nbytes,
                "temporaries": program.temp_bytes,
                "fits": program.fits,
                "float copies in HBM": sum(not c.on_chip for c in copies),
                "float copies on chip": sum(c.on_chip for c in copies),
            }
        )
    emit(rows)
    print("\n".join(named))


if __name__ == "__main__":
    main()
