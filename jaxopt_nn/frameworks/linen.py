"""Flax Linen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax

PyTree = Any

if TYPE_CHECKING:
    from flax import linen as nn


def linen(model: nn.Module, variables: PyTree, **apply_kwargs: Any) -> tuple[Callable[..., PyTree], PyTree]:
    """A Linen module as ``(apply, variables)``; ``apply(variables, *inputs)`` is ``model.apply`` with ``apply_kwargs``.

    Only the collection ``params`` gets a gradient: others (``batch_stats``, ``constants``, ...) are no parameters, and
    training leaves them as they are.

    Args:
      model: an unbound module.
      variables: what ``model.init`` gave, with its collections: ``{"params": ..., "batch_stats": ...}``.
      apply_kwargs: given to every call, e.g. ``train=False`` or ``method="encode"``.

    Raises:
      TypeError: ``model`` is no module, e.g. a class of modules, or ``variables`` no dict.
      ValueError: ``variables`` has no collection ``params``: the inner tree was passed.
    """
    from flax import linen as nn

    if not isinstance(model, nn.Module):
        given = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
        raise TypeError(
            f"linen(): model is {given}; pass an instance of a Linen module first, then what its init returned"
        )
    if not isinstance(variables, Mapping):
        raise TypeError(
            f"linen(): variables is {variables!r:.60}; pass what model.init returned, a dict of collections"
        )
    if "params" not in variables:
        raise ValueError(
            f"linen(): variables has the collections {sorted(variables)}, none called 'params'; "
            "pass what model.init returned, or {'params': params}"
        )

    def apply(variables: PyTree, *inputs: Any) -> PyTree:
        seen = {name: part if name == "params" else jax.lax.stop_gradient(part) for name, part in variables.items()}
        return model.apply(seen, *inputs, **apply_kwargs)

    return apply, variables
