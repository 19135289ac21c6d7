"""Claim: stored tensors weigh what they say, as the compiler counts it.

Command: ``python -m experiments.benchmarks.stored_bytes`` (about 20 s)

The bytes are ``argument_size_in_bytes`` of a compiled use of the stored form, ``x @ densify(w)``, less those of ``x``.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxopt_nn.core.combine import chain
from jaxopt_nn.methods.prune import prune
from jaxopt_nn.methods.quantize import quantize

from .common import emit

ROWS, COLUMNS = 1024, 1024


def compiled_bytes(stored: object) -> int:
    """Argument bytes of the compiled use, less the activation."""
    x = jnp.ones((1, ROWS))
    used = jax.jit(lambda t, x: x @ t["kernel"].densify()).lower(stored, x).compile()
    return used.memory_analysis().argument_size_in_bytes - x.nbytes


def main() -> None:
    params = {"kernel": jax.random.normal(jax.random.key(0), (ROWS, COLUMNS))}
    recipes = {f"{b} bit{'s' * (b > 1)}": (b, quantize(b)) for b in range(1, 9)}
    recipes["4 bits, groups of 64"] = (4, quantize(4, group=64))
    recipes["90 % sparse"] = (None, prune(sparsity=0.9))
    recipes["90 % sparse, 4 bits"] = (None, chain(prune(sparsity=0.9), quantize(4)))
    rows = []
    for name, (bits, method) in recipes.items():
        stored = method.pack(params, method.init(params))
        measured = compiled_bytes(stored)
        row = {"recipe": name, "compiled bytes": measured, "nbytes": stored["kernel"].nbytes}
        row["bits a weight"] = 8 * measured / (ROWS * COLUMNS)
        if bits is not None:
            scales = sum(x.nbytes for x in (stored["kernel"].scale, stored["kernel"].zero) if x is not None)
            row["over bits/8 + scales, %"] = 100 * ((measured - scales) / (bits / 8 * ROWS * COLUMNS) - 1)
        rows.append(row)
    emit(rows)


if __name__ == "__main__":
    main()
