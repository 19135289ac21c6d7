"""Evaluates a model's jaxpr with compressed tensors in place, rules at its sites and taps on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_nn.core.model import Site
from jaxopt_nn.core.report import Recorder
from jaxopt_nn.core.rule import Rule, Tap
from jaxopt_nn.core.transform import State
from jaxopt_nn.interpret import algebra, calls, jaxprs
from jaxopt_nn.interpret.analyse import Key
from jaxopt_nn.tensors.base import is_compressed

Measured = dict[str, Any]  # {site name: accumulator}


@dataclasses.dataclass
class Evaluator:
    """One evaluation of a program; calls itself for inner jaxprs.

    Attributes:
      sites: of the program. rules, taps: by site key. layer_scans: see ``Analysis``.
      recorder: collects what is densified, left in float, or entered against a custom derivative.
    """

    sites: Mapping[Key, Site]
    rules: Mapping[Key, Rule]
    taps: Mapping[Key, Tap]
    layer_scans: frozenset[Key]
    recorder: Recorder

    def __post_init__(self) -> None:
        keys = (*self.rules, *self.taps)
        self._entered = {key[:n] for key in keys for n in range(len(key))}
        self._shared: dict[tuple[int, str], Any] = {}

    def run(
        self, jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], key: Key, states: Mapping[str, State]
    ) -> tuple[list[Any], Measured]:
        """The outputs of an open jaxpr at address ``key``, and what the taps inside it measured."""
        env: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))
        measured: Measured = {}
        for i, (eqn, dead) in enumerate(zip(jaxpr.eqns, jaxprs.last_uses(jaxpr), strict=True)):
            operands = [v.val if jaxprs.is_literal(v) else env[v] for v in eqn.invars]
            with jaxprs.context_of(eqn):
                outs, new = self.equation((*key, i), eqn, operands, states)
            measured.update(new)
            env.update(zip(eqn.outvars, outs, strict=True))
            for var in dead:
                env.pop(var, None)
        return [v.val if jaxprs.is_literal(v) else env[v] for v in jaxpr.outvars], measured

    def equation(
        self, key: Key, eqn: Any, operands: Sequence[Any], states: Mapping[str, State]
    ) -> tuple[list[Any], Measured]:
        if key in self.rules or key in self.taps:
            return self._site(key, eqn, operands, states)
        compressed = any(map(is_compressed, operands))
        inner = jaxprs.bodies(eqn)
        if inner is not None and (compressed or key in self._entered):
            custom = eqn.primitive.name in jaxprs.CUSTOM_DERIVATIVES
            if not (custom and not jaxprs.has_site(inner[0].jaxpr)):
                return calls.CALLS[eqn.primitive.name](self, key, eqn, operands, states)
        if not compressed:
            return jaxprs.bind(eqn, operands), {}
        return self.plain(eqn, operands, self._name(key, eqn)), {}

    def plain(self, eqn: Any, operands: Sequence[Any], where: str) -> list[Any]:
        """The equation by the tensors' algebra, or on densified operands: then the report says so."""
        if not any(map(is_compressed, operands)):
            return jaxprs.bind(eqn, operands)
        outs = algebra.apply(eqn, operands)
        if outs is not None:
            return outs
        return jaxprs.bind(
            eqn, [self.densified(x, where, f"`{eqn.primitive.name}` reads it as a float array") for x in operands]
        )

    def densified(self, x: Any, where: str, reason: str) -> Any:
        if not is_compressed(x):
            return x
        self.recorder.add("densified", where, f"{reason}: {type(x).__name__} {list(x.shape)}")
        return x.densify()

    def _name(self, key: Key, eqn: Any) -> str:
        if key in self.sites:
            return self.sites[key].name
        return f"@{eqn.source_info.name_stack}"

    def _site(
        self, key: Key, eqn: Any, operands: Sequence[Any], states: Mapping[str, State]
    ) -> tuple[list[Any], Measured]:
        rest = operands[2:]
        known = self.sites[key]
        site = dataclasses.replace(known, run=lambda lhs, rhs: self.plain(eqn, [lhs, rhs, *rest], known.name)[0])
        lhs, rhs = operands[:2]
        out: Any = NotImplemented
        if (rule := self.rules.get(key)) is not None:
            state = states.get(site.name)
            out = rule.apply(site, rule.init(site, None) if state is None else state, lhs, rhs)
            if out is NotImplemented:
                self.recorder.add("float", site.name, f"rule {rule.name} does not take {_kind(lhs)} x {_kind(rhs)}")
            else:
                self._check(site, rule, out, eqn.outvars[0].aval)
        out = site.run(lhs, rhs) if out is NotImplemented else out
        measured = {}
        if (tap := self.taps.get(key)) is not None:
            seen = _activation(site, lhs, rhs) if tap.of == "input" else _output(site, out)
            measured[site.name] = tap.add(tap.zero(site), seen, site)
        return [out], measured

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

    def zeros(self, key: Key) -> Measured:
        """The empty accumulators of all taps under an address."""
        return {
            self.sites[k].name: jax.tree.map(jnp.asarray, tap.zero(self.sites[k]))
            for k, tap in self.taps.items()
            if k[: len(key)] == key
        }

    def merge(self, a: Measured, b: Measured) -> Measured:
        """Joins two measurements of the same sites."""
        by_name: dict[str, Callable[[Any, Any], Any]] = {self.sites[k].name: tap.merge for k, tap in self.taps.items()}
        return {name: by_name[name](a[name], b[name]) for name in a}

    def stateful(self, key: Key, states: Mapping[str, State]) -> Mapping[str, State]:
        """The states of the rules under an address."""
        names = {self.sites[k].name for k in self.rules if k[: len(key)] == key}
        return {name: s for name, s in states.items() if name in names}


def _kind(x: Any) -> str:
    return f"{type(x).__name__ if is_compressed(x) else 'array'} {x.dtype}{list(x.shape)}"


def _activation(site: Site, lhs: Any, rhs: Any) -> Any:
    """The site's activation as ``[..., I]``: contracted axes last, flattened; a convolution's input as patches.

    Patches are ``[B, spatial..., I * taps]``, input feature slowest. Where both operands are activations it is the left.
    """
    weight = 1 if site.weight is None else site.weight
    x = (rhs, lhs)[weight]
    if site.kind == "dot":
        contracting, batch = (part[1 - weight] for part in site.params["dimension_numbers"])
        free = [i for i in range(x.ndim) if i not in (*contracting, *batch)]
        x = x.transpose((*batch, *free, *contracting))
        return x.reshape((*x.shape[: len(batch) + len(free)], -1))
    if site.kind == "gather":
        return x
    numbers = site.params["dimension_numbers"]
    spatial = [site.shapes[1][i] for i in numbers.rhs_spec[2:]]
    patches = jax.lax.conv_general_dilated_patches(
        x, spatial, site.params["window_strides"], site.params["padding"],
        lhs_dilation=site.params["lhs_dilation"], rhs_dilation=site.params["rhs_dilation"],
        dimension_numbers=jax.lax.ConvDimensionNumbers(numbers.lhs_spec, tuple(range(x.ndim)), numbers.lhs_spec),
    )  # fmt: skip
    return jnp.moveaxis(patches, numbers.lhs_spec[1], -1)


def _output(site: Site, out: Any) -> Any:
    """The site's output as ``[..., O]``."""
    if site.kind == "conv":
        return jnp.moveaxis(out, site.params["dimension_numbers"].out_spec[1], -1)
    return out
