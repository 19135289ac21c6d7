"""Nesting: what two packers in a row give."""

from __future__ import annotations

from typing import Any

from jaxopt_nn.tensors.masked import Masked


def nest(outer: Any, inner: Any) -> Any:
    """The packed leaf of a member that packed ``outer`` and a later one that packed ``inner`` from its view.

    A mask stands outermost and keeps only the kept entries of the inner tensor, or of the array that a later member gave
    which changes values and packs nothing; of two masks an entry survives both.

    Raises:
      TypeError: ``outer`` is no mask: nothing can stand inside it.
    """
    if not isinstance(outer, Masked):
        raise TypeError(f"{type(inner).__name__} can't stand inside {type(outer).__name__}; only a mask holds a tensor")
    mask = outer.keep()
    if isinstance(inner, Masked):
        return Masked.pack(mask & inner.keep(), inner.expand(), stack_axes=outer.stack_axes)
    return Masked.pack(mask, inner, stack_axes=outer.stack_axes)
