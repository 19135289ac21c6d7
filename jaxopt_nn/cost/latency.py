"""Measured latency: candidates take turns in one run, so that a machine that gets busy favours none."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_nn.core.memory import call_bytes, room
from jaxopt_nn.numerics.intervals import Interval, median_interval

PyTree = Any
#: Timed rounds of each batch; at least so many, whatever they take: fewer give no interval; seconds after which no other
#: round starts.
ROUNDS, LEAST_ROUNDS, SECONDS = 240, 6, 2.0
#: Most pairs of which an interval is made: neighbouring rounds are one pair, since a busy machine is busy for several.
BLOCKS = 30


@dataclasses.dataclass(frozen=True)
class Timing:
    """Milliseconds of a candidate: each timed round's, and percentiles of these; ``first_ms``, apart, holds the compilation."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    first_ms: float
    times: tuple[float, ...] = dataclasses.field(repr=False)


def interleaved(
    functions: Mapping[str, Callable[[], Any]],
    *,
    warmup: int = 3,
    repeats: int = 50,
    seconds: float = 10.0,
    least: int = 1,
) -> dict[str, Timing]:
    """Times functions against each other: all once, in turn, again and again, each waited for.

    Every second round runs in the reverse order, so that no candidate always follows the same one.

    Args:
      functions: name -> function without arguments, giving any pytree of arrays.
      warmup: rounds before the timed ones, at least 1; the first gives ``first_ms``.
      repeats: timed rounds, at least 1.
      seconds: no timed round after the first ``least`` starts later than this after the first one did.

    Raises:
      ValueError: no function, or a number below its least value.
    """
    if not functions:
        raise ValueError("interleaved: no function to time; pass {name: function}")
    for name, value, lowest in (("warmup", warmup, 1), ("repeats", repeats, 1), ("seconds", seconds, 0), ("least", least, 1)):
        if not value >= lowest:
            raise ValueError(f"interleaved({name}={value!r}): allowed are {lowest} and more")
    names = list(functions)
    first = {name: _milliseconds(functions[name]) for name in names}
    for _ in range(warmup - 1):
        for name in names:
            _milliseconds(functions[name])
    times: dict[str, list[float]] = {name: [] for name in names}
    end = time.perf_counter() + seconds
    for n in range(repeats):
        if n >= least and time.perf_counter() >= end:
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
    return Timing(float(median), float(p10), float(p90), first, tuple(times))


def paired_ratio(before: Sequence[float], after: Sequence[float]) -> Interval:
    """The median ratio of two candidates' times in the same rounds, with its 95 % confidence interval.

    A machine that gets busy slows down both times of a round, so that their ratio is steadier than the ratio of medians.
    Neighbouring rounds see the same load and are no independent draws: they are cut into at most ``BLOCKS`` blocks of equal
    length, of which each counts by its median (as batch means do for a mean; Law 2015, section 9.5.3).

    Args:
      before, after: times by round, from ``interleaved``.

    Returns:
      ``after`` over ``before``; an interval of order statistics, NaN at its ends where there are fewer than 6 rounds.
    """
    ratios = np.asarray(after, np.float64) / np.asarray(before, np.float64)
    length = -(-len(ratios) // BLOCKS)
    blocks = ratios[: len(ratios) // length * length].reshape(-1, length)
    return median_interval(np.median(blocks, axis=1).tolist())


def latencies(
    candidates: Sequence[tuple[Callable[..., Any], tuple[PyTree, Any]]], example: Sequence[PyTree], batches: Sequence[int]
) -> tuple[list[dict[str, dict[str, float | None]]], dict[str, str]]:
    """For each network, its latency at each batch size: compiled, on its prepared variables; and the batch sizes that were
    left out, with the reason: some network's call would not fit into memory.

    All networks take turns in one run, so that a machine that gets busy slows down all alike; compilation and the first
    rounds are not counted, nor is the time in which Python takes compressed tensors apart into arrays.

    Args:
      candidates: ``(run, (variables, states))`` of each, for ``run(variables, *inputs, states=states)``; the first is that to
        which the others are compared.
      example: the inputs of one example, ``[1, ...]``; a batch repeats it.

    Returns:
      ``{batch: {"ms", "ratio", "low", "high"}}`` of each: the median in ms, and ``paired_ratio`` to the first network; ``low``
      and ``high`` are None where there were too few rounds.
    """
    programs = [_on_leaves(run, weights) for run, weights in candidates]
    out: list[dict[str, dict[str, float | None]]] = [{} for _ in candidates]
    left_out: dict[str, str] = {}
    for batch in batches:
        inputs = jax.tree.map(lambda x, n=batch: jnp.asarray(np.repeat(np.asarray(x)[:1], n, axis=0)), tuple(example))
        need, free = max(call_bytes(run, leaves, inputs) for run, leaves in programs), room()
        if need > free:
            left_out[str(batch)] = f"a call takes {need / 1e9:.3g} GB, of {free / 1e9:.3g} GB that it may take here"
            continue
        calls = {str(i): functools.partial(run, leaves, inputs) for i, (run, leaves) in enumerate(programs)}
        timed = list(interleaved(calls, repeats=ROUNDS, seconds=SECONDS, least=LEAST_ROUNDS).values())
        for entry, timing in zip(out, timed, strict=True):
            ratio, *ends = paired_ratio(timed[0].times, timing.times)
            low, high = (None if math.isnan(end) else end for end in ends)
            entry[str(batch)] = {"ms": timing.median_ms, "ratio": ratio, "low": low, "high": high}
    return out, left_out


def _on_leaves(run: Callable[..., Any], weights: tuple[PyTree, Any]) -> tuple[Any, list[Any]]:
    """A jitted ``(leaves, inputs) -> outputs`` and the leaves: a call on compressed tensors would flatten them each time."""
    leaves, tree = jax.tree.flatten(weights)

    def call(leaves: list[Any], inputs: tuple[PyTree, ...]) -> Any:
        variables, states = jax.tree.unflatten(tree, leaves)
        return run(variables, *inputs, states=states)

    return jax.jit(call), leaves


def devices() -> list[str]:
    """The devices that JAX runs on, by kind; a CPU by its model, since latencies differ a lot between models."""
    kinds = [d.device_kind if d.platform != "cpu" else _cpu_model() for d in jax.devices()]
    return [f"{d.platform}: {kind}" for d, kind in zip(jax.devices(), kinds, strict=True)]


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{named[0] if named else platform.processor() or 'unknown'}, {os.cpu_count()} cores"
