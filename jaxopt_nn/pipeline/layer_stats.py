"""Statistics of stacks of layers, streamed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_nn.core.model import StatKey
from jaxopt_nn.core.tap import LayerTap
from jaxopt_nn.interpret.layers import layer_values

PyTree = Any


def layer_stats(
    apply: Callable[..., PyTree],
    variables: PyTree,
    example: tuple[Any, ...],
    batches: Iterable[tuple[Any, ...]],
    wanted: Mapping[StatKey, LayerTap],
) -> dict[StatKey, Any]:
    """The statistics over all batches, each row counting alike.

    Args:
      example: a batch, for its shapes.
      wanted: ``{(member, stack, name): LayerTap}``.

    Raises:
      ValueError: a stack that can't be measured; NaN or Inf in a statistic.
    """
    alone = any(tap.alone for tap in wanted.values())
    names = list(dict.fromkeys(stack for _, stack, _ in wanted))

    def values(variables: PyTree, inputs: tuple[Any, ...]) -> dict[str, tuple[Any, Any]]:
        return layer_values(apply, variables, inputs, names, alone)

    def add(totals: dict[StatKey, Any], variables: PyTree, inputs: tuple[Any, ...]) -> dict[StatKey, Any]:
        ends = values(variables, inputs)
        return {key: tap.add(totals[key], *ends[key[1]]) for key, tap in wanted.items()}

    sizes = {name: before.shape[0] for name, (before, _) in jax.eval_shape(values, variables, example).items()}
    totals = {key: tap.zero(sizes[key[1]]) for key, tap in wanted.items()}
    step = jax.jit(add, donate_argnums=0)
    for inputs in batches:
        totals = step(totals, variables, inputs)
    for (_, stack, name), value in totals.items():
        if not all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(value)):
            raise ValueError(f"{stack}: NaN or Inf in the statistic {name!r}; clean the inputs or the weights")
    return totals
