"""Operations that move entries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxopt_nn.interpret import jaxprs
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
    each,
    joined,
    moved,
    shape_of,
    sizes_of,
)
from jaxopt_nn.interpret.tags import reshaped_axes


def _transpose(call: Call) -> list[Axes]:
    return [tuple(call.ins[0][i] for i in call.eqn.params["permutation"])]


def _squeeze(call: Call) -> list[Axes]:
    return [tuple(a for i, a in enumerate(call.ins[0]) if i not in call.eqn.params["dimensions"])]


def _broadcast(call: Call) -> list[Axes]:
    shape, places = call.eqn.params["shape"], call.eqn.params["broadcast_dimensions"]
    axes = list(dims.fresh(shape))
    for axis, n, d in zip(call.ins[0], shape_of(call.eqn.invars[0]), places, strict=True):
        if n == shape[d]:
            axes[d] = axis
    return [tuple(axes)]


def _tile(call: Call) -> list[Axes]:
    repeated = lambda axis, n: axis if n == 1 else dims.product([*dims.fresh([n]), axis])
    return [tuple(map(repeated, call.ins[0], call.eqn.params["reps"]))]


def _tile_zeros(call: Call, zeros: Sequence[Zero], notes: Notes) -> list[Zero]:
    if zeros[0].everywhere:
        return [EVERYWHERE]
    own = frozenset(a for axis in call.ins[0] for a in dims.atoms(axis))
    return [Zero(atoms=z.atoms & own) for z in moved(call, zeros, notes)]


def _tile_params(call: Call, kept: Kept) -> dict[str, Any]:
    pairs = zip(sizes_of(call.outs[0], kept), sizes_of(call.ins[0], kept), strict=True)
    return {"reps": tuple(out // own for out, own in pairs)}


def _broadcast_zeros(call: Call, zeros: Sequence[Zero], notes: Notes) -> list[Zero]:
    if zeros[0].everywhere:
        return [EVERYWHERE]
    own = {d: axis for axis, d in zip(call.ins[0], call.eqn.params["broadcast_dimensions"], strict=True)}
    return [along(call.outs[0], [zeros[:1] if own.get(i) is axis else [NOWHERE] for i, axis in enumerate(call.outs[0])])]


def _reshape(call: Call) -> list[Axes]:
    order = jaxprs.reshape_order(call.eqn)
    old, new = [shape_of(call.eqn.invars[0])[i] for i in order], tuple(call.eqn.params["new_sizes"])
    axes = [call.ins[0][i] for i in order]
    try:
        parts = reshaped_axes(old, new)
    except Exception:  # symbolic lengths that can't be compared
        parts = [(list(range(len(old))), list(range(len(new))))]
    out: list[Axis] = [None] * len(new)
    for left, right in parts:
        sizes = [new[j] for j in right]
        own = dims.reshaped([axes[i] for i in left], sizes) if 0 not in old else None
        if own is None:
            for i in left:
                dims.pin(axes[i], "`reshape` splits it into parts that are not its own", shard=True)
            own = dims.fresh(sizes, "comes from a `reshape` that can't be followed")
        for j, axis in zip(right, own, strict=True):
            out[j] = axis
    return [tuple(out)]


def _reshape_params(call: Call, kept: Kept) -> dict[str, Any]:
    return {"new_sizes": sizes_of(call.outs[0], kept)}


def _broadcast_params(call: Call, kept: Kept) -> dict[str, Any]:
    return {"shape": sizes_of(call.outs[0], kept)}


def _slice(call: Call) -> list[Axes]:
    params = call.eqn.params
    starts, stops = params["start_indices"], params["limit_indices"]
    strides = params["strides"] or (1,) * len(starts)
    return [tuple(map(sliced, call.ins[0], shape_of(call.eqn.invars[0]), starts, stops, strides))]


def sliced(axis: Axis, n: Any, start: int, stop: int, stride: int) -> Axis:
    """The axis of a slice: a part of a sum, or with a stride the outer factor of a product."""
    if (axis is None and stop > start) or (start, stop, stride) == (0, n, 1):
        return axis
    if stride == 1:
        parts = dims.pieces(axis, (start, stop - start, n - stop))
        if parts is not None:
            return parts[1]
    elif start < stride and n % stride == 0 and -(-(stop - start) // stride) == n // stride:
        factors = dims.reshaped([axis], (n // stride, stride))
        if factors is not None:
            dims.pin(factors[1], "a slice with a stride takes some of its entries")
            return factors[0]
    dims.pin(axis, "`slice` takes some of its entries", shard=True)
    return dims.fresh([-(-(stop - start) // stride)], "is a slice that can't be followed")[0]


def _slice_params(call: Call, kept: Kept) -> dict[str, Any]:
    params = call.eqn.params
    starts, stops = list(params["start_indices"]), list(params["limit_indices"])
    strides = params["strides"] or (1,) * len(starts)
    for i, (axis, out) in enumerate(zip(call.ins[0], call.outs[0], strict=True)):
        stay = extent.entries(axis, kept)
        if stay is None:
            continue
        length = extent.size(out, kept)
        starts[i] = int(np.searchsorted(stay, starts[i])) if strides[i] == 1 else starts[i]
        stops[i] = starts[i] + (length - 1) * strides[i] + 1
    return {"start_indices": tuple(starts), "limit_indices": tuple(stops)}


def _split(call: Call) -> list[Axes]:
    at, sizes = call.eqn.params["axis"], call.eqn.params["sizes"]
    return _parted(call, at, sizes, lambda part: (part,))


def _unstack(call: Call) -> list[Axes]:
    at = call.eqn.params["axis"]
    dims.pin(call.ins[0][at], "`unstack` takes its entries apart")
    return _parted(call, at, (1,) * len(call.eqn.outvars), lambda part: ())


def _parted(call: Call, at: int, sizes: Sequence[Any], place: Callable[[Axis], tuple[Axis, ...]]) -> list[Axes]:
    axes = call.ins[0]
    parts = dims.pieces(axes[at], sizes)
    if parts is None:
        dims.pin(axes[at], f"`{call.name}` cuts it in the middle of its parts", shard=True)
        parts = list(dims.fresh(sizes, "is a part of a split that can't be followed"))
    return [(*axes[:at], *place(part), *axes[at + 1 :]) for part in parts]


def _split_params(call: Call, kept: Kept) -> dict[str, Any]:
    at = call.eqn.params["axis"]
    return {"sizes": tuple(extent.size(out[at], kept) for out in call.outs)}


def _concatenate(call: Call) -> list[Axes]:
    at = call.eqn.params["dimension"]
    return [tuple(
        dims.total(axes[i] for axes in call.ins) if i == at else joined([axes[i] for axes in call.ins], call.name)
        for i in range(len(call.ins[0]))
    )]  # fmt: skip


def _concatenate_zeros(call: Call, zeros: Sequence[Zero], notes: Notes) -> list[Zero]:
    if all(z.everywhere for z in zeros):
        return [EVERYWHERE]
    at = call.eqn.params["dimension"]
    has = [frozenset(a for axis in axes for a in dims.atoms(axis)) for axes in call.ins]

    def all_zero(axis: Axis, i: int) -> Zero:
        # of the joined axis only the parts that the atom lies in
        ok = lambda a: all(z.at(a) for z, own in zip(zeros, has, strict=True) if i != at or a in own)
        return Zero(atoms=frozenset(filter(ok, dims.atoms(axis))))

    return [along(call.outs[0], [[all_zero(axis, i)] for i, axis in enumerate(call.outs[0])])]


def _stack(call: Call) -> list[Axes]:
    at, ndim = call.eqn.params["axis"], len(call.ins[0])
    own = [joined([axes[i] for axes in call.ins], call.name) for i in range(ndim)]
    (new,) = dims.fresh([len(call.ins)], "`stack` makes it")
    return [(*own[:at], new, *own[at:])]


def _stack_zeros(call: Call, zeros: Sequence[Zero], notes: Notes) -> list[Zero]:
    at = call.eqn.params["axis"]
    inner = call._replace(outs=((*call.outs[0][:at], *call.outs[0][at + 1 :]),))
    return each(inner, zeros, notes)


def _pad(call: Call) -> list[Axes]:
    def padded(axis: Axis, n: Any, new: Any, config: tuple[int, int, int]) -> Axis:
        low, high, inside = config
        if config == (0, 0, 0):
            return axis
        if inside or low < 0 or high < 0:
            dims.pin(axis, "`pad` spreads or crops it", shard=True)
            return dims.fresh([new], "comes from a `pad` that can't be followed")[0]
        ends = [Dim(k) for k in (low, high)]
        for end in ends:
            dims.pin(end, "is padding")
        middle = Dim(1) if axis is None else axis
        return dims.total([d for d in (ends[0], middle, ends[1]) if d.size])

    shapes = zip(call.ins[0], shape_of(call.eqn.invars[0]), shape_of(call.eqn.outvars[0]), call.eqn.params["padding_config"])
    return [tuple(padded(*each) for each in shapes)]


def _pad_zeros(call: Call, zeros: Sequence[Zero], notes: Notes) -> list[Zero]:
    if not zeros[1].everywhere:  # along another axis the padding itself must be zero
        parts = [axis if config == (0, 0, 0) else None for axis, config in zip(call.outs[0], call.eqn.params["padding_config"])]
        lost = frozenset(a for axis in parts for a in dims.atoms(axis))
        if any(config != (0, 0, 0) for config in call.eqn.params["padding_config"]):
            return [Zero(atoms=z.atoms - lost) for z in moved(call, zeros, notes)]
    return moved(call, zeros, notes)


def _through(call: Call) -> list[Axes]:
    return list(call.ins)


def _through_zeros(call: Call, zeros: Sequence[Zero], notes: Notes) -> list[Zero]:
    return list(zeros)


def _rev(call: Call) -> list[Axes]:
    turned = call.eqn.params["dimensions"]
    return [tuple(dims.reverse(a) if i in turned else a for i, a in enumerate(call.ins[0]))]


#: Between devices, entry by entry; over an axis of the array itself shapes change, and none is followed.
COLLECTIVES = frozenset("pmax pmin ppermute psum psum_invariant".split())

LAYOUT: dict[str, Entry] = {
    **dict.fromkeys(("optimization_barrier", "device_put", *COLLECTIVES), Entry(_through, _through_zeros)),
    "transpose": Entry(_transpose, moved),
    "squeeze": Entry(_squeeze, moved),
    "broadcast_in_dim": Entry(_broadcast, _broadcast_zeros, _broadcast_params),
    "tile": Entry(_tile, _tile_zeros, _tile_params),
    "reshape": Entry(_reshape, moved, _reshape_params),
    "slice": Entry(_slice, moved, _slice_params),
    "split": Entry(_split, moved, _split_params),
    "unstack": Entry(_unstack, moved),
    "concatenate": Entry(_concatenate, _concatenate_zeros),
    "stack": Entry(_stack, _stack_zeros),
    "pad": Entry(_pad, _pad_zeros),
    "rev": Entry(_rev, moved),
}
