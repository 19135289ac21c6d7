"""Metrics: what is measured on a whole set, batch after batch.

Example:
  >>> right = jn.metrics.mean_of(lambda out, batch: out.argmax(-1) == batch[1], better="higher", unit="%")
  >>> first = right.measure(jnp.eye(3), (None, jnp.array([0, 1, 0])), jnp.ones(3))
  >>> second = right.measure(jnp.eye(3), (None, jnp.array([0, 0, 0])), jnp.array([1.0, 1.0, 0.0]))  # two real rows
  >>> right.result(right.merge(first, second))  # 3 of 5
  0.6
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any


def added(a: PyTree, b: PyTree) -> PyTree:
    """Joins two accumulators of sums.

    Example:
      >>> jn.metrics.added((2.0, 4.0), (1.0, 1.0))
      (3.0, 5.0)
    """
    return jax.tree.map(lambda x, y: x + y, a, b)


def joined(a: PyTree, b: PyTree) -> PyTree:
    """Joins two accumulators that keep every example, along their first axes.

    Example:
      >>> jn.metrics.joined({"scores": np.array([0.1, 0.9])}, {"scores": np.array([0.5])})
      {'scores': array([0.1, 0.9, 0.5])}
    """
    return jax.tree.map(lambda x, y: np.concatenate([x, y]), a, b)


class Metric(NamedTuple):
    """A number over a set of examples; not a mean of numbers over batches: an F1 of a set is none.

    Attributes:
      measure: ``(outputs, batch, real) -> accumulator``, a pytree of arrays, compiled. ``real`` is float32 ``[B]``: 0 for rows
        that only fill up a batch, which must count for nothing.
      result: ``accumulator -> float``, on the host; NaN where nothing was counted.
      merge: joins two accumulators, on the host in float64: ``added`` or ``joined``.
      better: ``"higher"`` or ``"lower"``.
      unit: ``"%"`` for shares in [0, 1], which are shown times 100; else any word, or ``""``.

    Raises:
      ValueError: another ``better``.

    Example:
      >>> def measure(outputs, batch, real):  # the largest error: rows that only fill up a batch count for nothing
      ...     return jnp.max(jnp.abs(outputs[:, 0] - batch[1][:, 0]) * real)
      >>> worst = jn.Metric(measure, float, merge=lambda a, b: max(a, b), better="lower")
      >>> x = np.array([[1.0], [2.0], [4.0]], np.float32)
      >>> task = jn.regression(test=(x, x**2), metrics={"worst": worst})
      >>> jn.evaluate(jn.Network(lambda v, x: x * v["gain"], {"gain": jnp.ones(1)}), task)["worst"]
      12.0
    """

    measure: Callable[[PyTree, PyTree, Any], PyTree]
    result: Callable[[PyTree], float]
    merge: Callable[[PyTree, PyTree], PyTree] = added
    better: str = "higher"
    unit: str = ""

    @property
    def values(self) -> Callable[[PyTree, PyTree], Any] | None:
        """What ``mean_of`` takes the mean of; None for another metric."""
        measure = self.measure
        return measure.args[0] if isinstance(measure, functools.partial) and measure.func is _mean else None


class Detail(NamedTuple):
    """What a report says of a network before and after on the same examples beyond single numbers: a confusion, say.

    Attributes:
      measure, merge: as of a ``Metric``.
      compare: ``(accumulator of the baseline, of the last stage) -> value that JSON can hold``, on the host; None where there
        is nothing to say.

    Example:
      >>> def right(outputs, labels, real):
      ...     return outputs.argmax(-1) == labels
      >>> lost = jn.metrics.Detail(right, lambda before, after: {"lost": int((before & ~after).sum())})
      >>> labels, outputs = jnp.array([0, 1, 2]), jnp.eye(3)
      >>> lost.compare(lost.measure(outputs, labels, None), lost.measure(outputs[::-1], labels, None))
      {'lost': 2}
    """

    measure: Callable[[PyTree, PyTree, Any], PyTree]
    compare: Callable[[PyTree, PyTree], Any]
    merge: Callable[[PyTree, PyTree], PyTree] = joined


def spread(weights: Any, values: Any, real: Any = None) -> Any:
    """The weight of each value ``[B, ...]``, float32 of their shape; 0 in rows that are not real.

    Args:
      weights: of examples ``[B]``, or with more of the values' axes; None: 1.
      real: ``[B]``; None: all rows are.

    Raises:
      ValueError: weights of another shape.

    Example:
      >>> jn.metrics.spread(jnp.array([1.0, 2.0]), jnp.zeros((2, 3)), real=jnp.array([1.0, 0.0]))
      Array([[1., 1., 1.],
             [0., 0., 0.]], dtype=float32)
    """
    weights = jnp.asarray(1.0 if weights is None else weights, jnp.float32)
    if weights.ndim > values.ndim or any(w not in (1, v) for w, v in zip(weights.shape, values.shape)):
        raise ValueError(f"weights {list(weights.shape)} of values {list(values.shape)}: pass one for each example or value")
    weights = jnp.broadcast_to(weights.reshape(*weights.shape, *[1] * (values.ndim - weights.ndim)), values.shape)
    return weights if real is None else weights * real.reshape(-1, *[1] * (values.ndim - 1))


def counted(values: Any, weights: Any, real: Any) -> tuple[Any, Any]:
    """``(sum w v, sum w)``, float32: values ``[B, ...]``, weights and rows that are real as for ``spread``.

    A weight of 0 counts for nothing, whatever its value (0 times inf would be NaN).

    Example:
      >>> total, count = jn.metrics.counted(jnp.array([1.0, 5.0, jnp.inf]), jnp.array([1.0, 3.0, 0.0]), jnp.ones(3))
      >>> float(total), float(count)
      (16.0, 4.0)
    """
    weights = spread(weights, values, real)
    return jnp.sum(jnp.where(weights > 0, values.astype(jnp.float32) * weights, 0.0)), jnp.sum(weights)


def ratio(sums: tuple[Any, Any]) -> float:
    """The mean of a pair of ``counted``; NaN where nothing was.

    Example:
      >>> jn.metrics.ratio((16.0, 4.0)), jn.metrics.ratio((0.0, 0.0))
      (4.0, nan)
    """
    total, count = map(float, sums)
    return total / count if count else math.nan


def mean_of(
    values: Callable[[PyTree, PyTree], Any], *, better: str = "lower", unit: str = "", finish: Callable[[float], float] = float
) -> Metric:
    """The weighted mean over all examples.

    Args:
      values: ``(outputs, batch) -> values [B, ...]`` or ``(values, weights)``.
      finish: of the mean, e.g. ``math.sqrt`` for a root of a mean square.

    Returns:
      A ``Metric`` whose accumulator is ``(sum w v, sum w)``.

    Example:
      >>> import math
      >>> rmse = jn.metrics.mean_of(lambda out, batch: jnp.square(out - batch), finish=math.sqrt)
      >>> sums = rmse.measure(jnp.array([1.0, 4.0]), jnp.array([1.0, 0.0]), jnp.ones(2))
      >>> round(rmse.result(sums), 3)  # sqrt((0 + 16) / 2)
      2.828
    """
    return Metric(functools.partial(_mean, values), functools.partial(_finished, finish), added, better, unit)


def _mean(values: Callable[..., Any], outputs: PyTree, batch: PyTree, real: Any) -> tuple[Any, Any]:
    found = values(outputs, batch)
    value, weights = found if isinstance(found, tuple) else (found, None)
    return counted(value, weights, real)


def _finished(finish: Callable[[float], float], sums: tuple[Any, Any]) -> float:
    mean = ratio(sums)
    return mean if math.isnan(mean) else finish(mean)


def f1(scores: Callable[[PyTree, PyTree], tuple[Any, Any, Any]]) -> Metric:
    """The F1 of yes-or-no answers over the whole set: ``2 tp / (2 tp + fp + fn)`` (micro-averaged over labels).

    Args:
      scores: ``(outputs, batch) -> (logits [B, ...], truths 0 or 1 of that shape, weights or None)``; yes: a logit above 0.

    Returns:
      A ``Metric``; NaN where there is neither a yes nor a truth.

    Example:
      >>> metric = jn.metrics.f1(lambda out, batch: (out, batch, None))
      >>> logits, truths = jnp.array([2.0, 1.0, -1.0, -2.0]), jnp.array([1, 0, 1, 0])
      >>> metric.result(metric.measure(logits, truths, jnp.ones(4)))  # one right yes, one wrong, one missed
      0.5
    """
    return Metric(functools.partial(_confusion, scores), _f1, added, "higher", "%")


def _confusion(scores: Callable[..., Any], outputs: PyTree, batch: PyTree, real: Any) -> tuple[Any, ...]:
    logits, truth, weights = _alike(scores(outputs, batch))
    said, true = logits > 0, truth > 0
    return tuple(counted(cell, weights, real)[0] for cell in (said & true, said & ~true, ~said & true))


def _f1(cells: tuple[Any, ...]) -> float:
    hit, false, missed = map(float, cells)
    return 2 * hit / (2 * hit + false + missed) if hit + false + missed else math.nan


def auc(scores: Callable[[PyTree, PyTree], tuple[Any, Any, Any]]) -> Metric:
    """The area under the ROC curve, over all pairs of a positive and a negative example (ties count half).

    Args:
      scores: as for ``f1``; any monotone score does. Weights of 0 leave an answer out, others count fully.

    Returns:
      A ``Metric`` that keeps every score; NaN where one of the two kinds is missing.

    Example:
      >>> metric = jn.metrics.auc(lambda out, batch: (out, batch, None))
      >>> scores, truths = jnp.array([0.9, 0.7, 0.4, 0.2]), jnp.array([1, 0, 1, 0])
      >>> metric.result(metric.measure(scores, truths, jnp.ones(4)))  # 3 of 4 pairs stand in order
      0.75
    """
    return Metric(functools.partial(_ranked, scores), _area, joined, "higher", "%")


def _ranked(scores: Callable[..., Any], outputs: PyTree, batch: PyTree, real: Any) -> tuple[Any, ...]:
    logits, truth, weights = _alike(scores(outputs, batch))
    return logits.astype(jnp.float32).ravel(), truth.ravel() > 0, spread(weights, logits, real).ravel() > 0


def _area(found: tuple[Any, ...]) -> float:
    """By rank sums (Mann and Whitney 1947)."""
    scores, truth, counts = (np.asarray(x) for x in found)
    scores, truth = scores[counts], truth[counts].astype(bool)
    positive, negative = int(truth.sum()), int((~truth).sum())
    if not positive or not negative:
        return math.nan
    _, place, ties = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(ties) - (ties - 1) / 2)[place]
    return float((ranks[truth].sum() - positive * (positive + 1) / 2) / (positive * negative))


def explained(values: Callable[[PyTree, PyTree], tuple[Any, Any, Any]]) -> Metric:
    """The share of the targets' variance that is explained, ``R^2 = 1 - sum w (y - f)^2 / sum w (y - mean y)^2``.

    Args:
      values: ``(outputs, batch) -> (predictions [B, ...], targets of that shape, weights or None)``.

    Example:
      >>> metric = jn.metrics.explained(lambda out, batch: (out, batch, None))
      >>> predictions, targets = jnp.array([1.0, 2.0, 4.0]), jnp.array([1.0, 2.0, 3.0])
      >>> round(metric.result(metric.measure(predictions, targets, jnp.ones(3))), 3)
      0.5
    """
    return Metric(functools.partial(_moments, values), _r2, _pooled, "higher", "%")


def _moments(values: Callable[..., Any], outputs: PyTree, batch: PyTree, real: Any) -> tuple[Any, ...]:
    """``sum w e^2`` of the errors, ``sum w``, a centre ``c``, ``sum w (y - c)`` and ``sum w (y - c)^2`` of the targets.

    Around 0 instead of a centre, targets whose mean is far from it would lose all digits.
    """
    found, wanted, weights = _alike(values(outputs, batch))
    found, wanted = found.astype(jnp.float32), wanted.astype(jnp.float32)
    errors, count = counted(jnp.square(found - wanted), weights, real)
    centre = counted(wanted, weights, real)[0] / jnp.maximum(count, jnp.finfo(jnp.float32).tiny)
    around = [counted((wanted - centre) ** k, weights, real)[0] for k in (1, 2)]
    return errors, count, centre, *around


def _pooled(a: tuple[Any, ...], b: tuple[Any, ...]) -> tuple[Any, ...]:
    """The moments of two parts, those of the second around the centre of the first."""
    (errors, count, _, first, second), gap = b, b[2] - a[2]
    moved = errors, count, 0.0, first + gap * count, second + 2 * gap * first + gap**2 * count
    return tuple(x + y for x, y in zip(a, moved))


def _r2(moments: tuple[Any, ...]) -> float:
    errors, count, _, first, second = map(float, moments)
    variance = second - first**2 / count if count else 0.0
    return 1 - errors / variance if variance > 1e-6 * second else math.nan  # of constants rounding alone is left


def _alike(found: tuple[Any, ...]) -> tuple[Any, ...]:
    """Raises ValueError where predictions have another shape than what is wanted, which NumPy's rules might broadcast."""
    if found[0].shape != found[1].shape:
        raise ValueError(f"predictions are {list(found[0].shape)}, what is wanted {list(found[1].shape)}; make them alike")
    return found
