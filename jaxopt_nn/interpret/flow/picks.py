"""Lookups and writes at constant places: a permutation of units, a channel shuffle, repeated heads, a part of an axis."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxopt_nn.interpret import jaxprs
from jaxopt_nn.interpret.flow import dims, extent
from jaxopt_nn.interpret.flow.dims import Axis, Dim
from jaxopt_nn.interpret.flow.entry import Call, Kept, shape_of

#: The value of what is computed from constants alone, when asked; None where it can't be told.
Known = Callable[[], Any]
#: An order in more runs than this is no concatenation of parts.
RUNS = 16


def constant(x: Any) -> Known:
    """Of a constant."""
    return lambda: None if jaxprs.is_tracer(x) else x


def results(eqn: Any, operands: Sequence[Known | None]) -> list[Known]:
    """Of the results of an equation."""

    @functools.cache
    def made() -> list[Any] | None:
        values = [None if known is None else known() for known in operands]
        if any(x is None for x in values) or eqn.effects:
            return None
        try:
            with jax.ensure_compile_time_eval():
                return jaxprs.bind(eqn, values)
        except Exception:  # a mesh axis, say, is not bound here; the model itself will tell what is wrong
            return None

    def result(i: int) -> Any:
        return None if (own := made()) is None else own[i]

    return [functools.partial(result, i) for i in range(len(eqn.outvars))]


class Pick(NamedTuple):
    """Axis ``out`` of a ``gather``'s result is axis ``source`` of its operand, of which it has the ``entries``."""

    source: int
    out: int
    entries: np.ndarray


def pick(call: Call) -> Pick | None:
    """What a ``gather`` takes along one axis at constant places, each entry at least once; None for any other."""
    numbers = call.eqn.params["dimension_numbers"]
    if not call.known or call.known[1] is None or len(numbers.start_index_map) != 1 or numbers.operand_batching_dims:
        return None
    (source,) = numbers.start_index_map
    axis, places = call.ins[0][source], shape_of(call.eqn.invars[1])[:-1]
    along = [p for p, n in enumerate(places) if n != 1]
    if axis is None or source not in numbers.collapsed_slice_dims or len(along) != 1:
        return None
    n = places[along[0]]
    if not all(isinstance(length, int) for length in (n, axis.size)) or n < axis.size or (value := _value(call, 1)) is None:
        return None
    index = np.asarray(value, np.int64).reshape(-1)
    if not np.array_equal(np.unique(index), np.arange(axis.size)):
        return None
    rest = [i for i in range(call.eqn.outvars[0].aval.ndim) if i not in numbers.offset_dims]
    return Pick(source, rest[along[0]], index)


def picked(axis: Dim, index: np.ndarray) -> Axis:
    """The axis whose entry i is entry ``index[i]``, each at least once: by its parts where these move as a whole."""
    n, repeats = axis.size, len(index) // axis.size
    if repeats > 1:
        for spread, order in ((np.repeat, lambda new: [axis, new]), (np.tile, lambda new: [new, axis])):
            if np.array_equal(index, spread(np.arange(n), repeats)):
                return dims.product(order(dims.fresh([repeats])[0]))
    if len(index) == n and dims.root(axis).kind in ("product", "sum"):
        return _by_factors(axis, index) or _by_runs(axis, index) or dims.mapped(axis, index)
    return dims.mapped(axis, index)


def _by_factors(axis: Dim, index: np.ndarray) -> Axis:
    """As a product of two factors that change places, as channels are shuffled."""
    n, inner = axis.size, int(index[1])
    if inner < 2 or n % inner or not np.array_equal(index, np.arange(n).reshape(-1, inner).T.reshape(-1)):
        return None
    factors = dims.reshaped([axis], (n // inner, inner))
    return None if factors is None else dims.product(reversed(factors))


def _by_runs(axis: Dim, index: np.ndarray) -> Axis:
    """As a sum of parts in another order."""
    runs = np.split(index, np.flatnonzero(np.diff(index) != 1) + 1)
    if len(runs) > RUNS:
        return None
    order = sorted(range(len(runs)), key=lambda i: runs[i][0])
    parts = dims.pieces(axis, [len(runs[i]) for i in order])
    return None if parts is None else dims.total(parts[order.index(i)] for i in range(len(runs)))


def places(call: Call, arrays: Sequence[Any], kept: Kept) -> list[Any]:
    """The operands of a ``gather``, its constant places counted among the entries that stay."""
    own = pick(call)
    if own is None:
        return list(arrays)
    stay, out = extent.entries(call.ins[0][own.source], kept), extent.entries(call.outs[0][own.out], kept)
    taken = own.entries if out is None else own.entries[out]
    stay = np.arange(taken.max() + 1) if stay is None else stay
    shape = [n if n == 1 else len(taken) for n in arrays[1].shape]
    return [arrays[0], np.searchsorted(stay, taken).astype(arrays[1].dtype).reshape(shape), *arrays[2:]]


# -- windows ---------------------------------------------------------------------------------------------------------------


def window(call: Call) -> dict[int, int | None]:
    """``{axis of the first operand: where the window over it begins}``, of axes that it does not span; None: not known."""
    shape, first = shape_of(call.eqn.invars[0]), {"dynamic_slice": 1, "dynamic_update_slice": 2}.get(call.name)
    if first is not None:
        sizes = dict(enumerate(call.eqn.params["slice_sizes"] if first == 1 else shape_of(call.eqn.invars[1])))
        places = {i: _number(call, first + i) for i in sizes}
    else:
        numbers, value = call.eqn.params["dimension_numbers"], _value(call, 1)
        gone = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
        own = [d for d in range(len(shape)) if d not in gone]
        sizes = {d: shape_of(call.eqn.invars[2])[i] for d, i in zip(own, numbers.update_window_dims, strict=True)}
        one = value is not None and np.ndim(value) == 1
        at = dict(zip(numbers.scatter_dims_to_operand_dims, np.asarray(value).tolist(), strict=True)) if one else {}
        places = {d: at.get(d, 0) if one else None for d in own}
    return {i: _inside(places[i], n, shape[i], first is not None) for i, n in sizes.items() if n != shape[i]}


def _inside(start: int | None, n: Any, length: Any, clipped: bool) -> int | None:
    """A start from which the window lies within the axis; None where it does not."""
    if start is None or not all(isinstance(x, int) for x in (n, length)):
        return None
    start = min(max(start, 0), length - n) if clipped else start
    return start if 0 <= start <= length - n else None


def _value(call: Call, i: int) -> Any:
    known = call.known[i] if call.known else None
    return None if known is None else known()


def _number(call: Call, i: int) -> int | None:
    return None if (value := _value(call, i)) is None else int(value)


def starts(call: Call, arrays: Sequence[Any], kept: Kept) -> list[Any]:
    """The operands of an operation on a window, whose known starts are counted among the entries that stay."""
    moved: dict[int, int] = {}
    for i, start in window(call).items():
        stay = extent.entries(call.ins[0][i], kept)
        if start is not None and stay is not None:
            moved[i] = int(np.searchsorted(stay, start))
    if not moved:
        return list(arrays)
    if call.name.startswith("scatter"):
        order = call.eqn.params["dimension_numbers"].scatter_dims_to_operand_dims
        new = [moved.get(d, own) for d, own in zip(order, np.asarray(_value(call, 1)).tolist(), strict=True)]
        return [arrays[0], np.asarray(new, arrays[1].dtype), *arrays[2:]]
    first = 1 if call.name == "dynamic_slice" else 2
    return [np.asarray(moved[i - first], x.dtype) if i - first in moved else x for i, x in enumerate(arrays)]
