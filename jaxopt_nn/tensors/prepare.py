"""From the stored form, the same everywhere, to the form that a backend runs."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_nn.tensors.base import PyTree, is_compressed
from jaxopt_nn.tensors.qtensor import QTensor

#: Codes that a TPU stores and reads packed: (bits, signed) -> dtype.
NATIVE = {(4, True): jnp.int4, (4, False): jnp.uint4, (2, True): jnp.int2, (2, False): jnp.uint2}


def prepare(variables: PyTree, platform: str | None = None) -> PyTree:
    """Every compressed tensor in the form that ``platform`` runs; ``densify`` is equal in both forms, to the bit.

    TPU: native int4 and int2 codes, int8 for other widths. CPU: int8, the last two axes stored as [out, in]. GPU: int8.
    A mask becomes zeros in a full-size tensor: no backend runs unstructured zeros faster.

    Args:
      variables: any pytree; arrays pass through.
      platform: ``"tpu"``, ``"cpu"`` or ``"gpu"``; the default backend if None.

    Raises:
      ValueError: another platform.
    """
    platform = platform or jax.default_backend()
    if platform not in ("cpu", "gpu", "tpu"):
        raise ValueError(f"prepare(platform={platform!r}): allowed are 'cpu', 'gpu' and 'tpu'")
    ready = partial(_prepared, platform=platform)
    return jax.tree.map(lambda x: ready(x) if is_compressed(x) else x, variables, is_leaf=is_compressed)


@partial(jax.jit, static_argnames="platform")
def _prepared(tensor: Any, platform: str) -> Any:
    wide = tensor.expand()
    if not isinstance(wide, QTensor):
        return wide
    if platform == "tpu" and (wide.bits, wide.signed) in NATIVE:
        return dataclasses.replace(wide, codes=wide.codes.astype(NATIVE[wide.bits, wide.signed]))
    if platform == "cpu" and wide.ndim == 2:
        return dataclasses.replace(wide, codes=wide.codes.T, order=(-1, -2))
    return wide
