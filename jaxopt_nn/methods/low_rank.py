"""Low rank: weights as products of factors, truncated where the layer's output needs them least, and trained as such."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_nn.core.arguments import check_choice, check_whole, in_words, is_number
from jaxopt_nn.core.cuts import Cut, Cuts
from jaxopt_nn.core.leafwise import known_of, leafwise
from jaxopt_nn.core.model import Known, ModelInfo, Site
from jaxopt_nn.core.paths import leaves_by_path
from jaxopt_nn.core.report import Recorder
from jaxopt_nn.core.tap import Tap
from jaxopt_nn.core.transform import (
    Facts,
    LeafTraits,
    PyTree,
    State,
    Transform,
    as_info,
    as_transform,
    followed,
    identity,
    no_taps,
    why_not_matrix,
)
from jaxopt_nn.methods import factoring
from jaxopt_nn.methods.factoring import FORMS, Form, form_of, laid, sites_of
from jaxopt_nn.methods.taps import gram, square_sum
from jaxopt_nn.tensors import operations

#: What a statistic of the inputs is called, and its tap.
STATISTICS = {"inputs": ("gram", gram()), "diagonal": ("square_sum", square_sum())}


@partial(jax.tree_util.register_dataclass, data_fields=["ranks", "inside"], meta_fields=["form"])
@dataclasses.dataclass(frozen=True)
class Factored:
    """State of one leaf.

    Attributes:
      ranks: None where the factors are as wide as the ranks; or int32 of how many of their columns count, 0 of a leaf that
        stays as it is.
      inside: what the factors' own method carries.
      form: how the leaf falls into factors.
    """

    ranks: Any
    inside: Any
    form: Form


class _Options(NamedTuple):
    """Arguments of ``low_rank``; ``kind`` says which of the amounts it is."""

    kind: str
    amount: Any
    whiten: str | None
    form: str
    multiple: int
    damping: float

    @property
    def chosen(self) -> bool:
        """Whether ranks depend on the weights."""
        return self.kind in ("energy", "nbytes", "macs")

    @property
    def taps(self) -> Callable[[Site], Mapping[str, Tap]]:
        if self.whiten is None:
            return no_taps
        name, tap = STATISTICS[self.whiten]
        return lambda site: {} if site.weight is None else {name: tap}


def low_rank(
    rank: int | tuple[int, int] | None = None,
    *,
    share: float | None = None,
    energy: float | None = None,
    nbytes: int | float | None = None,
    macs: float | None = None,
    whiten: str | None = None,
    form: str = "channel",
    factors: Transform | None = None,
    multiple: int = 1,
    damping: float = 1e-6,
) -> Transform:
    """Weight matrices as products of two factors of low rank, kernels of two or three; the factors are what is trained.

    One of the first five arguments says how much stays. ``rank`` and ``share`` are the same for each leaf; ``energy``,
    ``nbytes`` and ``macs`` look at the weights: factors are then as wide as pays, and their columns beyond the rank are zero.
    All layers of a stack have one rank.

    The factors of the least error come from a truncated SVD (Eckart & Young 1936): of the weights, or, with ``whiten``, of the
    layer's outputs on calibration data, the root of the Gram matrix times the weights (SVD-LLM, Wang et al. 2024, section 3.2:
    ``whiten="inputs"``) or of its diagonal alone (as ASVD, Yuan et al. 2023, section 3.2, here with root mean squares and an
    exponent of 1: ``"diagonal"``). The weights are projected, so that no inverse is taken and any Gram matrix will do.

    Args:
      rank: of each leaf; of a Tucker factoring the two, or the smaller.
      share: of each leaf's bytes, at most.
      energy: share of the squared singular values that each leaf keeps, at least, in the least rank; of a stack the layer that
        keeps least.
      nbytes: bytes (int), or the share of their bytes (float), that all leaves which are taken have together, at most.
      macs: share of their multiply-accumulates, likewise. Both are shared out where a leaf's relative error falls most.
      whiten: None, ``"inputs"`` or ``"diagonal"``; these need ``calibrate``, and go with ``form="channel"``.
      form: of convolutions: ``"channel"`` (the whole window to the rank, then 1 x 1; Zhang et al. 2016), ``"spatial"`` (k x 1,
        then 1 x k; Jaderberg et al. 2014) or ``"tucker"`` (1 x 1, the window between two ranks, 1 x 1; Kim et al. 2016, with
        ranks by these arguments and not by VBMF). Windows of one place have the channel form.
      factors: a transform of the factors ``left``, ``right`` and ``core`` in their turn, such as ``quantize(8)``.
      multiple: ranks are multiples of this, of ``nbytes`` and ``share`` the largest that fit; 8 for convolutions on a CPU.
      damping: 0 or more, over the mean of the Gram matrix' diagonal: what weights count of inputs that were never seen.

    Returns:
      A ``Transform`` that packs into ``LowRank``, whose products run factor by factor; ``densify`` of that is the view to 1e-6
      of its largest entry. It takes float leaves that some site contracts and whose factors are smaller. Gradients reach the
      factors; the leaf itself is read at ``init`` alone, and where it stays as it is.

    Raises:
      ValueError: none or two of the five; an argument outside the above; at ``init``, no statistics, NaN or Inf, a budget that
        can't be kept to.

    Example:
      >>> v = {"kernel": jnp.outer(jnp.arange(1.0, 9.0), jnp.ones(6))}  # of rank 1
      >>> method = jn.low_rank(1)
      >>> state = method.init(v)
      >>> bool(jnp.allclose(method.view(v, state)["kernel"], v["kernel"], atol=1e-5))
      True
      >>> stored = method.pack(v, state)["kernel"]
      >>> stored.ranks, stored.nbytes, v["kernel"].nbytes
      ((1,), 56, 192)
    """
    amounts = {"rank": rank, "share": share, "energy": energy, "nbytes": nbytes, "macs": macs}
    given = {name: x for name, x in amounts.items() if x is not None}
    if len(given) != 1:
        said = ", ".join(f"{name}={x!r}" for name, x in given.items()) or "nothing"
        raise ValueError(f"low_rank: how much stays? pass one of {', '.join(amounts)}; got {said}")
    ((kind, amount),) = given.items()
    amount = tuple(amount) if isinstance(amount, list) else amount  # as a config has it
    _check(kind, amount, whiten, form, multiple, damping)
    inner = identity() if factors is None else as_transform(factors, "low_rank: factors")
    own = _LowRank(_Options(kind, amount, whiten, form, multiple, float(damping)), inner)
    each = leafwise(
        own.takes, own.init, own.view, update=own.update, project=own.project, pack=own.pack, needs=frozenset({"roles"}),
        taps=own.options.taps, follows=own.follows, name="low_rank",
    )  # fmt: skip
    traits = each.traits._replace(
        facts=own.facts, leaf_local=kind not in ("nbytes", "macs"), pending=inner.traits.pending,
        follows=partial(own.follow_all, each),
    )  # fmt: skip
    if kind in ("nbytes", "macs"):
        each = each._replace(init=partial(own.init_together, each.traits.takes))
    return each._replace(traits=traits)


def _check(kind: str, amount: Any, whiten: Any, form: Any, multiple: Any, damping: Any) -> None:
    """Raises ValueError or TypeError where an argument of ``low_rank`` is not allowed."""
    whole = lambda x: isinstance(x, int) and not isinstance(x, bool)
    if kind == "rank" or (kind == "nbytes" and whole(amount)):
        numbers = amount if isinstance(amount, tuple) else (amount,)
        pair = isinstance(amount, tuple) and (kind != "rank" or form != "tucker" or len(amount) != 2)
        if pair or not all(map(whole, numbers)) or min(numbers) < 1:
            raise ValueError(
                f"low_rank({kind}={amount!r}): allowed are whole numbers from 1"
                + (", with form='tucker' also two of them" if kind == "rank" else ", and shares between 0.0 and 1.0")
            )
    elif not is_number(amount):
        raise TypeError(f"low_rank: {kind} is {in_words(amount)}; pass a number, e.g. {kind}=0.5")
    elif not 0 < amount <= 1:
        raise ValueError(f"low_rank({kind}={amount}): allowed are shares of what there is, above 0 and up to 1")
    check_choice("low_rank", "form", form, FORMS)
    check_choice("low_rank", "whiten", whiten, (None, *STATISTICS))
    if whiten is not None and form != "channel":
        raise ValueError(
            f"low_rank(whiten={whiten!r}, form={form!r}): of whitened inputs the whole window is factored against the outputs; "
            "pass form='channel', or whiten=None"
        )
    check_whole("low_rank", "multiple", multiple, 1)
    if not (is_number(damping) and 0 <= damping < math.inf):
        raise ValueError(
            f"low_rank(damping={in_words(damping)}): allowed are shares of the diagonal's mean, 0 or more, e.g. 1e-6"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class _LowRank:
    """The functions of ``low_rank``; ``inner`` is the method of the factors."""

    options: _Options
    inner: Transform

    # -- which leaves, which ranks -------------------------------------------------------------------------------------

    def takes(self, path: str, leaf: Any, info: ModelInfo) -> LeafTraits | str:
        reason = why_not_matrix(path, leaf, info)
        if reason is not None:
            return reason
        form = form_of(leaf, info.roles_of(path, leaf.ndim), info, path, self.options.form, self.options.multiple)
        if isinstance(form, str):
            return form
        ranks = self.ranks(form)
        if isinstance(ranks, str):
            return ranks
        matrix, notes = info.matrix(path), []
        if self.options.whiten and matrix is not None and laid(matrix, form) is None:
            return "what is measured of its inputs can't be laid beside its axes"
        if any(not use.exact for site in info.sites for use in site.uses if use.path == path and use.matrix == matrix):
            notes.append("the weight of its site is computed from it; it is factored as if it were that weight")
        return LeafTraits("codes", keeps_zeros=False, notes=tuple(notes))

    def ranks(self, form: Form) -> tuple[int, ...] | str:
        """How wide the factors are: the ranks, or the largest that may be chosen; or why there are none."""
        kind, amount = self.options.kind, self.options.amount
        size, found = math.prod(form.shape), form.options()
        if kind == "share":
            found = [ranks for ranks in found if form.entries(ranks) <= amount * size]
        if kind == "rank":
            if max(np.atleast_1d(amount)) > max(form.full):
                return f"its rank is at most {max(form.full)}, and factors of rank={amount} take no fewer bytes"
            level = amount if isinstance(amount, tuple) and len(form.full) == 2 else min(np.atleast_1d(amount))
            ranks = tuple(level) if isinstance(level, tuple) else form._replace(multiple=1).ranks(int(level))
            fits = form.entries(ranks) < size and all(r <= n for r, n in zip(ranks, form.full))
            found = [ranks] if fits else []
        least = ranks if kind == "rank" else form.ranks(1)
        took = f"its factors of rank {' and '.join(map(str, least))} take {form.nbytes(least)} bytes"
        before = size * jnp.dtype(form.dtype).itemsize
        limit = f"more than share={amount:g} of the {before} that it has" if kind == "share" else f"no less than its {before}"
        return found[-1] if found else f"{took}, {limit}"

    # -- init ----------------------------------------------------------------------------------------------------------

    def init(self, path: str, leaf: Any, known: Known) -> tuple[Any, Any]:
        """Of a leaf alone."""
        form, own = self.form(path, leaf, known), self.statistic(path, known)
        width = self.ranks(form)
        made = partial(self._made, form, width, None if known.matrix is None else known.matrix)
        values = (leaf, own)
        if operations.is_abstract(values):
            return jax.eval_shape(made, *values)
        learnt, carried = made(*values)
        _check_finite(path, learnt)
        return factoring.placed(form, leaf, learnt), carried

    def form(self, path: str, leaf: Any, known: Known) -> Form:
        form = form_of(leaf, known.roles, ModelInfo(), path, self.options.form, self.options.multiple)
        assert isinstance(form, Form), form
        return form

    def statistic(self, path: str, known: Known) -> Any:
        if self.options.whiten is None:
            return None
        name, _ = STATISTICS[self.options.whiten]
        if known.matrix is None or name not in known.stats:
            raise ValueError(f"{path}: low_rank reads the inputs of the layer; pass info=calibrate(network, method, batches)")
        return known.stats[name]

    def _made(self, form: Form, width: Any, matrix: Any, leaf: Any, own: Any) -> tuple[Any, Any]:
        basis, losses = self.solved(form, matrix, leaf, own)
        if not self.options.chosen:
            return self.state(form, width, basis, None)
        worst = jnp.max(losses, 0)
        fits = worst <= 1 - self.options.amount + 1e-6
        table = jnp.asarray([*form.options(), (0,) * len(width)], jnp.int32)
        return self.state(form, width, basis, table[jnp.where(jnp.any(fits), jnp.argmax(fits), len(fits))])

    def solved(self, form: Form, matrix: Any, leaf: Any, own: Any) -> tuple[Any, Any]:
        return factoring.solved(form, None if own is None else matrix, leaf, own, self.options.damping, self.options.chosen)

    def state(self, form: Form, width: Any, basis: Any, ranks: Any) -> tuple[Any, Any]:
        """Learnt factors and what is carried."""
        parts = dict(zip(form.names, factoring.factors(form, width, basis, ranks), strict=True))
        inside = self.inner.init(factoring.masked(form, parts, ranks), factoring.info(form))
        return {"factors": parts, "inside": inside.learnt}, Factored(ranks, inside.carried, form)

    def init_together(self, takes: Callable[..., Any], params: PyTree, info: ModelInfo = ModelInfo()) -> State:
        """Of all leaves, with one budget."""
        info = as_info(info)
        taken = {p: x for p, x in leaves_by_path(params).items() if not isinstance(takes(p, x, info), str)}
        known = {p: known_of(p, x.ndim, info, self.options.taps) for p, x in taken.items()}
        forms = {p: self.form(p, x, known[p]) for p, x in taken.items()}
        own = {p: self.statistic(p, known[p]) for p in taken}
        if not taken:
            return State({}, {})
        costs, budget = self.costs(forms, info)

        def made(leaves: dict[str, Any], own: dict[str, Any]) -> tuple[Any, Any]:
            solved = {p: self.solved(forms[p], known[p].matrix, x, own[p]) for p, x in leaves.items()}
            losses = [jnp.append(jnp.mean(loss, 0), 0.0) for _, loss in solved.values()]
            choice = factoring.shared(tuple(tuple(c) for c in costs.values()), budget, losses)
            states = {}
            for k, (p, (basis, _)) in enumerate(solved.items()):
                found = forms[p].options()
                table = jnp.asarray([*found, (0,) * len(found[-1])], jnp.int32)
                states[p] = self.state(forms[p], found[-1], basis, table[choice[k]])
            return {p: s[0] for p, s in states.items()}, {p: s[1] for p, s in states.items()}

        if operations.is_abstract((taken, own)):
            return State(*jax.eval_shape(made, taken, own))
        state = State(*made(taken, own))
        for path, learnt in state.learnt.items():
            _check_finite(path, learnt)
        return State({p: factoring.placed(forms[p], taken[p], learnt) for p, learnt in state.learnt.items()}, state.carried)

    def costs(self, forms: Mapping[str, Form], info: ModelInfo) -> tuple[dict[str, list[float]], float]:
        """Of each leaf's options, and of the leaf as it is; and the budget.

        Raises:
          ValueError: the sites are not known, or the budget is below the cheapest.
        """
        kind, amount = self.options.kind, self.options.amount
        costs: dict[str, list[float]] = {}
        for path, form in forms.items():
            if kind == "nbytes":
                sizes = [*map(form.nbytes, form.options()), math.prod(form.shape) * jnp.dtype(form.dtype).itemsize]
                costs[path] = list(map(float, sizes))
                continue
            sites = list(sites_of(info, path))
            if not info.sites:
                raise ValueError(
                    f"{path}: low_rank(macs=) counts what the layers do; pass info=inspect(apply, variables, *inputs)"
                )
            strides = [tuple(site.params["window_strides"]) if site.kind == "conv" else () for site in sites]
            costs[path] = [
                float(sum(site.macs * (1.0 if ranks is None else form.macs(ranks, s)) for site, s in zip(sites, strides)))
                for ranks in (*form.options(), None)
            ]
        whole = sum(own[-1] for own in costs.values())
        budget, least = amount if isinstance(amount, int) else amount * whole, sum(min(own) for own in costs.values())
        if least > budget:
            raise ValueError(
                f"low_rank({kind}={amount}): the least ranks of the {len(costs)} leaves take {least:.0f} of {whole:.0f}, more "
                f"than {budget:.0f}; pass more, or cut units first"
            )
        return costs, float(budget)

    # -- what is seen and stored ---------------------------------------------------------------------------------------

    def inside(self, learnt: Any, carried: Factored) -> tuple[dict[str, Any], State]:
        """The factors as their method sees them, and its state."""
        return factoring.masked(carried.form, learnt["factors"], carried.ranks), State(learnt["inside"], carried.inside)

    def view(self, leaf: Any, learnt: Any, carried: Factored) -> Any:
        made = factoring.masked(carried.form, self.inner.view(*self.inside(learnt, carried)), carried.ranks)
        seen = carried.form.tensor([factoring.stored(made[name], carried.form) for name in carried.form.names]).densify()
        return seen if carried.ranks is None else jnp.where(carried.ranks[0] > 0, seen, leaf)

    def pack(self, path: str, leaf: Any, learnt: Any, carried: Factored) -> Any:
        form, ranks = carried.form, None if carried.ranks is None else np.asarray(carried.ranks)
        _check_finite(path, learnt)
        if ranks is not None and not ranks[0]:
            return jnp.asarray(leaf)  # as the view shows it: of NumPy's float64 what JAX makes of it
        made = self.inner.pack(*self.inside(learnt, carried))
        parts = [factoring.stored(made[name], form) for name in form.names]
        for k, r in enumerate(() if ranks is None else ranks):
            parts[k] = _narrowed(parts[k], parts[k].ndim - 1, r)
            parts[k + 1] = _narrowed(parts[k + 1], len(form.stack), r)
        return form.tensor(parts)

    def update(self, leaf: Any, learnt: Any, carried: Factored, step: Any, grad: Any) -> Factored:
        new = self.inner.update(*self.inside(learnt, carried), step=step)
        return dataclasses.replace(carried, inside=new.carried)

    def project(self, leaf: Any, learnt: Any, carried: Factored) -> tuple[Any, Any]:
        parts, inside = self.inner.project(learnt["factors"], State(learnt["inside"], carried.inside))
        return leaf, {"factors": parts, "inside": inside}

    def follows(self, learnt: Any, carried: Factored, cut: Cut) -> tuple[Any, Any] | str:
        form = carried.form
        small = form._replace(shape=cut.small)
        cuts, parts = {}, {}
        for k, name in enumerate(form.names):
            n, own, before = len(form.stack), form.groups[k], int(k > 0)
            places = {**{a: p for p, a in enumerate(form.stack)}, **{a: n + before + p for p, a in enumerate(own)}}
            x = learnt["factors"][name]
            cuts[name] = Cut(tuple(x.shape), {places[a]: entries for a, entries in cut.axes.items() if a in places})
            parts[name] = cuts[name].leaf(x)
        if jax.tree.leaves(learnt["inside"]):
            return "what is learnt of its factors does not say how it follows them"
        inner = Cuts(cuts, parts, factoring.info(small), Recorder())
        new = followed(self.inner, State(learnt["inside"], carried.inside), inner)
        return {"factors": parts, "inside": new.learnt}, Factored(carried.ranks, new.carried, small)

    def follow_all(self, each: Transform, state: State, cuts: Cuts) -> State:
        """Of all leaves; says of which the factors, whose ranks stay, take no fewer bytes than the leaf that was cut."""
        new = followed(each, state, cuts)
        own = "" if self.inner.traits.name == identity().traits.name else ", before what their own method does"
        for path in cuts.leaves if cuts.moments is None else ():
            if path not in new.carried:
                continue
            form, ranks = new.carried[path].form, _ranks(new.learnt[path], new.carried[path])
            took, dense = form.nbytes(ranks), math.prod(form.shape) * jnp.dtype(form.dtype).itemsize
            if ranks[0] and took >= dense:
                told = f"its factors of rank {' and '.join(map(str, ranks))} take {took} bytes{own}, no less than"
                cuts.recorder.add("note", path, f"{told} the {dense} of the leaf once cut; cut units first and factor then")
        return new

    def facts(self, params: PyTree, state: State) -> tuple[Facts, ...]:
        """The ranks of all leaves."""
        cells = []
        for path, own in state.carried.items():
            form, ranks = own.form, _ranks(state.learnt[path], own)
            before = math.prod(form.shape) * jnp.dtype(form.dtype).itemsize
            after = form.nbytes(ranks) if ranks[0] else before
            told = " and ".join(map(str, ranks)) if ranks[0] else "stays as it is"
            cells.append((path, told, " and ".join(map(str, form.full)), after, before))
        note = "The rank of each leaf, the rank that it could have, and bytes of its factors before what their own method does."
        return (Facts("Ranks", note, ("path", "rank", "full", "bytes", "of"), tuple(cells)),) if cells else ()


def _ranks(learnt: Any, carried: Factored) -> tuple[int, ...]:
    """The ranks of a leaf's factors; zeros of one that stays as it is."""
    if carried.ranks is not None:
        return tuple(map(int, carried.ranks))
    return tuple(learnt["factors"][name].shape[-1] for name in carried.form.names[:-1])


def _narrowed(x: Any, axis: int, rank: int) -> Any:
    """The first ``rank`` entries of an axis of a factor; an array where its codes can't be cut there."""
    made = operations.on(x, "cut", axis, np.arange(rank))
    return operations.on(operations.dense(x), "cut", axis, np.arange(rank)) if made is NotImplemented else made


@jax.jit
def _finite(tree: Any) -> Any:
    return jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]).all()


def _check_finite(path: str, learnt: Any) -> None:
    """Raises ValueError where factors are NaN or Inf; under ``jit`` nothing can be told."""
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(learnt)) or bool(_finite(learnt["factors"])):
        return
    raise ValueError(
        f"{path}: NaN or Inf among the weights, or in what is known of its inputs; find the step that diverged, or clean the "
        "leaf first"
    )
