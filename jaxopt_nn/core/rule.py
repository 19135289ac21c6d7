"""Rules: what a site computes."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxopt_nn.core.model import Site
from jaxopt_nn.core.paths import near_misses
from jaxopt_nn.core.transform import State, no_taps


def _stateless(site: Site, stats: Any = None) -> State:
    return State()


def _keep(site: Site, state: State, measured: Any, step: Any) -> State:
    return state


class Rule(NamedTuple):
    """What a site computes.

    A rule may have a state by site, as a transform has one by leaf: what is ``learnt`` is trained with the network, what is
    ``carried`` is changed by ``update``. A site that reads the entries of a stack in turn (a scan over layers) has a state for
    each; the functions below see one entry.

    Attributes:
      apply: ``(site, state, lhs, rhs) -> array`` in the site's output shape and dtype, or ``NotImplemented``: then the
        site runs as it stands and the report names it. ``lhs`` and ``rhs`` are arrays or compressed tensors;
        ``site.run(lhs, rhs)`` evaluates the site on whatever operands.
      init: ``(site, stats) -> State``; ``stats`` are ``{tap: statistic}`` of ``taps``, or None where nothing was measured.
        The default has no state.
      name: for messages.
      activations: the rule also takes sites where both operands are activations; otherwise these are left in float
        and the report says so.
      taps: ``site -> {name: Tap}``: the statistics that ``init`` asks for; ``pipeline.calibrated`` takes them.
      measures: ``site -> {name: Tap}``: what the forward pass of a training step measures for ``update``, without a gradient.
      update: ``(site, state, measured, step) -> State``, once an optimizer step, from ``{name: statistic}`` of ``measures``;
        touches ``carried`` only.
      training: the rule that stands for this one in training: in float, with straight-through gradients, on the same state.
        None: sites are trained as they stand.
      width: bits of the activations that it multiplies with, for the form in which weights are prepared: 1 where it takes their
        signs, else 16.
      made: ``(factory, ((argument, value), ...))``, as ``rule_factory`` sets it: what an artifact says of the rule.

    Example:
      >>> def rounded(site, state, lhs, rhs):  # the site as it stands, on activations rounded to whole numbers
      ...     return site.run(jnp.round(lhs), rhs)
      >>> v = {"kernel": jnp.ones((2, 1))}
      >>> run = jn.rewrite(lambda v, x: x @ v["kernel"], jn.Rule(rounded, name="rounded"))
      >>> run(v, jnp.array([[0.9, 3.2]]))
      Array([[4.]], dtype=float32)
    """

    apply: Callable[..., Any]
    init: Callable[..., State] = _stateless
    name: str = "rule"
    activations: bool = False
    taps: Callable[[Site], Mapping[str, Any]] = no_taps
    measures: Callable[[Site], Mapping[str, Any]] = no_taps
    update: Callable[..., State] = _keep
    training: Any = None
    width: int = 16
    made: tuple[str, tuple[tuple[str, Any], ...]] | None = None


#: Factories of rules by name, as artifacts name them.
FACTORIES: dict[str, Callable[..., Rule]] = {}


def rule_factory(make: Callable[..., Rule]) -> Callable[..., Rule]:
    """A decorator for functions that make rules: equal arguments give the same rule, so that networks with it share programs.

    An artifact names the function by its module and its name, with the arguments, and ``load`` calls it again; so arguments
    are what JSON can hold: strings, numbers, None.

    Example:
      >>> @jn.rule_factory
      ... def scaled(factor=2.0):
      ...     return jn.Rule(lambda site, state, lhs, rhs: factor * site.run(lhs, rhs), name=f"times {factor}")
      >>> scaled() is scaled(2.0)  # so that two networks with it share a program
      True
      >>> scaled(3.0).made[1]
      (('factor', 3.0),)
    """
    signature, name = inspect.signature(make), f"{make.__module__}:{make.__qualname__}"

    @functools.cache
    def cached(arguments: tuple[tuple[str, Any], ...]) -> Rule:
        return make(**dict(arguments))._replace(made=(name, arguments))

    @functools.wraps(make)
    def factory(*args: Any, **kwargs: Any) -> Rule:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{make.__name__}: {error}; call it as {make.__name__}{signature}") from None
        bound.apply_defaults()
        return cached(tuple(bound.arguments.items()))

    FACTORIES[name] = factory
    return factory


def described(rule: Rule) -> dict[str, Any] | None:
    """What an artifact says of a rule; None of one that no ``rule_factory`` made."""
    return None if rule.made is None else {"factory": rule.made[0], "arguments": dict(rule.made[1])}


def rule_of(said: Mapping[str, Any]) -> Rule:
    """The rule that ``described`` told of.

    Raises:
      ValueError: no such factory is registered; says which module registers it.
    """
    name = said["factory"]
    if name not in FACTORIES:
        near = ", ".join(near_misses(name, FACTORIES) or sorted(FACTORIES))
        raise ValueError(
            f"rule {name!r} is unknown; import {name.partition(':')[0]}, where jaxopt_nn.rule_factory registers it, or pass "
            f"rules=; nearest: {near}"
        )
    return FACTORIES[name](**said["arguments"])


@rule_factory
def identity_rule() -> Rule:
    """The rule that evaluates every site as it stands.

    Example:
      >>> v = {"kernel": jnp.ones((4, 2))}
      >>> run = jn.rewrite(lambda v, x: x @ v["kernel"], jn.identity_rule())
      >>> run(v, jnp.ones((1, 4)))
      Array([[4., 4.]], dtype=float32)
      >>> stage = jn.Stage("w4a8", jn.quantize(4), rule=jn.arithmetic("w4a8"), training_rule=jn.identity_rule())
    """
    return Rule(lambda site, state, lhs, rhs: site.run(lhs, rhs), name="identity", activations=True)
