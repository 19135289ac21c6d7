"""Times the forms and programs of one weight against each other on this host, once for a shape and a CPU model."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_nn.formulations import table
from jaxopt_nn.formulations.labels import Call
from jaxopt_nn.tensors.coded import Coded

#: Copies of a weight are timed in turn, so that none stays in a cache that a whole network would not fit.
SPREAD_BYTES = 64 * 2**20
ROUNDS = 5
_MEMORY: dict[str, list[str]] = {}


def best_form(weight: Coded, platform_name: str, rows: int, activations: int, small: bool) -> str | None:
    """The form whose best program is fastest; what each form's best program is goes to ``table.TUNED``.

    None where the weight is no matrix with a scale for each output (the table's own choice stands).
    """
    outputs = [a for a, (d, n) in enumerate(zip(weight.groups, weight.shape)) if d == n]
    if weight.ndim != 2 or len(outputs) != 1 or platform_name != jax.default_backend():
        return None
    dims = (((1,), (1 - outputs[0],)), ((), ()))
    call = Call(dims, 1, None, "float32", activations)
    forms = {
        name: dataclasses.replace(jax.jit(form)(weight), platform=platform_name)
        for name, form in table.PLATFORMS[platform_name].forms(weight, small).items()
    }
    known = _remembered()
    at = json.dumps([_host(), *map(str, table.key(weight, rows, activations)), weight.bits, platform_name])
    if at not in known:
        known[at] = list(_measured(forms, rows, weight.shape[1 - outputs[0]], call))
        _remember(known)
    form, *programs = known[at]
    for held, program in zip(forms.values(), programs, strict=True):
        table.TUNED[table.key(held, rows, activations)] = program
    return form


def _measured(forms: dict[str, Coded], rows: int, inputs: int, call: Call) -> tuple[str, ...]:
    """The fastest form, then the fastest program of each form."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((rows, inputs), np.float32))
    runs: dict[tuple[str, str], Callable[[], Any]] = {}
    for name, held in forms.items():
        count = min(max(1, SPREAD_BYTES // max(held.nbytes, 1)), 16)
        copies = [jax.tree.map(jnp.copy, held) for _ in range(count)]
        for program in table.candidates(held, x, call):
            run = jax.jit(lambda w, x, run=program.run: run(w, x, call)).lower(held, x).compile()
            runs[name, program.name] = functools.partial(_each, run, copies, x)
    times = _interleaved(runs)
    best = {name: min((t, p) for (n, p), t in times.items() if n == name) for name in forms}
    return (min(forms, key=lambda name: best[name][0]), *(best[name][1] for name in forms))


def _each(run: Callable[..., Any], copies: list[Coded], x: jax.Array) -> float:
    """Seconds a copy."""
    start = time.perf_counter()
    for held in copies:
        run(held, x).block_until_ready()
    return (time.perf_counter() - start) / len(copies)


def _interleaved(runs: dict[tuple[str, str], Callable[[], float]]) -> dict[tuple[str, str], float]:
    """The median of each, all in turn; the first round warms up."""
    times: dict[tuple[str, str], list[float]] = {name: [] for name in runs}
    for n in range(ROUNDS + 1):
        for name in list(runs)[:: 1 if n % 2 else -1]:
            seconds = runs[name]()
            times[name] += [seconds] if n else []
    return {name: statistics.median(t) for name, t in times.items()}


@functools.cache
def _host() -> str:
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return f"{model or platform.processor()}, {os.cpu_count()} cores, JAX {jax.__version__}"


def cache_file() -> pathlib.Path:
    """Where measurements are kept: ``jaxopt_nn/tuned.json`` under ``XDG_CACHE_HOME``, or ``~/.cache``."""
    home = os.environ.get("XDG_CACHE_HOME")
    return pathlib.Path(home or pathlib.Path.home() / ".cache") / "jaxopt_nn" / "tuned.json"


def _remembered() -> dict[str, list[str]]:
    if not _MEMORY:
        try:
            _MEMORY.update(json.loads(cache_file().read_text()))
        except (OSError, ValueError):
            pass  # nothing kept yet, or a file that was cut off: measured anew
    return _MEMORY


def _remember(known: dict[str, list[str]]) -> None:
    """Written beside and moved, so that a reader never meets half a file; a place that can't be written is no error."""
    path = cache_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(f".{os.getpid()}")
        beside.write_text(json.dumps(known))
        beside.replace(path)
    except OSError:
        pass
