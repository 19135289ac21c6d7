"""How sparsity grows while a network trains: pure functions of the step, usable under jit.

A schedule is any callable ``step -> value``; optax's are schedules too. These two always reach ``final``, exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

#: ``step`` (an integer, static or traced) ``-> float32 scalar``.
Schedule = Callable[[Any], jax.Array]
#: A step after the end of any schedule.
LAST = 2**30


def cubic(final: float, end: int, begin: int = 0, initial: float = 0.0) -> Schedule:
    """Gradual pruning: fast while much is redundant, slow towards the end.

    Zhu & Gupta (2017), eq. 1:
    ``s(t) = final + (initial - final) (1 - (t - begin) / (end - begin))^3`` for ``begin <= t <= end``. It is ``initial`` to
    the bit until ``begin`` and ``final`` to the bit from ``end`` on (also where both are one step). The paper's pruning
    interval is ``every(n, prune(...), last=end)``.

    Args:
      final, initial: shares of zeros in [0, 1].
      end, begin: steps, ``0 <= begin <= end``.

    Raises:
      ValueError: a share outside [0, 1], or steps in another order.

    Example:
      >>> sparsity = jn.cubic(0.9, end=100)
      >>> [round(float(sparsity(step)), 3) for step in (0, 25, 50, 100, 200)]
      [0.0, 0.52, 0.787, 0.9, 0.9]
      >>> method = jn.every(10, jn.prune(sparsity=sparsity), last=100)
    """
    check_shares("cubic", final=final, initial=initial)
    if not 0 <= begin <= end:
        raise ValueError(f"cubic(begin={begin}, end={end}): steps, 0 <= begin <= end")

    def schedule(step: Any) -> jax.Array:
        step = jnp.asarray(step)
        left = 1 - (step - begin) / max(end - begin, 1)
        ramp = final + (initial - final) * left**3
        level = jnp.where(step >= end, final, jnp.where(step <= begin, initial, ramp))
        return level.astype(jnp.float32)

    return schedule


def staircase(final: float, rounds: int, end: int, initial: float = 0.0) -> Schedule:
    """Iterative pruning: prune, train, prune again (Han et al. 2015; Frankle & Carbin 2019).

    Round ``i`` of ``0 .. rounds - 1`` starts at step ``i end / rounds`` (rounded up), and removes the same share of what
    remains as every other: ``s_i = 1 - (1 - initial) ((1 - final) / (1 - initial))^((i + 1) / rounds)``. So the first
    round prunes at step 0, the last holds ``final``, to the bit, and has ``end / rounds`` steps of training after it
    within ``end``. A ``final`` of 1 leaves no such share: the first round removes everything.

    Args:
      final, initial: shares of zeros, ``0 <= initial <= final <= 1``.
      rounds: 1 or more; of rounds that start at the same step (``rounds > end``) the last counts.
      end: the step at which the last round's training ends, 0 or more.

    Raises:
      ValueError: a value outside the above.

    Example:
      >>> sparsity = jn.staircase(0.9, rounds=3, end=30)
      >>> [round(float(sparsity(step)), 3) for step in (0, 9, 10, 20, 30)]  # each round removes the same share of the rest
      [0.536, 0.536, 0.785, 0.9, 0.9]
    """
    check_shares("staircase", final=final, initial=initial)
    if initial > final:
        raise ValueError(f"staircase(initial={initial}, final={final}): rounds remove weights, initial <= final")
    if isinstance(rounds, bool) or rounds != int(rounds) or rounds < 1:
        raise ValueError(f"staircase(rounds={rounds}): a whole number, 1 or more")
    if end < 0:
        raise ValueError(f"staircase(end={end}): a number of steps, 0 or more")
    rounds = int(rounds)
    kept = (1 - final) / (1 - initial) if initial < 1 else 0.0
    shares = np.arange(1, rounds + 1) / rounds
    levels = np.array([*(1 - (1 - initial) * kept ** shares[:-1]), final], np.float32)
    starts = np.array([-(-i * end // rounds) for i in range(rounds)], np.int32)

    def schedule(step: Any) -> jax.Array:
        begun = jnp.sum(jnp.asarray(step) >= starts) - 1
        return jnp.asarray(levels)[jnp.maximum(begun, 0)]

    return schedule


def pending(name: str, value: Any, step: int) -> str | None:
    """What a schedule has yet to do after ``step``, as ``Traits.pending``; ``value`` may be a number, which does not move."""
    if not callable(value):
        return None
    now, final = float(value(step)), float(value(LAST))
    return None if math.isclose(now, final, rel_tol=1e-6) else f"{name} is at {now:.6g} and ends at {final:.6g}"


def check_shares(name: str, **shares: float) -> None:
    for key, share in shares.items():
        if not 0 <= share <= 1:
            raise ValueError(f"{name}({key}={share}): a share of zeros, 0 to 1")
