"""Training: stretches of steps, each one call of a compiled function; resumable."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_nn.core.train import TrainState, averaged, init_train_state, make_step
from jaxopt_nn.core.transform import State, Transform, identity
from jaxopt_nn.interpret.jaxprs import has_site
from jaxopt_nn.interpret.network import Network, Rules, Training
from jaxopt_nn.interpret.rewrite import rewrite
from jaxopt_nn.pipeline import metrics
from jaxopt_nn.pipeline.checkpoints import Checkpoints, nothing
from jaxopt_nn.pipeline.data import Arrays, Source, Stretch
from jaxopt_nn.pipeline.recipe import Stage
from jaxopt_nn.pipeline.task import Objective, mean_loss, takes_teacher
from jaxopt_nn.reporting.progress import Watch

if TYPE_CHECKING:
    import optax

PyTree = Any
#: Points of a stage's validation curve, at most.
POINTS = 20
#: Bytes of a teacher's outputs that are kept, so that it runs once and not in each epoch; and rows that it gets at a time.
KEPT_BYTES = 1e9
ROWS = 512


class Taught(NamedTuple):
    """A batch with the teacher's outputs for it."""

    batch: PyTree
    outputs: PyTree


class Trained(NamedTuple):
    """What a training gives: ``history`` has an entry for each stretch of steps, as in the report."""

    variables: PyTree
    state: State
    rules: Mapping[str, State]
    history: list[dict[str, Any]]


def make_stretch(
    training: Training,
    method: Transform,
    optimizer: optax.GradientTransformation,
    stage: Stage,
    objective: Objective,
    *,
    rules: Rules = (),
    still: frozenset[str] = frozenset(),
) -> Callable[..., tuple[TrainState, dict[str, Any]]]:
    """``stretch(train_state, batches, real, n, teacher) -> (train_state, sums of the metrics)``, compiled.

    It takes the first ``n`` of the minibatches, one after the other; ``n`` is traced, so that a shorter stretch compiles
    nothing. The state is donated. With ``stage.distill`` the loss is mixed with the distance to the outputs of the network
    ``teacher``, which gets no gradient, or to those that come with the minibatches (``Taught``). ``rules`` stand at the
    sites, their states in the train state.

    A stretch is one program that loops over its minibatches; but where a CPU convolves, each step is called by itself: XLA
    gives the derivatives of convolutions their fast programs outside of loops alone, and a residual network took 15 to 30
    times as long within one.
    """
    loss, update = _losses(training, stage, objective, rules)
    step = make_step(
        loss, method, optimizer, still=still, gradient_norms=stage.gradient_norms, update_rules=update if rules else None
    )
    at = lambda i, *batches: jax.tree.map(lambda x: x[i], batches)

    def one(i: Any, ts: TrainState, sums: Any, batches: Any, real: Any, teacher: Network | None) -> Any:
        ts, found = step(ts, (*at(i, batches, real), teacher))
        return ts, jax.tree.map(jnp.add, sums, found)

    def looped(n: Any, ts: TrainState, sums: Any, *given: Any) -> Any:
        return jax.lax.fori_loop(0, n, lambda i, carry: one(i, *carry, *given), (ts, sums))

    traced, single, loop = jax.jit(step), jax.jit(one, donate_argnums=(1, 2)), jax.jit(looped, donate_argnums=(1, 2))

    def stretch(ts: TrainState, batches: Any, real: Any, n: int, teacher: Network | None) -> Any:
        form = traced.trace(ts, (*at(0, batches, real), teacher))
        sums = jax.tree.map(lambda m: jnp.zeros(m.shape, m.dtype), form.out_info[1])
        if jax.default_backend() != "cpu" or not has_site(form.jaxpr, ("conv_general_dilated",)):
            return loop(n, ts, sums, batches, real, teacher)
        given = (*jax.device_put((batches, real)), teacher)
        for i in range(n):
            ts, sums = single(i, ts, sums, *given)
        return ts, sums

    return stretch


def _losses(training: Training, stage: Stage, objective: Objective, rules: Rules) -> tuple[Callable[..., Any], ...]:
    """The loss, and the update of the rules' states, as ``make_step`` takes them."""
    forward = lambda variables, *given: training(variables, *given[:-1], key=given[-1])
    run = rewrite(forward, rules)
    counted = {name: metric for name, metric in objective.metrics if metric.merge is metrics.added}

    def loss(variables: PyTree, given: Any, key: jax.Array, states: Any = None) -> Any:
        batch, real, teacher = given
        batch, goal = batch if isinstance(batch, Taught) else (batch, None)
        inputs = objective.inputs_of(batch)
        measured = []
        if states is None:
            outputs, changed = forward(variables, *inputs, key)
        else:
            (outputs, changed), found = run.measure(variables, *inputs, key, states=states, weights=real)
            measured = [found]
        goal = teacher(*inputs) if teacher and goal is None else goal
        value, counts = _objective(objective, stage, outputs, batch, real, goal)
        sums = {name: metric.measure(outputs, batch, real) for name, metric in counted.items()}
        return value, (jax.lax.stop_gradient({"metrics": sums, "counted": counts}), changed, *measured)

    def update(variables: PyTree, given: Any, states: Any, measured: Any, step: Any) -> Any:
        batch = given[0].batch if isinstance(given[0], Taught) else given[0]
        inputs = (*objective.inputs_of(batch), jax.random.key(0))
        return run.update(variables, *inputs, states=states, measured=measured, step=step)

    return loss, update


def _objective(
    objective: Objective, stage: Stage, outputs: PyTree, batch: PyTree, real: Any, goal: PyTree
) -> tuple[Any, Any]:
    """The loss that is differentiated: the task's, mixed with the distance to a teacher's outputs where a stage distils.

    Beside it 1, or 0 where nothing of the batch counts.
    """
    if stage.distill is None:
        return mean_loss(objective.loss(outputs, batch), real)
    goal = jax.lax.stop_gradient(goal)
    if takes_teacher(objective.loss):
        return mean_loss(objective.loss(outputs, batch, teacher=goal), real)
    assert objective.soft is not None
    hard, parts = stage.distill.hard_weight, list[tuple[float, tuple[Any, Any]]]()
    if hard > 0:  # 0 times inf would be NaN
        parts.append((hard, mean_loss(objective.loss(outputs, batch), real)))
    if hard < 1:
        soft = objective.soft(outputs, goal, batch, stage.distill.temperature)
        parts.append((1 - hard, mean_loss(soft, real)))
    return sum(share * value for share, (value, _) in parts), jnp.max(jnp.stack([counts for _, (_, counts) in parts]))


class Trainer:
    """Trains a network for the epochs of a stage; called again with as many minibatches, it compiles nothing new.

    Args:
      training: the network in training mode.
      method: what the forward pass sees of the parameters, with its straight-through gradients.
      stage: gives the epochs, the optimizer, and what of the loss is a teacher's.
      objective: of the task.
      steps: of an epoch. batch_size: of arrays in memory.
      still: paths of leaves that are not trained.
      rules: what the sites compute in training, as a ``Network`` has them.

    Raises:
      ValueError: ``stage.distill`` for a task that does not say how far outputs are from a teacher's.
    """

    def __init__(
        self,
        training: Training,
        method: Transform,
        stage: Stage,
        objective: Objective,
        *,
        steps: int,
        batch_size: int = 64,
        still: frozenset[str] = frozenset(),
        rules: Rules = (),
    ):
        if stage.distill and not (objective.soft or takes_teacher(objective.loss)):
            raise ValueError(
                f"stage {stage.name!r}: distill, but the task's loss takes no teacher; give it an argument `teacher`, or pass "
                "Task(soft=...), the distance to a teacher's outputs"
            )
        self._stage, self._batch_size, self._still, self._steps = stage, batch_size, still, steps
        self._method, self._objective, self._view = method, objective, jax.jit(method.view)
        self._optimizer = stage.updates(steps * stage.epochs)
        self._run = make_stretch(training, method, self._optimizer, stage, objective, rules=rules, still=still)

    def __call__(
        self,
        variables: PyTree,
        state: State,
        data: Source,
        key: jax.Array,
        *,
        rules: Mapping[str, State] = MappingProxyType({}),
        teacher: Network | None = None,
        checkpoints: Checkpoints | None = None,
        watch: Watch = nothing,
        valid: Callable[[PyTree], dict[str, float]] | None = None,
    ) -> Trained:
        """Trains on ``data``, from the newest checkpoint on where there is one; ``rules`` are their states by site.

        ``valid`` judges the variables that the forward pass sees, at the ends of at most ``POINTS`` epochs, evenly spread.
        Where the data fails in the middle of an epoch (a loader that ends early, NaN), the position so far is kept.

        Raises:
          FloatingPointError: the loss is NaN or Inf; names the stage and the epoch.
          ValueError: a checkpoint of another network; data that does not fit, or of which in a whole epoch nothing counts.
        """
        stage = self._stage
        total = stage.epochs * self._steps
        if not total:
            return Trained(variables, state, rules, [])
        ts = init_train_state(
            variables, identity(), self._optimizer, key, state=state, rules=rules, still=self._still
        )
        done, history = 0, []
        if checkpoints and (found := checkpoints.restore(ts)):
            done, ts, meta = found
            history = meta["history"]
        ts = jax.tree.map(jnp.copy, ts)  # a stretch donates its state, and the caller keeps his arrays
        clock = _Clock(stage, self._objective, done, total, self._steps, watch)
        ts, history = self._stretches(ts, history, data, key, done, total, clock, checkpoints, teacher, valid)
        ts = averaged(ts, self._method, still=self._still) if stage.ema else ts
        return Trained(ts.params, ts.state, ts.rules, history)

    def _stretches(
        self,
        ts: TrainState,
        history: list[dict[str, Any]],
        data: Source,
        key: jax.Array,
        done: int,
        total: int,
        clock: _Clock,
        checkpoints: Checkpoints | None,
        teacher: Network | None,
        valid: Callable[[PyTree], dict[str, float]] | None,
    ) -> tuple[TrainState, list[dict[str, Any]]]:
        waiting: tuple[Stretch, Any, dict[str, float]] | None = None
        taught = teacher if self._stage.distill else None
        if taught and isinstance(data, Arrays) and (known := self._known(taught, data)):
            data, taught = known, None
        parts = data.stretches(self._batch_size, self._stage.epochs, key, start=done)
        while True:
            try:
                part = next(parts, None)
            except (TypeError, ValueError):
                if checkpoints and waiting:
                    history.append(clock.entry(*waiting))
                    checkpoints.save(waiting[0].done, ts, {"history": history})
                raise
            if part is None:
                break
            ts, sums = self._run(ts, part.batches, part.real, part.n, taught)
            if waiting:  # one behind: the next minibatches are gathered while this stretch runs
                history.append(clock.entry(*waiting))
            judged = valid(self._view(ts.params, ts.state)) if valid and self._on_curve(part.done) else {}
            waiting = (part, sums, judged)
            if checkpoints and (checkpoints.due() or part.done == total):
                history.append(clock.entry(*waiting))
                waiting = None
                checkpoints.save(part.done, ts, {"history": history})
        if waiting:
            history.append(clock.entry(*waiting))
        return ts, history

    def _known(self, teacher: Network, data: Arrays) -> Arrays | None:
        """The examples with the teacher's outputs for each; None where they would not pay, or take too much memory."""
        run = jax.jit(lambda teacher, rows: teacher(*self._objective.inputs_of(rows)))
        size = min(ROWS, data.size)
        form = jax.eval_shape(run, teacher, data.rows(slice(0, size)))
        each = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(form)) / size
        by_row = all(x.ndim and x.shape[0] == size for x in jax.tree.leaves(form))
        if self._stage.epochs < 2 or not by_row or each * data.size > KEPT_BYTES:
            return None
        parts = [jax.device_get(run(teacher, rows)) for rows, _ in data.batches(size)]
        outputs = jax.tree.map(lambda *x: np.concatenate(x)[: data.size], *parts)
        finite = all(np.isfinite(x).all() for x in jax.tree.leaves(outputs))  # a class may be at -inf, which data may not
        return Arrays(Taught(data.tree, outputs), data.name) if finite else None

    def _on_curve(self, done: int) -> bool:
        """Whether the validation curve has a point after so many steps."""
        epoch, rest = divmod(done, self._steps)
        every = -(-self._stage.epochs // POINTS)
        return not rest and (epoch % every == 0 or epoch == self._stage.epochs)


class _Clock:
    """Turns the sums of a stretch into an entry of the history, and says it with the time left."""

    def __init__(self, stage: Stage, objective: Objective, done: int, total: int, steps: int, watch: Watch):
        self._stage, self._total, self._steps, self._watch = stage, total, steps, watch
        self._metrics = dict(objective.metrics)
        self._counted = float(done % steps)  # of an epoch that was begun before a kill, the beginning is not known
        self._start: tuple[int, float] | None = None

    def entry(self, part: Stretch, sums: dict[str, Any], valid: dict[str, float]) -> dict[str, Any]:
        sums = jax.device_get(sums)
        counted, epoch = float(sums["counted"]), part.done / self._steps
        loss = float(sums["loss"]) / max(counted, 1)
        if not np.isfinite(loss):
            raise FloatingPointError(
                f"stage {self._stage.name!r}: the loss is {loss} in epoch {math.ceil(epoch)}; "
                f"lower learning_rate={self._stage.learning_rate}; or check that the labels a loader gives are classes"
            )
        self._counted += counted
        if part.done % self._steps == 0:
            if not self._counted:
                raise ValueError(
                    f"stage {self._stage.name!r}: nothing counts in epoch {round(epoch)}: all its weights are 0, or all labels "
                    "are ignored; pass data in which some examples count"
                )
            self._counted = 0.0
        numbers = {name: self._metrics[name].result(total) for name, total in sums["metrics"].items()}
        numbers["loss"] = loss if counted else math.nan
        known = {name: value for name, value in numbers.items() if np.isfinite(value)}
        found = {"stage": self._stage.name, "step": part.done, "epoch": round(epoch, 4), "metrics": known}
        if valid:
            found["valid"] = valid
        if "gradient_norms" in sums:
            found["gradient_norms"] = {path: float(norm) / part.n for path, norm in sums["gradient_norms"].items()}
        left, now = None, time.monotonic()
        if self._start is None:
            self._start = part.done, now  # the first stretch holds the compilation and tells nothing of the others
        else:
            left = (now - self._start[1]) / (part.done - self._start[0]) * (self._total - part.done)
        self._watch({**found, "steps": self._total, "seconds_left": left})
        return found
