"""Training: stretches of steps, each one call of a compiled function; resumable."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_nn.core.train import TrainState, averaged, init_train_state, make_step
from jaxopt_nn.core.transform import State, Transform, identity
from jaxopt_nn.interpret.rewrite import rewrite
from jaxopt_nn.methods.distill import distillation_loss
from jaxopt_nn.pipeline.checkpoints import Checkpoints, nothing
from jaxopt_nn.pipeline.recipe import Stage

if TYPE_CHECKING:
    import optax

PyTree = Any
#: ``(variables, x, key) -> (logits, changed top-level entries of variables)``: a network in training mode.
TrainApply = Callable[[PyTree, Any, jax.Array], tuple[jax.Array, dict[str, PyTree]]]
#: ``(apply, variables)`` of a network whose outputs another is trained towards.
Teacher = tuple[Callable[..., jax.Array], PyTree]
#: What is said after each stretch: the history's entry, and ``steps`` and ``seconds_left`` (None at first) beside.
Watch = Callable[[dict[str, Any]], None]
STRETCH = 100
STRETCH_BYTES = 64e6


class Trained(NamedTuple):
    """What a training gives: ``history`` has an entry for each stretch of steps, as in the report."""

    variables: PyTree
    state: State
    history: list[dict[str, Any]]


def make_stretch(
    train_apply: TrainApply,
    method: Transform,
    optimizer: optax.GradientTransformation,
    stage: Stage,
    *,
    frozen: tuple[str, ...] = ("batch_stats/**",),
    teacher: Callable[..., jax.Array] | None = None,
) -> Callable[..., tuple[TrainState, dict[str, Any]]]:
    """A jitted ``stretch(train_state, x, y, n, teacher_variables) -> (train_state, sums of the metrics)``.

    It takes the first ``n`` of the minibatches ``x [steps, B, ...]``, ``y [steps, B, ...]``, one after the other; ``n`` is
    traced, so that a shorter stretch compiles nothing. The state is donated. The loss is softmax cross-entropy, or, with
    ``stage.distill``, that of ``distillation_loss``; the teacher gets no gradient.
    """
    import optax

    forward = rewrite(train_apply, stage.training_rule) if stage.training_rule else train_apply

    def loss(variables: PyTree, batch: Any, key: jax.Array) -> tuple[jax.Array, tuple[dict[str, Any], PyTree]]:
        x, y, teacher_variables = batch
        logits, new = forward(variables, x, key)
        logits = logits.astype(jnp.float32)
        if stage.distill and teacher:
            goal = teacher(teacher_variables, x)
            losses = distillation_loss(
                logits, goal, y, temperature=stage.distill.temperature, hard_weight=stage.distill.hard_weight
            )
        else:
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        hits = jnp.mean((jnp.argmax(logits, -1) == y).astype(jnp.float32))
        return jnp.mean(losses), ({"accuracy": hits}, new)

    step = make_step(loss, method, optimizer, frozen=frozen, gradient_norms=stage.gradient_norms)

    def stretch(ts: TrainState, x: Any, y: Any, n: Any, teacher_variables: PyTree) -> tuple[TrainState, dict[str, Any]]:
        def body(i: Any, carry: Any) -> Any:
            ts, sums = carry
            ts, metrics = step(ts, (x[i], y[i], teacher_variables))
            return ts, jax.tree.map(jnp.add, sums, metrics)

        _, metrics = jax.eval_shape(step, ts, (x[0], y[0], teacher_variables))
        return jax.lax.fori_loop(0, n, body, (ts, jax.tree.map(lambda m: jnp.zeros(m.shape, m.dtype), metrics)))

    return jax.jit(stretch, donate_argnums=0)


def order_of(examples: int, batch_size: int, key: jax.Array) -> np.ndarray:
    """Which examples each minibatch of an epoch holds, drawn from ``key``: int ``[steps, B]``, the same everywhere.

    The rest that fills no batch is left out; fewer examples than ``batch_size`` are one smaller batch.
    """
    words = np.asarray(jax.random.key_data(key)).ravel()
    # the generator's stream, not its shuffle, is what NumPy promises to keep
    order = np.argsort(np.random.PCG64(words.tolist()).random_raw(examples), kind="stable")
    steps = steps_of(examples, batch_size)
    return order[: steps * batch_size].reshape(steps, -1)


def steps_of(examples: int, batch_size: int) -> int:
    """Steps of an epoch.

    Raises:
      ValueError: a batch size that is no whole number from 1.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size={batch_size!r}: allowed are the whole numbers from 1")
    return max(examples // batch_size, 1)


class Stretch(NamedTuple):
    """Minibatches ``x, y [steps, B, ...]`` of which the first ``n`` count, and the steps done after them."""

    x: np.ndarray
    y: np.ndarray
    n: int
    done: int


def stretches(
    data: tuple[np.ndarray, np.ndarray], batch_size: int, epochs: int, key: jax.Array, start: int = 0
) -> Iterator[Stretch]:
    """The stretches of all epochs from step ``start`` (the end of one) on; epoch ``e`` is drawn from ``fold_in(key, e)``.

    All have one shape: an epoch is cut into nearly equal parts.
    """
    x, y = data
    steps = steps_of(len(y), batch_size)
    most = max(min(STRETCH, int(STRETCH_BYTES / max(batch_size * x[:1].nbytes, 1))), 1)
    length = math.ceil(steps / math.ceil(steps / most))
    for epoch in range(epochs):
        if (epoch + 1) * steps <= start:
            continue
        order = order_of(len(y), batch_size, jax.random.fold_in(key, epoch))
        for at in range(0, steps, length):
            n = min(length, steps - at)
            if epoch * steps + at >= start:
                rows = order[np.minimum(np.arange(at, at + length), steps - 1)]
                yield Stretch(x[rows], y[rows].astype(np.int32), n, epoch * steps + at + n)


class Trainer:
    """Trains a network for the epochs of a stage; called again with as many minibatches, it compiles nothing new.

    Args:
      train_apply: the network in training mode.
      method: what the forward pass sees of the parameters, with its straight-through gradients.
      stage: gives the epochs, the optimizer and the loss.
      steps: of an epoch, as ``steps_of``.
      batch_size: examples a step.
      frozen: patterns of leaves that are not trained.
      teacher: ``apply`` of the network that ``stage.distill`` asks for.

    Raises:
      ValueError: ``stage.distill`` without a teacher.
    """

    def __init__(
        self,
        train_apply: TrainApply,
        method: Transform,
        stage: Stage,
        *,
        steps: int,
        batch_size: int = 64,
        frozen: tuple[str, ...] = ("batch_stats/**",),
        teacher: Callable[..., jax.Array] | None = None,
    ):
        if stage.distill and teacher is None:
            raise ValueError(f"stage {stage.name!r}: distill needs a teacher; pass teacher=(apply, variables)")
        self._stage, self._batch_size, self._frozen, self._steps = stage, batch_size, frozen, steps
        self._method = method
        self._optimizer = stage.optimizer(steps * stage.epochs)
        make = functools.partial(make_stretch, train_apply, method, self._optimizer, stage, frozen=frozen)
        self._run = make(teacher=teacher if stage.distill else None)
        self._distills = stage.distill is not None

    def __call__(
        self,
        variables: PyTree,
        state: State,
        data: tuple[np.ndarray, np.ndarray],
        key: jax.Array,
        *,
        teacher_variables: PyTree = None,
        checkpoints: Checkpoints | None = None,
        watch: Watch = nothing,
    ) -> Trained:
        """Trains on ``data``, from the newest checkpoint on where there is one.

        Raises:
          FloatingPointError: the loss is NaN or Inf; names the stage and the epoch.
          ValueError: a checkpoint of another network.
        """
        stage = self._stage
        total = stage.epochs * self._steps
        if not total:
            return Trained(variables, state, [])
        ts = init_train_state(variables, identity(), self._optimizer, key, state=state, frozen=self._frozen)
        done, history = 0, []
        if checkpoints and (found := checkpoints.restore(ts)):
            done, ts, meta = found
            history = meta["history"]
        ts = jax.tree.map(jnp.copy, ts)  # a stretch donates its state, and the caller keeps his arrays
        clock = _Clock(stage.name, total, self._steps, watch)
        waiting: tuple[Stretch, Any] | None = None
        taught = teacher_variables if self._distills else None
        for part in stretches(data, self._batch_size, stage.epochs, key, start=done):
            ts, sums = self._run(ts, part.x, part.y, part.n, taught)
            if waiting:  # one behind: the next minibatches are gathered while this stretch runs
                history.append(clock.entry(*waiting, stage))
            waiting = (part, sums)
            if checkpoints and (checkpoints.due() or part.done == total):
                history.append(clock.entry(*waiting, stage))
                waiting = None
                checkpoints.save(part.done, ts, {"history": history})
        if waiting:
            history.append(clock.entry(*waiting, stage))
        ts = averaged(ts, self._method, frozen=self._frozen) if stage.ema else ts
        return Trained(ts.params, ts.state, history)


class _Clock:
    """Turns the sums of a stretch into an entry of the history, and says it with the time left."""

    def __init__(self, name: str, total: int, steps: int, watch: Watch):
        self._name, self._total, self._steps, self._watch = name, total, steps, watch
        self._start: tuple[int, float] | None = None

    def entry(self, part: Stretch, sums: dict[str, Any], stage: Stage) -> dict[str, Any]:
        means = jax.tree.map(lambda x: float(x) / part.n, jax.device_get(sums))
        epoch = part.done / self._steps
        if not np.isfinite(means["loss"]):
            raise FloatingPointError(
                f"stage {self._name!r}: the loss is {means['loss']} in epoch {math.ceil(epoch)}; "
                f"lower learning_rate={stage.learning_rate}"
            )
        found = {"stage": self._name, "step": part.done, "epoch": round(epoch, 4), **means}
        left, now = None, time.monotonic()
        if self._start is None:
            self._start = part.done, now  # the first stretch holds the compilation and tells nothing of the others
        else:
            left = (now - self._start[1]) / (part.done - self._start[0]) * (self._total - part.done)
        self._watch({**found, "steps": self._total, "seconds_left": left})
        return found
