"""Lookups and writes at places that may be traced, and random numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    joined,
    moved,
    must_be_zero,
    never,
    shape_of,
    sizes_of,
)
from jaxopt_nn.interpret.flow.layout import sliced


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
        axes[own.out] = picks.picked(source[own.source], own.entries)
    return [tuple(axes)]


def _gather_params(call: Call, kept: Kept) -> dict[str, Any]:
    sizes, shape = call.eqn.params["slice_sizes"], shape_of(call.eqn.invars[0])
    new = tuple(extent.size(a, kept) if n == full else n for a, n, full in zip(call.ins[0], sizes, shape, strict=True))
    return {"slice_sizes": new}


def _dynamic_slice(call: Call) -> list[Axes]:
    at, lengths = picks.window(call), shape_of(call.eqn.invars[0])
    pinned = all_but(call, [i for i, start in at.items() if start is None], "`dynamic_slice` takes some of its entries")
    axes, sizes = list(pinned[0]), call.eqn.params["slice_sizes"]
    for i, start in at.items():
        if start is not None:
            axes[i] = sliced(axes[i], lengths[i], start, start + sizes[i], 1)
    return [tuple(axes)]


def _dynamic_slice_params(call: Call, kept: Kept) -> dict[str, Any]:
    return {"slice_sizes": sizes_of(call.outs[0], kept)}


def _dynamic_update_slice(call: Call) -> list[Axes]:
    _written(call, dict(enumerate(call.ins[1])))
    return [call.ins[0]]


def _written(call: Call, part: Mapping[int, Axis]) -> None:
    """What is written along each axis of the first operand meets the entries that it takes the place of."""
    at = picks.window(call)
    for i, axis in part.items():
        full, n = call.ins[0][i], 1 if axis is None else axis.size
        if i not in at:
            joined((full, axis), call.name)
        elif (start := at[i]) is not None and (own := dims.pieces(full, (start, n, full.size - start - n))) is not None:
            joined((own[1], axis), call.name)
        else:
            dims.pin(full, f"`{call.name}` writes to its entries")
            dims.pin(axis, f"`{call.name}` writes it into a larger axis")


def _written_zeros(call: Call, zeros: Sequence[Zero], notes: Notes) -> list[Zero]:
    """Of an operation that writes one value into another."""
    return _held(call, zeros[0], zeros[1], dict(enumerate(call.ins[1])))


def _held(call: Call, old: Zero, new: Zero, part: Mapping[int, Axis]) -> list[Zero]:
    """Zero where both are; outside of what is written where the old one is."""
    if old.everywhere and new.everywhere:
        return [EVERYWHERE]
    at, scaled = picks.window(call), call.name == "scatter-mul"

    def zero(axis: Axis, i: int) -> Zero:
        inside = dims.atoms(part.get(i)) if at.get(i) is not None else dims.atoms(axis)
        ok = lambda a: old.at(a) and (scaled or a not in inside or new.at(a))
        return Zero(atoms=frozenset(filter(ok, dims.atoms(axis))))

    return [along(call.outs[0], [[zero(axis, i)] for i, axis in enumerate(call.outs[0])])]


def _scattered_zeros(call: Call, zeros: Sequence[Zero], notes: Notes) -> list[Zero]:
    """What is scattered along an axis of the updates meets in the result, as in a reduction."""
    numbers = call.eqn.params["dimension_numbers"]
    reason = f"`{call.name}` gathers its entries in places of another axis"
    kept = {*numbers.update_window_dims, *_batched_updates(call)}
    for i, axis in enumerate(call.ins[2]):
        if i not in kept:
            must_be_zero(axis, zeros[2:3] if call.name == "scatter-add" else [], notes, reason)
    return _held(call, zeros[0], zeros[2], _windows(call))


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
    batched = dict(zip(numbers.operand_batching_dims, numbers.scatter_indices_batching_dims, strict=True))
    for d, axis in enumerate(target):
        if d in batched:
            dims.tie(axis, indices[batched[d]], "`scatter` takes it together with an axis of another structure")
        elif d in numbers.inserted_window_dims:
            dims.pin(axis, "`scatter` writes to its entries")
    _written(call, _windows(call))
    rest = [axis for i, axis in enumerate(updates) if i not in numbers.update_window_dims]
    for a, b in zip(rest, indices[:-1], strict=True):
        joined((a, b), call.name)
    return [target]


def _windows(call: Call) -> dict[int, Axis]:
    """``{axis of a scatter's operand: the axis of its updates that is written along it}``."""
    numbers = call.eqn.params["dimension_numbers"]
    gone = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
    own = [d for d in range(len(call.ins[0])) if d not in gone]
    return {d: call.ins[2][i] for d, i in zip(own, numbers.update_window_dims, strict=True)}


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
    "gather": Entry(_gather, _gathered_zeros, _gather_params, arrays=picks.places),
    "dynamic_slice": Entry(_dynamic_slice, moved, _dynamic_slice_params, arrays=picks.starts),
    "dynamic_update_slice": Entry(_dynamic_update_slice, _written_zeros, arrays=picks.starts),
    **dict.fromkeys(
        "scatter scatter-add scatter-mul scatter-max scatter-min".split(),
        Entry(_scatter, _scattered_zeros, arrays=picks.starts),
    ),
    **dict.fromkeys(WHOLE, Entry(_random, never)),
}
