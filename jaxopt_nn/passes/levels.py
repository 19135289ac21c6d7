"""In which order the units of all layers go, and how many of each stay."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from jaxopt_nn.core.model import Coupling
from jaxopt_nn.passes.allocations import Allocation, quantiles


class Levels:
    """Ever fewer units: at level 0 all stay, at the last only as many as must; each level is part of the one before.

    Attributes:
      sizes: of each layer. steps: what the number of units that stay is a multiple of, unless all do.
      last: the highest level.

    Args:
      one_by_one: units of the same value and rank go apart, those of the last layer first.
    """

    def __init__(
        self,
        scores: Mapping[str, np.ndarray],
        allocation: Allocation,
        steps: Mapping[str, int],
        least: int,
        one_by_one: bool = False,
    ):
        self.sizes = {name: len(own) for name, own in scores.items()}
        self.steps, self._least = steps, least
        values = _checked(allocation(scores), self.sizes)
        number = lambda name, i: np.full(len(values[name]), -i * one_by_one)
        rows = [np.stack([values[name], quantiles(values[name]), number(name, i)], 1) for i, name in enumerate(scores)]
        levels, place = np.unique(np.concatenate([np.zeros((0, 3)), *rows]), axis=0, return_inverse=True)
        cuts = np.cumsum([0, *self.sizes.values()])
        own = {name: place.reshape(-1)[a:b] for name, a, b in zip(scores, cuts, cuts[1:], strict=False)}
        self._order = {name: np.argsort(x, kind="stable") for name, x in own.items()}
        self._ends = {name: x[self._order[name]] for name, x in own.items()}
        self.last = len(levels)

    def kept(self, level: int) -> dict[str, np.ndarray]:
        """The units that stay of each layer, int, in order."""
        kept = {}
        for name, size in self.sizes.items():
            off = int(np.searchsorted(self._ends[name], level))
            gone = size - rounded(size - off, size, self.steps[name], self._least)
            kept[name] = np.sort(self._order[name][gone:])
        return kept

    def gone(self, level: int) -> int:
        """How many units go in all."""
        return sum(self.sizes[name] - len(own) for name, own in self.kept(level).items())


def rounded(units: int, size: int, step: int, least: int, up: bool = False) -> int:
    """The nearest number of units that may stay, of ``size``: all, or a multiple of ``step`` that is at least ``least``.

    Args:
      up: no fewer than ``units``.
    """
    if units >= size:
        return size
    whole = math.ceil(units / step) if up else math.floor(units / step + 0.5)
    return min(max(whole, math.ceil(least / step)) * step, size)


def steps(layers: Mapping[str, Coupling], multiple: int) -> dict[str, int]:
    """Of each layer, what the number of its units must be a multiple of, for the axis that they lie in to be one.

    In an axis ``[heads * width]`` a head has ``width`` entries: where that is no other layer's to cut, its length counts;
    otherwise the inner layer sees to the multiple.
    """
    axes: dict[tuple[str, int | None], list[str]] = {}
    for name, coupling in layers.items():
        axes.setdefault(_axis(coupling), []).append(name)

    def step(name: str, coupling: Coupling) -> int:
        run = _run(coupling.group.members[0].units)
        shared = any(other != name and _run(layers[other].group.members[0].units) < run for other in axes[_axis(coupling)])
        return 1 if shared else multiple // math.gcd(multiple, run)

    return {name: step(name, coupling) for name, coupling in layers.items()}


def _axis(coupling: Coupling) -> tuple[str, int | None]:
    first = coupling.group.members[0]
    return first.path, first.axis


def _run(units: np.ndarray) -> int:
    """How many entries in a row belong to one unit."""
    inside = units[units >= 0]
    changes = np.flatnonzero(np.diff(inside))
    return int(changes[0]) + 1 if len(changes) else len(inside)


def _checked(values: Mapping[str, np.ndarray], sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    arrays = {name: np.asarray(values.get(name, ())).astype(np.float64) for name in sizes}
    for name, own in arrays.items():
        if own.shape != (sizes[name],) or np.isnan(own).any():
            raise ValueError(
                f"allocation: gives {own.shape} values for the {sizes[name]} units of {name}, {int(np.isnan(own).sum())} of "
                "them NaN; give one number for each unit"
            )
    return arrays
