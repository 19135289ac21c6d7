"""Cutting: a plan's units leave the network, with all that touches them; units may be layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from jaxopt_nn.core.model import Coupling, ModelInfo
from jaxopt_nn.core.passes import Pass, Plan
from jaxopt_nn.core.paths import leaves_by_path, map_with_path
from jaxopt_nn.core.remap import Remap
from jaxopt_nn.core.transform import LeafTraits, Traits, as_info
from jaxopt_nn.interpret.flow.flow import Flow
from jaxopt_nn.interpret.flow.shrunk import Shrunk, remains
from jaxopt_nn.interpret.groups import couplings
from jaxopt_nn.interpret.network import Network, abstract_outputs, network_of
from jaxopt_nn.interpret.program import complaint, dense_like, trace_model
from jaxopt_nn.passes.activity import named
from jaxopt_nn.passes.rule_states import carried

PyTree = Any


def planned(plan: Plan) -> Pass:
    """The pass that carries out a plan: one that was edited, read from JSON, or measured, so that it can't be made again.

    Args:
      plan: of any pass that cuts; for a network of these leaves, whatever their values.

    Raises:
      TypeError: no plan. ``ValueError`` at ``plan``: a network of other leaves.

    Example:
      >>> v = {"up": jnp.ones((4, 8)), "down": jnp.ones((8, 2))}
      >>> net = jn.Network(lambda v, x: jax.nn.relu(x @ v["up"]) @ v["down"], v)
      >>> plan = jn.cut_units(share=0.5).plan(net, jn.ModelInfo(), jnp.ones((1, 4)))
      >>> stage = jn.Stage("cut", jn.planned(plan.replace({"up": [1, 5]})), epochs=2)  # a recipe's
      >>> small, _ = stage.transform.execute(net, stage.transform.plan(net, jn.ModelInfo(), jnp.ones((1, 4))))
      >>> small.variables["up"].shape
      (4, 2)
    """
    if not isinstance(plan, Plan):
        raise TypeError(f"planned: a {type(plan).__name__}; pass a Plan, or Plan.from_json(text)")

    def again(network: Network, info: ModelInfo, *inputs: PyTree) -> Plan:
        plan.check({path: tuple(x.shape) for path, x in leaves_of(network, info, "planned").items()})
        return plan

    return Pass(again, execute, Traits(takes, leaf_local=False, name="planned"))


def takes(path: str, leaf: Any, info: ModelInfo) -> LeafTraits | str:
    """``Traits.takes`` of a pass that cuts units."""
    members = {m.path for c in info.couplings or () if c.group.pinned is None for m in c.group.members}
    return LeafTraits() if info.couplings is None or path in members else "no unit of it can be cut"


def leaves_of(network: Network, info: ModelInfo, name: str) -> dict[str, Any]:
    """The leaves of a network for which a pass makes a plan.

    Raises:
      TypeError: it is no network.
      ValueError: ``info`` is of other leaves.
    """
    leaves, info = leaves_by_path(network_of(network).variables), as_info(info)
    if wrong := [leaf.path for leaf in info.leaves if leaf.path not in leaves or leaf.shape != leaves[leaf.path].shape]:
        raise ValueError(f"{name}: {wrong[0]} has another shape in info than in the network; pass this network's own info")
    return leaves


def layers_of(network: Network, info: ModelInfo, *inputs: PyTree) -> dict[str, Coupling]:
    """The layers of a network by name, from ``info`` where they were found already."""
    known = info.couplings
    if known is None or any(c.group.name for c in known):  # stacks, which a pass that cuts layers asked for
        known = couplings(network.apply, network.variables, *inputs)
    return named(known)


def execute(network: Network, plan: Plan) -> tuple[Network, Remap]:
    """The network without the units that the plan takes out, and what carries over all that belongs to it.

    No code of the model changes: the small network's ``apply`` traces the model's function on the whole shapes, and does what
    that does on the smaller arrays.

    Raises:
      TypeError: no network or no plan.
      ValueError: a plan of another network; one that was edited against the couplings of its axes, or cuts units that are
        pinned, with the reason; a model that does not run on the cut variables in training mode; the state of a rule that
        can't follow.
    """
    network_of(network)
    if not isinstance(plan, Plan):
        raise TypeError(f"execute: plan is a {type(plan).__name__}; pass the Plan that the pass has made, or Plan.from_json")
    plan.check({path: tuple(x.shape) for path, x in leaves_by_path(network.variables).items()})
    remap = Remap(plan)
    variables = remap.params(network.variables)
    if not plan.cuts:
        return network.replace(variables=variables), remap
    abstract_outputs(network, *plan.inputs)  # fails on inputs that do not fit, whatever is cut
    _check_pins(network, plan)
    training = None if network.training is None else Shrunk(network.training, plan, training=True)
    still = network.still - {path for path, cut in plan.cuts.items() if cut.gone}
    small = network.replace(apply=Shrunk(network.apply, plan), training=training, variables=variables, still=still)
    _check_runs(network, small, plan)
    return small.replace(states=carried(network, small, plan)), remap


def _check_pins(network: Network, plan: Plan) -> None:
    """Raises ValueError where the plan, edited, cuts units that must stay."""
    remains(Flow(trace_model(network.apply, network.variables, plan.inputs), tuple(plan.leaves)), plan)


def _check_runs(network: Network, small: Network, plan: Plan) -> None:
    """Raises ValueError where the small network does not run, or gives outputs of other shapes."""
    advice = "it may couple other axes than in evaluation mode; protect the layers that it names"

    def shapes(run: Callable[..., PyTree], variables: PyTree, **key: Any) -> PyTree:
        dense = map_with_path(lambda path, leaf: dense_like(leaf), variables)
        return jax.eval_shape(lambda v, x, k: run(v, *x, **k), dense, plan.inputs, key)

    runs: list[tuple[str, Any, Any, dict[str, Any]]] = [("apply", network.apply, small.apply, {})]
    if network.training is not None or small.training is not None:
        runs.append(("the function for training", network.trained, small.trained, {"key": jax.random.key(0)}))
    for what, before, after, key in runs:
        try:
            outputs = shapes(after, small.variables, **key)
        except Exception as error:
            raise ValueError(f"{plan.name}: {what} fails on the cut variables ({complaint(error)}); {advice}") from error
        wanted = shapes(before, network.variables, **key)
        outputs, wanted = (outputs, wanted) if not key else (outputs[0], wanted[0])
        if outputs != wanted:
            raise ValueError(f"{plan.name}: on the cut variables {what} gives {outputs}, not {wanted}; {advice}")
