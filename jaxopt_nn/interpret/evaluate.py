"""Evaluates a model's jaxpr with compressed tensors in place, rules at its sites and taps on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_nn.core.model import Site
from jaxopt_nn.core.report import Recorder
from jaxopt_nn.core.rule import Rule
from jaxopt_nn.core.tap import Tap
from jaxopt_nn.core.transform import State
from jaxopt_nn.interpret import algebra, calls, jaxprs, normal
from jaxopt_nn.interpret.tags import Key
from jaxopt_nn.tensors.base import is_compressed

#: ``{(site, tap): accumulator}``, threaded through the program: what goes into a body comes out of it, grown.
Totals = dict[tuple[str, str], Any]
#: ``{address of a loop or an index: the entry that it is at}``, of the slots that taps and states are kept by.
Indices = dict[Key, Any]


@dataclasses.dataclass
class Evaluator:
    """One evaluation of a program; calls itself for inner jaxprs.

    Attributes:
      sites: of the program. rules: by site key. taps: by site key and name.
      recorder: collects what is densified, left in float, or entered against a custom derivative.
      states: the rules' states by site, with the site's slots as leading axes.
      weights: of the rows of the inputs, or by site, or None; see ``capture``.
      behind: the leaves behind the operands of an equation, as in ``Analysis``.
    """

    sites: Mapping[Key, Site]
    rules: Mapping[Key, Rule]
    taps: Mapping[Key, Mapping[str, Tap]]
    recorder: Recorder
    states: Mapping[str, State] = dataclasses.field(default_factory=dict)
    weights: Any = None
    behind: Mapping[Key, tuple[tuple[str, ...], ...]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        keyed = [k for k, site in self.sites.items() if k in self.taps or (k in self.rules and site.name in self.states)]
        self.slots = frozenset(slot for k in keyed for slot in self.sites[k].slots)
        keys = (*self.rules, *self.taps, *self.slots)
        self._entered = {key[:n] for key in keys for n in range(len(key))}
        self._shared: dict[tuple[int, str], Any] = {}

    def run(
        self, jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], key: Key, totals: Totals, indices: Indices
    ) -> tuple[list[Any], Totals, Indices]:
        """The outputs of an open jaxpr at address ``key``, its totals, and all indices known at its end."""
        env: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))
        for i, (eqn, dead) in enumerate(zip(jaxpr.eqns, jaxprs.last_uses(jaxpr), strict=True)):
            operands = [v.val if jaxprs.is_literal(v) else env[v] for v in eqn.invars]
            with jaxprs.context_of(eqn):
                outs, new, seen = self.equation((*key, i), eqn, operands, totals, indices)
            totals, indices = {**totals, **new}, {**indices, **seen}
            env.update(zip(eqn.outvars, outs, strict=True))
            for var in dead:
                env.pop(var, None)
        return [v.val if jaxprs.is_literal(v) else env[v] for v in jaxpr.outvars], totals, indices

    def equation(
        self, key: Key, eqn: Any, operands: Sequence[Any], totals: Totals, indices: Indices
    ) -> tuple[list[Any], Totals, Indices]:
        """The outputs of an equation, the totals that it changes, and the indices that it adds."""
        if key in self.rules or key in self.taps:
            return (*self._site(key, eqn, operands, totals, indices), {})
        compressed = any(map(is_compressed, operands))
        inner = jaxprs.bodies(eqn)
        if inner is not None and (compressed or key in self._entered):
            custom = eqn.primitive.name in jaxprs.CUSTOM_DERIVATIVES
            if not (custom and not jaxprs.has_site(inner[0].jaxpr)):
                own = {k: x for k, x in totals.items() if k in self.names(key)}
                return calls.CALLS[eqn.primitive.name](self, key, eqn, operands, own, indices)
        seen = {key: jaxprs.taken_index(eqn, operands)} if key in self.slots else {}
        if not compressed:
            return jaxprs.bind(eqn, operands), {}, seen
        return self.plain(key, eqn, operands), {}, seen

    def plain(self, key: Key, eqn: Any, operands: Sequence[Any]) -> list[Any]:
        """The equation by the tensors' algebra, or on densified operands: then the report says so."""
        if not any(map(is_compressed, operands)):
            return jaxprs.bind(eqn, operands)
        outs = algebra.apply(eqn, operands)
        if outs is not None:
            return outs
        return jaxprs.bind(eqn, self.dense(key, operands, f"`{eqn.primitive.name}` reads it as a float array"))

    def dense(self, key: Key, values: Sequence[Any], reason: str, start: int = 0) -> list[Any]:
        """Compressed tensors as float arrays; the report names the leaves behind them, and why.

        Args:
          key: of the equation whose operands ``values`` are, from the one at ``start`` on; with -1 as the last index, of the
            jaxpr whose outputs they are.
        """
        if not any(map(is_compressed, values)):
            return list(values)
        behind = dict(enumerate(self.behind.get(key, ()), -start))
        return [self._densified(x, behind.get(i, ()), reason) for i, x in enumerate(values)]

    def _densified(self, x: Any, leaves: Sequence[str], reason: str) -> Any:
        if not is_compressed(x):
            return x
        for path in leaves or ("@",):
            self.recorder.add("densified", path, f"{reason}: {x.describe()} {list(x.shape)}")
        return x.densify()

    def _site(
        self, key: Key, eqn: Any, operands: Sequence[Any], totals: Totals, indices: Indices
    ) -> tuple[list[Any], Totals]:
        rest = operands[2:]
        known = self.sites[key]
        site = dataclasses.replace(known, run=lambda lhs, rhs: self.plain(key, eqn, [lhs, rhs, *rest])[0])
        lhs, rhs = operands[:2]
        out: Any = NotImplemented
        if (rule := self.rules.get(key)) is not None:
            out = rule.apply(site, self._state(site, rule, indices), lhs, rhs)
            if out is NotImplemented:
                self.recorder.add("float", site.name, _declined(rule, site, lhs, rhs))
            else:
                self._check(site, rule, out, eqn.outvars[0].aval)
        out = site.run(lhs, rhs) if out is NotImplemented else out
        new = {}
        for name, tap in self.taps.get(key, {}).items():
            new[site.name, name] = self._added(site, tap, totals[site.name, name], _seen(tap, site, lhs, rhs, out), indices)
        return [out], new

    def _state(self, site: Site, rule: Rule, indices: Indices) -> State:
        """The state of a rule at the entry of the stack that the site is at."""
        if site.name not in self.states:
            return rule.init(site, None)
        at = _entry(site, indices)
        return jax.tree.map(lambda x: x[at] if at else x, self.states[site.name])

    def _added(self, site: Site, tap: Tap, total: Any, x: Any, indices: Indices) -> Any:
        """``total [S..., ...]`` with the rows of ``x [S without slots..., rows..., features]`` added to the entry at hand."""
        at, own = _entry(site, indices), len(site.stack) - len(site.slots)
        weight = None
        if tap.of != "operands":
            weight = self._row_weights(site, x.ndim - own - (site.kind != "gather" or tap.of == "output"), at)
        add = lambda acc, x: tap.add(acc, x, weight, site)
        for _ in range(own):
            add = jax.vmap(add)
        part = jax.tree.map(lambda t: t[at], total) if at else total
        new = add(part, x)
        return jax.tree.map(lambda t, n: t.at[at].set(n) if at else n.astype(t.dtype), total, new)

    def _row_weights(self, site: Site, n_rows: int, at: tuple[Any, ...]) -> Any:
        weights = self.weights
        if isinstance(weights, Mapping):
            weights = weights[site.name][at] if site.name in weights else None
        if weights is None:
            return None
        wanted = range(weights.ndim)
        if any(site.rows.count(axis) != 1 for axis in wanted):
            self.recorder.add("note", site.name, "is measured unweighted: rows of the inputs can't be followed to it")
            return None
        order = [axis for axis in site.rows if axis is not None]
        shape = [1 if axis is None else weights.shape[axis] for axis in site.rows]
        return weights.transpose(order).reshape(shape + [1] * (n_rows - len(shape)))

    @staticmethod
    def _check(site: Site, rule: Rule, out: Any, aval: Any) -> None:
        if out.shape != aval.shape or out.dtype != aval.dtype:
            raise ValueError(
                f"{site.name}: rule {rule.name} returned {out.dtype}{list(out.shape)}, the site gives "
                f"{aval.dtype}{list(aval.shape)}; cast or reshape the result in the rule"
            )

    def shared(self, old: Any, new: Any) -> Any:
        """One object for all equal programs that one function's jaxpr ``old`` became, so that it is compiled once."""
        return self._shared.setdefault((id(old), str(new)), new)

    def names(self, key: Key) -> set[tuple[str, str]]:
        """The taps under an address."""
        return {(self.sites[k].name, name) for k, own in self.taps.items() for name in own if k[: len(key)] == key}

    def zeros(self, key: Key = ()) -> Totals:
        """The empty accumulators of all taps under an address, with each site's stack as leading axes."""
        found: Totals = {}
        for k, own in self.taps.items():
            if k[: len(key)] == key:
                site = self.sites[k]
                spread = lambda x, site=site: jnp.broadcast_to(x, (*site.stack, *jnp.shape(x)))
                found |= {(site.name, name): jax.tree.map(spread, tap.zero(site)) for name, tap in own.items()}
        return found

    def merge(self, a: Totals, b: Totals) -> Totals:
        """Joins two measurements of the same sites."""
        out = {}
        for k, own in self.taps.items():
            for name, tap in own.items():
                total, merge = (self.sites[k].name, name), tap.merge
                for _ in self.sites[k].stack:
                    merge = jax.vmap(merge)
                if total in a:
                    out[total] = merge(a[total], b[total])
        return out


def _seen(tap: Tap, site: Site, lhs: Any, rhs: Any, out: Any) -> Any:
    """What a tap gets of a site: its ``x``."""
    if tap.of == "operands":
        return lhs, rhs
    return normal.activation(site, lhs, rhs) if tap.of == "input" else normal.output(site, out)


def _entry(site: Site, indices: Indices) -> tuple[Any, ...]:
    """The place in a site's slots at which it is."""
    return tuple(indices[slot] for slot in site.slots)


def _declined(rule: Rule, site: Site, lhs: Any, rhs: Any) -> str:
    """Names all leaves behind a weight that is computed from several, of which the site's name tells one."""
    kinds = " x ".join(x.describe() if is_compressed(x) else str(x.dtype) for x in (lhs, rhs))
    leaves = f"; its weight is computed from {', '.join(site.leaves)}" if len(site.leaves) > 1 else ""
    return f"rule {rule.name} does not take {kinds}{leaves}"
