"""Bytes as the compiler counts them. The true bytes of a tree are ``tensors.base.nbytes``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax


def argument_bytes(fun: Callable[..., Any], *args: Any) -> int:
    """Bytes of the arguments of the compiled ``fun(*args)`` on the default backend, unused arguments included.

    The proof of what a stored tensor weighs: an array's own ``nbytes`` says a byte an entry for every narrow dtype, and
    some backends (CPU) do keep a byte for an int4 entry.

    Args:
      fun: a function of pytrees. args: pytrees of arrays or ``jax.ShapeDtypeStruct``; nothing is run.
    """
    compiled = jax.jit(fun, keep_unused=True).lower(*args).compile()
    return compiled.memory_analysis().argument_size_in_bytes
