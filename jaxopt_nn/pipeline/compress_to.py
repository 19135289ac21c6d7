"""A recipe with one knob, set so that the file has the size asked for."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jaxopt_nn.core.arguments import check_whole, in_words, is_number
from jaxopt_nn.interpret.network import Network
from jaxopt_nn.pipeline.compress import Result, compress
from jaxopt_nn.pipeline.recipe import Recipe
from jaxopt_nn.pipeline.store import save
from jaxopt_nn.pipeline.task import Task


class Trial(NamedTuple):
    """One setting that was tried.

    Attributes:
      knob: its value.
      bytes: of the file.
      metric: the task's headline on its test data, or on ``valid`` where there is some.

    Example:
      >>> jn.Trial(knob=2e-6, bytes=10_300, metric=0.8975)
      Trial(knob=2e-06, bytes=10300, metric=0.8975)
    """

    knob: float
    bytes: int
    metric: float


def compress_to(
    network: Network,
    recipe: Callable[[float], Recipe],
    task: Task,
    *,
    bytes: int,
    knob: tuple[float, float],
    tolerance: float = 0.02,
    trials: int = 12,
    workdir: str | os.PathLike[str] | None = None,
    **arguments: Any,
) -> Result:
    """``compress`` with the knob at which the file has ``bytes``: bisection over files that were written and measured.

    Each trial is a whole run of the recipe from the same network. Sizes are taken to rise or to fall with the knob, whichever
    the two ends show; between them the next knob is where a straight line through the logarithms of knob and size meets the
    size asked for: through the two nearest trials, else through the ends of the bracket, else its middle.

    Args:
      network, task: as for ``compress``.
      recipe: ``knob -> stages``: a price of a bit, a sparsity, a number of bits.
      bytes: what the file shall take on the disk: ``network.jn`` of the last trial's folder, which holds the recipe too;
        without a ``workdir`` ``save(path, result.network)``.
      knob: two values above 0 between which the right one lies.
      tolerance: relative; the first trial within it is the result.
      trials: the most that are run.
      workdir: each trial has a folder of its own below it, called by its knob, ``knob_2e-06``. From there an interrupted run
        goes on, and a run for another size takes the trials that it has in common with this one.
      arguments: further ones of ``compress``.

    Returns:
      The ``Result`` of the last trial; ``report["trials"]`` has all of them, each a dict with the fields of
      ``Trial``.

    Raises:
      TypeError, ValueError: as ``compress``; ``bytes`` is no whole number from 1; two knobs that are no numbers above 0, or are
        equal; the size does not lie between those of the two knobs; or no trial was near enough, or the sizes jump over it:
        the message has what was reached.

    Example:
      >>> rng = np.random.default_rng(0)
      >>> x = rng.standard_normal((64, 40), np.float32)
      >>> task = jn.classification(train=(x, x[:, :8].argmax(1)), test=(x, x[:, :8].argmax(1)))
      >>> net = jn.Network(lambda v, x: x @ v["kernel"], {"kernel": jnp.asarray(rng.standard_normal((40, 8)), jnp.float32)})
      >>> recipe = lambda step: [jn.Stage("codes", jn.rate_quantize(0.0, step=step))]
      >>> result = jn.compress_to(net, recipe, task, bytes=200, knob=(0.05, 2.0), tolerance=0.1, latency=False)
      >>> abs(result.report["trials"][-1]["bytes"] - 200) <= 20
      True
    """
    _check(bytes, knob, tolerance, trials)
    done: list[Trial] = []

    def run(value: float) -> Result:
        folder = None if workdir is None else _folder(Path(workdir), value)
        result = compress(network, recipe(value), task, workdir=folder, **arguments)
        size = file_bytes(result.network) if folder is None else result.report["artifact"]["bytes"]
        done.append(Trial(value, size, result.stages[-1]["metrics"][task.headline]))
        result.report["trials"] = [trial._asdict() for trial in done]
        return result

    near = lambda trial: abs(trial.bytes - bytes) <= tolerance * bytes
    for value in knob:
        result = run(value)
        if near(done[-1]):
            return result
    low, high = sorted(done[:2], key=lambda trial: trial.bytes)
    if not low.bytes < bytes < high.bytes:
        raise ValueError(
            f"compress_to(bytes={bytes}): the two knobs give {_told(done)}; pass knob= two values with {bytes} bytes between "
            "them"
        )
    while len(done) < trials:
        result = run(_between(done, low, high, bytes))
        if near(done[-1]):
            return result
        low, high = (done[-1], high) if done[-1].bytes < bytes else (low, done[-1])
    raise ValueError(
        f"compress_to(bytes={bytes}): no trial of {trials} was within {tolerance:.1%}: {_told(done)}; pass more trials=, a "
        "larger tolerance=, or a knob that changes the size less at a time"
    )


def file_bytes(network: Network) -> int:
    """What ``save(path, network)`` takes on the disk."""
    with tempfile.TemporaryDirectory() as folder:
        return save(Path(folder) / "network", network).bytes


def _between(done: list[Trial], low: Trial, high: Trial, bytes: int) -> float:
    """The knob where a line through the logarithms of knob and size meets the size, inside the bracket.

    The line goes through the two trials that came nearest; where that leaves the bracket, through its ends.
    """
    ends = sorted(math.log(trial.knob) for trial in (low, high))
    margin = 0.05 * (ends[1] - ends[0])
    nearest = sorted(done, key=lambda trial: abs(math.log(trial.bytes / bytes)))[:2]
    for first, second in (nearest, (low, high)):
        if first.bytes == second.bytes:
            continue
        share = math.log(bytes / first.bytes) / math.log(second.bytes / first.bytes)
        at = math.log(first.knob) + share * math.log(second.knob / first.knob)
        if ends[0] + margin <= at <= ends[1] - margin:
            return math.exp(at)
    return math.exp(sum(ends) / 2)


def _folder(workdir: Path, knob: float) -> Path:
    """By the knob, and not by the number of the trial: that has another knob where another size is asked for."""
    workdir.mkdir(parents=True, exist_ok=True)
    return workdir / f"knob_{float(knob)!r}"


def _told(done: list[Trial]) -> str:
    return ", ".join(f"{trial.bytes} bytes at {trial.knob:.4g}" for trial in done)


def _check(bytes: Any, knob: Any, tolerance: Any, trials: Any) -> None:
    check_whole("compress_to", "bytes", bytes, 1)
    pair = isinstance(knob, tuple | list) and len(knob) == 2
    if not (pair and all(is_number(v) and 0 < v < math.inf for v in knob) and knob[0] != knob[1]):
        raise ValueError(f"compress_to(knob={knob!r}): two different values above 0, e.g. knob=(1e-6, 1e-4)")
    if not (is_number(tolerance) and 0 < tolerance < 1):
        raise ValueError(f"compress_to(tolerance={in_words(tolerance)}): a share of the size, above 0 and below 1, e.g. 0.02")
    check_whole("compress_to", "trials", trials, 2)
