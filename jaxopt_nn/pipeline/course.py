"""The course of a network through a recipe: each stage is begun, trained and packed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_nn.core.combine import check_order
from jaxopt_nn.core.model import ModelInfo
from jaxopt_nn.core.passes import Pass, Plan
from jaxopt_nn.core.remap import Remap
from jaxopt_nn.core.report import Report
from jaxopt_nn.core.transform import Facts, State, Transform
from jaxopt_nn.interpret.inspect import inspect
from jaxopt_nn.interpret.network import Network, Rules, Training
from jaxopt_nn.pipeline.calibrate import calibrate, calibration_inputs
from jaxopt_nn.pipeline.checkpoints import Checkpoints, nothing
from jaxopt_nn.pipeline.fit import Trainer
from jaxopt_nn.pipeline.grade import validated
from jaxopt_nn.pipeline.probing import EXAMPLES
from jaxopt_nn.pipeline.recipe import Calibration, Recipe, Stage, check_recipe
from jaxopt_nn.pipeline.stages import Accumulated, accumulate
from jaxopt_nn.pipeline.task import Objective, Task
from jaxopt_nn.pipeline.twins import twin, with_states
from jaxopt_nn.reporting.progress import Watch

PyTree = Any
#: Where the positions of a stage's training lie, by its name.
Places = Callable[[str], Checkpoints]


class Run(NamedTuple):
    """What the stages of one run share."""

    task: Task
    teacher: Network
    key: jax.Array
    checkpoints: Places | None = None
    watch: Watch = nothing


class Position(NamedTuple):
    """Where a network is in its course.

    Attributes:
      network: in float, as it is trained so far.
      states: of the stages that were begun, each its own.
      info: what is known of the network.
      rule_states: states of the deployed rule, where the last stage's training gave them.
      anew: what passes could not carry over.
      starts: the variables with which stages began, of those to which later ones rewind.
    """

    network: Network
    info: ModelInfo
    states: tuple[State, ...] = ()
    rule_states: Mapping[str, State] | None = None
    anew: Report = Report()
    starts: Mapping[str, PyTree] = MappingProxyType({})


class Course:
    """What the stages of a recipe do to a network; compiled once for several runs (folds, seeds)."""

    def __init__(self, recipe: Recipe):
        self.recipe = check_recipe(recipe)
        self.accumulated: Callable[[int], Accumulated] = functools.lru_cache(maxsize=4)(
            functools.partial(accumulate, self.recipe)
        )
        self._trainer = functools.lru_cache(maxsize=4 * len(self.recipe))(self._made_trainer)

    def _made_trainer(
        self, k: int, training: Training, still: frozenset[str], objective: Objective, steps: int, size: int, rules: Rules
    ) -> Trainer:
        method, stage = self.accumulated(steps).methods[k], self.recipe[k]
        return Trainer(training, method, stage, objective, steps=steps, batch_size=size, rules=rules, still=still)

    def trainer(self, k: int, network: Network, task: Task, rules: Rules = ()) -> Trainer:
        """What trains stage ``k``.

        Raises:
          ValueError: as ``Trainer``.
        """
        return self._trainer(k, network.trained, network.still, task.objective, task.steps, task.batch_size, rules)

    def tried(self, network: Network, task: Task) -> Iterator[tuple[Network, Transform | Plan, ModelInfo]]:
        """Each stage on a network as it comes, with one minibatch and without training.

        Gives:
          ``(network, what the stage adds, or the plan of its pass, what is known)``.

        Raises:
          ValueError: for what depends on paths, shapes, dtypes and numbers of steps.
        """
        info = inspect(network.apply, network.variables, *task.example)
        plan, states = self.accumulated(task.steps), list[State]()
        for k, stage in enumerate(self.recipe):
            change, added = stage.transform, plan.added[k]
            if isinstance(change, Pass):
                before, (network, remap, info) = network, cut(change, network, info, task, few=True, how=stage.calibration)
                for i, state in enumerate(states):  # groups of earlier stages may no longer divide an axis
                    known = _calibrated(plan.added[i], network, info, task, few=True, how=self.recipe[i].calibration)
                    carry = lambda s, v, i=i, r=remap, known=known: r.state(plan.added[i], s, v, known)[0]
                    states[i] = jax.eval_shape(carry, state, network.variables)
                states.append(State())
                yield before, remap.plan, info
            else:
                known = _calibrated(added, network, info, task, few=True, how=stage.calibration)
                states.append(jax.eval_shape(lambda v, added=added, known=known: added.init(v, known), network.variables))
                check_order(plan.added[: k + 1], network.variables, info)
                yield network, added, known
            if stage.epochs:
                self.trainer(k, network, task)

    def begun(self, k: int, now: Position, run: Run) -> tuple[Position, tuple[Facts, ...]]:
        """At the beginning of stage ``k``: its pass is carried out, or its transform starts; and its facts."""
        task, stage, plan = run.task, self.recipe[k], self.accumulated(run.task.steps)
        now, added = now._replace(rule_states=None), plan.added[k]
        if any(later.rewind == stage.name for later in self.recipe):
            now = now._replace(starts={**now.starts, stage.name: now.network.variables})
        viewed = now.network.replace(variables=self.view(k - 1, now, task))
        if isinstance(stage.transform, Pass):
            now, remap = self._cut(stage, now, viewed, run)
            return now._replace(states=(*now.states, State())), (remap.plan.facts,)
        info = _calibrated(added, viewed, now.info, task, how=stage.calibration)
        state = added.init(viewed.variables, info)
        now = now._replace(info=info, states=(*now.states, state))
        facts = added.traits.facts(viewed.variables, state)
        if stage.rewind is not None:
            now = now._replace(network=now.network.replace(variables=now.starts[stage.rewind]))
        return now, facts

    def view(self, k: int, now: Position, task: Task) -> PyTree:
        """The variables that the forward pass sees with the transforms of the stages up to ``k``."""
        if k < 0:
            return now.network.variables
        plan = self.accumulated(task.steps).upto(k)
        return plan.methods[k].view(now.network.variables, plan.state(now.states[: k + 1]))

    def _cut(self, stage: Stage, now: Position, viewed: Network, run: Run) -> tuple[Position, Remap]:
        """A pass commits the view, then carries over all states."""
        task, plan = run.task, self.accumulated(run.task.steps)
        assert isinstance(stage.transform, Pass)
        place = run.checkpoints and run.checkpoints(stage.name)
        small, remap, info = cut(stage.transform, viewed, now.info, task, how=stage.calibration, place=place)
        states, anew = [], now.anew
        for earlier, method, state in zip(self.recipe, plan.added, now.states):
            known = _calibrated(method, small, info, task, how=earlier.calibration)
            new, report = remap.state(method, state, small.variables, known)
            states.append(new)
            anew = anew + report
        starts = {name: remap.params(variables) for name, variables in now.starts.items()}
        after = Position(small, info, tuple(states), anew=anew, starts=starts)
        return self._settled(after, remap.params(now.network.variables), task), remap

    def _settled(self, now: Position, behind: PyTree, task: Task) -> Position:
        """With variables that the stages so far see as what was committed.

        The view of a view may be another: a threshold shrinks again, a correction is added again. Then a leaf is what stood
        ``behind`` its view before the cut, moved by what the pass did to it.
        """
        committed, k = now.network.variables, len(now.states) - 1
        if k < 0:
            return now
        at = lambda variables: self.view(k, now._replace(network=now.network.replace(variables=variables)), task)
        moved = jax.tree.map(lambda x, own, seen: x + own - seen if _inexact(x) else x, committed, behind, at(behind))
        nearer = jax.tree.map(_nearer, committed, at(committed), moved, at(moved))
        return now._replace(network=now.network.replace(variables=nearer))

    def trained(self, k: int, now: Position, run: Run) -> tuple[Position, list[dict[str, Any]]]:
        """After the training of stage ``k``, and the history of that."""
        stage, plan = self.recipe[k], self.accumulated(run.task.steps).upto(k)
        if not stage.epochs:
            return now, []
        viewed = now.network.replace(variables=self.view(k, now, run.task))
        ready = twin(stage, viewed, lambda: self.packed(k, now, run.task), run.task)
        valid = None if run.task.valid is None else functools.partial(validated, run.task, now.network)
        done = self.trainer(k, now.network, run.task, ready.rules)(
            now.network.variables, plan.state(now.states), run.task.train, jax.random.fold_in(run.key, k), rules=ready.states,
            teacher=run.teacher, checkpoints=run.checkpoints and run.checkpoints(stage.name), watch=run.watch,
            valid=valid,
        )  # fmt: skip
        network = now.network.replace(variables=done.variables)
        states, rule_states = tuple(plan.own(done.state)), ready.deployed(done.rules)
        return now._replace(network=network, states=states, rule_states=rule_states), done.history

    def packed(self, k: int, now: Position, task: Task) -> PyTree:
        """The variables with compressed tensors, of the transforms of the stages up to ``k``."""
        plan = self.accumulated(task.steps).upto(k)
        return plan.methods[k].pack(now.network.variables, plan.state(now.states))

    def deployed(self, k: int, now: Position, task: Task) -> Network:
        """The network that would be deployed after stage ``k``, in stored form."""
        rules, states = self.recipe[k].cases, now.rule_states
        if states is None:
            viewed = now.network.replace(variables=self.view(k, now, task), rules=rules)
            states = with_states(viewed, task).states
        return now.network.replace(variables=self.packed(k, now, task), rules=rules, states=states, training=None)


def _inexact(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jnp.inexact))


def _nearer(committed: Any, seen: Any, moved: Any, seen_moved: Any) -> Any:
    """``committed``, unless the other one is seen as it, and it is not."""
    if not _inexact(committed):
        return committed
    largest = lambda x: float(np.max(np.abs(np.asarray(x)), initial=0))
    close = 1e-5 * largest(committed)
    return moved if largest(seen_moved - committed) <= close < largest(seen - committed) else committed


def cut(
    change: Pass,
    network: Network,
    info: ModelInfo,
    task: Task,
    few: bool = False,
    how: Calibration | None = None,
    place: Checkpoints | None = None,
) -> tuple[Network, Remap, ModelInfo]:
    """The network after a pass, what carries over to it, and what is known of it; ``place`` keeps the plan."""
    known = _calibrated(change, network, info, task, few, how)
    fresh = lambda: change.plan(network, known, *task.example)
    plan = fresh() if place is None else place.plan(fresh, task.example)
    small, remap = change.execute(change.mend(network, plan, known), plan)
    return small, remap, inspect(small.apply, small.variables, *task.example)


def _calibrated(
    method: Transform | Pass,
    network: Network,
    info: ModelInfo,
    task: Task,
    few: bool = False,
    how: Calibration | None = None,
) -> ModelInfo:
    """``info`` with what ``method`` must see of the model on inputs of the training data.

    Raises:
      ValueError: a way to see data for a method that sees none.
    """
    if not method.traits.passes:
        if how is not None:
            raise ValueError(f"{method.traits.name}: looks at no data, so that a calibration does nothing; leave it out")
        return info
    how = how or Calibration()
    return calibrate(
        network, method, calibration_inputs(network, task, few), task=task, examples=task.batch_size if few else EXAMPLES,
        weights=how.weights and how.weights(network), sequential=how.sequential,
    )  # fmt: skip
