"""Finds the sites of a jaxpr: an abstract interpretation over tags; nothing is run."""

from __future__ import annotations

import contextlib
import functools
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from jaxopt_nn.core.model import Roles, Site, Use
from jaxopt_nn.core.report import Recorder
from jaxopt_nn.formulations.labels import counted
from jaxopt_nn.interpret import jaxprs, normal, rows, tags
from jaxopt_nn.interpret.tags import CONSTANT, Key, Source, Tag


class Place(NamedTuple):
    """Where an inner jaxpr stands.

    Attributes:
      key: its address. scope: its name stack. trips: number of runs per call.
      layers: address and length of each enclosing scan that slices leaves. turn: address of the innermost loop or branch.
    """

    key: Key = ()
    scope: str = ""
    trips: int = 1
    layers: tuple[tuple[Key, int], ...] = ()
    turn: Key = ()

    def enter(self, index: int, scope: str, body: int = 0) -> Place:
        """The body of an equation that runs it once."""
        return self._replace(key=(*self.key, index, body), scope=scope)

    def turned(self, index: int, scope: str, body: int = 0, trips: int = 1, layers: int | None = None) -> Place:
        """The body of a loop or a branch; ``layers``: the number of slices of leaves that it takes."""
        own = () if layers is None else (((*self.key, index), layers),)
        key = (*self.key, index, body)
        return Place(key, scope, self.trips * trips, (*self.layers, *own), key)


class Analysis:
    """The sites of a closed jaxpr, in order of evaluation.

    Attributes:
      sites: ``{key: Site}``.
      uses: ``{path: [what consumed it, other than layout and sites]}``.
      stacks: ``{path: axes that some loop or index takes away before use}``.
      behind: ``{key: paths of the leaves behind each operand}`` of equations that read some; with -1 as the last index, those
        behind each output of the jaxpr that stands there.
      constants: ``{position: [site names]}``: constants of the trace that a site reads as its weight.
      conditions: addresses of the conditions of ``while`` loops, which return nothing but a bool.
      messages: opaque primitives, conflicts.
    """

    def __init__(self, jaxpr: Any, in_tags: Sequence[Tag], sizes: dict[str, int], const_tags: Sequence[Tag] = ()):
        self._sizes = sizes
        self._drafts: dict[Key, dict[str, Any]] = {}
        self._quiet = 0
        self.uses: defaultdict[str, list[str]] = defaultdict(list)
        self.stacks: defaultdict[str, frozenset[int]] = defaultdict(frozenset)
        self.behind: dict[Key, tuple[tuple[str, ...], ...]] = {}
        self.conditions: set[Key] = set()
        self.recorder = Recorder()
        self.out_tags = self._run(jaxpr, const_tags, in_tags, Place())
        for tag in self.out_tags:
            if tag.leaf is not None:
                self._use(tag.leaf, "reaches an output")
        self.sites, self.constants = self._named()

    # -- recursion -----------------------------------------------------------------------------------------------------

    def _run(self, jaxpr: Any, consts: Sequence[Tag], args: Sequence[Tag], place: Place) -> list[Tag]:
        env: dict[Any, Tag] = {}

        def bind(variables: Sequence[Any], values: Sequence[Tag], name: Any) -> None:
            for j, (var, tag) in enumerate(zip(variables, values, strict=True)):
                if tag.dynamic and tag.value is None:
                    tag = tag._replace(value=(place.key, name, j))
                env[var] = _fitting(tag, var.aval.ndim)

        def read(var: Any) -> Tag:
            return CONSTANT if jaxprs.is_literal(var) else env[var]

        bind((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), "in")
        for i, eqn in enumerate(jaxpr.eqns):
            operands = [read(v) for v in eqn.invars]
            self._remember((*place.key, i), operands)
            bind(eqn.outvars, self._equation(i, eqn, operands, place), i)
        outs = [read(v) for v in jaxpr.outvars]
        self._remember((*place.key, -1), outs)
        return outs

    def _equation(self, i: int, eqn: Any, operands: list[Tag], place: Place) -> list[Tag]:
        name = eqn.primitive.name
        scope = _scope(place.scope, eqn)
        if (outs := tags.layout(eqn, operands, (*place.key, i))) is not None:
            return outs
        if name in jaxprs.SITE_PRIMITIVES and self._site(i, eqn, operands, place, scope):
            return self._computed(eqn, operands)
        if name in jaxprs.DIRECT:
            return self._direct(i, eqn, operands, place, scope)
        if name in jaxprs.LOOPS:
            return getattr(self, f"_{name}")(i, eqn, operands, place, scope)
        if jaxprs.hidden_site(eqn):
            self._note(
                "opaque", scope or name, f"`{name}` holds sites that can't be entered; its operands are densified"
            )
        self._consume(eqn, operands, scope)
        return self._computed(eqn, operands)

    def _computed(self, eqn: Any, operands: list[Tag]) -> list[Tag]:
        tag = tags.computed(eqn, operands)
        if not any(t.rows for t in operands):
            return [tag] * len(eqn.outvars)
        return [tag._replace(rows=axes) if tag.dynamic else tag for axes in rows.labels(eqn, operands)]

    def _direct(self, i: int, eqn: Any, operands: list[Tag], place: Place, scope: str) -> list[Tag]:
        (body,) = jaxprs.bodies(eqn) or ()
        inside = place.enter(i, scope)
        if eqn.primitive.name == "shard_map":
            inside = place.turned(i, scope)
            operands = [
                tags.shard(t, spec, v.aval.shape, eqn.params["mesh"], (*place.key, i))
                for t, spec, v in zip(operands, eqn.params["in_specs"], eqn.invars, strict=True)
            ]
        run = lambda: self._run(body.jaxpr, [CONSTANT] * len(body.consts), operands, inside)
        if eqn.primitive.name in jaxprs.CUSTOM_DERIVATIVES and not jaxprs.has_site(body.jaxpr):
            self._consume(eqn, operands, scope)
            with self._silence():
                return run()
        outs = run()
        return outs if inside.turn == place.turn else [tags.left(t, (*place.key, i)) for t in outs]

    def _scan(self, i: int, eqn: Any, operands: list[Tag], place: Place, scope: str) -> list[Tag]:
        (body,) = jaxprs.bodies(eqn) or ()
        n_consts, n_carry = jaxprs.scan_counts(eqn)
        consts, carry, xs = operands[:n_consts], operands[n_consts : n_consts + n_carry], operands[n_consts + n_carry :]
        length, key = eqn.params["length"], (*place.key, i)
        inside = place.turned(i, scope, trips=length, layers=length if any(x.sources for x in xs) else None)

        def step(carry: list[Tag]) -> list[Tag]:
            args = [*consts, *carry, *(tags.unstacked(x, key, length) for x in xs)]
            outs = self._run(body.jaxpr, [CONSTANT] * len(body.consts), args, inside)
            return [tags.left(t, key) for t in outs]

        first, carry = carry, self._fixed_point(lambda c: step(c)[:n_carry], carry)
        self._absorbed(eqn, first, carry, scope)
        outs = step(carry)
        return [*carry, *(_stacked(t) for t in outs[n_carry:])]

    def _while(self, i: int, eqn: Any, operands: list[Tag], place: Place, scope: str) -> list[Tag]:
        cond, body = jaxprs.bodies(eqn) or ()
        n_cond, n_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
        cond_consts, body_consts, carry = (
            operands[:n_cond],
            operands[n_cond : n_cond + n_body],
            operands[n_cond + n_body :],
        )
        test, inside = place.turned(i, scope, 0), place.turned(i, scope, 1)
        self.conditions.add(test.key)

        def step(carry: list[Tag]) -> list[Tag]:
            outs = self._run(body.jaxpr, [CONSTANT] * len(body.consts), [*body_consts, *carry], inside)
            return [tags.left(t, inside.key) for t in outs]

        first, carry = carry, self._fixed_point(step, carry)
        self._absorbed(eqn, first, carry, scope)
        self._run(cond.jaxpr, [CONSTANT] * len(cond.consts), [*cond_consts, *carry], test)
        step(carry)
        return carry

    def _cond(self, i: int, eqn: Any, operands: list[Tag], place: Place, scope: str) -> list[Tag]:
        branches = []
        for b, branch in enumerate(jaxprs.bodies(eqn) or ()):
            inside = place.turned(i, scope, b)
            new = self._run(branch.jaxpr, [CONSTANT] * len(branch.consts), operands[1:], inside)
            branches.append([tags.left(t, inside.key) for t in new])
        chosen = [functools.reduce(tags.joined, outs) for outs in zip(*branches, strict=True)]
        if operands[0].dynamic:
            chosen = [t if t.dynamic else tags.mixed((t, operands[0])) for t in chosen]
        for outs in branches:
            self._absorbed(eqn, outs, chosen, scope)
        return chosen

    def _fixed_point(self, step: Any, carry: list[Tag]) -> list[Tag]:
        """The carried tags that hold in every iteration."""
        with self._silence():
            while True:
                new = [tags.joined(a, b) for a, b in zip(carry, step(carry), strict=True)]
                if [t._replace(value=None) for t in new] == [t._replace(value=None) for t in carry]:
                    return [t._replace(value=None) for t in carry]
                carry = new

    @contextlib.contextmanager
    def _silence(self) -> Iterator[None]:
        self._quiet += 1
        try:
            yield
        finally:
            self._quiet -= 1

    # -- recording -----------------------------------------------------------------------------------------------------

    def _note(self, kind: str, path: str, reason: str) -> None:
        if not self._quiet:
            self.recorder.add(kind, path, reason)

    def _remember(self, key: Key, values: Sequence[Tag]) -> None:
        if any(t.sources for t in values):
            self.behind[key] = tuple(tuple(s.path for s in t.sources) for t in values)

    def _use(self, path: str, what: str) -> None:
        if not self._quiet and what not in self.uses[path]:
            self.uses[path].append(what)

    def _consume(self, eqn: Any, operands: list[Tag], scope: str) -> None:
        active = any(t.dynamic for t in operands)
        where = f" in {scope}" if scope else ""
        for tag in operands:
            for source in tag.sources:
                if source.exact:
                    self.stacks[source.path] |= source.stack
                how = "combined with an activation" if active else "computed on before use"
                first = "" if tag.leaf is not None else "derived, then "
                self._use(source.path, f"{first}{how} by `{eqn.primitive.name}`{where}")

    def _absorbed(self, eqn: Any, before: Sequence[Tag], after: Sequence[Tag], scope: str) -> None:
        """Notes the leaves that a loop carries on as an activation, or a branch chooses by one."""
        for old, new in zip(before, after, strict=True):
            if new.dynamic:
                self._consume(eqn, [old, new], scope)

    def _site(self, i: int, eqn: Any, operands: list[Tag], place: Place, scope: str) -> bool:
        """Records a site; False where the equation is none (constants only, or a lookup in an activation)."""
        kind = jaxprs.SITE_PRIMITIVES[eqn.primitive.name]
        lhs, rhs = operands[:2]
        if kind == "gather" and not lhs.sources:
            return False
        weight = _weight(kind, lhs, rhs, [counted(v.aval.size) for v in eqn.invars[:2]])
        if weight is None and not (lhs.dynamic or rhs.dynamic):
            return False
        if self._quiet:
            return True
        # of two operands that are computed from leaves the other one stands where an activation would
        sources = [
            (side, s)
            for side, tag in ((i, operands[i]) for i in ((weight, 1 - weight) if weight is not None else ()))
            for s in sorted(tag.sources, key=lambda s: (-self._sizes.get(s.path, 0), s.path))
        ]
        first = sources[0][1] if sources else None
        stacked = normal.stacked_axes(kind, eqn, weight, [s for side, s in sources if side == weight])
        slots = place.layers if first is None else first.slots
        loops = tuple(n for _, n in slots)
        uses = () if weight is None else tuple(_use(kind, eqn, s, side, weight, stacked, slots) for side, s in sources)
        shapes = tuple(tuple(v.aval.shape) for v in eqn.invars[:2])
        inputs, outputs, own = _lengths(kind, eqn, weight, stacked)
        draft = {
            "kind": kind,
            "weight": weight,
            "uses": uses,
            "scope": scope,
            "shapes": shapes,
            "dtypes": tuple(str(v.aval.dtype) for v in eqn.invars[:2]),
            "inputs": inputs,
            "outputs": outputs,
            "slots": tuple(k for k, _ in slots),
            "stack": (*loops, *own),
            "macs": _macs(kind, eqn) * place.trips,
            "stacked": stacked,
            "params": eqn.params,
        }
        activation = operands[1 if kind == "gather" else 1 - (1 if weight is None else weight)]
        draft["reads"] = _reads(Site(name="", **draft), activation, place)
        draft["rows"] = _rows(Site(name="", **draft), activation)
        draft["consts"] = frozenset() if lhs.dynamic is rhs.dynamic else lhs.consts | rhs.consts
        self._drafts[(*place.key, i)] = draft
        return True

    def _named(self) -> tuple[dict[Key, Site], dict[int, list[str]]]:
        seen: Counter[str] = Counter()
        sites: dict[Key, Site] = {}
        constants: defaultdict[int, list[str]] = defaultdict(list)
        for key, draft in self._drafts.items():
            consts, weight = draft.pop("consts"), draft["weight"]
            base = f"@{draft['scope']}" if weight is None else draft["uses"][0].path
            n, seen[base] = seen[base], seen[base] + 1
            name = base if weight is not None and n == 0 else f"{base}#{n}"
            sites[key] = Site(name=name, **draft)
            if weight is None:
                for c in consts:
                    constants[c].append(name)
        return sites, dict(constants)


def _fitting(tag: Tag, ndim: int) -> Tag:
    """A tag whose axes are those of its value."""
    if all(s.axes is None or len(s.axes) == ndim for s in tag.sources) and len(tag.rows) in (0, ndim):
        return tag
    sources = tuple(s if s.axes is None or len(s.axes) == ndim else s.unknown("is reshaped in a way unknown here")
                    for s in tag.sources)  # fmt: skip
    return tag._replace(sources=sources, rows=tag.rows if len(tag.rows) == ndim else ())


def _stacked(tag: Tag) -> Tag:
    """The tag of what a scan stacks."""
    if tag.dynamic:
        return tag._replace(rows=(tags.NONE, *tag.rows) if tag.rows else (), value=None)
    return tags.mixed((tag,), "is stacked by a loop before use")


def _scope(outer: str, eqn: Any) -> str:
    return "/".join(filter(None, (outer, str(eqn.source_info.name_stack))))


def _weight(kind: str, lhs: Tag, rhs: Tag, sizes: list[int]) -> int | None:
    """Which operand is the weight: a leaf before a derived value, the larger of two equals; None: both are activations."""
    if kind == "gather":
        return 0
    ranks = [(0 if not t.sources else 1 if t.leaf is None else 2, n) for t, n in zip((lhs, rhs), sizes, strict=True)]
    best = max((1, 0), key=lambda i: ranks[i])
    return best if ranks[best][0] else None


def _use(
    kind: str, eqn: Any, source: Source, side: int, weight: int, stacked: Sequence[int], slots: Sequence[Any]
) -> Use:
    roles = None if source.axes is None else _roles(kind, eqn, source, side)
    if side != weight:
        return Use(source.path, source.exact, roles, None, f"{source.path} stands in the place of the activation", side)
    found = normal.matrix(kind, eqn, weight, source, stacked, slots)
    if isinstance(found, str):
        return Use(source.path, source.exact, roles, None, found, side)
    return Use(source.path, source.exact, roles, found, "", side)


def _roles(kind: str, eqn: Any, source: Source, weight: int) -> Roles:
    params, axes = eqn.params, source.axes or ()
    window: set[int] = set()
    if kind == "dot":
        contracting, batch = (part[weight] for part in params["dimension_numbers"])
        inputs, stack = set(contracting), set(batch)
    elif kind == "conv":
        spec = params["dimension_numbers"]
        inputs = set(range(len(axes))) - {spec.rhs_spec[0]} if weight == 1 else set()
        stack = set()
        window = set(spec.rhs_spec[2:]) & inputs
    else:
        numbers = params["dimension_numbers"]
        inputs, stack = set(normal.indexed_axes(params, eqn.invars[0].aval.shape)), set(numbers.operand_batching_dims)
    behind = dict(enumerate(axes))
    taken = frozenset().union(*(behind[i] for i in inputs))
    stacked = (source.stack | frozenset().union(*(behind[i] for i in stack))) - taken
    rest = frozenset().union(*(behind[i] for i in behind if i not in inputs | stack)) - taken - stacked
    slid = frozenset().union(*(behind[i] for i in window))
    return Roles(*(tuple(sorted(group)) for group in (stacked, taken, rest, slid)))


def _lengths(kind: str, eqn: Any, weight: int | None, stacked: Sequence[int]) -> tuple[int, int, tuple[int, ...]]:
    """Lengths of I, of O, and of the stack axes that the site keeps apart by itself."""
    lhs, rhs = (v.aval.shape for v in eqn.invars[:2])
    if kind == "dot":
        contracting, batch = eqn.params["dimension_numbers"]
        at = 1 if weight is None else weight
        shape, own = (lhs, rhs)[at], batch[at]
        free = [n for a, n in enumerate(shape) if a not in (*contracting[at], *own)]
        return math.prod(shape[a] for a in contracting[at]), math.prod(free), tuple(shape[own[n]] for n in stacked)
    numbers = eqn.params["dimension_numbers"]
    if kind == "conv":
        count = normal.groups(eqn.params)
        out = rhs[numbers.rhs_spec[0]]
        return math.prod(rhs) // out, out // count, (count,) if count != 1 else ()
    indexed, batch = normal.indexed_axes(eqn.params, lhs), numbers.operand_batching_dims
    window = math.prod(eqn.params["slice_sizes"])  # of a lookup of whole rows their length
    return math.prod(lhs[a] for a in indexed), window, tuple(lhs[a] for a in batch)


def _reads(site: Site, activation: Tag, place: Place) -> Any:
    """What an activation and the way in which it is read are: equal for sites that may share a statistic of it."""
    if activation.value is None:
        return None
    if site.kind == "conv":
        names = ("window_strides", "padding", "lhs_dilation", "rhs_dilation", "feature_group_count", "dimension_numbers")
        window = [site.shapes[1][a] for a in site.params["dimension_numbers"].rhs_spec[2:]]
        how: Any = (*(site.params[n] for n in names), *window)
    elif site.kind == "dot":
        how = tuple(map(tuple, normal.activation_axes(site)))
    else:
        how = (site.shapes[0], str(site.params["dimension_numbers"]))
    return activation.value, site.kind, how, site.slots, site.stack, place.turn


def _rows(site: Site, activation: Tag) -> tuple[int | None, ...]:
    """For each axis of the rows, the axis of the inputs along which it runs; () where that is not known of any."""
    if not activation.rows:
        return ()
    single = lambda behind: next(iter(behind)) if len(behind) == 1 else None
    found = tuple(single(activation.rows[a]) for a in normal.row_axes(site))
    if site.kind == "conv":
        found = (*found, *[None] * (len(site.shapes[0]) - 2))
    return found


def _macs(kind: str, eqn: Any) -> int:
    out = math.prod(eqn.outvars[0].aval.shape)
    if kind == "gather":
        return 0
    if kind == "dot":
        (contracting, _), _ = eqn.params["dimension_numbers"]
        return out * math.prod(eqn.invars[0].aval.shape[i] for i in contracting)
    spec, kernel = eqn.params["dimension_numbers"].rhs_spec, eqn.invars[1].aval.shape
    return out * math.prod(kernel) // kernel[spec[0]]
