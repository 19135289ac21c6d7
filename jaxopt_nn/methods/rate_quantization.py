"""Quantization for the fewest bytes of a coded file: a learnt step, and a price for every bit."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_nn.core.arguments import check_choice, check_flag, check_whole, in_words, is_number
from jaxopt_nn.core.cuts import Cuts
from jaxopt_nn.core.leafwise import known_of, leafwise
from jaxopt_nn.core.matrix import Matrix
from jaxopt_nn.core.model import Known, ModelInfo, Roles
from jaxopt_nn.core.paths import leaves_by_path
from jaxopt_nn.core.transform import LeafTraits, PyTree, State, Transform, as_info, why_not_float, why_not_matrix
from jaxopt_nn.methods import clusters
from jaxopt_nn.methods.binary import packed_bytes, worth
from jaxopt_nn.methods.quantize import check_finite
from jaxopt_nn.methods.schedules import pending
from jaxopt_nn.numerics import affine, rate
from jaxopt_nn.tensors.qtensor import QTensor

#: Codes and statistics are chosen in turn so often before training.
ROUNDS = 5
#: The first step of a leaf without a matrix: so many steps up to its largest entry.
FINE = 32
TINY = 1e-30
#: A step above it is taken to be it where codes are chosen: its square is finite, and a bit is worth nothing beside it.
WIDEST = 1e18


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["costs", "penalty", "importance"],
    meta_fields=["roles", "matrix", "most"],
)
@dataclasses.dataclass(frozen=True)
class Priced:
    """State of one leaf.

    Attributes:
      costs: statistics of its codes, as ``[S..., I, O]``.
      penalty: float32 scalar, what a bit adds to the loss.
      importance: None, or float32, ``[S..., I, 1]``: mean squares of the inputs over the largest of them; or ``[S..., I, O]``:
        the Fisher information of each weight over its mean in the leaf.
      roles, matrix: of its axes, and how its site reads it; without a matrix what is no output is a row.
      most: the largest magnitude of a code.
    """

    costs: rate.Prices
    penalty: Any
    importance: Any
    roles: Roles
    matrix: Matrix | None
    most: int

    def rows(self, x: Any) -> Any:
        """An array of the leaf's shape as ``[S..., I, O]``."""
        return _as_rows(x, self.roles, self.matrix)

    def put(self, like: Any, rows: Any) -> Any:
        """The way back; entries of the leaf that its site does not read get those of ``like``."""
        if self.matrix is not None:
            return self.matrix.put(like, rows)
        order = _order(self.roles, like.ndim)
        return rows.reshape([like.shape[a] for a in order]).transpose(sorted(range(like.ndim), key=order.__getitem__))


def _as_rows(x: Any, roles: Roles, matrix: Matrix | None) -> Any:
    if matrix is not None:
        return matrix(x)
    lead, columns = [x.shape[a] for a in roles.stack], math.prod(x.shape[a] for a in roles.output)
    return x.transpose(_order(roles, x.ndim)).reshape(*lead, -1, columns)


def _order(roles: Roles, ndim: int) -> list[int]:
    first, last = roles.stack, roles.output
    return [*first, *(a for a in range(ndim) if a not in (*first, *last)), *last]


def rate_quantize(
    penalty: Any,
    *,
    step: float = 1.0,
    bits: int = 8,
    importance: str | None = None,
    vectors: bool = False,
) -> Transform:
    """Integer codes with a learnt step, and a price for each bit that an entropy coder takes for them.

    The loss that is trained is ``task loss + penalty * bits``: entropy-penalised training (Oktay et al. 2020, eq. 6).
    Weights are ``step * round(w / step)``, straight through; the step is ``learnt``, by its logarithm, with the gradient of
    LSQ (Esser et al. 2020, eq. 3). The length of a code is that of ``numerics.rate``: zero or not by the density of its row
    and its column, a sign, a geometric magnitude. Between two codes it is taken to be linear, so its slope pushes each weight
    towards zero: hard where few of its row and column are left, so that these empty as a whole, and lightly where many are.

    Departures from Oktay et al.: rounding with a straight-through gradient and no noise, a step a layer and no learnt linear
    decoder, and statistics that are counted at each ``update`` (put ``every(25, ...)`` around it) and not learnt. The step
    gets no gradient from the rate: it would grow until all codes are zero.

    Without training, ``importance="inputs"`` makes it rate-distortion quantization (DeepCABAC, Wiedemann et al. 2020, eq. 6):
    the code of least ``(w - step q)^2 x^2 + penalty * bits``, with the mean square ``x^2`` of the weight's input over that of
    the largest; codes and statistics are chosen in turn, five times at ``init``. ``importance="fisher"`` puts the empirical
    Fisher information of the weight, over its mean in the leaf, in the place of ``x^2``: the loss itself says what an error
    costs.

    Args:
      penalty: what a bit adds to the loss; a number, or a schedule of the step. About 1e-6 to 1e-5 for a mean cross-entropy.
      step: the first step, in root mean squares of the layer's weights.
      bits: codes are within ``+-(2^(bits - 1) - 1)``, 2 to 8.
      importance: None: codes are rounded to nearest. ``"inputs"``, ``"fisher"``: chosen as above, by calibration.
      vectors: takes biases, norms and all other float leaves besides matrices: at 98 % zeros they are a sixth of the file.
        Leave out running statistics by ``where``: the step of a leaf that the training does not read is not trained.

    Returns:
      A ``Transform`` that packs into ``QTensor`` of the fewest bits that hold its codes. The file's entropy coder does the
      rest. It takes leaves that weigh less in codes of ``bits`` and their steps.

    Raises:
      TypeError, ValueError: an argument that is none of the above, or a schedule that gives none at step 0.
      ValueError: at ``init``, statistics of ``importance`` are missing; at ``pack``, NaN or Inf,
        also in a step.

    Example:
      >>> v = {"kernel": jnp.array([[2.0, -1.1], [0.1, 0.7]]), "bias": jnp.array([0.5, 0.25])}
      >>> method = jn.rate_quantize(1e-6, vectors=True)
      >>> state = method.init(v)
      >>> method.view(v, state)["kernel"]  # multiples of the root mean square
      Array([[ 2.3895607, -1.1947803],
             [ 0.       ,  1.1947803]], dtype=float32)
      >>> method.pack(v, state)["kernel"].bits
      3
      >>> slope = jax.grad(lambda v: method.view(v, state)["kernel"].sum())(v)["kernel"]
      >>> slope > 1  # besides the 1 of the sum, a push towards zero
      Array([[ True, False],
             [ True,  True]], dtype=bool)
    """
    first = _first_price(penalty)
    if not (is_number(step) and 0 < step < math.inf):
        raise ValueError(f"rate_quantize(step={in_words(step)}): the first step in root mean squares, above 0, e.g. 1.0")
    check_whole("rate_quantize", "bits", bits, 2, 8)
    check_choice("rate_quantize", "importance", importance, clusters.WEIGHTS)
    check_flag("rate_quantize", "vectors", vectors)

    each = leafwise(
        partial(_takes, vectors, bits), clusters.uninitialized, _view, update=partial(_updated, penalty), pack=_pack,
        taps=clusters.site_taps(importance), needs=frozenset({"roles"}), name="rate_quantize",
    )  # fmt: skip
    own = _RateQuantized(each, first, step, 2 ** (bits - 1) - 1, importance)
    traits = clusters.with_probes(each.traits, importance)
    traits = traits._replace(follows=own.follows, pending=partial(pending, "penalty", penalty))
    return each._replace(init=own.init, traits=traits)


def _first_price(penalty: Any) -> float:
    """The penalty at step 0.

    Raises:
      ValueError: it is no finite number from 0. TypeError: it is no schedule either.
    """
    allowed = "what a bit adds to the loss, a number from 0, e.g. 3e-6, or a schedule of the step that gives one"
    if not (callable(penalty) or is_number(penalty)):
        raise TypeError(f"rate_quantize(penalty={in_words(penalty)}): {allowed}")
    with jax.ensure_compile_time_eval():
        price = penalty(0) if callable(penalty) else penalty
        number = is_number(price) or (isinstance(price, jax.Array | np.ndarray) and price.ndim == 0)
        price = float(price) if number else price
    if not (number and 0 <= price < math.inf):
        raise ValueError(f"rate_quantize(penalty={in_words(price)}{' at step 0' if callable(penalty) else ''}): {allowed}")
    return price


def _takes(vectors: bool, bits: int, path: str, leaf: Any, info: ModelInfo) -> LeafTraits | str:
    reason = why_not_matrix(path, leaf, info)
    if reason is not None and vectors:
        reason = why_not_float(leaf)
    if reason is not None:
        return reason
    stack = info.roles_of(path, leaf.ndim).stack
    steps = 4 * math.prod(leaf.shape[a] for a in stack)  # codes may turn out narrower than ``bits``, a step never does
    return worth(leaf, packed_bytes(leaf.shape, bits, stack), steps, keeps_zeros=True)


def _updated(penalty: Any, leaf: Any, learnt: Any, carried: Priced, at: Any, grad: Any) -> Priced:
    price = jnp.float32(penalty(at)) if callable(penalty) else carried.penalty
    new = dataclasses.replace(carried, penalty=price)
    return dataclasses.replace(new, costs=rate.prices(_codes(leaf.astype(jnp.float32), learnt, new)))


@dataclasses.dataclass(frozen=True, eq=False)
class _RateQuantized:
    """How the state begins, and how it follows a cut.

    Fields as in ``rate_quantize``, with the method on single leaves, the penalty at step 0, and the largest code.
    """

    each: Transform
    penalty: float
    step: float
    most: int
    importance: str | None

    def init(self, params: PyTree, info: ModelInfo = ModelInfo()) -> State:
        info, leaves = as_info(info), leaves_by_path(params)
        taken = {p: x for p, x in leaves.items() if not isinstance(self.each.traits.takes(p, x, info), str)}
        if self.importance == "inputs" and taken and not info.sites:
            raise ValueError(
                f"{next(iter(taken))}: importance='inputs' reads the inputs of the layers; pass "
                "info=calibrate(network, method, batches)"
            )
        return clusters.fitted_each({p: (x, self._known(p, x, info)) for p, x in taken.items()}, self._begun)

    def follows(self, state: State, cuts: Cuts) -> State:
        found = {path: self._followed(path, state, cuts) for path in state.carried if not cuts.gone(path)}
        return State({path: own[0] for path, own in found.items()}, {path: own[1] for path, own in found.items()})

    def _followed(self, path: str, state: State, cuts: Cuts) -> tuple[Any, Any]:
        """The step stays; the statistics, of rows and columns that are there no longer, are counted of what stays."""
        learnt, carried = state.learnt[path], state.carried[path]
        if path not in cuts.leaves:
            return learnt, carried
        width = cuts.leaves[path].beside(learnt)
        assert not isinstance(width, str), width  # one number, or one a layer
        if cuts.moments is not None:
            return width, carried
        leaf = leaves_by_path(cuts.params)[path]
        return self._begun(path, leaf, self._known(path, leaf, cuts.info), width, carried.penalty)

    def _known(self, path: str, leaf: Any, info: ModelInfo) -> Known:
        if self.importance == "fisher":
            return clusters.known_with(path, leaf.ndim, info, self.importance)
        return known_of(path, leaf.ndim, info, clusters.site_taps(self.importance))

    def _begun(self, path: str, leaf: Any, known: Known, learnt: Any = None, price: Any = None) -> tuple[Any, Any]:
        if price is None:
            price = jnp.float32(self.penalty)
        begin = partial(_started, known=known, step=self.step, most=self.most)
        abstract = isinstance(leaf, jax.ShapeDtypeStruct)
        return jax.eval_shape(begin, leaf, learnt, price) if abstract else begin(leaf, learnt, price)


def _started(leaf: Any, learnt: Any, penalty: Any, known: Known, step: float, most: int) -> tuple[Any, Priced]:
    """The logarithm of the step, ``learnt`` or the first, float32 with the leaf's rank, and the statistics that go with it."""
    wide = leaf.astype(jnp.float32)
    if learnt is None:
        learnt = _first_step(wide, known, step)
    half = jnp.full((), 0.5, jnp.float32)
    weighed = _importance(leaf, known)
    carried = Priced(rate.Prices(half, half, half), penalty, weighed, known.roles, known.matrix, most)
    free = dataclasses.replace(carried, importance=None)
    costs = rate.prices(_codes(wide, learnt, free))
    if weighed is not None:
        again = lambda _, costs: rate.prices(_codes(wide, learnt, dataclasses.replace(carried, costs=costs)))
        costs = jax.lax.fori_loop(0, ROUNDS, again, costs)
    return learnt, dataclasses.replace(carried, costs=costs)


def _first_step(wide: Any, known: Known, step: float) -> Any:
    axes = tuple(a for a in range(wide.ndim) if a not in known.roles.stack)
    if known.matrix is None and len(axes) < 2:
        width = jnp.max(jnp.abs(wide), axis=axes, keepdims=True) / FINE
    else:
        unit = affine.power_below(jnp.max(jnp.abs(wide), axis=axes, keepdims=True))  # squares overflow, or vanish
        width = step * (unit * jnp.sqrt(jnp.mean(jnp.square(wide / unit), axis=axes, keepdims=True)))
    return jnp.log(jnp.where(width > 0, width, 1.0))


def _importance(leaf: Any, known: Known) -> Any:
    """What a squared error of each code weighs; None: all alike, or not measured (a leaf without a matrix has no inputs)."""
    if "fisher" in known.stats:
        return _as_rows(clusters.masses(leaf, known, "fisher"), known.roles, known.matrix)
    squares = known.stats.get("square_sum")
    return None if squares is None else squares[..., None] / jnp.maximum(jnp.max(squares), TINY)


def _codes(wide: Any, learnt: Any, carried: Priced) -> Any:
    """The codes of a leaf, float32 ``[S..., R, C]``."""
    width = jnp.exp(learnt)
    values = carried.rows(wide / width)
    if carried.importance is None:
        return jnp.clip(jnp.round(values), -carried.most, carried.most)
    squared = jnp.square(carried.rows(jnp.broadcast_to(jnp.minimum(width, WIDEST), wide.shape)))
    exchange = carried.penalty / jnp.maximum(carried.importance * squared, TINY)
    return rate.choose(values, carried.costs, exchange, carried.most)


def _laid(wide: Any, learnt: Any, carried: Priced) -> Any:
    """The codes in the leaf's shape, float32; entries that the site does not read are rounded to nearest."""
    nearest = jnp.clip(jnp.round(wide / jnp.exp(learnt)), -carried.most, carried.most)
    return nearest if carried.importance is None else carried.put(nearest, _codes(wide, learnt, carried))


@jax.jit
def _view(leaf: Any, learnt: Any, carried: Priced) -> Any:
    wide = leaf.astype(jnp.float32)
    free = jax.lax.stop_gradient(wide)
    codes = _laid(free, jax.lax.stop_gradient(learnt), carried)
    first, more = rate.entry(carried.costs), rate.further(carried.costs)
    bits = jnp.where(jnp.abs(carried.rows(free / jnp.exp(learnt))) < 1, first, more)
    slope = carried.penalty * carried.put(jnp.zeros_like(wide), bits)
    return _decoded(wide, learnt, codes, slope, carried.most).astype(leaf.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _decoded(wide: Any, learnt: Any, codes: Any, slope: Any, most: int) -> Any:
    """``step * codes``; gradients are straight through, and ``slope``, bits' price for a step of magnitude, is added."""
    return codes * _width(learnt)


def _width(learnt: Any) -> Any:
    """The step: its bits must not depend on what it is fused with, since view and pack need equal ones."""
    return jax.lax.optimization_barrier(jnp.exp(jax.lax.optimization_barrier(learnt)))


def _forward(wide: Any, learnt: Any, codes: Any, slope: Any, most: int) -> tuple[Any, Any]:
    return _decoded(wide, learnt, codes, slope, most), (wide, learnt, codes, slope)


def _backward(most: int, kept: Any, grad: Any) -> tuple[Any, ...]:
    wide, learnt, codes, slope = kept
    width = jnp.exp(learnt)
    values = wide / width
    inside = jnp.abs(values) <= most
    axes = tuple(a for a, n in enumerate(learnt.shape) if n != wide.shape[a])
    # d(step * code) / d(log step) = step * (code - value) inside the range, step * code where the range cuts
    size = math.prod(wide.shape[a] for a in axes)
    own = jnp.sum(grad * width * jnp.where(inside, codes - values, codes), axis=axes, keepdims=True) / math.sqrt(size)
    return jnp.where(inside, grad, 0.0) + jnp.sign(wide) * slope / width, own, jnp.zeros_like(codes), jnp.zeros_like(slope)


_decoded.defvjp(_forward, _backward)


@jax.jit
def _stored(leaf: Any, learnt: Any, carried: Priced) -> tuple[Any, Any, Any]:
    """Codes in int8, the step, and the largest magnitude of a weight."""
    wide = leaf.astype(jnp.float32)
    return _laid(wide, learnt, carried).astype(jnp.int8), _width(learnt), jnp.max(jnp.abs(wide))


def _pack(path: str, leaf: Any, learnt: Any, carried: Priced) -> QTensor:
    codes, width, extent = _stored(leaf, learnt, carried)
    check_finite(path, extent)
    clusters.check_finite(path, width, "steps")
    codes = np.asarray(codes)
    bits = max(2, 1 + int(np.abs(codes.astype(np.int16)).max()).bit_length())
    dtype = np.dtype(leaf.dtype).name
    return QTensor.from_codes(jnp.asarray(codes), width, bits=bits, dtype=dtype, stack=carried.roles.stack, name=path)

