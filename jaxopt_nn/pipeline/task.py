"""Tasks: what a network is trained and judged by. Any loss, any metrics, any batches; the common ones ready-made."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_nn.core.arguments import in_words, require
from jaxopt_nn.core.paths import leaves_by_path, near_misses
from jaxopt_nn.pipeline import metrics
from jaxopt_nn.pipeline.data import Source, check_batch_size, source_of
from jaxopt_nn.pipeline.metrics import Detail, Metric

PyTree = Any
#: A part of a batch: an index into a tuple, a key of a dict, several of these, or a function of the batch.
Part = int | str | tuple[Any, ...] | Callable[[PyTree], Any]


class Objective(NamedTuple):
    """What of a task is compiled: equal objectives share programs, whatever their data."""

    loss: Callable[..., Any]
    metrics: tuple[tuple[str, Metric], ...]
    inputs: Part
    soft: Callable[..., Any] | None
    details: tuple[tuple[str, Detail], ...] = ()

    def inputs_of(self, batch: PyTree) -> tuple[PyTree, ...]:
        """What ``apply`` gets after its variables."""
        return _inputs(self.inputs, batch)

    def losses(self, outputs: PyTree, batch: PyTree, real: Any) -> tuple[Any, Any]:
        """``(sum, count)`` of the loss; of a scalar loss the scalar and 1."""
        return summed(self.loss(outputs, batch), real)

    def measured(self, outputs: PyTree, batch: PyTree, real: Any) -> dict[str, PyTree]:
        """The accumulators of one batch: of the loss, of each metric and of each detail."""
        measured: tuple[tuple[str, Metric | Detail], ...] = (*self.metrics, *self.details)
        sums = {name: each.measure(outputs, batch, real) for name, each in measured}
        return {"loss": self.losses(outputs, batch, real), **sums}


def summed(loss: Any, real: Any) -> tuple[Any, Any]:
    """What a loss returned, as ``(sum, count)``: values ``[B, ...]``, ``(values, weights)``, or a scalar."""
    values, weights = loss if isinstance(loss, tuple) else (loss, None)
    if values.ndim == 0:
        return values.astype(jnp.float32), jnp.ones((), jnp.float32)
    return metrics.counted(values, weights, real)


def mean_loss(loss: Any, real: Any) -> tuple[Any, Any]:
    """The scalar that training differentiates, and 1; 0 without a gradient, and 0, where nothing counts."""
    values, weights = loss if isinstance(loss, tuple) else (loss, None)
    if weights is None and real is None:
        return jnp.mean(values.astype(jnp.float32)), jnp.ones((), jnp.float32)
    total, count = summed(loss, real)
    return total / jnp.maximum(count, jnp.finfo(jnp.float32).tiny), (count > 0).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class Task:
    """A loss, metrics, and the data: what a network is trained and judged by.

    Attributes:
      loss: ``(outputs, batch) -> values [B, ...]``, or ``(values, weights)``, where weights that are 0 leave entries out
        (padding, ignored labels), or a scalar for a loss that is no mean over examples. With an argument ``teacher`` it gets
        the teacher's outputs in stages that distil.
      train, test: data (``pipeline.data.source_of``): a tuple, dict or array of arrays in memory, or anything that gives
        batches and can be gone over again; ``train`` may be missing where nothing is trained.
      valid: data by which stages are compared; the test set is then touched once, at the end. None: the test set.
      metrics: ``{name: Metric}``; ``loss`` is one of its own.
      headline: the metric that stands for all, ``loss`` if not given.
      inputs: what of a batch ``apply`` gets after its variables; an index, a key, several, or a function. The first entry of a
        tuple, the whole of another batch, if not given. A tuple is several inputs.
      batch_size: examples a step of arrays in memory; what gives batches has its own.
      soft: ``(outputs, teacher's outputs, batch, temperature) -> values or (values, weights)``: what distillation adds.
      check: ``(abstract outputs for a batch of 2, source)``, raises ValueError where data and outputs don't fit.
      unit, better: of the loss.
      logits: whether the loss takes logits: then a network that ends in a softmax or a sigmoid is refused.
      chance: ``source -> {metric: value}`` of who always gives the same answer; a stage that ends there is told of.
      details: ``{name: Detail}``, an entry each in the report.
      answer: ``(outputs, batch) -> classes``, integers of the labels' shape, where each example or place has one class; of the
        batch only the labels' form counts.

    Raises:
      TypeError: ``loss`` is no function, a metric is no ``Metric``.
      ValueError: ``headline`` is no metric; a detail has the name of a metric; data without an example.

    Example:
      >>> x = np.linspace(-1, 1, 40, dtype=np.float32).reshape(20, 2)
      >>> data = {"x": x, "y": x.sum(1)}
      >>> task = jn.Task(
      ...     lambda out, batch: jnp.abs(out[:, 0] - batch["y"]),
      ...     train=data, test=data, inputs="x",
      ...     metrics={"within": jn.metrics.mean_of(lambda out, batch: jnp.abs(out[:, 0] - batch["y"]) < 0.5, better="higher")},
      ...     headline="within",
      ... )
      >>> net = jn.Network(lambda v, x: x @ v["kernel"], {"kernel": jnp.ones((2, 1))})
      >>> jn.evaluate(net, task)
      {'within': 1.0, 'loss': 0.0}
    """

    loss: Callable[..., Any]
    train: Any = None
    test: Any = None
    valid: Any = None
    metrics: Mapping[str, Metric] = dataclasses.field(default_factory=dict)
    headline: str = "loss"
    inputs: Part | None = None
    batch_size: int = 64
    soft: Callable[..., Any] | None = None
    check: Callable[[PyTree, Source], None] | None = None
    unit: str = ""
    better: str = "lower"
    logits: bool = False
    chance: Callable[[Source], Mapping[str, float]] | None = None
    details: Mapping[str, Detail] = dataclasses.field(default_factory=dict)
    answer: Callable[[PyTree, PyTree], Any] | None = None

    def __post_init__(self) -> None:
        if not callable(self.loss):
            raise TypeError(f"Task: loss is {in_words(self.loss)}; pass a function (outputs, batch) -> values [B, ...]")
        check_batch_size(self.batch_size)
        given_metrics(self.metrics)
        if self.better not in ("higher", "lower"):
            raise ValueError(f"Task: better={self.better!r}; allowed are 'higher' and 'lower'")
        for name, metric in self.metrics.items():
            if metric.better not in ("higher", "lower"):
                raise ValueError(f"Task: metrics[{name!r}].better={metric.better!r}; allowed are 'higher' and 'lower'")
        if self.headline not in self.names:
            near = ", ".join(near_misses(self.headline, self.names) or self.names)
            raise ValueError(f"Task(headline={self.headline!r}): is none of its metrics; nearest: {near}")
        if twice := self.details.keys() & {*self.names}:
            raise ValueError(f"Task: details and metrics are both called {', '.join(twice)}; give the details other names")
        for part in ("train", "test", "valid"):
            if (data := getattr(self, part)) is not None:
                object.__setattr__(self, part, source_of(data, part))
        if self.test is None:
            raise ValueError("Task: no test data; pass test=(inputs, labels), or what gives batches")
        for source in (self.train, self.valid):
            if source is not None:
                _check_alike(source, self.test)

    @property
    def names(self) -> list[str]:
        """Of the metrics, the loss last."""
        return [*(name for name in self.metrics if name != "loss"), "loss"]

    @property
    def objective(self) -> Objective:
        inputs = default_inputs(self.test.example) if self.inputs is None else self.inputs
        return Objective(self.loss, tuple(self.metrics.items()), inputs, self.soft, tuple(self.details.items()))

    @property
    def steps(self) -> int:
        """Training steps of an epoch; 1 where nothing can be trained."""
        return 1 if self.train is None else self.train.steps(self.batch_size)

    @property
    def judged(self) -> Source:
        """The data by which stages are compared."""
        return self.test if self.valid is None else self.valid

    @property
    def example(self) -> tuple[PyTree, ...]:
        """The inputs of one example, ``[1, ...]``."""
        return self.objective.inputs_of(self.test.example)

    def described(self) -> dict[str, dict[str, str]]:
        """Unit and direction of each metric, as reports hold them."""
        entries = {name: {"unit": m.unit, "better": m.better} for name, m in self.metrics.items()}
        return {**entries, "loss": {"unit": self.unit, "better": self.better}}

    def result(self, sums: Mapping[str, PyTree]) -> dict[str, float]:
        """The numbers of accumulators."""
        numbers = {name: metric.result(sums[name]) for name, metric in self.metrics.items() if name in sums}
        return {**numbers, "loss": metrics.ratio(sums["loss"])}

    def merged(self, a: Mapping[str, PyTree], b: Mapping[str, PyTree]) -> dict[str, PyTree]:
        """The accumulators of two parts of a set, as one."""
        known: dict[str, Metric | Detail] = {**self.metrics, **self.details}
        return {name: (known[name].merge if name in known else metrics.added)(a[name], b[name]) for name in a}

    def compared(self, before: Mapping[str, PyTree], after: Mapping[str, PyTree]) -> dict[str, Any]:
        """What the details say of two networks, of their accumulators over the same set."""
        comparisons = {name: detail.compare(before[name], after[name]) for name, detail in self.details.items()}
        return {name: said for name, said in comparisons.items() if said is not None}

    def calibration(self, examples: int = 128) -> list[tuple[PyTree, ...]]:
        """Inputs of the first training examples, in batches, for ``calibrate``."""
        source, inputs, left = self.train or self.test, list[tuple[PyTree, ...]](), examples
        for batch, real in source.batches(min(source.batch_rows(self.batch_size), examples)):
            rows = min(left, int(real.sum()))
            inputs.append(self.objective.inputs_of(jax.tree.map(lambda x, rows=rows: x[:rows], batch)))
            left -= rows
            if left <= 0:
                break
        return inputs

    def replace(self, **fields: Any) -> Task:
        """The task with other fields."""
        return dataclasses.replace(self, **fields)


def given_metrics(metrics: Any) -> Mapping[str, Metric]:
    """``{name: Metric}``, empty for None.

    Raises:
      TypeError: it is something else.
    """
    metrics = {} if metrics is None else metrics
    require(metrics, Mapping, "Task: metrics", "a dict {name: Metric}, e.g. {'top5': metrics.mean_of(values)}")
    for name, metric in metrics.items():
        require(metric, Metric, f"Task: metrics[{name!r}]", "a Metric, e.g. metrics.mean_of(values)")
    return metrics


def _check_alike(source: Source, test: Source) -> None:
    """Raises ValueError where the examples of two parts have other leaves, shapes or dtypes."""
    own, others = ({p: (x.dtype, x.shape[1:]) for p, x in leaves_by_path(s.example).items()} for s in (source, test))
    said = lambda path, leaves: f"{leaves[path][0]}{list(leaves[path][1])}" if path in leaves else "nothing"
    for path in {**own, **others}:
        if own.get(path) != others.get(path):
            raise ValueError(
                f"Task: an example of {source.name} has {said(path, own)} at {path or 'its place'}, one of {test.name} "
                f"{said(path, others)}; the parts of a task need the same leaves, shapes and dtypes"
            )


def takes_teacher(loss: Callable[..., Any]) -> bool:
    """Whether a loss has an argument ``teacher``."""
    return "teacher" in inspect.signature(loss).parameters


def default_inputs(example: PyTree) -> Part:
    return 0 if isinstance(example, tuple | list) else _whole


def _whole(batch: PyTree) -> Any:
    return batch


def part_of(part: Part, batch: PyTree) -> Any:
    """The part of a batch that a ``Part`` names.

    Raises:
      ValueError: the batch has no such entry.
    """
    if callable(part):
        return part(batch)
    if isinstance(part, tuple):
        return tuple(part_of(each, batch) for each in part)
    try:
        return batch[part]
    except (KeyError, IndexError, TypeError) as error:
        kind = f"keys {sorted(batch)}" if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
        raise ValueError(f"the batch is {kind}, and has no entry {part!r}; name what it has (inputs=, labels=)") from error


def _inputs(part: Part, batch: PyTree) -> tuple[PyTree, ...]:
    inputs = part_of(part, batch)
    return inputs if isinstance(inputs, tuple) else (inputs,)


def loss_sums(loss: Callable[..., Any], outputs: PyTree, batch: PyTree, real: Any) -> tuple[Any, Any]:
    """``(sum, count)`` of a loss, as a ``Metric`` measures it: what ``functools.partial`` binds the loss of."""
    return summed(loss(outputs, batch), real)


def is_logits(outputs: PyTree) -> bool:
    return isinstance(outputs, jax.ShapeDtypeStruct) and bool(jnp.issubdtype(outputs.dtype, jnp.floating)) and outputs.ndim > 0


def given_outputs(outputs: PyTree) -> str:
    one = isinstance(outputs, jax.ShapeDtypeStruct)
    return f"apply gives {f'{outputs.dtype}{list(outputs.shape)}' if one else jax.tree.structure(outputs)}"


def check_same(targets: Part, outputs: PyTree, source: Source) -> None:
    """Raises ValueError where outputs have another shape than the targets."""
    wanted = np.shape(part_of(targets, source.example))[1:]
    if not is_logits(outputs) or outputs.shape[1:] != wanted:
        raise ValueError(
            f"{source.name}: targets are {['B', *wanted]}, but {given_outputs(outputs)}; give apply outputs of that shape, or "
            "name the targets"
        )
