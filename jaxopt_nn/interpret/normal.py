"""The normal form of a site: activation ``[S..., rows..., I]``, weight ``[S..., I, O]``, output ``[S..., rows..., O]``.

For a dot, S are the batch axes along which the weight really varies (experts, ``vmap`` over layers), in the order of the
dimension numbers; batch axes along which it is a broadcast copy are rows. I are the contracted axes, flattened in the order
of the dimension numbers, O the weight's free axes. For a convolution S is the group where there are several, I one patch
(input feature slowest), O the output features of a group. For a lookup the rows are ids: I is the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_nn.core.matrix import Matrix, Reshape, Slice, Transpose
from jaxopt_nn.core.model import Site
from jaxopt_nn.interpret.tags import Source


def stacked_axes(kind: str, eqn: Any, weight: int | None, sources: Sequence[Source]) -> tuple[int, ...]:
    """Which batch axes of a dot or a lookup, by their place in the dimension numbers, the weight varies along.

    The first leaf whose axes are known says so. Where none is, they are rows: nothing tells the axis of a stack from one that
    is as long as the batch, and a statistic must not change its shape with that.
    """
    if weight is None:
        return ()
    if kind == "gather":
        return tuple(range(len(eqn.params["dimension_numbers"].operand_batching_dims)))
    if kind == "conv":
        return ()
    batch = eqn.params["dimension_numbers"][1][weight]
    known = next((s.axes for s in sources if s.axes is not None), None)
    return () if known is None else tuple(n for n, a in enumerate(batch) if known[a])


def groups(params: Any) -> int:
    """How many groups of features a convolution keeps apart."""
    return params["feature_group_count"]


def indexed_axes(params: Any, shape: Sequence[int]) -> tuple[int, ...]:
    """The axes of a gather's operand along which its ids count; one that is taken whole has only the index 0."""
    sizes = params["slice_sizes"]
    return tuple(a for a in params["dimension_numbers"].start_index_map if sizes[a] != shape[a])


def matrix(kind: str, eqn: Any, weight: int, source: Source, stacked: Sequence[int], slots: Sequence[Any]) -> Matrix | str:
    """How a site reads the leaf ``source``, or why that can't be said.

    Args:
      stacked: batch axes that the site keeps apart. slots: of the site.
    """
    if source.steps is None:
        return f"{source.path} {source.lost}"
    if source.slots != tuple(slots):
        return f"{source.path} meets another leaf, of which a loop or an index takes other entries"
    shape = tuple(eqn.invars[weight].aval.shape)
    found = {"dot": _of_dot, "conv": _of_kernel, "gather": _of_table}[kind](eqn, weight, shape, stacked)
    if isinstance(found, str):
        return found
    steps, own = found
    return Matrix(source.shape, (*source.steps, *steps), (*(n for _, n in slots), *own), len(slots))


def _of_dot(eqn: Any, weight: int, shape: tuple[int, ...], stacked: Sequence[int]) -> Any:
    contracting, batch = (pair[weight] for pair in eqn.params["dimension_numbers"])
    kept = [batch[n] for n in stacked]
    copies = [a for n, a in enumerate(batch) if n not in stacked]
    steps: list[Any] = []
    if copies:  # equal along them: the first copy stands for all
        limit = tuple(1 if a in copies else n for a, n in enumerate(shape))
        steps.append(Slice((0,) * len(shape), limit, (1,) * len(shape)))
    free = [a for a in range(len(shape)) if a not in (*contracting, *batch)]
    own = (
        *(shape[a] for a in kept), math.prod(shape[a] for a in contracting), math.prod(shape[a] for a in free),
    )  # fmt: skip
    return [*steps, Transpose((*copies, *kept, *contracting, *free)), Reshape(own)], own


def _of_kernel(eqn: Any, weight: int, shape: tuple[int, ...], stacked: Sequence[int]) -> Any:
    if weight != 1:
        return "the weight is the image of a convolution, not its kernel"
    if eqn.params["batch_group_count"] != 1:
        return "the convolution has groups of examples"
    spec, count = eqn.params["dimension_numbers"].rhs_spec, groups(eqn.params)
    inputs, outputs = math.prod(shape[a] for a in spec[1:]), shape[spec[0]]
    order = Transpose((spec[1], *spec[2:], spec[0]))
    if count == 1:
        return [order, Reshape((inputs, outputs))], (inputs, outputs)
    split = (inputs, count, outputs // count)
    return [order, Reshape(split), Transpose((1, 0, 2))], (count, inputs, outputs // count)


def _of_table(eqn: Any, weight: int, shape: tuple[int, ...], stacked: Sequence[int]) -> Any:
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    batch, indexed = tuple(numbers.operand_batching_dims), indexed_axes(eqn.params, shape)
    rest = [a for a in range(len(shape)) if a not in (*batch, *indexed)]
    if any(sizes[a] != 1 for a in indexed) or any(sizes[a] != shape[a] for a in rest):
        return "the lookup takes windows, not whole rows"
    own = (
        *(shape[a] for a in batch), math.prod(shape[a] for a in indexed), math.prod(shape[a] for a in rest),
    )  # fmt: skip
    return [Transpose((*batch, *indexed, *rest)), Reshape(own)], own


# -- values ------------------------------------------------------------------------------------------------------------


def activation_axes(site: Site) -> tuple[list[int], list[int], list[int]]:
    """The axes of a dot's activation: stack, rows, contracted (in the order of the normal form)."""
    at = 1 - (1 if site.weight is None else site.weight)
    contracting, batch = (list(pair[at]) for pair in site.params["dimension_numbers"])
    stack = [batch[n] for n in site.stacked]
    ndim = len(site.shapes[at])
    rows = [a for a in batch if a not in stack] + [a for a in range(ndim) if a not in (*contracting, *batch)]
    return stack, rows, contracting


def activation(site: Site, lhs: Any, rhs: Any) -> Any:
    """The site's activation as ``[S..., rows..., I]``, a lookup's ids as ``[S..., rows...]``; of two activations the left one.

    Patches of a convolution have rows ``[B, spatial...]``; ids of several indexed axes are those of the flattened vocabulary.
    """
    if site.kind == "gather":
        return _ids(site, rhs)
    if site.kind == "conv":
        return _patches(site, lhs)
    x = rhs if site.weight == 0 else lhs
    stack, rows, contracted = activation_axes(site)
    x = x.transpose((*stack, *rows, *contracted))
    return x.reshape((*x.shape[: len(stack) + len(rows)], -1))


def _patches(site: Site, x: Any) -> Any:
    numbers = site.params["dimension_numbers"]
    window = [site.shapes[1][i] for i in numbers.rhs_spec[2:]]
    patches = jax.lax.conv_general_dilated_patches(
        x, window, site.params["window_strides"], site.params["padding"],
        lhs_dilation=site.params["lhs_dilation"], rhs_dilation=site.params["rhs_dilation"],
        dimension_numbers=jax.lax.ConvDimensionNumbers(numbers.lhs_spec, tuple(range(x.ndim)), numbers.lhs_spec),
        precision=jax.lax.Precision.HIGHEST,
    )  # fmt: skip
    order = (numbers.lhs_spec[0], *numbers.lhs_spec[2:], numbers.lhs_spec[1])
    patches = patches.transpose(order)
    return _grouped(patches, groups(site.params))


def _grouped(x: Any, count: int) -> Any:
    """``[..., G n]`` as ``[G, ..., n]``; as it is for one group."""
    return x if count == 1 else jnp.moveaxis(x.reshape((*x.shape[:-1], count, -1)), -2, 0)


def _ids(site: Site, indices: Any) -> Any:
    numbers, shape = site.params["dimension_numbers"], site.shapes[0]
    batching = tuple(numbers.start_indices_batching_dims)
    order = (*batching, *(a for a in range(indices.ndim - 1) if a not in batching), indices.ndim - 1)
    indices = indices.transpose(order)
    flat: Any = 0
    for a in indexed_axes(site.params, shape):
        flat = flat * shape[a] + indices[..., list(numbers.start_index_map).index(a)]
    return flat


def output(site: Site, out: Any) -> Any:
    """The site's output as ``[S..., rows..., O]``."""
    if site.kind == "conv":
        spec = site.params["dimension_numbers"].out_spec
        return _grouped(out.transpose((spec[0], *spec[2:], spec[1])), groups(site.params))
    if site.kind == "gather":
        numbers = site.params["dimension_numbers"]
        rows = [a for a in range(out.ndim) if a not in numbers.offset_dims]
        batching = [rows[a] for a in numbers.start_indices_batching_dims]
        rows = [a for a in rows if a not in batching]
        out = out.transpose((*batching, *rows, *numbers.offset_dims))
        return out.reshape((*out.shape[: len(batching) + len(rows)], -1))
    weight = 1 if site.weight is None else site.weight
    numbers = site.params["dimension_numbers"]
    n_batch = len(numbers[1][0])
    n_left = len(site.shapes[0]) - len(numbers[0][0]) - n_batch
    left, right = list(range(n_batch, n_batch + n_left)), list(range(n_batch + n_left, out.ndim))
    free, own = (left, right) if weight == 1 else (right, left)
    stack = list(site.stacked)
    copies = [a for a in range(n_batch) if a not in stack]
    out = out.transpose((*stack, *copies, *free, *own))
    return out.reshape((*out.shape[: n_batch + len(free)], -1))


def row_axes(site: Site) -> list[int]:
    """Which axis of the activation (of the indices, for a lookup) each row axis of the normal form is."""
    if site.kind == "gather":
        batching = site.params["dimension_numbers"].start_indices_batching_dims
        return [a for a in range(len(site.shapes[1]) - 1) if a not in batching]
    if site.kind == "conv":
        return [site.params["dimension_numbers"].lhs_spec[0]]
    return activation_axes(site)[1]
