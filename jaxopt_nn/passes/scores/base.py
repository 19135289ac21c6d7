"""What a score of units is, and what it may ask for beside weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from jaxopt_nn.core.model import AxisGroup, Coupling, ModelInfo, Site, StatKey
from jaxopt_nn.core.tap import LayerTap, Probe, Statistic, Tap
from jaxopt_nn.core.transform import no_taps
from jaxopt_nn.passes.activity import free, named
from jaxopt_nn.passes.units import Units

#: ``(units) -> score [size]``, or None where it says nothing of them; the lowest scores go first.
Score = Callable[[Units], Any]
#: ``{layer: group} -> {name: Probe}``
Probes = Callable[[Mapping[str, AxisGroup]], Mapping[str, Probe]]


def title(score: Score) -> str:
    """What messages call a score."""
    return getattr(score, "__name__", type(score).__name__)


def taps_of(score: Score) -> Callable[[Site], Mapping[str, Tap]]:
    """Of which sites it asks what."""
    return getattr(score, "taps", no_taps)


def probes_of(score: Score, layers: Mapping[str, Coupling]) -> Mapping[str, Probe]:
    """What it asks of the loss."""
    own: Probes | None = getattr(score, "probes", None)
    return {} if own is None else own({name: coupling.group for name, coupling in layers.items()})


def layer_taps_of(score: Score) -> Mapping[str, LayerTap]:
    """What it asks of stacks of layers."""
    return getattr(score, "layer_taps", {})


def measures(score: Score) -> bool:
    """Whether it must see data."""
    return taps_of(score) is not no_taps or bool(layer_taps_of(score)) or getattr(score, "probes", None) is not None


def touched(info: ModelInfo, paths: Iterable[str]) -> dict[str, Coupling]:
    """The layers by name that have a member among ``paths``."""
    own = set(paths)
    return named([c for c in info.couplings or () if any(m.path in own for m in c.group.members)])


def lacking(score: Score) -> Callable[[ModelInfo], dict[StatKey, Statistic]]:
    """``Traits.taps`` of a method that scores units: of all layers that the leaves of ``info`` touch and that may be cut."""

    def taps(info: ModelInfo) -> dict[StatKey, Statistic]:
        wanted = _wanted(score, info, free(touched(info, (leaf.path for leaf in info.leaves))))
        return {key: each for key, each in wanted.items() if key not in info.stats}

    return taps


def _wanted(score: Score, info: ModelInfo, layers: Mapping[str, Coupling]) -> dict[StatKey, Statistic]:
    read = {read.site for coupling in layers.values() for read in coupling.reads}
    asked = taps_of(score)
    wanted: dict[StatKey, Statistic] = {
        ((), name, tap): own for name in layers for tap, own in layer_taps_of(score).items()
    }
    for site in info.sites:
        if site.name in read:
            wanted |= {((), site.name, name): tap for name, tap in asked(site).items()}
    first = dict.fromkeys(coupling.group.members[0].path for coupling in layers.values())
    for name, probe in probes_of(score, layers).items():
        wanted |= {((), path, name): probe for path in first}
    return wanted


def measured(name: str, score: Score, info: ModelInfo, layers: Mapping[str, Coupling]) -> dict[str, dict[str, Any]]:
    """``{name: {site or path: statistic}}`` that a score asked for, of ``layers``.

    Raises:
      ValueError: ``calibrate`` has not measured it, for ``name``; NaN in an activity.
    """
    wanted = _wanted(score, info, layers) if info.couplings is not None else None
    if not measures(score):
        return {}
    if wanted is None or not wanted.keys() <= info.stats.keys():
        loss = getattr(score, "probes", None) is not None
        raise ValueError(
            f"{name}: {title(score)} needs {'the loss' if loss else 'the values of units'} on data; pass "
            f"info=calibrate(network, method, {'task' if loss else 'batches'})"
        )
    stats: dict[str, dict[str, Any]] = {}
    for _, place, tap in wanted:
        stats.setdefault(tap, {})[place] = info.stats[(), place, tap]
    return stats


def scored(score: Score, units: Units) -> np.ndarray | None:
    """The scores of a layer's units, float64; None where the score says nothing of them.

    Raises:
      ValueError: another shape than ``[size]``, or NaN.
    """
    own = score(units)
    if own is None:
        return None
    scores = np.asarray(own).astype(np.float64)
    if scores.shape != (units.size,):
        raise ValueError(f"{units.name}: scores of shape {scores.shape}; pass one for each of {units.size} units")
    if bad := int(np.isnan(scores).sum()):
        raise ValueError(f"{units.name}: {bad} of {units.size} scores are NaN; clean the weights, or mend the score")
    return scores
