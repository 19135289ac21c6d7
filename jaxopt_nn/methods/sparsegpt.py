"""One-shot pruning that refits what stays: SparseGPT, and Optimal Brain Surgeon for small layers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_nn.core.arguments import in_words
from jaxopt_nn.core.cuts import Cut
from jaxopt_nn.core.leafwise import leafwise
from jaxopt_nn.core.model import Known, ModelInfo, Roles, Site
from jaxopt_nn.core.tap import Tap
from jaxopt_nn.core.transform import LeafTraits, Transform, why_not_matrix
from jaxopt_nn.methods.taps import gram
from jaxopt_nn.numerics import obs as numerics
from jaxopt_nn.tensors.masked import Masked


@dataclasses.dataclass(frozen=True)
class _Solver:
    """``(matrix float32 [I, O], Gram matrix [I, I] or its diagonal [I]) -> (new matrix, bool mask, smallest pivot)``.

    Equal ones share compiled programs. Arguments as of ``sparsegpt``; without a ``block`` it is ``obs``.
    """

    sparsity: float | None
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
    n_of_m: tuple[int, int] | None = None,
    block: int = 128,
    damping: float = 0.01,
) -> Transform:
    """SparseGPT (Frantar & Alistarh 2023, Algorithm 1): prunes input by input, and later inputs make up for what goes.

    ``H`` is the Gram matrix of the layer's inputs, damped. The mask of a block of inputs is chosen when its turn comes, over
    all outputs, by ``w^2 / [H^-1]`` at the weights of that moment; with ``n_of_m``, of each m inputs in turn. Each layer, and
    each entry of a stack, loses ``round(sparsity * size)`` weights exactly.

    The state holds the mask, and what was added to each kept weight at ``init``. Training moves the sum: the correction stays
    what it was and is not found anew.

    Departures from the authors' code: the count is exact; an input that is zero on all calibration data loses its weights
    first, the smallest first, and those that the count spares keep their values. Of a lookup the Gram matrix is diagonal:
    rare rows go, nothing is refitted.

    Args:
      sparsity: share of zeros in [0, 1].
      n_of_m: ``(n, m)`` in the place of a sparsity: of every m inputs in a row each output keeps n; ``(2, 4)`` is NVIDIA's.
        Inputs in the order of the leaf's matrix: of a convolution one input channel's window after the other.
      block: inputs between two corrections of all later ones.
      damping: 0 or more, over the mean of the Gram matrix' diagonal.

    Returns:
      A ``Transform`` that needs ``calibrate`` and packs into ``Masked``; gradients reach kept weights only. ``calibrate`` with
      ``weights=`` weighs tokens, with ``sequential=True`` each layer sees inputs from pruned layers.

    Raises:
      ValueError: both or neither of sparsity and ``n_of_m``, or one outside the above; at ``init``, no statistics, inputs that
        m does not divide, NaN or Inf, a Gram matrix that is singular at ``damping=0``.
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
    _check("sparsegpt", sparsity, n_of_m, damping)
    if not isinstance(block, int) or block < 1:
        raise ValueError(f"sparsegpt(block={block!r}): allowed are numbers of inputs from 1, e.g. 128")
    pattern = None if n_of_m is None else (n_of_m[0], n_of_m[1])
    return _refitting("sparsegpt", _Solver(None if sparsity is None else float(sparsity), pattern, block, float(damping)))


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
    _check("obs", sparsity, None, damping)
    return _refitting("obs", _Solver(float(sparsity), None, None, float(damping)))


def _check(name: str, sparsity: Any, pattern: Any, damping: Any) -> None:
    """Errors as in ``sparsegpt``."""
    if (sparsity is None) == (pattern is None):
        raise ValueError(
            f"{name}(sparsity={sparsity}, n_of_m={pattern}): give one of them: the share of zeros, or (n, m), n kept of m"
        )
    for what, value, example in (("sparsity", sparsity, 0.5), ("damping", damping, 0.01)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float | np.number)):
            raise TypeError(
                f"{name}: {what} is {in_words(value)}; pass one number, e.g. {example}: it prunes once, in init, and takes no "
                "schedule"
            )
    if sparsity is not None and not 0 <= sparsity <= 1:
        share = f"; for {sparsity:g} % pass sparsity={sparsity / 100:g}" if 1 < sparsity <= 100 else ""
        raise ValueError(f"{name}(sparsity={sparsity}): allowed are shares of zeros, 0 to 1{share}")
    if pattern is not None:
        whole = isinstance(pattern, tuple | list) and len(pattern) == 2 and all(isinstance(x, int) for x in pattern)
        if not whole or not 0 <= pattern[0] <= pattern[1] or pattern[1] < 1:
            raise ValueError(
                f"{name}(n_of_m={pattern!r}): allowed are whole numbers (n, m), 0 <= n <= m: n kept of every m, e.g. (2, 4)"
            )
    if damping is None or not 0 <= damping < math.inf:
        raise ValueError(f"{name}(damping={damping}): allowed are shares of the diagonal's mean, 0 or more, e.g. 0.01")


def _refitting(name: str, solve: _Solver) -> Transform:
    """The transform whose masks and corrections ``solve`` finds, matrix by matrix."""

    def taps(site: Site) -> Mapping[str, Tap]:
        return {} if site.weight is None else {"gram": gram()}

    def takes(path: str, leaf: Any, info: ModelInfo) -> LeafTraits | str:
        reason = why_not_matrix(path, leaf, info)
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
        if solve.pattern is not None and known.matrix.inputs % solve.pattern[1]:
            raise ValueError(
                f"{path}: has {known.matrix.inputs} inputs, not a multiple of m={solve.pattern[1]}; give it a sparsity, or "
                "leave it out with where()"
            )
        fit = partial(_fitted, solve, known.matrix)
        values = (leaf, known.stats["gram"])
        if any(isinstance(x, jax.ShapeDtypeStruct) for x in values):
            change, mask, _ = jax.eval_shape(fit, *values)
        else:
            change, mask, pivot = fit(*values)
            _check_solved(path, name, leaf, change, pivot, solve.least(known.matrix.inputs))
        return (), Refitted(mask, change, known.roles)

    return leafwise(
        takes, init, _view, pack=_pack, needs=frozenset({"roles"}), taps=taps, follows=_follows, name=name
    )  # fmt: skip


@partial(jax.jit, static_argnums=(0, 1))
def _fitted(solve: _Solver, matrix: Any, leaf: jax.Array, own: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The change of a leaf, its mask and the smallest pivot; one matrix of its stack after the other."""
    wide = leaf.astype(jnp.float32)
    old = matrix(wide)
    rows = old.reshape(-1, *old.shape[-2:])
    grams = jnp.real(own).reshape(len(rows), *own.shape[len(matrix.stack) :])
    new, mask, pivot = jax.lax.map(lambda pair: solve(*pair), (rows, grams))
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


def _pack(path: str, leaf: Any, learnt: Any, carried: Refitted) -> Any:
    return Masked.pack(carried.mask, _view(leaf, learnt, carried), carried.roles.stack)


def _follows(learnt: Any, carried: Refitted, cut: Cut) -> tuple[Any, Any]:
    return learnt, Refitted(cut.leaf(carried.mask), cut.leaf(carried.change), carried.roles)
