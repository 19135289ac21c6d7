"""Rows: which axis of the inputs each axis of an activation runs along.

Weights of examples or tokens go to a site along these axes. An axis is followed while it stays whole and in order; whatever
is not known to keep it (a sort, a merge of two axes, an operation that is not listed here) loses it, never confuses it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxopt_nn.interpret import tags
from jaxopt_nn.interpret.flow.layout import THROUGH
from jaxopt_nn.interpret.flow.table import PRIMITIVES
from jaxopt_nn.interpret.primitives import ELEMENTWISE, REDUCTIONS
from jaxopt_nn.interpret.tags import NONE, Axes, Tag

#: Works along one axis and keeps the order of the others.
_ALONG = frozenset("cumlogsumexp cummax cummin cumprod cumsum".split())


def labels(eqn: Any, operands: Sequence[Tag]) -> list[Axes]:
    """The rows of each result of an equation with a dynamic operand."""
    shapes = [v.aval.shape for v in eqn.outvars]
    found = _single(eqn, operands)
    axes = () if found is None else _whole(found, eqn, operands, shapes[0])
    return [axes if len(axes) == len(shape) else () for shape in shapes]


def _single(eqn: Any, operands: Sequence[Tag]) -> Sequence[frozenset[int]] | None:
    name, params = eqn.primitive.name, eqn.params
    if name in ELEMENTWISE or name in _ALONG:
        return _union([t.rows for t in operands if t.rows], eqn.outvars[0].aval.ndim)
    if name in REDUCTIONS:
        return [a for i, a in enumerate(operands[0].rows) if i not in params["axes"]]
    if name == "concatenate":
        return _union([t.rows for t in operands if t.rows], eqn.outvars[0].aval.ndim)
    if name == "stack":
        axes = _union([t.rows for t in operands if t.rows], eqn.invars[0].aval.ndim)
        return [*axes[: params["axis"]], NONE, *axes[params["axis"] :]]
    if name == "dot_general":
        return _of_dot(eqn, operands)
    if name == "conv_general_dilated" and operands[0].rows:
        numbers = params["dimension_numbers"]
        batch = operands[0].rows[numbers.lhs_spec[0]] if params["batch_group_count"] == 1 else NONE
        return [batch if i == numbers.out_spec[0] else NONE for i in range(eqn.outvars[0].aval.ndim)]
    if name == "gather" and not operands[0].rows:
        numbers = params["dimension_numbers"]
        ids = iter(operands[1].rows[:-1] if operands[1].rows else ())
        return [NONE if i in numbers.offset_dims else next(ids, NONE) for i in range(eqn.outvars[0].aval.ndim)]
    return _moved(eqn, operands[0].rows) if operands and operands[0].rows else None


def _union(rows: Sequence[Axes], ndim: int) -> list[frozenset[int]]:
    full = [r for r in rows if len(r) == ndim]
    return [NONE.union(*(r[i] for r in full)) for i in range(ndim)]


def _of_dot(eqn: Any, operands: Sequence[Tag]) -> list[frozenset[int]]:
    contracting, batch = eqn.params["dimension_numbers"]
    known = [t.rows or (NONE,) * v.aval.ndim for t, v in zip(operands, eqn.invars[:2])]
    out = [known[0][i] | known[1][j] for i, j in zip(*batch)]
    for side, own, c, b in zip((0, 1), known, contracting, batch):
        out += [own[i] for i in range(eqn.invars[side].aval.ndim) if i not in (*c, *b)]
    return out


def _moved(eqn: Any, rows: Axes) -> Sequence[frozenset[int]] | None:
    """An operation that moves entries moves rows as it moves the axes of a leaf, where they stay in order."""
    name, entry = eqn.primitive.name, PRIMITIVES.get(eqn.primitive.name)
    if name == "rev":
        return [NONE if i in eqn.params["dimensions"] else a for i, a in enumerate(rows)]
    if name == "pad":  # one of as many entries cut as added shifts, and keeps the length
        return [a if not any(entry) else NONE for a, entry in zip(rows, eqn.params["padding_config"], strict=True)]
    if name == "dynamic_slice":
        return rows
    moves = None if entry is None or entry.moves is None or name in THROUGH else entry.moves(eqn)
    if not moves:
        return None
    shape = tuple(eqn.invars[0].aval.shape)
    for step in moves[0].steps:
        rows, shape = tags.carried(rows, shape, step), step.result(shape)
    return rows


def _whole(axes: Sequence[frozenset[int]], eqn: Any, operands: Sequence[Tag], shape: Sequence[int]) -> Axes:
    """Without those that are no longer as long as they were: an axis that is cut, merged or split is lost."""
    lengths: dict[int, int] = {}
    for tag, var in zip(operands, eqn.invars):
        for behind, n in zip(tag.rows, var.aval.shape):
            if len(behind) == 1:
                lengths.setdefault(next(iter(behind)), n)
    keeps = lambda behind, n: len(behind) == 1 and lengths.get(next(iter(behind))) == n
    return tuple(behind if keeps(behind, n) else NONE for behind, n in zip(axes, shape, strict=False))
