"""Training a classifier: an epoch is one call of a compiled function."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_nn.core.train import TrainState, init_train_state, make_step
from jaxopt_nn.core.transform import State, Transform, identity
from jaxopt_nn.pipeline.recipe import Stage

if TYPE_CHECKING:
    import optax

PyTree = Any
Epoch = Callable[[TrainState, Any, Any], tuple[TrainState, jax.Array]]


def make_epoch(
    apply: Callable[..., jax.Array],
    method: Transform,
    optimizer: optax.GradientTransformation,
    frozen: tuple[str, ...] = ("batch_stats/**",),
) -> Epoch:
    """A jitted ``epoch(train_state, x, y) -> (train_state, mean loss)``; the state is donated.

    Args:
      apply: ``(variables, x [B, ...]) -> logits [B, classes]``.
      method: what the forward pass sees of the parameters, with its straight-through gradients.
      optimizer: over ``{"params", "learnt"}``.
      frozen: patterns of leaves that are not trained.

    The inputs of ``epoch`` are minibatches, ``x [steps, B, ...]`` and ``y [steps, B]``, taken one after the other by a
    scan; the loss is softmax cross-entropy.
    """
    import optax

    def loss(variables: PyTree, batch: Any, key: jax.Array) -> tuple[jax.Array, tuple[dict[str, Any], PyTree]]:
        x, y = batch
        logits = apply(variables, x).astype(jnp.float32)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y)), ({}, {})

    step = make_step(loss, method, optimizer, frozen=frozen)

    def epoch(ts: TrainState, x: Any, y: Any) -> tuple[TrainState, jax.Array]:
        ts, metrics = jax.lax.scan(step, ts, (x, y))
        return ts, jnp.mean(metrics["loss"])

    return jax.jit(epoch, donate_argnums=0)


def minibatches(x: np.ndarray, y: np.ndarray, batch_size: int, key: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """The examples in an order drawn from ``key``: ``x [steps, B, ...]``, ``y [steps, B]``.

    The rest that fills no batch is left out; fewer examples than ``batch_size`` are one smaller batch.
    """
    words = np.asarray(jax.random.key_data(key)).ravel()
    order = np.random.default_rng(words.tolist()).permutation(len(y))
    steps = max(len(y) // batch_size, 1)
    order = order[: steps * batch_size].reshape(steps, -1)
    return x[order], y[order].astype(np.int32)


class Trainer:
    """Trains a network for the epochs of a stage; called again with as many minibatches, it compiles nothing new.

    Args:
      apply, method, frozen: as in ``make_epoch``.
      stage: gives the epochs and the optimizer.
      batch_size: examples a step.
    """

    def __init__(
        self,
        apply: Callable[..., jax.Array],
        method: Transform,
        stage: Stage,
        *,
        batch_size: int = 64,
        frozen: tuple[str, ...] = ("batch_stats/**",),
    ):
        self._stage, self._batch_size, self._frozen = stage, batch_size, frozen
        self._parts = functools.lru_cache(maxsize=8)(functools.partial(self._make, apply, method))

    def _make(
        self, apply: Callable[..., jax.Array], method: Transform, steps: int
    ) -> tuple[optax.GradientTransformation, Epoch]:
        optimizer = self._stage.optimizer(steps * self._stage.epochs)
        return optimizer, make_epoch(apply, method, optimizer, self._frozen)

    def __call__(
        self, variables: PyTree, state: State, data: tuple[np.ndarray, np.ndarray], key: jax.Array
    ) -> tuple[PyTree, State]:
        """``(variables, state)`` after training on ``data``; the order of epoch ``e`` is drawn from ``fold_in(key, e)``.

        Raises:
          FloatingPointError: the loss is NaN or Inf; names the stage and the epoch.
        """
        if not self._stage.epochs:
            return variables, state
        x, y = data
        optimizer, epoch = self._parts(max(len(y) // self._batch_size, 1))
        ts = init_train_state(variables, identity(), optimizer, key, state=state, frozen=self._frozen)
        ts = jax.tree.map(jnp.copy, ts)  # an epoch donates its state, and the caller keeps his arrays
        for e in range(self._stage.epochs):
            ts, loss = epoch(ts, *minibatches(x, y, self._batch_size, jax.random.fold_in(key, e)))
            if not np.isfinite(float(loss)):
                raise FloatingPointError(
                    f"stage {self._stage.name!r}: the loss is {float(loss)} in epoch {e + 1}; lower learning_rate="
                    f"{self._stage.learning_rate}"
                )
        return ts.params, ts.state
