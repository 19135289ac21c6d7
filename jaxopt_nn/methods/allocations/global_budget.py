"""One budget over all leaves."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_nn.core.model import Known
from jaxopt_nn.methods.allocations.base import keep, kept
from jaxopt_nn.numerics import topk


def global_budget(
    scores: dict[str, jax.Array], known: Mapping[str, Known], sparsity: jax.Array | float
) -> dict[str, jax.Array]:
    """One budget over all leaves together: the lowest scores of the whole network go.

    As Frankle & Carbin (2019, section 4) prune deeper networks. Arguments and result as of ``per_leaf``, but that the number
    kept is exact over all leaves; a leaf may lose all of its weights.

    Raises:
      ValueError: 2^31 weights or more, which int32 can't count.

    Example:
      >>> scores = {"a": jnp.array([[1.0, 2.0]]), "b": jnp.array([[3.0, 4.0]])}
      >>> known = {path: jn.Known(jn.Roles((), (0,), (1,))) for path in scores}
      >>> jn.global_budget(scores, known, 0.5)
      {'a': Array([[False, False]], dtype=bool), 'b': Array([[ True,  True]], dtype=bool)}
    """
    count = kept(sum(score.size for score in scores.values()), sparsity)
    if topk.on_host(count, *scores.values()):
        masks = topk.keep_largest_on_host([np.asarray(score) for score in scores.values()], int(count))
        return dict(zip(scores, map(jax.device_put, masks), strict=True))
    flat = jnp.concatenate([score.reshape(-1) for score in scores.values()])
    mask = keep(flat, (), count)
    out, at = {}, 0
    for path, score in scores.items():
        out[path] = mask[at : at + score.size].reshape(score.shape)
        at += score.size
    return out
