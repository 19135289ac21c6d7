"""Weight clipping to a fixed range."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp

from jaxopt_nn.core.model import ModelInfo, Roles
from jaxopt_nn.core.transform import LeafTraits, Transform, leafwise, why_not_matrix


def clip(lo: float, hi: float) -> Transform:
    """Keeps weights in ``[lo, hi]``: the forward pass sees clipped weights, and the step projects onto the box.

    The gradient is that of ``clip``: one inside, zero outside.

    Raises:
      ValueError: not ``lo < hi``, or a bound that is no finite number.
    """
    if not (math.isfinite(lo) and math.isfinite(hi) and lo < hi):
        raise ValueError(f"clip(lo={lo}, hi={hi}): needs finite lo < hi, e.g. clip(-1.0, 1.0)")

    def takes(path: str, leaf: Any, info: ModelInfo) -> LeafTraits | str:
        reason = why_not_matrix(path, leaf, info)
        return LeafTraits(None, keeps_zeros=lo <= 0 <= hi) if reason is None else reason

    def init(path: str, leaf: Any, roles: Roles) -> tuple[Any, Any]:
        return (), ()

    def view(leaf: Any, learnt: Any, carried: Any) -> Any:
        return jnp.clip(leaf, jnp.asarray(lo, leaf.dtype), jnp.asarray(hi, leaf.dtype))

    return leafwise(takes, init, view, project=view)
