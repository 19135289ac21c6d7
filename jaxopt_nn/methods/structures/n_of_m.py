"""N of every M consecutive entries."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_nn.core.cuts import Cut
from jaxopt_nn.core.model import Roles
from jaxopt_nn.methods.structures.base import Structure
from jaxopt_nn.numerics import topk
from jaxopt_nn.tensors.n_of_m import NofM


def n_of_m(n: int, m: int, axis: int | None = None) -> Structure:
    """Keeps the ``n`` largest scores of every ``m`` consecutive entries along an axis (Mishra et al. 2021, for 2:4).

    ``1 - n / m`` of the weights are zero, in every leaf alike: beside it stand neither a threshold nor an allocation, and a
    sparsity only as a schedule that ends there; at a share ``s`` on its way, ``m - round(s m)`` of every ``m`` are kept. Packs
    into ``NofM``: values, and a place of ``ceil(log2 m)`` bits for each.

    Args:
      n, m: ``1 <= n < m <= 256``.
      axis: of the leaf; None: that of the inputs, along which sparse products need it; of several the last that is no window.
        A leaf whose axis ``m`` does not divide is left alone, and named by ``explain``.

    Raises:
      ValueError: other numbers.

    Example:
      >>> v = {"kernel": jnp.array([[4.0], [1.0], [2.0], [3.0]])}
      >>> method = jn.prune(structure=jn.n_of_m(2, 4))
      >>> method.view(v, method.init(v))["kernel"].ravel()
      Array([4., 0., 0., 3.], dtype=float32)
      >>> print(jn.explain(method, {"kernel": jnp.ones((6, 3))}))
      skipped  kernel  has 6 entries along axis 0, not a multiple of 4
    """
    if not all(isinstance(x, int) and not isinstance(x, bool) for x in (n, m)) or not 1 <= n < m <= 256:
        raise ValueError(f"n_of_m(n={n!r}, m={m!r}): allowed are whole numbers with 1 <= n < m <= 256, e.g. n_of_m(2, 4)")
    at = partial(along, axis)

    def takes(shape: tuple[int, ...], roles: Roles) -> str | None:
        own = at(roles)
        if own is None:
            return "has no input axis; pass axis="
        if not -len(shape) <= own < len(shape) or own % len(shape) in roles.stack:
            return f"axis {own} is none of the {len(shape)} axes of a layer"
        if shape[own] % m:
            return f"has {shape[own]} entries along axis {own}, not a multiple of {m}"
        return None

    def select(scores: jax.Array, roles: Roles, sparsity: Any) -> jax.Array:
        kept = jnp.int32(m) - jnp.round(jnp.asarray(sparsity, jnp.float32) * m).astype(jnp.int32)
        return _selected(scores, kept, m, at(roles))

    def pack(mask: jax.Array, leaf: Any, roles: Roles) -> Any:
        return NofM.pack(mask, leaf, m, at(roles), roles.stack)

    def follows(mask: jax.Array, cut: Cut, roles: Roles) -> jax.Array | str:
        own = at(roles) % mask.ndim
        entries = cut.axes.get(own)
        if entries is not None and (len(entries) % m or not _whole(np.asarray(entries), m)):
            return f"groups of {m} along axis {own} are cut apart"
        return cut.leaf(mask)

    return Structure(
        f"n_of_m({n}, {m})", takes, select=select, share=1 - n / m, pattern=(n, m) if axis is None else None, pack=pack,
        follows=follows,
    )  # fmt: skip


def along(axis: int | None, roles: Roles) -> Any:
    """The axis of a leaf along which the pattern runs, or None: that of the inputs where none is asked for."""
    if axis is not None:
        return axis
    plain = [a for a in roles.input if a not in roles.window]
    return plain[-1] if plain else None


def _whole(entries: np.ndarray, m: int) -> bool:
    groups = entries.reshape(-1, m)
    return bool((groups == groups[:, :1] // m * m + np.arange(m)).all())


@partial(jax.jit, static_argnums=(2, 3))
def _selected(scores: jax.Array, n: Any, m: int, axis: int) -> jax.Array:
    return topk.n_m_mask(scores, n, m, axis)
