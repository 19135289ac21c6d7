"""One-shot pruning that refits what stays: SparseGPT, and Optimal Brain Surgeon for small layers."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_nn.core.arguments import in_words, require
from jaxopt_nn.core.cuts import Cut
from jaxopt_nn.core.leafwise import leafwise
from jaxopt_nn.core.matrix import Matrix
from jaxopt_nn.core.model import Known, ModelInfo, Roles, Site
from jaxopt_nn.core.tap import Tap
from jaxopt_nn.core.transform import LeafTraits, Transform, why_not_matrix
from jaxopt_nn.methods.structures.base import Structure, single_weights
from jaxopt_nn.methods.structures.n_of_m import along
from jaxopt_nn.methods.taps import gram
from jaxopt_nn.numerics import obs as numerics


@dataclasses.dataclass(frozen=True)
class _Solver:
    """``(matrix float32 [I, O], Gram matrix [I, I] or its diagonal [I]) -> (new matrix, bool mask, smallest pivot)``.

    Equal ones share compiled programs. Arguments as of ``sparsegpt``; without a ``block`` it is ``obs``.
    """

    sparsity: float
    pattern: tuple[int, int] | None
    block: int | None
    damping: float

    def __call__(self, matrix: jax.Array, gram: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        if gram.ndim == 1:
            return numerics.independent(matrix, gram, sparsity=self.sparsity, pattern=self.pattern, damping=self.damping)
        if self.block is None:
            return numerics.surgeon(matrix, gram, sparsity=self.sparsity, damping=self.damping)
        return numerics.sparsegpt(
            matrix, gram, sparsity=self.sparsity, pattern=self.pattern, block=self.block, damping=self.damping
        )

    def least(self, inputs: int) -> float:
        """The pivot up to which a Gram matrix is singular."""
        return 0.0 if self.damping > 0 else 4 * inputs * float(jnp.finfo(jnp.float32).eps)


@partial(jax.tree_util.register_dataclass, data_fields=["mask", "change"], meta_fields=["roles"])
@dataclasses.dataclass(frozen=True)
class Refitted:
    """State of one leaf.

    Attributes:
      mask: bool of its shape, True is kept.
      change: float32 of its shape: what is added to the kept weights.
      roles: of its axes.
    """

    mask: Any
    change: Any
    roles: Roles


def sparsegpt(
    sparsity: float | None = None,
    *,
    structure: Structure = single_weights,
    block: int = 128,
    damping: float = 0.01,
) -> Transform:
    """SparseGPT (Frantar & Alistarh 2023, Algorithm 1): prunes input by input, and later inputs make up for what goes.

    ``H`` is the Gram matrix of the layer's inputs, damped. The mask of a block of inputs is chosen when its turn comes, over
    all outputs, by ``w^2 / [H^-1]`` at the weights of that moment; of ``n_of_m(n, m)``, of each m inputs in turn. Each layer,
    and each entry of a stack, loses ``round(sparsity * size)`` weights exactly.

    The state holds the mask, and what was added to each kept weight at ``init``. Training moves the sum: the correction stays
    what it was and is not found anew.

    Departures from the authors' code: the count is exact; an input that is zero on all calibration data loses its weights
    first, the smallest first, and those that the count spares keep their values. Of a lookup the Gram matrix is diagonal:
    rare rows go, nothing is refitted.

    Args:
      sparsity: share of zeros in [0, 1].
      structure: ``single_weights`` or ``n_of_m(n, m)``, which gives the sparsity: of every m inputs in a row each output keeps
        n, of a convolution's channels at each place of the window. A leaf whose axis m does not divide is left alone, and
        named by ``explain``.
      block: inputs between two corrections of all later ones.
      damping: 0 or more, over the mean of the Gram matrix' diagonal.

    Returns:
      A ``Transform`` that needs ``calibrate`` and packs into ``Masked`` or ``NofM``; gradients reach kept weights only.
      ``calibrate`` with ``weights=`` weighs tokens, with ``sequential=True`` each layer sees inputs from pruned layers.

    Raises:
      ValueError: no sparsity, or one outside the above, or another than the structure's; another structure; at ``init``, no
        statistics, NaN or Inf, a Gram matrix that is singular at ``damping=0``.
      TypeError: a sparsity or damping that is no number.

    Example:
      >>> x = jnp.array([[1.0, 1.0], [2.0, 2.1], [-1.0, -0.9]])  # two inputs that are nearly equal
      >>> net = jn.Network(lambda v, x: x @ v["kernel"], {"kernel": jnp.array([[1.0], [2.0]])})
      >>> method = jn.sparsegpt(0.5, damping=0.0)
      >>> info = jn.calibrate(net, method, [x])
      >>> method.view(net.variables, method.init(net.variables, info))["kernel"].round(2)  # one takes over from the other
      Array([[0.  ],
             [2.98]], dtype=float32)
    """
    require(structure, Structure, "sparsegpt: structure", "single_weights or n_of_m(2, 4)")
    if structure is not single_weights and structure.pattern is None:
        raise ValueError(
            f"sparsegpt(structure={structure.name}): weights go input by input, each made up for by later inputs; pass "
            "structure=single_weights or n_of_m(2, 4), along the inputs"
        )
    share = _checked("sparsegpt", structure.share if sparsity is None else sparsity, damping)
    if structure.share is not None and abs(share - structure.share) > 1e-6:
        raise ValueError(
            f"sparsegpt(structure={structure.name}): makes {structure.share:g} of zeros, and not {share:g}; leave sparsity out"
        )
    if not isinstance(block, int) or block < 1:
        raise ValueError(f"sparsegpt(block={block!r}): allowed are numbers of inputs from 1, e.g. 128")
    return _refitting("sparsegpt", structure, _Solver(share, structure.pattern, block, float(damping)))


def obs(sparsity: float, *, damping: float = 0.01) -> Transform:
    """Optimal Brain Surgeon: one weight after the other, the cheapest first, all others refitted after each.

    Hassibi & Stork (1993), eq. 5, with the Hessian of the layer's own squared error, the Gram matrix of its inputs, as
    Frantar & Alistarh (2022). In each leaf, and each entry of a stack, all outputs share one budget. ``outputs * inputs^3``
    operations: for layers of some hundred inputs; ``sparsegpt`` comes near it at any size.

    Args:
      sparsity: share of zeros in [0, 1].
      damping: as in ``sparsegpt``.

    Returns:
      As ``sparsegpt``.

    Raises:
      ValueError: as ``sparsegpt``.

    Example:
      >>> x = jnp.array([[1.0, 1.0], [2.0, 2.1], [-1.0, -0.9]])
      >>> net = jn.Network(lambda v, x: x @ v["kernel"], {"kernel": jnp.array([[2.0], [1.0]])})
      >>> method = jn.obs(0.5, damping=0.0)
      >>> method.view(net.variables, method.init(net.variables, jn.calibrate(net, method, [x])))["kernel"].round(2)
      Array([[3.02],
             [0.  ]], dtype=float32)
    """
    share = _checked("obs", sparsity, damping)
    return _refitting("obs", single_weights, _Solver(share, None, None, float(damping)))


def _checked(name: str, sparsity: Any, damping: Any) -> float:
    """The share of zeros; errors as in ``sparsegpt``."""
    if sparsity is None:
        raise ValueError(f"{name}(sparsity=None): pass the share of zeros, e.g. sparsity=0.5")
    for what, value, example in (("sparsity", sparsity, 0.5), ("damping", damping, 0.01)):
        if isinstance(value, bool) or not isinstance(value, int | float | np.number):
            raise TypeError(
                f"{name}: {what} is {in_words(value)}; pass one number, e.g. {example}: it prunes once, in init, and takes no "
                "schedule"
            )
    if not 0 <= sparsity <= 1:
        share = f"; for {sparsity:g} % pass sparsity={sparsity / 100:g}" if 1 < sparsity <= 100 else ""
        raise ValueError(f"{name}(sparsity={sparsity}): allowed are shares of zeros, 0 to 1{share}")
    if not 0 <= damping < math.inf:
        raise ValueError(f"{name}(damping={damping}): allowed are shares of the diagonal's mean, 0 or more, e.g. 0.01")
    return float(sparsity)


def _refitting(name: str, structure: Structure, solve: _Solver) -> Transform:
    """The transform whose masks and corrections ``solve`` finds, matrix by matrix."""

    def taps(site: Site) -> Mapping[str, Tap]:
        return {} if site.weight is None else {"gram": gram()}

    def takes(path: str, leaf: Any, info: ModelInfo) -> LeafTraits | str:
        reason = why_not_matrix(path, leaf, info) or structure.takes(tuple(leaf.shape), info.roles_of(path, leaf.ndim))
        if reason is not None:
            return reason
        matrix = info.matrix(path)
        notes = []
        if matrix is not None and not matrix.whole:
            notes.append("its site reads a part of it; the rest stays as it is")
        if any(not use.exact for site in info.sites for use in site.uses if use.path == path and use.matrix == matrix):
            notes.append("the weight of its site is computed from it; it is refitted as if it were that weight")
        return LeafTraits("mask", keeps_zeros=False, notes=tuple(notes))

    def init(path: str, leaf: Any, known: Known) -> tuple[Any, Any]:
        if known.matrix is None or "gram" not in known.stats:
            raise ValueError(f"{path}: {name} reads the inputs of the layer; pass info=calibrate(network, method, batches)")
        order = None if solve.pattern is None else _along_pattern(known.matrix, known.roles)
        fit = partial(_fitted, solve, known.matrix, order)
        values = (leaf, known.stats["gram"])
        if any(isinstance(x, jax.ShapeDtypeStruct) for x in values):
            change, mask, _ = jax.eval_shape(fit, *values)
        else:
            change, mask, pivot = fit(*values)
            _check_solved(path, name, leaf, change, pivot, solve.least(known.matrix.inputs))
        return (), Refitted(mask, change, known.roles)

    return leafwise(
        takes, init, _view, pack=partial(_pack, structure), needs=frozenset({"roles"}), taps=taps, follows=_follows, name=name
    )  # fmt: skip


@functools.lru_cache(maxsize=256)
def _along_pattern(matrix: Matrix, roles: Roles) -> tuple[int, ...] | None:
    """The inputs of a matrix in the order in which those next to each other along the pattern's axis stand next to each other.

    None where they do so as it is, and where its inputs are not laid out along the axes of the leaf: then no pattern along an
    axis is packed.
    """
    axis = along(None, roles)
    others = [a for a in roles.input if a != axis]
    if not others:
        return None
    place = np.zeros(matrix.leaf, np.int32)
    for a in (*others, axis):
        place = place * matrix.leaf[a] + np.arange(matrix.leaf[a]).reshape([-1 if b == a else 1 for b in range(place.ndim)])
    with jax.ensure_compile_time_eval():
        found = np.asarray(matrix(jnp.asarray(place))).reshape(-1, *matrix.shape[-2:])
    places = found[0, :, 0]
    if (found != places[None, :, None]).any() or (np.diff(places) > 0).all():
        return None
    return tuple(np.argsort(places).tolist())


@partial(jax.jit, static_argnums=(0, 1, 2))
def _fitted(
    solve: _Solver, matrix: Matrix, order: tuple[int, ...] | None, leaf: jax.Array, own: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The change of a leaf, its mask and the smallest pivot; one matrix of its stack after the other.

    Its inputs are taken in ``order``.
    """
    wide = leaf.astype(jnp.float32)
    old = matrix(wide)
    rows = old.reshape(-1, *old.shape[-2:])
    grams = jnp.real(own).reshape(len(rows), *own.shape[len(matrix.stack) :])
    if order is None:
        new, mask, pivot = jax.lax.map(lambda pair: solve(*pair), (rows, grams))
    else:
        turn, back = np.asarray(order), np.argsort(order)
        turned = rows[:, turn], grams[:, turn] if grams.ndim == 2 else grams[:, turn][:, :, turn]
        new, mask, pivot = jax.lax.map(lambda pair: solve(*pair), turned)
        new, mask = new[:, back], mask[:, back]
    change = jnp.where(mask, new - rows, 0.0).reshape(old.shape)
    return (
        matrix.put(jnp.zeros_like(wide), change), matrix.put(jnp.ones(leaf.shape, bool), mask.reshape(old.shape)),
        jnp.min(pivot),
    )  # fmt: skip


def _check_solved(path: str, name: str, leaf: Any, change: Any, pivot: Any, least: float) -> None:
    """Raises ValueError where there is no solution, or a pivot of ``least`` or below; under ``jit`` nothing can be told."""
    if isinstance(change, jax.core.Tracer):
        return
    if not bool(jnp.all(jnp.isfinite(leaf))):
        raise ValueError(f"{path}: NaN or Inf among the weights; find the step that diverged, or clean the leaf first")
    if not float(pivot) > least or not bool(jnp.all(jnp.isfinite(change))):
        raise ValueError(
            f"{path}: {name}: the Gram matrix of its inputs is singular, or nearly so; pass damping=0.01, or calibrate on more "
            "rows than it has inputs"
        )


def _view(leaf: Any, learnt: Any, carried: Refitted) -> Any:
    wide = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
    return jnp.where(carried.mask, wide + carried.change, 0.0).astype(leaf.dtype)


def _pack(structure: Structure, path: str, leaf: Any, learnt: Any, carried: Refitted) -> Any:
    seen = _view(leaf, learnt, carried)
    fits = structure.takes(tuple(seen.shape), carried.roles) is None  # a cut may leave no whole groups
    return (structure if fits else single_weights).pack(carried.mask, seen, carried.roles)


def _follows(learnt: Any, carried: Refitted, cut: Cut) -> tuple[Any, Any]:
    return learnt, Refitted(cut.leaf(carried.mask), cut.leaf(carried.change), carried.roles)
