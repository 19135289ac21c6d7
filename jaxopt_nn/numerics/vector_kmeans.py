"""K-means of vectors, with a mass for each of their entries, and codebooks whose vectors add up.

Rows are compared with all centres ``ROWS`` at a time, as products of matrices: ``sum_d m_d (x_d - c_d)^2`` is
``sum_d m_d x_d^2 - 2 (m x) c + m c^2``. A centre without mass keeps its place, entry by entry; of two equally near ones the
first is taken.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxopt_nn.numerics import affine

#: Rows that are compared with all centres at a time.
ROWS = 4096
#: Rows among which starts are drawn.
POINTS = 2**16
_EXACT = lax.Precision.HIGHEST


@partial(jax.jit, static_argnames=("k", "stages", "sweeps", "iterations"))
def fit(
    rows: Array, mass: Array | None, key: Array, *, k: int, stages: int = 1, sweeps: int = 0, iterations: int = 25
) -> tuple[Array, Array]:
    """Codebooks, one a stage, whose chosen vectors add up to the rows.

    Each stage clusters what the ones before leave (residual quantization, Chen et al. 2010). In each of ``sweeps`` every stage
    in turn is fitted anew to what all others leave, codes and centres (coordinate descent on the cost of additive quantization,
    Babenko & Lempitsky 2014); the cost never rises.

    Args:
      rows: ``[n, d]`` real floats.
      mass: ``[n, d]``, at least 0; None: 1 each.
      key: PRNG key of the starts.
      k: centres a stage, at most 256.

    Returns:
      tables float32 ``[stages, k, d]`` and codes uint8 ``[n, stages]``.
    """
    rows = rows.astype(jnp.float32)
    unit = affine.power_below(jnp.max(jnp.abs(rows), initial=0))  # squares of large floats would overflow, of small ones vanish
    rows = rows / unit
    mass = jnp.ones_like(rows) if mass is None else mass.astype(jnp.float32)
    left, tables, codes = rows, [], []
    for stage in range(stages):
        begin = plus_plus(left, mass, k, jax.random.fold_in(key, stage))
        table, own = lloyd(left, mass, begin, iterations)
        left = left - table[own]
        tables.append(table)
        codes.append(own)
    both = jnp.stack(tables), jnp.stack(codes)

    def sweep(state: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        return lax.fori_loop(0, stages, lambda s, held: _refitted(rows, mass, held, s), state), None

    (found, chosen), _ = lax.scan(sweep, both, None, length=sweeps if stages > 1 else 0)
    return found * unit, chosen.T.astype(jnp.uint8)


def _refitted(rows: Array, mass: Array, state: tuple[Array, Array], stage: Any) -> tuple[Array, Array]:
    """The stage's centres and codes on what the other stages leave."""
    tables, codes = state
    total = jnp.sum(jax.vmap(lambda table, own: table[own])(tables, codes), 0)
    left = rows - (total - tables[stage][codes[stage]])
    table, own = lloyd(left, mass, tables[stage], 1)
    return tables.at[stage].set(table), codes.at[stage].set(own)


def lloyd(rows: Array, mass: Array, begin: Array, iterations: int) -> tuple[Array, Array]:
    """Lloyd's iterations from the centres ``begin [k, d]``: centres, and the nearest of each row, int32 ``[n]``.

    ``sum_nd mass_nd (row_nd - centre_d)^2`` never rises; it stops where no centre moves.
    """

    def step(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        old, _, count = state
        new = _means(rows, mass, old)
        return new, jnp.any(new != old), count + 1

    going = lambda state: state[1] & (state[2] < iterations)
    centres, *_ = lax.while_loop(going, step, (begin, jnp.array(True), jnp.int32(0)))
    return centres, nearest(rows, mass, centres)


def nearest(rows: Array, mass: Array, centres: Array) -> Array:
    """The centre of least ``sum_d mass_d (row_d - centre_d)^2`` of each row: int32 ``[n]``."""
    pieces, n = _pieces(rows, mass)
    return lax.map(lambda part: _choice(part[0], part[1], centres), pieces).reshape(-1)[:n]


def _choice(rows: Array, mass: Array, centres: Array) -> Array:
    product = partial(jnp.matmul, precision=_EXACT)
    apart = product(mass, jnp.square(centres).T) - 2 * product(mass * rows, centres.T)
    return jnp.argmin(apart, -1).astype(jnp.int32)


def _means(rows: Array, mass: Array, centres: Array) -> Array:
    k = centres.shape[0]

    def add(sums: Array, part: tuple[Array, Array]) -> tuple[Array, None]:
        own, each = part
        ones = jax.nn.one_hot(_choice(own, each, centres), k, dtype=jnp.float32)
        both = jnp.concatenate([each, each * own], -1)
        return sums + jnp.matmul(ones.T, both, precision=_EXACT), None

    pieces, _ = _pieces(rows, mass)
    sums, _ = lax.scan(add, jnp.zeros((k, 2 * rows.shape[-1])), pieces)
    weight, moment = jnp.split(sums, 2, -1)
    return jnp.where(weight > 0, moment / jnp.where(weight > 0, weight, 1.0), centres)


def _pieces(rows: Array, mass: Array) -> tuple[tuple[Array, Array], int]:
    """``ROWS`` rows at a time; those that are padded have no mass."""
    n, size = rows.shape[0], min(ROWS, rows.shape[0])
    fill = lambda x: jnp.pad(x, ((0, -n % size), (0, 0))).reshape(-1, size, x.shape[-1])
    return (fill(rows), fill(mass)), n


def plus_plus(rows: Array, mass: Array, k: int, key: Array) -> Array:
    """Rows drawn by what the centres before leave of them: mass times squared distance (Arthur & Vassilvitskii 2007).

    Of more than ``POINTS`` every n-th is one that may be drawn.
    """
    step = -(-rows.shape[0] // POINTS)
    rows, mass = rows[::step], mass[::step]
    draws = jax.random.uniform(key, (k,))

    def draw(i: Any, state: tuple[Array, Array]) -> tuple[Array, Array]:
        centres, left = state
        heights = jnp.cumsum(left)
        place = jnp.minimum(jnp.searchsorted(heights, draws[i] * heights[-1], side="right"), rows.shape[0] - 1)
        apart = jnp.sum(mass * jnp.square(rows - rows[place][None]), -1)
        return centres.at[i].set(rows[place]), jnp.where(i == 0, apart, jnp.minimum(left, apart))

    first = jnp.sum(mass, -1)
    return lax.fori_loop(0, k, draw, (jnp.zeros((k, rows.shape[-1]), jnp.float32), first))[0]
