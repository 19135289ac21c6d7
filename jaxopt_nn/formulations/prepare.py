"""From the stored form, the same everywhere, to the form that a backend runs."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax

from jaxopt_nn.formulations import cpu, table
from jaxopt_nn.tensors.base import PyTree, is_compressed


def prepare(variables: PyTree, platform: str | None = None, *, batch: int | None = None, tune: bool = False) -> PyTree:
    """Every compressed tensor in the form that ``platform`` runs; ``densify`` is equal in both forms, to the bit.

    TPU: native int4 and int2 codes, int8 for other widths. GPU: int8. CPU: int8, a matrix as [out, in], in groups as
    [groups, out, entries]; kernels of four axes, and networks whose float weights fit a cache (8 MB), hold the floats that
    they stand for, since no program on codes is faster: their bytes say so. A mask becomes zeros in a full-size tensor: no
    backend runs unstructured zeros faster. One compilation for each structure and shape of leaf.

    Args:
      variables: any pytree; other leaves pass through. Tensors of ``jax.ShapeDtypeStruct`` give such tensors.
      platform: ``"tpu"``, ``"cpu"`` or ``"gpu"``; the default backend if None.

    Raises:
      ValueError: another platform.
    """
    platform = platform or jax.default_backend()
    if platform not in table.PLATFORMS:
        raise ValueError(f"prepare(platform={platform!r}): allowed are {', '.join(map(repr, table.PLATFORMS))}")
    leaves = jax.tree.leaves(variables, is_leaf=is_compressed)
    small = sum(x.size for x in leaves if is_compressed(x)) <= cpu.SMALL

    def ready(x: Any) -> Any:
        if not is_compressed(x):
            return x
        if any(isinstance(child, jax.ShapeDtypeStruct) for child in jax.tree.leaves(x)):
            return jax.eval_shape(partial(_prepared, platform=platform, batch=batch, small=small), x)
        return _prepared(x, platform=platform, batch=batch, small=small)

    return jax.tree.map(ready, variables, is_leaf=is_compressed)


@partial(jax.jit, static_argnames=("platform", "batch", "small"))
def _prepared(tensor: Any, platform: str, batch: int | None, small: bool) -> Any:
    coded = tensor.coded()
    if coded is None:
        return tensor.densify()
    form = next(iter(table.PLATFORMS[platform].forms(coded, batch, 16, small).values()))
    return dataclasses.replace(form(coded), platform=platform)
