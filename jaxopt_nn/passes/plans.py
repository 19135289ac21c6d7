"""Plans that are made on data at once: the units that are dead there, and the weakest."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from jaxopt_nn.core.model import Site
from jaxopt_nn.core.passes import Plan
from jaxopt_nn.core.paths import leaves_by_path
from jaxopt_nn.interpret.inspect import inspect
from jaxopt_nn.passes.activity import coupled, free, named, streamed
from jaxopt_nn.passes.choice import Choice, dead, weak
from jaxopt_nn.passes.scores import Score, mean_activation
from jaxopt_nn.passes.scores.base import taps_of

PyTree = Any


def dead_units(
    apply: Callable[..., PyTree], variables: PyTree, inputs: Any, threshold: float = 0.0, batch_size: int = 512
) -> Plan:
    """Units whose ``|output|`` stays at or below ``threshold`` on all of ``inputs``; 0: dead, e.g. after a ReLU.

    Without units that are dead the outputs on ``inputs`` are as they were. At least one unit of a layer always stays.

    Args:
      apply: pure function ``(variables, *inputs)``.
      variables: pytree of arrays or compressed tensors.
      inputs: array ``[N, ...]``, or a tuple of arrays where ``apply`` takes several.
      threshold: at least 0.
      batch_size: examples a call.

    Returns:
      A plan: ``mask_units(plan.masks)`` sets the units to zero, ``cut_units(...).execute(network, plan)`` takes them out.

    Raises:
      ValueError: a negative threshold, no example, inputs of different lengths, a batch size below 1, NaN activations.

    Example:
      >>> v = {"up": jnp.array([[1.0, -1.0, 0.5]]), "down": jnp.ones((3, 2))}
      >>> plan = jn.dead_units(lambda v, x: jax.nn.relu(x @ v["up"]) @ v["down"], v, jnp.array([[2.0], [4.0]]))
      >>> plan.kept["up"]  # unit 1 never fires on positive inputs
      array([0, 2])
    """
    return _on_data(dead("dead_units", threshold), apply, variables, inputs, batch_size)


def weak_units(
    apply: Callable[..., PyTree],
    variables: PyTree,
    inputs: Any,
    share: float,
    score: Score = mean_activation,
    batch_size: int = 512,
) -> Plan:
    """A ``share`` of the units of each layer, those of the lowest score; of equal scores the later units.

    At least one unit of a layer always stays. Shares that are no whole number of units are rounded, so that over all layers the
    number that goes is nearest to the share.

    Args:
      share: of the units, in [0, 1).
      score: any callable of the signature ``Score`` (``jn.scores``), but for those of the loss.
      apply, variables, inputs, batch_size: as in ``dead_units``.

    Returns:
      A plan, as ``dead_units``.

    Raises:
      ValueError: share outside [0, 1): at 1 fewer units than one would stay; so many can't go; a score of another shape; as
        ``dead_units``.

    Example:
      >>> v = {"up": jnp.array([[1.0, 0.1, 0.5, 0.2]]), "down": jnp.ones((4, 2))}
      >>> apply = lambda v, x: jax.nn.relu(x @ v["up"]) @ v["down"]
      >>> plan = jn.weak_units(apply, v, jnp.array([[2.0], [4.0]]), share=0.5)
      >>> plan.kept["up"]
      array([0, 2])
    """
    return _on_data(weak("weak_units", share, score), apply, variables, inputs, batch_size)


def _on_data(choice: Choice, apply: Callable[..., PyTree], variables: PyTree, inputs: Any, batch_size: int) -> Plan:
    groups, head, batches = coupled(apply, variables, _sliced(inputs, batch_size))
    layers = named(groups)
    read = {read.site for c in free(layers).values() for read in c.reads}
    info = dataclasses.replace(inspect(apply, variables, *head), couplings=groups)
    if read:
        asked = taps_of(choice.score)
        own: Callable[[Site], Any] = lambda site: asked(site) if site.name in read else {}
        info = dataclasses.replace(info, stats=streamed(apply, variables, batches, own))
    return choice.plan(layers, leaves_by_path(variables), head, info)


def _sliced(inputs: Any, batch_size: int) -> Iterable[tuple[Any, ...]]:
    arrays = inputs if isinstance(inputs, tuple) else (inputs,)
    lengths = {len(a) for a in arrays}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"inputs have {sorted(lengths)} examples; pass arrays of one length, at least 1")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: at least 1")
    (n,) = lengths
    return (tuple(a[i : i + batch_size] for a in arrays) for i in range(0, n, batch_size))
