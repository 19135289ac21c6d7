"""Lookups and writes at places that may be traced, and random numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxopt_nn.interpret.flow import dims
from jaxopt_nn.interpret.flow.dims import Axes, Axis
from jaxopt_nn.interpret.flow.entry import (
    EVERYWHERE,
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
    never,
    shape_of,
)


def _gather(call: Call) -> list[Axes]:
    numbers, sizes = call.eqn.params["dimension_numbers"], call.eqn.params["slice_sizes"]
    source, indices = call.ins[:2]
    shape = shape_of(call.eqn.invars[0])
    batched = dict(zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True))
    windows: list[Axis] = []
    for d, axis in enumerate(source):
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
    return [tuple(next(window) if i in numbers.offset_dims else next(rest) for i in range(ndim))]


def _gather_params(call: Call, kept: Kept) -> dict[str, Any]:
    sizes, shape = call.eqn.params["slice_sizes"], shape_of(call.eqn.invars[0])
    new = tuple(dims.size(a, kept) if n == full else n for a, n, full in zip(call.ins[0], sizes, shape, strict=True))
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


def _written_zeros(call: Call, zeros: Sequence[Zero], notes: Notes) -> list[Zero]:
    """Of an operation that writes one value into another."""
    new = zeros[2] if call.name.startswith("scatter") else zeros[1]
    if zeros[0].everywhere and new.everywhere:
        return [EVERYWHERE]
    return [along(axes, [[both((zeros[0], new), axis)] for axis in axes]) for axes in call.outs]


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
    return [dims.fresh(shape_of(v)) for v in call.eqn.outvars]


#: Evaluated whole, with all of their entries, and cut afterwards: each unit keeps its own numbers.
WHOLE = frozenset(
    "random_bits random_seed random_wrap random_unwrap random_fold_in random_split random_clone threefry2x32".split()
)


PLACES: dict[str, Entry] = {
    "gather": Entry(_gather, moved, _gather_params),
    "dynamic_slice": Entry(_dynamic_slice, moved, _gather_params),
    "dynamic_update_slice": Entry(_dynamic_update_slice, _written_zeros),
    **dict.fromkeys("scatter scatter-add scatter-mul scatter-max scatter-min".split(), Entry(_scatter, _written_zeros)),
    **dict.fromkeys(WHOLE, Entry(_random, never)),
}
