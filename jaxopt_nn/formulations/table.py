"""Which program runs a product, and which form a weight is prepared in: one table, by backend.

Each backend has ``programs(weight, names, call, rows)`` and ``forms(weight, small)``, the best first, by measurement. All
programs that it gives for a call are one arithmetic: they differ in the order of float sums alone (with 16-bit activations in
how these are rounded), so a choice is one of speed.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax

from jaxopt_nn.formulations import cpu, gpu, labels, tpu
from jaxopt_nn.formulations.labels import Call, Program
from jaxopt_nn.tensors.coded import Coded

PLATFORMS: dict[str, Any] = {"cpu": cpu, "gpu": gpu, "tpu": tpu}

#: ``{(platform, weight's form, rows, activations): program's name}``: what ``prepare(tune=True)`` found fastest here.
TUNED: dict[tuple[Any, ...], str] = {}


@dataclasses.dataclass(frozen=True)
class Choice:
    """What runs one product.

    Attributes:
      form: the weight's, such as ``QTensor int4, [groups, out, entries]``. program: its name.
      rows: of activations; ``labels.MANY`` where the trace leaves their number open. activations: their width.
      over_float: time over the float product's, as measured once; None where it was not.
    """

    form: str
    program: str
    rows: int
    activations: int
    over_float: float | None

    def __str__(self) -> str:
        told = "not measured" if self.over_float is None else f"{self.over_float:.2g} of float's time"
        slow = ", SLOWER than float" if (self.over_float or 0) > 1.05 else ""
        rows = "any number of" if self.rows == labels.MANY else self.rows
        return f"{self.form} x a{self.activations}, {rows} rows: {self.program} ({told}{slow})"


_watched: contextvars.ContextVar[list[Choice] | None] = contextvars.ContextVar("watched", default=None)


@contextlib.contextmanager
def choices() -> Iterator[list[Choice]]:
    """Collects what is chosen inside, in order: trace a function under it (``jax.eval_shape``), and nothing is run."""
    found: list[Choice] = []
    token = _watched.set(found)
    try:
        yield found
    finally:
        _watched.reset(token)


def candidates(weight: Coded, other: Any, call: Call) -> list[Program]:
    """The programs that can run a weight as it lies, the best first."""
    names = labels.of(call, weight, other)
    return list(PLATFORMS[platform_of(weight)].programs(weight, names, call, labels.rows(names, other)))


def choose(weight: Coded, other: Any, call: Call) -> Program:
    """The program that ``prepare(tune=True)`` found, or the first of ``candidates``."""
    found, rows = candidates(weight, other, call), labels.rows(labels.of(call, weight, other), other)
    tuned = TUNED.get(key(weight, rows, call.activations))
    program = next((p for p in found if p.name == tuned), found[0])
    note(weight, program.name, rows, call.activations)
    return program


def note(weight: Coded, program: str, rows: int, activations: int) -> None:
    """Tells whoever listens with ``choices``."""
    if (heard := _watched.get()) is not None:
        over = PLATFORMS[platform_of(weight)].over_float(program, rows)
        heard.append(Choice(form_of(weight), program, rows, activations, over))


def platform_of(weight: Coded) -> str:
    """What the weight is prepared for, else the default backend."""
    return weight.platform or jax.default_backend()


def form_of(weight: Coded) -> str:
    """A weight's form in a few words."""
    return f"{weight.format}, {weight.codes.dtype.name}{list(weight.codes.shape)}"


def key(weight: Coded, rows: int, activations: int) -> tuple[Any, ...]:
    """What a measurement holds for."""
    shapes = (weight.codes.shape, weight.groups, weight.zero is not None)
    return platform_of(weight), weight.codes.dtype.name, *shapes, weight.order, rows, activations
