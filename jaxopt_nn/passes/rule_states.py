"""The states of a network's rules, on the network that a plan leaves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_nn.core.model import Site
from jaxopt_nn.core.passes import Plan
from jaxopt_nn.core.transform import State
from jaxopt_nn.interpret.flow import extent
from jaxopt_nn.interpret.flow.entry import Kept
from jaxopt_nn.interpret.flow.flow import Flow
from jaxopt_nn.interpret.flow.shrunk import remains
from jaxopt_nn.interpret.network import Network
from jaxopt_nn.interpret.program import Program
from jaxopt_nn.interpret.tags import Key

_OFF = "take the rules off (network.replace(rules=(), states={})), cut, and calibrate them again"


def carried(network: Network, small: Network, plan: Plan) -> dict[str, State]:
    """The states of the sites that are left; of a loop over layers those of its iterations that stay.

    Raises:
      ValueError: a state has more than a number for each entry of a site that is cut; sites that can't be told apart.
    """
    if not network.states:
        return {}
    before, after = (n.run.program(n.variables, plan.inputs) for n in (network, small))
    flow = Flow(before, tuple(plan.leaves))
    kept, left = remains(flow, plan)
    made = {}
    for old, new in _pairs(before, after, left.dead, network.states, plan.name):
        if old.name in network.states:
            state = _shortened(network.states[old.name], old, flow, kept)
            _check(state, old, new, plan.name)
            made[new.name] = state
    return made


def _pairs(
    before: Program, after: Program, dead: frozenset[Key], states: Mapping[str, State], name: str
) -> list[tuple[Site, Site]]:
    """The sites that are left, and what they are afterwards: in order of evaluation, as uses of one leaf are counted anew.

    Raises:
      ValueError: there are others than are left, and one of them has a state.
    """
    stays = [site for key, site in before.sites.items() if not any(key[:n] in dead for n in range(1, len(key) + 1))]
    olds, news = _by_leaf(stays), _by_leaf(after.sites.values())
    pairs: list[tuple[Site, Site]] = []
    for place, own in olds.items():
        others = news.get(place, [])
        if len(own) == len(others):
            pairs += zip(own, others, strict=True)
        elif others and (some := [site.name for site in own if site.name in states]):
            raise ValueError(f"{name}: the state of the rule at {some[0]} can't be told from that of other sites; {_OFF}")
    return pairs


def _by_leaf(sites: Iterable[Site]) -> dict[str, list[Site]]:
    found: dict[str, list[Site]] = {}
    for site in sites:
        found.setdefault(site.name.partition("#")[0], []).append(site)
    return found


def _shortened(state: State, site: Site, flow: Flow, kept: Kept) -> State:
    """The entries of the iterations that stay, along the axes that lead all arrays of a state."""
    stay: Sequence[Any] = [extent.entries(flow.loops[slot], kept) if slot in flow.loops else None for slot in site.slots]
    for i, own in enumerate(stay):
        if own is not None:
            state = jax.tree.map(lambda x, i=i, own=own: jnp.take(x, own, axis=i), state)
    return state


def _check(state: State, old: Site, new: Site, name: str) -> None:
    """Raises ValueError where a state has more than a number for each entry of a site that is cut."""
    first, n = len(old.slots), len(new.slots)
    if first == n and old.shapes == new.shapes and old.stack[first:] == new.stack[n:]:
        return
    if any(x.shape != new.stack[:n] for x in jax.tree.leaves(state)):
        raise ValueError(
            f"{name}: the rule at {old.name} has a state of more than a number, and the units that it is of may go; {_OFF}"
        )
