"""Shared vectors: runs of a layer's inputs share an entry of a table, or sums of entries of several.

Product quantization (Gong et al. 2014), residual (Chen et al. 2010) and additive quantization (Babenko & Lempitsky 2014):
codes of 8 bits for runs of 8 weights are one bit a weight. Tables are trained as shared values are (``cluster``).
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from jaxopt_nn.core.arguments import as_key, check_choice, check_whole
from jaxopt_nn.core.cuts import Cut
from jaxopt_nn.core.leafwise import leafwise
from jaxopt_nn.core.model import Known, ModelInfo, Roles
from jaxopt_nn.core.transform import LeafTraits, PyTree, State, Transform
from jaxopt_nn.methods import clusters
from jaxopt_nn.numerics import vector_kmeans
from jaxopt_nn.tensors import codebook
from jaxopt_nn.tensors.vector_codebook import VectorCodebook, summed


class Form(NamedTuple):
    """How one leaf is clustered; static.

    Attributes:
      k, dim, stages, ste: as in ``cluster_vectors``.
      along: the axis of the runs. groups: along each axis 1, or the leaf's length: the tables. stack: the leaf's stack axes.
    """

    k: int
    dim: int
    stages: int
    ste: str
    along: int
    groups: tuple[int, ...]
    stack: tuple[int, ...]

    @property
    def table(self) -> tuple[int, ...]:
        return (*self.groups, self.stages, self.k, self.dim)


@partial(jax.tree_util.register_dataclass, data_fields=["codes"], meta_fields=["form"])
@dataclasses.dataclass(frozen=True)
class Clustered:
    """State of one leaf: the vectors that each run is the sum of, uint8 with the stages last; its format, static."""

    codes: Any
    form: Form


def cluster_vectors(
    k: int = 256,
    *,
    dim: int = 4,
    stages: int = 1,
    sweeps: int = 0,
    weights: str | None = None,
    iterations: int = 25,
    ste: str = "none",
    key: jax.Array | int = 0,
) -> Transform:
    """Gives runs of ``dim`` inputs ``k`` shared vectors, or sums of ``stages`` of them, by k-means, and trains these.

    A weight takes ``stages * log2(k) / dim`` bits, and each leaf (and layer of a stack) its tables. Runs lie along the last
    input axis of the leaf, of one output each. The vectors are ``learnt``, float32; which of them a run has is ``carried`` and
    stays. Zeros don't: no chain prunes before it.

    Args:
      k: vectors of a table, 2 to 256.
      dim: inputs of a run, 1 or more; a leaf whose last input axis it does not divide is left alone, and named by ``explain``.
      stages: tables, of which each clusters what those before leave (residual).
      sweeps: how often after that each stage in turn is fitted to what all others leave (additive).
      weights: what an error counts, as in ``cluster``: None, ``"inputs"`` or ``"fisher"``.
      iterations: of k-means, at most, a stage.
      ste: the derivative for the weights behind: ``"none"`` (0) or ``"pass"`` (1, straight through).
      key: a PRNG key or a seed, of the k-means++ starts.

    Returns:
      A ``Transform`` that packs into ``VectorCodebook``; it takes leaves whose codes and tables weigh less than they do.

    Raises:
      ValueError: a value outside the above; at ``init``, NaN or Inf, missing statistics.

    Example:
      >>> v = {"kernel": jnp.asarray(np.random.default_rng(0).standard_normal((64, 64)), jnp.float32)}
      >>> error = lambda method: float(jnp.abs(method.view(v, method.init(v))["kernel"] - v["kernel"]).mean())
      >>> pairs, alone = jn.cluster_vectors(16, dim=2), jn.cluster(4)  # 2 bits a weight, both
      >>> error(pairs) < error(alone)
      True
      >>> pairs.pack(v, pairs.init(v))["kernel"].nbytes  # 2,048 codes of 4 bits, and 16 vectors
      1152
    """
    for name, value, least, most in (
        ("k", k, 2, 256), ("dim", dim, 1, None), ("stages", stages, 1, None), ("sweeps", sweeps, 0, None),
        ("iterations", iterations, 1, None),
    ):  # fmt: skip
        check_whole("cluster_vectors", name, value, least, most)
    check_choice("cluster_vectors", "ste", ste, ("none", "pass"))
    check_choice("cluster_vectors", "weights", weights, clusters.WEIGHTS)
    root = as_key(key, "cluster_vectors")
    formed, fit = partial(_formed, k, dim, stages, ste), partial(_fitted, (sweeps, iterations), weights)

    def takes(path: str, leaf: Any, info: ModelInfo) -> LeafTraits | str:
        if (reason := clusters.why_not(path, leaf, info, False)) is not None:
            return reason
        roles = info.roles_of(path, leaf.ndim)
        if leaf.shape[axis := roles.input[-1]] % dim:
            return f"its input axis {axis} has {leaf.shape[axis]} entries, not a multiple of dim={dim}"
        return clusters.worth(leaf, *_bytes(formed(leaf.shape, roles), leaf), False)

    lift = partial(
        leafwise, takes, view=_view, pack=_pack, needs=frozenset({"roles"}), taps=clusters.site_taps(weights),
        follows=_followed, name="cluster_vectors",
    )  # fmt: skip
    each = lift(init=clusters.uninitialized)

    def one(path: str, leaf: Any, known: Known) -> tuple[Any, Any]:
        _check_runs(path, leaf.shape, known.roles, dim)
        return clusters.fitted(path, leaf, known, formed, fit, root, Clustered)

    def init(params: PyTree, info: ModelInfo = ModelInfo()) -> State:
        return clusters.fitted_each(clusters.taken(each, params, info, weights), one)

    traits = clusters.with_probes(each.traits, weights)
    return each._replace(init=init, traits=traits._replace(follows=partial(clusters.followed, lift, one, weights)))


def _check_runs(path: str, shape: tuple[int, ...], roles: Roles, dim: int) -> None:
    axis = roles.input[-1]
    if shape[axis] % dim:
        raise ValueError(
            f"{path}: its input axis {axis} has {shape[axis]} entries on the network that was cut, not a multiple of "
            f"dim={dim}; cut another share, or put the cut before cluster_vectors, which leaves such a leaf alone"
        )


def _formed(k: int, dim: int, stages: int, ste: str, shape: tuple[int, ...], roles: Roles) -> Form:
    groups = tuple(n if a in roles.stack else 1 for a, n in enumerate(shape))
    return Form(k, dim, stages, ste, roles.input[-1], groups, roles.stack)


def _bytes(form: Form, leaf: Any) -> tuple[int, int]:
    """Of a packed leaf, and of its tables."""
    table = math.prod(form.table) * (4 if form.stages > 1 else min(leaf.dtype.itemsize, 4))
    return form.stages * codebook.nbytes_of(_runs_of(form, leaf.shape), form.k, form.stack) + table, table


def _runs_of(form: Form, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the codes of one stage."""
    return tuple(n // form.dim if a == form.along else n for a, n in enumerate(shape))


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _fitted(
    search: tuple[int, int], weights: str | None, form: Form, matrix: Any, leaf: Any, stats: Any, key: Any
) -> tuple[Any, Any]:
    """The tables of a leaf, float32, and its codes ``[..., stages]``; ``search``: sweeps and iterations."""
    sweeps, iterations = search
    mass = clusters.masses(leaf, Known(Roles(), matrix, stats), weights)
    runs = _runs_of(form, leaf.shape)

    def rows(x: Any) -> Any:
        """``[G, runs, dim]``."""
        split = x.reshape(*leaf.shape[: form.along], -1, form.dim, *leaf.shape[form.along + 1 :])
        return jax.vmap(partial(clusters.rows_of, groups=form.groups), -1, -1)(jnp.moveaxis(split, form.along + 1, -1))

    own, each = rows(leaf.astype(jnp.float32)), None if mass is None else rows(mass)
    keys = jax.random.split(key, len(own))
    options = {"k": form.k, "stages": form.stages, "sweeps": sweeps, "iterations": iterations}
    fit = jax.vmap(partial(vector_kmeans.fit, **options), (0, None if each is None else 0, 0))
    tables, codes = fit(own, each, keys)
    laid = jax.vmap(partial(clusters.of_rows, groups=form.groups, shape=runs), -1, -1)(codes)
    return tables.reshape(form.table), laid


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def _shared(leaf: Any, table: Any, codes: Any, form: Form) -> Any:
    return summed(codes, table, form.along - leaf.ndim).astype(leaf.dtype)


def _shared_jvp(form: Form, primals: Any, tangents: Any) -> Any:
    leaf, table, codes = primals
    dleaf, dtable, _ = tangents
    slope = jnp.zeros(leaf.shape, jnp.float32)
    if not isinstance(dtable, SymbolicZero):
        slope = slope + summed(codes, dtable, form.along - leaf.ndim)
    if form.ste == "pass" and not isinstance(dleaf, SymbolicZero):
        slope = slope + dleaf.astype(jnp.float32)
    return _shared(leaf, table, codes, form), slope.astype(leaf.dtype)


_shared.defjvp(_shared_jvp, symbolic_zeros=True)


@jax.jit
def _view(leaf: Any, learnt: Any, carried: Clustered) -> Any:
    return _shared(leaf, learnt, carried.codes, carried.form)


def _pack(path: str, leaf: Any, learnt: Any, carried: Clustered) -> VectorCodebook:
    form = carried.form
    clusters.check_finite(path, learnt, "shared vectors")
    return VectorCodebook.from_codes(
        carried.codes, learnt, along=form.along, dtype=leaf.dtype, stack=form.stack, name=path
    )


def _followed(learnt: Any, carried: Clustered, cut: Cut) -> tuple[Any, Any] | str:
    """Codes are cut with the weights, along the runs whole ones, and tables with layers."""
    form, codes, groups = carried.form, carried.codes, list(carried.form.groups)
    for axis, keep in cut.axes.items():
        if axis == form.along:
            runs = keep[:: form.dim] // form.dim
            if not np.array_equal(keep, (runs[:, None] * form.dim + np.arange(form.dim)).ravel()):
                return f"runs of {form.dim} along axis {axis} are cut apart"
            keep = runs
        elif groups[axis] > 1:
            learnt, groups[axis] = jnp.take(learnt, keep, axis=axis), len(keep)
        codes = jnp.take(codes, keep, axis=axis)
    return learnt, Clustered(codes, form._replace(groups=tuple(groups)))

