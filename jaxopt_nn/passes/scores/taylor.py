"""How much the loss would change without a unit, to first order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_nn.core.model import AxisGroup, Member
from jaxopt_nn.core.tap import Probe
from jaxopt_nn.methods.criteria.base import asking
from jaxopt_nn.passes.units import ROLES, Units, unit_sums

PROBE = "taylor"


def _probes(layers: Mapping[str, AxisGroup]) -> dict[str, Probe]:
    return {PROBE: Probe(_squares(layers), of="example")}


def _squares(layers: Mapping[str, AxisGroup]) -> Callable[..., dict[str, Any]]:
    """``(sum of w g over the entries of a unit)^2`` of each unit of each layer, under the path of the layer's first member."""

    def measure(loss: Callable[..., Any], leaves: Mapping[str, Any], taken: Sequence[str], key: Any) -> dict[str, Any]:
        moved = _products(loss, leaves)
        squares: dict[str, dict[str, Any]] = {path: {} for path in taken}
        for name, group in layers.items():
            first = group.members[0].path
            if first in squares:
                members = [m for m in group.members if m.role in ROLES and m.path in moved]
                squares[first][name] = jnp.square(_sums(group.size, members, moved))
        return squares

    return measure


def _products(loss: Callable[..., Any], leaves: Mapping[str, Any]) -> dict[str, Any]:
    slopes = jax.grad(loss)(dict(leaves))
    return {path: (x.astype(jnp.float32) * slopes[path].astype(jnp.float32)) for path, x in leaves.items()}


def _sums(size: int, members: list[Member], moved: Mapping[str, Any]) -> Any:
    return unit_sums(size, members, moved.__getitem__, jnp)


@asking(probes=_probes)
def taylor(units: Units) -> np.ndarray:
    """First-order Taylor of the unit: the mean over examples of ``(sum of w g over its entries)^2`` (Molchanov et al. 2019).

    The sum goes over the entries of the unit in all members of the group (eq. 8 and section 3.2, with the group as the
    joint set), ``g`` is the gradient of the loss of one example. Departure: the paper takes the gradient of a minibatch, here
    it is one example, so that the score does not depend on the size of batches. Needs the loss:
    ``info=calibrate(network, the pass, task)``.

    Example:
      >>> v = {"up": jnp.array([[1.0, 1.0, 1.0]]), "down": jnp.array([[3.0], [0.1], [2.0]])}
      >>> net = jn.Network(lambda v, x: jax.nn.relu(x @ v["up"]) @ v["down"], v)
      >>> x = np.array([[1.0], [2.0]], np.float32)
      >>> task, cut = jn.regression(test=(x, np.zeros_like(x))), jn.cut_units(jn.scores.taylor, share=0.3)
      >>> cut.plan(net, jn.calibrate(net, cut, task), x).kept["up"]
      array([0, 2])
    """
    return np.asarray(units.stats[PROBE][units.group.members[0].path][units.name], np.float64)
