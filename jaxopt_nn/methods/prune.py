"""Pruning with masks, of parts: a criterion scores, a structure groups, an allocation shares out, a schedule says when."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_nn.core.arguments import in_words
from jaxopt_nn.core.cuts import Cuts
from jaxopt_nn.core.leafwise import known_of, leaf_taps, leafwise
from jaxopt_nn.core.model import Known, ModelInfo, Roles
from jaxopt_nn.core.paths import leaves_by_path, map_with_path
from jaxopt_nn.core.transform import LeafTraits, PyTree, State, Transform, no_taps, why_not_matrix
from jaxopt_nn.methods.allocations.base import Allocation
from jaxopt_nn.methods.allocations.per_leaf import per_leaf
from jaxopt_nn.methods.criteria.base import Asked, Criterion, asked
from jaxopt_nn.methods.criteria.magnitude import magnitude
from jaxopt_nn.methods.prune_checks import check_parts
from jaxopt_nn.methods.regrowth import Regrowth, regrown
from jaxopt_nn.methods.schedules import pending
from jaxopt_nn.methods.structures.base import Structure, single_weights
from jaxopt_nn.tensors.base import is_compressed


@partial(jax.tree_util.register_dataclass, data_fields=["mask", "known"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Pruned:
    """State of one leaf: its mask, True is kept; and what its criterion knows of it, what it keeps in mind included.

    The mask is bool, of the leaf's shape, or of blocks one entry a block.
    """

    mask: Any
    known: Known

    @property
    def roles(self) -> Roles:
        return self.known.roles


def prune(
    criterion: Criterion = magnitude,
    *,
    sparsity: float | Callable[[Any], Any] | None = None,
    threshold: float | Callable[[Any], Any] | None = None,
    structure: Structure = single_weights,
    allocation: Allocation = per_leaf,
    regrow: bool | Regrowth = True,
) -> Transform:
    """Sets the weights of the lowest score to zero: exactly as many as asked, ties by position, or those below a threshold.

    Either may be a schedule ``step -> value`` (``cubic``, ``staircase``, any of optax's), which is read in ``update``, and
    at step 0 in ``init``; a number prunes once, in ``init``.

    Args:
      criterion: any callable of the signature ``Criterion``: ``magnitude``, ``movement``, ``fisher`` and others.
      sparsity: share of zeros in [0, 1]; a pattern that has only one (``n_of_m``) gives it.
      threshold: 0 or more, in units of the score: weights whose score is below it go (``|w| < 0.01``); 0 prunes nothing.
      structure: what is kept or goes as one: ``single_weights``, ``n_of_m(2, 4)``, ``blocks(8, 128)``, or any ``Structure``.
        The share of zeros is counted in its entries.
      allocation: how a sparsity is shared out: ``per_leaf``, ``global_budget``, ``erk``, ``lamp``, ``by_sensitivity()``, or any
        callable of the signature ``Allocation``.
      regrow: at each update of a schedule, a pruned weight's latent value, which got no gradient since, competes again
        (the authors' code of Zhu & Gupta 2017); False: a pruned weight never returns (scored below all others, so where a
        target falls again, fewer are kept than it says); ``rigl(...)`` or ``sparse_evolution(...)``: at a constant sparsity
        some go and as many others return.

    Returns:
      A ``Transform`` whose masks live in ``carried`` and which packs into ``Masked`` or ``NofM``; gradients reach kept weights
      only.

    Raises:
      ValueError: both or neither of sparsity and threshold; a number, or a schedule's value at step 0, outside the above; parts
        that don't go together, and why; at ``pack``, NaN or Inf.
      TypeError: a part that is no function of its signature, a sparsity or threshold that is no number.

    Example:
      >>> v = {"kernel": jnp.array([[0.5, -2.0], [0.1, 3.0]])}
      >>> method = jn.prune(sparsity=0.5)
      >>> method.view(v, method.init(v))["kernel"]
      Array([[ 0., -2.],
             [ 0.,  3.]], dtype=float32)
      >>> gradual = jn.prune(jn.saliency, sparsity=jn.cubic(0.9, end=1000))  # by |w dL/dw|, while it trains
      >>> small = jn.prune(threshold=0.2)
      >>> small.view(v, small.init(v))["kernel"]
      Array([[ 0.5, -2. ],
             [ 0. ,  3. ]], dtype=float32)
    """
    amount, start = check_parts(criterion, sparsity, threshold, structure, allocation, regrow)
    select = _chooser(structure, allocation, threshold)
    growth = regrow if isinstance(regrow, Regrowth) else None
    criteria = [criterion] if growth is None else [criterion, growth.by, *filter(None, [growth.start])]
    wants = asked(*criteria, allocation=None if threshold is not None else allocation)
    takes = partial(_takes, structure)
    changes = callable(amount) or growth is not None
    needs = frozenset({"roles"} | ({"grads"} if changes and (wants.gradients is not False or wants.memory) else set()))
    # an allocation sees all leaves together, so init and update are no work of single leaves
    each = leafwise(
        takes, lambda path, leaf, known: ((), ()), partial(_view, structure), pack=partial(_pack, structure), needs=needs,
        taps=wants.taps, name="prune",
    )  # fmt: skip
    own = _Pruning(criterion, structure, select, amount, start, regrow, each, wants)
    alone = allocation is per_leaf or getattr(allocation, "leaf_local", False)
    local = structure.select is not None or threshold is not None or alone
    traits = each.traits._replace(
        leaf_local=local, pending=partial(pending, "sparsity" if threshold is None else "threshold", amount),
        follows=own.follows, taps=own.lacking, passes=1 if wants.probes else each.traits.passes,
    )  # fmt: skip
    return each._replace(init=own.init, update=own.update, project=own.project if growth else each.project, traits=traits)


def _chooser(structure: Structure, allocation: Allocation, threshold: Any) -> Callable[..., dict[str, Any]]:
    """``({path: scores}, {path: Known}, amount) -> {path: mask}``."""
    if threshold is not None:
        return _above
    select = structure.select
    if select is None:
        return allocation
    return lambda scores, known, sparsity: {p: select(x, known[p].roles, sparsity) for p, x in scores.items()}


@dataclasses.dataclass(frozen=True, eq=False)
class _Pruning:
    """The masks of ``prune``: ``select(scores, known, amount)``, of which ``start`` is the amount at step 0."""

    criterion: Criterion
    structure: Structure
    select: Callable[..., dict[str, Any]]
    amount: Any
    start: Any
    regrow: bool | Regrowth
    each: Transform
    wants: Asked

    @property
    def changes(self) -> bool:
        """Whether masks change after ``init``."""
        return callable(self.amount) or isinstance(self.regrow, Regrowth)

    def taken(self, params: PyTree, info: ModelInfo) -> dict[str, Any]:
        return {p: x for p, x in leaves_by_path(params).items() if not isinstance(self.each.traits.takes(p, x, info), str)}

    def lacking(self, info: ModelInfo) -> dict[Any, Any]:
        """``Traits.taps``: of sites, and by leaf those of the loss."""
        leaves = {leaf.path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in info.leaves if self.wants.probes}
        probes = {((), path, n): probe for path in self.taken(leaves, info) for n, probe in self.wants.probes.items()}
        lacking = leaf_taps(self.each.traits.takes, self.wants.taps)(info) if self.wants.taps is not no_taps else {}
        return {**lacking, **{key: probe for key, probe in probes.items() if key not in info.stats}}

    def known(self, path: str, leaf: Any, info: ModelInfo) -> Known:
        """What the parts get to know of a leaf: what they asked for, in ``stats``."""
        known = known_of(path, leaf.ndim, info, self.wants.taps)
        stats = dict(known.stats)
        for name in self.wants.probes:
            if ((), path, name) in info.stats:
                stats[name] = info.stats[((), path, name)]
            elif name not in self.wants.memory or not self.changes:
                raise ValueError(
                    f"{path}: the statistic {name!r} of the loss is missing; pass info=calibrate(network, method, task)"
                )
        for name, memory in self.wants.memory.items() if self.changes else ():
            if name not in stats:
                stats[name] = memory.zero(jnp.zeros(leaf.shape, jnp.float32))
        if self.wants.key is not None:
            key = jax.random.key(self.wants.key) if isinstance(self.wants.key, int) else self.wants.key
            stats["key"] = jax.random.fold_in(key, zlib.crc32(path.encode()))
        return dataclasses.replace(known, stats=stats)

    def scores(
        self, criterion: Criterion, leaves: dict[str, Any], grads: Mapping[str, Any] | None, known: Mapping[str, Known]
    ) -> dict[str, Any]:
        """Of the structure's entries.

        Raises:
          ValueError: the criterion gives an array of another shape than the weight's.
        """
        made = {p: _score(criterion, x, None if grads is None else grads[p], known[p]) for p, x in leaves.items()}
        for path, score in made.items():
            if score.shape != leaves[path].shape:
                raise ValueError(
                    f"{path}: the criterion gives {in_words(score)} for {in_words(leaves[path])}; it must give each weight a "
                    "score"
                )
        return {p: _entries(self.structure, score, known[p].roles) for p, score in made.items()}

    def at_zero(self, leaves: dict[str, Any], known: dict[str, Known]) -> dict[str, Any]:
        if callable(self.amount) and self.start == 0:  # no score is needed yet, so that a criterion may wait for gradients
            shapes = {p: jax.eval_shape(partial(_entries, self.structure, roles=known[p].roles), x) for p, x in leaves.items()}
            return {p: jnp.ones(x.shape, bool) for p, x in shapes.items()}
        first = self.regrow.start if isinstance(self.regrow, Regrowth) else None
        return self.select(self.scores(first or self.criterion, leaves, None, known), known, self.start)

    def init(self, params: PyTree, info: ModelInfo = ModelInfo()) -> State:
        taken = self.taken(params, info)
        if not taken:
            return State({}, {})

        def made(leaves: dict[str, Any]) -> dict[str, Pruned]:
            known = {p: self.known(p, x, info) for p, x in leaves.items()}
            masks = self.at_zero(leaves, known)
            return {p: Pruned(masks[p], self.carried(own)) for p, own in known.items()}

        abstract = any(isinstance(x, jax.ShapeDtypeStruct) for x in taken.values())
        return State(dict.fromkeys(taken, ()), jax.eval_shape(made, taken) if abstract else made(taken))

    def carried(self, known: Known) -> Known:
        """What is known, as the state holds it: where no mask changes any more, without statistics."""
        return known if self.changes else dataclasses.replace(known, stats={})

    def update(self, params: PyTree, state: State, *, step: Any = 0, grads: PyTree | None = None) -> State:
        if not self.changes or not state.carried:
            return state
        leaves = {p: x for p, x in leaves_by_path(params).items() if p in state.carried}
        slopes = None if grads is None else {p: x for p, x in leaves_by_path(grads).items() if p in leaves}
        known = {p: self.remembered(own.known, leaves[p], slopes and slopes[p]) for p, own in state.carried.items()}
        old = {p: own.mask for p, own in state.carried.items()}
        if isinstance(self.regrow, Regrowth):
            new = self.exchanged(leaves, slopes, known, old, step)
        else:
            scores = self.scores(self.criterion, leaves, slopes, known)
            if not self.regrow:
                scores = {p: jnp.where(old[p], score, -jnp.inf) for p, score in scores.items()}
            new = self.select(scores, known, self.amount(step))
            new = {p: mask if self.regrow else mask & old[p] for p, mask in new.items()}
        return State(state.learnt, {p: Pruned(new[p], own) for p, own in known.items()})

    def remembered(self, known: Known, leaf: Any, slope: Any) -> Known:
        """What is known, after this step's gradient."""
        if not self.wants.memory or slope is None:
            return known
        wide = leaf.astype(jnp.float32), slope.astype(jnp.float32)
        new = {name: memory.add(known.stats[name], *wide) for name, memory in self.wants.memory.items()}
        return dataclasses.replace(known, stats={**known.stats, **new})

    def exchanged(
        self, leaves: dict[str, Any], slopes: Any, known: Mapping[str, Known], old: Mapping[str, Any], step: Any
    ) -> dict[str, Any]:
        """The masks after a share of what is kept has gone and as many others have returned."""
        assert isinstance(self.regrow, Regrowth)
        now = {p: _at_step(own, step) for p, own in known.items()}
        drop = self.scores(self.criterion, leaves, slopes, known)
        grow = self.scores(self.regrow.by, leaves, slopes, now)
        share = self.regrow.share(step)
        return regrown(old, drop, grow, known, share)

    def project(self, params: PyTree, state: State) -> tuple[PyTree, PyTree]:
        """What is pruned starts from zero where it returns (Evci et al. 2020, section 3)."""
        own = state.carried
        view = lambda path, leaf: _view(self.structure, leaf, (), own[path]) if path in own else leaf
        return map_with_path(view, params), state.learnt

    def follows(self, state: State, cuts: Cuts) -> State:
        def one(path: str, own: Pruned) -> Pruned:
            if path not in cuts.leaves or cuts.moments is not None:
                return own
            leaf = leaves_by_path(cuts.params)[path]
            # what its criterion knows is of another leaf now; without a schedule it is not asked again
            known = self.known(path, leaf, cuts.info) if self.changes else Known(own.roles)
            mask = self.structure.follows(own.mask, cuts.leaves[path], own.roles)
            if isinstance(mask, str):
                if misfit := self.structure.takes(tuple(leaf.shape), own.roles):
                    raise ValueError(f"{path}: cut, it {misfit}; keep another number of units")
                cuts.recorder.add("anew", path, f"prune: its mask made anew, since {mask}")
                full = self.known(path, leaf, cuts.info)
                share = 1 - float(jnp.mean(own.mask))
                mask = self.select(self.scores(self.criterion, {path: leaf}, None, {path: full}), {path: full}, share)[path]
            return Pruned(mask, dataclasses.replace(known, roles=own.roles))

        return State(state.learnt, {path: one(path, own) for path, own in state.carried.items() if not cuts.gone(path)})


def _at_step(known: Known, step: Any) -> Known:
    """With a key of its own for each step."""
    if "key" not in known.stats:
        return known
    return dataclasses.replace(known, stats={**known.stats, "key": jax.random.fold_in(known.stats["key"], step)})


def _above(scores: dict[str, jax.Array], known: Mapping[str, Known], threshold: Any) -> dict[str, jax.Array]:
    """Weights whose score reaches the threshold; 0 keeps all."""
    threshold = jnp.asarray(threshold, jnp.float32)
    return {path: (score >= threshold) | (threshold == 0) for path, score in scores.items()}


@partial(jax.jit, static_argnums=0)
def _score(criterion: Criterion, leaf: jax.Array, grad: jax.Array | None, known: Known) -> jax.Array:
    return criterion(leaf.astype(jnp.float32), None if grad is None else grad.astype(jnp.float32), known)


def _entries(structure: Structure, score: jax.Array, roles: Roles) -> jax.Array:
    return score if structure is single_weights else _grouped(structure.entries, score, roles)


@partial(jax.jit, static_argnums=(0, 2))
def _grouped(entries: Callable[..., Any], score: jax.Array, roles: Roles) -> jax.Array:
    return entries(score.astype(jnp.float32), roles)


def _takes(structure: Structure, path: str, leaf: Any, info: ModelInfo) -> LeafTraits | str:
    reason = why_not_matrix(path, leaf, info) or structure.takes(tuple(leaf.shape), info.roles_of(path, leaf.ndim))
    return LeafTraits("mask") if reason is None else reason


def _view(structure: Structure, leaf: Any, learnt: Any, carried: Pruned) -> Any:
    return jnp.where(structure.spread(carried.mask, leaf.shape, carried.roles), leaf, jnp.zeros_like(leaf))


def _pack(structure: Structure, path: str, leaf: Any, learnt: Any, carried: Pruned) -> Any:
    if is_compressed(leaf):
        return leaf
    _finite(path, leaf)
    return structure.pack(carried.mask, leaf, carried.roles)


@jax.jit
def _all_finite(leaf: Any) -> jax.Array:
    return jnp.all(jnp.isfinite(leaf))


def _finite(path: str, leaf: Any) -> None:
    if not bool(_all_finite(leaf)):
        raise ValueError(
            f"{path}: NaN or Inf among the {np.size(leaf)} weights; find the step that diverged, or clean the leaf first"
        )
