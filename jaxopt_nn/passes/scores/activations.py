"""What a unit puts out on data."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from jaxopt_nn.core.model import Site
from jaxopt_nn.core.tap import Tap
from jaxopt_nn.methods.criteria.base import asking
from jaxopt_nn.methods.taps import activity
from jaxopt_nn.passes.activity import TAP
from jaxopt_nn.passes.units import Units


def _taps(site: Site) -> Mapping[str, Tap]:
    return {TAP: activity()}


@asking(taps=_taps)
def mean_activation(units: Units) -> np.ndarray:
    """Mean ``|activation|`` times the L2 norm of the fan-out: how much a unit moves what reads it.

    Needs ``info=calibrate(network, the pass, batches)``.

    Example:
      >>> v = {"up": jnp.array([[1.0, 2.0, 3.0]]), "down": jnp.array([[5.0], [2.0], [1.0]])}
      >>> net = jn.Network(lambda v, x: jax.nn.relu(x @ v["up"]) @ v["down"], v)
      >>> x, cut = jnp.ones((4, 1)), jn.cut_units(jn.scores.mean_activation, share=0.3)
      >>> cut.plan(net, jn.calibrate(net, cut, [x]), x).kept["up"]  # 5, 4, 3
      array([0, 1])
    """
    return units.activity.mean * units.norm(2, "consumer")


@asking(taps=_taps)
def largest_activation(units: Units) -> np.ndarray:
    """The largest ``|activation|``: zero for units that are dead on the data (Hu et al. 2016 count how often, here: ever).

    With ``threshold=0.0`` the dead units go and no other, and on that data nothing changes.

    Example:
      >>> v = {"up": jnp.array([[1.0, -1.0, 0.5]]), "down": jnp.ones((3, 2))}
      >>> net = jn.Network(lambda v, x: jax.nn.relu(x @ v["up"]) @ v["down"], v)
      >>> x, cut = jnp.array([[2.0], [4.0]]), jn.cut_units(jn.scores.largest_activation, threshold=0.0)
      >>> small, _ = cut.execute(net, cut.plan(net, jn.calibrate(net, cut, [x]), x))
      >>> small.variables["up"].shape, bool((small(x) == net(x)).all())  # a dead unit less, the same answers
      ((1, 2), True)
    """
    return units.activity.largest
