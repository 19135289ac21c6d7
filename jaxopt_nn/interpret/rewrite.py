"""``rewrite`` and ``capture``: a model with rules at its sites, or with statistics streamed from them."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_nn.core.arguments import is_factory, require
from jaxopt_nn.core.model import Site
from jaxopt_nn.core.paths import leaves_by_path, map_with_path, near_misses
from jaxopt_nn.core.report import Recorder, Report
from jaxopt_nn.core.rule import Rule
from jaxopt_nn.core.tap import Tap
from jaxopt_nn.core.transform import State, Transform, explain
from jaxopt_nn.formulations.table import Choice
from jaxopt_nn.interpret import jaxprs
from jaxopt_nn.interpret.cases import EXAMPLES, Cases, assigned, cases_of
from jaxopt_nn.interpret.evaluate import Evaluator, Totals
from jaxopt_nn.interpret.explain import Watched, runs
from jaxopt_nn.interpret.leaves import told
from jaxopt_nn.interpret.program import Program, check_apply, check_numbers, dense_like, flatten, trace_model
from jaxopt_nn.interpret.stored import Prepared, stored
from jaxopt_nn.interpret.tags import Key
from jaxopt_nn.tensors.base import is_compressed

PyTree = Any
#: The name of a tap that came without one.
SINGLE = "tap"


class Rewritten:
    """A model evaluated by the interpreter; call it as the model: ``(variables, *inputs)``.

    Traced once for each structure and abstract values of its arguments. Under a transformation (``jit``, ``grad``,
    ``vmap``) it becomes part of the caller's trace; called on plain arrays it is compiled, and tensors in stored form are
    prepared first, once.
    """

    def __init__(self, apply: Callable[..., PyTree], rules: Cases):
        self._apply, self._rules = apply, tuple(rules)
        self._programs: dict[Hashable, Program] = {}
        self._prepared = Prepared(self._rules)
        self._jitted = jax.jit(self._warned)

    def __call__(self, variables: PyTree, *inputs: PyTree, states: Mapping[str, State] | None = None) -> PyTree:
        states = dict(states or {})
        if any(map(jaxprs.is_tracer, jax.tree.leaves((variables, inputs, states)))):
            return self._warned(variables, inputs, states)
        check_numbers(variables, inputs)
        if not any(map(is_compressed, leaves_by_path(variables).values())):
            return self._jitted(variables, inputs, states)
        program = self.program(variables, inputs)
        read = {leaf.path for leaf in program.info.leaves if leaf.sites}
        outs = self._jitted(self._prepared(variables, read), inputs, states)
        # a leaf that is handed through is the caller's, not its prepared form
        leaves = dict(zip(program.jaxpr.invars, flatten(variables, inputs)[0], strict=True))
        flat = jax.tree.leaves(outs, is_leaf=is_compressed)
        same = [x if jaxprs.is_literal(v) else leaves.get(v, x) for v, x in zip(program.jaxpr.outvars, flat, strict=True)]
        return jax.tree.unflatten(program.out_tree, same)

    def _warned(self, variables: PyTree, inputs: tuple[PyTree, ...], states: dict[str, State]) -> PyTree:
        """The outputs; warns once a trace where no rule takes a compressed weight."""
        recorder = Recorder()
        outs = self._evaluate(variables, inputs, states, recorder)
        if said := self.unused(variables, inputs, recorder.report()):
            warnings.warn(said, stacklevel=2)
        return outs

    def unused(self, variables: PyTree, inputs: tuple[PyTree, ...], report: Report) -> str | None:
        """What is to be said where all compressed weights at which rules stand are left in float; else None.

        Args:
          report: of these arguments, as ``explain`` gives it.
        """
        leaves, program = leaves_by_path(variables), self.program(variables, inputs)
        sites = [program.sites[key] for key in assigned(program, self._rules, "rule")] if self._rules else []
        whole = [site for site in sites if len(site.leaves) == 1 and not site.derived]
        coded = [site.name for site in whole if is_compressed(leaves[site.leaves[0]])]
        declined = {message.path: message.reason for message in report.of("float")}
        if not coded or any(name not in declined for name in coded):
            return None
        return (
            f"{coded[0]}: {declined[coded[0]]}; the rules take none of {len(coded)} compressed weights, and all run in float: "
            "pass a rule of their width, e.g. arithmetic('w8a8') for 8 bits, or quantize to a width that the rule takes"
        )

    def program(self, variables: PyTree, inputs: tuple[PyTree, ...], rows: tuple[int, ...] = ()) -> Program:
        """The traced model for these arguments; ``rows`` as in ``trace_model``."""
        key = (_key(variables, inputs), rows)
        if key in self._programs:
            return self._programs[key]
        program = trace_model(self._apply, variables, inputs, rows)
        if not any(map(jaxprs.is_tracer, program.consts)):
            self._programs[key] = program
        return program

    def explain(
        self,
        variables: PyTree,
        *inputs: PyTree,
        states: Mapping[str, State] | None = None,
        method: Transform | None = None,
    ) -> Report:
        """A row for each leaf: what stands there, its role, what the program does at each of its sites, and why.

        Nothing is run: it is read off the jaxpr of this very call under ``jit``. Messages name what is densified, left in
        float, not in the form that the backend runs, or entered against a custom derivative; with ``method`` also what it
        leaves alone (``core.transform.explain``).
        """
        recorder, chosen = Recorder(), dict[Key, Sequence[Choice]]()
        watched = functools.partial(Watched, chosen=chosen)
        run = lambda v, x, s: self._evaluate(v, x, s, recorder, watched)
        closed = jax.make_jaxpr(run)(variables, inputs, dict(states or {}))
        program = self.program(variables, inputs)
        executions, others = runs(closed, program.sites, chosen)
        mixed = {site.name for site in program.sites.values() if site.weight is None}
        for message in recorder.report().of("float"):
            if message.path in mixed:
                executions[message.path] = dataclasses.replace(executions[message.path], reason=message.reason)
        report = Report(tuple(m for m in recorder.report() if m.kind != "float" or m.path not in mixed))
        report = report + stored(variables, self._rules) + program.info.report.of("opaque", "constant")
        if method is not None:
            dense = map_with_path(lambda path, x: dense_like(x), variables)
            report = explain(method, dense, program.info) + report
        return told(program.info, leaves_by_path(variables), report, executions, others)

    def init(self, variables: PyTree, *inputs: PyTree, stats: Mapping[str, Any] | None = None) -> dict[str, State]:
        """The initial states of the rules that have one, by site, with the site's slots as leading axes.

        Args:
          inputs: arrays or ``jax.ShapeDtypeStruct``.
          stats: ``{site: {tap: statistic}}`` of ``taps``.
        """
        states = {}
        for site, rule in self._ruled(variables, inputs):
            own = (stats or {}).get(site.name)
            state = _over_slots(site, functools.partial(rule.init, site))(own)
            if jax.tree.leaves(state):
                states[site.name] = state
        return states

    def taps(self, variables: PyTree, *inputs: PyTree) -> dict[str, Mapping[str, Tap]]:
        """What the rules ask ``init`` to be told of each site: ``{site: {name: Tap}}``."""
        by_site = {site.name: rule.taps(site) for site, rule in self._ruled(variables, inputs)}
        return {name: own for name, own in by_site.items() if own}

    def measure(
        self, variables: PyTree, *inputs: PyTree, states: Mapping[str, State] | None = None, weights: Any = None
    ) -> tuple[PyTree, dict[str, dict[str, Any]]]:
        """The outputs, and ``{site: {name: statistic}}`` of what the rules measure in the same pass, without a gradient.

        Args:
          weights: of the rows of the inputs, as in ``capture``.
        """
        program = self.program(variables, inputs, () if weights is None else tuple(weights.shape))
        rules = assigned(program, self._rules, "rule")
        wanted = {key: rule.measures(program.sites[key]) for key, rule in rules.items() if not _in_condition(program, key)}
        taps = {key: {name: _stopped(tap) for name, tap in own.items()} for key, own in wanted.items() if own}
        evaluator = self._evaluator(program, dict(states or {}), Recorder(), Evaluator, taps, weights)
        outs, totals = _run(program, evaluator, variables, inputs, evaluator.zeros())
        measured: dict[str, dict[str, Any]] = {}
        for (site, name), total in totals.items():
            measured.setdefault(site, {})[name] = total
        return outs, measured

    def update(
        self, variables: PyTree, *inputs: PyTree, states: Mapping[str, State], measured: Mapping[str, Any], step: Any
    ) -> dict[str, State]:
        """The states after a step of training: each rule's ``update`` on what ``measure`` gave."""
        new = dict(states)
        for site, rule in self._ruled(variables, inputs):
            if site.name in new:
                update = functools.partial(_updated, rule, site, step)
                new[site.name] = _over_slots(site, update)((new[site.name], measured.get(site.name, {})))
        return new

    def _ruled(self, variables: PyTree, inputs: tuple[PyTree, ...]) -> Iterator[tuple[Site, Rule]]:
        program = self.program(variables, inputs)
        for key, rule in assigned(program, self._rules, "rule").items():
            yield program.sites[key], rule

    def _evaluate(
        self,
        variables: PyTree,
        inputs: tuple[PyTree, ...],
        states: dict[str, State],
        recorder: Recorder,
        evaluator: Callable[..., Evaluator] = Evaluator,
    ) -> PyTree:
        program = self.program(variables, inputs)
        return _run(program, self._evaluator(program, states, recorder, evaluator), variables, inputs)[0]

    def _evaluator(
        self,
        program: Program,
        states: dict[str, State],
        recorder: Recorder,
        evaluator: Callable[..., Evaluator],
        taps: Mapping[Key, Mapping[str, Tap]] = MappingProxyType({}),
        weights: Any = None,
    ) -> Evaluator:
        rules = assigned(program, self._rules, "rule")
        for key in [k for k, rule in rules.items() if program.sites[k].weight is None and not rule.activations]:
            site, rule = program.sites[key], rules.pop(key)
            recorder.add("float", site.name, f"no operand is a weight, and rule {rule.name} takes weights only")
        _check_states(program, rules, states)
        return evaluator(program.sites, rules, taps, recorder, states, weights, program.behind)


class Capturing:
    """A model with taps on its sites; call it as the model: ``(variables, *inputs) -> (outputs, statistics)``.

    Traced and compiled as a ``Rewritten``. Over several batches: ``zeros``, ``accumulate`` for each, ``statistics`` at the end.
    """

    def __init__(self, apply: Callable[..., PyTree], taps: Callable[[Program], dict[Key, dict[str, Tap]]]):
        self._model, self._taps = Rewritten(apply, ()), taps
        self._shares: dict[tuple[str, str], tuple[str, str]] = {}
        self._jitted = jax.jit(lambda v, x, w: self._evaluate(v, x, w, None, Recorder()))

    def __call__(self, variables: PyTree, *inputs: PyTree, weights: Any = None) -> tuple[PyTree, dict[str, Any]]:
        if any(map(jaxprs.is_tracer, jax.tree.leaves((variables, inputs, weights)))):
            outs, totals = self._evaluate(variables, inputs, weights, None, Recorder())
        else:
            outs, totals = self._jitted(variables, inputs, weights)
        return outs, self.statistics(totals)

    def zeros(self, variables: PyTree, *inputs: PyTree, weights: Any = None) -> Totals:
        """The totals of no batch: ``{(site, tap): accumulator}``, one for sites that share it; sites with own weights don't."""
        return self._evaluator(self._model.program(variables, inputs), weights, Recorder()).zeros()

    def accumulate(self, totals: Totals, variables: PyTree, *inputs: PyTree, weights: Any = None) -> Totals:
        """``totals`` with this batch added; pure, so that a caller may compile it and donate ``totals``."""
        return self._evaluate(variables, inputs, weights, totals, Recorder())[1]

    def statistics(self, totals: Totals) -> dict[str, Any]:
        """``{site: statistic}``, of a site with named taps ``{site: {tap: statistic}}``."""
        by_site: dict[str, dict[str, Any]] = {}
        for (site, name), first in self._shares.items():
            if first in totals:
                by_site.setdefault(site, {})[name] = totals[first]
        return {site: own[SINGLE] if tuple(own) == (SINGLE,) else own for site, own in by_site.items()}

    def explain(self, variables: PyTree, *inputs: PyTree, weights: Any = None) -> Report:
        """What is not measured, or not weighed; nothing is run."""
        recorder = Recorder()
        jax.eval_shape(lambda v, x, w: self._evaluate(v, x, w, None, recorder), variables, inputs, weights)
        said = {message.path: message.reason for message in recorder.report().of("note")}
        for (site, _), (first, _) in self._shares.items():
            if site != first and first in said:  # what is said of a statistic holds for all sites that share it
                recorder.add("note", site, said[first])
        return recorder.report()

    def _evaluator(self, program: Program, weights: Any, recorder: Recorder) -> Evaluator:
        """Sites that read the same activation in the same way share a statistic of it: the first measures it."""
        first: dict[Hashable, tuple[str, str]] = {}
        measured: dict[Key, dict[str, Tap]] = {}
        for key, own in self._taps(program).items():
            site = program.sites[key]
            if _in_condition(program, key):
                recorder.add("note", site.name, "lies in the condition of a `while`, which measures nothing")
                continue
            for name, tap in own.items():
                alone = isinstance(weights, Mapping) and site.name in weights
                mark = (site.reads, tap) if site.reads is not None and tap.of == "input" and not alone else (key, name)
                self._shares[site.name, name] = first.setdefault(mark, (site.name, name))
                if first[mark] == (site.name, name):
                    measured.setdefault(key, {})[name] = tap
        return Evaluator(program.sites, {}, measured, recorder, {}, weights, program.behind)

    def _evaluate(
        self, variables: PyTree, inputs: tuple[PyTree, ...], weights: Any, totals: Totals | None, recorder: Recorder
    ) -> tuple[PyTree, Totals]:
        program = self._model.program(variables, inputs, self._lengths(variables, inputs, weights))
        evaluator = self._evaluator(program, weights, recorder)
        return _run(program, evaluator, variables, inputs, evaluator.zeros() if totals is None else totals)

    def _lengths(self, variables: PyTree, inputs: tuple[PyTree, ...], weights: Any) -> tuple[int, ...]:
        """The lengths of the rows that are weighed."""
        if weights is None or not isinstance(weights, Mapping):
            return () if weights is None else tuple(weights.shape)
        sites = {site.name: site for site in self._model.program(variables, inputs).sites.values()}
        lengths = set()
        for name, own in weights.items():
            if name not in sites:
                near = ", ".join(near_misses(name, sites) or list(sites)[:3])
                raise ValueError(f"weights[{name!r}]: no such site; nearest: {near}")
            slots = sites[name].stack[: len(sites[name].slots)]
            lengths.add(tuple(own.shape[len(slots) :]))
            if tuple(own.shape[: len(slots)]) != slots or len(lengths) > 1:
                raise ValueError(
                    f"weights[{name!r}]: shape {list(own.shape)}; give {list(slots)} entries of its stack, then [B] or [B, T], "
                    "the same for all sites"
                )
        return lengths.pop() if lengths else ()


def _run(
    program: Program, evaluator: Evaluator, variables: PyTree, inputs: tuple[PyTree, ...], totals: Any = None
) -> tuple[PyTree, Any]:
    flat, _ = flatten(variables, inputs)
    outs, totals, _ = evaluator.run(program.jaxpr, program.consts, flat, (), totals or {}, {})
    operands = {id(x) for x in flat}
    dense = evaluator.dense((-1,), [None if id(x) in operands else x for x in outs], "`apply` returns it")
    outs = [x if id(x) in operands else d for x, d in zip(outs, dense, strict=True)]
    return jax.tree.unflatten(program.out_tree, outs), totals


def _in_condition(program: Program, key: Key) -> bool:
    """Whether a site lies in the condition of a ``while``, where nothing can be measured."""
    return any(key[: len(test)] == test for test in program.conditions)


def _stopped(tap: Tap) -> Tap:
    """A tap through which no gradient flows."""
    return tap._replace(add=lambda total, x, weight, site: tap.add(total, jax.lax.stop_gradient(x), weight, site))


def _over_slots(site: Site, fn: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """``fn`` of one entry of a site's slots, for all of them: they lead every axis."""
    for n in reversed(site.stack[: len(site.slots)]):
        fn = jax.vmap(fn, axis_size=n)
    return fn


def _updated(rule: Rule, site: Site, step: Any, pair: tuple[State, Mapping[str, Any]]) -> State:
    return rule.update(site, *pair, step)


def _check_states(program: Program, rules: Mapping[Key, Rule], states: Mapping[str, State]) -> None:
    """Raises ValueError where a state has no site, or other leaves, shapes or dtypes than its rule's."""
    if not states:
        return
    by_name = {program.sites[key].name: (program.sites[key], rule) for key, rule in rules.items()}
    for name, state in states.items():
        if name not in by_name:
            near = ", ".join(near_misses(name, by_name) or list(by_name)[:3]) or "none"
            raise ValueError(
                f"states[{name!r}]: no rule stands at such a site; is it the state of another network? nearest: {near}"
            )
        site, rule = by_name[name]
        wanted = _abstract_leaves(jax.eval_shape(lambda site=site, rule=rule: _blank(site, rule)))
        if _abstract_leaves(state) != wanted:
            raise ValueError(
                f"states[{name!r}]: holds {_shapes(_abstract_leaves(state))}, rule {rule.name} has {_shapes(wanted)} there; is "
                "it the state of another network, or of another rule?"
            )


def _blank(site: Site, rule: Rule) -> State:
    """A state of the structure that a rule has at a site."""
    own = rule.taps(site)
    spread = lambda x: jnp.broadcast_to(x, (*site.stack, *jnp.shape(x)))
    stats = {name: jax.tree.map(spread, tap.zero(site)) for name, tap in own.items()} if own else None
    return _over_slots(site, functools.partial(rule.init, site))(stats)


def _abstract_leaves(state: State) -> dict[str, tuple[Any, ...]]:
    return {path: (tuple(jnp.shape(x)), jnp.result_type(x)) for path, x in leaves_by_path(state._asdict()).items()}


def _shapes(leaves: Mapping[str, tuple[Any, ...]]) -> str:
    return ", ".join(f"{path} {dtype}{list(shape)}" for path, (shape, dtype) in leaves.items()) or "nothing"


def _key(variables: PyTree, inputs: tuple[PyTree, ...]) -> Hashable:
    """Structure and abstract values; a compressed tensor and the dense leaf it stands for trace the same model."""
    flat, tree = flatten(variables, inputs)
    return tree, tuple(map(_abstract, flat))


def _abstract(leaf: Any) -> Hashable:
    aval = dense_like(leaf)
    return aval.shape, aval.dtype, getattr(aval, "weak_type", False)


def rewrite(apply: Callable[..., PyTree], rules: Rule | Mapping[str, Rule] | Cases = ()) -> Rewritten:
    """The model with rules at its sites. With no rules it evaluates compressed tensors as they are (weight-only).

    Args:
      apply: pure function ``(variables, *inputs)``; it must not know of compressed tensors.
      rules: one ``Rule`` for all sites, or ``[(pattern, Rule), ...]`` over site names and leaf paths: first match wins.

    Returns:
      ``(variables, *inputs, states=None) -> outputs``; ``states`` are the rules' states by site. Its method
      ``explain(variables, *inputs)`` gives the report.

    Raises:
      TypeError: ``rules`` is none of these.
      ValueError: at the first call, a pattern that matches no site.

    Example:
      >>> v = {"kernel": jnp.linspace(-1, 1, 64 * 64).reshape(64, 64)}
      >>> method = jn.quantize(4)
      >>> stored = method.pack(v, method.init(v))
      >>> run = jn.rewrite(lambda v, x: x @ v["kernel"])  # the model's code knows of no compressed tensor
      >>> run(stored, jnp.ones((2, 64))).shape
      (2, 64)
    """
    check_apply(apply)
    return Rewritten(apply, cases_of(rules, Rule, "rules"))


def capture(
    apply: Callable[..., PyTree], taps: Tap | Mapping[str, Tap] | Cases | Callable[[Site], Mapping[str, Tap]]
) -> Capturing:
    """The model with statistics streamed from its sites: ``(variables, *inputs) -> (outputs, {site: statistic})``.

    A statistic has the site's stack as leading axes: a layer of a scanned or indexed stack, an expert, a group has its own.
    A weight that all turns of a loop share has one; so have the shards of a ``shard_map``. A branch that is not taken
    measures nothing. Sites that read the same activation share one statistic of it.

    Called with ``weights=``, float32 ``[B]`` or ``[B, T]`` for inputs ``[B, T, ...]``, rows count as much as they say, as
    far as their axes can be followed to a site; ``explain`` names the sites that are measured unweighted. A mapping
    ``{site: [S..., B, T]}``, S its slots, weighs these sites and no other, each layer by its own.

    Args:
      apply: pure function ``(variables, *inputs)``.
      taps: one ``Tap`` for all sites; ``[(pattern, Tap), ...]``, first match wins; or a function of the site. In a Tap's
        place may stand ``{name: Tap}``; then such a site's statistics are ``{name: statistic}``.

    Raises:
      TypeError: ``taps`` is none of these, or is empty.
      ValueError: at the first call, a pattern that matches no site.

    Example:
      >>> def apply(v, x):
      ...     return jax.nn.relu(x @ v["up"]) @ v["down"]
      >>> v = {"up": jnp.array([[1.0, -1.0]]), "down": jnp.ones((2, 1))}
      >>> outputs, stats = jn.capture(apply, jn.abs_max())(v, jnp.array([[2.0], [3.0]]))
      >>> stats["up"], stats["down"]  # what each site reads: the second behind the ReLU
      (Array([3.], dtype=float32), Array([3., 0.], dtype=float32))
    """
    check_apply(apply)
    if callable(taps) and not is_factory(taps):
        return Capturing(apply, lambda program: {k: dict(own) for k, s in program.sites.items() if (own := taps(s))})
    cases = []
    for pattern, tap in cases_of(taps, Tap, "taps", groups=True):
        named = tap if isinstance(tap, Mapping) else {SINGLE: tap}
        cases.append((pattern, {name: require(each, Tap, f"taps: {name!r}", EXAMPLES[Tap]) for name, each in named.items()}))
    if not all(named for _, named in cases) or not cases:
        raise TypeError(f"capture: no tap; pass one, e.g. {EXAMPLES[Tap]}, or a list of pairs (pattern, Tap)")
    return Capturing(apply, lambda program: {k: dict(own) for k, own in assigned(program, cases, "tap").items()})
