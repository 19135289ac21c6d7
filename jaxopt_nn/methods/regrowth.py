"""Dynamic sparse training: at a constant sparsity some weights go and as many others return."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxopt_nn.core.model import Known
from jaxopt_nn.methods.allocations.base import keep_all
from jaxopt_nn.methods.criteria.base import Criterion, asking
from jaxopt_nn.methods.criteria.random import random_scores
from jaxopt_nn.methods.schedules import check_shares


class Regrowth(NamedTuple):
    """At each update a share of the kept weights goes, those of the lowest score, and as many others return.

    Attributes:
      name: in messages.
      by: a criterion: those of the highest score return. What has just gone may return too.
      share: ``step -> share of the kept weights`` that goes; rounded to whole weights in each layer.
      start: a criterion for the first masks; None: that of the pruning.

    Example:
      >>> uphill = jn.Regrowth("uphill", by=lambda weight, grad, known: -grad, share=lambda step: 0.5)
      >>> method = jn.prune(sparsity=0.5, regrow=uphill)
      >>> v = {"kernel": jnp.array([[4.0, 3.0], [2.0, 1.0]])}
      >>> state = method.update(v, method.init(v), step=0, grads={"kernel": jnp.array([[1.0, 1.0], [0.0, -1.0]])})
      >>> state.carried["kernel"].mask  # the 3 has gone, the 1 has returned
      Array([[ True, False],
             [False,  True]], dtype=bool)
    """

    name: str
    by: Criterion
    share: Callable[[Any], Any]
    start: Criterion | None = None


@asking(gradients=True)
def steepest(weight: jax.Array, grad: jax.Array | None, known: Known) -> jax.Array:
    """``|dL/dw|``, the dense gradient, which masked weights have too."""
    if grad is None:
        raise ValueError("rigl needs gradients: pass grads= to update, or train with make_step or a Stage")
    return jnp.abs(grad)


def rigl(*, end: int, share: float = 0.3, start: Criterion | None = None) -> Regrowth:
    """RigL (Evci et al. 2020): what is smallest goes, and returns where the gradient is steepest.

    The share falls as half a cosine, ``share / 2 (1 + cos(pi t / end))`` (their section 3), and is 0 from ``end`` on, e.g.
    three quarters of the training. They exchange every 100 steps: ``every(100, prune(...))``. What returns starts from zero.
    Departure: the first masks are the criterion's; theirs are random: ``start=random_scores(0)``.

    Args:
      end: the step from which on masks stay.
      share: of the kept weights that goes at step 0, in [0, 1].
      start: criterion of the first masks; None: that of the pruning.

    Raises:
      ValueError: a share outside [0, 1], an end before step 1.

    Example:
      >>> method = jn.every(100, jn.prune(sparsity=0.9, allocation=jn.erk, regrow=jn.rigl(end=7500, start=jn.random_scores(0))))
      >>> v = {"kernel": jax.random.normal(jax.random.key(0), (20, 20))}
      >>> state = method.init(v)
      >>> new = method.update(v, state, step=100, grads={"kernel": jnp.ones((20, 20))})
      >>> int(new.carried["kernel"].mask.sum()), int((new.carried["kernel"].mask & state.carried["kernel"].mask).sum())
      (40, 28)
    """
    check_shares("rigl", share=share)
    _check_end("rigl", end)
    falling = lambda step: share / 2 * (1 + jnp.cos(math.pi * jnp.minimum(step, end) / end))
    return Regrowth("rigl", steepest, falling, start)


def sparse_evolution(
    key: Any, *, end: int | None = None, share: float = 0.3, start: Criterion | None = None
) -> Regrowth:
    """SET, sparse evolutionary training (Mocanu et al. 2018): what is smallest goes, and returns anywhere.

    Departure: what returns starts from zero, theirs from a random value. What returns too late to be trained stays zero: let
    it ``end`` before the training does, as theirs does before the last epoch.

    Args:
      key: a PRNG key or a seed, of where weights return.
      end: the step from which on masks stay, 1 or more; None: none.
      share: of the kept weights that goes at each update (their zeta), in [0, 1].
      start: criterion of the first masks; None: that of the pruning; theirs are random.

    Raises:
      ValueError: a share outside [0, 1], an end before step 1.

    Example:
      >>> method = jn.prune(sparsity=0.75, regrow=jn.sparse_evolution(0))
      >>> v = {"kernel": jax.random.normal(jax.random.key(0), (8, 5))}
      >>> state = method.update(v, method.init(v), step=0)
      >>> int(state.carried["kernel"].mask.sum())
      10
    """
    check_shares("sparse_evolution", share=share)
    if end is not None:
        _check_end("sparse_evolution", end)
    steady = lambda step: jnp.where(end is None or step < end, jnp.float32(share), jnp.float32(0))
    return Regrowth("sparse_evolution", random_scores(key), steady, start)


def _check_end(name: str, end: int) -> None:
    if isinstance(end, bool) or end < 1:
        raise ValueError(f"{name}(end={end}): the step from which on masks stay, 1 or more, e.g. 0.75 of the training")


Masks = Mapping[str, jax.Array]


def regrown(masks: Masks, drop: Masks, grow: Masks, known: Mapping[str, Known], share: Any) -> dict[str, jax.Array]:
    """The masks after a share of each layer's kept entries has gone, and as many have returned."""
    kept = {path: _counted(mask, known[path].roles.stack) for path, mask in masks.items()}
    stay = {path: n - jnp.round(jnp.asarray(share, jnp.float32) * n).astype(jnp.int32) for path, n in kept.items()}
    left = keep_all({path: jnp.where(mask, drop[path], -jnp.inf) for path, mask in masks.items()}, known, stay)
    most = jnp.finfo(jnp.float32).max
    highest = {path: jnp.where(staying, jnp.inf, jnp.minimum(grow[path], most)) for path, staying in left.items()}
    return keep_all(highest, known, kept)


def _counted(mask: jax.Array, stack: tuple[int, ...]) -> jax.Array:
    """Entries that each layer keeps, int32."""
    return jnp.sum(mask, axis=[a for a in range(mask.ndim) if a not in stack], dtype=jnp.int32).reshape(-1)
