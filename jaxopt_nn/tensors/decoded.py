"""The floats that codes stand for, laid out as a backend reads them fastest: a prepared form, never a stored one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from jaxopt_nn.tensors import layout
from jaxopt_nn.tensors.coded import DATA, STATIC, Coded


@partial(jax.tree_util.register_dataclass, data_fields=DATA, meta_fields=STATIC)
@dataclasses.dataclass(frozen=True)
class Decoded(Coded):
    """A tensor of codes by its values: ``codes`` are the floats, with a scale of 1; ``bits`` is the width that they had.

    Where no program on codes is as fast as the float one. It weighs what floats weigh.
    """

    scaled: ClassVar[bool] = False

    @classmethod
    def of(cls, tensor: Any, order: Sequence[int], platform: str | None) -> Decoded:
        """The values of a tensor with ``groups`` and ``bits``, its axes in ``order``: float32, or its dtype if narrower."""
        kind = tensor.dtype if tensor.dtype.itemsize < 4 else jnp.float32
        values = tensor.densify().astype(kind).transpose(order)
        # An axis with a scale for each entry may be a stack axis, which every child carries.
        ones = jnp.ones([d if d == n else 1 for d, n in zip(tensor.groups, tensor.shape)], jnp.float32)
        trimmed = layout.trimmed(order, tensor.ndim)
        dtype = tensor.dtype.name
        return cls(values, ones, None, tensor.bits, tensor.signed, dtype, order=trimmed, platform=platform)

    def levels(self, codes: Array) -> Array:
        return codes
