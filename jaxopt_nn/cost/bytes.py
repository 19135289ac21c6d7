"""Bytes as the compiler counts them. The true bytes of a tree are ``tensors.base.nbytes``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax


def argument_bytes(fun: Callable[..., Any], *args: Any) -> int:
    """Bytes of the arguments of ``fun(*args)``, compiled for the default backend; unused ones are included.

    The proof of what a stored tensor weighs: an array's own ``nbytes`` says a byte an entry for every narrow
    dtype, and some backends (CPU) do keep a byte for an int4 entry.

    Args:
      fun: a function of pytrees.
      args: pytrees of arrays or ``jax.ShapeDtypeStruct``; nothing is run.
    """
    return memory_analysis(jax.jit(fun, keep_unused=True).lower(*args).compile()).argument_size_in_bytes


def memory_analysis(program: jax.stages.Compiled) -> Any:
    """``program.memory_analysis()``.

    Raises:
      RuntimeError: the backend gives none.
    """
    analysis = program.memory_analysis()
    if analysis is None:
        raise RuntimeError("this backend's compiler tells no memory sizes; compile for another one")
    return analysis
