"""Ready-made taps: what calibrated methods see of a site.

Rows are those of the activation ``[rows..., I]``, each counted by its weight (1 where nobody weighs them; a row of weight 0 is
not seen at all). Statistics are float32, of complex activations complex64 where they are sums of values. A lookup reads
one-hot rows: its statistics are those, computed from the counts of the ids; ids out of range count for nothing.
"""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
from jax import lax

from jaxopt_nn.core.model import Site
from jaxopt_nn.core.tap import Tap


def _rows(x: Any, weight: Any) -> tuple[Any, Any]:
    """``x [rows..., I]`` as ``[N, I]`` and the weights ``[N]``; rows of weight 0 are zero, whatever they hold."""
    wide = x.astype(jnp.complex64 if jnp.iscomplexobj(x) else jnp.float32).reshape((-1, x.shape[-1]))
    if weight is None:
        return wide, jnp.ones(len(wide), jnp.float32)
    each = jnp.broadcast_to(weight, x.shape[:-1]).reshape(-1).astype(jnp.float32)
    return jnp.where(each[:, None] > 0, wide, 0), each


def _counts(ids: Any, weight: Any, site: Site) -> Any:
    """How often each entry of the vocabulary was read, ``[I]``."""
    each = jnp.ones(ids.shape, jnp.float32) if weight is None else jnp.broadcast_to(weight, ids.shape)
    inside = (ids >= 0) & (ids < site.inputs)
    flat = jnp.where(inside, ids, site.inputs).reshape(-1)
    return jnp.zeros(site.inputs, jnp.float32).at[flat].add(each.reshape(-1), mode="drop")


def _float(site: Site) -> Any:
    """The dtype of sums of a site's activation."""
    at = 1 - (1 if site.weight is None else site.weight)
    return jnp.complex64 if site.kind != "gather" and "complex" in site.dtypes[at] else jnp.float32


def _add(a: Any, b: Any) -> Any:
    return a + b


@functools.cache
def gram(block: int | None = None) -> Tap:
    """``sum_n w_n x_n^H x_n``: float32 ``[I, I]``; with ``block`` its diagonal blocks alone, ``[I / block, block, block]``.

    Of a lookup, whose rows are one-hot, the diagonal ``[I]``: the counts of the ids.

    Raises:
      ValueError: a block below 1; at a site, a block that does not divide I.

    Example:
      >>> x = jnp.array([[1.0, 2.0], [3.0, 0.0]])
      >>> _, stats = jn.capture(lambda v, x: x @ v["kernel"], jn.gram())({"kernel": jnp.eye(2)}, x)
      >>> stats["kernel"]  # x.T @ x
      Array([[10.,  2.],
             [ 2.,  4.]], dtype=float32)
    """
    if block is not None and block < 1:
        raise ValueError(f"gram(block={block}): a number of inputs, at least 1, or None for the whole matrix")

    def zero(site: Site) -> Any:
        if site.kind == "gather":
            return jnp.zeros(site.inputs)
        if block is None:
            return jnp.zeros((site.inputs, site.inputs), _float(site))
        if site.inputs % block:
            raise ValueError(
                f"{site.name}: has {site.inputs} inputs, not a multiple of block={block}; pass a divisor, or None for the "
                "whole matrix"
            )
        return jnp.zeros((site.inputs // block, block, block), _float(site))

    def add(acc: Any, x: Any, weight: Any, site: Site) -> Any:
        if site.kind == "gather":
            return acc + _counts(x, weight, site)
        rows, each = _rows(x, weight)
        left = rows.conj() if weight is None else rows.conj() * each[:, None]
        if block is None:
            return acc + jnp.matmul(left.T, rows, precision=lax.Precision.HIGHEST)
        cut = lambda a: a.reshape((len(a), -1, block))
        return acc + jnp.einsum("ngi,ngj->gij", cut(left), cut(rows), precision=lax.Precision.HIGHEST)

    return Tap(zero, add, _add)


@functools.cache
def square_sum() -> Tap:
    """``sum_n w_n |x_n|^2`` of each input feature: float32 ``[I]``, the diagonal of ``gram``. Of a lookup the counts of ids.

    Example:
      >>> x = jnp.array([[1.0, 2.0], [3.0, 0.0]])
      >>> _, stats = jn.capture(lambda v, x: x @ v["kernel"], jn.square_sum())({"kernel": jnp.eye(2)}, x)
      >>> stats["kernel"]
      Array([10.,  4.], dtype=float32)
    """

    def add(acc: Any, x: Any, weight: Any, site: Site) -> Any:
        if site.kind == "gather":
            return acc + _counts(x, weight, site)
        rows, each = _rows(x, weight)
        return acc + jnp.sum(each[:, None] * jnp.square(jnp.abs(rows)), 0)

    return Tap(lambda site: jnp.zeros(site.inputs), add, _add)


@functools.cache
def abs_max() -> Tap:
    """The largest ``|x|`` of each input feature: float32 ``[I]``; 0 where no row was seen.

    Example:
      >>> x = jnp.array([[1.0, -5.0], [2.0, 3.0]])
      >>> _, stats = jn.capture(lambda v, x: x @ v["kernel"], jn.abs_max())({"kernel": jnp.eye(2)}, x)
      >>> stats["kernel"]
      Array([2., 5.], dtype=float32)
    """

    def add(acc: Any, x: Any, weight: Any, site: Site) -> Any:
        if site.kind == "gather":
            return jnp.maximum(acc, (_counts(x, weight, site) > 0).astype(jnp.float32))
        return jnp.maximum(acc, jnp.max(jnp.abs(_rows(x, weight)[0]), 0, initial=0.0))

    return Tap(lambda site: jnp.zeros(site.inputs), add, jnp.maximum)


@functools.cache
def minmax() -> Tap:
    """``[2]``: the least and the largest entry of all; (inf, -inf) where no row was seen. Complex values by magnitude.

    Example:
      >>> x = jnp.array([[1.0, -5.0], [2.0, 3.0]])
      >>> _, stats = jn.capture(lambda v, x: x @ v["kernel"], jn.minmax())({"kernel": jnp.eye(2)}, x)
      >>> stats["kernel"]
      Array([-5.,  3.], dtype=float32)
    """

    def add(acc: Any, x: Any, weight: Any, site: Site) -> Any:
        if site.kind == "gather":
            return acc
        rows, each = _rows(x, weight)
        rows = jnp.abs(rows) if jnp.iscomplexobj(rows) else rows
        seen = (each > 0)[:, None]
        low = jnp.min(rows, initial=jnp.inf, where=seen)
        return merge(acc, jnp.stack([low, jnp.max(rows, initial=-jnp.inf, where=seen)]))

    def merge(a: Any, b: Any) -> Any:
        return jnp.stack([jnp.minimum(a[0], b[0]), jnp.maximum(a[1], b[1])])

    return Tap(lambda site: jnp.array([jnp.inf, -jnp.inf], jnp.float32), add, merge)


@functools.cache
def moments() -> Tap:
    """``{"weight": [], "mean": [I], "m2": [I]}``: sum of weights, mean, and ``sum_n w_n |x_n - mean|^2``, by feature.

    The variance is ``m2 / weight``. Joined as in Chan, Golub & LeVeque (1979), so that a mean far from zero costs no digits.

    Example:
      >>> x = jnp.array([[1.0, 2.0], [3.0, 2.0]])
      >>> _, stats = jn.capture(lambda v, x: x @ v["kernel"], jn.moments())({"kernel": jnp.eye(2)}, x)
      >>> own = stats["kernel"]
      >>> own["mean"], own["m2"] / own["weight"]  # mean and variance by feature
      (Array([2., 2.], dtype=float32), Array([1., 0.], dtype=float32))
    """

    def zero(site: Site) -> Any:
        return {"weight": jnp.zeros(()), "mean": jnp.zeros(site.inputs, _float(site)), "m2": jnp.zeros(site.inputs)}

    def add(acc: Any, x: Any, weight: Any, site: Site) -> Any:
        if site.kind == "gather":
            counts = _counts(x, weight, site)
            total = jnp.sum(counts)
            mean = counts / jnp.maximum(total, 1e-30)
            return merge(acc, {"weight": total, "mean": mean, "m2": counts * (1 - mean)})
        rows, each = _rows(x, weight)
        total = jnp.sum(each)
        mean = jnp.sum(rows * each[:, None], 0) / jnp.where(total > 0, total, 1.0)
        m2 = jnp.sum(each[:, None] * jnp.square(jnp.abs(rows - mean[None])), 0)
        return merge(acc, {"weight": total, "mean": mean, "m2": m2})

    def merge(a: Any, b: Any) -> Any:
        total = a["weight"] + b["weight"]
        share = b["weight"] / jnp.where(total > 0, total, 1.0)
        gap = b["mean"] - a["mean"]
        m2 = a["m2"] + b["m2"] + jnp.square(jnp.abs(gap)) * a["weight"] * share
        return {"weight": total, "mean": a["mean"] + gap * share, "m2": m2}

    return Tap(zero, add, merge)


@functools.cache
def histogram(lo: float, hi: float, bins: int = 256) -> Tap:
    """Weights of the entries by value: float32 ``[bins]`` of equal width over ``[lo, hi]``; end bins hold what lies outside.

    Args:
      lo, hi: ends of the range, finite.
      bins: 2 or more.

    Raises:
      ValueError: not ``lo < hi``, fewer than 2 bins.

    Example:
      >>> x = jnp.array([[0.1, 0.9], [0.6, 7.0]])
      >>> _, stats = jn.capture(lambda v, x: x @ v["kernel"], jn.histogram(0.0, 1.0, bins=2))({"kernel": jnp.eye(2)}, x)
      >>> stats["kernel"]
      Array([1., 3.], dtype=float32)
    """
    if not lo < hi or bins < 2:
        raise ValueError(f"histogram(lo={lo}, hi={hi}, bins={bins}): needs lo < hi and at least 2 bins")

    def add(acc: Any, x: Any, weight: Any, site: Site) -> Any:
        if site.kind == "gather":
            return acc
        rows, each = _rows(x, weight)
        rows = jnp.abs(rows) if jnp.iscomplexobj(rows) else rows
        place = jnp.clip(jnp.floor((rows - lo) * (bins / (hi - lo))), 0, bins - 1).astype(jnp.int32)
        return acc.at[place].add(jnp.broadcast_to(each[:, None], rows.shape))

    return Tap(lambda site: jnp.zeros(bins), add, _add)


@functools.cache
def activity() -> Tap:
    """``{"largest": [I], "total": [I], "weight": []}``: largest ``|x|``, weighted sum of ``|x|``, sum of weights.

    Example:
      >>> x = jnp.array([[1.0, -5.0], [2.0, 3.0]])
      >>> _, stats = jn.capture(lambda v, x: x @ v["kernel"], jn.activity())({"kernel": jnp.eye(2)}, x)
      >>> stats["kernel"]["largest"], stats["kernel"]["total"] / stats["kernel"]["weight"]
      (Array([2., 5.], dtype=float32), Array([1.5, 4. ], dtype=float32))
    """

    def zero(site: Site) -> Any:
        return {"largest": jnp.zeros(site.inputs), "total": jnp.zeros(site.inputs), "weight": jnp.zeros(())}

    def add(acc: Any, x: Any, weight: Any, site: Site) -> Any:
        if site.kind == "gather":
            counts = _counts(x, weight, site)
            return merge(acc, {"largest": (counts > 0).astype(jnp.float32), "total": counts, "weight": jnp.sum(counts)})
        rows, each = _rows(x, weight)
        size = jnp.abs(rows)
        own = {"largest": jnp.max(size, 0, initial=0.0), "total": jnp.sum(size * each[:, None], 0), "weight": jnp.sum(each)}
        return merge(acc, own)

    def merge(a: Any, b: Any) -> Any:
        joined = {k: a[k] + b[k] for k in ("total", "weight")}
        return {"largest": jnp.maximum(a["largest"], b["largest"]), **joined}

    return Tap(zero, add, merge)
