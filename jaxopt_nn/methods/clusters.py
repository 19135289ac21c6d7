"""What methods that share values have in common: which leaves, which masses, rows of a leaf, what is looked up."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_nn.core.arguments import as_key
from jaxopt_nn.core.cuts import Cuts
from jaxopt_nn.core.leafwise import known_of
from jaxopt_nn.core.model import Known, ModelInfo, Site, StatKey
from jaxopt_nn.core.paths import leaves_by_path
from jaxopt_nn.core.tap import Statistic, Tap
from jaxopt_nn.core.transform import LeafTraits, PyTree, State, Traits, Transform, no_taps, why_not_matrix
from jaxopt_nn.methods.criteria.fisher import fisher
from jaxopt_nn.methods.taps import square_sum
from jaxopt_nn.tensors.base import is_compressed

WEIGHTS = (None, "inputs", "fisher")
#: Least mass of a weight, as a share of the mean: one whose input was never active still has a place.
LEAST = 1e-6


def site_taps(weights: str | None) -> Any:
    """What must be seen of a site, for ``leafwise``."""
    return _squares if weights == "inputs" else no_taps


def _squares(site: Site) -> Mapping[str, Tap]:
    return {} if site.weight is None else {"square_sum": square_sum()}


def with_probes(traits: Traits, weights: str | None) -> Traits:
    """The traits of a method that weighs by the Fisher information: that is measured of the loss, leaf by leaf."""
    if weights != "fisher":
        return traits
    probe = fisher.probes["fisher"]  # type: ignore[attr-defined]

    def taps(info: ModelInfo) -> dict[StatKey, Statistic]:
        leaves = {leaf.path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in info.leaves}
        taken = [path for path, leaf in leaves.items() if not isinstance(traits.takes(path, leaf, info), str)]
        return {((), path, "fisher"): probe for path in taken if ((), path, "fisher") not in info.stats}

    return traits._replace(taps=taps, passes=1)


def known_with(path: str, ndim: int, info: ModelInfo, weights: str | None) -> Known:
    """What is known of a leaf, with the statistic that its masses come from.

    Raises:
      ValueError: it is missing.
    """
    known = known_of(path, ndim, info, site_taps(weights))
    if weights == "fisher":
        if ((), path, "fisher") not in info.stats:
            raise ValueError(
                f"{path}: the statistic 'fisher' of the loss is missing; pass info=calibrate(network, method, task)"
            )
        known = Known(known.roles, known.matrix, {"fisher": info.stats[((), path, "fisher")]})
    if weights == "inputs" and (known.matrix is None or "square_sum" not in known.stats):
        raise ValueError(
            f"{path}: weights='inputs' reads the inputs of the layer; pass info=calibrate(network, method, batches)"
        )
    return known


def taken(each: Transform, params: PyTree, info: ModelInfo, weights: str | None) -> dict[str, tuple[Any, Known]]:
    """The leaves that a method shares values in, with what is known of them.

    Raises:
      ValueError: NaN or Inf, a statistic that is missing.
    """
    found = {p: x for p, x in leaves_by_path(params).items() if not isinstance(each.traits.takes(p, x, info), str)}
    for path, leaf in found.items():
        check_finite(path, leaf, "weights")
    return {p: (x, known_with(p, x.ndim, info, weights)) for p, x in found.items()}


def fitted(
    path: str, leaf: Any, known: Known, formed: Callable[..., Any], fit: Callable[..., Any], root: Any, made: Any
) -> tuple[Any, Any]:
    """The state of a leaf by itself: what is learnt, what is carried.

    Args:
      formed: ``(shape, roles) -> format`` of a leaf.
      fit: ``(format, matrix, leaf, stats, key) -> (tables, codes)``, jitted.
      root: the PRNG key of all, or None.
      made: ``(codes, format)`` as it is carried.
    """
    form = formed(leaf.shape, known.roles)
    own, args = partial(fit, form, known.matrix), (leaf, known.stats, key_of(path, root))
    abstract = any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(args))
    tables, codes = jax.eval_shape(own, *args) if abstract else own(*args)
    return tables, made(codes, form)


def uninitialized(path: str, leaf: Any, known: Known) -> tuple[Any, Any]:
    """The ``init`` of ``leafwise`` in a method that initializes leaves itself."""
    raise AssertionError(f"{path}: initialized without the statistics of the loss")


def fitted_each(leaves: Mapping[str, tuple[Any, Known]], one: Callable[..., tuple[Any, Any]]) -> State:
    """The state of leaves by themselves; ``one(path, leaf, known) -> (learnt, carried)``."""
    states = {path: one(path, *leaf) for path, leaf in leaves.items()}
    return State({path: own[0] for path, own in states.items()}, {path: own[1] for path, own in states.items()})


def followed(lift: Callable[..., Transform], one: Callable[..., Any], weights: str | None, state: State, cuts: Cuts) -> State:
    """The state for a network that a pass has cut; of a leaf whose tables can't be cut, fitted to what stays.

    Args:
      lift: ``leafwise`` of the method but for ``init``. one: as in ``fitted_each``.

    Raises:
      ValueError: NaN or Inf in such a leaf, a statistic of it that is missing, what ``one`` raises.
    """

    def anew(path: str, leaf: Any, _: Known) -> tuple[Any, Any]:
        check_finite(path, leaf, "weights")
        return one(path, leaf, known_with(path, leaf.ndim, cuts.info, weights))

    follows = lift(init=anew).traits.follows
    assert follows is not None
    return follows(state, cuts)


def masses(leaf: Any, known: Known, weights: str | None) -> Any:
    """What an error of each weight costs, float32 of the leaf's shape, or None: all alike.

    Of weights that no site reads (another slice of the leaf) the least mass of all.
    """
    if weights is None:
        return None
    if weights == "fisher":
        mass = known.stats["fisher"].astype(jnp.float32)
    else:
        assert known.matrix is not None
        squares = known.stats["square_sum"][..., None]
        mass = known.matrix.put(jnp.zeros(leaf.shape, jnp.float32), jnp.broadcast_to(squares, known.matrix.shape))
    mean = jnp.mean(mass)
    return jnp.maximum(mass * (1 / jnp.where(mean > 0, mean, 1.0)), LEAST)


def why_not(path: str, leaf: Any, info: ModelInfo, biases: bool) -> str | None:
    """Why a method that shares values leaves ``leaf`` alone, or None; with ``biases`` it takes every real float leaf."""
    reason = why_not_matrix(path, leaf, info)
    plain = biases and not is_compressed(leaf) and hasattr(leaf, "dtype") and 0 not in leaf.shape
    return None if plain and jnp.issubdtype(leaf.dtype, jnp.floating) else reason


def worth(leaf: Any, stored: int, table: int, keeps_zeros: bool) -> LeafTraits | str:
    """The verdict on a leaf that would take ``stored`` bytes, ``table`` of them for its table."""
    before = math.prod(leaf.shape) * leaf.dtype.itemsize
    if stored >= before:
        return f"its codes and table would take {stored} bytes, no less than the {before} that it has"
    note = f"keeps {stored / before:.0%} of its bytes: its table takes as much as its codes, or more"
    return LeafTraits("codes", keeps_zeros=keeps_zeros, notes=(note,) if 2 * table >= stored else ())


def key_of(path: str, root: jax.Array | None) -> jax.Array | None:
    """The key of a leaf."""
    return None if root is None else jax.random.fold_in(root, np.uint32(zlib.crc32(path.encode())))


def root_key(key: Any, what: str, drawn: bool, how: str, idle: bool = False) -> jax.Array | None:
    """The key of a method that draws its start; None of one that does not.

    Args:
      idle: nothing is started from, so that nothing is drawn, and a key is neither missing nor wrong.

    Raises:
      ValueError: a start that is drawn without a key, or a key for another. TypeError: no key.
    """
    if not idle and drawn == (key is None):
        raise ValueError(f"{what}({how}, key={key}): a start that is drawn needs a key, e.g. key=0, and no other has one")
    return None if key is None else as_key(key, what)


@jax.jit
def _all_finite(leaf: Any) -> jax.Array:
    return jnp.all(jnp.isfinite(leaf))


def check_finite(path: str, leaf: Any, what: str) -> None:
    """Raises ValueError where a leaf holds NaN or Inf; of abstract and traced leaves nothing can be told."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return
    finite = _all_finite(leaf)
    if not isinstance(finite, jax.core.Tracer) and not bool(finite):
        raise ValueError(f"{path}: NaN or Inf among the {what}; find the step that diverged, or clean the leaf first")


def rows_of(x: Any, groups: Sequence[int]) -> Any:
    """``[G, entries of a group]`` of an array whose axes fall into so many runs each."""
    split = [part for n, d in zip(x.shape, groups) for part in (d, n // d)]
    order = [*range(0, 2 * x.ndim, 2), *range(1, 2 * x.ndim, 2)]
    return x.reshape(split).transpose(order).reshape(math.prod(groups), -1)


def of_rows(rows: Any, groups: Sequence[int], shape: Sequence[int]) -> Any:
    """The array of that shape whose ``rows_of`` is ``rows``."""
    inner = [n // d for n, d in zip(shape, groups)]
    order = [part for a in range(len(shape)) for part in (a, len(shape) + a)]
    return rows.reshape(*groups, *inner).transpose(order).reshape(tuple(shape))
