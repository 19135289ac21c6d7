"""How much the loss rises without a layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_nn.core.model import AxisGroup
from jaxopt_nn.core.tap import Probe
from jaxopt_nn.methods.criteria.base import asking
from jaxopt_nn.passes.units import ROLES, Units

PROBE = "removal"


def _probes(groups: Mapping[str, AxisGroup]) -> dict[str, Probe]:
    return {PROBE: Probe(_rises(groups))}


def _rises(groups: Mapping[str, AxisGroup]) -> Callable[..., dict[str, Any]]:
    """The rise of the loss with each unit of each group at zero, under the path of the group's first member."""

    def measure(loss: Callable[..., Any], leaves: Mapping[str, Any], taken: Sequence[str], key: Any) -> dict[str, Any]:
        made: dict[str, dict[str, Any]] = {path: {} for path in taken}
        whole = loss(dict(leaves))
        for name, group in groups.items():
            first = group.members[0].path
            if first in made:
                without = lambda unit, group=group: loss(_without(leaves, group, unit))
                made[first][name] = jax.lax.map(without, jnp.arange(group.size)) - whole
        return made

    return measure


def _without(leaves: Mapping[str, Any], group: AxisGroup, unit: Any) -> dict[str, Any]:
    """The leaves with a unit at zero."""
    new = dict(leaves)
    for m in group.members:
        if m.role in ROLES and m.path in new:
            shape = [-1 if i == m.axis else 1 for i in range(new[m.path].ndim)]
            new[m.path] = jnp.where(jnp.asarray(m.units).reshape(shape) == unit, 0, new[m.path])
    return new


@asking(probes=_probes)
def removal_loss(units: Units) -> np.ndarray:
    """The rise of the mean loss with the unit's weights at zero: of a layer, without the layer. One pass, all units in turn.

    The most direct score, at the price of a run of the network for each unit: made for layers. Where a layer adds something
    with its weights at zero (a constant), that stays. Needs the loss: ``info=calibrate(network, the pass, task)``.

    Example:
      >>> apply = lambda v, x: jax.lax.scan(lambda x, w: (x + x * w, None), x, v["w"])[0]
      >>> net = jn.Network(apply, {"w": jnp.array([1.0, 0.1, 0.0])})
      >>> x = np.ones((2, 1), np.float32)
      >>> task, cut = jn.regression(test=(x, 2.2 * x)), jn.cut_layers(jn.scores.removal_loss, layers=2)
      >>> cut.plan(net, jn.calibrate(net, cut, task), x).kept["w"]
      array([0])
    """
    return np.asarray(units.stats[PROBE][units.group.members[0].path][units.name], np.float64)
