"""Layer-adaptive magnitudes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_nn.core.model import Known
from jaxopt_nn.methods.allocations.base import keep_all, kept
from jaxopt_nn.numerics import topk


def lamp(scores: dict[str, jax.Array], known: Mapping[str, Known], sparsity: jax.Array | float) -> dict[str, jax.Array]:
    """One budget over all leaves, of scores that are made comparable (Lee et al. 2021, eq. 4).

    A weight of score ``s`` gets ``s^2 / (sum of t^2 over the scores t >= s of its layer)``, the lowest of these go: with
    ``magnitude`` as the paper has it. The largest of each layer gets 1, so that no layer is emptied before all others have one
    weight left. Arguments and result as of ``global_budget``; each layer of a stack is a layer of its own. Not for scores that
    may be negative.

    Example:
      >>> scores = {"a": jnp.array([[1.0, 2.0, 3.0]]), "b": jnp.array([[30.0, 20.0, 10.0]])}  # the same but for their scale
      >>> known = {path: jn.Known(jn.Roles((), (0,), (1,))) for path in scores}
      >>> {path: int(mask.sum()) for path, mask in jn.lamp(scores, known, 1 / 3).items()}
      {'a': 2, 'b': 2}
      >>> {path: int(mask.sum()) for path, mask in jn.global_budget(scores, known, 1 / 3).items()}
      {'a': 1, 'b': 3}
    """
    total = kept(sum(score.size for score in scores.values()), sparsity)
    rows = {path: _rows(score, known[path].roles.stack) for path, score in scores.items()}
    if topk.on_host(total, *scores.values()):
        masks: Any = topk.keep_largest_on_host([_shares_on_host(row) for row in rows.values()], int(total))
        counts = [mask.sum(1) for mask in masks]
    else:
        shares = {path: _shares(row) for path, row in rows.items()}
        flat = topk.keep_largest(jnp.concatenate([share.reshape(-1) for share in shares.values()]), total)
        ends = np.cumsum([share.size for share in shares.values()])[:-1]
        counts = [m.reshape(s.shape).sum(1) for m, s in zip(jnp.split(flat, ends), shares.values(), strict=True)]
    return keep_all(scores, known, dict(zip(scores, counts, strict=True)))


def _rows(score: Any, stack: tuple[int, ...]) -> Any:
    """``[layers, entries]``."""
    count = math.prod(score.shape[a] for a in stack)
    numbers = np if topk.on_host(score) else jnp
    return numbers.moveaxis(numbers.asarray(score), stack, range(len(stack))).reshape(count, -1)


@jax.jit
def _shares(rows: jax.Array) -> jax.Array:
    """In descending order of the scores."""
    squares = jnp.square(-jnp.sort(-rows, axis=1))
    return squares / jnp.maximum(jnp.cumsum(squares, axis=1), jnp.finfo(jnp.float32).tiny)


def _shares_on_host(rows: np.ndarray) -> np.ndarray:
    squares = np.square(np.sort(rows, axis=1)[:, ::-1])
    return (squares / np.maximum(np.cumsum(squares, axis=1, dtype=np.float64), np.finfo(np.float32).tiny)).astype(np.float32)
