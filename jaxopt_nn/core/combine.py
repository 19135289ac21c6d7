"""Combinators over transforms: ``chain``, ``by_path``, ``where``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax

from jaxopt_nn.core.arguments import in_words
from jaxopt_nn.core.cuts import Cuts
from jaxopt_nn.core.model import ModelInfo, StatKey
from jaxopt_nn.core.paths import first_match, leaves_by_path, map_with_path, require_match
from jaxopt_nn.core.tap import Statistic
from jaxopt_nn.core.transform import (
    IDLE,
    Facts,
    LeafTraits,
    PyTree,
    State,
    Traits,
    Transform,
    as_info,
    as_state,
    as_transform,
    followed,
)
from jaxopt_nn.tensors.base import is_compressed


def chain(*members: Transform) -> Transform:
    """Composes transforms: each member sees the view of the one before it, and packs nest as views compose.

    Raises:
      TypeError: a member is no ``Transform``.
      ValueError: no member; or, at ``init``, a leaf whose values are changed after a member that packs them, or a packer
        that loses zeros after a mask.

    Example:
      >>> v = {"kernel": jnp.arange(1.0, 65.0).reshape(8, 8)}
      >>> method = jn.chain(jn.prune(sparsity=0.75), jn.quantize(4))
      >>> state = method.init(v)
      >>> stored = method.pack(v, state)  # a mask around codes: only the 16 codes that are kept are stored
      >>> type(stored["kernel"]).__name__, jn.nbytes(v), jn.nbytes(stored)
      ('Masked', 256, 48)
      >>> bool((jn.densify(stored)["kernel"] == method.view(v, state)["kernel"]).all())  # the pack law
      True
      >>> jn.chain(jn.quantize(4), jn.clip(-1.0, 1.0)).init(v)
      Traceback (most recent call last):
          ...
      ValueError: kernel: member 1 of the chain (clip) changes values that an earlier member has packed into codes;
        put the member that packs last
    """
    if not members:
        raise ValueError("chain() needs at least one transform; identity() is the one that does nothing")
    members = tuple(as_transform(member, f"chain: member {i}") for i, member in enumerate(members))
    if len(members) == 1:
        return members[0]

    own = _Chain(members)
    traits = traits_of(own.takes, members)._replace(
        taps=own.taps, seen=own.seen, passes=sum(m.traits.passes for m in members), facts=own.facts, follows=own.follows
    )
    return Transform(own.init, own.update, own.view, own.project, own.pack, traits)


@dataclasses.dataclass(frozen=True, eq=False)
class _Chain:
    """The functions of a chain."""

    members: tuple[Transform, ...]

    def views(self, params: PyTree, state: State) -> list[PyTree]:
        seen = [params]
        for member, own in zip(self.members, apart(state, self.members), strict=True):
            seen.append(member.view(seen[-1], own))
        return seen

    def view(self, params: PyTree, state: State) -> PyTree:
        return self.views(params, state)[-1]

    def init(self, params: PyTree, info: ModelInfo = ModelInfo()) -> State:
        info = as_info(info)
        check_order(self.members, params, info)
        states = []
        for i, member in enumerate(self.members):
            states.append(member.init(params, info.of_member(i)))
            if i + 1 < len(self.members):
                params = like(member.view, params, states[-1])
        return together(states)

    def update(self, params: PyTree, state: State, *, step: Any = 0, grads: PyTree | None = None) -> State:
        pulled = _gradients_at_views(self.members, self.views(params, state), state, grads)
        carried = []
        for member, own, slope in zip(self.members, apart(state, self.members), pulled, strict=True):
            new = member.update(params, own, step=step, grads=slope)
            carried.append(new.carried)
            params = member.view(params, new)
        return State(state.learnt, tuple(carried))

    def project(self, params: PyTree, state: State) -> tuple[PyTree, PyTree]:
        learnt = []
        for member, own in zip(self.members, apart(state, self.members), strict=True):
            params, new = member.project(params, own)
            learnt.append(new)
        return params, tuple(learnt)

    def pack(self, params: PyTree, state: State) -> PyTree:
        packed = None
        for member, own in zip(self.members, apart(state, self.members), strict=True):
            inner = member.pack(params, own)
            packed = inner if packed is None else map_with_path(_nested, packed, params, inner)
            params = member.view(params, own)
        return packed

    def takes(self, path: str, leaf: Any, info: ModelInfo) -> LeafTraits | str:
        verdicts = [m.traits.takes(path, leaf, info) for m in self.members]
        taken = [v for v in verdicts if not isinstance(v, str)]
        if not taken:
            return "; ".join(dict.fromkeys(v for v in verdicts if isinstance(v, str)))
        packs = [v.packs for v in taken if v.packs]
        passed = [f"{called(self.members, i)}: {v}" for i, v in enumerate(verdicts) if isinstance(v, str) and v != IDLE]
        return LeafTraits(
            packs[-1] if packs else None,
            keeps_zeros=all(v.keeps_zeros for v in taken),
            passed=(*(each for v in taken for each in v.passed), *passed),
            notes=tuple(each for v in taken for each in v.notes),
        )

    def lacking(self, info: ModelInfo) -> tuple[int, Mapping[StatKey, Statistic]]:
        """The first member that lacks statistics, and which: a later one's are taken with its view."""
        for i, member in enumerate(self.members):
            if own := member.traits.taps(info.of_member(i)):
                return i, own
        return len(self.members), {}

    def taps(self, info: ModelInfo) -> dict[StatKey, Statistic]:
        i, own = self.lacking(info)
        return {((i, *member), site, tap): value for (member, site, tap), value in own.items()}

    def seen(self, params: PyTree, info: ModelInfo) -> PyTree:
        last, _ = self.lacking(info)
        for i, member in enumerate(self.members[:last]):
            params = member.view(params, member.init(params, info.of_member(i)))
        return self.members[last].traits.seen(params, info.of_member(last)) if last < len(self.members) else params

    def facts(self, params: PyTree, state: State) -> tuple[Facts, ...]:
        parts = zip(self.members, self.views(params, state), apart(state, self.members))
        return tuple(fact for member, seen, own in parts for fact in member.traits.facts(seen, own))

    def follows(self, state: State, cuts: Cuts) -> State:
        made, params = [], cuts.params
        for i, (member, own) in enumerate(zip(self.members, apart(state, self.members), strict=True)):
            made.append(followed(member, own, cuts.of_member(i, params)))
            if cuts.moments is None and i + 1 < len(self.members):
                params = like(member.view, params, made[-1])
        return together(made)


def called(members: Sequence[Transform], i: int, whole: str = "chain") -> str:
    """What messages call a member of a chain."""
    return f"member {i} of the {whole} ({members[i].traits.name})"


def _pending(members: Sequence[Transform]) -> Callable[[int], str | None]:
    """All that the members still have to do."""
    return lambda step: "; ".join(filter(None, (m.traits.pending(step) for m in members))) or None


def like(view: Callable[..., PyTree], params: PyTree, state: State) -> PyTree:
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
        own = apart(state, members)[i]
        _, pull = jax.vjp(lambda p, i=i, own=own: members[i].view(p, own), seen[i])
        pulled.insert(0, pull(pulled[0])[0])
    return pulled


def _nested(path: str, outer: Any, seen: Any, inner: Any) -> Any:
    """The packed leaf of two members in a row; the second saw the dense leaf ``seen`` and gave ``inner``."""
    return outer.nest(inner) if is_compressed(outer) and inner is not seen else (outer if inner is seen else inner)


def check_order(members: Sequence[Transform], params: PyTree, info: ModelInfo) -> None:
    """Raises ValueError where members can't follow each other on a leaf, as ``chain``."""
    for path, leaf in leaves_by_path(params).items():
        packed = None
        for i, member in enumerate(members):
            verdict = member.traits.takes(path, leaf, info)
            if isinstance(verdict, str):
                continue
            if packed == "codes":
                raise ValueError(
                    f"{path}: {called(members, i)} changes values that an earlier member has packed into codes; "
                    "put the member that packs last"
                )
            if packed == "mask" and not verdict.keeps_zeros:
                raise ValueError(
                    f"{path}: {called(members, i)} does not keep zeros, after a member that prunes; "
                    "put it before the pruning, or use a form that represents zero exactly"
                )
            packed = verdict.packs or packed


def by_path(cases: Sequence[tuple[str, Transform]]) -> Transform:
    """Gives each leaf to the first case whose pattern matches its path; other leaves are left alone.

    Costs linear time in leaves and cases, so that a planner may make one case a leaf.

    Raises:
      TypeError: ``cases`` is no list of (pattern, transform).
      ValueError: no case; or, at ``init``, a pattern that matches no leaf (near misses are named): none of all that the
        info names, which may be more than the given ones, nor of these.

    Example:
      >>> v = {"body": {"kernel": jnp.ones((64, 64))}, "head": {"kernel": jnp.ones((64, 64))}}
      >>> method = jn.by_path([("head/kernel", jn.quantize(8)), ("**/kernel", jn.quantize(4))])
      >>> stored = method.pack(v, method.init(v))
      >>> stored["body"]["kernel"].bits, stored["head"]["kernel"].bits
      (4, 8)
      >>> jn.by_path([("haed/kernel", jn.quantize(8))]).init(v)
      Traceback (most recent call last):
          ...
      ValueError: pattern 'haed/kernel' matches no path of 2: patterns are globs over whole paths,
        * within a name, ** for any number of names; nearest: head/kernel, body/kernel
    """
    cases = _checked_cases(cases)
    if not cases:
        raise ValueError("by_path() needs at least one (pattern, transform)")
    patterns, methods = zip(*cases)
    own = _Cases(patterns, methods, first_match(patterns))
    traits = traits_of(own.takes, methods)._replace(
        taps=own.taps, seen=own.seen, passes=max(t.traits.passes for t in methods), facts=own.facts, follows=own.follows
    )
    return Transform(own.init, own.update, own.view, own.project, own.pack, traits)


def _checked_cases(cases: Any) -> list[tuple[str, Transform]]:
    """The cases of ``by_path`` as a list of pairs."""
    if not isinstance(cases, list | tuple):
        raise TypeError(f"by_path: cases is {in_words(cases)}; pass a list of pairs: [('**/kernel', quantize(4)), ...]")
    for case in cases:
        if not (isinstance(case, tuple | list) and not isinstance(case, Transform) and len(case) == 2):
            raise TypeError(f"by_path: a case is {in_words(case)}; pass a list of pairs: [('**/kernel', quantize(4)), ...]")
        if not isinstance(case[0], str):
            raise TypeError(
                f"the pattern is {in_words(case[0])}; pass one glob, then the transform: where('**/kernel', quantize(4)); for "
                "several patterns use by_path"
            )
    return [(pattern, as_transform(method, f"the transform for {pattern!r}")) for pattern, method in cases]


@dataclasses.dataclass(frozen=True, eq=False)
class _Cases:
    """The functions of ``by_path``; ``case_of`` gives the number of a path's case, or None."""

    patterns: tuple[str, ...]
    methods: tuple[Transform, ...]
    case_of: Callable[[str], int | None]

    def split(self, params: PyTree) -> list[dict[str, Any]]:
        """The leaves of each case, by path."""
        parts: list[dict[str, Any]] = [{} for _ in self.methods]
        for path, leaf in leaves_by_path(params).items():
            if (i := self.case_of(path)) is not None:
                parts[i][path] = leaf
        return parts

    def merged(self, params: PyTree, parts: Iterable[dict[str, Any]]) -> PyTree:
        new = {path: leaf for part in parts for path, leaf in part.items()}
        return map_with_path(lambda path, leaf: new.get(path, leaf), params)

    def init(self, params: PyTree, info: ModelInfo = ModelInfo()) -> State:
        info = as_info(info)
        known = list(dict.fromkeys([*(leaf.path for leaf in info.leaves), *leaves_by_path(params)]))
        taken = {self.case_of(path) for path in known}
        for i, pattern in enumerate(self.patterns):
            if i not in taken:  # it may match leaves that earlier cases took
                require_match(pattern, known)
        parts = enumerate(zip(self.methods, self.split(params), strict=True))
        return together([t.init(part, info.of_member(i)) for i, (t, part) in parts])

    def infos(self, info: ModelInfo) -> list[ModelInfo]:
        """The info of each case, with its own leaves."""
        paths: list[set[str]] = [set() for _ in self.methods]
        for leaf in info.leaves:
            if (i := self.case_of(leaf.path)) is not None:
                paths[i].add(leaf.path)
        return [info.of_member(i, own) for i, own in enumerate(paths)]

    def taps(self, info: ModelInfo) -> dict[StatKey, Statistic]:
        return {
            ((i, *member), site, tap): value
            for i, (t, own) in enumerate(zip(self.methods, self.infos(info), strict=True))
            for (member, site, tap), value in t.traits.taps(own).items()
        }

    def seen(self, params: PyTree, info: ModelInfo) -> PyTree:
        parts = zip(self.methods, self.split(params), self.infos(info), strict=True)
        return self.merged(params, (t.traits.seen(part, own) for t, part, own in parts))

    def update(self, params: PyTree, state: State, *, step: Any = 0, grads: PyTree | None = None) -> State:
        slopes = [None] * len(self.methods) if grads is None else self.split(grads)
        parts = zip(self.methods, self.split(params), apart(state, self.methods), slopes, strict=True)
        carried = tuple(t.update(part, own, step=step, grads=slope).carried for t, part, own, slope in parts)
        return State(state.learnt, carried)

    def view(self, params: PyTree, state: State) -> PyTree:
        parts = zip(self.methods, self.split(params), apart(state, self.methods), strict=True)
        return self.merged(params, (t.view(part, own) for t, part, own in parts))

    def pack(self, params: PyTree, state: State) -> PyTree:
        parts = zip(self.methods, self.split(params), apart(state, self.methods), strict=True)
        return self.merged(params, (t.pack(part, own) for t, part, own in parts))

    def project(self, params: PyTree, state: State) -> tuple[PyTree, PyTree]:
        parts = zip(self.methods, self.split(params), apart(state, self.methods), strict=True)
        made = [t.project(part, own) for t, part, own in parts]
        return self.merged(params, (part for part, _ in made)), tuple(learnt for _, learnt in made)

    def takes(self, path: str, leaf: Any, info: ModelInfo) -> LeafTraits | str:
        i = self.case_of(path)
        return "matches no pattern of the recipe" if i is None else self.methods[i].traits.takes(path, leaf, info)

    def facts(self, params: PyTree, state: State) -> tuple[Facts, ...]:
        parts = zip(self.methods, self.split(params), apart(state, self.methods), strict=True)
        return tuple(fact for t, part, own in parts for fact in t.traits.facts(part, own))

    def follows(self, state: State, cuts: Cuts) -> State:
        parts = enumerate(zip(self.methods, self.split(cuts.params), apart(state, self.methods), strict=True))
        return together([followed(t, own, cuts.of_member(i, part)) for i, (t, part, own) in parts])


def traits_of(takes: Callable[[str, Any, ModelInfo], LeafTraits | str], members: Sequence[Transform]) -> Traits:
    """The traits of several transforms as one; ``takes`` is how they share the leaves."""
    return Traits(
        takes,
        leaf_local=all(m.traits.leaf_local for m in members),
        needs=frozenset().union(*(m.traits.needs for m in members)),
        pending=_pending(members),
        name=_names(members),
    )


def _names(members: Sequence[Transform]) -> str:
    """What messages call several transforms together."""
    return " | ".join(dict.fromkeys(m.traits.name for m in members))


def together(states: Sequence[State]) -> State:
    """The states of members as one."""
    return State(tuple(s.learnt for s in states), tuple(s.carried for s in states))


def apart(state: State, members: Sequence[Transform]) -> list[State]:
    """The states of the members.

    Raises:
      TypeError: it is no state. ValueError: it has not one part a member.
    """
    state = as_state(state, _names(members))
    if not isinstance(state.carried, tuple) or len(state.carried) != len(members):
        held = len(state.carried) if isinstance(state.carried, tuple) else "no"
        raise ValueError(
            f"{_names(members)}: the state has {held} parts, the method {len(members)} members; pass the state that this very "
            "method's init returned"
        )
    return [State(learnt, carried) for learnt, carried in zip(state.learnt, state.carried, strict=True)]


def where(pattern: str, method: Transform) -> Transform:
    """``method`` on the leaves whose path matches ``pattern`` (``by_path`` with one case).

    Patterns are globs over whole path segments: ``*`` is one segment or part of it, ``**`` any number of segments.

    Args:
      pattern: over the leaves' full paths.
      method: any transform.

    Raises:
      ValueError: at ``init``, a pattern that matches no leaf; near misses are named.

    Example:
      >>> v = {"layer": {"kernel": jnp.ones((64, 64)), "bias": jnp.zeros(64)}}
      >>> method = jn.where("**/kernel", jn.prune(sparsity=0.5))
      >>> float((method.view(v, method.init(v))["layer"]["kernel"] == 0).mean())
      0.5
      >>> jn.where("**/kernels", jn.prune(sparsity=0.5)).init(v)
      Traceback (most recent call last):
          ...
      ValueError: pattern '**/kernels' matches no path of 2: patterns are globs over whole paths,
        * within a name, ** for any number of names; nearest: layer/kernel, layer/bias
    """
    return by_path([(pattern, method)])
