"""Measured latency: candidates take turns in one run, so that a machine that gets busy favours none."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Timing:
    """Milliseconds of a candidate: percentiles over ``runs``; ``first_ms``, apart, holds the compilation."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    first_ms: float
    runs: int


def interleaved(
    functions: Mapping[str, Callable[[], Any]], *, warmup: int = 3, repeats: int = 50, seconds: float = 10.0
) -> dict[str, Timing]:
    """Times functions against each other: all once, in turn, again and again, each waited for.

    Every second round runs in the reverse order, so that no candidate always follows the same one.

    Args:
      functions: name -> function without arguments, giving any pytree of arrays.
      warmup: rounds before the timed ones, at least 1; the first gives ``first_ms``.
      repeats: timed rounds, at least 1.
      seconds: no timed round starts later than this after the first one did.

    Raises:
      ValueError: no function, or a number below its least value.
    """
    if not functions:
        raise ValueError("interleaved: no function to time; pass {name: function}")
    for name, value, least in (("warmup", warmup, 1), ("repeats", repeats, 1), ("seconds", seconds, 0)):
        if not value >= least:
            raise ValueError(f"interleaved({name}={value!r}): allowed are {least} and more")
    names = list(functions)
    first = {name: _milliseconds(functions[name]) for name in names}
    for _ in range(warmup - 1):
        for name in names:
            _milliseconds(functions[name])
    times: dict[str, list[float]] = {name: [] for name in names}
    end = time.perf_counter() + seconds
    for n in range(repeats):
        if n and time.perf_counter() >= end:
            break
        for name in names[:: 1 if n % 2 == 0 else -1]:
            times[name].append(_milliseconds(functions[name]))
    return {name: _timing(times[name], first[name]) for name in names}


def _milliseconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter_ns()
    jax.block_until_ready(function())
    return (time.perf_counter_ns() - start) / 1e6


def _timing(times: list[float], first: float) -> Timing:
    p10, median, p90 = np.percentile(times, [10, 50, 90])
    return Timing(float(median), float(p10), float(p90), first, len(times))
