"""How a leaf falls into factors: which axes each has, which ranks there are, what they cost, and the factors themselves."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_nn.core.matrix import Matrix
from jaxopt_nn.core.model import ModelInfo, Roles, Site
from jaxopt_nn.numerics import low_rank as numerics
from jaxopt_nn.numerics import shares
from jaxopt_nn.tensors import layout
from jaxopt_nn.tensors.base import is_compressed
from jaxopt_nn.tensors.low_rank import LowRank

FORMS = ("channel", "spatial", "tucker")


class Form(NamedTuple):
    """The factoring of one leaf, whatever its ranks; static.

    Attributes:
      shape, dtype: of the leaf.
      stack: its stack axes. groups: the axes of each of two or three factors.
      multiple: ranks are multiples of it, where the axes are long enough.
    """

    shape: tuple[int, ...]
    dtype: str
    stack: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...]
    multiple: int = 1

    @property
    def layers(self) -> int:
        return math.prod(self.shape[a] for a in self.stack)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Entries of the own axes of each factor."""
        return tuple(math.prod(self.shape[a] for a in group) for group in self.groups)

    @property
    def names(self) -> tuple[str, ...]:
        return ("left", "right") if len(self.groups) == 2 else ("left", "core", "right")

    @property
    def places(self) -> tuple[int, ...]:
        """The leaf's axes in the order of stack and factors."""
        return (*self.stack, *(a for group in self.groups for a in group))

    @property
    def full(self) -> tuple[int, ...]:
        """The largest ranks."""
        left, right = self.lengths[0], self.lengths[-1]
        return (min(left, right),) if len(self.groups) == 2 else (left, right)

    def ranks(self, level: int) -> tuple[int, ...]:
        """The ranks of a level, 1 to ``min(full)``: of Tucker's two the smaller, and the other in proportion."""
        least, even = min(self.full), lambda n: self.multiple * math.ceil(n / self.multiple)
        return tuple(min(n, even(math.ceil(level * n / least))) for n in self.full)

    def entries(self, ranks: tuple[int, ...]) -> int:
        """Of all factors."""
        return self.layers * sum(math.prod(shape) for shape in self._sizes(ranks))

    def _sizes(self, ranks: tuple[int, ...]) -> list[tuple[int, ...]]:
        ends = (1, *ranks, 1)
        return [(before, own, after) for before, own, after in zip(ends, self.lengths, ends[1:])]

    def nbytes(self, ranks: tuple[int, ...]) -> int:
        return self.entries(ranks) * jnp.dtype(self.dtype).itemsize

    def options(self) -> list[tuple[int, ...]]:
        """The ranks that take fewer entries than the leaf, smallest first."""
        found = dict.fromkeys(self.ranks(level) for level in range(1, min(self.full) + 1))
        return [ranks for ranks in found if self.entries(ranks) < math.prod(self.shape)]

    def shapes(self, ranks: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Of the factors."""
        stack = [self.shape[a] for a in self.stack]
        ends = [(), *((r,) for r in ranks), ()]
        return [
            (*stack, *before, *(self.shape[a] for a in own), *after) for before, own, after in zip(ends, self.groups, ends[1:])
        ]

    def tensor(self, factors: Any) -> LowRank:
        """The factors as a tensor of the leaf's shape and dtype."""
        order = layout.trimmed(self.places, len(self.places))
        return LowRank(tuple(factors), tuple(map(len, self.groups)), order, self.dtype)

    def roles(self) -> list[Roles]:
        """Of the axes of each factor: it reads the rank before, or the leaf's inputs, and gives the rank after."""
        made, n = [], len(self.stack)
        for k, group in enumerate(self.groups):
            last = k + 1 == len(self.groups)
            ndim = n + len(group) + (k > 0) + (not last)
            inputs = (n,) if last else tuple(range(n, ndim - 1))
            made.append(Roles(tuple(range(n)), inputs, tuple(a for a in range(n, ndim) if a not in inputs)))
        return made

    def macs(self, ranks: tuple[int, ...], strides: tuple[int, ...]) -> float:
        """Multiply-accumulates over those of the whole leaf, whose window moves by ``strides``."""
        if not strides or not self.moves:
            return self.entries(ranks) / math.prod(self.shape)
        # what runs before the window has moved along an axis runs at more places
        more = [math.prod(strides)] if len(self.groups) == 3 else [math.prod(strides[1:])]
        weights = [*more, *[1] * (len(self.groups) - 1)]
        return self.layers * sum(w * math.prod(s) for w, s in zip(weights, self._sizes(ranks))) / math.prod(self.shape)

    @property
    def moves(self) -> bool:
        """Whether a window lies in more than the first factor."""
        return len(self.groups) == 3 or len(self.groups[-1]) > 1


def form_of(leaf: Any, roles: Roles, info: ModelInfo, path: str, form: str, multiple: int) -> Form | str:
    """The factoring of a leaf, or why it has none."""
    stack, inputs, outputs = roles.stack, roles.input, roles.output
    if sorted((*stack, *inputs, *outputs)) != list(range(leaf.ndim)):
        return "some of its axes are neither inputs nor outputs, or both"
    if not (inputs and outputs):
        return "a matrix needs inputs and outputs"
    apart = next((s for s in sites_of(info, path) if s.kind == "conv" and s.params["feature_group_count"] != 1), None)
    if apart is not None:
        return f"the convolution {apart.name} keeps {apart.params['feature_group_count']} groups apart, in one axis"
    groups: tuple[tuple[int, ...], ...] = (inputs, outputs)
    window = tuple(a for a in roles.window if leaf.shape[a] > 1)
    features = tuple(a for a in inputs if a not in window)
    if window and form == "spatial":
        groups = (tuple(sorted((*features, window[0]))), tuple(sorted((*window[1:], *outputs))))
    elif window and form == "tucker":
        groups = (features, window, outputs)
    return Form(tuple(leaf.shape), jax.dtypes.canonicalize_dtype(leaf.dtype).name, stack, groups, multiple)


def sites_of(info: ModelInfo, path: str) -> Iterator[Site]:
    """The sites that multiply with a leaf."""
    return (site for site, _ in info.sites_of(path) if site.kind != "gather")


@functools.lru_cache(maxsize=256)
def laid(matrix: Matrix, form: Form) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Where the layers and the inputs of a leaf lie in the matrix of its site: ``(layers, inputs)``, each in the leaf's order.

    None where an input of the matrix is not one of the leaf's, or a statistic of it has other layers.
    """
    stack, inputs, outputs = (math.prod(form.shape[a] for a in axes) for axes in (form.stack, *form.groups))
    numbers = np.arange(1, stack * inputs * outputs + 1).reshape([form.shape[a] for a in form.places])
    with jax.ensure_compile_time_eval():
        read = np.asarray(matrix(jnp.asarray(numbers.transpose(np.argsort(form.places)), jnp.int32)))
    read = read.reshape(-1, *matrix.shape[-2:])
    at, there = read - 1, read > 0
    layer, entry = at // (inputs * outputs), at // outputs % inputs

    def one(values: np.ndarray, axes: tuple[int, ...]) -> np.ndarray | None:
        low = np.min(np.where(there, values, values.max(initial=0) + 1), axes)
        high = np.max(np.where(there, values, -1), axes)
        return low if (low == high).all() else None

    layers, rows = one(layer, (1, 2)), one(entry, (0, 2))
    if layers is None or rows is None or len(layers) != stack or len(rows) != inputs:
        return None
    if sorted(layers) != list(range(stack)) or sorted(rows) != list(range(inputs)):
        return None
    return tuple(np.argsort(layers).tolist()), tuple(np.argsort(rows).tolist())


def placed(form: Form, leaf: Any, learnt: dict[str, Any]) -> dict[str, Any]:
    """The factors on the devices of the leaf, each sharded along the axes that it has of it; under ``jit`` as they are."""
    sharding = None if isinstance(leaf, jax.core.Tracer) else getattr(leaf, "sharding", None)
    if not isinstance(sharding, jax.sharding.NamedSharding):
        return learnt
    parts = learnt["factors"]
    specs = form.tensor([parts[name] for name in form.names]).spec(sharding.spec, sharding.mesh).factors
    place = lambda x, spec: jax.device_put(x, jax.sharding.NamedSharding(sharding.mesh, spec))
    return {**learnt, "factors": {name: place(parts[name], spec) for name, spec in zip(form.names, specs, strict=True)}}


def info(form: Form) -> ModelInfo:
    """What is known of the factors."""
    return ModelInfo(roles=dict(zip(form.names, form.roles(), strict=True)))


def stored(x: Any, form: Form) -> Any:
    """A factor in the leaf's dtype, packed or not: what is seen of it is rounded so as well."""
    made = x.cast(jnp.dtype(form.dtype)) if is_compressed(x) else x.astype(form.dtype)
    return x.densify().astype(form.dtype) if made is NotImplemented else made


def masked(form: Form, parts: Mapping[str, Any], ranks: Any) -> dict[str, Any]:
    """The factors with zeros beyond the ranks."""
    if ranks is None:
        return dict(parts)
    made, n = [parts[name] for name in form.names], len(form.stack)
    for k in range(len(made) - 1):
        on = jnp.arange(made[k].shape[-1]) < ranks[k]
        for j, axis in ((k, made[k].ndim - 1), (k + 1, n)):
            made[j] = jnp.where(on.reshape([-1 if a == axis else 1 for a in range(made[j].ndim)]), made[j], 0.0)
    return dict(zip(form.names, made, strict=True))


@partial(jax.jit, static_argnums=(0, 1, 4, 5))
def solved(form: Form, matrix: Any, leaf: Any, own: Any, damping: float, chosen: bool) -> tuple[Any, Any]:
    """What factors of any rank are made of, and of each layer the share of the energy that each option loses."""
    w = leaf.astype(jnp.float32).transpose(form.places).reshape(form.layers, *form.lengths)
    if len(form.groups) == 3:
        if not chosen:
            return w, None
        first, last = (numerics.kept(x) for x in jax.vmap(numerics.modes)(w))
        at = np.asarray(form.options()) - 1
        return w, 2.0 - first[:, at[:, 0]] - last[:, at[:, 1]]
    if own is not None:
        place = laid(matrix, form)
        assert place is not None
        layers, inputs = map(np.asarray, place)
        own = jnp.real(own).reshape(form.layers, *own.shape[len(matrix.stack) :])[layers]
        own = own[:, inputs] if own.ndim == 2 else own[:, inputs][:, :, inputs]
    left, right, energies = jax.vmap(lambda w, g: numerics.factored(w, g, damping))(w, own)
    at = np.asarray(form.options()).reshape(-1) - 1
    return (left, right), 1.0 - numerics.kept(energies)[:, at] if chosen else None


@partial(jax.jit, static_argnums=(0, 1))
def factors(form: Form, width: tuple[int, ...], basis: Any, ranks: Any) -> list[Any]:
    """Float32 factors of ranks ``width``, of which ``ranks`` count."""
    if len(form.groups) == 3:
        widths = width[0], width[1]
        made: tuple[Any, ...] = jax.vmap(lambda w: numerics.tucker(w, widths, ranks))(basis)
    else:
        made = basis[0][:, :, : width[0]], basis[1][:, : width[0]]
    return [x.reshape(shape) for x, shape in zip(made, form.shapes(width), strict=True)]


@partial(jax.jit, static_argnums=(0, 1))
def shared(costs: tuple[tuple[float, ...], ...], budget: float, losses: list[Any]) -> Any:
    return shares.shared(losses, [np.asarray(own) for own in costs], budget)
