"""Axis groups: which axes of which leaves must be cut together; nothing is run.

Every entry of every axis of every leaf has a number, and a value's axes are rows of such numbers (``units``). An
equation ties numbers (``x + b``: entry j of one belongs to entry j of the other), or pins them. The classes of tied
numbers are the units; leaf axes that share a class are one group.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from jaxopt_nn.core.model import AxisGroup, Coupling, Member, Read
from jaxopt_nn.core.paths import leaves_by_path
from jaxopt_nn.interpret import jaxprs
from jaxopt_nn.interpret.program import Program, trace_model
from jaxopt_nn.interpret.tags import Key, reshaped_axes
from jaxopt_nn.interpret.units import (
    ALONG,
    ELEMENTWISE,
    LAYOUT,
    OTHER,
    REDUCTIONS,
    SAME,
    Axis,
    Value,
    classes,
    constant,
    literal,
    moved,
    result,
    sign_of,
    singular,
)

PyTree = Any


def axis_groups(apply: Callable[..., PyTree], variables: PyTree, *inputs: PyTree) -> tuple[AxisGroup, ...]:
    """Which axes of which leaves are coupled: one group for each output axis of a dot's or convolution's weight.

    With the entries of a unit set to zero in all ``consumer`` members, nothing that ``apply`` returns depends on that
    unit's entries in the other members; so they can be cut. A group is pinned where that is not known: its units reach
    an output, are reduced over, split, enter an operation that can't be followed (loops among them), or one that is not
    finite at zero (a division by an activation: 0 / 0 times a zero is NaN) with a value not known to be above 0.

    Args:
      apply: pure function ``(variables, *inputs)``.
      variables: pytree of arrays, of ``jax.ShapeDtypeStruct``, or of compressed tensors.
      inputs: arrays or ``jax.ShapeDtypeStruct``.

    Returns:
      The groups in order of evaluation of their first producer. A unit's number is its place in the first producer.

    Raises:
      ValueError: no array in ``variables``, or most of the weights are closed over by ``apply``.

    Example:
      >>> def apply(v, x):
      ...     return jax.nn.relu(x @ v["up"]) @ v["down"]
      >>> v = {"up": jnp.ones((4, 8)), "down": jnp.ones((8, 2))}
      >>> for group in jn.axis_groups(apply, v, jnp.ones((1, 4))):
      ...     print(group.size, [(m.path, m.axis) for m in group.members], group.pinned)
      8 [('up', 1), ('down', 0)] None
      2 [('down', 1)] reaches an output of `apply`
    """
    return tuple(c.group for c in couplings(apply, variables, *inputs))


def couplings(apply: Callable[..., PyTree], variables: PyTree, *inputs: PyTree) -> tuple[Coupling, ...]:
    """``axis_groups`` with what measuring and masking the units needs besides."""
    program = trace_model(apply, variables, inputs)
    return _Flow(program, tuple(leaves_by_path(variables))).couplings()


def group_names(groups: Sequence[AxisGroup]) -> list[str]:
    """A name for each group: the path of its first producer, with the axis where two groups share it."""
    first = [g.members[0] for g in groups]
    count = Counter(m.path for m in first)
    return [m.path if count[m.path] == 1 else f"{m.path} axis {m.axis}" for m in first]


class _Flow:
    """One walk over a program that collects ties and pins."""

    def __init__(self, program: Program, paths: Sequence[str]):
        self._sites = program.sites
        self._nodes: list[tuple[str, int, np.ndarray]] = []  # path, axis, the numbers of its entries
        self._starts: list[int] = []
        self._ties: list[tuple[np.ndarray, np.ndarray]] = []
        self._pins: list[tuple[np.ndarray, str]] = []
        self._producers: dict[int, None] = {}
        self._consumers: dict[int, None] = {}
        self._reads: list[tuple[str, tuple[int, ...], int, np.ndarray]] = []
        self._divisors: set[str] = set()
        self._weights: Counter[str] = Counter()
        self._total = 0
        avals = [v.aval for v in program.jaxpr.invars]
        args = [self._leaf(path, a.shape) for path, a in zip(paths, avals, strict=False)]
        args += [Value((OTHER,) * a.ndim, dynamic=True) for a in avals[len(paths) :]]
        for out in self._run(program.jaxpr, args, ()):
            self._pin(out.axes, "reaches an output of `apply`")
        for path, uses in self._weights.items():
            if uses > 1:
                self._pin(self._axes_of(path), f"{path} is the weight of {uses} sites")

    def _leaf(self, path: str, shape: Sequence[int]) -> Value:
        axes: list[Axis] = []
        for axis, n in enumerate(shape):
            if n == 0:
                axes.append(OTHER)
                continue
            ids = np.arange(self._total, self._total + n)
            self._starts.append(self._total)
            self._total += n
            self._nodes.append((path, axis, ids))
            axes.append(ids)
        return Value(tuple(axes), path, frozenset({path}))

    def _axes_of(self, path: str) -> list[np.ndarray]:
        return [ids for own, _, ids in self._nodes if own == path]

    # -- ties and pins -------------------------------------------------------------------------------------------------

    def _pin(self, axes: Iterable[Axis], reason: str) -> None:
        self._pins += [(a, reason) for a in axes if isinstance(a, np.ndarray)]

    def _joined(self, axes: Sequence[Axis], name: str) -> Axis:
        """The axis of an elementwise result; ties the units of its operands."""
        rows = [a for a in axes if isinstance(a, np.ndarray)]
        if not rows:
            return OTHER if OTHER in axes else SAME
        self._ties += [(rows[0], row) for row in rows[1:]]
        if any(isinstance(a, str) and a == OTHER for a in axes):
            self._pin(rows, f"`{name}` combines it with a value of other origin")
        return rows[0]

    def _contract(self, x: Axis, w: Axis, site: str, shape: tuple[int, ...], axis: int) -> None:
        """``x`` is contracted with the weight's axis ``w``."""
        if isinstance(x, np.ndarray) and isinstance(w, np.ndarray):
            self._ties.append((x, w))
            self._consumers[self._node(w)] = None
            self._reads.append((site, shape, axis, x))
        else:
            self._pin((x,), f"{site} contracts it with no axis of a leaf")
            self._pin((w,), f"{site} contracts it with a value of other origin")

    def _node(self, ids: np.ndarray) -> int:
        return int(np.searchsorted(self._starts, ids[0], side="right")) - 1

    # -- recursion -----------------------------------------------------------------------------------------------------

    def _run(self, jaxpr: Any, args: Sequence[Value], key: Key) -> list[Value]:
        env: dict[Any, Value] = dict(zip(jaxpr.invars, args, strict=True))
        env |= {v: constant(v) for v in jaxpr.constvars}

        def read(var: Any) -> Value:
            return literal(var.val, var.aval.dtype) if jaxprs.is_literal(var) else env[var]

        for i, eqn in enumerate(jaxpr.eqns):
            outs = self._equation(eqn, [read(v) for v in eqn.invars], (*key, i))
            for var, out in zip(eqn.outvars, outs, strict=True):
                assert len(out.axes) == var.aval.ndim, f"`{eqn.primitive.name}`: {len(out.axes)} axes for {var.aval}"
                env[var] = out
        return [read(v) for v in jaxpr.outvars]

    def _equation(self, eqn: Any, operands: list[Value], key: Key) -> list[Value]:
        name = eqn.primitive.name
        if name in jaxprs.DIRECT and name != "shard_map":
            (body,) = jaxprs.bodies(eqn) or ()
            return self._run(body.jaxpr, operands, (*key, 0))
        if name in ("optimization_barrier", "device_put"):
            return operands
        if name in ELEMENTWISE:
            return [self._elementwise(eqn, operands)]
        if name in HANDLERS and (axes := HANDLERS[name](self, eqn, operands, key)) is not None:
            layout = len(operands) == 1 and name in LAYOUT
            return [result(operands, a, layout, sign_of(eqn, operands)) for a in axes]
        for value in operands:
            self._pin(value.axes, f"`{name}` can't be followed")
        return [result(operands, (OTHER,) * v.aval.ndim) for v in eqn.outvars]

    def _elementwise(self, eqn: Any, operands: list[Value]) -> Value:
        name, ndim = eqn.primitive.name, eqn.outvars[0].aval.ndim
        if all(v.number is not None for v in operands):  # the divisor n - ddof of a variance
            with jax.ensure_compile_time_eval():
                (number,) = jaxprs.bind(eqn, [v.number for v in operands])
            return literal(number, number.dtype)
        full = [v for v in operands if len(v.axes) == ndim]
        axes = tuple(self._joined([v.axes[i] for v in full], name) for i in range(ndim))
        if (value := singular(eqn, operands)) is not None:
            self._divisors |= value.sources
            if value.dynamic:  # masked leaves would make it zero
                self._pin(value.axes, f"`{name}` is not finite at zero")
        return result(operands, axes, name in LAYOUT, sign_of(eqn, operands))

    # -- sites ---------------------------------------------------------------------------------------------------------

    def _weight(self, operands: Sequence[Value], key: Key) -> int | None:
        """Which operand is the weight of a site that can be followed: a leaf up to layout, against an activation."""
        found = [i for i, v in enumerate(operands) if v.leaf is not None]
        if len(found) != 1 or not operands[1 - found[0]].dynamic or key not in self._sites:
            return None
        return found[0]

    def _produce(self, weight: Value, axes: Iterable[int]) -> None:
        assert weight.leaf is not None
        self._weights[weight.leaf] += 1
        rows = [weight.axes[i] for i in axes]
        self._producers |= {self._node(row): None for row in rows if isinstance(row, np.ndarray)}

    def _dot(self, eqn: Any, operands: list[Value], key: Key) -> list[tuple[Axis, ...]]:
        contracting, batch = eqn.params["dimension_numbers"]
        free = [
            [i for i in range(len(v.axes)) if i not in (*c, *b)]
            for v, c, b in zip(operands, contracting, batch, strict=True)
        ]
        shared = [
            self._joined((operands[0].axes[i], operands[1].axes[j]), "dot_general") for i, j in zip(*batch, strict=True)
        ]
        w = self._weight(operands, key)
        if w is None:
            derived = sorted(frozenset().union(*(v.sources for v in operands)))
            reason = f"is multiplied with what is computed from {', '.join(derived)}" if derived else ""
            for v, own in zip(operands, batch, strict=True):
                rest = [a for i, a in enumerate(v.axes) if i not in own]
                self._pin(rest, reason or "is multiplied with another activation")
        else:
            x, weight = operands[1 - w], operands[w]
            shape = tuple(eqn.invars[1 - w].aval.shape[i] for i in contracting[1 - w])
            for n, (i, j) in enumerate(zip(contracting[1 - w], contracting[w], strict=True)):
                self._contract(x.axes[i], weight.axes[j], self._sites[key].name, shape, n)
            self._produce(weight, free[w])
        return [(*shared, *(v.axes[i] for v, own in zip(operands, free, strict=True) for i in own))]

    def _conv(self, eqn: Any, operands: list[Value], key: Key) -> list[tuple[Axis, ...]] | None:
        params = eqn.params
        numbers, groups = params["dimension_numbers"], params["feature_group_count"]
        shape = eqn.invars[1].aval.shape
        inputs, outputs = shape[numbers.rhs_spec[1]], shape[numbers.rhs_spec[0]]
        if self._weight(operands, key) != 1 or params["batch_group_count"] != 1 or (groups > 1 and inputs > 1):
            return None
        x, weight = operands
        feature, made = x.axes[numbers.lhs_spec[1]], weight.axes[numbers.rhs_spec[0]]
        self._pin([x.axes[i] for i in numbers.lhs_spec[2:]], "is a spatial axis of a convolution")
        self._produce(weight, [numbers.rhs_spec[0]])
        if groups == 1:
            taps = math.prod(shape[i] for i in numbers.rhs_spec[2:])
            self._contract(feature, weight.axes[numbers.rhs_spec[1]], self._sites[key].name, (inputs, taps), 0)
        else:  # depthwise: each input feature has its own output features
            repeated = np.repeat(feature, outputs // groups) if isinstance(feature, np.ndarray) else feature
            made = self._joined((repeated, made), "conv_general_dilated")
        axes: list[Axis] = [OTHER] * len(x.axes)
        axes[numbers.out_spec[0]] = x.axes[numbers.lhs_spec[0]]
        axes[numbers.out_spec[1]] = made
        return [tuple(axes)]

    # -- layout, reductions --------------------------------------------------------------------------------------------

    def _transpose(self, eqn: Any, operands: list[Value], key: Key) -> list[tuple[Axis, ...]]:
        return [tuple(operands[0].axes[i] for i in eqn.params["permutation"])]

    def _broadcast(self, eqn: Any, operands: list[Value], key: Key) -> list[tuple[Axis, ...]]:
        shape = eqn.params["shape"]
        axes: list[Axis] = [SAME] * len(shape)
        given = eqn.invars[0].aval.shape
        for axis, n, d in zip(operands[0].axes, given, eqn.params["broadcast_dimensions"], strict=True):
            if n == shape[d]:
                axes[d] = axis
            else:
                self._pin((axis,), "its only unit is broadcast")
        return [tuple(axes)]

    def _squeeze(self, eqn: Any, operands: list[Value], key: Key) -> list[tuple[Axis, ...]]:
        gone = eqn.params["dimensions"]
        self._pin([a for i, a in enumerate(operands[0].axes) if i in gone], "its only unit is squeezed")
        return [tuple(a for i, a in enumerate(operands[0].axes) if i not in gone)]

    def _reshape(self, eqn: Any, operands: list[Value], key: Key) -> list[tuple[Axis, ...]]:
        order = jaxprs.reshape_order(eqn)
        old, new = [eqn.invars[0].aval.shape[i] for i in order], eqn.params["new_sizes"]
        axes: list[Axis] = [SAME] * len(new)
        for left, right in reshaped_axes(old, new):
            rows = {i: operands[0].axes[order[i]] for i in left}
            rest = OTHER if any(isinstance(a, str) and a == OTHER for a in rows.values()) else SAME
            places: dict[int, np.ndarray] = {}
            for i, row in rows.items():
                if isinstance(row, np.ndarray):
                    at, line = moved(row, left.index(i), [old[j] for j in left], [new[j] for j in right])
                    if at is None or at in places:
                        self._pin(rows.values(), "`reshape` splits its units or merges them with others")
                        rest = OTHER
                    else:
                        places[at] = line
            for n, j in enumerate(right):
                axes[j] = places.get(n, rest)
        return [tuple(axes)]

    def _along(self, eqn: Any, operands: list[Value], key: Key) -> list[tuple[Axis, ...]]:
        """An operation that keeps some axes as they are, and cuts, pads, mixes or reduces the others."""
        name, axes = eqn.primitive.name, operands[0].axes
        kept = ALONG[name](eqn, len(axes))
        self._pin([a for a, same in zip(axes, kept, strict=True) if not same], f"`{name}` works along it")
        if name in REDUCTIONS:
            out = tuple(a for a, same in zip(axes, kept, strict=True) if same)
        else:
            out = tuple(a if same else OTHER for a, same in zip(axes, kept, strict=True))
        return [out] * len(eqn.outvars)

    def _rev(self, eqn: Any, operands: list[Value], key: Key) -> list[tuple[Axis, ...]]:
        turned = eqn.params["dimensions"]
        return [
            tuple(a[::-1] if i in turned and isinstance(a, np.ndarray) else a for i, a in enumerate(operands[0].axes))
        ]

    def _concatenate(self, eqn: Any, operands: list[Value], key: Key) -> list[tuple[Axis, ...]]:
        d = eqn.params["dimension"]
        for v in operands:
            self._pin((v.axes[d],), "`concatenate` works along it")
        ndim = len(operands[0].axes)
        return [
            tuple(OTHER if i == d else self._joined([v.axes[i] for v in operands], "concatenate") for i in range(ndim))
        ]

    # -- result --------------------------------------------------------------------------------------------------------

    def couplings(self) -> tuple[Coupling, ...]:
        """The groups that have a producer."""
        labels = classes(self._total, self._ties)
        node_of = np.repeat(np.arange(len(self._nodes)), [len(ids) for *_, ids in self._nodes])
        group_of = classes(len(self._nodes), [(node_of[labels], node_of)])
        reasons: dict[int, str] = {}
        for ids, reason in self._pins:
            reasons.setdefault(int(group_of[node_of[ids[0]]]), reason)
        found = dict.fromkeys(int(group_of[n]) for n in self._producers)
        return tuple(self._coupling(root, labels, node_of, group_of, reasons.get(root)) for root in found)

    def _coupling(
        self, root: int, labels: np.ndarray, node_of: np.ndarray, group_of: np.ndarray, pinned: str | None
    ) -> Coupling:
        inside = dict.fromkeys(int(n) for n in np.flatnonzero(group_of == root))
        roles = {
            **{n: "producer" for n in self._producers if n in inside},
            **{n: "vector" for n in inside if n not in self._producers and n not in self._consumers},
            **{n: "consumer" for n in inside if n in self._consumers and n not in self._producers},
        }
        rows = {n: labels[self._nodes[n][2]] for n in roles}
        known, first = np.unique(np.concatenate(list(rows.values())), return_index=True)
        number = np.empty(len(known), int)
        number[np.argsort(first, kind="stable")] = np.arange(len(known))

        def units(row: np.ndarray) -> np.ndarray:
            return number[np.searchsorted(known, row)]

        members = tuple(Member(*self._nodes[n][:2], role, units(rows[n])) for n, role in roles.items())
        reads = tuple(
            Read(site, shape, axis, units(labels[ids]))
            for site, shape, axis, ids in self._reads
            if group_of[node_of[ids[0]]] == root
        )
        divisors = frozenset(m.path for m in members if m.role == "vector" and m.path in self._divisors)
        return Coupling(AxisGroup(len(known), members, pinned), reads, divisors)


HANDLERS: dict[str, Callable[[_Flow, Any, list[Value], Key], list[tuple[Axis, ...]] | None]] = {
    "broadcast_in_dim": _Flow._broadcast,
    "concatenate": _Flow._concatenate,
    "conv_general_dilated": _Flow._conv,
    "dot_general": _Flow._dot,
    "reshape": _Flow._reshape,
    "rev": _Flow._rev,
    "squeeze": _Flow._squeeze,
    "transpose": _Flow._transpose,
    **dict.fromkeys(ALONG, _Flow._along),
}
