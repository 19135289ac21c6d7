"""Flax Linen."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

PyTree = Any

if TYPE_CHECKING:
    from flax import linen as nn


def linen(model: nn.Module, variables: PyTree, **apply_kwargs: Any) -> tuple[Callable[..., PyTree], PyTree]:
    """A Linen module as ``(apply, variables)``; ``apply(variables, *inputs)`` is ``model.apply`` with ``apply_kwargs``.

    Args:
      model: an unbound module.
      variables: what ``model.init`` gave, with its collections: ``{"params": ..., "batch_stats": ...}``.
      apply_kwargs: given to every call, e.g. ``train=False`` or ``method="encode"``.

    Raises:
      ValueError: ``variables`` has no collection ``params``: the inner tree was passed.
    """
    if "params" not in variables:
        raise ValueError(
            f"linen(): variables has the collections {sorted(variables)}, none called 'params'; "
            "pass what model.init returned, or {'params': params}"
        )

    def apply(variables: PyTree, *inputs: Any) -> PyTree:
        return model.apply(variables, *inputs, **apply_kwargs)

    return apply, variables
