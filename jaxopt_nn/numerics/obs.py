"""Which weights of a layer go, and what the others become, so that its outputs change least: OBS and SparseGPT.

For one layer ``y = x @ w``, ``w [I, O]``, with inputs of Gram matrix ``G = sum_n x_n^T x_n [I, I]``, the change ``d`` of the
weights costs ``sum_o d_o^T H d_o``, with the damped ``H = G + lift``. All matrices here are float32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxopt_nn.numerics import topk

#: ``(rows [n, O], factor [n, n], extra) -> (errors, solved, mask)``, each ``[n, O]``.
Finish = Callable[[Array, Array, Any], tuple[Array, Array, Array]]
_dot = partial(jnp.matmul, precision=lax.Precision.HIGHEST)
#: The diagonal entry of an input that is always zero, over the mean of the diagonal: its weights go first.
DEAD = 1e-6


def damped(gram: Array, damping: float) -> Array:
    """``H = G + damping * mean(diagonal of G)`` on the diagonal (Frantar & Alistarh 2023, Algorithm 1).

    An input that is zero in all rows gets ``1e-6`` of that mean instead, for any damping; a layer that reads nothing but zeros
    has the identity.
    """
    diagonal = jnp.diagonal(gram)
    mean = jnp.mean(diagonal)
    lift = jnp.where(diagonal > 0, damping * mean, DEAD * mean)
    return gram + jnp.diag(jnp.where(mean > 0, lift, 1.0))


def inverse_factor(hessian: Array) -> tuple[Array, Array]:
    """The upper triangular ``U`` with ``H^-1 = U^T U``, and the smallest pivot.

    Row j of ``U`` over its diagonal entry is what OBS does to the later weights where weight j goes, and ``U_jj^2`` is
    ``[(H_jj..)^-1]_00`` of the weights from j on.

    Args:
      hessian: ``[I, I]``, positive definite.

    Returns:
      ``U [I, I]``, and the least of ``L_jj^2 / H_jj``: the share of input j that the others don't explain; NaN or about 0 where
      the matrix is singular.
    """
    turned = hessian[::-1, ::-1]
    lower = lax.linalg.cholesky(turned, symmetrize_input=False)
    pivot = jnp.min(jnp.square(jnp.diagonal(lower)) / jnp.diagonal(turned))
    inverse = lax.linalg.triangular_solve(lower, jnp.eye(len(lower), dtype=lower.dtype), left_side=True, lower=True)
    return inverse[::-1, ::-1], pivot


def _in_turn(weight: Array, factor: Array, extra: Any, size: int, finish: Finish) -> tuple[Array, Array, Array]:
    """Solves ``size`` rows at a time, each block after the corrections for those before it.

    Args:
      weight: ``[n, O]``, ``size`` divides n. factor: ``[n, n]``, upper triangular.
      extra: what ``finish`` gets of each block, leading axis ``n / size``.
    """
    blocks = len(weight) // size

    def one(errors: Array, xs: Any) -> tuple[Array, tuple[Array, Array]]:
        i, rows, own = xs
        columns = lax.dynamic_slice_in_dim(factor, i * size, size, axis=1)
        rows = rows - _dot(columns.T, errors)  # errors of this block and of later ones are still zero
        new, solved, mask = finish(rows, lax.dynamic_slice_in_dim(columns, i * size, size, axis=0), own)
        return lax.dynamic_update_slice_in_dim(errors, new, i * size, axis=0), (solved, mask)

    split = weight.reshape(blocks, size, -1)
    errors, (solved, mask) = lax.scan(one, jnp.zeros_like(weight), (jnp.arange(blocks), split, extra))
    return errors, solved.reshape(weight.shape), mask.reshape(weight.shape)


def _single(row: Array, factor: Array, keep: Array) -> tuple[Array, Array, Array]:
    solved = jnp.where(keep, row, 0.0)
    return (row - solved) / factor[0, 0], solved, keep


def _eliminated(
    weight: Array, factor: Array, extra: Any, block: int, group: int, choose: Callable[[Array, Any], Array]
) -> tuple[Array, Array, Array]:
    """Algorithm 1 of Frantar & Alistarh (2023) in blocks of ``block`` inputs; ``choose`` masks ``group`` inputs at once.

    ``choose`` gets ``w^2 / U_jj^2 [group, O]`` at the weights of that moment, and the group's part of ``extra``, whose leading
    axis is the number of blocks.
    """

    def masked(rows: Array, own: Array, part: Any) -> tuple[Array, Array, Array]:
        keep = choose(jnp.square(rows / jnp.diagonal(own)[:, None]), part)
        return _in_turn(rows, own, keep[:, None], 1, _single)

    def grouped(rows: Array, own: Array, part: Any) -> tuple[Array, Array, Array]:
        return _in_turn(rows, own, part, group, masked)

    inputs, (padded, wide, parts) = len(weight), _padded(weight, factor, extra, block, group)
    errors, solved, mask = _in_turn(padded, wide, parts, block, grouped)
    return errors[:inputs], solved[:inputs], mask[:inputs]


def _padded(weight: Array, factor: Array, extra: Any, block: int, group: int) -> tuple[Array, Array, Any]:
    """Weights and factor with further inputs, which are zero, up to a multiple of ``block``; extra by block and group."""
    more = -len(weight) % block
    wide = jnp.pad(factor, ((0, more), (0, more)))
    ends = np.arange(len(weight) + more) >= len(weight)
    wide = wide + jnp.diag(jnp.asarray(ends, factor.dtype))
    blocks = len(wide) // block
    parts = jax.tree.map(lambda x: x.reshape(blocks, block // group, *x.shape[1:]), extra)
    return jnp.pad(weight, ((0, more), (0, 0))), wide, parts


def kept_by_block(inputs: int, outputs: int, sparsity: float, block: int) -> np.ndarray:
    """Entries that each block of inputs keeps, int32: together ``size - round(sparsity * size)``, each its share up to one."""
    ends = np.minimum(np.arange(0, inputs + block, block), inputs).astype(np.int64) * outputs
    kept = np.array([n - round(sparsity * int(n)) for n in ends])
    return np.diff(kept).astype(np.int32)


@partial(jax.jit, static_argnames=("sparsity", "pattern", "block", "damping"))
def sparsegpt(
    weight: Array, gram: Array, *, sparsity: float | None, pattern: tuple[int, int] | None, block: int, damping: float
) -> tuple[Array, Array, Array]:
    """SparseGPT of one layer (Frantar & Alistarh 2023, Algorithm 1).

    Compile time does not depend on the width, and the number of operations is that of ``4 I^2 O`` and a factorization.

    Args:
      weight: float32 ``[I, O]``. gram: float32 ``[I, I]``.
      sparsity: share of zeros; not read where there is a pattern.
      pattern: ``(n, m)``: of every m inputs in a row, each output keeps n; m divides ``I``.
      block: inputs between two corrections of all later ones, and among which the unstructured mask is chosen.
      damping: as in ``damped``.

    Returns:
      The new weights, float32 ``[I, O]``, zero where masked; the mask, True is kept; the smallest pivot, as ``inverse_factor``.
    """
    inputs, outputs = weight.shape
    choose: Callable[[Array, Any], Array]
    extra: Any
    if pattern is None:
        assert sparsity is not None
        block = group = min(block, inputs)
        blocks = -(-inputs // block)
        real = (np.arange(blocks * block) < inputs).reshape(blocks, block)
        extra = jnp.asarray(kept_by_block(inputs, outputs, sparsity, block)), jnp.asarray(real)
        choose = lambda score, own: topk.keep_largest(jnp.where(own[1][:, None], score, -jnp.inf), own[0])
    else:
        n, group = pattern
        block = -(-min(block, inputs) // group) * group
        extra = jnp.zeros((-(-inputs // block) * (block // group), 0))
        choose = lambda score, own: topk.n_m_mask(score, n, group, 0)
    factor, pivot = inverse_factor(damped(gram, damping))
    _, solved, mask = _eliminated(weight, factor, extra, block, group, choose)
    return solved, mask, pivot


@partial(jax.jit, static_argnames=("sparsity", "pattern", "damping"))
def independent(
    weight: Array, counts: Array, *, sparsity: float | None, pattern: tuple[int, int] | None, damping: float
) -> tuple[Array, Array, Array]:
    """Of a layer whose Gram matrix is diagonal, as a lookup's: no weight can make up for another, and the cheapest go.

    Args:
      counts: float32 ``[I]``, the diagonal.

    Others and result as of ``sparsegpt``.
    """
    mean = jnp.mean(counts)
    hessian = jnp.where(mean > 0, jnp.where(counts > 0, counts + damping * mean, DEAD * mean), 1.0)
    score = jnp.square(weight) * hessian[:, None]
    if pattern is None:
        assert sparsity is not None
        mask = topk.keep_largest(score, weight.size - round(sparsity * weight.size))
    else:
        mask = topk.n_m_mask(score, *pattern, 0)
    return jnp.where(mask, weight, 0.0), mask, jnp.float32(1)


@partial(jax.jit, static_argnames=("block", "damping"))
def compensated(weight: Array, gram: Array, mask: Array, *, block: int = 128, damping: float = 0.01) -> Array:
    """SparseGPT's weights for a mask that is known: input by input, what goes is made up for by later inputs.

    With the weights of earlier inputs as they are now, those from input j on are always the least-squares solution; input j
    then keeps its weight or loses it. Where all that goes stands in front of all that stays this is ``refitted``.

    Args:
      weight, mask: ``[I, O]``, True is kept. gram: ``[I, I]``.
    """
    factor, _ = inverse_factor(damped(gram, damping))
    block = min(block, len(weight))
    more = -len(mask) % block
    extra = jnp.pad(mask, ((0, more), (0, 0))).reshape(-1, block, mask.shape[1])
    choose = lambda score, own: own
    _, solved, _ = _eliminated(weight, factor, extra, block, block, choose)
    return solved


@partial(jax.jit, static_argnames=("damping",))
def refitted(weight: Array, gram: Array, mask: Array, *, damping: float = 0.01) -> Array:
    """The weights on the mask's support whose outputs are nearest: for each output ``w_M = (H_MM)^-1 (H w)_M``.

    One system of ``I`` unknowns for each output, in turn.

    Args:
      weight, mask: ``[I, O]``, True is kept. gram: ``[I, I]``.
    """
    hessian = damped(gram, damping)
    wanted = _dot(hessian, weight)

    def one(column: tuple[Array, Array]) -> Array:
        keep, right = column
        both = keep[:, None] & keep[None, :]
        system = jnp.where(both, hessian, jnp.diag(jnp.where(keep, 0.0, 1.0)))
        lower = lax.linalg.cholesky(system, symmetrize_input=False)
        half = lax.linalg.triangular_solve(lower, jnp.where(keep, right, 0.0)[:, None], left_side=True, lower=True)
        return lax.linalg.triangular_solve(lower, half, left_side=True, lower=True, transpose_a=True)[:, 0]

    return jnp.where(mask, lax.map(one, (mask.T, wanted.T)).T, 0.0)


@partial(jax.jit, static_argnames=("sparsity", "damping"))
def surgeon(weight: Array, gram: Array, *, sparsity: float, damping: float) -> tuple[Array, Array, Array]:
    """Optimal Brain Surgeon, exact and greedy: one weight after the other, the others refitted after each.

    Hassibi & Stork (1993), eq. 5, with the layer's own Hessian; which output loses the next weight as in Frantar & Alistarh
    (2022), Algorithm 2. ``O I^3`` operations: for small layers.

    Arguments and result as of ``sparsegpt``.
    """
    inputs, outputs = weight.shape
    hessian = damped(gram, damping)
    factor, pivot = inverse_factor(hessian)
    inverse = _dot(factor.T, factor)

    def one(column: Array) -> Array:
        """What it costs at most to come so far that a weight goes: grows along the order in which they go."""

        def go(carry: Any, _: Any) -> tuple[Any, None]:
            w, own, cost, last = carry
            diagonal = jnp.diagonal(own)
            alive = jnp.isinf(cost)
            score = jnp.where(alive, jnp.square(w) / jnp.where(alive, diagonal, 1.0), jnp.inf)
            c = jnp.argmin(score)
            last = jnp.maximum(score[c], last * (1 + 2**-20) + 1e-30)  # after the one before, also where it is cheaper
            line = own[c] / own[c, c]
            w = jnp.where(alive & (jnp.arange(inputs) != c), w - w[c] * line, 0.0)
            own = own - line[:, None] * own[c][None, :]
            return (w, own, cost.at[c].set(last), last), None

        start = (column, inverse, jnp.full(inputs, jnp.inf, jnp.float32), jnp.float32(0))
        return lax.scan(go, start, None, length=inputs)[0][2]

    costs = lax.map(one, weight.T).T
    mask = topk.keep_largest(costs, inputs * outputs - round(sparsity * inputs * outputs))
    return refitted(weight, gram, mask, damping=damping), mask, pivot
