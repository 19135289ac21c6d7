"""From the stored form, the same everywhere, to the form that a backend runs."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax

from jaxopt_nn.formulations import cpu, table, tuning
from jaxopt_nn.tensors.base import PyTree, is_compressed


def prepare(
    variables: PyTree,
    platform: str | None = None,
    *,
    batch: int | None = None,
    tune: bool = False,
    activations: int = 16,
) -> PyTree:
    """Every compressed tensor in the form that ``platform`` runs; ``densify`` is equal in both forms, to the bit.

    TPU: native int4 and int2 codes, int8 for other widths. GPU: int8. CPU: int8, a matrix as [out, in], in groups as
    [groups, out, entries]; kernels of four axes, and networks whose float weights fit a cache (8 MB), hold the floats that
    they stand for, since no program on codes is faster: their bytes say so. Signs (``Binary``) that will meet signs
    (``activations=1``) are words of 32. A mask becomes zeros in a full-size tensor: no
    backend runs unstructured zeros faster. One compilation for each structure and shape of leaf.

    ``table.choices()`` collects what a traced function will run, with its time over float's.

    Args:
      variables: any pytree; other leaves pass through. Tensors of ``jax.ShapeDtypeStruct`` give such tensors.
      platform: ``"tpu"``, ``"cpu"`` or ``"gpu"``; the default backend if None.
      batch: rows of activations that each matrix will meet, if known: on CPU, where every program on codes is slower than
        float at so many, the weight holds floats.
      tune: times the forms and programs of each matrix on this host with ``batch`` rows (8 if None), once for a shape, a
        width and a CPU model: kept in memory and in ``tuning.cache_file()``.
      activations: width of the activations that will be met: 16 (see ``arithmetic``), 32, or 1 to 8. ``Network.prepared`` goes
        by the rule at each weight.

    Raises:
      ValueError: another platform, width or batch.

    Example:
      >>> v = {"kernel": jnp.linspace(-1, 1, 64 * 64).reshape(64, 64)}
      >>> method = jn.quantize(4)
      >>> stored = method.pack(v, method.init(v))
      >>> on_tpu = jn.prepare(stored, "tpu")
      >>> stored["kernel"].codes.dtype.name, on_tpu["kernel"].codes.dtype.name  # packed bytes; the TPU's own 4-bit integers
      ('uint8', 'int4')
      >>> bool((jn.densify(stored)["kernel"] == jn.densify(on_tpu)["kernel"]).all())
      True
    """
    if activations not in (*range(1, 9), 16, 32):
        raise ValueError(f"prepare(activations={activations!r}): allowed are 1 to 8, 16 and 32")
    if batch is not None and batch < 1:
        raise ValueError(f"prepare(batch={batch!r}): a positive number of rows, or None")
    widths = jax.tree.map(lambda x: activations, variables, is_leaf=is_compressed)
    return prepare_each(variables, widths, platform, batch=batch, tune=tune)


def prepare_each(
    variables: PyTree,
    widths: PyTree,
    platform: str | None = None,
    *,
    batch: int | None = None,
    tune: bool = False,
) -> PyTree:
    """``prepare`` with a width of activations for each leaf, a tree of ``variables``' structure."""
    platform = platform or jax.default_backend()
    if platform not in table.PLATFORMS:
        raise ValueError(f"prepare(platform={platform!r}): allowed are {', '.join(map(repr, table.PLATFORMS))}")
    compressed = [x for x in jax.tree.leaves(variables, is_leaf=is_compressed) if is_compressed(x)]
    small = sum(x.size for x in compressed) <= cpu.SMALL

    def ready(x: Any, width: int) -> Any:
        if not is_compressed(x):
            return x
        if (made := x.map_parts(lambda part: ready(part, width))) is not NotImplemented:
            return made
        abstract = any(isinstance(child, jax.ShapeDtypeStruct) for child in jax.tree.leaves(x))
        form = _form(x, platform, batch, width, small, tune and not abstract)
        made = partial(_prepared, platform=platform, form=form, small=small, activations=width)
        return jax.eval_shape(made, x) if abstract else made(x)

    return jax.tree.map(ready, variables, widths, is_leaf=is_compressed)


def _form(x: Any, platform: str, batch: int | None, activations: int, small: bool, tuned: bool) -> str | None:
    """The name of the form; None for the first of the table's."""
    if activations == 1:
        return None
    if tuned and (coded := x.coded()) is not None:
        return tuning.best_form(coded, platform, batch or 8, activations, small)
    if platform != "cpu" or batch is None:
        return None
    coded = jax.eval_shape(lambda t: t.coded(), x)
    return "decoded" if coded is not None and cpu.better_decoded(coded, batch, activations) else None


@partial(jax.jit, static_argnames=("platform", "form", "small", "activations"))
def _prepared(tensor: Any, platform: str, form: str | None, small: bool, activations: int) -> Any:
    coded = tensor.coded()
    if coded is None:
        return tensor.densify()
    forms = table.PLATFORMS[platform].forms(coded, small, 1 if activations == 1 else 16)
    return dataclasses.replace(forms[form or next(iter(forms))](coded), platform=platform)
