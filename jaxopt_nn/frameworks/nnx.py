"""Flax NNX."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax

from jaxopt_nn.core.paths import map_with_path

PyTree = Any

if TYPE_CHECKING:
    from flax import nnx as flax_nnx


def nnx(model: flax_nnx.Module) -> tuple[Callable[..., PyTree], PyTree]:
    """An NNX module as ``(apply, variables)``; ``variables`` is a plain nested dict with no ``.value`` in its paths.

    ``apply`` is pure: what a call changes in the module (statistics, counters of random streams) is dropped. Variables
    that are no ``nnx.Param`` (running statistics, say) get no gradient. Call ``model.eval()`` first where dropout or
    BatchNorm shall be in evaluation mode.

    Raises:
      TypeError: ``model`` is no NNX module, e.g. a class of modules.
    """
    from flax import nnx as flax_nnx

    if not isinstance(model, flax_nnx.Module):
        given = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
        raise TypeError(
            f"nnx(): model is {given}; pass an instance of an NNX module, made with its rngs (a Linen module: linen())"
        )

    graph, state = flax_nnx.split(model)
    flat = flax_nnx.to_flat_state(state)
    constant = {"/".join(map(str, keys)) for keys, variable in flat if not isinstance(variable, flax_nnx.Param)}

    def still(path: str, leaf: Any) -> Any:
        return jax.lax.stop_gradient(leaf) if path in constant else leaf

    def apply(variables: PyTree, *inputs: Any) -> PyTree:
        seen = map_with_path(still, variables) if constant else variables
        return flax_nnx.merge(graph, seen)(*inputs)

    return apply, flax_nnx.to_pure_dict(state)
