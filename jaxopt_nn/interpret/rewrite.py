"""``rewrite`` and ``capture``: a model with rules at its sites, or with statistics streamed from them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import jax

from jaxopt_nn.core.model import Site
from jaxopt_nn.core.paths import matches, near_misses
from jaxopt_nn.core.report import Recorder, Report
from jaxopt_nn.core.rule import Rule, Tap
from jaxopt_nn.core.transform import State
from jaxopt_nn.interpret import jaxprs
from jaxopt_nn.interpret.evaluate import Evaluator
from jaxopt_nn.interpret.program import Program, dense_like, flatten, trace_model

PyTree = Any
Cases = Sequence[tuple[str, Any]]


class Rewritten:
    """A model evaluated by the interpreter; call it as the model: ``(variables, *inputs)``.

    Traced once for each structure and abstract values of its arguments. Under a transformation (``jit``, ``grad``,
    ``vmap``) it becomes part of the caller's trace; called on plain arrays it is compiled.
    """

    def __init__(self, apply: Callable[..., PyTree], rules: Cases, taps: Cases):
        self._apply, self._rules, self._taps = apply, tuple(rules), tuple(taps)
        self._programs: dict[Hashable, Program] = {}
        self._jitted = jax.jit(lambda v, x, s: self._evaluate(v, x, s, Recorder()))

    def __call__(self, variables: PyTree, *inputs: PyTree, states: Mapping[str, State] | None = None) -> PyTree:
        states = dict(states or {})
        if any(map(jaxprs.is_tracer, jax.tree.leaves((variables, inputs, states)))):
            return self._evaluate(variables, inputs, states, Recorder())
        return self._jitted(variables, inputs, states)

    def program(self, variables: PyTree, inputs: tuple[PyTree, ...]) -> Program:
        """The traced model for these arguments."""
        key = _key(variables, inputs)
        if key in self._programs:
            return self._programs[key]
        program = trace_model(self._apply, variables, inputs)
        if not any(map(jaxprs.is_tracer, program.consts)):
            self._programs[key] = program
        return program

    def explain(self, variables: PyTree, *inputs: PyTree, states: Mapping[str, State] | None = None) -> Report:
        """What is densified, left in float or entered against a custom derivative; nothing is run."""
        recorder = Recorder()
        jax.eval_shape(lambda v, x, s: self._evaluate(v, x, s, recorder), variables, inputs, dict(states or {}))
        return recorder.report()

    def init(self, variables: PyTree, *inputs: PyTree, stats: Mapping[str, Any] | None = None) -> dict[str, State]:
        """The initial states of the rules that have one, by site."""
        program = self.program(variables, inputs)
        rules = _assigned(program, self._rules, "rule")
        made = {
            program.sites[k].name: r.init(program.sites[k], (stats or {}).get(program.sites[k].name))
            for k, r in rules.items()
        }
        return {name: state for name, state in made.items() if jax.tree.leaves(state)}

    def _evaluate(
        self, variables: PyTree, inputs: tuple[PyTree, ...], states: dict[str, State], recorder: Recorder
    ) -> PyTree:
        program = self.program(variables, inputs)
        flat, _ = flatten(variables, inputs)
        rules = _assigned(program, self._rules, "rule")
        for key in [k for k, rule in rules.items() if program.sites[k].weight is None and not rule.activations]:
            site, rule = program.sites[key], rules.pop(key)
            recorder.add("float", site.name, f"no operand is a weight, and rule {rule.name} takes weights only")
        evaluator = Evaluator(
            program.sites, rules, _assigned(program, self._taps, "tap"), program.layer_scans, recorder
        )
        outs, measured = evaluator.run(program.jaxpr, program.consts, flat, (), states)
        given = {id(x) for x in flat}
        outs = [x if id(x) in given else evaluator.densified(x, "output", "`apply` returns it") for x in outs]
        out = jax.tree.unflatten(program.out_tree, outs)
        return (out, measured) if self._taps else out


def _key(variables: PyTree, inputs: tuple[PyTree, ...]) -> Hashable:
    """Structure and abstract values; a compressed tensor and the dense leaf it stands for trace the same model."""
    flat, tree = flatten(variables, inputs)
    return tree, tuple(map(_abstract, flat))


def _abstract(leaf: Any) -> Hashable:
    aval = dense_like(leaf)
    return aval.shape, aval.dtype, getattr(aval, "weak_type", False)


def _assigned(program: Program, cases: Cases, what: str) -> dict[tuple[int, ...], Any]:
    """``{site key: value of the first case whose pattern matches}``; a pattern is matched with the name and the leaf.

    Raises:
      ValueError: a pattern matches no site.
    """
    found: dict[tuple[int, ...], Any] = {}
    used: set[str] = set()
    for key, site in program.sites.items():
        for pattern, value in cases:
            if _site_matches(pattern, site):
                used.add(pattern)
                found.setdefault(key, value)
    names = [site.name for site in program.sites.values()]
    for pattern, _ in cases:
        if pattern not in used and pattern != "**":
            near = near_misses(pattern.replace("**/", "").replace("*", ""), names) or names[:3]
            raise ValueError(
                f"{what} pattern {pattern!r} matches no site of {len(names)}; nearest: {', '.join(near) or 'none'}"
            )
    return found


def _site_matches(pattern: str, site: Site) -> bool:
    return matches(pattern, site.name) or (site.leaf is not None and matches(pattern, site.leaf))


def _cases(given: Any, kind: type, what: str) -> Cases:
    if isinstance(given, kind):
        return [("**", given)]
    cases = list(given.items()) if isinstance(given, Mapping) else list(given)
    for case in cases:
        if not (isinstance(case, tuple) and len(case) == 2 and isinstance(case[0], str) and isinstance(case[1], kind)):
            raise TypeError(
                f"{what}: {case!r} is no (pattern, {kind.__name__}); pass one {kind.__name__} or a list of pairs"
            )
    return cases


def rewrite(apply: Callable[..., PyTree], rules: Rule | Mapping[str, Rule] | Cases = ()) -> Rewritten:
    """The model with rules at its sites. With no rules it evaluates compressed tensors as they are (weight-only).

    Args:
      apply: pure function ``(variables, *inputs)``; it must not know of compressed tensors.
      rules: one ``Rule`` for all sites, or ``[(pattern, Rule), ...]`` over site names and leaf paths: first match wins.

    Returns:
      ``(variables, *inputs, states=None) -> outputs``; ``states`` are the rules' states by site. Its method
      ``explain(variables, *inputs)`` gives the report.

    Raises:
      TypeError: ``rules`` is none of these. ValueError: at the first call, a pattern that matches no site.
    """
    return Rewritten(apply, _cases(rules, Rule, "rules"), ())


def capture(apply: Callable[..., PyTree], taps: Tap | Mapping[str, Tap] | Cases) -> Rewritten:
    """The model with statistics streamed from its sites: ``(variables, *inputs) -> (outputs, {site: accumulated})``.

    A site inside a scan over layers is measured per layer: its accumulator has the layers as leading axis. Iterations of
    other loops, and the shards of a ``shard_map``, are merged; a branch that is not taken measures nothing.

    Args:
      apply: pure function ``(variables, *inputs)``.
      taps: one ``Tap`` for all sites, or ``[(pattern, Tap), ...]``: first match wins.

    Raises:
      TypeError: ``taps`` is none of these, or is empty. ValueError: at the first call, a pattern that matches no site.
    """
    cases = _cases(taps, Tap, "taps")
    if not cases:
        raise TypeError("capture needs at least one tap")
    return Rewritten(apply, (), cases)
