"""The one way to lift a method for single leaves to a transform over a tree."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxopt_nn.core.arguments import require
from jaxopt_nn.core.cuts import Cut, Cuts, by_shape
from jaxopt_nn.core.model import Known, ModelInfo, Site, StatKey
from jaxopt_nn.core.paths import leaves_by_path, map_with_path
from jaxopt_nn.core.tap import Tap
from jaxopt_nn.core.transform import LeafTraits, PyTree, State, Traits, Transform, as_info, as_state, keep_both, no_taps


def leafwise(
    takes: Callable[[str, Any, ModelInfo], LeafTraits | str],
    init: Callable[[str, Any, Known], tuple[Any, Any]],
    view: Callable[[Any, Any, Any], Any],
    *,
    update: Callable[..., Any] | None = None,
    project: Callable[[Any, Any, Any], tuple[Any, Any]] | None = None,
    pack: Callable[[str, Any, Any, Any], Any] | None = None,
    needs: frozenset[str] = frozenset(),
    taps: Callable[[Site], Mapping[str, Tap]] = no_taps,
    follows: Callable[[Any, Any, Cut], tuple[Any, Any] | str] | None = None,
    name: str = "a transform",
) -> Transform:
    """Lifts a method for single leaves to a transform.

    Args:
      takes: as in ``Traits``.
      init: ``(path, leaf, known) -> (learnt, carried)`` of that leaf; works on abstract leaves.
      view: ``(leaf, learnt, carried) -> leaf``.
      update: ``(leaf, learnt, carried, step, grad) -> carried``.
      project: ``(leaf, learnt, carried) -> (leaf, learnt)``.
      pack: ``(path, leaf, learnt, carried) -> compressed tensor``; the view, uncompressed, if None.
      taps: ``site -> {name: Tap}``: what ``init`` must see of a site of the leaf, as ``known.stats``.
      follows: ``(learnt, carried, cut) -> (learnt, carried) | str`` of a leaf that a pass has cut; a str is the reason why it
        is made anew. By the shapes of its arrays (``by_shape``) if None.
      needs, name: as in ``Traits``.

    Example:
      >>> centred = jn.leafwise(  # each output's weights have the mean zero
      ...     takes=lambda path, leaf, info: jn.LeafTraits(keeps_zeros=False) if leaf.ndim > 1 else "is no matrix",
      ...     init=lambda path, leaf, known: ((), ()),
      ...     view=lambda leaf, learnt, carried: leaf - leaf.mean(0, keepdims=True),
      ...     name="centred",
      ... )
      >>> v = {"kernel": jnp.array([[1.0, -3.0], [2.0, 0.0]]), "bias": jnp.zeros(2)}
      >>> centred.view(v, centred.init(v))["kernel"]
      Array([[-0.5, -1.5],
             [ 0.5,  1.5]], dtype=float32)
      >>> print(jn.explain(centred, v))
      skipped  bias  is no matrix
    """
    own = _Leafwise(_judged(takes, taps), init, view, update, project, pack, taps, follows, name)
    passes = 0 if taps is no_taps else 1
    traits = Traits(own.takes, True, needs, leaf_taps(own.takes, taps), passes=passes, name=name, follows=own.follow_all)
    return Transform(
        own.init_all, own.update_all, own.view_all, own.project_all if project else keep_both, own.pack_all, traits
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Leafwise:
    """A method for single leaves on all leaves that it takes; fields as in ``leafwise``."""

    takes: Callable[[str, Any, ModelInfo], LeafTraits | str]
    init: Callable[[str, Any, Known], tuple[Any, Any]]
    view: Callable[[Any, Any, Any], Any]
    update: Callable[..., Any] | None
    project: Callable[[Any, Any, Any], tuple[Any, Any]] | None
    pack: Callable[[str, Any, Any, Any], Any] | None
    taps: Callable[[Site], Mapping[str, Tap]]
    follows: Callable[[Any, Any, Cut], tuple[Any, Any] | str] | None
    name: str

    def init_all(self, params: PyTree, info: ModelInfo = ModelInfo()) -> State:
        info = as_info(info)
        taken = {p: x for p, x in leaves_by_path(params).items() if not isinstance(self.takes(p, x, info), str)}
        states = {p: self.init(p, x, known_of(p, x.ndim, info, self.taps)) for p, x in taken.items()}
        return State({p: s[0] for p, s in states.items()}, {p: s[1] for p, s in states.items()})

    def checked(self, params: PyTree, state: State) -> State:
        """The state, with a leaf of ``params`` for each entry.

        Raises:
          TypeError: it is no state of a method for single leaves. ValueError: ``params`` lacks a leaf of it.
        """
        state = as_state(state, self.name)
        require(state.carried, dict, f"{self.name}: state.carried", "the state that this very method's init returned")
        if lost := state.carried.keys() - leaves_by_path(params).keys():
            raise ValueError(
                f"{self.name}: the state is of leaves that params lacks: {', '.join(sorted(lost)[:3])}; pass the whole pytree "
                "that init got"
            )
        return state

    def on_taken(self, fn: Callable[..., Any], params: PyTree, state: State) -> PyTree:
        learnt, carried = self.checked(params, state)

        def visit(path: str, leaf: Any) -> Any:
            return fn(path, leaf, learnt[path], carried[path]) if path in carried else leaf

        return map_with_path(visit, params)

    def update_all(self, params: PyTree, state: State, *, step: Any = 0, grads: PyTree | None = None) -> State:
        state = self.checked(params, state)
        if self.update is None:
            return state
        slopes = {} if grads is None else leaves_by_path(grads)
        carried = {
            path: self.update(leaf, state.learnt[path], state.carried[path], step, slopes.get(path))
            for path, leaf in leaves_by_path(params).items()
            if path in state.carried
        }
        return State(state.learnt, carried)

    def project_all(self, params: PyTree, state: State) -> tuple[PyTree, PyTree]:
        assert self.project is not None
        state, leaves = self.checked(params, state), leaves_by_path(params)
        made = {path: self.project(leaves[path], state.learnt[path], own) for path, own in state.carried.items()}
        return (
            map_with_path(lambda path, leaf: made[path][0] if path in made else leaf, params),
            {path: learnt for path, (_, learnt) in made.items()},
        )

    def view_all(self, params: PyTree, state: State) -> PyTree:
        return self.on_taken(lambda path, *args: self.view(*args), params, state)

    def pack_all(self, params: PyTree, state: State) -> PyTree:
        return self.view_all(params, state) if self.pack is None else self.on_taken(self.pack, params, state)

    def follow_all(self, state: State, cuts: Cuts) -> State:
        leaves = leaves_by_path(cuts.params)

        def anew(path: str) -> tuple[Any, Any]:
            if cuts.moments is not None:
                return cuts.moments[path], state.carried[path]
            return self.init(path, leaves[path], known_of(path, leaves[path].ndim, cuts.info, self.taps))

        def carried_over(path: str, cut: Cut) -> tuple[Any, Any] | str:
            learnt, carried = state.learnt[path], state.carried[path]
            if self.follows is not None:
                return self.follows(learnt, carried, cut)
            if cuts.moments is None:
                return by_shape((learnt, carried), anew(path), cut)
            made = by_shape(learnt, cuts.moments[path], cut)
            return made if isinstance(made, str) else (made, carried)

        def one(path: str) -> tuple[Any, Any]:
            if path not in cuts.leaves:
                return state.learnt[path], state.carried[path]
            made = carried_over(path, cuts.leaves[path])
            if isinstance(made, str):
                what = "state" if cuts.moments is None else "optimizer's moments"
                cuts.recorder.add("anew", path, f"{self.name}: its {what} made anew, since {made}")
                return anew(path)
            return made

        found = {path: one(path) for path in state.carried if not cuts.gone(path)}
        return State({path: own[0] for path, own in found.items()}, {path: own[1] for path, own in found.items()})


def _judged(
    takes: Callable[[str, Any, ModelInfo], LeafTraits | str], taps: Callable[[Site], Mapping[str, Tap]]
) -> Callable[[str, Any, ModelInfo], LeafTraits | str]:
    """``takes`` of a method that needs statistics: not of a leaf beside whose entries none can be laid."""

    def judge(path: str, leaf: Any, info: ModelInfo) -> LeafTraits | str:
        verdict = takes(path, leaf, info)
        if isinstance(verdict, str) or info.matrix(path) is not None:
            return verdict
        reads = [(site, use) for site in info.sites for use in site.uses if use.path == path]
        missed = [use.reason.removeprefix(f"{path} ") for site, use in reads if taps(site)]
        return f"what is measured can't be laid beside its entries: it {missed[0]}" if missed else verdict

    return takes if taps is no_taps else judge


def leaf_taps(
    takes: Callable[[str, Any, ModelInfo], LeafTraits | str], taps: Callable[[Site], Mapping[str, Tap]]
) -> Callable[[ModelInfo], dict[StatKey, Tap]]:
    """``Traits.taps`` of a method that sees the sites of the leaves that it takes; ``taps`` says what, by site."""

    def lacking(info: ModelInfo) -> dict[StatKey, Tap]:
        leaves = {leaf.path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in info.leaves}
        taken = {path for path, leaf in leaves.items() if not isinstance(takes(path, leaf, info), str)}
        found: dict[StatKey, Tap] = {
            ((), site.name, name): tap
            for site in info.sites
            if taken.intersection(site.leaves)
            for name, tap in taps(site).items()
        }
        return {key: tap for key, tap in found.items() if key not in info.stats}

    return lacking


def known_of(path: str, ndim: int, info: ModelInfo, taps: Callable[[Site], Mapping[str, Tap]]) -> Known:
    """What ``info`` knows of a leaf; statistics are those of the sites that read it as its matrix does, merged."""
    matrix = info.matrix(path)
    stats: dict[str, Any] = {}
    for site, own in info.sites_of(path):
        for name, tap in taps(site).items() if own is not None and own == matrix else ():
            new = info.stats.get(((), site.name, name))
            if new is None:
                raise ValueError(
                    f"{path}: the statistic {name!r} of site {site.name} is missing; pass info=calibrate(apply, variables, "
                    "method, batches)"
                )
            merge = tap.merge
            for _ in site.stack:
                merge = jax.vmap(merge)
            stats[name] = merge(stats[name], new) if name in stats else new
    return Known(info.roles_of(path, ndim), matrix, stats)
