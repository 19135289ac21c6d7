"""Combinators over transforms: ``chain``, ``by_path``, ``where``, ``every``, ``between``, ``later``, ``frozen``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_nn.core.model import ModelInfo
from jaxopt_nn.core.paths import leaves_by_path, map_with_path, matches, require_match
from jaxopt_nn.core.transform import LeafTraits, PyTree, State, Traits, Transform, keep_state
from jaxopt_nn.tensors.base import is_compressed


def chain(*members: Transform) -> Transform:
    """Composes transforms: each member sees the view of the one before it, and packs nest as views compose.

    Raises:
      ValueError: no member; or, at ``init``, a leaf whose values are changed after a member that packs them, or a packer
        that loses zeros after a mask.
    """
    if not members:
        raise ValueError("chain() needs at least one transform; identity() is the one that does nothing")
    if len(members) == 1:
        return members[0]

    def views(params: PyTree, state: State) -> list[PyTree]:
        seen = [params]
        for member, learnt, carried in zip(members, state.learnt, state.carried, strict=True):
            seen.append(member.view(seen[-1], State(learnt, carried)))
        return seen

    def init(params: PyTree, info: ModelInfo = ModelInfo()) -> State:
        _check_order(members, params, info)
        states = []
        for i, member in enumerate(members):
            states.append(member.init(params, info))
            if i + 1 < len(members):
                params = _like(member.view, params, states[-1])
        return State(tuple(s.learnt for s in states), tuple(s.carried for s in states))

    def update(params: PyTree, state: State, *, step: Any = 0, grads: PyTree | None = None) -> State:
        pulled = _gradients_at_views(members, views(params, state), state, grads)
        carried = []
        for member, learnt, old, slope in zip(members, state.learnt, state.carried, pulled, strict=True):
            new = member.update(params, State(learnt, old), step=step, grads=slope)
            carried.append(new.carried)
            params = member.view(params, new)
        return State(state.learnt, tuple(carried))

    def project(params: PyTree, state: State) -> PyTree:
        for member, learnt, carried in zip(members, state.learnt, state.carried, strict=True):
            params = member.project(params, State(learnt, carried))
        return params

    def pack(params: PyTree, state: State) -> PyTree:
        packed = None
        for member, learnt, carried in zip(members, state.learnt, state.carried, strict=True):
            own = State(learnt, carried)
            inner = member.pack(params, own)
            packed = inner if packed is None else map_with_path(_nested, packed, params, inner)
            params = member.view(params, own)
        return packed

    def takes(path: str, leaf: Any, info: ModelInfo) -> LeafTraits | str:
        verdicts = [m.traits.takes(path, leaf, info) for m in members]
        taken = [v for v in verdicts if not isinstance(v, str)]
        if not taken:
            return "; ".join(dict.fromkeys(v for v in verdicts if isinstance(v, str)))
        packs = [v.packs for v in taken if v.packs]
        return LeafTraits(packs[-1] if packs else None, all(v.keeps_zeros for v in taken))

    needs = frozenset().union(*(m.traits.needs for m in members))
    local = all(m.traits.leaf_local for m in members)
    traits = Traits(takes, local, needs, _measures(members), _pending(members))
    return Transform(init, update, lambda p, s: views(p, s)[-1], project, pack, traits)


def _measures(members: Sequence[Transform]) -> Callable[..., dict[str, Any]] | None:
    """All that the members measure, on one model."""
    found = [m.traits.measure for m in members if m.traits.measure is not None]
    if not found:
        return None
    return lambda apply, variables, inputs: {k: v for each in found for k, v in each(apply, variables, inputs).items()}


def _pending(members: Sequence[Transform]) -> Callable[[int], str | None]:
    """All that the members still have to do."""
    return lambda step: "; ".join(filter(None, (m.traits.pending(step) for m in members))) or None


def _like(view: Callable[..., PyTree], params: PyTree, state: State) -> PyTree:
    """``view(params, state)``, also where the leaves are abstract."""
    abstract = any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves((params, state)))
    return jax.eval_shape(view, params, state) if abstract else view(params, state)


def _gradients_at_views(
    members: Sequence[Transform], seen: list[PyTree], state: State, grads: PyTree | None
) -> list[PyTree]:
    """The gradient at each member's own view: the chain's gradient, pulled back through the later members."""
    if grads is None or not any("grads" in m.traits.needs for m in members):
        return [grads] * len(members)
    pulled = [grads]
    for i in range(len(members) - 1, 0, -1):
        own = State(state.learnt[i], state.carried[i])
        _, pull = jax.vjp(lambda p, i=i, own=own: members[i].view(p, own), seen[i])
        pulled.insert(0, pull(pulled[0])[0])
    return pulled


def _nested(path: str, outer: Any, seen: Any, inner: Any) -> Any:
    """The packed leaf of two members in a row; the second saw the dense leaf ``seen`` and gave ``inner``."""
    return outer.nest(inner) if is_compressed(outer) and inner is not seen else (outer if inner is seen else inner)


def _check_order(members: Sequence[Transform], params: PyTree, info: ModelInfo) -> None:
    for path, leaf in leaves_by_path(params).items():
        packed = None
        for i, member in enumerate(members):
            verdict = member.traits.takes(path, leaf, info)
            if isinstance(verdict, str):
                continue
            if packed == "codes":
                raise ValueError(
                    f"{path}: member {i} of the chain changes values that an earlier member has packed into codes; "
                    "put the member that packs last"
                )
            if packed == "mask" and not verdict.keeps_zeros:
                raise ValueError(
                    f"{path}: member {i} of the chain does not keep zeros, after a member that prunes; "
                    "put it before the pruning, or use a form that represents zero exactly"
                )
            packed = verdict.packs or packed


def by_path(cases: Sequence[tuple[str, Transform]]) -> Transform:
    """Gives each leaf to the first case whose pattern matches its path; other leaves are left alone.

    Raises:
      ValueError: no case; or, at ``init``, a pattern that matches no leaf (near misses are named).
    """
    cases = list(cases)
    if not cases:
        raise ValueError("by_path() needs at least one (pattern, transform)")

    def case_of(path: str) -> int | None:
        return next((i for i, (pattern, _) in enumerate(cases) if matches(pattern, path)), None)

    def part(params: PyTree, i: int) -> dict[str, Any]:
        return {path: leaf for path, leaf in leaves_by_path(params).items() if case_of(path) == i}

    def put(params: PyTree, parts: Sequence[dict[str, Any]]) -> PyTree:
        new = {path: leaf for piece in parts for path, leaf in piece.items()}
        return map_with_path(lambda path, leaf: new.get(path, leaf), params)

    def init(params: PyTree, info: ModelInfo = ModelInfo()) -> State:
        for pattern, _ in cases:
            require_match(pattern, leaves_by_path(params))
        states = [t.init(part(params, i), info) for i, (_, t) in enumerate(cases)]
        return State(tuple(s.learnt for s in states), tuple(s.carried for s in states))

    def update(params: PyTree, state: State, *, step: Any = 0, grads: PyTree | None = None) -> State:
        carried = tuple(
            t.update(
                part(params, i), State(state.learnt[i], state.carried[i]),
                step=step, grads=None if grads is None else part(grads, i),
            ).carried
            for i, (_, t) in enumerate(cases)
        )  # fmt: skip
        return State(state.learnt, carried)

    def each(name: str) -> Callable[[PyTree, State], PyTree]:
        def run(params: PyTree, state: State) -> PyTree:
            pieces = [
                getattr(t, name)(part(params, i), State(state.learnt[i], state.carried[i]))
                for i, (_, t) in enumerate(cases)
            ]
            return put(params, pieces)

        return run

    def takes(path: str, leaf: Any, info: ModelInfo) -> LeafTraits | str:
        i = case_of(path)
        return "matches no pattern of the recipe" if i is None else cases[i][1].traits.takes(path, leaf, info)

    needs = frozenset().union(*(t.traits.needs for _, t in cases))
    local = all(t.traits.leaf_local for _, t in cases)
    methods = [t for _, t in cases]
    traits = Traits(takes, local, needs, _measures(methods), _pending(methods))
    return Transform(init, update, each("view"), each("project"), each("pack"), traits)


def where(pattern: str, method: Transform) -> Transform:
    """``method`` on the leaves whose path matches ``pattern`` (``by_path`` with one case)."""
    return by_path([(pattern, method)])


def _gated(method: Transform, open_at: Callable[[Any], Any]) -> Transform:
    def update(params: PyTree, state: State, *, step: Any = 0, grads: PyTree | None = None) -> State:
        carried = jax.lax.cond(
            open_at(jnp.asarray(step)),
            lambda: method.update(params, state, step=step, grads=grads).carried,
            lambda: state.carried,
        )
        return State(state.learnt, carried)

    return method._replace(update=update)


def every(n: int, method: Transform, last: int | None = None) -> Transform:
    """``method`` whose ``update`` runs at steps 0, n, 2n, ... only, and at step ``last``.

    With the last step of the training as ``last``, a schedule reaches its target also where ``n`` does not divide it.

    Raises:
      ValueError: ``n`` below 1, ``last`` below 0.
    """
    if n < 1:
        raise ValueError(f"every(n={n}): n is a number of steps, at least 1")
    if last is not None and last < 0:
        raise ValueError(f"every(n={n}, last={last}): last is a step, 0 or more, or None")
    return _gated(method, lambda step: (step % n == 0) | (last is not None and step == last))


def between(start: int, stop: int, method: Transform) -> Transform:
    """``method`` whose ``update`` runs at steps ``start <= step <= stop`` only."""
    if not 0 <= start <= stop:
        raise ValueError(f"between(start={start}, stop={stop}): needs 0 <= start <= stop")
    return _gated(method, lambda step: (step >= start) & (step <= stop))


def later(steps: int, method: Transform) -> Transform:
    """``method`` whose ``update`` counts from ``steps`` on: a training that goes on where another one of that length ended."""

    def update(params: PyTree, state: State, *, step: Any = 0, grads: PyTree | None = None) -> State:
        return method.update(params, state, step=step + steps, grads=grads)

    traits = method.traits._replace(pending=lambda step: method.traits.pending(step + steps))
    return method._replace(update=update, traits=traits)


def frozen(method: Transform) -> Transform:
    """``method`` whose ``carried`` no longer changes: an earlier stage of a recipe."""
    return method._replace(update=keep_state, traits=method.traits._replace(pending=lambda step: None))
