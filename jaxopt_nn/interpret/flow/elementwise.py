"""Operations entry by entry."""

from __future__ import annotations

from collections.abc import Sequence

from jaxopt_nn.interpret.flow import dims
from jaxopt_nn.interpret.flow.dims import Axes
from jaxopt_nn.interpret.flow.entry import Call, Entry, Notes, Zero, each, joined, left, never, one


def _singular(call: Call, zeros: Sequence[Zero], notes: Notes, at: int) -> None:
    for axis in call.ins[at]:
        for a in dims.atoms(axis):
            if zeros[at].at(a):
                notes.divides(at, a)


def power(call: Call, zeros: Sequence[Zero], notes: Notes) -> list[Zero]:
    exponent = call.eqn.params["y"] if "y" in call.eqn.params else call.numbers[1]
    if exponent is not None and exponent > 0:
        return left(call, zeros, notes)
    if exponent is None or exponent < 0:
        _singular(call, zeros, notes, 0)
    return never(call, zeros, notes)


def quotient(call: Call, zeros: Sequence[Zero], notes: Notes) -> list[Zero]:
    _singular(call, zeros, notes, 1)
    return left(call, zeros, notes)


def pole(call: Call, zeros: Sequence[Zero], notes: Notes) -> list[Zero]:
    _singular(call, zeros, notes, 0)
    return never(call, zeros, notes)


def selected(call: Call, zeros: Sequence[Zero], notes: Notes) -> list[Zero]:
    return each(call, zeros, notes, first=1)


def clamped(call: Call, zeros: Sequence[Zero], notes: Notes) -> list[Zero]:
    low, _, high = call.numbers
    if low is None or high is None or not low <= 0 <= high:
        return never(call, zeros, notes)
    return each(call._replace(ins=call.ins[1:2]), zeros[1:2], notes)


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
_NEVER = "acos atan2 bessel_i0e bessel_i1e cos cosh eq erfc exp exp2 ge gt is_finite le logistic lt ne nextafter not"
_POLES = "acosh digamma lgamma log rsqrt"


ELEMENTWISE: dict[str, Entry] = {
    **dict.fromkeys(_ONE.split(), Entry(_elementwise, one)),
    **dict.fromkeys(_EACH.split(), Entry(_elementwise, each)),
    **dict.fromkeys(_LEFT.split(), Entry(_elementwise, left)),
    **dict.fromkeys(_NEVER.split(), Entry(_elementwise, never)),
    **dict.fromkeys(_POLES.split(), Entry(_elementwise, pole)),
    **dict.fromkeys(("div", "rem"), Entry(_elementwise, quotient)),
    **dict.fromkeys(("pow", "integer_pow"), Entry(_elementwise, power)),
    "select_n": Entry(_elementwise, selected),
    "clamp": Entry(_elementwise, clamped),
}
