"""A network as one value: its function, its variables, the rules at its sites and their states."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_nn.core.arguments import in_words
from jaxopt_nn.core.paths import leaves_by_path
from jaxopt_nn.core.rule import Rule
from jaxopt_nn.core.transform import State
from jaxopt_nn.interpret.cases import cases_of
from jaxopt_nn.interpret.program import check_apply, fails_on
from jaxopt_nn.interpret.rewrite import Rewritten, rewrite
from jaxopt_nn.interpret.stored import prepared_for

PyTree = Any
#: ``(variables, *inputs, key) -> (outputs, {path: leaf that the call changed})``: a network in training mode.
Training = Callable[..., tuple[PyTree, dict[str, Any]]]
Rules = tuple[tuple[str, Rule], ...]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["variables", "states"],
    meta_fields=["apply", "rules", "training", "still"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A network: call it on its inputs, ``network(*inputs) -> outputs``.

    A pytree: ``variables`` and ``states`` are its data, so that ``jit``, ``device_put`` and ``grad`` take it whole; the rest is
    static. What takes networks gives networks: passes, stages, ``compress``, ``load``. It equals itself alone, so that it is a
    function like others: ``jax.jit(network)``, with its weights as constants, or the key of a dict.

    Attributes:
      apply: ``(variables, *inputs) -> outputs``, in evaluation mode, pure.
      variables: its pytree; leaves may be compressed tensors.
      rules: what its sites compute: one ``Rule`` for all, or ``(pattern, Rule)`` pairs over leaf paths and site names, first
        match wins; ``()`` runs each as it stands.
      states: the rules' states by site, as ``initialized`` makes them.
      training: its function in training mode, ``(variables, *inputs, key) -> (outputs, {path: new leaf})``: batch statistics,
        dropout. None: it is trained as it is evaluated.
      still: paths of the leaves that no optimizer moves: running statistics and constants.

    Raises:
      TypeError: ``apply`` or ``training`` is no function, ``rules`` no rules.
      ValueError: a path in ``still`` that is no leaf.

    Example:
      >>> def apply(v, x):
      ...     return x @ v["kernel"]
      >>> net = jn.Network(apply, {"kernel": jnp.linspace(-1, 1, 64 * 8).reshape(64, 8)})
      >>> net(jnp.ones((2, 64))).shape
      (2, 8)
      >>> method = jn.quantize(8)
      >>> small = jn.Network(apply, method.pack(net.variables, method.init(net.variables)), rules=jn.arithmetic("w8a8"))
      >>> small(jnp.ones((2, 64))).shape, len(jax.tree.leaves(small))  # a pytree: here codes and scales
      ((2, 8), 2)
    """

    apply: Callable[..., PyTree]
    variables: PyTree
    rules: Rules = ()
    states: Mapping[str, State] = dataclasses.field(default_factory=dict)
    training: Training | None = None
    still: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        check_apply(self.apply)
        if not (callable(self.training) or self.training is None):
            raise TypeError(f"Network: training is {in_words(self.training)}; pass a function (variables, *inputs, key)")
        if isinstance(self.apply, Rewritten):
            raise TypeError("Network(apply=rewrite(...)): pass the model's own function, and the rules as rules=")
        object.__setattr__(self, "rules", tuple(cases_of(self.rules, Rule, "Network: rules")))
        object.__setattr__(self, "still", frozenset(self.still))

    def __call__(self, *inputs: PyTree) -> PyTree:
        """The outputs. On plain arrays one compiled program, in which weights are arguments; stored tensors are prepared."""
        return self.run(self.variables, *inputs, states=self.states)

    @property
    def run(self) -> Rewritten:
        """``(variables, *inputs, states=None) -> outputs``: ``apply`` with the rules; equal networks share its programs."""
        return _rewritten(self.apply, self.rules)

    @property
    def trained(self) -> Training:
        """``(variables, *inputs, key) -> (outputs, changed)``, also where the network has no training mode of its own."""
        return self.training or _as_evaluated(self.apply)

    def replace(self, **fields: Any) -> Network:
        """The network with other fields."""
        return dataclasses.replace(self, **fields)

    def initialized(self, *inputs: PyTree, stats: Mapping[str, Any] | None = None) -> Network:
        """With the first states of its rules.

        Args:
          inputs: arrays or ``jax.ShapeDtypeStruct``.
          stats: ``{site: {tap: statistic}}`` that the rules asked for.
        """
        return self.replace(states=self.run.init(self.variables, *inputs, stats=stats))

    def prepared(self, platform: str | None = None) -> Network:
        """With its compressed weights as ``platform`` runs them (``prepare``), each for the rule at it."""
        return self.replace(variables=prepared_for(self.variables, self.rules, platform))

    def __repr__(self) -> str:
        leaves = leaves_by_path(self.variables).values()
        size = sum(getattr(x, "size", 0) for x in leaves)
        rules = ", ".join(f"{pattern}: {rule.name}" for pattern, rule in self.rules) or "none"
        return f"Network({len(leaves)} leaves, {size:,} entries; rules: {rules})"


@functools.lru_cache(maxsize=256)
def _rewritten(apply: Callable[..., PyTree], rules: Rules) -> Rewritten:
    return rewrite(apply, rules)


@functools.lru_cache(maxsize=256)
def _as_evaluated(apply: Callable[..., PyTree]) -> Training:
    def training(variables: PyTree, *inputs: Any, key: Any = None) -> tuple[PyTree, dict[str, Any]]:
        return apply(variables, *inputs), {}

    return training


def network_of(given: Any, what: str = "network") -> Network:
    """``given`` if it is a ``Network``.

    Raises:
      TypeError: it is something else; says how to make one.
    """
    if isinstance(given, Network):
        return given
    raise TypeError(
        f"{what} is {in_words(given)}; pass a Network: jaxopt_nn.linen(model, variables), jaxopt_nn.nnx(model), or "
        "Network(apply, variables)"
    )


def abstract_outputs(network: Network, *inputs: PyTree, what: str = "apply") -> PyTree:
    """The shapes and dtypes of what a network gives for inputs of such shapes and dtypes; nothing is run.

    Raises:
      ValueError: ``apply`` fails on them; says what they are and why, and calls the network ``what``.
    """
    try:
        network.run.program(network.variables, inputs)
    except ValueError as error:
        if error.__cause__ is None:  # not of the model's own making: says itself what to do
            raise
        raise ValueError(fails_on(what, inputs, error.__cause__, batch=True)) from error.__cause__
    try:
        return jax.eval_shape(lambda n, x: n(*x), network, inputs)
    except Exception as error:
        raise ValueError(fails_on(what, inputs, error, batch=True)) from error


def like(x: Any, rows: int | None = None) -> PyTree:
    """A tree's arrays as abstract ones, with ``rows`` as their first length if given; 64 bits become what JAX takes."""

    def one(a: Any) -> jax.ShapeDtypeStruct:
        shape = tuple(a.shape) if rows is None else (rows, *a.shape[1:])
        return jax.ShapeDtypeStruct(shape, jnp.result_type(a))

    return jax.tree.map(one, x)


def untrained(network: Network, inputs: Sequence[Any]) -> list[str]:
    """Paths of running statistics that still have their initial values, and that training would not move.

    Such a network was never run in training mode, or lost its statistics: trained as it stands, its normalization would
    divide by ones for ever.
    """
    leaves = leaves_by_path(network.variables)
    held = {p: x for p, x in leaves.items() if p in network.still and jnp.issubdtype(x.dtype, jnp.floating)}
    first = [p for p, x in held.items() if p.rsplit("/", 1)[-1] in ("var", "variance") and bool((x == 1).all())]
    if not first:
        return []
    _, changed = jax.eval_shape(
        lambda v, x: network.trained(v, *x, key=jax.random.key(0)), network.variables, tuple(map(like, inputs))
    )
    return [p for p in first if p not in changed]
