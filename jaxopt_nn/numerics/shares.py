"""One budget for many parts, each of which can be had at several costs."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

#: Halvings of the range of prices: from 1e-15 to 1e15 losses over the whole budget, to 1e-9 of a price.
HALVINGS = 64


def shared(losses: Sequence[Array], costs: Sequence[np.ndarray], budget: float) -> Array:
    """Which option each part takes, so that all costs together keep to the budget and the loss is least.

    Each takes the option of least ``loss + price * cost``; the price is the lowest that keeps to the budget (Everett 1963,
    which is greedy by loss over cost on the options that lie on a convex curve). What is left goes where it saves most.

    Args:
      losses: of each part, float32 ``[options]``; of equal ones the first is taken.
      costs: of each part, ``[options]``, static; the cheapest options together keep to the budget.

    Returns:
      int32 ``[parts]``.
    """
    n, most = len(costs), max(map(len, costs))
    unit = max(float(budget), 1e-30)
    price = np.full((n, most), np.inf, np.float32)
    for row, own in zip(price, costs):
        row[: len(own)] = np.asarray(own, np.float64) / unit
    cost = jnp.asarray(price)
    loss = jnp.stack([jnp.pad(own, (0, most - len(own)), constant_values=jnp.inf) for own in losses])
    at = lambda choice: jnp.take_along_axis(cost, choice[:, None], 1)[:, 0]
    total = lambda choice: jnp.sum(at(choice))
    room = 1.0 + 1e-6

    def cheapest(log_price: Array) -> Array:
        return jnp.argmin(loss + jnp.where(jnp.isfinite(cost), 10.0**log_price * cost, jnp.inf), 1)

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        fits = total(cheapest(middle)) <= room
        return jnp.where(fits, low, middle), jnp.where(fits, middle, high)

    _, high = lax.fori_loop(0, HALVINGS, halve, (jnp.float32(-15.0), jnp.float32(15.0)))
    start = cheapest(high)
    start = jnp.where(total(start) <= room, start, jnp.argmin(cost, 1))

    def fill(_: int, choice: Array) -> Array:
        rest = room - total(choice)
        fits = cost <= (at(choice) + rest)[:, None]
        best = jnp.argmin(jnp.where(fits, loss, jnp.inf), 1)
        now = jnp.take_along_axis(loss, choice[:, None], 1)[:, 0]
        gain = now - jnp.take_along_axis(loss, best[:, None], 1)[:, 0]
        part = jnp.argmax(gain)
        return choice.at[part].set(jnp.where(gain[part] > 0, best[part], choice[part]))

    return lax.fori_loop(0, n, fill, start).astype(jnp.int32)
