"""How much a layer changes the value that it adds to."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxopt_nn.core.tap import LayerTap
from jaxopt_nn.passes.scores.base import Score
from jaxopt_nn.passes.units import Units

SIMILARITY = "similarity"


def _zero(layers: int) -> dict[str, Any]:
    return {"sum": jnp.zeros((layers, layers)), "rows": jnp.zeros(())}


def _add(total: dict[str, Any], before: Any, after: Any) -> dict[str, Any]:
    """Cosines of the value before layer i and after layer j, summed over rows."""

    def directions(x: Any) -> Any:
        rows = x.reshape(len(x), -1, x.shape[-1]).astype(jnp.float32)
        return rows / jnp.maximum(jnp.linalg.norm(rows, axis=-1, keepdims=True), jnp.finfo(jnp.float32).tiny)

    cosines = jnp.einsum("ird,jrd->ij", directions(before), directions(after), precision="highest")
    return {"sum": total["sum"] + cosines, "rows": total["rows"] + before[0].size / before.shape[-1]}


def _similarity(layers: Units) -> np.ndarray:
    """The mean cosine of the value before layer i and after layer j, float64 ``[layers, layers]``."""
    found = layers.stats[SIMILARITY][layers.name]
    return np.asarray(found["sum"], np.float64) / float(found["rows"])


def _asking(score: Score) -> Score:
    setattr(score, "layer_taps", {SIMILARITY: LayerTap(_zero, _add)})  # noqa: B010 - a function's attribute
    return score


@_asking
def block_influence(layers: Units) -> np.ndarray:
    """One less the mean cosine of the value before a layer and after it, over tokens (the BI of ShortGPT, Men et al. 2024).

    The cosine goes over the last axis; all others are rows. Needs ``info=calibrate(network, the pass, batches)``.

    Returns:
      float64 ``[layers]``, from 0: the layer turns the value nowhere.

    Example:
      >>> def apply(v, x):  # each layer adds what its matrix makes of x
      ...     return jax.lax.scan(lambda x, w: (x + x @ w, None), x, v["layers"])[0]
      >>> turn = jnp.array([[0.0, 1.0], [-1.0, 0.0]])
      >>> net = jn.Network(apply, {"layers": jnp.stack([turn, 0.1 * turn, 2 * jnp.eye(2)])})
      >>> x, cut = jnp.eye(2), jn.cut_layers(jn.scores.block_influence, layers=1)
      >>> cut.plan(net, jn.calibrate(net, cut, [x]), x).kept["layers"]  # the last makes x longer only
      array([0, 1])
    """
    return 1 - np.diagonal(_similarity(layers))


def angular_distance(layers: int = 1) -> Score:
    """The angle between the value before and after the best block of ``layers`` layers in a row (Gromov et al. 2024).

    With ``cut_layers(angular_distance(n), layers=n)`` the block of n layers goes that turns the value least. A layer's score is
    the smallest angle of a block that it lies in, as a share of a half turn. Departure: the angle of the mean cosine over all
    tokens; the paper takes the mean angle of last tokens.

    Args:
      layers: how many go together.

    Raises:
      ValueError: fewer than one; when called, more than the stack has.

    Example:
      >>> score = jn.scores.angular_distance(2)
      >>> apply = lambda v, x: jax.lax.scan(lambda x, w: (x + x @ w, None), x, v["layers"])[0]
      >>> turn = jnp.array([[0.0, 1.0], [-1.0, 0.0]])
      >>> net = jn.Network(apply, {"layers": jnp.stack([turn, -0.5 * turn, 0.6 * turn, turn])})
      >>> x, cut = jnp.eye(2), jn.cut_layers(score, layers=2)
      >>> cut.plan(net, jn.calibrate(net, cut, [x]), x).kept["layers"]  # one turns back what the other does
      array([0, 3])
    """
    if isinstance(layers, bool) or not isinstance(layers, int) or layers < 1:
        raise ValueError(f"angular_distance(layers={layers!r}): pass how many layers go together, at least 1")

    def smallest_angle(own: Units) -> np.ndarray:
        if layers > own.size:
            raise ValueError(f"angular_distance(layers={layers}): {own.name} has {own.size} layers; pass at most {own.size}")
        cosines = np.diagonal(_similarity(own), layers - 1)
        angles = np.arccos(np.clip(cosines, -1, 1)) / np.pi
        starts = np.arange(own.size)[:, None] - np.arange(layers)
        blocks = (starts >= 0) & (starts < len(angles))
        return np.min(np.where(blocks, angles[np.clip(starts, 0, len(angles) - 1)], np.inf), axis=1)

    return _asking(smallest_angle)
