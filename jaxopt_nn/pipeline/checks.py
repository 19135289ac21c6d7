"""What a network and a task must be for the pipeline, said before any work is done."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_nn.coding.structure import check_storable
from jaxopt_nn.core.arguments import in_words
from jaxopt_nn.core.paths import leaves_by_path, near_misses
from jaxopt_nn.interpret.network import Network, abstract_outputs, like, network_of, untrained
from jaxopt_nn.interpret.outputs import probabilities
from jaxopt_nn.interpret.program import complaint
from jaxopt_nn.pipeline.task import Task, summed
from jaxopt_nn.tensors.base import is_compressed

PyTree = Any


def check_network(network: Any) -> Network:
    """The network with JAX arrays as variables.

    Raises:
      TypeError: it is no ``Network``; a leaf or node that can't be stored.
      ValueError: no leaf, none of floats, a compressed tensor, NaN or Inf, a path in ``still`` that is none; named by path.
    """
    network = network_of(network)
    check_storable(network.variables)
    leaves = leaves_by_path(network.variables)
    if not leaves:
        raise ValueError(
            "variables holds no array: pass the whole pytree that apply takes, e.g. what model.init returned"
        )
    for path, leaf in leaves.items():
        if is_compressed(leaf):
            raise ValueError(
                f"{path}: is a {type(leaf).__name__}; a recipe starts from floats: jaxopt_nn.densify(variables)"
            )
    for path in sorted(network.still):
        if path not in leaves:
            near = ", ".join(near_misses(path, leaves)) or "it has no leaf"
            raise ValueError(f"still: {path!r} is no leaf of the network; nearest: {near}")
    numbers = {path: leaf for path, leaf in leaves.items() if jnp.issubdtype(leaf.dtype, jnp.inexact)}
    if not numbers:
        path, leaf = next(iter(leaves.items()))
        raise ValueError(
            f"{path}: {leaf.dtype}, and no other leaf is of floats either, so there is nothing to train or compress; pass the "
            "float weights that apply takes"
        )
    for path, bad in jax.device_get(_not_finite(numbers)).items():
        if bad:
            raise ValueError(
                f"{path}: {bad} of {numbers[path].size} entries are NaN or Inf; find the training step that diverged"
            )
    return network.replace(variables=jax.tree.map(jnp.asarray, network.variables))


@jax.jit
def _not_finite(leaves: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {path: jnp.sum(~jnp.isfinite(leaf)) for path, leaf in leaves.items()}


def check_task(task: Any) -> None:
    """Raises TypeError where ``task`` is no ``Task``."""
    if not isinstance(task, Task):
        raise TypeError(f"task is {in_words(task)}; pass a Task, e.g. classification(train=(x, y), test=(x, y))")


def check_outputs(network: Network, task: Task, teacher: Network | None = None, trains: bool = True) -> None:
    """Tries the network, its teacher and the loss on abstract inputs.

    Raises:
      ValueError: ``apply`` can't take the inputs, its outputs don't fit the task, the loss or a metric fails on them, mixes
        examples, or gives nothing that can be averaged, a teacher gives other outputs, nothing to train on, or statistics that
        were never computed.
    """
    outputs = _outputs(network, task, "apply")
    if teacher is not None:
        network_of(teacher, "teacher")
        taught = _outputs(teacher, task, "the teacher")
        if jax.tree.map(lambda x: x.shape, taught) != jax.tree.map(lambda x: x.shape, outputs):
            raise ValueError(
                f"the teacher gives {_said(taught)}, the student {_said(outputs)}: distillation needs the same outputs; "
                "cut or map the teacher's in its apply"
            )
    if task.logits and (last := probabilities(network.run.program(network.variables, task.example).jaxpr)):
        raise ValueError(
            f"apply ends in a {last}: it gives probabilities, and this task's loss takes logits; return what goes into the "
            f"{last}, or pass a Task with a loss of your own"
        )
    sources = [source for source in (task.train, task.valid, task.test) if source is not None]
    if task.check is not None:
        for source in sources:
            task.check(outputs, source)
    _check_loss(network, task, outputs)
    _check_metrics(network, task, outputs)
    if not trains:
        return
    if task.train is None:
        raise ValueError("the recipe trains, and the task has no training data; pass train=, or stages of 0 epochs")
    if lost := untrained(network, task.example):
        raise ValueError(
            f"{', '.join(lost[:3])}: running statistics of a network that was never trained, and training would not move them; "
            "pass the trained statistics, or a network whose training mode moves them (jaxopt_nn.linen and nnx find it where "
            "the module has an argument such as train= or deterministic=)"
        )


def _outputs(network: Network, task: Task, what: str, rows: int = 2) -> PyTree:
    return abstract_outputs(network, *like(task.example, rows), what=what)


def _tried(what: str, function: Callable[..., Any], outputs: PyTree, batch: PyTree, *others: Any) -> Any:
    """What a function of outputs and a batch gives, abstractly."""
    try:
        return jax.eval_shape(function, outputs, batch, *others)
    except Exception as error:
        raise ValueError(f"{what} fails on outputs {_said(outputs)} and a batch {_said(batch)}: {complaint(error)}") from error


def _check_apart(what: str, values: Callable[..., Any], network: Network, task: Task, outputs: PyTree) -> None:
    """Raises ValueError where another axis than the first grows with the batch: ``[B, 1] - [B]`` is ``[B, B]``."""
    shape = lambda outputs, rows: _first(_tried(what, values, outputs, like(task.test.example, rows))).shape
    if 2 in (held := shape(outputs, 2))[1:]:
        more = shape(_outputs(network, task, "apply", rows=3), 3)
        if more[1:] != held[1:]:
            raise ValueError(
                f"{what} gives {list(held)} for 2 examples and {list(more)} for 3: it mixes examples; outputs are "
                f"{_said(outputs)}: bring them, or the targets, to one shape"
            )


def _first(found: Any) -> Any:
    """The values of what may come with weights."""
    return found[0] if isinstance(found, tuple) and len(found) == 2 else found


def _check_metrics(network: Network, task: Task, outputs: PyTree) -> None:
    """Raises ValueError where a metric fails on these outputs, or mixes examples."""
    for name, metric in task.metrics.items():
        what = f"the metric {name!r}"
        _tried(what, metric.measure, outputs, like(task.test.example, 2), like(np.zeros(2, np.float32)))
        if metric.values is not None:
            _check_apart(what, metric.values, network, task, outputs)


def _check_loss(network: Network, task: Task, outputs: PyTree) -> None:
    batch = like(task.test.example, 2)
    found = _tried("the loss", task.loss, outputs, batch)
    values = _first(found)
    if not isinstance(values, jax.ShapeDtypeStruct) or (values.ndim and values.shape[0] != 2):
        raise ValueError(
            f"the loss gives {_said(found)} for 2 examples; it must give values [2, ...], (values, weights), or a scalar"
        )
    if not jnp.issubdtype(values.dtype, jnp.floating):
        raise ValueError(f"the loss gives {values.dtype}; it must give floats")
    _tried("the loss", lambda outputs, batch, found: summed(found, None), outputs, batch, found)
    _check_apart("the loss", task.loss, network, task, outputs)


def _said(tree: PyTree) -> str:
    """Shapes and dtypes of a tree, in few words."""
    leaves = leaves_by_path(tree)
    each = [f"{path + ' ' if path else ''}{np.dtype(x.dtype).name if hasattr(x, 'dtype') else x}{list(x.shape)}"
            for path, x in list(leaves.items())[:4]]  # fmt: skip
    return ", ".join(each) + (", ..." if len(leaves) > 4 else "")
