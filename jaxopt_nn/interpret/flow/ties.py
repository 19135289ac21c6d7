"""Which axes of which leaves are one dim: a walk over a program's jaxpr by the flow table.

It never raises: what can't be followed is pinned and named.

A value that is computed from constants alone is *whole*: it has no axes of its own, and gets new ones at each use, so that
a table that two layers share does not tie them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxopt_nn.interpret import jaxprs
from jaxopt_nn.interpret.flow import dims, picks
from jaxopt_nn.interpret.flow.derivatives import Derivative, derivative
from jaxopt_nn.interpret.flow.dims import Axes, Axis
from jaxopt_nn.interpret.flow.entry import Call
from jaxopt_nn.interpret.flow.picks import Known
from jaxopt_nn.interpret.flow.products import conv_axes, dot_axes, ragged_axes
from jaxopt_nn.interpret.flow.residuals import passing_carry
from jaxopt_nn.interpret.flow.table import PRIMITIVES
from jaxopt_nn.interpret.program import Program
from jaxopt_nn.interpret.tags import Key


class Value(NamedTuple):
    """What the first walk knows of a value.

    Attributes:
      axes: None: it is whole.
      sources: the leaves that it is computed from, with no input in the computation.
      dynamic: it depends on an input.
      known: of one that is whole what gives its value, where that is the same wherever it is used.
    """

    axes: Axes | None
    sources: frozenset[str] = frozenset()
    dynamic: bool = False
    known: Known | None = None


WHOLE = Value(None)
#: Why the axis that a loop goes along keeps its entries, where an iteration does more than add to what is carried.
LOOPED = "is looped over by `scan`"


class Contraction(NamedTuple):
    """A site that sums over an axis of an activation: axis ``number`` of its contracted ``shape``."""

    site: str
    shape: tuple[int, ...]
    number: int
    axis: Axis


class Ties:
    """The dims of a program.

    Attributes:
      program: the traced model.
      leaves: ``{path: axes}``.
      calls: ``{key: the axes at an equation}``, of equations that are not whole; in ``ins`` None stands for the axes of an
        operand that stays whole.
      ends: ``{key of a body: for each of its results None, or the axes along which a whole one is cut}``.
      producers, consumers: ``(path, axis)`` of the weights of sites, in order of evaluation.
      reads: what the sites sum over.
      derivatives: ``{key: the rule of a custom derivative}``.
      sources: ``{key: what is known of an equation's operands}``.
      loops: ``{key: the axis that a scan goes along}``.
      layers: the axes of those that may go along fewer entries.
    """

    def __init__(self, program: Program, paths: Sequence[str]):
        self.program = program
        self.calls: dict[Key, Call] = {}
        self.ends: dict[Key, list[Axes | None]] = {}
        self.producers: list[tuple[str, Axis]] = []
        self.consumers: list[tuple[str, Axis]] = []
        self.reads: list[Contraction] = []
        self._within_rule = False  # a rule calls its own function again: second derivatives are those of the bodies
        self.derivatives: dict[Key, Derivative] = {}
        self.sources: dict[Key, tuple[Value, ...]] = {}
        self.loops: dict[Key, Axis] = {}
        self.layers: list[Axis] = []
        avals = [v.aval for v in program.jaxpr.invars]
        shapes = zip(paths, avals, strict=False)
        self.leaves = {path: dims.fresh(a.shape) for path, a in shapes}
        args = [Value(axes, frozenset({path})) for path, axes in self.leaves.items()]
        args += [Value(dims.fresh(a.shape, "is an axis of an input"), dynamic=True) for a in avals[len(paths) :]]
        self.outs = self._run(jaxprs.Body(program.jaxpr, program.consts), args, ())

    # -- walking -------------------------------------------------------------------------------------------------------

    def _run(self, body: jaxprs.Body, args: Sequence[Value], key: Key) -> list[Value]:
        jaxpr, known = body.jaxpr, lambda x: WHOLE._replace(known=picks.constant(x))
        env: dict[Any, Value] = dict(zip(jaxpr.invars, args, strict=True))
        env |= {v: known(x) for v, x in zip(jaxpr.constvars, body.consts, strict=True)}
        read = lambda v: known(v.val) if jaxprs.is_literal(v) else env[v]
        for i, eqn in jaxprs.live(jaxpr):
            outs = self._equation(eqn, [read(v) for v in eqn.invars], (*key, i))
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def _equation(self, eqn: Any, operands: list[Value], key: Key) -> list[Value]:
        name = eqn.primitive.name
        if all(v.axes is None for v in operands):
            return [WHOLE._replace(known=known) for known in picks.results(eqn, [v.known for v in operands])]
        if name in jaxprs.LOOPS:
            return getattr(self, f"_{name}")(eqn, operands, key)
        if name == "shard_map":
            return self._shard_map(eqn, operands, key)
        if name in jaxprs.DIRECT:
            (body,) = jaxprs.bodies(eqn) or ()
            results = self._run(body, operands, (*key, 0))
            if name in jaxprs.CUSTOM_DERIVATIVES and not self._within_rule:
                self._derivative(eqn, operands, results, key)
            return results
        ins = tuple(_axes_of(v, var) for v, var in zip(operands, eqn.invars, strict=True))
        known = tuple(v.known if v.axes is None else None for v in operands)
        call = Call(eqn, ins, (), tuple(map(number_of, eqn.invars)), known)
        entry = PRIMITIVES.get(name)
        outs = self._opaque(call) if entry is None else self._checked(call, entry.axes(call))
        self.calls[key] = call._replace(outs=tuple(outs))
        self.sources[key] = tuple(operands)
        if key in self.program.sites:
            self._site(self.calls[key], operands, key)
        elif name == "ragged_dot_general" and (own := ragged_axes(call)) is not None:  # no site: its weights stay floats
            self.producers += [(path, axis) for path in operands[1].sources for axis in own.made]
            self.consumers += [(path, axis) for path in operands[1].sources for _, axis in own.contracted]
        dynamic = any(v.dynamic for v in operands)
        sources = frozenset() if dynamic else frozenset().union(*(v.sources for v in operands))
        return [Value(axes, sources, dynamic) for axes in outs]

    def _opaque(self, call: Call) -> list[Axes]:
        reason = f"`{call.name}` can't be followed"
        for axes in call.ins:
            for axis in axes:
                dims.pin(axis, reason, shard=True)
        return [dims.fresh(v.aval.shape, reason) for v in call.eqn.outvars]

    def _checked(self, call: Call, outs: Sequence[Axes]) -> list[Axes]:
        """The axes of the results, if they have the results' lengths."""
        fits = lambda axes, shape: len(axes) == len(shape) and all(
            (1 if a is None else a.size) == n for a, n in zip(axes, shape, strict=True)
        )
        if all(fits(axes, v.aval.shape) for axes, v in zip(outs, call.eqn.outvars, strict=True)):
            return list(outs)
        return self._opaque(call)

    def _site(self, call: Call, operands: list[Value], key: Key) -> None:
        site = self.program.sites[key]
        if site.weight is None:
            return
        if site.kind == "gather":
            taken = {id(a) for a in call.outs[0]}
            self.producers += [(p, a) for p in site.leaves for a in call.ins[0] if id(a) in taken]
            return
        x, w = 1 - site.weight, site.weight
        if site.kind == "dot":
            contracted, _, *free = dot_axes(call)
            summed, made = [pair[x] for pair in contracted], free[w]
            weights = [pair[w] for pair in contracted]
            numbers = call.eqn.params["dimension_numbers"][0][x]
            shape = tuple(call.eqn.invars[x].aval.shape[i] for i in numbers)
        else:
            own = conv_axes(call)
            summed, made, weights = [own.features], [own.outputs], [own.inputs]
            lengths = call.eqn.invars[1].aval.shape
            spec = call.eqn.params["dimension_numbers"].rhs_spec
            taps = 1
            for i in spec[2:]:
                taps *= lengths[i]
            shape = (lengths[spec[1]], taps)
            if call.eqn.params["feature_group_count"] > 1:
                summed = []
        self.producers += [(p, a) for p in site.leaves for a in made]
        self.consumers += [(p, a) for p in site.leaves for a in weights]
        if operands[x].dynamic:
            self.reads += [Contraction(site.name, shape, n, axis) for n, axis in enumerate(summed)]

    def _derivative(self, eqn: Any, operands: list[Value], outs: list[Value], key: Key) -> None:
        """The axes in a derivative's rule: those of a tangent are its primal's."""
        rule = derivative(eqn)
        if rule is None:
            return
        self.derivatives[key], self._within_rule = rule, True
        along = lambda values, which: [values[i]._replace(sources=frozenset(), dynamic=True) for i in which]
        reason = "a custom derivative gives it another structure"
        if rule.tangents is not None:
            made = self._run(rule.tangents, [*operands, *along(operands, rule.inputs)], (*key, 1))
            of = along(outs, rule.outputs)
        else:
            assert rule.residuals is not None and rule.pullback is not None
            residuals = self._run(rule.residuals, operands, (*key, 1))
            made = self._run(rule.pullback, [*residuals, *along(outs, rule.outputs)], (*key, 2))
            of = along(operands, rule.inputs)
        for a, b in zip(made, of, strict=True):
            if a.axes is not None and b.axes is not None:
                _tie_all(a.axes, b.axes, reason)
        self._within_rule = False

    # -- loops, branches -----------------------------------------------------------------------------------------------

    def _cut(self, values: Sequence[Value], variables: Sequence[Any], stay: Sequence[bool]) -> list[Value]:
        """Values of which the whole ones get axes, but for those that stay whole."""
        return [
            v if v.axes is not None or whole else v._replace(axes=_axes_of(v, var))
            for v, var, whole in zip(values, variables, stay, strict=True)
        ]

    def _note(self, key: Key, eqn: Any, cut: Sequence[Value]) -> None:
        """Remembers along which axes a loop's whole operands are cut when they enter it."""
        self.calls[key] = Call(eqn, tuple(new.axes for new in cut))

    def _body(self, body: Any, args: Sequence[Value], key: Key, stay: Sequence[bool]) -> list[Value]:
        """A body's results, of which those that do not stay whole have axes."""
        outs = self._run(body, args, key)
        made = self._cut(outs, body.jaxpr.outvars, stay)
        self.ends[key] = [new.axes if old.axes is None else None for old, new in zip(outs, made, strict=True)]
        return made

    def _scan(self, eqn: Any, operands: list[Value], key: Key) -> list[Value]:
        (body,) = jaxprs.bodies(eqn) or ()
        n_consts, n_carry = jaxprs.scan_counts(eqn)
        first = n_consts + n_carry
        whole = [v.axes is None for v in operands]
        carried = _fixed(lambda c: _wholes(body.jaxpr, [*whole[:n_consts], *c, *whole[first:]]), whole[n_consts:first])
        shorter = passing_carry(eqn) is not None
        ends = _ys_stay(eqn, _wholes(body.jaxpr, [*whole[:n_consts], *carried, *whole[first:]])[n_carry:])
        stay = [*([True] * n_consts), *carried, *([True] * (len(operands) - first))]
        values = self._cut(operands, eqn.invars, stay)
        self._note(key, eqn, values)
        (length,) = dims.fresh([eqn.params["length"]], None if shorter else LOOPED)
        for x in values[first:]:
            if x.axes is not None:
                dims.tie(length, x.axes[0], LOOPED)
        self.loops[key] = length
        if shorter:
            self.layers.append(length)
        args = [*values[:n_consts], *map(_carry, values[n_consts:first]), *map(_sliced, values[first:])]
        outs = self._body(body, args, (*key, 0), [*carried, *ends])
        for old, new in zip(values[n_consts:first], outs[:n_carry], strict=True):
            _tie_all(old.axes, new.axes, "`scan` carries it on as another axis")
        ys = [WHOLE if y.axes is None else y._replace(axes=(length, *y.axes)) for y in outs[n_carry:]]
        return [*map(_carry, values[n_consts:first]), *ys]

    def _while(self, eqn: Any, operands: list[Value], key: Key) -> list[Value]:
        cond, body = jaxprs.bodies(eqn) or ()
        n_cond, n_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
        first = n_cond + n_body
        whole = [v.axes is None for v in operands]
        carried = _fixed(lambda c: _wholes(body.jaxpr, [*whole[n_cond:first], *c]), whole[first:])
        values = self._cut(operands, eqn.invars, [*([True] * first), *carried])
        self._note(key, eqn, values)
        carry = list(map(_carry, values[first:]))
        self._run(cond, [*values[:n_cond], *carry], (*key, 0))
        outs = self._body(body, [*values[n_cond:first], *carry], (*key, 1), carried)
        for old, new in zip(carry, outs, strict=True):
            _tie_all(old.axes, new.axes, "`while` carries it on as another axis")
        return carry

    def _cond(self, eqn: Any, operands: list[Value], key: Key) -> list[Value]:
        index, *rest = operands
        branches = jaxprs.bodies(eqn) or ()
        own = [_wholes(b.jaxpr, [v.axes is None for v in rest]) for b in branches]
        stay = [index.axes is None and all(each) for each in zip(*own, strict=True)]
        made = [self._body(b, rest, (*key, i), stay) for i, b in enumerate(branches)]
        for outs in made[1:]:
            for a, b in zip(made[0], outs, strict=True):
                _tie_all(a.axes, b.axes, "`cond` returns another axis from another branch")
        dynamic = index.dynamic or any(v.dynamic for outs in made for v in outs)
        sources = lambda values: frozenset() if dynamic else frozenset().union(*(v.sources for v in values))
        return [Value(outs[0].axes, sources(outs), dynamic) for outs in zip(*made, strict=True)]

    def _shard_map(self, eqn: Any, operands: list[Value], key: Key) -> list[Value]:
        """Axes that the mesh shards are pinned; others are the same inside."""
        (body,) = jaxprs.bodies(eqn) or ()

        def crossed(axes: Axes, spec: Any, shape: Sequence[int]) -> Axes:
            names = [*spec, *[None] * (len(axes) - len(spec))]
            new = dims.fresh(shape, "is sharded by `shard_map`")
            for axis, name in zip(axes, names, strict=True):
                if name:
                    dims.pin(axis, "is sharded by `shard_map`")
            return tuple(n if name else axis for n, axis, name in zip(new, axes, names, strict=True))

        values = self._cut(operands, eqn.invars, [False] * len(operands))
        self._note(key, eqn, values)
        args = [
            v._replace(axes=crossed(v.axes or (), spec, inner.aval.shape))
            for v, spec, inner in zip(values, eqn.params["in_specs"], body.jaxpr.invars, strict=True)
        ]
        outs = self._body(body, args, (*key, 0), [False] * len(eqn.outvars))
        return [
            v._replace(axes=crossed(v.axes or (), spec, var.aval.shape))
            for v, spec, var in zip(outs, eqn.params["out_specs"], eqn.outvars, strict=True)
        ]


def _axes_of(value: Value, var: Any) -> Axes:
    return dims.fresh(var.aval.shape) if value.axes is None else value.axes


def number_of(var: Any) -> float | None:
    """The number of a literal that is a real one."""
    dtype = var.aval.dtype
    known = any(jnp.issubdtype(dtype, kind) for kind in (jnp.bool_, jnp.number))
    real = known and not jnp.issubdtype(dtype, jnp.complexfloating)
    return float(var.val) if jaxprs.is_literal(var) and var.aval.ndim == 0 and real else None


def _carry(value: Value) -> Value:
    """A carried value may be an activation in a later iteration."""
    return WHOLE if value.axes is None else Value(value.axes, dynamic=True)


def _sliced(value: Value) -> Value:
    return WHOLE if value.axes is None else value._replace(axes=value.axes[1:])


def _tie_all(a: Axes | None, b: Axes | None, reason: str) -> None:
    for one, other in zip(a or (), b or (), strict=True):
        dims.tie(one, other, reason)


def _wholes(jaxpr: Any, flags: Sequence[bool]) -> list[bool]:
    """Which results of a jaxpr are computed from whole operands and constants alone."""
    env: dict[Any, bool] = dict(zip(jaxpr.invars, flags, strict=True)) | dict.fromkeys(jaxpr.constvars, True)
    read = lambda v: True if jaxprs.is_literal(v) else env[v]
    for eqn in jaxpr.eqns:
        env.update(zip(eqn.outvars, _whole_results(eqn, [read(v) for v in eqn.invars]), strict=True))
    return [read(v) for v in jaxpr.outvars]


def _whole_results(eqn: Any, own: list[bool]) -> list[bool]:
    name, bodies = eqn.primitive.name, jaxprs.bodies(eqn) or ()
    if all(own) or not bodies or name == "shard_map":
        return [all(own)] * len(eqn.outvars)
    if name == "scan":
        n, m = jaxprs.scan_counts(eqn)
        turn = lambda carry: _wholes(bodies[0].jaxpr, [*own[:n], *carry, *own[n + m :]])
        carry = _fixed(turn, own[n : n + m])
        return [*carry, *_ys_stay(eqn, turn(carry)[m:])]
    if name == "while":
        n = eqn.params["cond_nconsts"]
        m = n + eqn.params["body_nconsts"]
        return _fixed(lambda carry: _wholes(bodies[1].jaxpr, [*own[n:m], *carry]), own[m:])
    if name == "cond":
        each = [_wholes(b.jaxpr, own[1:]) for b in bodies]
        return [own[0] and all(outs) for outs in zip(*each, strict=True)]
    return _wholes(bodies[0].jaxpr, own)


def _ys_stay(eqn: Any, whole: list[bool]) -> list[bool]:
    """Which stacked results of a ``scan`` stay whole: none of a loop over layers, whose iterations may go."""
    return [own and passing_carry(eqn) is None for own in whole]


def _fixed(step: Callable[[list[bool]], list[bool]], carry: Sequence[bool]) -> list[bool]:
    """The carried flags that hold in every iteration; ``step`` may give more than the carry."""
    own = list(carry)
    while True:
        new = [a and b for a, b in zip(own, step(own), strict=False)]
        if new == own:
            return own
        own = new
