"""Rules: what a site computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxopt_nn.core.model import Site
from jaxopt_nn.core.transform import State


def _stateless(site: Site, stats: Any = None) -> State:
    return State()


class Rule(NamedTuple):
    """What a site computes.

    Attributes:
      apply: ``(site, state, lhs, rhs) -> array`` in the site's output shape and dtype, or ``NotImplemented``: then the
        site runs as it stands and the report names it. ``lhs`` and ``rhs`` are arrays or compressed tensors;
        ``site.run(lhs, rhs)`` evaluates the site on whatever operands.
      init: ``(site, stats) -> State``; the default has no state.
      name: for messages.
      activations: the rule also takes sites where both operands are activations; otherwise these are left in float
        and the report says so.
    """

    apply: Callable[..., Any]
    init: Callable[..., State] = _stateless
    name: str = "rule"
    activations: bool = False


def identity_rule() -> Rule:
    """The rule that evaluates every site as it stands."""
    return Rule(lambda site, state, lhs, rhs: site.run(lhs, rhs), name="identity", activations=True)
