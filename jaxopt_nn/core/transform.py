"""The core type: a transform over parameters, and the one way to lift a per-leaf method to a tree."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxopt_nn.core.arguments import require
from jaxopt_nn.core.cuts import Cut, Cuts, by_shape
from jaxopt_nn.core.model import Known, ModelInfo, Site, StatKey
from jaxopt_nn.core.paths import leaves_by_path, map_with_path
from jaxopt_nn.core.report import Message, Report
from jaxopt_nn.core.tap import Tap
from jaxopt_nn.tensors.base import is_compressed

PyTree = Any


class State(NamedTuple):
    """State of a transform or a rule: both fields are pytrees.

    ``learnt`` is trained by gradient and owned by the optimizer (LSQ steps, codebooks, thresholds); ``carried`` is
    changed by ``update`` alone (masks, ranges, codes, the PRNG key).
    """

    learnt: PyTree = ()
    carried: PyTree = ()


class LeafTraits(NamedTuple):
    """What a transform does to one leaf that it takes.

    Attributes:
      packs: ``None`` (values change, nothing is packed), ``"mask"`` (packs a mask, which stands outermost and can hold
        another packed tensor) or ``"codes"`` (packs the values themselves: nothing may change them after).
      keeps_zeros: an entry that is exactly zero stays exactly zero.
      passed: of a chain, each member that leaves the leaf alone, with its reason.
      notes: what else its user should know, as full clauses.
    """

    packs: str | None = None
    keeps_zeros: bool = True
    passed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Facts(NamedTuple):
    """A small table that a method has to tell of a network: what it has cut off, say.

    Attributes:
      title, note: of the table, how to read it.
      header, cells: names of the columns, and lines of words and numbers.
    """

    title: str
    note: str
    header: tuple[str, ...]
    cells: tuple[tuple[str | float, ...], ...]


def no_facts(params: PyTree, state: State) -> tuple[Facts, ...]:
    """The facts of a method that has nothing to tell."""
    return ()


class Traits(NamedTuple):
    """Static facts about a transform.

    Attributes:
      takes: ``(path, leaf, info) -> LeafTraits | str``: how it treats that leaf, or why it leaves it alone.
      leaf_local: each leaf's result depends on that leaf alone.
      needs: subset of ``{"roles", "couplings", "grads", "key"}``.
      taps: ``info -> {(member, site, tap): Tap}``: the statistics that ``init`` reads, that ``info`` lacks and that can be
        taken now; empty where none is lacking. ``calibrate`` asks again until then.
      seen: ``(params, info) -> params`` with which these are taken: what the members before see (for a single method,
        ``params``).
      passes: how often ``calibrate`` goes over the data.
      pending: ``step -> str | None``: what is left of its schedules after the update of that step, in words; None: nothing.
      name: what messages call it.
      facts: ``(params, state) -> (Facts, ...)``: what a report says of it, beside numbers that all methods have.
      follows: ``(state, cuts) -> State`` for a network that a pass has cut: each array of the state is cut as the leaf that it
        lies beside, or made anew and reported (groups that the cut breaks). None: it has no state, or does not say.
    """

    takes: Callable[[str, Any, ModelInfo], LeafTraits | str]
    leaf_local: bool = True
    needs: frozenset[str] = frozenset()
    taps: Callable[[ModelInfo], dict[StatKey, Tap]] = lambda info: {}
    seen: Callable[[PyTree, ModelInfo], PyTree] = lambda params, info: params
    passes: int = 0
    pending: Callable[[int], str | None] = lambda step: None
    name: str = "a transform"
    facts: Callable[[PyTree, State], tuple[Facts, ...]] = no_facts
    follows: Callable[[State, Cuts], State] | None = None


class Transform(NamedTuple):
    """Pure functions over parameters that keep the tree and the shapes. A new method is a value of this type.

    Attributes:
      init: ``(params, info=ModelInfo()) -> State``.
      update: ``(params, state, *, step, grads=None) -> State``; touches ``carried`` only. ``grads`` is the dense gradient
        at ``view(params, state)``.
      view: ``(params, state) -> params`` that the forward pass sees; differentiable in ``params`` and ``state.learnt``.
      project: ``(params, state) -> (params, learnt)``, after the optimizer's step: back to where they are allowed.
      pack: ``(params, state) -> params`` with compressed tensors; host code over jitted functions.
        Law: ``densify(pack(p, s)) == view(p, s)``.
      traits: static facts.
    """

    init: Callable[..., State]
    update: Callable[..., State]
    view: Callable[[PyTree, State], PyTree]
    project: Callable[[PyTree, State], tuple[PyTree, PyTree]]
    pack: Callable[[PyTree, State], PyTree]
    traits: Traits


def as_transform(value: Any, what: str) -> Transform:
    """``value`` if it is a ``Transform``; ``what`` is what messages call it.

    Raises:
      TypeError: it is something else.
    """
    hint = "a Transform such as quantize(4); a rule goes to Stage(rule=) or Network(rules=), a pass to a Stage of its own"
    return require(value, Transform, what, hint)


def as_state(value: Any, name: str) -> State:
    """``value`` if it is a ``State``; ``name`` is that of its transform.

    Raises:
      TypeError: it is something else.
    """
    return require(value, State, f"{name}: state", "a State: method.init(variables, info), or what update returned")


def as_info(value: Any) -> ModelInfo:
    """``value`` if it is a ``ModelInfo``.

    Raises:
      TypeError: it is something else.
    """
    return require(value, ModelInfo, "info", "a ModelInfo: inspect(apply, variables, *inputs), or nothing")


def keep_state(params: PyTree, state: State, *, step: Any = 0, grads: PyTree | None = None) -> State:
    """An ``update`` that changes nothing."""
    return state


def keep_params(params: PyTree, state: State) -> PyTree:
    """A ``view`` or ``pack`` that changes nothing."""
    return params


def keep_both(params: PyTree, state: State) -> tuple[PyTree, PyTree]:
    """A ``project`` that changes nothing."""
    return params, state.learnt


def followed(method: Transform, state: State, cuts: Cuts) -> State:
    """The state of ``method`` for a network that a pass has cut.

    Raises:
      ValueError: it holds arrays, and the method does not say how they follow.
    """
    if method.traits.follows is not None:
        return method.traits.follows(state, cuts)
    if jax.tree.leaves(state):
        raise ValueError(
            f"{method.traits.name}: does not say how its state follows the leaves that a pass cuts; give it "
            "Traits(follows=(state, cuts) -> State), or make it with leafwise"
        )
    return state


#: What ``identity`` says of each leaf: no remark beside what other members of a chain do.
IDLE = "identity changes nothing"


def identity() -> Transform:
    """The transform that changes nothing, and so takes no leaf: plain training."""
    return Transform(
        lambda params, info=ModelInfo(): State(), keep_state, keep_params, keep_both, keep_params,
        Traits(lambda path, leaf, info: IDLE, name="identity"),
    )  # fmt: skip


def why_not_matrix(path: str, leaf: Any, info: ModelInfo) -> str | None:
    """Why a method for weight matrices leaves ``leaf`` alone, or None: it takes float leaves that some site contracts.

    Looking up counts: it contracts over the vocabulary. A dot need not contract anything: ``einsum("bi,i->bi")`` scales.
    Without knowledge of the model every float leaf of two or more axes is taken.
    """
    if is_compressed(leaf):
        return "is a compressed tensor already"
    if not hasattr(leaf, "dtype"):
        return f"is a Python {type(leaf).__name__}, no array: wrap it in jnp.asarray"
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        return f"{leaf.dtype}: complex numbers stay as they are; make real and imaginary parts leaves of their own"
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return f"dtype {leaf.dtype} is not real floating point"
    if 0 in leaf.shape:
        return f"shape {tuple(leaf.shape)} holds no entry"
    if not info.leaves and not info.roles:
        return None if leaf.ndim >= 2 else f"has {leaf.ndim} axes; nothing is contracted over it"
    roles = info.roles.get(path)
    if roles is None:
        entry = next((entry for entry in info.leaves if entry.path == path), None)
        if entry is None:
            return "is unknown to this ModelInfo"
        return entry.reason or f"no site contracts it: the weight of {', '.join(entry.sites)} is computed with it"
    if not roles.input:
        return "no site contracts it: each of its entries scales one number, or is added to it"
    return None


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


def no_taps(site: Site) -> Mapping[str, Tap]:
    """The taps of a method that sees nothing of the model's activations."""
    return {}


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

        found = {path: one(path) for path in state.carried}
        return State({path: own[0] for path, own in found.items()}, {path: own[1] for path, own in found.items()})


def explain(method: Transform, variables: PyTree, info: ModelInfo = ModelInfo()) -> Report:
    """Every leaf that ``method`` leaves alone, with the reason, also where only one member of a chain does.

    And every leaf whose roles were assumed, and what else is to be said of those that it takes.
    """
    as_transform(method, "explain: method")
    messages = []
    for path, leaf in leaves_by_path(variables).items():
        verdict = method.traits.takes(path, leaf, info)
        if isinstance(verdict, str):
            messages.append(Message("skipped", path, verdict))
            continue
        messages += [Message("partial", path, reason) for reason in verdict.passed]
        messages += [Message("note", path, reason) for reason in verdict.notes]
        if "roles" in method.traits.needs and path not in info.roles:
            messages.append(
                Message("assumed", path, "roles: last axis is the output, no stack (pass info=inspect(...))")
            )
    return Report(tuple(messages))
