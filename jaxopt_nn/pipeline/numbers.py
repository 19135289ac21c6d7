"""Ready-made tasks whose outputs are numbers: regression and reconstruction."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_nn.pipeline import metrics as of
from jaxopt_nn.pipeline.data import source_of
from jaxopt_nn.pipeline.metrics import Metric
from jaxopt_nn.pipeline.task import Part, Task, check_same, default_inputs, given_metrics, loss_sums, part_of

PyTree = Any


@functools.cache
def _squares(targets: Part, weights: Part | None) -> Callable[..., Any]:
    def loss(outputs: Any, batch: PyTree) -> Any:
        values = jnp.square(outputs.astype(jnp.float32) - part_of(targets, batch))
        return values if weights is None else (values, part_of(weights, batch))

    return loss


@functools.cache
def _number_metrics(targets: Part, weights: Part | None) -> tuple[tuple[str, Metric], ...]:
    def distance(outputs: Any, batch: PyTree) -> Any:
        values = jnp.abs(outputs.astype(jnp.float32) - part_of(targets, batch))
        return values if weights is None else (values, part_of(weights, batch))

    given = lambda outputs, batch: (outputs, part_of(targets, batch), None if weights is None else part_of(weights, batch))
    root = Metric(functools.partial(loss_sums, _squares(targets, weights)), _root, better="lower")
    return ("rmse", root), ("mae", of.mean_of(distance)), ("r2", of.explained(given))


def _root(sums: tuple[Any, Any]) -> float:
    mean = of.ratio(sums)
    return math.sqrt(mean) if mean >= 0 else mean


def _nearer(outputs: Any, goal: Any, batch: PyTree, temperature: float) -> Any:
    """Half the square of the distance to a teacher's numbers; numbers have no temperature."""
    return jnp.square(outputs.astype(jnp.float32) - jax.lax.stop_gradient(goal))


def regression(
    *,
    train: Any = None,
    test: Any,
    valid: Any = None,
    inputs: Part | None = None,
    targets: Part = 1,
    weights: Part | None = None,
    metrics: Mapping[str, Metric] | None = None,
    batch_size: int = 64,
) -> Task:
    """Numbers: mean square error; its root, the mean absolute error, the share of variance explained.

    Targets of the outputs' shape ``[B, ...]``. Arguments as for ``classification``.

    Example:
      >>> x = np.array([[1.0], [2.0], [4.0]], np.float32)
      >>> task = jn.regression(test=(x, 2 * x))
      >>> net = jn.Network(lambda v, x: x @ v["kernel"], {"kernel": jnp.array([[1.5]])})
      >>> {name: round(value, 3) for name, value in jn.evaluate(net, task).items()}
      {'rmse': 1.323, 'mae': 1.167, 'r2': 0.719, 'loss': 1.75}
    """
    return Task(
        _squares(targets, weights), train, test, valid, {**dict(_number_metrics(targets, weights)), **given_metrics(metrics)},
        "rmse", inputs, batch_size, _nearer, functools.partial(check_same, targets),
    )  # fmt: skip


def reconstruction(
    *,
    train: Any = None,
    test: Any,
    valid: Any = None,
    inputs: Part | None = None,
    metrics: Mapping[str, Metric] | None = None,
    batch_size: int = 64,
) -> Task:
    """The inputs back (an autoencoder): regression whose targets are the inputs, one array.

    The same metrics as of ``regression``; data is one array ``[n, ...]``, or anything of which ``inputs`` names one.

    Example:
      >>> x = np.array([[1.0, 2.0], [3.0, 5.0]], np.float32)
      >>> task = jn.reconstruction(test=x)
      >>> net = jn.Network(lambda v, x: x @ v["in"] @ v["out"], {"in": jnp.ones((2, 1)) / 2, "out": jnp.ones((1, 2))})
      >>> round(jn.evaluate(net, task)["rmse"], 3)
      0.791
    """
    given = source_of(test, "test").example
    target = inputs if inputs is not None else default_inputs(given)
    return regression(
        train=train, test=test, valid=valid, inputs=inputs, targets=target, metrics=metrics, batch_size=batch_size
    )
