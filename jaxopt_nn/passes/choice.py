"""Which units of a network go: by a score, and how many."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from jaxopt_nn.core.model import Coupling, ModelInfo
from jaxopt_nn.core.passes import Layer, Plan, layer_of
from jaxopt_nn.core.paths import matches, require_match
from jaxopt_nn.interpret.network import like
from jaxopt_nn.passes.activity import free
from jaxopt_nn.passes.allocations import Allocation, per_layer
from jaxopt_nn.passes.levels import Levels, rounded, steps
from jaxopt_nn.passes.scores import Score, largest_activation
from jaxopt_nn.passes.scores.base import measured, measures, scored
from jaxopt_nn.passes.units import Units
from jaxopt_nn.tensors.base import densify

PyTree = Any
#: ``(plan) -> cost`` of what stays, of the kind that is budgeted.
Cost = Callable[[Plan], float]


@dataclasses.dataclass(frozen=True)
class Choice:
    """Which units go.

    Attributes:
      name: of the pass or method.
      score: what each unit is worth.
      budget: ``(kind, amount)``: ``("share", 0.5)``; ``("layers", 2)``, so many units in all; ``("threshold", 0.0)``; or of a
        cost, ``("params", 0.5)``, how much of it goes.
      allocation: how scores of different layers are compared.
      protect: patterns of layers that stay whole.
      multiple, least: what the number of units that stay must be a multiple of, and at least.
    """

    name: str
    score: Score
    budget: tuple[str, float]
    allocation: Allocation = per_layer
    protect: tuple[str, ...] = ()
    multiple: int = 1
    least: int = 1

    def plan(
        self,
        layers: Mapping[str, Coupling],
        leaves: Mapping[str, Any],
        inputs: tuple[PyTree, ...],
        info: ModelInfo,
        still: Collection[str] = (),
        cost: Cost | None = None,
    ) -> Plan:
        """The plan for a network.

        Args:
          layers: couplings by name.
          leaves: ``{path: array or compressed tensor}`` of the network. still: those that no optimizer moves.
          inputs: as ``apply`` takes them.
          info: with the statistics that the score asks for.
          cost: of the budget's kind, where that is one.
        """
        whole, scores = self.whole(layers, leaves, inputs, info, still)
        return self._cut(whole, layers, scores, cost)

    def whole(
        self,
        layers: Mapping[str, Coupling],
        leaves: Mapping[str, Any],
        inputs: tuple[PyTree, ...],
        info: ModelInfo,
        still: Collection[str] = (),
        only: Collection[str] | None = None,
    ) -> tuple[Plan, dict[str, np.ndarray]]:
        """The plan in which all units stay, and the scores of the layers that may be cut, of those in ``only`` if given."""
        notes = self._staying(layers)
        if only is not None:
            notes = {name: "no pattern" for name in layers.keys() - set(only)} | notes
        open_layers = {name: c for name, c in layers.items() if name not in notes}
        scores, values = {}, measured(self.name, self.score, info, open_layers)
        dense = {path: densify(x) for path, x in leaves.items()}
        sites = {site.name: site for site in info.sites}
        for name, c in open_layers.items():
            own = scored(self.score, Units(name, c.group, dense, c.reads, values, still, sites))
            if own is None:
                notes[name] = "the score says nothing of it"
            else:
                scores[name] = own
        shapes = {path: tuple(x.shape) for path, x in leaves.items()}
        plan = Plan(self.name, shapes, like(inputs), tuple(_whole(n, c, notes.get(n, "")) for n, c in layers.items()))
        return plan, scores

    def _staying(self, layers: Mapping[str, Coupling]) -> dict[str, str]:
        """Why layers that are free stay whole, and those that are not."""
        protected = matched(layers, self.protect)
        known = free(layers) if measures(self.score) else {n: c for n, c in layers.items() if c.group.pinned is None}
        notes = {name: "no site reads it" for name in layers.keys() - known.keys()}
        return notes | {name: f"protected by {pattern!r}" for name, pattern in protected.items()}

    def _cut(
        self, whole: Plan, layers: Mapping[str, Coupling], scores: dict[str, np.ndarray], cost: Cost | None
    ) -> Plan:
        step = steps({name: layers[name] for name in scores}, self.multiple)
        kind, amount = self.budget
        if kind == "threshold":
            return with_units(whole, *_above(scores, amount, step, self.least))
        if amount and not scores:
            reasons = "; ".join(f"{own.name}: {own.pinned or own.note}" for own in whole.layers[:3]) or "it has no layer"
            raise ValueError(
                f"{self.name}: no unit can go ({reasons}); protect less, or read axis_groups(apply, variables, *inputs)"
            )
        levels = Levels(scores, self.allocation, step, self.least, one_by_one=kind == "layers")
        at = lambda level: with_units(whole, levels.kept(level))
        if kind == "layers":
            return at(_count(self.name, levels, int(amount), self.least))
        return at(_share(self.name, levels, amount) if cost is None else _spent(self, at, levels.last, cost))


def with_units(plan: Plan, kept: Mapping[str, np.ndarray], notes: Mapping[str, str] = MappingProxyType({})) -> Plan:
    """The plan with these units of some layers."""
    new = lambda own: dataclasses.replace(own, kept=kept[own.name], note=notes.get(own.name, ""))
    return dataclasses.replace(plan, layers=tuple(new(own) if own.name in kept else own for own in plan.layers))


def matched(layers: Mapping[str, Coupling], patterns: Iterable[str]) -> dict[str, str]:
    """``{layer: the first pattern}`` that matches its name or the path of one of its producers.

    Raises:
      ValueError: a pattern that matches none; near misses are named.
    """
    titles = titles_of(layers)
    own: dict[str, str] = {}
    for pattern in patterns:
        require_match(pattern, [title for each in titles.values() for title in each], "layer")
        for name in hit(titles, pattern):
            own.setdefault(name, pattern)
    return own


def hit(titles: Mapping[str, Iterable[str]], pattern: str) -> list[str]:
    """The layer of that name; else those that a pattern matches by one of their titles."""
    if pattern in titles:
        return [pattern]
    return [name for name, each in titles.items() if any(matches(pattern, title) for title in each)]


def titles_of(layers: Mapping[str, Coupling]) -> dict[str, list[str]]:
    """What each layer goes by: its name, and the paths of its producers."""
    producers = lambda c: [m.path for m in c.group.members if m.role == "producer"]
    return {name: list(dict.fromkeys((name, *producers(c)))) for name, c in layers.items()}


def _whole(name: str, coupling: Coupling, note: str) -> Layer:
    """A layer that keeps all of its units; pinned where nothing reads it."""
    pinned = coupling.group.pinned
    return layer_of(name, coupling, pinned=pinned, note="" if pinned else note)


def _above(
    scores: Mapping[str, np.ndarray], threshold: float, step: Mapping[str, int], least: int
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The units above a threshold, and at least as many as must stay; and what is to be said of that."""
    kept, notes = {}, {}
    for name, own in scores.items():
        above = int((own > threshold).sum())
        stay = rounded(above, len(own), step[name], least, up=True)
        kept[name] = np.sort(np.argsort(-own, kind="stable")[:stay])
        if above < least:
            stays, count = ("stays", "one") if stay == 1 else (f"{stay} stay", stay)
            notes[name] = f"its best {stays}, so that the layer keeps {count} of its {len(own)}"
    return kept, notes


def _share(name: str, levels: Levels, share: float) -> int:
    """The level at which the number of units that go is nearest to the share of all.

    Raises:
      ValueError: so many can't go.
    """
    total = sum(levels.sizes.values())
    slack = sum(step / 2 for step in levels.steps.values())
    if (most := levels.gone(levels.last)) + slack < share * total:
        raise ValueError(
            f"{name}: share={share} of {total} units can't go; at most {most} can ({most / total:.3g}), since each layer keeps "
            "its least"
        )
    level = _first(lambda n: levels.gone(n) >= share * total, levels.last)
    near = [n for n in (level - 1, level) if n >= 0]
    return min(near, key=lambda n: abs(levels.gone(n) - share * total))


def _count(name: str, levels: Levels, count: int, least: int) -> int:
    """The level at which so many layers go.

    Raises:
      ValueError: so many can't go.
    """
    if count > (most := levels.gone(levels.last)):
        raise ValueError(
            f"{name}: layers={count} can't go; at most {most} of {sum(levels.sizes.values())} can, since each stack keeps its "
            f"least ({least})"
        )
    return _first(lambda n: levels.gone(n) >= count, levels.last)


def _spent(choice: Choice, at: Callable[[int], Plan], last: int, cost: Cost) -> int:
    """The first level at which what stays costs no more than is allowed.

    Raises:
      ValueError: none does.
    """
    kind, amount = choice.budget
    before, least = cost(at(0)), cost(at(last))
    allowed = (1 - amount) * before
    if least > allowed:
        most = max(math.floor(1000 * (1 - least / before)) / 1000, 0)
        raise ValueError(
            f"{choice.name}: {kind}={amount} of {before:,.6g} can't go; at the least {least:,.6g} stay ({least / before:.3g}); "
            f"pass at most {kind}={most:.3g}, or protect less"
        )
    return _first(lambda n: cost(at(n)) <= allowed, last)


def _first(holds: Callable[[int], bool], last: int) -> int:
    """The first level from 0 to ``last`` at which something holds, which holds from there on; ``last`` if it never does."""
    low, high = 0, last
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low


def dead(name: str, threshold: float) -> Choice:
    """The units at or below a threshold of activity.

    Raises:
      ValueError: one below 0.
    """
    if not threshold >= 0:
        raise ValueError(f"threshold={threshold}: a magnitude of a unit's output, at least 0")
    return Choice(name, largest_activation, ("threshold", threshold))


def weak(name: str, share: float, score: Score) -> Choice:
    """The units of the lowest score.

    Raises:
      ValueError: a share outside [0, 1).
    """
    check_share(share)
    return Choice(name, score, ("share", share))


def check_share(share: Any) -> None:
    """Raises ValueError for a share outside [0, 1)."""
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share < 1:
        raise ValueError(f"share={share!r}: of the units, in [0, 1); a layer can't be left with fewer units than one")
