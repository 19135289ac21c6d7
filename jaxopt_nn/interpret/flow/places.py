"""Lookups and writes at places that may be traced, and random numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxopt_nn.interpret.flow import dims, extent, picks
from jaxopt_nn.interpret.flow.dims import Axes, Axis
from jaxopt_nn.interpret.flow.entry import (
    EVERYWHERE,
    NOWHERE,
    Call,
    Entry,
    Kept,
    Notes,
    Zero,
    all_but,
    along,
    both,
    joined,
    moved,
    must_be_zero,
    never,
    shape_of,
)


def _gather(call: Call) -> list[Axes]:
    numbers, sizes = call.eqn.params["dimension_numbers"], call.eqn.params["slice_sizes"]
    source, indices = call.ins[:2]
    shape = shape_of(call.eqn.invars[0])
    batched = dict(zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True))
    own = picks.pick(call)
    windows: list[Axis] = []
    for d, axis in enumerate(source):
        if own is not None and d == own.source:
            continue
        if d in batched:
            dims.tie(axis, indices[batched[d]], "`gather` takes it together with an axis of another structure")
        elif sizes[d] == shape[d] and d not in numbers.collapsed_slice_dims:
            windows.append(axis)
        else:
            dims.pin(axis, "`gather` looks its entries up")
            if d not in numbers.collapsed_slice_dims:
                windows.append(dims.fresh([sizes[d]], "is a window of a lookup")[0])
    window, rest = iter(windows), iter(indices[:-1])
    ndim = call.eqn.outvars[0].aval.ndim
    axes = [next(window) if i in numbers.offset_dims else next(rest) for i in range(ndim)]
    if own is not None:
        axes[own.out] = picks.picked(source[own.source], own.index)
    return [tuple(axes)]


def _gather_params(call: Call, kept: Kept) -> dict[str, Any]:
    sizes, shape = call.eqn.params["slice_sizes"], shape_of(call.eqn.invars[0])
    new = tuple(extent.size(a, kept) if n == full else n for a, n, full in zip(call.ins[0], sizes, shape, strict=True))
    return {"slice_sizes": new}


def _dynamic_slice(call: Call) -> list[Axes]:
    sizes, shape = call.eqn.params["slice_sizes"], shape_of(call.eqn.invars[0])
    cut = [i for i, (n, full) in enumerate(zip(sizes, shape, strict=True)) if n != full]
    return all_but(call, cut, "`dynamic_slice` takes some of its entries")


def _dynamic_update_slice(call: Call) -> list[Axes]:
    whole, part = call.ins[:2]
    shapes = [shape_of(v) for v in call.eqn.invars[:2]]
    for a, b, n, full in zip(whole, part, shapes[1], shapes[0], strict=True):
        if n == full:
            joined((a, b), call.name)
        else:
            dims.pin(a, "`dynamic_update_slice` writes some of its entries")
            dims.pin(b, "`dynamic_update_slice` writes it into a larger axis")
    return [whole]


def _written_zeros(call: Call, zeros: Sequence[Zero], notes: Notes, new: int = 1) -> list[Zero]:
    """Of an operation that writes one value into another."""
    if zeros[0].everywhere and zeros[new].everywhere:
        return [EVERYWHERE]
    return [along(axes, [[both((zeros[0], zeros[new]), axis)] for axis in axes]) for axes in call.outs]


def _scattered_zeros(call: Call, zeros: Sequence[Zero], notes: Notes) -> list[Zero]:
    """What is scattered along an axis of the updates meets in the result, as in a reduction."""
    numbers = call.eqn.params["dimension_numbers"]
    reason = f"`{call.name}` gathers its entries in places of another axis"
    kept = {*numbers.update_window_dims, *_batched_updates(call)}
    for i, axis in enumerate(call.ins[2]):
        if i not in kept:
            must_be_zero(axis, zeros[2:3] if call.name == "scatter-add" else [], notes, reason)
    return _written_zeros(call, zeros, notes, new=2)


def _batched_updates(call: Call) -> list[int]:
    """The axes of the updates that are batch axes of the indices."""
    numbers = call.eqn.params["dimension_numbers"]
    rest = [i for i in range(len(call.ins[2])) if i not in numbers.update_window_dims]
    return [rest[d] for d in numbers.scatter_indices_batching_dims]


def _gathered_zeros(call: Call, zeros: Sequence[Zero], notes: Notes) -> list[Zero]:
    """Zero along the axes that come from the operand, if what stands for places out of bounds is not another number."""
    params, numbers = call.eqn.params, call.eqn.params["dimension_numbers"]
    fill = params["fill_value"] if "FILL" in str(params["mode"]) else 0
    whole = call.eqn.outvars[0].aval.dtype.kind in "iub"
    if (fill is None and whole) or (fill is not None and fill == fill and fill != 0):  # NaN stays NaN, cut or not
        return [NOWHERE]
    if zeros[0].everywhere:
        return [EVERYWHERE]
    rest = [i for i in range(len(call.outs[0])) if i not in numbers.offset_dims]
    own = {*numbers.offset_dims, *(rest[d] for d in numbers.start_indices_batching_dims)}
    if (taken := picks.pick(call)) is not None:
        own.add(taken.out)
    return [along(call.outs[0], [zeros[:1] if i in own else [NOWHERE] for i in range(len(call.outs[0]))])]


def _scatter(call: Call) -> list[Axes]:
    numbers = call.eqn.params["dimension_numbers"]
    target, indices, updates = call.ins[:3]
    shape, new = shape_of(call.eqn.invars[0]), shape_of(call.eqn.invars[2])
    batched = dict(zip(numbers.operand_batching_dims, numbers.scatter_indices_batching_dims, strict=True))
    windows = iter(numbers.update_window_dims)
    for d, axis in enumerate(target):
        if d in batched:
            dims.tie(axis, indices[batched[d]], "`scatter` takes it together with an axis of another structure")
        elif d in numbers.inserted_window_dims:
            dims.pin(axis, "`scatter` writes to its entries")
        elif new[at := next(windows)] == shape[d]:
            joined((axis, updates[at]), call.name)
        else:
            dims.pin(axis, "`scatter` writes to its entries")
            dims.pin(updates[at], "`scatter` writes it into a larger axis")
    rest = [axis for i, axis in enumerate(updates) if i not in numbers.update_window_dims]
    for a, b in zip(rest, indices[:-1], strict=True):
        joined((a, b), call.name)
    return [target]


def _random(call: Call) -> list[Axes]:
    for axes in call.ins:
        for axis in axes:
            dims.pin(axis, f"`{call.name}` draws numbers by it", shard=True)
    return [dims.fresh(shape_of(v)) for v in call.eqn.outvars]


#: Evaluated whole, with all of their entries, and cut afterwards: each unit keeps its own numbers.
WHOLE = frozenset(
    "random_bits random_seed random_wrap random_unwrap random_fold_in random_split random_clone threefry2x32".split()
)


PLACES: dict[str, Entry] = {
    "gather": Entry(_gather, _gathered_zeros, _gather_params, picks.places),
    "dynamic_slice": Entry(_dynamic_slice, moved, _gather_params),
    "dynamic_update_slice": Entry(_dynamic_update_slice, _written_zeros),
    **dict.fromkeys("scatter scatter-add scatter-mul scatter-max scatter-min".split(), Entry(_scatter, _scattered_zeros)),
    **dict.fromkeys(WHOLE, Entry(_random, never)),
}
