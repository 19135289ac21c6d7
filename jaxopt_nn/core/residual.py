"""``residual``: one transform approximates a leaf, another what the first leaves."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_nn.core.combine import apart, called, like, together, traits_of
from jaxopt_nn.core.cuts import Cuts
from jaxopt_nn.core.model import ModelInfo, StatKey
from jaxopt_nn.core.paths import leaves_by_path, map_with_path
from jaxopt_nn.core.tap import Statistic
from jaxopt_nn.core.transform import (
    Facts,
    LeafTraits,
    PyTree,
    State,
    Transform,
    as_info,
    as_transform,
    followed,
)
from jaxopt_nn.tensors.base import is_compressed
from jaxopt_nn.tensors.sum import Sum


def residual(a: Transform, b: Transform) -> Transform:
    """The view of ``a``, plus the view that ``b`` has of what ``a`` leaves: ``a(p) + b(p - a(p))``.

    Low rank and a few large weights (as Yu et al. 2017), low rank and codes of few bits (as LQ-LoRA, Guo et al. 2024, with one
    step of its iteration). A leaf that one of them leaves alone is the other's.

    Both are calibrated on the network as it is, and ``update`` of both gets the gradient at the sum. Differences and sums are
    float32, rounded once to the leaf's dtype.

    What ``a`` learns, such as factors, gets the gradient of the sum with the codes of ``b`` as they are: straight through the
    rounding of ``p - a(p)`` it would be zero, since what ``a`` gains ``b`` loses. Where ``b`` packs no codes, as a mask, the
    derivative is the true one: what it keeps is ``p``, whatever ``a`` is. The leaf gets the gradient through both.

    Returns:
      A ``Transform`` that packs into ``Sum`` where both pack; ``densify`` of that is the view, up to the tolerance of ``a``. A
      code of ``b`` whose value lies that near to the middle between two steps may be the next one.

    Raises:
      TypeError: a member is no ``Transform``.

    Example:
      >>> v = {"kernel": jnp.arange(64.0).reshape(8, 8) + 5 * jnp.eye(8)}
      >>> method = jn.residual(jn.low_rank(2), jn.prune(sparsity=0.75))  # rank 2, and 16 entries of what is left
      >>> stored = method.pack(v, method.init(v))["kernel"]
      >>> stored.describe()
      'rank 2, float32 plus 25 % kept, float32'
    """
    own = _Residual((as_transform(a, "residual: a"), as_transform(b, "residual: b")))
    traits = traits_of(own.takes, own.members)._replace(
        taps=own.taps, passes=max(m.traits.passes for m in own.members), facts=own.facts, follows=own.follows
    )
    return Transform(own.init, own.update, own.view, own.project, own.pack, traits)


@dataclasses.dataclass(frozen=True, eq=False)
class _Residual:
    """The functions of ``residual``."""

    members: tuple[Transform, Transform]

    def seen(self, params: PyTree, own: State) -> tuple[PyTree, PyTree]:
        """What the first makes of the leaves, and what the second sees."""
        first = self.members[0].view(params, own)
        return first, self.left(params, first)

    def left(self, params: PyTree, first: PyTree) -> PyTree:
        return _on_both(params, first, lambda leaf, seen: leaf if seen is leaf else _difference(leaf, seen))

    def init(self, params: PyTree, info: ModelInfo = ModelInfo()) -> State:
        info, (a, b) = as_info(info), self.members
        own = a.init(params, info.of_member(0))
        rest = like(lambda params, own: self.seen(params, own)[1], params, own)
        return together([own, b.init(rest, info.of_member(1))])

    def view(self, params: PyTree, state: State) -> PyTree:
        own, other = apart(state, self.members)
        first = self.members[0].view(params, own)
        rest = self.left(params, self.held(params, own, first))
        return self.summed(params, first, rest, self.members[1].view(rest, other))

    def held(self, params: PyTree, own: State, first: PyTree) -> PyTree:
        """``first``, without a derivative by what is learnt of leaves that the second has codes of: they don't follow it."""
        a, b = self.members
        if not jax.tree.leaves(own.learnt):
            return first
        still = leaves_by_path(a.view(params, State(jax.lax.stop_gradient(own.learnt), own.carried)))

        def one(path: str, leaf: Any, seen: Any) -> Any:
            verdict = b.traits.takes(path, leaf, ModelInfo())
            return seen if isinstance(verdict, LeafTraits) and verdict.packs != "codes" else still[path]

        seen = leaves_by_path(first)
        return map_with_path(lambda path, leaf: one(path, leaf, seen[path]), params)

    def summed(self, params: PyTree, first: PyTree, rest: PyTree, second: PyTree) -> PyTree:
        leaves, given = leaves_by_path(first), leaves_by_path(rest)
        added = leaves_by_path(second)

        def one(path: str, leaf: Any) -> Any:
            if leaves[path] is leaf:
                return added[path]
            return leaves[path] if added[path] is given[path] else _total(leaves[path], added[path])

        return map_with_path(one, params)

    def update(self, params: PyTree, state: State, *, step: Any = 0, grads: PyTree | None = None) -> State:
        (a, b), (own, other) = self.members, apart(state, self.members)
        new = a.update(params, own, step=step, grads=grads)
        rest = self.seen(params, new)[1]
        return State(state.learnt, (new.carried, b.update(rest, other, step=step, grads=grads).carried))

    def project(self, params: PyTree, state: State) -> tuple[PyTree, PyTree]:
        (a, b), (own, other) = self.members, apart(state, self.members)
        params, learnt = a.project(params, own)
        first, rest = self.seen(params, State(learnt, own.carried))
        moved, more = b.project(rest, other)
        seen, given, new = (leaves_by_path(tree) for tree in (first, rest, moved))

        def one(path: str, leaf: Any) -> Any:
            if new[path] is given[path]:
                return leaf
            return new[path] if seen[path] is leaf else _total(seen[path], new[path])

        return map_with_path(one, params), (learnt, more)

    def pack(self, params: PyTree, state: State) -> PyTree:
        (a, b), (own, other) = self.members, apart(state, self.members)
        first, rest = self.seen(params, own)
        seen, given = leaves_by_path(first), leaves_by_path(rest)
        coarse, fine = leaves_by_path(a.pack(params, own)), leaves_by_path(b.pack(rest, other))

        def one(path: str, leaf: Any) -> Any:
            if seen[path] is leaf:
                return fine[path]
            if fine[path] is given[path]:
                return coarse[path]
            if is_compressed(coarse[path]) and is_compressed(fine[path]):
                return Sum(coarse[path], fine[path], jnp.dtype(leaf.dtype).name)
            return _total(*(x.densify() if is_compressed(x) else x for x in (coarse[path], fine[path])))

        return map_with_path(one, params)

    def takes(self, path: str, leaf: Any, info: ModelInfo) -> LeafTraits | str:
        verdicts = [m.traits.takes(path, leaf, info) for m in self.members]
        taken = [v for v in verdicts if not isinstance(v, str)]
        if not taken:
            return "; ".join(dict.fromkeys(v for v in verdicts if isinstance(v, str)))
        passed = [f"{called(self.members, i, 'residual')}: {v}" for i, v in enumerate(verdicts) if isinstance(v, str)]
        parts = tuple(x for v in taken for x in v.passed)
        notes = tuple(x for v in taken for x in v.notes)
        if len(taken) == 1:
            return taken[0]._replace(passed=(*parts, *passed))
        return LeafTraits("codes" if all(v.packs for v in taken) else None, keeps_zeros=False, passed=parts, notes=notes)

    def taps(self, info: ModelInfo) -> dict[StatKey, Statistic]:
        return {
            ((i, *member), site, tap): value
            for i, m in enumerate(self.members)
            for (member, site, tap), value in m.traits.taps(info.of_member(i)).items()
        }

    def facts(self, params: PyTree, state: State) -> tuple[Facts, ...]:
        own, other = apart(state, self.members)
        a, b = self.members
        return (*a.traits.facts(params, own), *b.traits.facts(self.seen(params, own)[1], other))

    def follows(self, state: State, cuts: Cuts) -> State:
        (a, b), (own, other) = self.members, apart(state, self.members)
        new = followed(a, own, cuts.of_member(0, cuts.params))
        rest = cuts.params if cuts.moments is not None else like(lambda p, own: self.seen(p, own)[1], cuts.params, new)
        return together([new, followed(b, other, cuts.of_member(1, rest))])


def _on_both(params: PyTree, first: PyTree, fn: Any) -> PyTree:
    seen: Mapping[str, Any] = leaves_by_path(first)
    return map_with_path(lambda path, leaf: fn(leaf, seen[path]), params)


def _difference(leaf: Any, seen: Any) -> Any:
    """What is left; alike wherever it is compiled, since codes are made of it."""
    leaf, seen = jax.lax.optimization_barrier((leaf, seen))
    return (leaf.astype(jnp.float32) - seen.astype(jnp.float32)).astype(leaf.dtype)


def _total(first: Any, second: Any) -> Any:
    return (first.astype(jnp.float32) + second.astype(jnp.float32)).astype(first.dtype)
