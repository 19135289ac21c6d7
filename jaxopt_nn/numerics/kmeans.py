"""K-means in one dimension: Lloyd's iterations on sorted values, their starts, and the nearest centre.

Cells of sorted values are intervals, whose sums are differences of prefix sums: an iteration costs ``k log n`` after one sort.
A prefix sum is held as that of runs of ``RUN`` values, in two floats (Dekker 1971), and of what follows in its own run, so that
a cell of few values keeps its digits beside ten million others.

Defined for every input: to a value that lies halfway the smaller centre is the nearest; a cell without mass keeps its centre;
where no more than ``k`` values differ each is a centre of its own. Under ``origin`` 0.0 is one of the ``k`` centres, also
where no value is zero: it stays where it is and takes every value that is exactly zero, and these have no mass.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxopt_nn.numerics import affine

#: Values that are added up by themselves.
RUN = 128
#: Values up to which k-means++ draws among them; of more it draws among the means of runs.
POINTS = 2**16
STARTS = ("linear", "density", "random", "kmeans++")


class Runs(NamedTuple):
    """Sorted values in runs.

    Attributes:
      values, mass: float32 ``[n]``, ``n`` a multiple of ``RUN``; what is padded has no mass.
      sums: float32 ``[2, 2, n / RUN + 1]``: of mass and of mass times value, the sum of all runs before, as two floats.
    """

    values: Array
    mass: Array
    sums: Array


@partial(jax.jit, static_argnames=("k", "start", "origin", "iterations"))
def fit(
    values: Array,
    mass: Array | None = None,
    *,
    k: int,
    start: str = "linear",
    key: Array | None = None,
    origin: bool = False,
    iterations: int = 100,
) -> Array:
    """The centres that Lloyd's iterations (1982) end at, sorted: float32 ``[k]``, under ``origin`` ``[k - 1]``, without 0.0.

    ``sum_n mass_n (value_n - nearest centre)^2`` never rises from one iteration to the next.

    Args:
      values: ``[n]``, real floats, in any order.
      mass: ``[n]``, at least 0; None: 1 each.
      k: number of centres, 1 or more (2 under ``origin``).
      start: ``"linear"`` (evenly from the least to the largest value), ``"density"`` (at quantiles of the mass), ``"random"``
        (values drawn by mass) or ``"kmeans++"`` (drawn by mass times squared distance, Arthur & Vassilvitskii 2007; of more
        than ``POINTS`` values the means of ``RUN`` neighbours).
      key: PRNG key of the last two.
      origin: 0.0 is one of the centres.
      iterations: at most so many; it stops where none moves.
    """
    values = values.astype(jnp.float32)
    unit = affine.power_below(jnp.max(jnp.abs(values), initial=0))  # sums of the largest floats would overflow
    runs = _runs(values / unit, None if mass is None else mass.astype(jnp.float32), origin)
    free = k - origin
    begin = _start(runs, free, start, key, origin)
    few, all_of_them = _distinct(runs, free, origin)
    begin = jnp.where(all_of_them, few, begin)
    return lloyd(runs, begin, origin, iterations) * unit


def lloyd(runs: Runs, begin: Array, origin: bool = False, iterations: int = 100) -> Array:
    """Lloyd's iterations from ``begin``: float32 ``[k]`` in any order, without 0.0 under ``origin``; as ``fit``."""
    places = jnp.arange(begin.shape[0] + origin)
    begin = jnp.append(begin, 0.0) if origin else begin
    centres, own = lax.sort((begin, places), num_keys=1)
    held = (own == begin.shape[0] - 1) & origin

    def step(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        old, _, count = state
        new = _means(runs, old, held)
        return new, jnp.any(new != old), count + 1

    going = lambda state: state[1] & (state[2] < iterations)
    centres, *_ = lax.while_loop(going, step, (centres, jnp.array(True), jnp.int32(0)))
    if not origin:
        return centres
    at = jnp.argmax(held)
    return jnp.where(places[:-1] < at, centres[:-1], centres[1:])


def nearest(values: Array, centres: Array, origin: bool = False) -> Array:
    """Which centre is the nearest: uint8 of the shape of ``values``, places in ``centres``.

    Args:
      values: floats of any shape.
      centres: float32 ``[k]``, at most 256, in any order.
      origin: 0.0 is a centre too, with code 0; the others have the codes from 1.
    """
    full = jnp.append(jnp.zeros(1, jnp.float32), centres) if origin else centres
    ordered, codes = lax.sort((full, jnp.arange(full.shape[0], dtype=jnp.uint8)), num_keys=1)
    codes = codes[jnp.argmax(ordered[:, None] == ordered[None], 1)]  # of equal centres the first
    wide = values.astype(jnp.float32)
    method = "compare_all" if full.shape[0] <= 32 else "scan_unrolled"
    rank = jnp.searchsorted(_middles(ordered), wide.reshape(-1), side="left", method=method).reshape(values.shape)
    found = jnp.take(codes, rank, mode="clip")
    return jnp.where(wide == 0, jnp.uint8(0), found) if origin else found


def cost(values: Any, centres: Any, mass: Any = None) -> float:
    """``sum_n mass_n (value_n - nearest centre)^2`` in float64 on the host."""
    wide, points = np.asarray(values, np.float64).ravel(), np.sort(np.asarray(centres, np.float64).ravel())
    own = points[np.searchsorted((points[1:] + points[:-1]) / 2, wide)]
    return float(np.sum((wide - own) ** 2 * (1.0 if mass is None else np.asarray(mass, np.float64).ravel())))


# -- sums over intervals -------------------------------------------------------------------------------------------------


def _runs(values: Array, mass: Array | None, origin: bool) -> Runs:
    if mass is None:
        values = _turned(jnp.sort(_turned(values, jnp.int32)), jnp.float32)
        mass = jnp.ones_like(values)
    else:
        places, mass = lax.sort((_turned(values, jnp.int32), mass), num_keys=1)
        values = _turned(places, jnp.float32)
    mass = jnp.where(values == 0, 0.0, mass) if origin else mass
    missing = -values.shape[0] % RUN
    values, mass = jnp.pad(values, (0, missing), mode="edge"), jnp.pad(mass, (0, missing))
    sums = jnp.stack([jnp.sum(x.reshape(-1, RUN), -1) for x in (mass, mass * values)])
    zero = jnp.zeros(2, jnp.float32)

    def add(before: tuple[Array, Array], run: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        return _two_sum(before, (run, zero)), before

    end, before = lax.scan(add, (zero, zero), sums.T)
    every = [jnp.append(part, last[None], axis=0) for part, last in zip(before, end)]
    return Runs(values, mass, jnp.stack(every).transpose(2, 0, 1))


def _turned(x: Array, kind: Any) -> Array:
    """float32 as integers in the same order, and back: XLA on CPU sorts those in half of the time."""
    bits = lax.bitcast_convert_type(x, jnp.int32)
    return lax.bitcast_convert_type(jnp.where(bits < 0, bits ^ np.int32(0x7FFFFFFF), bits), kind)


def _two_sum(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
    """The sum of two numbers of two floats each, the larger part first."""
    total = a[0] + b[0]
    part = total - a[0]
    low = (a[0] - (total - part)) + (b[0] - part) + (a[1] + b[1])
    high = total + low
    return high, low - (high - total)


def _before(runs: Runs, places: Array) -> Array:
    """Sums of mass and of mass times value before each place: ``[2, 2, places]``, as two floats."""
    run, rest = places // RUN, places % RUN
    inside = jnp.minimum(run, runs.values.shape[0] // RUN - 1)
    own, mass = (x.reshape(-1, RUN)[inside] for x in (runs.values, runs.mass))
    some = jnp.where(jnp.arange(RUN)[None] < rest[:, None], mass, 0.0)
    part = jnp.stack([jnp.sum(some, -1), jnp.sum(some * own, -1)])
    high, low = runs.sums[:, 0, run], runs.sums[:, 1, run]
    return jnp.stack(_two_sum((high, low), (part, jnp.zeros_like(part))), 1)


def _middles(centres: Array) -> Array:
    return 0.5 * centres[1:] + 0.5 * centres[:-1]


def _means(runs: Runs, centres: Array, held: Array) -> Array:
    """The mean of each cell of sorted centres, which stays within the cell's values."""
    n = runs.values.shape[0]
    inner = jnp.searchsorted(runs.values, _middles(centres), side="right").astype(jnp.int32)
    ends = jnp.concatenate([jnp.zeros(1, jnp.int32), inner, jnp.full(1, n, jnp.int32)])
    before = _before(runs, ends)
    mass, moment = (before[:, 0, 1:] - before[:, 0, :-1]) + (before[:, 1, 1:] - before[:, 1, :-1])
    some = mass > 0
    mean = moment / jnp.where(some, mass, 1.0)
    least, largest = runs.values[jnp.minimum(ends[:-1], n - 1)], runs.values[jnp.maximum(ends[1:] - 1, 0)]
    return jnp.where(held | ~some, centres, jnp.clip(mean, least, largest))


# -- starts --------------------------------------------------------------------------------------------------------------


def _start(runs: Runs, k: int, start: str, key: Array | None, origin: bool) -> Array:
    if start == "linear":
        some = runs.mass > 0
        low = jnp.min(runs.values, initial=jnp.inf, where=some)
        high = jnp.max(runs.values, initial=-jnp.inf, where=some)
        ends = jnp.where(low <= high, jnp.stack([low, high]), 0.0)
        share = jnp.linspace(0.0, 1.0, k) if k > 1 else jnp.full(1, 0.5)
        return ends[0] * (1 - share) + ends[1] * share
    if start == "density":
        return _quantiles(runs, (jnp.arange(k) + 0.5) / k)
    assert key is not None
    if start == "random":
        return _quantiles(runs, jax.random.uniform(key, (k,)))
    return _plus_plus(runs, k, key, origin)


def _quantiles(runs: Runs, shares: Array) -> Array:
    """The values below which lie these shares of the mass."""
    total = runs.sums[0, 0, -1]
    target = shares * total
    run = jnp.clip(jnp.searchsorted(runs.sums[0, 0], target, side="right") - 1, 0, runs.sums.shape[-1] - 2)
    mass = runs.mass.reshape(-1, RUN)[run]
    passed = jnp.cumsum(mass, -1) > (target - runs.sums[0, 0, run])[:, None]
    last = RUN - 1 - jnp.argmax(mass[:, ::-1] > 0, -1)  # rounding may leave the target behind the whole run
    place = jnp.where(jnp.any(passed, -1), jnp.argmax(passed, -1), last)
    return jnp.where(total > 0, runs.values[run * RUN + place], 0.0)


def _plus_plus(runs: Runs, k: int, key: Array, origin: bool) -> Array:
    values, mass = runs.values, runs.mass
    if values.shape[0] > POINTS:
        own, moment = (jnp.sum(x.reshape(-1, RUN), -1) for x in (mass, mass * values))
        values, mass = moment / jnp.where(own > 0, own, 1.0), own
    draws = jax.random.uniform(key, (k,))

    def draw(i: Any, state: tuple[Array, Array]) -> tuple[Array, Array]:
        centres, apart = state
        heights = jnp.cumsum(mass * jnp.where(jnp.isinf(apart), 1.0, apart))
        place = jnp.searchsorted(heights, draws[i] * heights[-1], side="right")
        new = values[jnp.minimum(place, values.shape[0] - 1)]
        return centres.at[i].set(new), jnp.minimum(apart, jnp.square(values - new))

    apart = jnp.square(values) if origin else jnp.full_like(values, jnp.inf)
    return lax.fori_loop(0, k, draw, (jnp.zeros(k, jnp.float32), apart))[0]


def _distinct(runs: Runs, k: int, origin: bool) -> tuple[Array, Array]:
    """The ``k`` smallest different values, and whether there are no more; zero counts for none under ``origin``."""
    n = runs.values.shape[0]

    def after(place: Array) -> Array:
        """The place of the next larger value; ``n`` at the end."""
        value = runs.values[jnp.minimum(place, n - 1)]
        return jnp.searchsorted(runs.values, value, side="right").astype(jnp.int32)

    def nonzero(place: Array) -> Array:
        zero = (place < n) & (runs.values[jnp.minimum(place, n - 1)] == 0)
        return jnp.where(zero, after(place), place) if origin else place

    def step(place: Array, _: None) -> tuple[Array, Array]:
        return jnp.where(place < n, nonzero(after(place)), place), runs.values[jnp.minimum(place, n - 1)]

    end, found = lax.scan(step, nonzero(jnp.int32(0)), None, length=k)
    return found, end >= n
