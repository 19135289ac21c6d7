"""Operations entry by entry."""

from __future__ import annotations

from collections.abc import Sequence

from jaxopt_nn.interpret import primitives
from jaxopt_nn.interpret.flow import dims, moves
from jaxopt_nn.interpret.flow.dims import Axes
from jaxopt_nn.interpret.flow.entry import Call, Entry, Notes, Zero, each, joined, left, never, one


def _singular(call: Call, zeros: Sequence[Zero], notes: Notes, at: int) -> None:
    for axis in call.ins[at]:
        for a in dims.atoms(axis):
            if zeros[at].at(a):
                notes.divides(at, a)


def _power(call: Call, zeros: Sequence[Zero], notes: Notes) -> list[Zero]:
    exponent = call.eqn.params["y"] if "y" in call.eqn.params else call.numbers[1]
    if exponent is not None and exponent > 0:
        return left(call, zeros, notes)
    if exponent is None or exponent < 0:
        _singular(call, zeros, notes, 0)
    return never(call, zeros, notes)


def _quotient(call: Call, zeros: Sequence[Zero], notes: Notes) -> list[Zero]:
    _singular(call, zeros, notes, 1)
    return left(call, zeros, notes)


def _pole(call: Call, zeros: Sequence[Zero], notes: Notes) -> list[Zero]:
    _singular(call, zeros, notes, 0)
    return never(call, zeros, notes)


def _selected(call: Call, zeros: Sequence[Zero], notes: Notes) -> list[Zero]:
    return each(call, zeros, notes, first=1)


def _clamped(call: Call, zeros: Sequence[Zero], notes: Notes) -> list[Zero]:
    low, _, high = call.numbers
    if low is None or high is None or not low <= 0 <= high:
        return never(call, zeros, notes)
    return each(call._replace(ins=call.ins[1:2]), zeros[1:2], notes)


def _elementwise(call: Call) -> list[Axes]:
    ndim = call.eqn.outvars[0].aval.ndim
    full = [axes for axes in call.ins if len(axes) == ndim]
    return [tuple(joined([axes[i] for axes in full], call.name) for i in range(ndim))] * len(call.eqn.outvars)


ELEMENTWISE: dict[str, Entry] = {
    **dict.fromkeys(primitives.ONE, Entry(_elementwise, one)),
    **dict.fromkeys(primitives.EACH, Entry(_elementwise, each)),
    **dict.fromkeys(primitives.LEFT, Entry(_elementwise, left)),
    **dict.fromkeys(primitives.NEVER, Entry(_elementwise, never)),
    **dict.fromkeys(primitives.POLES, Entry(_elementwise, _pole)),
    **dict.fromkeys(primitives.QUOTIENTS, Entry(_elementwise, _quotient)),
    **dict.fromkeys(primitives.POWERS, Entry(_elementwise, _power)),
    **dict.fromkeys(primitives.STAYS, Entry(_elementwise, each, moves=moves.stay)),
    "convert_element_type": Entry(_elementwise, each, moves=moves.cast),
    "select_n": Entry(_elementwise, _selected),
    "clamp": Entry(_elementwise, _clamped),
}
