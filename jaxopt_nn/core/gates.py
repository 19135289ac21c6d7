"""When a transform's state changes: ``every``, ``between``, ``later``, ``frozen``."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_nn.core.arguments import in_words
from jaxopt_nn.core.cuts import Cuts
from jaxopt_nn.core.model import ModelInfo
from jaxopt_nn.core.transform import PyTree, State, Transform, as_state, as_transform, followed, keep_state


def _check_steps(call: str, name: str, value: Any, least: int) -> None:
    """Raises TypeError or ValueError where a number of steps is none; ``call`` shows the order of the arguments."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{call}: {name} is {in_words(value)}; pass a whole number of steps")
    if value < least:
        raise ValueError(f"{call}: {name}={value}; allowed are whole numbers of steps from {least}")


def _gated(method: Transform, open_at: Callable[[Any], Any]) -> Transform:
    def update(params: PyTree, state: State, *, step: Any = 0, grads: PyTree | None = None) -> State:
        carried = jax.lax.cond(
            open_at(jnp.asarray(step)),
            lambda: method.update(params, state, step=step, grads=grads).carried,
            lambda: state.carried,
        )
        return State(state.learnt, carried)

    return method._replace(update=update)


def every(n: int, method: Transform, last: int | None = None) -> Transform:
    """``method`` whose ``update`` runs at steps 0, n, 2n, ... only, and at step ``last``.

    With the last step of the training as ``last``, a schedule reaches its target also where ``n`` does not divide it.

    Args:
      n: steps from one update to the next, 1 or more.
      method: any transform.
      last: a step, 0 or more; None: none besides.

    Raises:
      ValueError: ``n`` below 1, ``last`` below 0.

    Example:
      >>> method = jn.every(2, jn.prune(sparsity=lambda step: 0.25 * step))
      >>> v = {"kernel": jnp.array([[1.0, 2.0], [3.0, 4.0]])}
      >>> state = method.init(v)
      >>> for step in range(4):
      ...     state = method.update(v, state, step=step)
      ...     print(step, float((method.view(v, state)["kernel"] == 0).mean()))
      0 0.0
      1 0.0
      2 0.5
      3 0.5
    """
    call = "every(n, method, last=None)"
    _check_steps(call, "n", n, 1)
    if last is not None:
        _check_steps(call, "last", last, 0)
    return _gated(as_transform(method, "every: method"), lambda step: (step % n == 0) | (last is not None and step == last))


def between(start: int, stop: int, method: Transform) -> Transform:
    """``method`` whose ``update`` runs at steps ``start <= step <= stop`` only.

    Args:
      start, stop: steps, both included.
      method: any transform.

    Raises:
      ValueError: not ``0 <= start <= stop``.

    Example:
      >>> method = jn.between(1, 2, jn.prune(sparsity=lambda step: 0.25 * step))
      >>> v = {"kernel": jnp.array([[1.0, 2.0], [3.0, 4.0]])}
      >>> state = method.init(v)
      >>> for step in range(4):
      ...     state = method.update(v, state, step=step)
      ...     print(step, float((method.view(v, state)["kernel"] == 0).mean()))
      0 0.0
      1 0.25
      2 0.5
      3 0.5
    """
    call = "between(start, stop, method)"
    _check_steps(call, "start", start, 0)
    _check_steps(call, "stop", stop, start)
    return _gated(as_transform(method, "between: method"), lambda step: (step >= start) & (step <= stop))


def later(steps: int, method: Transform) -> Transform:
    """``method`` whose ``update`` counts from ``steps`` on: a training that goes on where another one of that length ended.

    Its state is that of the training before. ``init`` gives that of ``method``, at its own step 0, until the first ``update``.

    Args:
      steps: of the training before, 0 or more; at step ``t`` ``method`` is told ``steps + t``.
      method: any transform.

    Example:
      >>> method = jn.later(2, jn.prune(sparsity=lambda step: 0.25 * step))
      >>> v = {"kernel": jnp.array([[1.0, 2.0], [3.0, 4.0]])}
      >>> state = method.init(v)
      >>> for step in (0, 1):
      ...     state = method.update(v, state, step=step)
      ...     print(step, float((method.view(v, state)["kernel"] == 0).mean()))
      0 0.5
      1 0.75
    """
    _check_steps("later(steps, method)", "steps", steps, 0)
    method = as_transform(method, "later: method")

    def update(params: PyTree, state: State, *, step: Any = 0, grads: PyTree | None = None) -> State:
        return method.update(params, state, step=step + steps, grads=grads)

    traits = method.traits._replace(pending=lambda step: method.traits.pending(step + steps))
    return method._replace(update=update, traits=traits)


def frozen(method: Transform) -> Transform:
    """``method`` whose state no longer changes: an earlier stage of a recipe.

    All of its state is ``carried``, as a state of ``method``: ``State(learnt=(), carried=State(learnt, carried))``. So no
    optimizer sees what was learnt, and neither weight decay nor a projection can move it.

    Example:
      >>> v = {"kernel": jnp.array([[1.0, 2.0], [3.0, 4.0]])}
      >>> pruned = jn.prune(sparsity=jn.cubic(0.5, end=1))
      >>> state = pruned.update(v, pruned.init(v), step=1)
      >>> kept = jn.frozen(pruned)
      >>> state = kept.update(v, jn.State((), state), step=0)  # where the schedule says 0
      >>> kept.view(v, state)["kernel"]
      Array([[0., 0.],
             [3., 4.]], dtype=float32)
    """

    method = as_transform(method, "frozen: method")

    def thawed(fn: Callable[[PyTree, State], Any]) -> Callable[[PyTree, State], Any]:
        return lambda params, state: fn(params, as_state(state, method.traits.name).carried)

    def init(params: PyTree, info: ModelInfo = ModelInfo()) -> State:
        return State((), method.init(params, info))

    def follows(state: State, cuts: Cuts) -> State:
        return state if cuts.moments is not None else State((), followed(method, state.carried, cuts))

    traits = method.traits._replace(
        needs=method.traits.needs - {"grads"}, pending=lambda step: None, facts=thawed(method.traits.facts), follows=follows
    )
    project = lambda params, state: (method.project(params, state.carried)[0], ())
    return Transform(init, keep_state, thawed(method.view), project, thawed(method.pack), traits)
