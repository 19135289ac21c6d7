"""Finds the sites of a jaxpr: an abstract interpretation over tags; nothing is run."""

from __future__ import annotations

import contextlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from jaxopt_nn.core.model import Roles, Site
from jaxopt_nn.core.report import Recorder
from jaxopt_nn.interpret import jaxprs, tags
from jaxopt_nn.interpret.tags import CONSTANT, Tag

#: An equation's address: its index in the top jaxpr, then in each inner one (a body's position stands between).
Key = tuple[int, ...]


class Place(NamedTuple):
    """Where an inner jaxpr stands: its address, name stack, enclosing layer scans and number of runs per call."""

    key: Key = ()
    scope: str = ""
    stack: tuple[int, ...] = ()
    trips: int = 1

    def enter(self, index: int, scope: str, body: int = 0, trips: int = 1, layers: int | None = None) -> Place:
        stack = self.stack if layers is None else (*self.stack, layers)
        return Place((*self.key, index, body), scope, stack, self.trips * trips)


class Analysis:
    """The sites of a closed jaxpr, in order of evaluation.

    Attributes:
      sites: ``{key: Site}``.
      layer_scans: keys of the scans that slice a leaf along its leading axis: what is measured inside is kept per layer.
      uses: ``{path: [what consumed it, other than layout and sites]}``.
      stacks: ``{path: axes that some loop or index takes away before use}``.
      constants: ``{position: [site names]}``: constants of the trace that a site reads as its weight.
      messages: opaque primitives, conflicts.
    """

    def __init__(self, jaxpr: Any, in_tags: Sequence[Tag], sizes: dict[str, int], const_tags: Sequence[Tag] = ()):
        self._sizes = sizes
        self._drafts: dict[Key, dict[str, Any]] = {}
        self._quiet = 0
        self.layer_scans: set[Key] = set()
        self.uses: defaultdict[str, list[str]] = defaultdict(list)
        self.stacks: defaultdict[str, frozenset[int]] = defaultdict(frozenset)
        self.recorder = Recorder()
        self.out_tags = self._run(jaxpr, const_tags, in_tags, Place())
        for tag in self.out_tags:
            if tag.leaf is not None:
                self._use(tag.leaf, "reaches an output")
        self.sites, self.constants = self._named()

    # -- recursion -----------------------------------------------------------------------------------------------------

    def _run(self, jaxpr: Any, consts: Sequence[Tag], args: Sequence[Tag], place: Place) -> list[Tag]:
        env: dict[Any, Tag] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))

        def read(var: Any) -> Tag:
            return CONSTANT if jaxprs.is_literal(var) else env[var]

        for i, eqn in enumerate(jaxpr.eqns):
            operands = [read(v) for v in eqn.invars]
            outs = self._equation(i, eqn, operands, place)
            for var, tag in zip(eqn.outvars, outs, strict=True):
                env[var] = tag if tag.leaf is None or len(tag.axes) == var.aval.ndim else tags.mixed((tag,))
        return [read(v) for v in jaxpr.outvars]

    def _equation(self, i: int, eqn: Any, operands: list[Tag], place: Place) -> list[Tag]:
        name = eqn.primitive.name
        scope = _scope(place.scope, eqn)
        if (outs := tags.layout(eqn, operands)) is not None:
            return outs
        if name in jaxprs.SITE_PRIMITIVES and self._site(i, eqn, operands, place, scope):
            return [tags.mixed(operands)]
        if name in jaxprs.DIRECT:
            return self._direct(i, eqn, operands, place, scope)
        if name in jaxprs.LOOPS:
            return getattr(self, f"_{name}")(i, eqn, operands, place, scope)
        if jaxprs.hidden_site(eqn):
            self._note(
                "opaque", scope or name, f"`{name}` holds sites that can't be entered; its operands are densified"
            )
        self._consume(eqn, operands, scope)
        return [tags.mixed(operands)] * len(eqn.outvars)

    def _direct(self, i: int, eqn: Any, operands: list[Tag], place: Place, scope: str) -> list[Tag]:
        (body,) = jaxprs.bodies(eqn) or ()
        if eqn.primitive.name in jaxprs.CUSTOM_DERIVATIVES and not jaxprs.has_site(body.jaxpr):
            self._consume(eqn, operands, scope)
            return [tags.mixed(operands)] * len(eqn.outvars)
        return self._run(body.jaxpr, [CONSTANT] * len(body.consts), operands, place.enter(i, scope))

    def _scan(self, i: int, eqn: Any, operands: list[Tag], place: Place, scope: str) -> list[Tag]:
        (body,) = jaxprs.bodies(eqn) or ()
        n_consts, n_carry = jaxprs.scan_counts(eqn)
        consts, carry, xs = operands[:n_consts], operands[n_consts : n_consts + n_carry], operands[n_consts + n_carry :]
        length = eqn.params["length"]
        layers = any(x.sources for x in xs)
        if layers:
            self.layer_scans.add((*place.key, i))
        inside = place.enter(i, scope, trips=length, layers=length if layers else None)

        def step(carry: list[Tag]) -> list[Tag]:
            args = [*consts, *carry, *map(tags.unstacked, xs)]
            return self._run(body.jaxpr, [CONSTANT] * len(body.consts), args, inside)

        carry = self._fixed_point(lambda c: step(c)[:n_carry], carry)
        outs = step(carry)
        return [*carry, *(tags.mixed((t,)) for t in outs[n_carry:])]

    def _while(self, i: int, eqn: Any, operands: list[Tag], place: Place, scope: str) -> list[Tag]:
        cond, body = jaxprs.bodies(eqn) or ()
        n_cond, n_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
        cond_consts, body_consts, carry = (
            operands[:n_cond],
            operands[n_cond : n_cond + n_body],
            operands[n_cond + n_body :],
        )

        def step(carry: list[Tag]) -> list[Tag]:
            return self._run(
                body.jaxpr, [CONSTANT] * len(body.consts), [*body_consts, *carry], place.enter(i, scope, 1)
            )

        carry = self._fixed_point(step, carry)
        self._run(cond.jaxpr, [CONSTANT] * len(cond.consts), [*cond_consts, *carry], place.enter(i, scope, 0))
        step(carry)
        return carry

    def _cond(self, i: int, eqn: Any, operands: list[Tag], place: Place, scope: str) -> list[Tag]:
        outs: list[Tag] | None = None
        for b, branch in enumerate(jaxprs.bodies(eqn) or ()):
            new = self._run(branch.jaxpr, [CONSTANT] * len(branch.consts), operands[1:], place.enter(i, scope, b))
            outs = new if outs is None else [tags.joined(a, b) for a, b in zip(outs, new, strict=True)]
        chosen = outs or []
        return [tags.mixed((t, operands[0])) for t in chosen] if operands[0].dynamic else chosen

    def _fixed_point(self, step: Any, carry: list[Tag]) -> list[Tag]:
        """The carried tags that hold in every iteration."""
        with self._silence():
            while True:
                new = [tags.joined(a, b) for a, b in zip(carry, step(carry), strict=True)]
                if new == carry:
                    return carry
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

    def _use(self, path: str, what: str) -> None:
        if not self._quiet and what not in self.uses[path]:
            self.uses[path].append(what)

    def _consume(self, eqn: Any, operands: list[Tag], scope: str) -> None:
        active = any(t.dynamic for t in operands)
        where = f" in {scope}" if scope else ""
        for tag in operands:
            if tag.leaf is not None:
                self.stacks[tag.leaf] |= tag.stack
            for path in tag.sources:
                how = "combined with an activation" if active else "computed on before use"
                first = "" if tag.leaf is not None else "derived, then "
                self._use(path, f"{first}{how} by `{eqn.primitive.name}`{where}")

    def _site(self, i: int, eqn: Any, operands: list[Tag], place: Place, scope: str) -> bool:
        """Records a site; False where the equation is none (constants only, or a lookup in an activation)."""
        kind = jaxprs.SITE_PRIMITIVES[eqn.primitive.name]
        lhs, rhs = operands[:2]
        if kind == "gather" and not lhs.sources:
            return False
        weight = _weight(kind, lhs, rhs, [v.aval.size for v in eqn.invars[:2]])
        if weight is None and not (lhs.dynamic or rhs.dynamic):
            return False
        if self._quiet:
            return True
        leaves = set().union(*(t.sources for t in (lhs, rhs)))
        tag = CONSTANT if weight is None else operands[weight]
        ordered = sorted(leaves, key=lambda p: (p not in tag.sources, -self._sizes.get(p, 0), p))
        shapes = tuple(tuple(v.aval.shape) for v in eqn.invars[:2])
        self._drafts[(*place.key, i)] = {
            "kind": kind,
            "weight": weight,
            "leaf": ordered[0] if weight is not None else None,
            "leaves": tuple(ordered),
            "derived": weight is not None and tag.leaf is None,
            "roles": None if weight is None or tag.leaf is None else _roles(kind, eqn, tag, weight),
            "scope": scope,
            "shapes": shapes,
            "dtypes": tuple(str(v.aval.dtype) for v in eqn.invars[:2]),
            "stack": place.stack,
            "macs": _macs(kind, eqn) * place.trips,
            "params": eqn.params,
            "consts": frozenset() if lhs.dynamic is rhs.dynamic else lhs.consts | rhs.consts,
        }
        return True

    def _named(self) -> tuple[dict[Key, Site], dict[int, list[str]]]:
        seen: Counter[str] = Counter()
        sites: dict[Key, Site] = {}
        constants: defaultdict[int, list[str]] = defaultdict(list)
        for key, draft in self._drafts.items():
            consts = draft.pop("consts")
            base = draft["leaf"] if draft["leaf"] is not None else f"@{draft['scope']}"
            n, seen[base] = seen[base], seen[base] + 1
            name = base if draft["leaf"] is not None and n == 0 else f"{base}#{n}"
            sites[key] = Site(name=name, **draft)
            if draft["weight"] is None:
                for c in consts:
                    constants[c].append(name)
        return sites, dict(constants)


def _scope(outer: str, eqn: Any) -> str:
    return "/".join(filter(None, (outer, str(eqn.source_info.name_stack))))


def _weight(kind: str, lhs: Tag, rhs: Tag, sizes: list[int]) -> int | None:
    """Which operand is the weight: a leaf before a derived value, the larger of two equals; None: both are activations."""
    if kind == "gather":
        return 0
    ranks = [(0 if not t.sources else 1 if t.leaf is None else 2, n) for t, n in zip((lhs, rhs), sizes, strict=True)]
    best = max((1, 0), key=lambda i: ranks[i])
    return best if ranks[best][0] else None


def _roles(kind: str, eqn: Any, tag: Tag, weight: int) -> Roles:
    params = eqn.params
    window: set[int] = set()
    if kind == "dot":
        contracting, batch = (part[weight] for part in params["dimension_numbers"])
        inputs, stack = set(contracting), set(batch)
    elif kind == "conv":
        spec = params["dimension_numbers"]
        inputs = set(range(len(tag.axes))) - {spec.rhs_spec[0]} if weight == 1 else set()
        stack = set()
        window = set(spec.rhs_spec[2:]) & inputs
    else:
        numbers = params["dimension_numbers"]
        inputs, stack = set(numbers.start_index_map), set(numbers.operand_batching_dims)
    behind = {i: tag.axes[i] for i in range(len(tag.axes))}
    taken = frozenset().union(*(behind[i] for i in inputs))
    stacked = (tag.stack | frozenset().union(*(behind[i] for i in stack))) - taken
    rest = frozenset().union(*(behind[i] for i in behind if i not in inputs | stack)) - taken - stacked
    slid = frozenset().union(*(behind[i] for i in window))
    return Roles(*(tuple(sorted(axes)) for axes in (stacked, taken, rest, slid)))


def _macs(kind: str, eqn: Any) -> int:
    out = math.prod(eqn.outvars[0].aval.shape)
    if kind == "gather":
        return 0
    if kind == "dot":
        (contracting, _), _ = eqn.params["dimension_numbers"]
        return out * math.prod(eqn.invars[0].aval.shape[i] for i in contracting)
    spec, kernel = eqn.params["dimension_numbers"].rhs_spec, eqn.invars[1].aval.shape
    return out * math.prod(kernel) // kernel[spec[0]]
