"""Weight pruning with masks: a score for each weight, the lowest are set to zero."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_nn.core.arguments import check_takes, in_words
from jaxopt_nn.core.cuts import Cuts
from jaxopt_nn.core.leafwise import known_of, leafwise
from jaxopt_nn.core.model import Known, ModelInfo, Roles
from jaxopt_nn.core.paths import leaves_by_path
from jaxopt_nn.core.transform import LeafTraits, PyTree, State, Transform, no_taps, why_not_matrix
from jaxopt_nn.numerics import topk
from jaxopt_nn.tensors.base import is_compressed
from jaxopt_nn.tensors.masked import Masked

#: ``(weight float32, gradient float32 or None, known) -> score`` of the weight's shape; the lowest scores go first. ``known``
#: has the leaf's roles and matrix. A criterion that needs statistics of the activations says so in an attribute ``taps``,
#: ``site -> {name: Tap}``, and finds them in ``known.stats``.
Criterion = Callable[[jax.Array, jax.Array | None, Known], jax.Array]
#: ``({path: score}, {path: roles}, sparsity) -> {path: bool mask}``; True is kept. One whose leaves don't depend on each other
#: says so in an attribute ``leaf_local = True``: then layers can be calibrated one after the other.
Allocation = Callable[[dict[str, jax.Array], dict[str, Roles], Any], dict[str, jax.Array]]


@partial(jax.tree_util.register_dataclass, data_fields=["mask", "known"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Pruned:
    """State of one leaf: its mask, bool of its shape, True is kept; and what its criterion knows of it."""

    mask: Any
    known: Known

    @property
    def roles(self) -> Roles:
        return self.known.roles


def magnitude(weight: jax.Array, grad: jax.Array | None, known: Known) -> jax.Array:
    """``|w|``, the magnitude (Han et al. 2015).

    Args:
      weight: float32, the leaf.
      grad: not used.
      known: not used.

    Returns:
      The score, of the weight's shape.

    Example:
      >>> jn.magnitude(jnp.array([1.0, -2.0]), None, jn.Known(jn.Roles()))
      Array([1., 2.], dtype=float32)
      >>> method = jn.prune(jn.magnitude, sparsity=0.5)  # the default
    """
    return jnp.abs(weight)


def saliency(weight: jax.Array, grad: jax.Array | None, known: Known) -> jax.Array:
    """``|w dL/dw|``, the first-order change of the loss.

    Molchanov et al. (2017), eq. 8; Lee et al. (2019), SNIP, eq. 4.

    Args:
      weight: float32, the leaf.
      grad: of the loss, in the leaf's place, at what the forward pass sees; float32.
      known: not used.

    Returns:
      The score, of the weight's shape.

    Raises:
      ValueError: no gradient: ``init`` has none, so it needs a schedule that prunes in ``update``.

    Example:
      >>> jn.saliency(jnp.array([1.0, -2.0]), jnp.array([3.0, 0.5]), jn.Known(jn.Roles()))
      Array([3., 1.], dtype=float32)
      >>> method = jn.prune(jn.saliency, sparsity=jn.cubic(0.9, end=1000))
    """
    if grad is None:
        raise ValueError(
            "saliency needs gradients, which update gets and init does not: pass a schedule that starts at 0, e.g. "
            'sparsity=cubic(0.9, end=1000), in a config {"schedule": "cubic", "final": 0.9, "end": 0.4}'
        )
    return jnp.abs(weight * grad)


def _kept(size: int, sparsity: Any) -> jax.Array:
    """Entries to keep of ``size``: ``size - round(sparsity * size)``, half to even, int32.

    A number counts exactly. A schedule's float32 is read to six decimals, so that its 0.9 means nine tenths of fifty million
    too; the product of the millionths and the size is taken in integers.
    """
    if size >= 2**31:
        raise ValueError(f"{size:,} weights share one budget; at most 2^31 - 1 are counted: use allocation=per_leaf")
    if isinstance(sparsity, (int, float)):
        return jnp.int32(size - round(sparsity * size))
    millionths = jnp.round(jnp.clip(jnp.asarray(sparsity, jnp.float32), 0, 1) * 1e6).astype(jnp.uint32)
    millions, rest = divmod(size, 10**6)
    thousands, ones = (np.uint32(n) for n in divmod(rest, 1000))
    large = thousands * millionths  # thousandths
    small = large % 1000 * 1000 + ones * millionths  # millionths
    gone = np.uint32(millions) * millionths + large // 1000 + small // 10**6
    left = small % 10**6
    gone += (left > 500_000) | ((left == 500_000) & (gone % 2 == 1))
    return size - gone.astype(jnp.int32)


@partial(jax.jit, static_argnums=1)
def _keep(score: jax.Array, stack: tuple[int, ...], k: Any) -> jax.Array:
    """The mask of the ``k`` largest scores of each layer of a stack."""
    moved = jnp.moveaxis(score, stack, range(len(stack)))
    rows = moved.reshape((-1, *moved.shape[len(stack) :])) if stack else moved[None]
    masks = jax.vmap(lambda s: topk.keep_largest(s, k))(rows)
    return jnp.moveaxis(masks.reshape(moved.shape), range(len(stack)), stack)


def _layers(shape: tuple[int, ...], roles: Roles) -> tuple[int, tuple[int, ...]]:
    """How many layers a leaf holds, and the inputs, the outputs and the sides of the window of one.

    However many axes its features are laid out in (an attention's heads), a matrix has two of these.
    """
    matrix = [tuple(a for a in roles.input if a not in roles.window), roles.output]
    features = [math.prod(shape[a] for a in axes) for axes in matrix if axes]
    rest = set(range(len(shape))).difference(roles.stack, *matrix)
    return math.prod(shape[a] for a in roles.stack), (*features, *(shape[a] for a in sorted(rest)))


def per_leaf(scores: dict[str, jax.Array], roles: dict[str, Roles], sparsity: jax.Array | float) -> dict[str, jax.Array]:
    """The same sparsity in every leaf, and in every layer of a stack.

    Args:
      scores: ``{path: float array of the leaf's shape}``.
      roles: ``{path: Roles}``.
      sparsity: share of zeros in [0, 1], a number or a float32 scalar.

    Returns:
      ``{path: bool mask}``; True is kept: ``size - round(sparsity * size)`` entries of each layer.

    Example:
      >>> scores = {"a": jnp.array([[1.0, 2.0]]), "b": jnp.array([[3.0, 4.0]])}
      >>> roles = {path: jn.Roles((), (0,), (1,)) for path in scores}
      >>> jn.per_leaf(scores, roles, 0.5)
      {'a': Array([[False,  True]], dtype=bool), 'b': Array([[False,  True]], dtype=bool)}
    """

    def kept(path: str) -> jax.Array:
        return _kept(math.prod(_layers(scores[path].shape, roles[path])[1]), sparsity)

    return {path: _keep(score, roles[path].stack, kept(path)) for path, score in scores.items()}


def global_budget(scores: dict[str, jax.Array], roles: dict[str, Roles], sparsity: jax.Array | float) -> dict[str, jax.Array]:
    """One budget over all leaves together: the lowest scores of the whole network go.

    As Frankle & Carbin (2019, section 4) prune deeper networks. Arguments and result as of ``per_leaf``, but that the number
    kept is exact over all leaves; a leaf may lose all of its weights.

    Raises:
      ValueError: 2^31 weights or more, which int32 can't count.

    Example:
      >>> scores = {"a": jnp.array([[1.0, 2.0]]), "b": jnp.array([[3.0, 4.0]])}
      >>> roles = {path: jn.Roles((), (0,), (1,)) for path in scores}
      >>> jn.global_budget(scores, roles, 0.5)
      {'a': Array([[False, False]], dtype=bool), 'b': Array([[ True,  True]], dtype=bool)}
    """
    flat = jnp.concatenate([score.reshape(-1) for score in scores.values()])
    mask = _keep(flat, (), _kept(flat.size, sparsity))
    out, at = {}, 0
    for path, score in scores.items():
        out[path] = mask[at : at + score.size].reshape(score.shape)
        at += score.size
    return out


def erk(scores: dict[str, jax.Array], roles: dict[str, Roles], sparsity: jax.Array | float) -> dict[str, jax.Array]:
    """Erdos-Renyi-kernel: the density of a layer is proportional to ``sum(dims) / prod(dims)``.

    ``dims`` are its inputs and outputs (Mocanu et al. 2018, eq. 1), one number each however many axes they are laid out
    in, and the sides of a convolution's window (Evci et al. 2020, RigL, section 3). Thin layers stay dense, wide ones pay
    for it; a layer whose density would exceed 1 becomes dense, and the rest is rescaled. As in the authors' code, but that
    the total is exact where RigL rounds layer by layer: ``size - round(sparsity * size)`` over all leaves.
    Stack axes are no part of ``dims``, and each layer of a stack keeps equally many; leaves without a stack make up for
    what a stack rounds.

    Arguments and result as of ``per_leaf``.

    Example:
      >>> scores = {"wide": jnp.ones((100, 100)), "thin": jnp.ones((100, 4))}
      >>> roles = {path: jn.Roles((), (0,), (1,)) for path in scores}
      >>> masks = jn.erk(scores, roles, 0.9)
      >>> {path: round(float(mask.mean()), 3) for path, mask in masks.items()}
      {'thin': 0.89, 'wide': 0.068}
      >>> sum(int(mask.sum()) for mask in masks.values())  # a tenth of 10,400
      1040
    """
    facts = {path: _layers(score.shape, roles[path]) for path, score in scores.items()}
    # Densest first: so whoever exceeds 1 has had its turn before those that share what is left.
    order = sorted(facts, key=lambda path: -sum(facts[path][1]) / math.prod(facts[path][1]))
    total = _kept(sum(score.size for score in scores.values()), sparsity)
    counts = _erk_counts(tuple(facts[path] for path in order), total)
    return {path: _keep(scores[path], roles[path].stack, counts[i]) for i, path in enumerate(order)}


@partial(jax.jit, static_argnums=0)
def _erk_counts(layers: tuple[tuple[int, tuple[int, ...]], ...], total: jax.Array) -> jax.Array:
    """Entries to keep in each layer, int32; ``layers`` are (number of them, dims), the densest first.

    With ``w = sum(dims)``, a sparse layer keeps ``e w`` where ``e`` is what is left over the sum of ``w`` of all layers
    from this one on. Taken in this order, cutting each at its size is the authors' loop over sets of dense layers: once a
    layer is sparse, ``e`` stays as it is.
    """
    copies = np.array([n for n, _ in layers], np.int32)
    sizes = np.array([math.prod(dims) for _, dims in layers], np.int32)
    weights = copies * np.array([max(sum(dims), 1) for _, dims in layers], np.float64)
    shares = (weights / np.cumsum(weights[::-1])[::-1]).astype(np.float32)

    def give(left: jax.Array, layer: Any) -> tuple[jax.Array, jax.Array]:
        share, size, copy = layer
        count = jnp.clip(jnp.round(left * share / copy).astype(jnp.int32), 0, size)
        return left - count * copy, count

    left, counts = jax.lax.scan(give, total, (jnp.asarray(shares), jnp.asarray(sizes), jnp.asarray(copies)))
    # What rounding left over, or took too much: the first leaves without a stack that have room for it.
    room = jnp.where(copies == 1, jnp.where(left > 0, sizes - counts, counts), 0)
    taken = jnp.clip(jnp.abs(left) - (jnp.cumsum(room) - room), 0, room)
    return counts + jnp.sign(left) * taken


def _above(scores: dict[str, jax.Array], roles: dict[str, Roles], threshold: Any) -> dict[str, jax.Array]:
    """Weights whose score reaches the threshold; 0 keeps all."""
    threshold = jnp.asarray(threshold, jnp.float32)
    return {path: (score >= threshold) | (threshold == 0) for path, score in scores.items()}


def prune(
    criterion: Criterion = magnitude,
    *,
    sparsity: float | Callable[[Any], Any] | None = None,
    threshold: float | Callable[[Any], Any] | None = None,
    allocation: Allocation = per_leaf,
    regrow: bool = True,
) -> Transform:
    """Sets the weights of the lowest score to zero: exactly as many as asked, ties by position, or those below a threshold.

    Either may be a schedule ``step -> value`` (``cubic``, ``staircase``, any of optax's), which is read in ``update``, and
    at step 0 in ``init``; a number prunes once, in ``init``.

    Args:
      criterion: any callable of the signature ``Criterion``.
      sparsity: share of zeros in [0, 1].
      threshold: 0 or more, in units of the score: weights whose score is below it go (``|w| < 0.01``); 0 prunes nothing.
      allocation: how a sparsity is shared out: ``per_leaf``, ``global_budget``, ``erk``, or any callable of the signature
        ``Allocation``.
      regrow: at each update of a schedule, a pruned weight's latent value, which got no gradient since, competes again
        (the authors' code of Zhu & Gupta 2017); False: a pruned weight never returns (scored below all others, so where a
        target falls again, fewer are kept than it says).

    Returns:
      A ``Transform`` whose masks live in ``carried`` and which packs into ``Masked``; gradients reach kept weights only.

    Raises:
      ValueError: both or neither of sparsity and threshold; a number, or a schedule's value at step 0, outside the above;
        an allocation beside a threshold; at ``pack``, NaN or Inf.
      TypeError: a criterion or an allocation that is no function, a sparsity or threshold that is no number.

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
    amount = threshold if sparsity is None else sparsity
    _check_functions(criterion, allocation)
    start = _checked_start(sparsity, threshold, allocation)
    select = _above if sparsity is None else allocation
    taps = getattr(criterion, "taps", no_taps)
    # any criterion but magnitude may read gradients; only a schedule scores again after init
    needs = frozenset({"roles"} | ({"grads"} if callable(amount) and criterion is not magnitude else set()))
    # an allocation sees all leaves together, so init and update are no work of single leaves
    each = leafwise(_takes, lambda path, leaf, known: ((), ()), _view, pack=_pack, needs=needs, taps=taps, name="prune")
    own = _Pruning(criterion, select, amount, start, regrow, each, taps)
    local = select in (per_leaf, _above) or getattr(allocation, "leaf_local", False)
    traits = each.traits._replace(leaf_local=local, pending=partial(_pending, sparsity, threshold), follows=own.follows)
    return each._replace(init=own.init, update=own.update, traits=traits)


@dataclasses.dataclass(frozen=True, eq=False)
class _Pruning:
    """The masks of ``prune``: ``select(scores, roles, amount)``, of which ``start`` is the amount at step 0."""

    criterion: Criterion
    select: Callable[..., dict[str, Any]]
    amount: Any
    start: Any
    regrow: bool
    each: Transform
    taps: Callable[..., Any]

    @property
    def scheduled(self) -> bool:
        return callable(self.amount)

    def masks(self, scores: dict[str, Any], roles: dict[str, Roles], step: Any) -> dict[str, Any]:
        return self.select(scores, roles, self.amount(step) if callable(self.amount) else self.amount)

    def at_zero(self, leaves: dict[str, Any], known: dict[str, Known]) -> dict[str, Any]:
        if self.scheduled and self.start == 0:  # no score is needed yet, so that a criterion may wait for gradients
            return {p: jnp.ones(x.shape, bool) for p, x in leaves.items()}
        return self.masks(_scores(self.criterion, leaves, None, known), {p: k.roles for p, k in known.items()}, 0)

    def init(self, params: PyTree, info: ModelInfo = ModelInfo()) -> State:
        taken = {p: x for p, x in leaves_by_path(params).items() if not isinstance(self.each.traits.takes(p, x, info), str)}
        known = {p: known_of(p, x.ndim, info, self.taps) for p, x in taken.items()}
        if not taken:
            return State({}, {})
        abstract = any(isinstance(x, jax.ShapeDtypeStruct) for x in taken.values())
        made = jax.eval_shape(self.at_zero, taken, known) if abstract else self.at_zero(taken, known)
        return State(dict.fromkeys(taken, ()), {p: Pruned(made[p], known[p]) for p in taken})

    def update(self, params: PyTree, state: State, *, step: Any = 0, grads: PyTree | None = None) -> State:
        if not self.scheduled or not state.carried:
            return state
        leaves = {p: x for p, x in leaves_by_path(params).items() if p in state.carried}
        known = {p: own.known for p, own in state.carried.items()}
        scores = _scores(self.criterion, leaves, None if grads is None else leaves_by_path(grads), known)
        if not self.regrow:
            scores = {p: jnp.where(state.carried[p].mask, score, -jnp.inf) for p, score in scores.items()}
        made = self.masks(scores, {p: own.roles for p, own in state.carried.items()}, step)
        new = {p: made[p] if self.regrow else made[p] & own.mask for p, own in state.carried.items()}
        return State(state.learnt, {p: Pruned(new[p], own.known) for p, own in state.carried.items()})

    def follows(self, state: State, cuts: Cuts) -> State:
        def one(path: str, own: Pruned) -> Pruned:
            if path not in cuts.leaves or cuts.moments is not None:
                return own
            cut = cuts.leaves[path]
            # what its criterion knows is of another leaf now; without a schedule it is not asked again
            known = known_of(path, len(cut.shape), cuts.info, self.taps) if self.scheduled else Known(own.roles)
            return Pruned(cut.leaf(own.mask), dataclasses.replace(known, roles=own.roles))

        return State(state.learnt, {path: one(path, own) for path, own in state.carried.items()})


def _check_functions(criterion: Any, allocation: Any) -> None:
    """Raises TypeError where one is no function of three arguments; only a config gives its name."""
    scored = "the function itself: magnitude, saliency, or your own (weight, gradient or None, known) -> score of its shape"
    shared = "the function itself: per_leaf, erk, or your own (scores, roles, sparsity) -> {path: bool mask}"
    check_takes(criterion, 3, "prune: criterion", scored)
    check_takes(allocation, 3, "prune: allocation", shared)


def _pending(sparsity: Any, threshold: Any, step: int) -> str | None:
    """What a schedule has yet to do after ``step``, as ``Traits.pending``."""
    name, amount = ("threshold", threshold) if sparsity is None else ("sparsity", sparsity)
    if not callable(amount):
        return None
    now, final = float(amount(step)), float(amount(2**30))
    return None if abs(now - final) <= 1e-6 else f"{name} is at {now:.6g} and ends at {final:.6g}"


def _checked_start(sparsity: Any, threshold: Any, allocation: Allocation) -> float:
    """What is asked at step 0; errors as in ``prune``."""
    if (sparsity is None) == (threshold is None):
        raise ValueError(
            f"prune(sparsity={sparsity}, threshold={threshold}): give one of them: the share of zeros, or the score below "
            "which weights go"
        )
    if sparsity is None and allocation is not per_leaf:
        raise ValueError(
            "prune(threshold=..., allocation=...): a threshold decides for each weight by itself; leave allocation out"
        )
    amount = threshold if sparsity is None else sparsity
    if not callable(amount) and (isinstance(amount, bool) or not isinstance(amount, numbers.Real)):
        name = "threshold" if sparsity is None else "sparsity"
        raise TypeError(
            f"prune({name}={amount!r}): pass one number, or a schedule of the step such as cubic(0.9, end=1000)"
        )
    with jax.ensure_compile_time_eval():
        start = float(amount(0) if callable(amount) else amount)
    when = f"{start} at step 0" if callable(amount) else f"{start}"
    if sparsity is not None and not 0 <= start <= 1:
        share = f"; for {start:g} % pass sparsity={start / 100:g}" if 1 < start <= 100 else ""
        raise ValueError(f"prune(sparsity={when}): a share of zeros, 0 to 1, or a schedule of the step{share}")
    if not 0 <= start < math.inf:
        raise ValueError(f"prune(threshold={when}): a finite score, 0 or more, or a schedule of the step")
    return start


def _scores(
    criterion: Criterion, leaves: dict[str, Any], grads: dict[str, Any] | None, known: dict[str, Known]
) -> dict[str, Any]:
    made = {p: _score(criterion, x, None if grads is None else grads[p], known[p]) for p, x in leaves.items()}
    for path, score in made.items():
        if score.shape != leaves[path].shape:
            raise ValueError(
                f"{path}: the criterion gives {in_words(score)} for {in_words(leaves[path])}; it must give each weight a score"
            )
    return made


@partial(jax.jit, static_argnums=0)
def _score(criterion: Criterion, leaf: jax.Array, grad: jax.Array | None, known: Known) -> jax.Array:
    return criterion(leaf.astype(jnp.float32), None if grad is None else grad.astype(jnp.float32), known)


def _takes(path: str, leaf: Any, info: ModelInfo) -> LeafTraits | str:
    reason = why_not_matrix(path, leaf, info)
    return LeafTraits("mask") if reason is None else reason


def _view(leaf: Any, learnt: Any, carried: Pruned) -> Any:
    return jnp.where(carried.mask, leaf, jnp.zeros_like(leaf))


def _pack(path: str, leaf: Any, learnt: Any, carried: Pruned) -> Any:
    if is_compressed(leaf):
        return leaf
    _finite(path, leaf)
    return Masked.pack(carried.mask, leaf, carried.roles.stack)


@jax.jit
def _all_finite(leaf: Any) -> jax.Array:
    return jnp.all(jnp.isfinite(leaf))


def _finite(path: str, leaf: Any) -> None:
    if not bool(_all_finite(leaf)):
        raise ValueError(
            f"{path}: NaN or Inf among the {np.size(leaf)} weights; find the step that diverged, or clean the leaf first"
        )
