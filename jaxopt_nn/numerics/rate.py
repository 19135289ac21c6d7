"""What integer codes cost a coder: lengths in bits, and codes chosen for little distortion and few bits.

The model is that of an adaptive coder with contexts, in closed form. A code is zero or not, with odds that depend on its row
and its column; then follow a sign, and a magnitude that is geometric. Everything here is ``[..., R, C]``: a matrix, or a
stack of them, each with statistics of its own.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

#: Entries of the average density that a row or column is mixed with: one of few entries knows little of itself.
PRIOR = 8.0
#: Bounds of the price of a code other than zero, in bits: where nearly all are kept zero would be the dearer one, and where
#: nearly none are, one that returns would be pushed back at once.
CHEAPEST, DEAREST = 0.2, 20.0


class Prices(NamedTuple):
    """Statistics of codes, from which lengths follow; float32.

    Attributes:
      row: ``[..., R, 1]``, log odds (natural) that a code of the row is not zero.
      column: ``[..., 1, C]``, by how much those of the column differ from the mean.
      growth: ``[..., 1, 1]``, the probability that a magnitude goes on: of ``m`` it is ``(1 - growth) growth^(m - 1)``.
    """

    row: jax.Array
    column: jax.Array
    growth: jax.Array


def _odds(count: jax.Array, total: float, mean: jax.Array) -> jax.Array:
    share = (count + PRIOR * mean) / (total + PRIOR)
    return jnp.log(share) - jnp.log1p(-share)


def prices(codes: jax.Array) -> Prices:
    """The statistics of ``codes [..., R, C]``, integers or floats of whole numbers.

    Odds of row and column add up as in a naive Bayes classifier: ``row + column - mean``.
    """
    size = codes.astype(jnp.float32)
    some = (size != 0).astype(jnp.float32)
    rows, columns = codes.shape[-2:]
    kept = some.sum((-2, -1), keepdims=True)
    mean = (kept + 0.5) / (rows * columns + 1)
    row = _odds(some.sum(-1, keepdims=True), columns, mean)
    column = _odds(some.sum(-2, keepdims=True), rows, mean) - (jnp.log(mean) - jnp.log1p(-mean))
    # The mean magnitude is 1 / (1 - growth); two codes of magnitude one are added, so that it is above 1.
    average = (jnp.abs(size).sum((-2, -1), keepdims=True) + 2) / (kept + 1)
    return Prices(row, column, 1 - 1 / average)


def entry(costs: Prices) -> jax.Array:
    """The price of magnitude one: bits that it costs more than zero, with its sign, within the bounds: ``[..., R, C]``."""
    return jnp.clip(_entry(costs), CHEAPEST, DEAREST)


def _entry(costs: Prices) -> jax.Array:
    return 1 - (costs.row + costs.column + jnp.log1p(-costs.growth)) / jnp.log(2.0)


def further(costs: Prices) -> jax.Array:
    """Bits for each level of magnitude beyond the first: ``[..., 1, 1]``."""
    return -jnp.log2(costs.growth)


def code_bits(codes: jax.Array, costs: Prices) -> jax.Array:
    """The length of each code in bits, float32 of their shape.

    The sum is close to what a coder with these contexts takes, which learns the statistics as it goes.
    """
    size = jnp.abs(codes.astype(jnp.float32))
    odds = costs.row + costs.column
    zero = jax.nn.softplus(odds) / jnp.log(2.0)
    return zero + jnp.where(size > 0, _entry(costs) + (size - 1) * further(costs), 0.0)


def choose(values: jax.Array, costs: Prices, exchange: jax.Array, most: int) -> jax.Array:
    """For each value the code of least ``(value - code)^2 + exchange * bits``, of all codes up to the magnitude ``most``.

    Above zero bits are linear in the magnitude, so the best one is the value less ``exchange * further / 2``, rounded; then
    zero is tried.

    Args:
      values: float32 ``[..., R, C]``, in steps.
      exchange: squared steps that a bit is worth, broadcast like ``values``; 0 rounds to nearest.
      most: the largest magnitude.

    Returns:
      Codes as float32.
    """
    size, first, more = jnp.abs(values), entry(costs), further(costs)
    level = jnp.clip(jnp.round(size - exchange * more / 2), 1, most)
    loss = jnp.square(size - level) + exchange * (first + (level - 1) * more)
    return jnp.where(jnp.square(size) <= loss, 0.0, jnp.sign(values) * level)
