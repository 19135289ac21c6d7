"""Matrices and kernels as products of smaller ones, with the least error of a rank.

Of a layer ``y = x @ w``, ``w [I, O]``, whose inputs have the Gram matrix ``G = sum_n x_n^T x_n [I, I]``, an approximation
``v`` of ``w`` changes the outputs by ``|x (w - v)|^2 = |R (w - v)|^2``, Frobenius norms, for any ``R`` with ``R^T R = G``. So
the best ``v`` of a rank is ``w`` seen through the truncated SVD of ``R w`` (Eckart & Young 1936), and what is lost are the
squares of the singular values that go. Arrays are float32.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

_dot = partial(jnp.matmul, precision=lax.Precision.HIGHEST)
_einsum = partial(jnp.einsum, precision=lax.Precision.HIGHEST)


def root(gram: Array, damping: float = 0.0) -> Array:
    """``R`` with ``R^T R = G + damping * mean(diagonal of G)``, for any ``G``, of full rank or not.

    Args:
      gram: ``[I, I]``, or its diagonal ``[I]``; then ``R`` is diagonal, ``[I]``.
    """
    if gram.ndim == 1:
        return jnp.sqrt(gram + damping * jnp.mean(gram))
    lift = damping * jnp.mean(jnp.diagonal(gram))
    values, vectors = jnp.linalg.eigh(gram)
    return jnp.sqrt(jnp.maximum(values, 0.0) + lift)[:, None] * vectors.T


def factored(w: Array, gram: Array | None = None, damping: float = 0.0) -> tuple[Array, Array, Array]:
    """All factors of a matrix, those first that its outputs need most: of each rank r the first r are the best.

    Args:
      w: ``[I, O]``.
      gram: of its inputs, ``[I, I]`` or its diagonal ``[I]``; None: as if the inputs were not correlated and all of one size.
      damping: 0 or more, over the mean of the Gram matrix' diagonal: what weights count of inputs that were never seen.

    Returns:
      ``left [I, K]``, ``right [K, O]`` with ``K = min(I, O)`` and columns and rows of equal norms, and the energies ``[K]``,
      what each adds to ``|x w|^2`` (without a Gram matrix to ``|w|^2``).
    """
    if gram is None:
        u, s, vt = jnp.linalg.svd(w, full_matrices=False)
        return u * jnp.sqrt(s)[None], jnp.sqrt(s)[:, None] * vt, jnp.square(s)
    r = root(gram, damping)
    seen = r[:, None] * w if r.ndim == 1 else _dot(r, w)
    _, s, vt = jnp.linalg.svd(seen, full_matrices=False)
    left = _dot(w, vt.T)  # the projection R^-1 u s: no inverse of R is needed
    size = jnp.linalg.norm(left, axis=0)
    even = jnp.sqrt(jnp.where(size > 0, size, 1.0))
    return left / even[None], even[:, None] * vt, jnp.square(s)


def modes(w: Array) -> tuple[Array, Array]:
    """The energies of the two modes of ``w [I, P, O]`` that Tucker-2 truncates, largest first: ``[I]`` and ``[O]``.

    Truncating to ranks r and q loses at most what goes of both, and at least the larger (De Lathauwer, De Moor & Vandewalle
    2000a, property 10).
    """
    first, last = jnp.linalg.eigvalsh(_unfolded(w)), jnp.linalg.eigvalsh(_unfolded(w.transpose(2, 1, 0)))
    return jnp.maximum(first[::-1], 0.0), jnp.maximum(last[::-1], 0.0)


def tucker(
    w: Array, widths: tuple[int, int], ranks: tuple[Array, Array] | None = None, sweeps: int = 10
) -> tuple[Array, Array, Array]:
    """``w[i, p, o] = sum_rq first[i, r] core[r, p, q] last[q, o]`` of least error, near enough: Tucker-2 (Kim et al. 2016).

    Starts from the truncated higher-order SVD and improves one mode at a time for the other as it is (higher-order orthogonal
    iteration; De Lathauwer, De Moor & Vandewalle 2000b), which never makes it worse.

    Args:
      w: ``[I, P, O]``; P are the places of the window.
      widths: of the two modes, static. ranks: how many of them count, at most as many; the others are zero. None: all.

    Returns:
      ``first [I, R]``, ``core [R, P, Q]``, ``last [Q, O]``; the columns of ``first`` and rows of ``last`` are orthonormal.
    """
    masks = [jnp.ones(n) if ranks is None else (jnp.arange(n) < ranks[k]).astype(w.dtype) for k, n in enumerate(widths)]
    turned = w.transpose(2, 1, 0)

    def improved(_: int, last: Array) -> Array:
        first = _leading(_unfolded(_einsum("ipo,oq->ipq", w, last)), masks[0])
        return _leading(_unfolded(_einsum("opi,ir->opr", turned, first)), masks[1])

    last = lax.fori_loop(0, sweeps, improved, _leading(_unfolded(turned), masks[1]))
    reduced = _einsum("ipo,oq->ipq", w, last)
    first = _leading(_unfolded(reduced), masks[0])
    return first, _einsum("ir,ipq->rpq", first, reduced), last.T


def _unfolded(w: Array) -> Array:
    """The Gram matrix of the first mode of a tensor."""
    flat = w.reshape(len(w), -1)
    return _dot(flat, flat.T)


def _leading(gram: Array, mask: Array) -> Array:
    """The eigenvectors of the largest eigenvalues, as columns; zero where the mask is."""
    _, vectors = jnp.linalg.eigh(gram)
    return vectors[:, ::-1][:, : len(mask)] * mask[None]


def output_error(gram: Array, change: Array) -> Array:
    """``|x d|^2`` of a change ``d [I, O]`` of the weights, for inputs of Gram matrix ``[I, I]`` or of its diagonal ``[I]``."""
    if gram.ndim == 1:
        return jnp.sum(gram[:, None] * jnp.square(change))
    return jnp.sum(change * _dot(gram, change))


@jax.jit
def kept(energies: Array) -> Array:
    """The share of the energy that the first r keep, for each r: ``[..., K]``; all of it where there is none."""
    total = jnp.sum(energies, -1, keepdims=True)
    return jnp.where(total > 0, jnp.cumsum(energies, -1) / jnp.where(total > 0, total, 1.0), 1.0)
