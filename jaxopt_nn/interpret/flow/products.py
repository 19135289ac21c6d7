"""Dots and convolutions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxopt_nn.interpret.flow import dims, extent
from jaxopt_nn.interpret.flow.dims import Axes, Axis, Dim
from jaxopt_nn.interpret.flow.entry import (
    EVERYWHERE,
    NOWHERE,
    Call,
    Entry,
    Kept,
    Notes,
    Zero,
    along,
    joined,
    must_be_zero,
    shape_of,
)


def dot_axes(call: Call) -> tuple[list[tuple[Axis, Axis]], list[tuple[Axis, Axis]], list[Axis], list[Axis]]:
    """The pairs of contracted and of batch axes of a dot, and the free axes of either side."""
    contracting, batch = call.eqn.params["dimension_numbers"]
    x, w = call.ins[:2]
    pairs = lambda numbers: [(x[i], w[j]) for i, j in zip(*numbers, strict=True)]
    free = [
        [axis for i, axis in enumerate(own) if i not in (*c, *b)] for own, c, b in zip((x, w), contracting, batch, strict=True)
    ]
    return pairs(contracting), pairs(batch), free[0], free[1]


def _dot(call: Call) -> list[Axes]:
    contracted, batch, left, right = dot_axes(call)
    for a, b in contracted:
        dims.tie(a, b, f"`{call.name}` contracts it with an axis of another structure")
    return [(*(joined(pair, call.name) for pair in batch), *left, *right)]


def _dot_zeros(call: Call, zeros: Sequence[Zero], notes: Notes) -> list[Zero]:
    if zeros[0].everywhere or zeros[1].everywhere:
        return [EVERYWHERE]
    contracted, batch, left, right = dot_axes(call)
    for a, _ in contracted:
        must_be_zero(a, zeros[:2], notes, "a dot sums over it, and it is not zero there")
    sources = [zeros[:2]] * len(batch) + [zeros[:1]] * len(left) + [zeros[1:2]] * len(right)
    return [along(call.outs[0], sources)]


class Ragged(NamedTuple):
    """The axes of a product of rows with one of several matrices: contracted pairs, of the rows, of the matrices."""

    contracted: list[tuple[Axis, Axis]]
    rows: list[Axis]
    made: list[Axis]
    which: tuple[Axis, ...]


def ragged_axes(call: Call) -> Ragged | None:
    """None where it sums over ragged rows, or has batch axes."""
    numbers = call.eqn.params["ragged_dot_dimension_numbers"]
    (left, right), (batch, _) = numbers.dot_dimension_numbers
    (row,), groups = numbers.lhs_ragged_dimensions, tuple(numbers.rhs_group_dimensions)
    if batch or row in left or len(groups) != 1:
        return None
    x, w = call.ins[:2]
    pairs = [(x[i], w[j]) for i, j in zip(left, right, strict=True)]
    made = [axis for i, axis in enumerate(w) if i not in (*right, *groups)]
    return Ragged(pairs, [axis for i, axis in enumerate(x) if i not in left], made, (x[row], w[groups[0]], *call.ins[2]))


def _ragged(call: Call) -> list[Axes]:
    own = ragged_axes(call)
    if own is None:
        return [()]  # can't be followed
    for a, b in own.contracted:
        dims.tie(a, b, f"`{call.name}` contracts it with an axis of another structure")
    for axis in own.which:
        dims.pin(axis, f"`{call.name}` tells groups apart by it")
    return [(*own.rows, *own.made)]


def _ragged_zeros(call: Call, zeros: Sequence[Zero], notes: Notes) -> list[Zero]:
    own = ragged_axes(call)
    if own is None:
        return [NOWHERE]
    if zeros[0].everywhere or zeros[1].everywhere:
        return [EVERYWHERE]
    for a, _ in own.contracted:
        must_be_zero(a, zeros[:2], notes, "a dot sums over it, and it is not zero there")
    return [along(call.outs[0], [zeros[:1]] * len(own.rows) + [zeros[1:2]] * len(own.made))]


class Conv(NamedTuple):
    """The axes of a convolution: of its operand, its kernel and its result."""

    batch: Axis
    features: Axis
    window: tuple[Axis, ...]
    inputs: Axis
    outputs: Axis
    taps: tuple[Axis, ...]


def conv_axes(call: Call) -> Conv:
    numbers = call.eqn.params["dimension_numbers"]
    x, w = (tuple(axes[i] for i in spec) for axes, spec in zip(call.ins, (numbers.lhs_spec, numbers.rhs_spec)))
    return Conv(x[0], x[1], x[2:], w[1], w[0], w[2:])


def _conv(call: Call) -> list[Axes]:
    params, own = call.eqn.params, conv_axes(call)
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    out = list(dims.fresh(shape_of(call.eqn.outvars[0])))
    for place, (axis, tap, d) in enumerate(zip(own.window, own.taps, numbers.out_spec[2:], strict=True)):
        if _pointwise(params, place, shape_of(call.eqn.invars[1])[numbers.rhs_spec[2 + place]]):
            out[d] = axis
            continue
        for spatial in (axis, tap, out[d]):
            dims.pin(spatial, "is a spatial axis of a convolution")
    out[numbers.out_spec[0]], out[numbers.out_spec[1]] = own.batch, own.outputs
    if params["batch_group_count"] != 1:
        for axis in (own.batch, own.outputs, own.features, own.inputs):
            dims.pin(axis, "a convolution splits its batch into groups", shard=True)
        (out[numbers.out_spec[0]],) = dims.fresh([shape_of(call.eqn.outvars[0])[numbers.out_spec[0]]], "a batch group")
        return [tuple(out)]
    if groups == 1:
        dims.tie(own.features, own.inputs, "a convolution contracts it with an axis of another structure")
        return [tuple(out)]
    group = Dim(groups)
    outputs = shape_of(call.eqn.invars[1])[numbers.rhs_spec[0]] // groups
    dims.tie(own.features, dims.product([group, own.inputs]), "a grouped convolution splits it otherwise")
    dims.tie(own.outputs, dims.product([group, *dims.fresh([outputs])]), "a grouped convolution splits it otherwise")
    return [tuple(out)]


def _pointwise(params: Mapping[str, Any], i: int, taps: int) -> bool:
    """Whether a convolution works on single places of spatial axis ``i``."""
    plain = params["window_strides"][i] == 1 and tuple(params["padding"][i]) == (0, 0) and params["lhs_dilation"][i] == 1
    return bool(plain and taps == 1)


def conv_groups(call: Call) -> set[Dim]:
    """The atoms of the features that tell a convolution's groups apart."""
    if call.eqn.params["feature_group_count"] == 1:
        return set()
    own = conv_axes(call)
    return set(dims.atoms(own.features)).difference(dims.atoms(own.inputs))


def _conv_zeros(call: Call, zeros: Sequence[Zero], notes: Notes) -> list[Zero]:
    if zeros[0].everywhere or zeros[1].everywhere:
        return [EVERYWHERE]
    own, groups = conv_axes(call), conv_groups(call)
    must_be_zero(own.inputs, zeros[:2], notes, "a convolution sums over it, and it is not zero there")
    numbers = call.eqn.params["dimension_numbers"]
    sources: list[list[Zero]] = [[zeros[0]]] * len(call.outs[0])
    made = frozenset(a for a in dims.atoms(own.outputs) if zeros[1].at(a) or (a in groups and zeros[0].at(a)))
    sources[numbers.out_spec[1]] = [Zero(atoms=made)]
    for i in numbers.out_spec[2:]:
        sources[i] = [NOWHERE]
    return [along(call.outs[0], sources)]


def _conv_params(call: Call, kept: Kept) -> dict[str, Any]:
    if call.eqn.params["feature_group_count"] == 1:
        return {}
    own = conv_axes(call)
    return {"feature_group_count": extent.size(own.features, kept) // extent.size(own.inputs, kept)}


PRODUCTS: dict[str, Entry] = {
    "dot_general": Entry(_dot, _dot_zeros),
    "ragged_dot_general": Entry(_ragged, _ragged_zeros),
    "conv_general_dilated": Entry(_conv, _conv_zeros, _conv_params),
}
