"""Weight clustering: the weights of a leaf share few values, which are trained.

Han, Mao and Dally (2016, section 3) share weights by k-means (eq. 2) and train the shared values: the gradient of a centroid is
the sum of those of its members (eq. 3), which stay its members.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from jaxopt_nn.core.arguments import check_choice, check_flag, check_whole, in_words
from jaxopt_nn.core.cuts import Cut, Cuts
from jaxopt_nn.core.leafwise import leafwise
from jaxopt_nn.core.model import Known, ModelInfo, Roles
from jaxopt_nn.core.transform import LeafTraits, PyTree, State, Transform
from jaxopt_nn.methods import clusters
from jaxopt_nn.numerics import exact_kmeans, kmeans
from jaxopt_nn.tensors import codebook
from jaxopt_nn.tensors.codebook import Codebook

SCOPES = ("leaf", "group", "all")
#: Where the table of all leaves stands in ``learnt``.
SHARED = "shared"


class Form(NamedTuple):
    """How one leaf is clustered; static.

    Attributes:
      k: values, zero among them. origin: zero is one of them. ste: as in ``cluster``.
      groups: along each axis 1, the leaf's length, or a divisor of it: the tables.
      stack: the leaf's stack axes.
    """

    k: int
    origin: bool
    ste: str
    groups: tuple[int, ...]
    stack: tuple[int, ...]

    @property
    def free(self) -> int:
        """Values of a table."""
        return self.k - self.origin


@partial(jax.tree_util.register_dataclass, data_fields=["codes"], meta_fields=["form"])
@dataclasses.dataclass(frozen=True)
class Clustered:
    """State of one leaf: which value each weight has, uint8 of its shape; its format, static."""

    codes: Any
    form: Form


class Search(NamedTuple):
    """How values are found; static. As in ``cluster``."""

    start: str
    iterations: int
    exact: bool


def cluster(
    k: int | None = None,
    *,
    bits: int | None = None,
    scope: str = "leaf",
    group: int | None = None,
    start: str = "linear",
    weights: str | None = None,
    zero: bool = True,
    exact: bool = False,
    iterations: int = 100,
    reassign: bool = False,
    ste: str = "none",
    biases: bool = False,
    key: jax.Array | int | None = None,
) -> Transform:
    """Gives the weights of a leaf ``k`` shared values, by k-means, and trains these (Han et al. 2016, section 3).

    The values are ``learnt``, float32: the gradient of one is the sum of its members' gradients (eq. 3). Which value a weight
    has is ``carried``, and stays, unless ``reassign``.

    Where no more than ``k`` values differ in a table, zero counted among them (unless ``zero=False``) also where no weight is
    zero, nothing changes. Of two equally near values a weight gets the smaller.

    Args:
      k: number of values, 2 to 256, zero among them where that is kept. bits: 1 to 8, in its place: ``2 ** bits``.
      scope: ``"leaf"`` (a table for each leaf, and layer of a stack), ``"group"`` (one for each ``group`` outputs in a row) or
        ``"all"`` (one for all leaves, of which each stores a copy).
      group: outputs that share a table, along the last output axis, with ``scope="group"``; 1: each its own.
      start: of k-means: ``"linear"`` (the paper's best), ``"density"``, ``"random"`` or ``"kmeans++"``.
      weights: what an error counts: ``"inputs"``, the summed squares of the weight's input, ``"fisher"``, the diagonal of the
        empirical Fisher information (both from ``calibrate``), or None, each alike.
      zero: 0.0 is one of the values and stays it; weights that are exactly zero have it, and count for no other. So what is
        pruned stays pruned, and a mask packs around the codes.
      exact: the best values of all, by dynamic programming on the host: ``k n log n`` for ``n`` different weights, so for
        small k. No start is drawn: ``start`` and ``key`` do nothing.
      iterations: of k-means, at most.
      reassign: each ``update`` gives every weight the nearest value; with ``every(n, ...)`` at each n-th step.
      ste: the derivative for the weights behind: ``"none"`` (0: values alone are trained, as in the paper) or ``"pass"`` (1,
        straight through: to be used with ``reassign``).
      biases: takes every float leaf, and not matrices alone.
      key: a PRNG key or a seed, of a random or k-means++ start.

    Returns:
      A ``Transform`` that packs into ``Codebook``; it takes leaves whose codes and table weigh less than they do.

    Raises:
      ValueError: a value outside the above; at ``init``, NaN or Inf, missing statistics, outputs that ``group`` does not
        divide.

    Example:
      >>> v = {"kernel": jnp.tile(jnp.array([[0.75, -0.5, 0.0, 1.25]]), (16, 4))}
      >>> method = jn.cluster(3)
      >>> state = method.init(v)
      >>> method.view(v, state)["kernel"][0, :4]  # 0.75 and 1.25 share their mean
      Array([ 1. , -0.5,  0. ,  1. ], dtype=float32)
      >>> loss = lambda learnt: method.view(v, jn.State(learnt, state.carried))["kernel"].sum()
      >>> jax.grad(loss)(state.learnt)["kernel"].ravel()  # one for each member
      Array([ 64., 128.], dtype=float32)
      >>> method.pack(v, state)["kernel"].nbytes, v["kernel"].nbytes  # 2 bits each, and two floats
      (72, 1024)
    """
    count = _count(k, bits)
    for name, flag in {"zero": zero, "exact": exact, "reassign": reassign, "biases": biases}.items():
        check_flag("cluster", name, flag)
    _check(scope, group, start, weights, iterations, ste)
    root = clusters.root_key(key, "cluster", start in ("random", "kmeans++"), f"start={start!r}", idle=exact)
    formed = partial(_formed, count, zero, ste, scope, group)

    def takes(path: str, leaf: Any, info: ModelInfo) -> LeafTraits | str:
        if (reason := clusters.why_not(path, leaf, info, biases)) is not None:
            return reason
        form = formed(leaf.shape, info.roles_of(path, leaf.ndim))
        stored, table = _bytes(form, leaf)
        return clusters.worth(leaf, stored, table, form.origin)

    lift = partial(
        leafwise, takes, view=_view, update=_reassigned if reassign else None, pack=_pack, needs=frozenset({"roles"}),
        taps=clusters.site_taps(weights), follows=_followed, name=f"cluster({count})",
    )  # fmt: skip
    each = lift(init=clusters.uninitialized)
    search = Search(start, iterations, exact)
    own = (_Together if scope == "all" else _Apart)(each, lift, formed, group, weights, root, search)
    traits = clusters.with_probes(each.traits, weights)._replace(follows=own.follows, leaf_local=scope != "all")
    return Transform(own.init, own.update, own.view, each.project, own.pack, traits)


def _count(k: Any, bits: Any) -> int:
    if (k is None) == (bits is None):
        raise ValueError(
            f"cluster(k={in_words(k)}, bits={in_words(bits)}): how many values? pass one of k, 2 to 256, and bits, 1 to 8"
        )
    if bits is not None:
        check_whole("cluster", "bits", bits, 1, 8)
        return 2**bits
    check_whole("cluster", "k", k, 2, 256)
    return k


def _check(scope: Any, group: Any, start: Any, weights: Any, iterations: Any, ste: Any) -> None:
    """Raises ValueError where an argument of ``cluster`` is not allowed."""
    for name, value, names in (
        ("scope", scope, SCOPES), ("start", start, kmeans.STARTS), ("weights", weights, clusters.WEIGHTS),
        ("ste", ste, ("none", "pass")),
    ):  # fmt: skip
        check_choice("cluster", name, value, names)
    check_whole("cluster", "iterations", iterations, 1)
    if (group is not None) != (scope == "group"):
        raise ValueError(
            f"cluster(scope={scope!r}, group={in_words(group)}): pass group, the outputs that share a table, with "
            "scope='group', and with no other"
        )
    if group is not None:
        check_whole("cluster", "group", group, 1)


def _formed(
    k: int, origin: bool, ste: str, scope: str, group: int | None, shape: tuple[int, ...], roles: Roles
) -> Form:
    groups = [n if a in roles.stack and scope != "all" else 1 for a, n in enumerate(shape)]
    if scope == "group" and group is not None and roles.output:
        axis = roles.output[-1]
        groups[axis] = shape[axis] // min(group, shape[axis])
    return Form(k, origin, ste, tuple(groups), roles.stack)


def _bytes(form: Form, leaf: Any) -> tuple[int, int]:
    """Of a packed leaf, and of its tables."""
    tables = [n if a in form.stack else d for a, (d, n) in enumerate(zip(form.groups, leaf.shape))]
    table = form.free * int(np.prod(tables)) * min(leaf.dtype.itemsize, 4)
    return codebook.nbytes_of(leaf.shape, form.k, form.stack) + table, table


@dataclasses.dataclass(frozen=True, eq=False)
class _Apart:
    """Tables of leaves by themselves; ``each`` has all but ``init``, with which ``lift`` makes it."""

    each: Transform
    lift: Any
    formed: Any
    group: int | None
    weights: str | None
    root: jax.Array | None
    search: Search

    def init(self, params: PyTree, info: ModelInfo = ModelInfo()) -> State:
        return clusters.fitted_each(clusters.taken(self.each, params, info, self.weights), self.one)

    def one(self, path: str, leaf: Any, known: Known) -> tuple[Any, Any]:
        """The table and the codes of a leaf."""
        _check_group(path, leaf.shape, known.roles, self.group)
        fit = partial(_fitted, self.search, self.weights)
        return clusters.fitted(path, leaf, known, self.formed, fit, self.root, Clustered)

    def view(self, params: PyTree, state: State) -> PyTree:
        return self.each.view(params, state)

    def update(self, params: PyTree, state: State, *, step: Any = 0, grads: PyTree | None = None) -> State:
        return self.each.update(params, state, step=step, grads=grads)

    def pack(self, params: PyTree, state: State) -> PyTree:
        return self.each.pack(params, state)

    def follows(self, state: State, cuts: Cuts) -> State:
        return clusters.followed(self.lift, self.one, self.weights, state, cuts)


class _Together(_Apart):
    """One table for all leaves."""

    def init(self, params: PyTree, info: ModelInfo = ModelInfo()) -> State:
        taken = clusters.taken(self.each, params, info, self.weights)
        if not taken:
            return State({}, {})
        forms = {path: self.formed(leaf.shape, known.roles) for path, (leaf, known) in taken.items()}

        def made(leaves: dict[str, Any], stats: dict[str, Any], key: Any) -> tuple[Any, dict[str, Any]]:
            known = {path: dataclasses.replace(own, stats=stats[path]) for path, (_, own) in taken.items()}
            flat = jnp.concatenate([x.astype(jnp.float32).reshape(-1) for x in leaves.values()])
            mass = None
            if self.weights is not None:
                mass = jnp.concatenate([clusters.masses(x, known[p], self.weights).reshape(-1) for p, x in leaves.items()])
            form = next(iter(forms.values()))
            table = _values(self.search, form, flat[None], None if mass is None else mass[None], key)[0]
            return table, {p: kmeans.nearest(x, table, form.origin) for p, x in leaves.items()}

        args = ({p: x for p, (x, _) in taken.items()}, {p: own.stats for p, (_, own) in taken.items()}, self.root)
        abstract = any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(args))
        table, codes = jax.eval_shape(made, *args) if abstract else jax.jit(made)(*args)
        return State({SHARED: table}, {path: Clustered(codes[path], form) for path, form in forms.items()})

    def spread(self, state: State) -> State:
        """The state with a table for each leaf, as ``each`` takes it."""
        shaped = lambda own: jnp.reshape(state.learnt[SHARED], (*own.form.groups, -1))
        return State({path: shaped(own) for path, own in state.carried.items()}, state.carried)

    def view(self, params: PyTree, state: State) -> PyTree:
        return self.each.view(params, self.spread(state))

    def update(self, params: PyTree, state: State, *, step: Any = 0, grads: PyTree | None = None) -> State:
        return State(state.learnt, self.each.update(params, self.spread(state), step=step, grads=grads).carried)

    def pack(self, params: PyTree, state: State) -> PyTree:
        return self.each.pack(params, self.spread(state))

    def follows(self, state: State, cuts: Cuts) -> State:
        if cuts.moments is not None:
            return state
        return State(state.learnt, self.each.traits.follows(self.spread(state), cuts).carried)  # type: ignore[misc]


def _check_group(path: str, shape: tuple[int, ...], roles: Roles, group: int | None) -> None:
    if group is None or not roles.output:
        return
    axis = roles.output[-1]
    if shape[axis] % min(group, shape[axis]):
        raise ValueError(
            f"{path}: axis {axis} has {shape[axis]} entries, not a multiple of group={group}; pass another group, or "
            "scope='leaf', or give this path another case in by_path"
        )


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _fitted(
    search: Search, weights: str | None, form: Form, matrix: Any, leaf: Any, stats: Any, key: Any
) -> tuple[Any, Any]:
    """The tables of a leaf, float32 ``[groups..., values]``, and its codes."""
    mass = clusters.masses(leaf, Known(Roles(), matrix, stats), weights)
    rows = clusters.rows_of(leaf.astype(jnp.float32), form.groups)
    tables = _values(search, form, rows, None if mass is None else clusters.rows_of(mass, form.groups), key)
    return tables.reshape(*form.groups, form.free), _nearest(form, leaf, tables)


def _nearest(form: Form, leaf: Any, tables: Any) -> Any:
    """The code of each weight's nearest value; ``tables`` float32 ``[G, values]``."""
    if len(tables) == 1:
        return kmeans.nearest(leaf, tables[0], form.origin)
    codes = jax.vmap(partial(kmeans.nearest, origin=form.origin))(clusters.rows_of(leaf, form.groups), tables)
    return clusters.of_rows(codes, form.groups, leaf.shape)


def _values(search: Search, form: Form, rows: Any, mass: Any, key: Any) -> Any:
    """The values of each row of ``[G, n]``: float32 ``[G, values]``."""
    options = {"k": form.k, "origin": form.origin}
    if search.exact:
        made = jax.ShapeDtypeStruct((len(rows), form.free), jnp.float32)
        args = (rows,) if mass is None else (rows, mass)
        return jax.pure_callback(partial(_exact, **options), made, *args, vmap_method="sequential")
    fit = partial(kmeans.fit, **options, start=search.start, iterations=search.iterations)
    keys = None if key is None else jax.random.split(key, len(rows))
    run = lambda row, own, key: fit(row, own, key=key)
    return jax.vmap(run, in_axes=(0, None if mass is None else 0, None if keys is None else 0))(rows, mass, keys)


def _exact(rows: Any, mass: Any = None, **options: Any) -> Any:
    each = [None] * len(rows) if mass is None else mass
    return np.stack([exact_kmeans.exact(row, own, **options) for row, own in zip(rows, each)])


# -- the view, and what becomes of it ------------------------------------------------------------------------------------


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def _shared(leaf: Any, table: Any, codes: Any, form: Form) -> Any:
    """The shared values in the leaf's dtype; zero where the leaf is, under ``origin``."""
    wide = Codebook.plain(codes, table, origin=form.origin).densify()
    return (jnp.where(leaf == 0, 0.0, wide) if form.origin else wide).astype(leaf.dtype)


def _shared_jvp(form: Form, primals: Any, tangents: Any) -> Any:
    leaf, table, codes = primals
    dleaf, dtable, _ = tangents
    slope = jnp.zeros(leaf.shape, jnp.float32)
    if not isinstance(dtable, SymbolicZero):
        full = jnp.concatenate([jnp.zeros_like(dtable[..., :1]), dtable], -1) if form.origin else dtable
        slope = slope + _members(form, leaf, codes, full)
    if form.ste == "pass" and not isinstance(dleaf, SymbolicZero):
        slope = slope + dleaf.astype(jnp.float32)
    return _shared(leaf, table, codes, form), slope.astype(leaf.dtype)


def _members(form: Form, leaf: Any, codes: Any, table: Any) -> Any:
    """What each weight gets of the table's tangent; turned round, what a value gets of its members: their sum."""
    k = table.shape[-1]
    first = k * np.arange(np.prod(form.groups), dtype=np.int32)[:, None]
    places = clusters.rows_of(codes, form.groups).astype(jnp.int32) + first
    wide = clusters.of_rows(jnp.take(table.reshape(-1), places, mode="clip"), form.groups, leaf.shape)
    return jnp.where(leaf == 0, 0.0, wide) if form.origin else wide


_shared.defjvp(_shared_jvp, symbolic_zeros=True)


@jax.jit
def _view(leaf: Any, learnt: Any, carried: Clustered) -> Any:
    return _shared(leaf, learnt, carried.codes, carried.form)


@jax.jit
def _reassigned(leaf: Any, learnt: Any, carried: Clustered, step: Any, grad: Any) -> Clustered:
    form = carried.form
    return Clustered(_nearest(form, leaf, learnt.reshape(-1, form.free)), form)


@jax.jit
def _codes(leaf: Any, carried: Clustered) -> Any:
    return jnp.where(leaf == 0, jnp.uint8(0), carried.codes) if carried.form.origin else carried.codes


def _pack(path: str, leaf: Any, learnt: Any, carried: Clustered) -> Codebook:
    form = carried.form
    clusters.check_finite(path, learnt, "shared values")
    return Codebook.from_codes(
        _codes(leaf, carried), learnt, origin=form.origin, dtype=leaf.dtype, stack=form.stack, name=path
    )


def _followed(learnt: Any, carried: Clustered, cut: Cut) -> tuple[Any, Any] | str:
    """Codes are cut with the weights, and tables with whole groups of outputs or layers."""
    form = carried.form
    places = cut.beside(np.arange(np.prod(form.groups, dtype=int)).reshape(form.groups))
    if isinstance(places, str):
        return places
    table = jnp.reshape(learnt, (-1, learnt.shape[-1]))[places]
    return table, Clustered(cut.leaf(carried.codes), form._replace(groups=places.shape))
