"""The rules of a stage in training: what will be deployed, in float, with straight-through gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from jaxopt_nn.core.rule import Rule, identity_rule
from jaxopt_nn.core.transform import State
from jaxopt_nn.interpret.cases import assigned
from jaxopt_nn.interpret.network import Network, Rules
from jaxopt_nn.pipeline.calibrate import calibrated, calibration_inputs
from jaxopt_nn.pipeline.recipe import Stage
from jaxopt_nn.pipeline.task import Task
from jaxopt_nn.tensors.base import PyTree


class Twin(NamedTuple):
    """What stands at the sites in training.

    Attributes:
      rules: as a ``Network`` has them. states: their first states by site.
      float_states: states of the deployed rule at sites that are trained as they stand; None: what is trained are other rules.
    """

    rules: Rules = ()
    states: Mapping[str, State] = {}
    float_states: Mapping[str, State] | None = None

    def deployed(self, trained: Mapping[str, State]) -> dict[str, State] | None:
        """The states of the deployed rule after training; None: it has none from there."""
        return None if self.float_states is None else {**self.float_states, **trained}


def with_states(network: Network, task: Task) -> Network:
    """A network with the first states of its rules, calibrated on inputs of the task where they ask for it."""
    if network.rules and network.run.taps(network.variables, *task.example):
        return calibrated(network, calibration_inputs(network, task))
    return network.initialized(*task.example) if network.rules else network.replace(states={})


def _trained(cases: Iterable[tuple[str, Rule]]) -> Rules:
    """What stands in training for deployed rules: their twins, or sites as they stand."""
    return tuple((pattern, rule.training or identity_rule()) for pattern, rule in cases)


def twin(stage: Stage, network: Network, pack: Callable[[], PyTree], task: Task) -> Twin:
    """What stands at the sites while a stage is trained: its ``training_rule``, else the twin of its ``rule``.

    The twin stands where the deployed rule does: a site whose weight has no codes, a tied head say, is deployed in float and
    trained so.

    Args:
      network: with the variables that the forward pass sees, in float. pack: gives what they become when they are deployed.
    """
    if stage.training_rule is not None:
        ready = with_states(network.replace(rules=stage.training_rule.training or stage.training_rule), task)
        return Twin(ready.rules, ready.states)
    cases = stage.cases
    if not any(rule.training for _, rule in cases):
        return Twin()
    states = with_states(network.replace(rules=cases), task).states
    ready = network.replace(variables=pack(), rules=cases).prepared()
    report = ready.run.explain(ready.variables, *task.example, states=states)
    left = [message.path for message in report.of("float")]
    # a leaf's first site has its name: as a pattern it takes the leaf's other sites too, unless they come before
    program = ready.run.program(ready.variables, task.example)
    found = ((program.sites[key], rule) for key, rule in assigned(program, cases, "rule").items())
    others = [(site.name, rule) for site, rule in found if site.leaf in left and site.name not in left]
    floats = ((name, identity_rule()) for name in left)
    rules = (*_trained(others), *floats, *_trained(cases))
    own = {site: state for site, state in states.items() if site not in left}
    return Twin(rules, own, {site: state for site, state in states.items() if site in left})
