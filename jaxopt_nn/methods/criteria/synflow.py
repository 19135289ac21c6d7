"""Pruning at initialization without data."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_nn.core.model import Known
from jaxopt_nn.core.tap import Probe
from jaxopt_nn.methods.criteria.base import Criterion, asking
from jaxopt_nn.numerics import topk


@functools.cache
def synflow(rounds: int = 100, density: float = 1e-3) -> Criterion:
    """``|w| dR/d|w|`` of the flow ``R``, pruned in rounds: SynFlow (Tanaka et al. 2020, eq. 2 and algorithm 1).

    ``R`` is the sum of the outputs for inputs of ones where every float leaf is replaced by its absolute value. Before
    pruning, without data: ``calibrate`` needs the inputs for their shapes alone. Round ``k`` scores what is left and cuts to
    ``density^(k / rounds)`` of all weights together, as in the paper; the score of a weight is the round in which it goes, and
    within a round its share of the largest score. Departure: rounds go on to ``density`` whatever the sparsity, which then
    cuts between rounds. For networks of ReLU layers; with ``allocation=global_budget``.

    Args:
      rounds: 1 to 10,000.
      density: after the last round, in (0, 1).

    Returns:
      A criterion; scores from 0 to ``rounds + 1``.

    Raises:
      ValueError: values outside the above.

    Example:
      >>> variables = {"a": jnp.eye(2) + 0.1, "b": jnp.array([[1.0], [0.1]])}
      >>> net = jn.Network(lambda v, x: jax.nn.relu(x @ v["a"]) @ v["b"], variables)
      >>> method = jn.prune(jn.synflow(), sparsity=1 / 3, allocation=jn.global_budget)
      >>> info = jn.calibrate(net, method, [jnp.ones((1, 2))])
      >>> {path: own.mask.tolist() for path, own in method.init(net.variables, info).carried.items()}
      {'a': [[True, False], [False, True]], 'b': [[True], [True]]}
    """
    if isinstance(rounds, bool) or not isinstance(rounds, int) or not 1 <= rounds <= 10_000:
        raise ValueError(f"synflow(rounds={rounds!r}): allowed are the whole numbers 1 to 10,000")
    if not 0 < density < 1:
        raise ValueError(f"synflow(density={density!r}): the share that the last round leaves, above 0 and below 1, e.g. 1e-3")

    @asking(probes={"flow": Probe(functools.partial(_flow, rounds, density), of="outputs")}, gradients=False)
    def lasting(weight: jax.Array, grad: jax.Array | None, known: Known) -> jax.Array:
        return known.stats["flow"]

    return lasting


def _flow(
    rounds: int, density: float, total: Callable[..., Any], leaves: dict[str, Any], taken: Sequence[str], key: Any
) -> dict[str, Any]:
    sizes = {path: leaves[path] for path in taken}
    absolute = {path: jnp.abs(x) for path, x in leaves.items()}
    whole = sum(x.size for x in sizes.values())

    def flat(parts: dict[str, Any]) -> jax.Array:
        return jnp.concatenate([parts[path].astype(jnp.float32).reshape(-1) for path in taken])

    def apart(row: jax.Array) -> dict[str, Any]:
        pieces = jnp.split(row, np.cumsum([sizes[path].size for path in taken])[:-1])
        return {path: x.reshape(sizes[path].shape) for path, x in zip(taken, pieces, strict=True)}

    weights = flat(absolute)

    def one(k: Any, carry: Any) -> Any:
        stays, worth = carry
        own = apart(jnp.where(stays, weights, 0))
        score = flat(jax.grad(lambda part: total({**absolute, **part}))(own)) * weights
        score = jnp.where(stays, score / jnp.maximum(jnp.max(jnp.where(stays, score, 0)), jnp.finfo(jnp.float32).tiny), -1)
        worth = jnp.where(stays, k + score, worth)
        count = jnp.round(whole * density ** ((k + 1) / rounds)).astype(jnp.int32)
        return topk.keep_largest(score, count), worth

    _, worth = jax.lax.fori_loop(0, rounds, one, (jnp.ones(whole, bool), jnp.zeros(whole, jnp.float32)))
    return apart(worth)
