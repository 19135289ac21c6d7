"""Activations with one scale a site, known before they come: calibrated, or a moving average of training.

``s = max|x| / qmax`` over all activations of a site (Jacob et al. 2018, section 3.1, symmetric); codes are
``clip(round(x / s), -qmax, qmax)``. No row needs its own maximum, which spares a pass over the activations; values beyond the
range saturate. A layer of a scanned stack has its own range.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxopt_nn.core.model import Site
from jaxopt_nn.core.rule import Rule, rule_factory
from jaxopt_nn.core.tap import Tap
from jaxopt_nn.core.transform import State
from jaxopt_nn.methods.arithmetic import on_codes, on_rounded, widths
from jaxopt_nn.methods.taps import minmax
from jaxopt_nn.numerics import affine

_TAP = "minmax"


@rule_factory
def static_ranges(name: str = "w8a8") -> Rule:
    """The arithmetic ``w<bits>a<bits>`` with calibrated activation ranges; training keeps the ranges as they are.

    Args:
      name: activations of 2 to 8 bits.

    Raises:
      ValueError: another name; at a site's first run, no range: pass the network through ``calibrated``.

    Example:
      >>> net = jn.Network(lambda v, x: x @ v["kernel"], {"kernel": jnp.eye(3)}, rules=jn.static_ranges("w8a8"))
      >>> batches = [jnp.array([[1.0, 2.0, -3.0]]), jnp.array([[0.5, -4.0, 1.0]])]
      >>> net = jn.calibrated(net, batches)
      >>> float(net.states["kernel"].carried)  # the largest |x| of all batches
      4.0
    """
    return _ranged(name, "static_ranges", f"{name}, static ranges", None)


@rule_factory
def moving_ranges(name: str = "w8a8", decay: float = 0.99) -> Rule:
    """The arithmetic ``w<bits>a<bits>`` with ranges that follow training: ``r = decay r + (1 - decay) max|x|`` each step.

    The first range is that of calibration. A step in which a site sees no activation leaves its range as it is.

    Args:
      name: activations of 2 to 8 bits.
      decay: in [0, 1).

    Raises:
      ValueError: another name or decay; at a site's first run, no range.

    Example:
      >>> net = jn.Network(lambda v, x: x @ v["kernel"], {"kernel": jnp.eye(3)}, rules=jn.moving_ranges("w8a8", decay=0.9))
      >>> net = jn.calibrated(net, [jnp.array([[1.0, 2.0, -3.0]])])  # where it starts; training moves it
      >>> float(net.states["kernel"].carried)
      3.0
    """
    if not 0 <= decay < 1:
        raise ValueError(f"moving_ranges(decay={decay}): allowed are numbers from 0 to below 1, e.g. 0.99")
    return _ranged(name, "moving_ranges", f"{name}, moving ranges of decay {decay}", decay)


def _ranged(name: str, what: str, title: str, decay: float | None) -> Rule:
    w_bits, a_bits = widths(name, activations=tuple(range(2, 9)), what=what)
    _, qmax = affine.code_range(a_bits, signed=True, narrow=True)

    def taps(site: Site) -> Mapping[str, Tap]:
        return {} if site.weight is None or site.kind == "gather" else {_TAP: minmax()}

    def init(site: Site, stats: Mapping[str, Any] | None = None) -> State:
        if not taps(site):
            return State()
        if stats is None:
            raise ValueError(
                f"{site.name}: rule {title} has no range for it; pass network = calibrated(network, batches), or the states "
                "that were saved with the network"
            )
        return State((), _largest(stats[_TAP]))

    def scale(state: State) -> Any:
        return jnp.where(state.carried < qmax * affine.SMALLEST_SCALE, 1.0, state.carried * np.float32(1 / qmax))

    def apply(site: Site, state: State, lhs: Any, rhs: Any) -> Any:
        return on_codes(site, lhs, rhs, w_bits, a_bits, scale(state) if taps(site) else None)

    def trained(site: Site, state: State, lhs: Any, rhs: Any) -> Any:
        return on_rounded(site, lhs, rhs, a_bits, lambda x, axes: scale(state))

    def update(site: Site, state: State, measured: Mapping[str, Any], step: Any) -> State:
        if _TAP not in measured:
            return state
        assert decay is not None
        new, old = _largest(measured[_TAP]), state.carried
        return State((), jnp.where(new > 0, jnp.where(old > 0, decay * old + (1 - decay) * new, new), old))

    twin = Rule(trained, init, f"{title}, in float", taps=taps)
    if decay is not None:
        twin = twin._replace(measures=taps, update=update)
    return Rule(apply, init, title, taps=taps, training=twin)


def _largest(seen: Any) -> Any:
    """The largest ``|x|`` of what ``minmax`` saw, over all entries that a site keeps apart; 0 where it saw nothing."""
    low, high = seen[..., 0], seen[..., 1]
    return jnp.max(jnp.where(low <= high, jnp.maximum(jnp.abs(low), jnp.abs(high)), 0.0))
