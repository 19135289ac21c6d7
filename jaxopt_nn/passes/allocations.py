"""How the scores of different layers are compared: which units go first."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

#: ``{layer: scores [size]} -> {layer: values [size]}`` that may be compared across layers; the lowest go first. Units of the
#: same value go by their rank within the layer, so that layers of equal scores lose the same share.
Allocation = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]


def quantiles(scores: np.ndarray) -> np.ndarray:
    """The place of each unit among those of its layer, in (0, 1); of equal scores the later unit goes first."""
    order = np.lexsort((-np.arange(len(scores)), scores))
    places = np.empty(len(scores))
    places[order] = (np.arange(len(scores)) + 0.5) / max(len(scores), 1)
    return places


def per_layer(scores: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every layer loses the same share of its units.

    Example:
      >>> jn.per_layer({"up": np.array([3.0, 1.0]), "wide": np.array([9.0, 8.0, 7.0, 5.0])})
      {'up': array([0.75, 0.25]), 'wide': array([0.875, 0.625, 0.375, 0.125])}
    """
    return {name: quantiles(own) for name, own in scores.items()}


def across_layers(scores: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weakest units of the whole network go, each measured by the mean ``|score|`` of its layer.

    Molchanov et al. 2017 (section 2.2) divide by the L2 norm of a layer's scores, which makes units of wide layers look weaker;
    by the mean an average unit has the value 1 in each. A layer of zeros alone goes first. To compare the scores as they are:
    ``allocation=lambda scores: scores``.

    Example:
      >>> jn.across_layers({"up": np.array([3.0, 1.0]), "wide": np.array([10.0, 10.0, 10.0, 50.0])})
      {'up': array([1.5, 0.5]), 'wide': array([0.5, 0.5, 0.5, 2.5])}
    """
    return {name: own / _mean(own) for name, own in scores.items()}


def _mean(scores: np.ndarray) -> float:
    finite = np.abs(scores[np.isfinite(scores)])
    return float(finite.mean()) if finite.any() else 1.0
