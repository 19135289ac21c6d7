"""``inspect``: what a model is made of; nothing is run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxopt_nn.core.model import ModelInfo
from jaxopt_nn.core.paths import leaves_by_path
from jaxopt_nn.interpret.leaves import as_it_stands, told
from jaxopt_nn.interpret.program import trace_model

PyTree = Any


def inspect(apply: Callable[..., PyTree], variables: PyTree, *inputs: PyTree) -> ModelInfo:
    """The sites of ``apply``, the roles of the leaves' axes, and every matrix that feeds no site, with the reason.

    Args:
      apply: pure function ``(variables, *inputs)``.
      variables: pytree of arrays, of ``jax.ShapeDtypeStruct``, or of compressed tensors.
      inputs: arrays or ``jax.ShapeDtypeStruct``.

    Returns:
      A ``ModelInfo``; printing it gives a table, a row a leaf.

    Raises:
      ValueError: no array in ``variables``, or most of the weights are closed over by ``apply``.

    Example:
      >>> def apply(v, x):
      ...     return jax.nn.relu(x @ v["up"] + v["bias"]) @ v["down"]
      >>> v = {"up": jnp.ones((4, 8)), "bias": jnp.zeros(8), "down": jnp.ones((8, 2))}
      >>> info = jn.inspect(apply, v, jax.ShapeDtypeStruct((32, 4), "float32"))
      >>> [site.name for site in info.sites], f"{sum(site.macs for site in info.sites):,} MACs"
      (['up', 'down'], '1,536 MACs')
      >>> info.roles["up"]
      Roles(stack=(), input=(0,), output=(1,), window=())
    """
    info = trace_model(apply, variables, inputs).info
    runs = {site.name: as_it_stands(site) for site in info.sites}
    return dataclasses.replace(info, report=told(info, leaves_by_path(variables), info.report, runs))
