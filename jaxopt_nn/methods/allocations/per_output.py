"""The same sparsity in every output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_nn.core.model import Known
from jaxopt_nn.methods.allocations.base import kept
from jaxopt_nn.numerics import topk


def per_output(
    scores: dict[str, jax.Array], known: Mapping[str, Known], sparsity: jax.Array | float
) -> dict[str, jax.Array]:
    """The same sparsity in every output of every leaf: weights compete with those of the same output only.

    As Wanda does (Sun et al. 2024, section 3), and as any criterion may. Arguments and result as of ``per_leaf``, but that each
    output keeps ``inputs - round(sparsity * inputs)`` of its weights. An axis that is no input axis tells outputs apart.

    Example:
      >>> scores = {"a": jnp.array([[1.0, 7.0], [2.0, 9.0]])}
      >>> jn.per_output(scores, {"a": jn.Known(jn.Roles((), (0,), (1,)))}, 0.5)
      {'a': Array([[False, False],
             [ True,  True]], dtype=bool)}
    """
    return {path: _by_output(score, known[path].roles.input, sparsity) for path, score in scores.items()}


per_output.leaf_local = True  # type: ignore[attr-defined]


def _by_output(score: jax.Array, inputs: tuple[int, ...], sparsity: Any) -> jax.Array:
    if not inputs:
        return jnp.ones(score.shape, bool)
    places = range(len(inputs))
    moved = jnp.moveaxis(score, inputs, places)
    lines = moved.reshape(-1, *moved.shape[len(inputs) :])
    mask = topk.keep_largest_along(lines, kept(len(lines), sparsity), 0)
    return jnp.moveaxis(mask.reshape(moved.shape), places, inputs)
