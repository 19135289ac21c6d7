"""Ready-made tasks whose outputs are logits: classification, language models, several labels an example."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_nn.pipeline import metrics as of
from jaxopt_nn.pipeline.data import Source, source_of
from jaxopt_nn.pipeline.distill import divergence
from jaxopt_nn.pipeline.metrics import Detail, Metric
from jaxopt_nn.pipeline.task import Part, Task, check_same, given_metrics, given_outputs, is_logits, loss_sums, part_of

PyTree = Any
#: Most classes of which a confusion matrix is kept.
MOST_CLASSES = 100


class Classes(NamedTuple):
    """Where labels and weights lie in a batch, and which label counts for nothing."""

    labels: Part
    weights: Part | None
    ignore: int | None

    def of(self, batch: PyTree) -> tuple[Any, Any]:
        """``(labels, weights or None)``; ignored labels become class 0 of weight 0, booleans 0 and 1."""
        y = part_of(self.labels, batch)
        y = y.astype(jnp.int32) if y.dtype == bool else y
        weights = None if self.weights is None else jnp.asarray(part_of(self.weights, batch), jnp.float32)
        if self.ignore is None or not jnp.issubdtype(y.dtype, jnp.integer):
            return y, weights
        kept = y != self.ignore
        return jnp.where(kept, y, 0), of.spread(weights, y) * kept

    def aligned(self, logits: Any, batch: PyTree) -> tuple[Any, Any, Any]:
        """``(logits float32, labels, weights)``, with one logit as its axis gone."""
        y, weights = self.of(batch)
        logits = logits.astype(jnp.float32)
        single = logits.ndim == y.ndim + 1 and logits.shape[-1] == 1
        return logits[..., 0] if single else logits, y, weights


def _one_logit(logits: Any, y: Any) -> bool:
    return logits.ndim == y.ndim and jnp.issubdtype(y.dtype, jnp.integer)


def _weighted(values: Any, weights: Any) -> Any:
    return values if weights is None else (values, weights)


@functools.cache
def _cross_entropy(classes: Classes) -> Callable[..., Any]:
    def loss(outputs: Any, batch: PyTree) -> Any:
        import optax

        logits, y, weights = classes.aligned(outputs, batch)
        if _one_logit(logits, y):
            values = optax.sigmoid_binary_cross_entropy(logits, y)
        elif jnp.issubdtype(y.dtype, jnp.integer):
            values = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        else:  # one-hot or soft labels
            return _weighted(optax.softmax_cross_entropy(logits, y), weights)
        return _weighted(jnp.where(y < 0, jnp.nan, values), weights)  # else -1 would be the last class

    return loss


def _answer(classes: Classes, outputs: Any, batch: PyTree) -> Any:
    """The class that outputs say, int32 of the labels' shape."""
    logits, y, _ = classes.aligned(outputs, batch)
    return (logits > 0 if _one_logit(logits, y) else jnp.argmax(logits, -1)).astype(jnp.int32)


@functools.cache
def _accuracy(classes: Classes) -> Metric:
    def hits(outputs: Any, batch: PyTree) -> Any:
        logits, y, weights = classes.aligned(outputs, batch)
        if _one_logit(logits, y):
            return (logits > 0) == (y > 0), weights
        best = y if jnp.issubdtype(y.dtype, jnp.integer) else jnp.argmax(y, -1)
        return jnp.argmax(logits, -1) == best, weights

    return of.mean_of(hits, better="higher", unit="%")


@functools.cache
def _confusion(classes: Classes) -> Detail:
    def answers(outputs: Any, batch: PyTree, real: Any) -> tuple[Any, ...]:
        """``(class, answer, whether it counts)``, each ``[B]``; () for several places an example, and for many classes."""
        logits, y, weights = classes.aligned(outputs, batch)
        single, hard = _one_logit(logits, y), jnp.issubdtype(y.dtype, jnp.integer)
        if (y.ndim if hard else y.ndim - 1) != 1 or (not single and logits.shape[-1] > MOST_CLASSES):
            return ()
        label = (y if hard else jnp.argmax(y, -1)).astype(jnp.int32)
        return label, _answer(classes, outputs, batch), (of.spread(weights, label, real) > 0) & (label >= 0)

    return Detail(answers, _confusions)


def _confusions(before: tuple[Any, ...], after: tuple[Any, ...]) -> dict[str, Any] | None:
    """Both networks' confusion matrices (rows: true class), and by class who was lost and won.

    The classes go from 0 to the last that is a label or an answer.
    """
    if not before:
        return None
    (y, first), (again, last) = ([part[count] for part in (label, answer)] for label, answer, count in (before, after))
    size = int(max(y.max(initial=0), first.max(initial=0), last.max(initial=0))) + 1
    table = lambda label, answer: np.bincount(label * size + answer, minlength=size**2).reshape(size, size).tolist()
    changed = None
    if np.array_equal(y, again):  # a loader that shuffles gives the examples in another order
        counts = lambda mask: np.bincount(y[mask], minlength=size).tolist()
        lost, won = counts((first == y) & (last != y)), counts((first != y) & (last == y))
        changed = [{"label": k, "lost": lost[k], "won": won[k]} for k in range(size)]
    return {"labels": list(range(size)), "baseline": table(y, first), "final": table(again, last), "changed": changed}


def _softer(goal: Any, logits: Any, temperature: float) -> Any:
    """``T^2 KL(softmax(goal / T) || softmax(logits / T))``; see ``pipeline.distill.distillation_loss``."""
    return temperature**2 * divergence(*(jax.nn.log_softmax(x / temperature) for x in (goal, logits)))


@functools.cache
def _softened(classes: Classes) -> Callable[..., Any]:
    def soft(outputs: Any, goal: Any, batch: PyTree, temperature: float) -> Any:
        logits, y, weights = classes.aligned(outputs, batch)
        goal = jax.lax.stop_gradient(goal).astype(jnp.float32).reshape(logits.shape)
        if _one_logit(logits, y):
            logits, goal = (jnp.stack([jnp.zeros_like(x), x], -1) for x in (logits, goal))
        values = _softer(goal, logits, temperature)
        return _weighted(values, weights)

    return soft


def classification(
    *,
    train: Any = None,
    test: Any,
    valid: Any = None,
    inputs: Part | None = None,
    labels: Part = 1,
    weights: Part | None = None,
    ignore: int | None = None,
    metrics: Mapping[str, Metric] | None = None,
    headline: str = "accuracy",
    batch_size: int = 64,
) -> Task:
    """One class for each example, or for each of its places: softmax cross-entropy, and accuracy.

    With one label an example, of at most ``MOST_CLASSES``, the report has confusion matrices too.

    Args:
      train, test, valid, batch_size: as in ``Task``.
      inputs, labels, weights: where they lie in a batch; the first and second entry of a tuple, and none, if not given.
        Labels: integers ``[B]`` or ``[B, T]`` for logits ``[..., classes]``; integers 0 and 1 for one logit, ``[B]`` or
        ``[B, 1]``; floats ``[..., classes]``, one-hot or soft. Weights ``[B]`` or of the labels' shape.
      ignore: a label that counts for nothing, e.g. -1.
      metrics: further ones.
      headline: which stands for all.

    Example:
      >>> images = np.eye(3, dtype=np.float32).repeat(4, 0)
      >>> labels = np.arange(3).repeat(4)
      >>> task = jn.classification(train=(images, labels), test=(images, labels))
      >>> net = jn.Network(lambda v, x: x @ v["kernel"], {"kernel": 5 * jnp.eye(3)})
      >>> jn.evaluate(net, task)["accuracy"], task.headline
      (1.0, 'accuracy')
    """
    classes = Classes(labels, weights, ignore)
    return Task(
        _cross_entropy(classes), train, test, valid,
        {"accuracy": _accuracy(classes), **given_metrics(metrics)}, headline, inputs, batch_size,
        _softened(classes), functools.partial(_check_classes, classes), "nats",
        logits=True, chance=functools.partial(_chance, classes), answer=functools.partial(_answer, classes),
        details={"confusion": _confusion(classes)},
    )  # fmt: skip


def language_model(
    *,
    train: Any = None,
    test: Any,
    valid: Any = None,
    inputs: Part | None = None,
    labels: Part | None = None,
    weights: Part | None = None,
    ignore: int | None = None,
    per: str = "token",
    metrics: Mapping[str, Metric] | None = None,
    batch_size: int = 32,
) -> Task:
    """The next token at each place: cross-entropy over tokens, perplexity (or bits a byte), accuracy.

    Args:
      train, test, valid, batch_size: as in ``Task``.
      inputs, labels: where they lie in a batch. Without ``labels`` of a tuple batch the second entry; of a batch that is one
        array ``[B, T]`` of tokens, each token's label is the next one, and ``apply`` gets the tokens but the last.
      weights: where a mask lies, of the labels' shape or ``[B]``.
      ignore: a label that counts for nothing, such as padding.
      per: ``"token"``: perplexity is the headline; ``"byte"``: each token is a byte, and bits a byte is.

    Raises:
      ValueError: another ``per``.

    Example:
      >>> tokens = np.array([[1, 2, 3, 0], [3, 2, 1, 2]])  # 0 is padding
      >>> task = jn.language_model(test=tokens, ignore=0)
      >>> net = jn.Network(lambda v, tokens: v["table"][tokens], {"table": jnp.zeros((4, 4))})
      >>> round(jn.evaluate(net, task)["perplexity"], 3)  # knows nothing of 4 tokens
      4.0
    """
    units = {"token": "perplexity", "byte": "bits/byte"}
    if per not in units:
        raise ValueError(f"language_model(per={per!r}): allowed are 'token' and 'byte'")
    example = source_of(test, "test").example
    if labels is None:
        labels = 1 if isinstance(example, tuple | list) else _next
        inputs = _but_last if labels is _next and inputs is None else inputs
    classes = Classes(labels, weights, ignore)
    return Task(
        _cross_entropy(classes), train, test, valid,
        {units[per]: _rate(classes, per), "accuracy": _accuracy(classes), **given_metrics(metrics)}, units[per], inputs,
        batch_size, _softened(classes), functools.partial(_check_classes, classes), "nats",
        logits=True, chance=functools.partial(_chance, classes), answer=functools.partial(_answer, classes),
    )  # fmt: skip


@functools.cache
def _rate(classes: Classes, per: str) -> Metric:
    finish, unit = (_perplexity, "") if per == "token" else (_bits, "bits/byte")
    return Metric(functools.partial(loss_sums, _cross_entropy(classes)), finish, better="lower", unit=unit)


def _perplexity(sums: tuple[Any, Any]) -> float:
    mean = of.ratio(sums)
    return math.exp(mean) if mean < 700 else math.inf


def _bits(sums: tuple[Any, Any]) -> float:
    return of.ratio(sums) / math.log(2)


def _next(batch: PyTree) -> Any:
    return batch[:, 1:]


def _but_last(batch: PyTree) -> Any:
    return batch[:, :-1]


def _check_classes(classes: Classes, outputs: PyTree, source: Source) -> None:
    """Raises ValueError where outputs are no logits for these labels, or a label has no logit (of a loader's first batch)."""
    labels = np.asarray(part_of(classes.labels, source.example))
    places = (2, *labels.shape[1:])
    if labels.dtype.kind == "f":
        if not is_logits(outputs) or outputs.shape != places:
            raise ValueError(
                f"{source.name}: labels are floats {list(places)}, one for each class, but {given_outputs(outputs)}; pass "
                "labels of the outputs' shape, or class numbers as integers: labels.astype(int)"
            )
        return
    if labels.dtype.kind not in "iub":
        raise ValueError(f"{source.name}: labels are {labels.dtype}; pass class numbers, or one float for each class")
    single = is_logits(outputs) and outputs.shape in (places, (*places, 1))
    if not single and (not is_logits(outputs) or outputs.shape[:-1] != places):
        raise ValueError(
            f"{source.name}: for 2 inputs with labels {list(places)} {given_outputs(outputs)}; needed are logits, float "
            f"[{', '.join(map(str, places))}, classes]: wrap apply so that it returns them, or name the labels (labels=)"
        )
    held = np.asarray(part_of(classes.labels, source.sample))
    if single and held.ndim > 1 and held.shape[-1] > 1 and (held.sum(-1) == 1).all():
        raise ValueError(
            f"{source.name}: labels are one-hot in {held.dtype}; pass them as floats, or class numbers {list(places[:-1])}"
        )
    _check_labels(held, 2 if single else outputs.shape[-1], classes.ignore, source.name)


def _chance(classes: Classes, source: Source) -> dict[str, float]:
    """The accuracy of who always gives the most frequent class, of the examples at hand."""
    y = np.asarray(part_of(classes.labels, source.sample))
    y = y.argmax(-1) if y.dtype.kind == "f" else y.astype(np.int64)
    y = y if classes.ignore is None else y[y != classes.ignore]
    return {"accuracy": float(np.unique(y, return_counts=True)[1].max() / y.size)} if y.size else {}


def _check_labels(y: np.ndarray, classes: int, ignore: int | None, name: str) -> None:
    bad = (y < 0) | (y >= classes)
    if ignore is not None:
        bad &= y != ignore
    if bad.any():
        at = np.unravel_index(bad.argmax(), y.shape)
        raise ValueError(
            f"{name}: label {y[at]} at {', '.join(map(str, at))}, but there are {classes} classes: allowed are 0 to "
            f"{classes - 1}; number the classes from 0, give apply as many outputs as there are classes, or pass ignore="
        )


@functools.cache
def _binary_cross_entropy(classes: Classes) -> Callable[..., Any]:
    def loss(outputs: Any, batch: PyTree) -> Any:
        import optax

        y, weights = classes.of(batch)
        values = optax.sigmoid_binary_cross_entropy(outputs.astype(jnp.float32), y)
        return _weighted(values, weights)

    return loss


@functools.cache
def _answers(classes: Classes) -> Callable[..., Any]:
    def scores(outputs: Any, batch: PyTree) -> Any:
        y, weights = classes.of(batch)
        return outputs, y, weights

    return scores


@functools.cache
def _multilabel_metrics(classes: Classes) -> tuple[tuple[str, Metric], ...]:
    def right(outputs: Any, batch: PyTree) -> Any:
        logits, y, weights = _answers(classes)(outputs, batch)
        return (logits > 0) == (y > 0), weights

    accuracy = of.mean_of(right, better="higher", unit="%")
    return ("f1", of.f1(_answers(classes))), ("auc", of.auc(_answers(classes))), ("accuracy", accuracy)


@functools.cache
def _bernoulli(classes: Classes) -> Callable[..., Any]:
    def soft(outputs: Any, goal: Any, batch: PyTree, temperature: float) -> Any:
        pair = lambda x: jnp.stack([jnp.zeros_like(x), x], -1).astype(jnp.float32)
        values = _softer(pair(jax.lax.stop_gradient(goal)), pair(outputs), temperature)
        weights = classes.of(batch)[1]
        return _weighted(values, weights)

    return soft


def multilabel(
    *,
    train: Any = None,
    test: Any,
    valid: Any = None,
    inputs: Part | None = None,
    labels: Part = 1,
    weights: Part | None = None,
    metrics: Mapping[str, Metric] | None = None,
    batch_size: int = 64,
) -> Task:
    """Several yes-or-no labels for each example: sigmoid cross-entropy; F1 over all answers, area under the ROC curve.

    Labels 0 or 1, ``[B, labels]``, for logits of that shape; a logit above 0 says yes. Arguments as for ``classification``.

    Example:
      >>> x = np.array([[1, -1], [-1, 1], [1, 1]], np.float32)
      >>> task = jn.multilabel(test=(x, np.array([[1, 0], [0, 1], [1, 0]])))
      >>> net = jn.Network(lambda v, x: x @ v["kernel"], {"kernel": jnp.eye(2)})
      >>> {name: round(value, 3) for name, value in jn.evaluate(net, task).items()}
      {'f1': 0.857, 'auc': 0.833, 'accuracy': 0.833, 'loss': 0.48}
    """
    classes = Classes(labels, weights, None)
    return Task(
        _binary_cross_entropy(classes), train, test, valid,
        {**dict(_multilabel_metrics(classes)), **given_metrics(metrics)}, "f1", inputs, batch_size,
        _bernoulli(classes), functools.partial(check_same, labels), "nats", logits=True,
    )  # fmt: skip
