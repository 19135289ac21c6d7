"""From the stored form, the same everywhere, to the form that a backend runs."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax

from jaxopt_nn.tensors.base import PyTree, is_compressed

PLATFORMS = ("cpu", "gpu", "tpu")


def prepare(variables: PyTree, platform: str | None = None) -> PyTree:
    """Every compressed tensor in the form that ``platform`` runs; ``densify`` is equal in both forms, to the bit.

    TPU: native int4 and int2 codes, int8 for other widths. CPU: int8, a matrix stored as [out, in]. GPU: int8. A mask
    becomes zeros in a full-size tensor: no backend runs unstructured zeros faster. One compilation for each structure and
    shape of leaf.

    Args:
      variables: any pytree; other leaves pass through. Tensors of ``jax.ShapeDtypeStruct`` give such tensors.
      platform: ``"tpu"``, ``"cpu"`` or ``"gpu"``; the default backend if None.

    Raises:
      ValueError: another platform.
    """
    platform = platform or jax.default_backend()
    if platform not in PLATFORMS:
        raise ValueError(f"prepare(platform={platform!r}): allowed are {', '.join(map(repr, PLATFORMS))}")

    def ready(x: Any) -> Any:
        if not is_compressed(x):
            return x
        if any(isinstance(child, jax.ShapeDtypeStruct) for child in jax.tree.leaves(x)):
            return jax.eval_shape(partial(_prepared, platform=platform), x)
        return _prepared(x, platform=platform)

    return jax.tree.map(ready, variables, is_leaf=is_compressed)


@partial(jax.jit, static_argnames="platform")
def _prepared(tensor: Any, platform: str) -> Any:
    return tensor.prepared(platform)
