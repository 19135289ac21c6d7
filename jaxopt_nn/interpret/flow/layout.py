"""Operations that move entries."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxopt_nn.core.matrix import Broadcast, Reshape, Reverse, Slice, Squeeze, Transpose
from jaxopt_nn.interpret.flow import dims, moves
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
from jaxopt_nn.interpret.flow.moves import Move, reshaped_axes

Shape = Sequence[Any]


# -- steps on axes -----------------------------------------------------------------------------------------------------


def _moved_axes(call: Call, moves: Callable[[Any], Sequence[Move] | None]) -> list[Axes]:
    """The axes of results that are operands after some steps."""
    out = []
    for operand, steps in moves(call.eqn) or ():
        axes, shape = call.ins[operand], shape_of(call.eqn.invars[operand])
        for step in steps:
            axes, shape = _STEPS[type(step)](axes, shape, step), step.result(shape)
        out.append(axes)
    return out


def _transpose(axes: Axes, shape: Shape, step: Transpose) -> Axes:
    return tuple(axes[i] for i in step.permutation)


def _squeeze(axes: Axes, shape: Shape, step: Squeeze) -> Axes:
    return tuple(a for i, a in enumerate(axes) if i not in step.axes)


def _broadcast(axes: Axes, shape: Shape, step: Broadcast) -> Axes:
    out = list(dims.fresh(step.shape))
    for axis, n, d in zip(axes, shape, step.dims, strict=True):
        if n == step.shape[d]:
            out[d] = axis
    return tuple(out)


def _reshape(axes: Axes, shape: Shape, step: Reshape) -> Axes:
    new = step.shape
    try:
        parts = reshaped_axes(shape, new)
    except Exception:  # symbolic lengths that can't be compared
        parts = [(list(range(len(shape))), list(range(len(new))))]
    out: list[Axis] = [None] * len(new)
    for left, right in parts:
        sizes = [new[j] for j in right]
        own = dims.reshaped([axes[i] for i in left], sizes) if 0 not in shape else None
        if own is None:
            for i in left:
                dims.pin(axes[i], "`reshape` splits it into parts that are not its own", shard=True)
            own = dims.fresh(sizes, "comes from a `reshape` that can't be followed")
        for j, axis in zip(right, own, strict=True):
            out[j] = axis
    return tuple(out)


def _slice(axes: Axes, shape: Shape, step: Slice) -> Axes:
    return tuple(map(sliced, axes, shape, step.start, step.limit, step.strides))


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


def _reverse(axes: Axes, shape: Shape, step: Reverse) -> Axes:
    return tuple(dims.reverse(a) if i in step.axes else a for i, a in enumerate(axes))


_STEPS: dict[type, Callable[[Axes, Shape, Any], Axes]] = {
    Transpose: _transpose,
    Squeeze: _squeeze,
    Broadcast: _broadcast,
    Reshape: _reshape,
    Slice: _slice,
    Reverse: _reverse,
}


# -- parts, zeros and parameters ---------------------------------------------------------------------------------------


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


def _reshape_params(call: Call, kept: Kept) -> dict[str, Any]:
    return {"new_sizes": sizes_of(call.outs[0], kept)}


def _broadcast_params(call: Call, kept: Kept) -> dict[str, Any]:
    return {"shape": sizes_of(call.outs[0], kept)}


def _slice_params(call: Call, kept: Kept) -> dict[str, Any]:
    params = call.eqn.params
    starts, stops = list(params["start_indices"]), list(params["limit_indices"])
    strides = params["strides"] or (1,) * len(starts)
    for i, (axis, out) in enumerate(zip(call.ins[0], call.outs[0], strict=True)):
        stay = dims.entries(axis, kept)
        if stay is None:
            continue
        length = dims.size(out, kept)
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
    return {"sizes": tuple(dims.size(out[at], kept) for out in call.outs)}


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


def _through_zeros(call: Call, zeros: Sequence[Zero], notes: Notes) -> list[Zero]:
    return list(zeros)


#: Between devices, entry by entry; over an axis of the array itself shapes change, and none is followed.
COLLECTIVES = frozenset("pmax pmin ppermute psum psum_invariant".split())
#: Results that are the operands, values and all.
THROUGH = frozenset("device_put optimization_barrier".split())


def _moving(moves: Callable[[Any], Sequence[Move] | None], zeros: Any = moved, params: Any = None, axes: Any = None) -> Entry:
    return Entry(axes or functools.partial(_moved_axes, moves=moves), zeros, params, moves=moves)


LAYOUT: dict[str, Entry] = {
    **dict.fromkeys(THROUGH, _moving(moves.through, _through_zeros)),
    **dict.fromkeys(COLLECTIVES, Entry(functools.partial(_moved_axes, moves=moves.through), _through_zeros)),
    "transpose": _moving(moves.transpose),
    "squeeze": _moving(moves.squeeze),
    "broadcast_in_dim": _moving(moves.broadcast, _broadcast_zeros, _broadcast_params),
    "tile": _moving(moves.tile, _tile_zeros, _tile_params),
    "reshape": _moving(moves.reshape, params=_reshape_params),
    "slice": _moving(moves.slice_, params=_slice_params),
    "rev": _moving(moves.rev),
    "split": _moving(moves.split, params=_split_params, axes=_split),
    "unstack": _moving(moves.unstack, axes=_unstack),
    "concatenate": Entry(_concatenate, _concatenate_zeros, joins=moves.concatenate),
    "stack": Entry(_stack, _stack_zeros, joins=moves.stack),
    "pad": Entry(_pad, _pad_zeros),
}
