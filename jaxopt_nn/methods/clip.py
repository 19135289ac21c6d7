"""Weight clipping: to a fixed box, to percentiles, to standard deviations.

Three ways to use one box. *Projection* (``project=True``): after each step of the optimizer the weights themselves are
clipped. *Straight-through* (``project=False, ste="pass"``): the latent weights move freely and the forward pass sees them
clipped. *One-shot*: no training at all, ``method.view`` or ``method.pack`` of trained weights.

The derivative of ``y = min(max(w, lo), hi)`` is 1 inside and 0 outside. ``ste="clip"`` is that, with the ends counted as
inside, so that a weight which the projection has put on an end can leave it (the derivative of ``jnp.clip`` is 1/2 there).
With it and no projection a weight outside gets no gradient any more, and stays; ``ste="pass"`` gives the derivative of
``y = w`` instead, 1 everywhere (Bengio et al. 2013), so that it can come back.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_nn.core.arguments import in_words
from jaxopt_nn.core.cuts import Cut
from jaxopt_nn.core.leafwise import leafwise
from jaxopt_nn.core.model import Known, ModelInfo, Roles
from jaxopt_nn.core.paths import leaves_by_path
from jaxopt_nn.core.transform import Facts, LeafTraits, PyTree, State, Transform, why_not_matrix

_FLOAT32_MAX = float(jnp.finfo(jnp.float32).max)


@partial(jax.tree_util.register_dataclass, data_fields=["lo", "hi"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Box:
    """What a leaf is clipped to: ``lo`` and ``hi``, float32, scalars or of the leaf's rank with 1 on shared axes.

    A leaf of another dtype is clipped to the largest box of its own finite numbers that lies in this one.
    """

    lo: Any
    hi: Any


def clip(lo: float, hi: float, *, ste: str = "clip", project: bool = True) -> Transform:
    """Keeps weights in ``[lo, hi]``: the forward pass sees clipped weights.

    Args:
      lo, hi: the box, the same for each leaf.
      ste: the gradient outside: ``"clip"`` (0) or ``"pass"`` (1).
      project: clip the weights after each step of the optimizer; else latent weights move freely.

    Returns:
      A ``Transform`` that packs nothing; it takes float leaves that some site contracts and whose dtype has a number in
      the box. An infinite weight goes to an end of the box. It keeps zeros if 0 lies in the box.

    Raises:
      ValueError: not ``lo < hi``, a bound that is no finite number, another ``ste``; at ``pack``, NaN weights.

    Example:
      >>> v = {"kernel": jnp.array([[0.5, -2.0], [0.1, 3.0]])}
      >>> method = jn.clip(-1.0, 1.0)
      >>> state = method.init(v)
      >>> method.view(v, state)["kernel"]
      Array([[ 0.5, -1. ],
             [ 0.1,  1. ]], dtype=float32)
      >>> jax.grad(lambda v: method.view(v, state)["kernel"].sum())(v)["kernel"]  # none outside the box
      Array([[1., 0.],
             [1., 0.]], dtype=float32)
    """
    for name, bound in (("lo", lo), ("hi", hi)):
        if isinstance(bound, bool) or not isinstance(bound, numbers.Real):
            raise TypeError(f"clip: {name} is {in_words(bound)}; pass a number, e.g. clip(-1.0, 1.0)")
    if not (math.isfinite(lo) and math.isfinite(hi) and lo < hi):
        raise ValueError(f"clip(lo={lo}, hi={hi}): needs finite lo < hi, e.g. clip(-1.0, 1.0)")
    box = Box(np.float32(max(lo, -_FLOAT32_MAX)), np.float32(min(hi, _FLOAT32_MAX)))

    def empty(dtype: Any) -> bool:
        with jax.ensure_compile_time_eval():
            low, high = _ends(box, dtype)
            return bool(low > high)

    return _box_transform(
        lambda leaf, roles: jax.tree.map(jnp.asarray, box), "clip", ste, project, lo <= 0 <= hi, empty
    )


def clip_percentile(
    low: float = 0.1, high: float = 99.9, *, granularity: str = "leaf", ste: str = "clip", project: bool = True
) -> Transform:
    """Keeps weights between two of their percentiles, with linear interpolation as in ``numpy.percentile``.

    The box is computed at ``init``, in float32, and fixed from then on: percentiles of weights that are clipped already
    lie further inside, so that a box computed again at every step would shrink at every step. It is widened to hold 0
    where all weights of a box have one sign (as integer ranges are), so a pruned weight stays exactly 0.

    Args:
      low, high: per cent, ``0 <= low < high <= 100``.
      granularity: one box for each ``"leaf"``, or for each index over its output axes (``"channel"``); always one for
        each layer of a stack.
      ste, project: as in ``clip``.

    Raises:
      ValueError: an argument outside the above; at ``pack``, NaN weights (or a box from NaN weights).

    Example:
      >>> v = {"kernel": jnp.arange(-50.0, 51.0).reshape(1, 101)}
      >>> method = jn.clip_percentile(10, 90)
      >>> seen = method.view(v, method.init(v))["kernel"]
      >>> float(seen.min()), float(seen.max())
      (-40.0, 40.0)
    """
    if not 0 <= low < high <= 100:
        raise ValueError(f"clip_percentile(low={low}, high={high}): per cent, 0 <= low < high <= 100")

    def ends(x: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
        lo, hi = jnp.percentile(x, jnp.array([low, high], jnp.float32), axis=axes, keepdims=True)
        return lo, hi

    return _box_transform(_fixed_box("clip_percentile", ends, granularity), "clip_percentile", ste, project)


def clip_std(k: float = 3.0, *, granularity: str = "leaf", ste: str = "clip", project: bool = True) -> Transform:
    """Keeps weights within ``k`` standard deviations (of all entries, no ``n - 1``) of their mean.

    The box is computed at ``init``, in float32, and fixed from then on: the deviation of clipped weights is smaller, so
    that a box computed again at every step would shrink at every step. It is widened to hold 0 where it does not.

    Args:
      k: above 0.
      granularity, ste, project: as in ``clip_percentile``.

    Raises:
      ValueError: an argument outside the above; at ``pack``, weights that are NaN, or a box from weights that were
        not finite.

    Example:
      >>> v = {"kernel": jnp.array([[1.0, -1.0] * 10 + [10.0, -10.0]])}
      >>> method = jn.clip_std(1.0)  # the deviation of these is sqrt(10)
      >>> round(float(method.view(v, method.init(v))["kernel"].max()), 3)
      3.162
    """
    if not (math.isfinite(k) and k > 0):
        raise ValueError(f"clip_std(k={k}): a finite number of standard deviations above 0, e.g. 3.0")

    def ends(x: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
        mean, reach = jnp.mean(x, axes, keepdims=True), k * jnp.std(x, axes, keepdims=True)
        return mean - reach, mean + reach

    return _box_transform(_fixed_box("clip_std", ends, granularity), "clip_std", ste, project)


def _fixed_box(
    name: str, ends: Callable[[jax.Array, tuple[int, ...]], tuple[jax.Array, jax.Array]], granularity: str
) -> Callable[[Any, Roles], Box]:
    """``(leaf, roles) -> Box``, also of abstract leaves, of the ``ends`` over the axes that share a box."""
    if granularity not in ("leaf", "channel"):
        raise ValueError(f"{name}(granularity={granularity!r}): allowed are 'leaf' and 'channel'")

    @partial(jax.jit, static_argnums=1)
    def computed(leaf: jax.Array, axes: tuple[int, ...]) -> Box:
        lo, hi = ends(leaf.astype(jnp.float32), axes)
        return Box(jnp.minimum(lo, 0.0), jnp.maximum(hi, 0.0))

    def box(leaf: Any, roles: Roles) -> Box:
        own = roles.channel_axes() if granularity == "channel" else roles.stack
        axes = tuple(a for a in range(leaf.ndim) if a not in own)
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.eval_shape(lambda x: computed(x, axes), leaf)
        return computed(leaf, axes)

    return box


def _box_transform(
    box: Callable[[Any, Roles], Box],
    name: str,
    ste: str,
    project: bool,
    keeps_zeros: bool = True,
    empty: Callable[[Any], bool] = lambda dtype: False,
) -> Transform:
    if ste not in ("clip", "pass"):
        raise ValueError(f"{name}(ste={ste!r}): allowed are 'clip' and 'pass'")

    def takes(path: str, leaf: Any, info: ModelInfo) -> LeafTraits | str:
        reason = why_not_matrix(path, leaf, info)
        if reason is None and empty(leaf.dtype):
            reason = f"no {leaf.dtype} number lies in the box of {name}; widen it"
        return LeafTraits(None, keeps_zeros) if reason is None else reason

    def init(path: str, leaf: Any, known: Known) -> tuple[Any, Any]:
        return (), box(leaf, known.roles)

    def view(leaf: Any, learnt: Any, carried: Box) -> Any:
        return _clipped(leaf, carried, ste)

    def pack(path: str, leaf: Any, learnt: Any, carried: Box) -> Any:
        seen = view(leaf, learnt, carried)
        if bool(jnp.any(jnp.isnan(seen))):
            raise ValueError(
                f"{path}: NaN or Inf among the {np.size(leaf)} weights or in their box; find the step that diverged, or "
                "clean the leaf first"
            )
        return seen

    projected = (lambda leaf, learnt, carried: (view(leaf, learnt, carried), learnt)) if project else None
    made = leafwise(
        takes, init, view, project=projected, pack=pack, needs=frozenset({"roles"}), follows=_followed, name=name
    )
    return made._replace(traits=made.traits._replace(facts=_told))


def _followed(learnt: Any, carried: Box, cut: Cut) -> tuple[Any, Any] | str:
    lo, hi = cut.beside(carried.lo), cut.beside(carried.hi)
    return next((x for x in (lo, hi) if isinstance(x, str)), (learnt, Box(lo, hi)))


def _ends(box: Box, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """The least and the greatest finite number of ``dtype`` in the box; the least is the greater if there is none."""
    most = min(float(jnp.finfo(dtype).max), _FLOAT32_MAX)

    def inward(end: Any, toward: float) -> jax.Array:
        near = jnp.clip(end, -most, most).astype(dtype)
        wide = near.astype(jnp.float32)
        return jnp.where(wide > end if toward < 0 else wide < end, jnp.nextafter(near, toward), near)

    return inward(box.lo, most), inward(box.hi, -most)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _clipped(leaf: jax.Array, box: Box, ste: str) -> jax.Array:
    return jnp.clip(leaf, *_ends(box, leaf.dtype))


@_clipped.defjvp
def _clipped_jvp(ste: str, primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (leaf, box), (slope, _) = primals, tangents
    seen = _clipped(leaf, box, ste)
    return seen, slope if ste == "pass" else jnp.where(leaf == seen, slope, jnp.zeros_like(slope))


@dataclasses.dataclass(frozen=True)
class Clipping:
    """What clipping does to one leaf.

    Attributes:
      path: of the leaf.
      min, max: of its weights as they are.
      lo, hi: its box; of several boxes (layers of a stack, channels) the lowest and the highest end.
      clipped: share of weights outside their box, which the view changes.
      on_edge: share exactly on an end: those that a projection has clipped, mostly.
    """

    path: str
    min: float
    max: float
    lo: float
    hi: float
    clipped: float
    on_edge: float


@dataclasses.dataclass(frozen=True)
class Clippings:
    """A row for each clipped leaf; prints as a table."""

    rows: tuple[Clipping, ...] = ()

    def __iter__(self) -> Iterator[Clipping]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def as_json(self) -> list[dict[str, Any]]:
        return [dataclasses.asdict(row) for row in self.rows]

    def __str__(self) -> str:
        if not self.rows:
            return "(nothing is clipped)"
        width = max(len("leaf"), *(len(row.path) for row in self.rows))
        head = f"{'leaf':<{width}}  {'min':>9}  {'max':>9}  {'lo':>9}  {'hi':>9}  {'clipped':>8}  {'on edge':>8}"
        return "\n".join(
            [head]
            + [
                f"{r.path:<{width}}  {r.min:>9.4g}  {r.max:>9.4g}  {r.lo:>9.4g}  {r.hi:>9.4g}  {r.clipped:>8.2%}  "
                f"{r.on_edge:>8.2%}"
                for r in self.rows
            ]
        )


def clipping(params: PyTree, state: State) -> Clippings:
    """Range, box and share of clipped weights of each leaf that some part of ``state`` has a box for.

    ``state`` is that of any transform that has a clipping somewhere in it (``chain``, ``where``, ``every``, ...): its boxes
    are found in ``state.carried``, and ``params`` compared with them, so what an earlier member of a chain does to the
    weights is left out. Reads values: outside jit.

    Args:
      params: floats, as the transform got them.
      state: of the transform.

    Returns:
      A row for each such leaf; prints as a table. Shares are in [0, 1].

    Example:
      >>> v = {"kernel": jnp.array([[0.5, -2.0], [0.25, 3.0]])}
      >>> method = jn.where("kernel", jn.clip(-1.0, 1.0))
      >>> print(jn.clipping(v, method.init(v)))
      leaf          min        max         lo         hi   clipped   on edge
      kernel         -2          3         -1          1    50.00%     0.00%
    """
    leaves = leaves_by_path(params)
    found, _ = jax.tree_util.tree_flatten_with_path(state.carried, is_leaf=lambda x: isinstance(x, Box))
    rows = []
    for keys, box in found:
        if isinstance(box, Box):
            path = keys[-1].key
            rows.append(Clipping(path, *map(float, jax.device_get(_facts(leaves[path], box)))))
    return Clippings(tuple(rows))


def _told(params: PyTree, state: State) -> tuple[Facts, ...]:
    """``clipping`` as a report has it."""
    rows = clipping(params, state).rows
    note = "Range and box of each leaf when the stage began, and the share of its weights outside, which are clipped."
    header = ("path", "min", "max", "lo", "hi", "clipped, %")
    cells = tuple((r.path, r.min, r.max, r.lo, r.hi, 100 * r.clipped) for r in rows)
    return (Facts("Clipped weights", note, header, cells),) if rows else ()


@jax.jit
def _facts(leaf: jax.Array, box: Box) -> tuple[jax.Array, ...]:
    lo, hi = _ends(box, leaf.dtype)
    outside, edge = (leaf < lo) | (leaf > hi), (leaf == lo) | (leaf == hi)
    return jnp.min(leaf), jnp.max(leaf), jnp.min(lo), jnp.max(hi), jnp.mean(outside), jnp.mean(edge)
