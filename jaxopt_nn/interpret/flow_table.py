"""The flow table: for each primitive how axes flow through it, where zeros stay zero, and its parameters on other sizes.

A primitive without an entry pins all axes that enter it.

``axes(call, note)`` gives the axes of the results and ties those of the operands. ``zeros(call, zeros, notes)`` says along
which atoms the results are zero where the operands are, and notes what must be zero there and is not. ``params(call, kept)``
gives the parameters of the equation on operands of which only some entries are kept; None: as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from jaxopt_nn.interpret import dims, jaxprs
from jaxopt_nn.interpret.dims import Axes, Axis, Dim
from jaxopt_nn.interpret.tags import reshaped_axes


class Call(NamedTuple):
    """An equation, the axes of its operands and of its results, and of operands that are one literal number that number.

    None stands for the axes of what enters a loop and stays whole there.
    """

    eqn: Any
    ins: tuple[Any, ...]
    outs: tuple[Axes, ...] = ()
    numbers: tuple[Any, ...] = ()

    @property
    def name(self) -> str:
        return self.eqn.primitive.name


class Zero(NamedTuple):
    """Where a value is zero once units are: everywhere, or in all entries of a cut unit of these atoms."""

    everywhere: bool = False
    atoms: frozenset[Dim] = frozenset()

    def at(self, atom: Dim) -> bool:
        return self.everywhere or atom in self.atoms


NOWHERE, EVERYWHERE = Zero(), Zero(True)
Kept = Mapping[Dim, np.ndarray]


class Notes(Protocol):
    """Takes what keeps atoms from being cut."""

    def pin(self, axis: Axis, reason: str) -> None:
        """None of the axis' atoms may be cut."""

    def divides(self, operand: int, atom: Dim) -> None:
        """The operand is zero along the atom, where the equation is not finite at zero."""


class Entry(NamedTuple):
    """What the table says of one primitive."""

    axes: Callable[[Call], Sequence[Axes]]
    zeros: Callable[[Call, Sequence[Zero], Notes], Sequence[Zero]]
    params: Callable[[Call, Kept], dict[str, Any]] | None = None


# -- zeros ---------------------------------------------------------------------------------------------------------------


def along(axes: Axes, sources: Sequence[Sequence[Zero]]) -> Zero:
    """Zero along the atoms of which each axis has a source that is."""
    ok: dict[Dim, bool] = {}
    for axis, own in zip(axes, sources, strict=True):
        for a in dims.atoms(axis):
            ok[a] = ok.get(a, True) and any(z.at(a) for z in own)
    return Zero(atoms=frozenset(a for a, yes in ok.items() if yes))


def _aligned(call: Call, zeros: Sequence[Zero], i: int) -> list[Zero]:
    """The operands' zeros along axis ``i`` of an elementwise result: of those that have the axis."""
    ndim = len(call.outs[0])
    return [
        z if z.everywhere else Zero(atoms=z.atoms.intersection(dims.atoms(own[i]))) if len(own) == ndim else NOWHERE
        for z, own in zip(zeros, call.ins, strict=True)
    ]


def _one(call: Call, zeros: Sequence[Zero], notes: Notes) -> list[Zero]:
    """Zero where one operand is, as of a product."""
    if any(z.everywhere for z in zeros):
        return [EVERYWHERE] * len(call.outs)
    return [along(call.outs[0], [_aligned(call, zeros, i) for i in range(len(call.outs[0]))])] * len(call.outs)


def _each(call: Call, zeros: Sequence[Zero], notes: Notes, first: int = 0) -> list[Zero]:
    """Zero where all operands are, from the ``first`` on."""
    call, zeros = call._replace(ins=call.ins[first:]), zeros[first:]
    if all(z.everywhere for z in zeros):
        return [EVERYWHERE] * len(call.outs)
    sources = [[_both(_aligned(call, zeros, i), axis)] for i, axis in enumerate(call.outs[0])]
    return [along(call.outs[0], sources)] * len(call.outs)


def _both(zeros: Iterable[Zero], axis: Axis) -> Zero:
    own = list(zeros)
    return Zero(atoms=frozenset(a for a in dims.atoms(axis) if all(z.at(a) for z in own)))


def _left(call: Call, zeros: Sequence[Zero], notes: Notes) -> list[Zero]:
    """Zero where the first operand is."""
    return _each(call._replace(ins=call.ins[:1]), zeros[:1], notes)


def _never(call: Call, zeros: Sequence[Zero], notes: Notes) -> list[Zero]:
    return [NOWHERE] * len(call.outs)


def _singular(call: Call, zeros: Sequence[Zero], notes: Notes, at: int) -> None:
    for axis in call.ins[at]:
        for a in dims.atoms(axis):
            if zeros[at].at(a):
                notes.divides(at, a)


def _power(call: Call, zeros: Sequence[Zero], notes: Notes) -> list[Zero]:
    exponent = call.eqn.params["y"] if "y" in call.eqn.params else call.numbers[1]
    if exponent is not None and exponent > 0:
        return _left(call, zeros, notes)
    if exponent is None or exponent < 0:
        _singular(call, zeros, notes, 0)
    return _never(call, zeros, notes)


def _quotient(call: Call, zeros: Sequence[Zero], notes: Notes) -> list[Zero]:
    _singular(call, zeros, notes, 1)
    return _left(call, zeros, notes)


def _pole(call: Call, zeros: Sequence[Zero], notes: Notes) -> list[Zero]:
    _singular(call, zeros, notes, 0)
    return _never(call, zeros, notes)


def _selected(call: Call, zeros: Sequence[Zero], notes: Notes) -> list[Zero]:
    return _each(call, zeros, notes, first=1)


def _clamped(call: Call, zeros: Sequence[Zero], notes: Notes) -> list[Zero]:
    low, _, high = call.numbers
    if low is None or high is None or not low <= 0 <= high:
        return _never(call, zeros, notes)
    return _each(call._replace(ins=call.ins[1:2]), zeros[1:2], notes)


def _moved(call: Call, zeros: Sequence[Zero], notes: Notes) -> list[Zero]:
    """Of an operation that moves the entries of its first operand."""
    if zeros[0].everywhere:
        return [EVERYWHERE] * len(call.outs)
    return [along(axes, [zeros[:1]] * len(axes)) for axes in call.outs]


def must_be_zero(axis: Axis, zeros: Sequence[Zero], notes: Notes, reason: str) -> None:
    """Pins the atoms of an axis along which none of the values is zero."""
    for a in dims.atoms(axis):
        if not any(z.at(a) for z in zeros):
            notes.pin(a, reason)


# -- elementwise ---------------------------------------------------------------------------------------------------------


def joined(axes: Sequence[Axis], name: str) -> Axis:
    """The axis of values that are combined entry by entry."""
    own = [a for a in axes if a is not None]
    for other in own[1:]:
        dims.tie(own[0], other, f"`{name}` combines it with an axis of another structure")
    return own[0] if own else None


def _elementwise(call: Call) -> list[Axes]:
    ndim = call.eqn.outvars[0].aval.ndim
    full = [axes for axes in call.ins if len(axes) == ndim]
    return [tuple(joined([axes[i] for axes in full], call.name) for i in range(ndim))] * len(call.eqn.outvars)


_ONE = "and mul"
_EACH = (
    "add add_any asin asinh atan atanh cbrt ceil complex conj convert_element_type copy copy_p erf erf_inv expm1 floor imag "
    "log1p max min neg or pcast population_count pvary real reduce_precision reshard round "
    "sharding_constraint sign sin sinh sqrt square stop_gradient sub tan tanh xor abs bitcast_convert_type mesh_cast"
)
_LEFT = "shift_left shift_right_arithmetic shift_right_logical"
_NEVER = (
    "acos acosh atan2 cos cosh eq erfc exp exp2 ge gt is_finite le logistic lt ne nextafter not igamma igammac lgamma_grad "
    "random_gamma_grad bessel_i0e bessel_i1e regularized_incomplete_beta zeta polygamma"
)
_POLES = "digamma lgamma log rsqrt"


# -- layout --------------------------------------------------------------------------------------------------------------


def _shape(var: Any) -> tuple[Any, ...]:
    return tuple(var.aval.shape)


def _transpose(call: Call) -> list[Axes]:
    return [tuple(call.ins[0][i] for i in call.eqn.params["permutation"])]


def _squeeze(call: Call) -> list[Axes]:
    return [tuple(a for i, a in enumerate(call.ins[0]) if i not in call.eqn.params["dimensions"])]


def _broadcast(call: Call) -> list[Axes]:
    shape, places = call.eqn.params["shape"], call.eqn.params["broadcast_dimensions"]
    axes = list(dims.fresh(shape))
    for axis, n, d in zip(call.ins[0], _shape(call.eqn.invars[0]), places, strict=True):
        if n == shape[d]:
            axes[d] = axis
    return [tuple(axes)]


def _broadcast_zeros(call: Call, zeros: Sequence[Zero], notes: Notes) -> list[Zero]:
    if zeros[0].everywhere:
        return [EVERYWHERE]
    own = {d: axis for axis, d in zip(call.ins[0], call.eqn.params["broadcast_dimensions"], strict=True)}
    return [along(call.outs[0], [zeros[:1] if own.get(i) is axis else [NOWHERE] for i, axis in enumerate(call.outs[0])])]


def _sizes(axes: Axes, kept: Kept) -> tuple[Any, ...]:
    return tuple(dims.size(axis, kept) for axis in axes)


def _reshape(call: Call) -> list[Axes]:
    order = jaxprs.reshape_order(call.eqn)
    old, new = [_shape(call.eqn.invars[0])[i] for i in order], tuple(call.eqn.params["new_sizes"])
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
    return {"new_sizes": _sizes(call.outs[0], kept)}


def _broadcast_params(call: Call, kept: Kept) -> dict[str, Any]:
    return {"shape": _sizes(call.outs[0], kept)}


def _slice(call: Call) -> list[Axes]:
    params = call.eqn.params
    starts, stops = params["start_indices"], params["limit_indices"]
    strides = params["strides"] or (1,) * len(starts)
    return [tuple(map(_sliced, call.ins[0], _shape(call.eqn.invars[0]), starts, stops, strides))]


def _sliced(axis: Axis, n: Any, start: int, stop: int, stride: int) -> Axis:
    """The axis of a slice: a part of a sum, or with a stride the outer factor of a product."""
    if axis is None or (start, stop, stride) == (0, n, 1):
        return axis
    if stride == 1:
        parts = dims.pieces(axis, (start, stop - start, n - stop))
        if parts is not None:
            return parts[1]
    elif start < stride and n % stride == 0 and -(-(stop - start) // stride) == n // stride:
        parts = dims.reshaped([axis], (n // stride, stride))
        if parts is not None:
            dims.pin(parts[1], "a slice with a stride takes some of its entries")
            return parts[0]
    dims.pin(axis, "`slice` takes some of its entries", shard=True)
    return dims.fresh([-(-(stop - start) // stride)], "is a slice that can't be followed")[0]


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
    return _each(inner, zeros, notes)


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

    shapes = zip(call.ins[0], _shape(call.eqn.invars[0]), _shape(call.eqn.outvars[0]), call.eqn.params["padding_config"])
    return [tuple(padded(*each) for each in shapes)]


def _pad_zeros(call: Call, zeros: Sequence[Zero], notes: Notes) -> list[Zero]:
    if not zeros[1].everywhere:  # along another axis the padding itself must be zero
        parts = [axis if config == (0, 0, 0) else None for axis, config in zip(call.outs[0], call.eqn.params["padding_config"])]
        lost = frozenset(a for axis in parts for a in dims.atoms(axis))
        if any(config != (0, 0, 0) for config in call.eqn.params["padding_config"]):
            return [Zero(atoms=z.atoms - lost) for z in _moved(call, zeros, notes)]
    return _moved(call, zeros, notes)


def _through(call: Call) -> list[Axes]:
    return list(call.ins)


def _through_zeros(call: Call, zeros: Sequence[Zero], notes: Notes) -> list[Zero]:
    return list(zeros)


def _rev(call: Call) -> list[Axes]:
    for d in call.eqn.params["dimensions"]:
        dims.pin(call.ins[0][d], "`rev` reverses it")
    return [call.ins[0]]


# -- reductions, along one axis ------------------------------------------------------------------------------------------


def _reduced_axes(call: Call) -> tuple[int, ...]:
    return tuple(call.eqn.params["axes"])


def _reduce(call: Call) -> list[Axes]:
    gone = _reduced_axes(call)
    return [tuple(a for i, a in enumerate(call.ins[0]) if i not in gone)] * len(call.eqn.outvars)


def _reduce_sum_zeros(call: Call, zeros: Sequence[Zero], notes: Notes) -> list[Zero]:
    for i in _reduced_axes(call):
        must_be_zero(call.ins[0][i], zeros, notes, f"`{call.name}` reduces over it, and it is not zero there")
    return _moved(call, zeros, notes)


def _reduce_zeros(call: Call, zeros: Sequence[Zero], notes: Notes) -> list[Zero]:
    for i in _reduced_axes(call):
        notes.pin(call.ins[0][i], f"`{call.name}` reduces over it")
    return _moved(call, zeros, notes)


def _arg_zeros(call: Call, zeros: Sequence[Zero], notes: Notes) -> list[Zero]:
    _reduce_zeros(call, zeros, notes)
    return [NOWHERE] * len(call.outs)


def _keep_axes(call: Call) -> list[Axes]:
    return [call.ins[0]] * len(call.eqn.outvars)


def _cumulative_zeros(call: Call, zeros: Sequence[Zero], notes: Notes) -> list[Zero]:
    axis = call.ins[0][call.eqn.params["axis"]]
    reason = f"`{call.name}` runs along it"
    if call.name == "cumsum":
        must_be_zero(axis, zeros, notes, f"{reason}, and it is not zero there")
    else:
        notes.pin(axis, reason)
    (out,) = _moved(call, zeros, notes)
    return [out if out.everywhere else Zero(atoms=out.atoms.difference(dims.atoms(axis)))]


def _sort(call: Call) -> list[Axes]:
    at, ndim = call.eqn.params["dimension"], len(call.ins[0])
    axes = tuple(joined([own[i] for own in call.ins], call.name) for i in range(ndim))
    dims.pin(axes[at], "`sort` orders it")
    return [axes] * len(call.eqn.outvars)


def _windowed(call: Call) -> list[Axes]:
    names = ("window_dimensions", "window_strides", "base_dilation", "window_dilation")
    steps = zip(*(call.eqn.params[name] for name in names), strict=True)
    kept = [set(n) == {1} and tuple(p) == (0, 0) for n, p in zip(steps, call.eqn.params["padding"], strict=True)]
    return _same_but(call, [i for i, same in enumerate(kept) if not same], f"`{call.name}` slides over it")


def _same_but(call: Call, changed: Sequence[int], reason: str) -> list[Axes]:
    """The first operand's axes, but for some that are pinned and new."""
    outs = []
    for var in call.eqn.outvars:
        new = dims.fresh(_shape(var), reason)
        outs.append(tuple(new[i] if i in changed else axis for i, axis in enumerate(call.ins[0])))
    for i in changed:
        dims.pin(call.ins[0][i], reason, shard=True)
    return outs


def _fft(call: Call) -> list[Axes]:
    n, ndim = len(call.eqn.params["fft_lengths"]), len(call.ins[0])
    return _same_but(call, range(ndim - n, ndim), "`fft` transforms along it")


def _top_k(call: Call) -> list[Axes]:
    at = call.eqn.params.get("axis", len(call.ins[0]) - 1)
    return _same_but(call, [at], "`top_k` orders it")


# -- dots, convolutions --------------------------------------------------------------------------------------------------


def dot_axes(call: Call) -> tuple[list[tuple[Axis, Axis]], list[tuple[Axis, Axis]], list[Axis], list[Axis]]:
    """The pairs of contracted and of batch axes of a dot, and the free axes of either side."""
    contracting, batch = call.eqn.params["dimension_numbers"]
    x, w = call.ins[:2]
    pairs = lambda numbers: [(x[i], w[j]) for i, j in zip(*numbers, strict=True)]
    free = [
        [axis for i, axis in enumerate(own) if i not in (*c, *b)] for own, c, b in zip((x, w), contracting, batch, strict=True)
    ]
    return pairs(contracting), pairs(batch), *free


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
    out = list(dims.fresh(_shape(call.eqn.outvars[0])))
    for place, (axis, tap, d) in enumerate(zip(own.window, own.taps, numbers.out_spec[2:], strict=True)):
        if _pointwise(params, place, _shape(call.eqn.invars[1])[numbers.rhs_spec[2 + place]]):
            out[d] = axis
            continue
        for axis in (axis, tap, out[d]):
            dims.pin(axis, "is a spatial axis of a convolution")
    out[numbers.out_spec[0]], out[numbers.out_spec[1]] = own.batch, own.outputs
    if params["batch_group_count"] != 1:
        for axis in (own.batch, own.outputs, own.features, own.inputs):
            dims.pin(axis, "a convolution splits its batch into groups", shard=True)
        (out[numbers.out_spec[0]],) = dims.fresh([_shape(call.eqn.outvars[0])[numbers.out_spec[0]]], "a batch group")
        return [tuple(out)]
    if groups == 1:
        dims.tie(own.features, own.inputs, "a convolution contracts it with an axis of another structure")
        return [tuple(out)]
    group = Dim(groups)
    outputs = _shape(call.eqn.invars[1])[numbers.rhs_spec[0]] // groups
    dims.tie(own.features, dims.product([group, own.inputs]), "a grouped convolution splits it otherwise")
    dims.tie(own.outputs, dims.product([group, *dims.fresh([outputs])]), "a grouped convolution splits it otherwise")
    return [tuple(out)]


def _pointwise(params: Mapping[str, Any], i: int, taps: int) -> bool:
    """Whether a convolution works on single places of spatial axis ``i``."""
    plain = params["window_strides"][i] == 1 and tuple(params["padding"][i]) == (0, 0) and params["lhs_dilation"][i] == 1
    return bool(plain and taps == 1)


def conv_groups(call: Call) -> list[Dim]:
    """The atoms of the features that tell a convolution's groups apart."""
    groups, n = call.eqn.params["feature_group_count"], 1
    found = []
    for a in dims.atoms(conv_axes(call).features):
        if n == groups:
            break
        found.append(a)
        n *= a.size
    return found if groups > 1 else []


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
    groups = call.eqn.params["feature_group_count"]
    if groups == 1:
        return {}
    return {"feature_group_count": math.prod(dims.size(a, kept) for a in conv_groups(call))}


# -- lookups, windows at traced places -----------------------------------------------------------------------------------


def _gather(call: Call) -> list[Axes]:
    numbers, sizes = call.eqn.params["dimension_numbers"], call.eqn.params["slice_sizes"]
    source, indices = call.ins[:2]
    shape = _shape(call.eqn.invars[0])
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
    sizes, shape = call.eqn.params["slice_sizes"], _shape(call.eqn.invars[0])
    new = tuple(dims.size(a, kept) if n == full else n for a, n, full in zip(call.ins[0], sizes, shape, strict=True))
    return {"slice_sizes": new}


def _dynamic_slice(call: Call) -> list[Axes]:
    sizes, shape = call.eqn.params["slice_sizes"], _shape(call.eqn.invars[0])
    cut = [i for i, (n, full) in enumerate(zip(sizes, shape, strict=True)) if n != full]
    return _same_but(call, cut, "`dynamic_slice` takes some of its entries")


def _dynamic_update_slice(call: Call) -> list[Axes]:
    whole, part = call.ins[:2]
    shapes = [_shape(v) for v in call.eqn.invars[:2]]
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
    return [along(axes, [[_both((zeros[0], new), axis)] for axis in axes]) for axes in call.outs]


def _scatter(call: Call) -> list[Axes]:
    numbers = call.eqn.params["dimension_numbers"]
    target, indices, updates = call.ins[:3]
    shape, new = _shape(call.eqn.invars[0]), _shape(call.eqn.invars[2])
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


# -- random numbers ------------------------------------------------------------------------------------------------------


def _random(call: Call) -> list[Axes]:
    return [dims.fresh(_shape(v)) for v in call.eqn.outvars]


#: Evaluated whole, with all of their entries, and cut afterwards: each unit keeps its own numbers.
WHOLE = frozenset("random_bits random_seed random_wrap random_unwrap random_fold_in random_split random_clone threefry2x32".split())

PRIMITIVES: dict[str, Entry] = {
    **dict.fromkeys(_ONE.split(), Entry(_elementwise, _one)),
    **dict.fromkeys(_EACH.split(), Entry(_elementwise, _each)),
    **dict.fromkeys(_LEFT.split(), Entry(_elementwise, _left)),
    **dict.fromkeys(_NEVER.split(), Entry(_elementwise, _never)),
    **dict.fromkeys(_POLES.split(), Entry(_elementwise, _pole)),
    **dict.fromkeys(("div", "rem"), Entry(_elementwise, _quotient)),
    **dict.fromkeys(("pow", "integer_pow"), Entry(_elementwise, _power)),
    **dict.fromkeys(("optimization_barrier", "device_put"), Entry(_through, _through_zeros)),
    "select_n": Entry(_elementwise, _selected),
    "clamp": Entry(_elementwise, _clamped),
    "transpose": Entry(_transpose, _moved),
    "squeeze": Entry(_squeeze, _moved),
    "broadcast_in_dim": Entry(_broadcast, _broadcast_zeros, _broadcast_params),
    "reshape": Entry(_reshape, _moved, _reshape_params),
    "slice": Entry(_slice, _moved, _slice_params),
    "split": Entry(_split, _moved, _split_params),
    "unstack": Entry(_unstack, _moved),
    "concatenate": Entry(_concatenate, _concatenate_zeros),
    "stack": Entry(_stack, _stack_zeros),
    "pad": Entry(_pad, _pad_zeros),
    "rev": Entry(_rev, _moved),
    "reduce_sum": Entry(_reduce, _reduce_sum_zeros),
    **dict.fromkeys("reduce_and reduce_max reduce_min reduce_or reduce_prod reduce_xor".split(), Entry(_reduce, _reduce_zeros)),
    **dict.fromkeys(("argmax", "argmin"), Entry(_reduce, _arg_zeros)),
    **dict.fromkeys("cumlogsumexp cummax cummin cumprod cumsum".split(), Entry(_keep_axes, _cumulative_zeros)),
    "sort": Entry(_sort, _never),
    **dict.fromkeys("reduce_window_max reduce_window_min reduce_window_sum".split(), Entry(_windowed, _moved)),
    "fft": Entry(_fft, _moved),
    "top_k": Entry(_top_k, _never),
    "dot_general": Entry(_dot, _dot_zeros),
    "conv_general_dilated": Entry(_conv, _conv_zeros, _conv_params),
    "gather": Entry(_gather, _moved, _gather_params),
    "dynamic_slice": Entry(_dynamic_slice, _moved, _gather_params),
    "dynamic_update_slice": Entry(_dynamic_update_slice, _written_zeros),
    **dict.fromkeys("scatter scatter-add scatter-mul scatter-max scatter-min".split(), Entry(_scatter, _written_zeros)),
    **dict.fromkeys(WHOLE, Entry(_random, _never)),
}
