"""Numbered entries: how a single operation carries the rows of numbers that ``groups`` follows.

Every entry of every axis of every leaf has a number. An axis of a value is a row of such numbers (its entry j exists
because of that entry of some leaf), is the ``SAME`` along its length, or comes from elsewhere (``OTHER``: the inputs,
constants, what can't be followed).
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

SAME, OTHER = "same", "other"
Axis = np.ndarray | str

#: Entry j of the result depends on entry j of each operand alone. Without ``acosh``: it is finite from 1 on, not at 0.
ELEMENTWISE = frozenset(
    "abs acos add add_any and asin asinh atan atan2 atanh cbrt ceil clamp complex conj convert_element_type copy "
    "copy_p cos cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt imag integer_pow is_finite le lgamma log "
    "log1p logistic lt max min mul ne neg nextafter not or population_count pow real reduce_precision rem round rsqrt "
    "select_n sharding_constraint shift_left shift_right_arithmetic shift_right_logical sign sin sinh sqrt square "
    "stop_gradient sub tan tanh xor".split()
)
REDUCTIONS = frozenset(
    "argmax argmin reduce_and reduce_max reduce_min reduce_or reduce_prod reduce_sum reduce_xor".split()
)
#: Not finite at zero, of the operand given: ``pow`` and ``integer_pow`` where the exponent may be negative.
SINGULAR = {"digamma": 0, "div": 1, "integer_pow": 0, "lgamma": 0, "log": 0, "pow": 0, "rem": 1, "rsqrt": 0}
LAYOUT = frozenset(
    "broadcast_in_dim convert_element_type copy copy_p reduce_precision reshape sharding_constraint squeeze "
    "stop_gradient transpose".split()
)


class Sign(enum.IntEnum):
    """What holds of all entries of a float value, whatever the leaves and the inputs are (rounding aside)."""

    ANY = 0
    NONNEGATIVE = 1
    POSITIVE = 2


#: The result has the least sign of its operands.
KEEPS_SIGN = LAYOUT | frozenset(
    "add_any asinh atan cbrt concatenate cummax cummin cumprod cumsum div dot_general erf expm1 integer_pow log1p min "
    "mul pad reduce_max reduce_min reduce_prod reduce_sum rev rsqrt sinh slice split sqrt tanh".split()
)
POSITIVE = frozenset("cosh erfc exp exp2 logistic".split())


class Value(NamedTuple):
    """What is known of a value: its axes, the leaf that it is up to layout, else the leaves that it is computed from.

    ``dynamic``: it depends on the inputs of ``apply``; then ``leaf`` and ``sources`` are empty. ``number``: of a scalar
    that is computed from literals alone.
    """

    axes: tuple[Axis, ...]
    leaf: str | None = None
    sources: frozenset[str] = frozenset()
    dynamic: bool = False
    sign: Sign = Sign.ANY
    number: np.ndarray | None = None


def constant(var: Any) -> Value:
    return Value((OTHER,) * var.aval.ndim)


def literal(number: Any, dtype: Any) -> Value:
    number = np.asarray(number, dtype)
    value = -1.0 if np.iscomplexobj(number) else float(number)
    sign = Sign.ANY if value < 0 else Sign.NONNEGATIVE if value == 0 else Sign.POSITIVE  # NaN is no zero either
    return Value((), sign=sign, number=number)


def result(operands: Sequence[Value], axes: tuple[Axis, ...], layout: bool = False, sign: Sign = Sign.ANY) -> Value:
    """The value with these axes, computed from ``operands``; of one operand ``layout`` keeps the leaf."""
    if any(v.dynamic for v in operands):
        return Value(axes, dynamic=True, sign=sign)
    sources = frozenset().union(*(v.sources for v in operands))
    return Value(axes, operands[0].leaf if layout and len(operands) == 1 else None, sources, sign=sign)


def sign_of(eqn: Any, operands: Sequence[Value]) -> Sign:
    """The sign of an equation's results."""
    name, signs = eqn.primitive.name, [v.sign for v in operands]
    if not jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.floating) or not signs:
        return Sign.ANY
    even = name == "integer_pow" and eqn.params["y"] % 2 == 0
    if even or name in ("abs", "square") or (name == "mul" and eqn.invars[0] is eqn.invars[1]):
        return max(signs[0], Sign.NONNEGATIVE)
    if name in POSITIVE:
        return Sign.POSITIVE
    if name in KEEPS_SIGN:
        return min(signs)
    if name == "add":
        return max(signs) if min(signs) else Sign.ANY
    if name == "max":
        return max(signs)
    if name == "pow":
        return signs[0]
    if name == "select_n":
        return min(signs[1:])
    if name == "clamp":
        return min(max(signs[0], signs[1]), signs[2])
    return Sign.ANY


def singular(eqn: Any, operands: Sequence[Value]) -> Value | None:
    """The operand that may be zero where the equation is not finite at its zero."""
    name = eqn.primitive.name
    if name not in SINGULAR or (name == "integer_pow" and eqn.params["y"] >= 0):
        return None
    if name == "pow" and operands[1].sign >= Sign.NONNEGATIVE:
        return None
    value = operands[SINGULAR[name]]
    return None if value.sign == Sign.POSITIVE else value


def moved(row: np.ndarray, at: int, old: list[int], new: list[int]) -> tuple[int | None, np.ndarray]:
    """The axis along which ``row``, along axis ``at`` of ``old``, lies in ``new``, and its entries there.

    None where it lies along no single axis.
    """
    spread = np.broadcast_to(row.reshape([-1 if i == at else 1 for i in range(len(old))]), old).reshape(new)
    if spread.size == 0:
        return None, row
    for k in reversed(range(len(new))):
        line = spread[tuple(slice(None) if i == k else slice(1) for i in range(len(new)))]
        if (spread == line).all():
            return k, line.reshape(-1)
    return None, row


def classes(n: int, ties: Iterable[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """For each of ``n`` numbers the smallest that it is tied to, directly or over others."""
    pairs = list(ties)
    if not pairs:
        return np.arange(n)
    a, b = (np.concatenate(side) for side in zip(*pairs, strict=True))
    label = np.arange(n)
    while True:
        least = np.minimum(label[a], label[b])
        new = label.copy()
        for side in (a, b, label[a], label[b]):
            np.minimum.at(new, side, least)
        new = new[new]
        if (new == label).all():
            return label
        label = new


def _all_but_axis(eqn: Any, ndim: int) -> list[bool]:
    return [i != eqn.params["axis"] for i in range(ndim)]


def _all_but_axes(eqn: Any, ndim: int) -> list[bool]:
    return [i not in eqn.params["axes"] for i in range(ndim)]


def _unwindowed(eqn: Any, ndim: int) -> list[bool]:
    names = ("window_dimensions", "window_strides", "base_dilation", "window_dilation")
    sizes = zip(*(eqn.params[name] for name in names), strict=True)
    return [set(n) == {1} and tuple(pad) == (0, 0) for n, pad in zip(sizes, eqn.params["padding"], strict=True)]


#: ``(equation, ndim) -> for each axis of the first operand, whether it stays as it is``.
ALONG: dict[str, Callable[[Any, int], list[bool]]] = {
    "pad": lambda eqn, ndim: [tuple(entry) == (0, 0, 0) for entry in eqn.params["padding_config"]],
    "slice": lambda eqn, ndim: [
        a == b for a, b in zip(eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape, strict=True)
    ],
    "split": _all_but_axis,
    **dict.fromkeys("cumlogsumexp cummax cummin cumprod cumsum".split(), _all_but_axis),
    **dict.fromkeys(REDUCTIONS, _all_but_axes),
    **dict.fromkeys(("reduce_window_max", "reduce_window_min", "reduce_window_sum"), _unwindowed),
}
