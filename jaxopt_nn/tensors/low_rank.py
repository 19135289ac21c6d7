"""A chain of factors: matrices of low rank, and kernels as two or three smaller ones."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec

from jaxopt_nn.numerics import named
from jaxopt_nn.tensors import kernels, layout, operations
from jaxopt_nn.tensors.base import Tensor
from jaxopt_nn.tensors.packed import are_counts, float_name, float_of, is_float, is_order, require


@partial(jax.tree_util.register_dataclass, data_fields=["factors"], meta_fields=["axes", "order", "float_dtype"])
@dataclasses.dataclass(frozen=True)
class LowRank(Tensor):
    """The product of a chain of factors, each of which has axes of the weight, and a rank in common with its neighbours.

    Two factors: ``w[s, i, o] = sum_r left[s, i, r] right[s, r, o]``. Each axis of the weight lies in one factor, so of a kernel
    ``[h, w, i, o]`` there are the channel form ``[h, w, i, r] [r, o]``, the spatial one ``[h, i, r] [r, w, o]`` and Tucker's
    ``[i, r] [r, h, w, q] [q, o]``. Products with activations run through the factors, where that takes fewer
    multiply-accumulates than to multiply the factors first.

    What an operation gives equals it on ``densify()`` up to the order of sums: 1e-6 of the largest entry in float32.

    Attributes:
      factors: arrays or compressed tensors ``[S..., rank before, own axes..., rank after]``; the first has no rank before, the
        last none after.
      axes: how many own axes each factor has.
      order: which axis of the weight each trailing axis of ``[S..., own of the first..., own of the next...]`` is (negative
        numbers); None: in order.
      float_dtype: name of the dtype that ``densify`` gives; products of the factors are summed in float32.

    Example:
      >>> left, right = jnp.array([[1.0], [2.0]]), jnp.array([[3.0, 4.0, 5.0]])
      >>> w = jn.LowRank((left, right))
      >>> w.densify()
      Array([[ 3.,  4.,  5.],
             [ 6.,  8., 10.]], dtype=float32)
      >>> w.shape, w.ranks, w.nbytes
      ((2, 3), (1,), 20)
    """

    factors: tuple[Any, ...]
    axes: tuple[int, ...] = (1, 1)
    order: tuple[int, ...] | None = None
    float_dtype: str = "float32"

    def __post_init__(self) -> None:
        """Raises ValueError where ``float_dtype`` is no float: no file would hold such a tensor."""
        object.__setattr__(self, "float_dtype", float_name(self.float_dtype, type(self).__name__))
        if isinstance(self.factors, list):
            object.__setattr__(self, "factors", tuple(self.factors))

    # -- what it is ----------------------------------------------------------------------------------------------------

    @property
    def stacked(self) -> int:
        """How many stack axes each factor leads with."""
        return self.factors[0].ndim - self.axes[0] - (len(self.factors) > 1)

    @property
    def places(self) -> tuple[int, ...]:
        """The weight's axis that each of ``[S..., own of the first..., own of the next...]`` is."""
        n, tail = self.stacked + sum(self.axes), self.order or ()
        return (*range(n - len(tail)), *(n + a for a in tail))

    def names(self, k: int) -> named.Names:
        """What the axes of factor ``k`` are: numbers for the weight's axes, ``r0``, ``r1`` for the ranks."""
        places, n = self.places, self.stacked
        start = n + sum(self.axes[:k])
        before = (f"r{k - 1}",) if k else ()
        after = (f"r{k}",) if k + 1 < len(self.factors) else ()
        return (*places[:n], *before, *places[start : start + self.axes[k]], *after)

    @property
    def named(self) -> list[named.Named]:
        """The factors with the names of their axes."""
        return [(factor, self.names(k)) for k, factor in enumerate(self.factors)]

    @property
    def lengths(self) -> dict[Any, int]:
        """Of the weight's axes and of the ranks, by name."""
        return {name: n for factor, names in self.named for name, n in zip(names, factor.shape, strict=True)}

    @property
    def shape(self) -> tuple[int, ...]:
        lengths = self.lengths
        return tuple(lengths[a] for a in range(len(self.places)))

    @property
    def ranks(self) -> tuple[int, ...]:
        """Between each factor and the next."""
        return tuple(factor.shape[-1] for factor in self.factors[:-1])

    @property
    def dtype(self) -> Any:
        return float_of(self.float_dtype)

    @property
    def format(self) -> str:
        return f"{type(self).__name__}({operations.formats(self.factors)})"

    def describe(self) -> str:
        """``rank 8, float32``: the ranks, and what the factors are."""
        return f"rank {' and '.join(map(str, self.ranks))}, {operations.described(self.factors)}"

    def map_parts(self, fn: Callable[[Any], Any]) -> LowRank:
        return dataclasses.replace(self, factors=tuple(map(fn, self.factors)))

    def expand(self) -> LowRank:
        return operations.expanded(self, self.factors)

    def densify(self) -> Array:
        first, *others = [(operations.dense(f).astype(jnp.float32), names) for f, names in self.named]
        weight = range(self.ndim)
        total, names = named.in_turn(first, others, weight, lambda x, y, dims, last: operations.exact(x, y, dims))
        return total.transpose([names.index(a) for a in weight]).astype(self.dtype)

    def check(self) -> None:
        """Numbers of axes come first: a file may claim more than memory holds, and ``places`` counts them all."""
        factors, own = self.factors, self.axes
        counts = isinstance(factors, tuple) and len(factors) > 0 and are_counts(own, 0) and len(own) == len(factors)
        require(counts, self, f"axes={own!r}")
        shapes, last = [tuple(f.shape) for f in factors], len(factors) - 1
        n = len(shapes[0]) - own[0] - (last > 0)
        fits = n >= 0 and all(len(s) == n + a + (k > 0) + (k < last) for k, (s, a) in enumerate(zip(shapes, own)))
        require(fits and len({s[:n] for s in shapes}) == 1, self, f"axes={own} of factors {shapes}")
        joined = all(a[-1] == b[n] for a, b in itertools.pairwise(shapes))
        require(joined, self, f"the factors {shapes} have no ranks in common")
        ndim = n + sum(own)
        ordered = is_order(self.order, ndim) and len(self.order or ()) <= ndim
        require(ordered and sorted(self.places) == list(range(ndim)), self, f"order={self.order!r} of {ndim} axes")
        require(is_float(self.float_dtype), self, f"float_dtype={self.float_dtype!r}")
        super().check()

    # -- products ------------------------------------------------------------------------------------------------------

    def dot_general(self, other: Any, dims: Any, side: int, product: Callable[..., Any]) -> Any:
        call = _Dot.of(self, other, dims, side)
        through, dense = call.costs()
        if min(through) >= dense:
            return NotImplemented
        total, names = named.in_turn((other, call.other), call.way(self.named), call.out, product)
        return total.transpose([names.index(a) for a in call.out])

    def conv(self, lhs: Any, params: Mapping[str, Any], product: Callable[..., Any]) -> Any:
        chain = kernels.steps(self, params)
        if chain is NotImplemented:
            return NotImplemented
        through, dense = kernels.costs(self, lhs.shape, chain, params)
        back = chain[0][0] > 0
        made = [(kernels.kernel(self, k, params, back), step) for k, step in chain]
        if through >= dense or any(kernel is NotImplemented for kernel, _ in made):
            return NotImplemented
        for n, (kernel, step) in enumerate(made, 1):
            lhs = product(lhs, kernel, step, n == len(made))
        return lhs

    # -- layout --------------------------------------------------------------------------------------------------------

    def _with(self, factors: Any, axes: Sequence[int] | None = None, places: Sequence[int] | None = None) -> Any:
        """The same tensor with other factors; ``places`` name the new weight's axes from the start."""
        if factors is NotImplemented:
            return NotImplemented
        order = self.order if places is None else layout.trimmed(places, len(places))
        return dataclasses.replace(self, factors=factors, axes=tuple(axes or self.axes), order=order)

    def _each(self, operation: str, *by_axis: Sequence[Any], whole: Sequence[Callable[[int], Any]]) -> Any:
        """An operation that gets an entry for each axis: the weight's own, of ranks ``whole`` of their length."""
        args = []
        for factor, names in self.named:
            pick = lambda values, rank, f=factor, ns=names: [
                values[a] if isinstance(a, int) else rank(n) for a, n in zip(ns, f.shape, strict=True)
            ]
            args.append([pick(values, rank) for values, rank in zip(by_axis, whole, strict=True)])
        return self._with(operations.on_each(self.factors, operation, args))

    def cast(self, dtype: Any) -> Any:
        """Of a wider dtype the product is rounded once: from bfloat16 to float32 it is what it was before rounding."""
        if not jnp.issubdtype(dtype, jnp.floating):
            return NotImplemented
        return dataclasses.replace(self, float_dtype=jnp.dtype(dtype).name)

    def leading(self) -> Any:
        if not self.stacked or self.places[0] != 0:
            return NotImplemented
        return self._with(operations.on_each(self.factors, "leading", [()] * len(self.factors)))

    def transpose(self, permutation: Sequence[int]) -> LowRank:
        """Factors stay where they are; ``order`` says what their axes now are."""
        moved = {a: i for i, a in enumerate(permutation)}
        return self._with(self.factors, None, [moved[a] for a in self.places])

    def slice(self, start: Sequence[int], limit: Sequence[int], strides: Sequence[int] | None = None) -> Any:
        zero, one, length = lambda n: 0, lambda n: 1, lambda n: n
        return self._each("slice", start, limit, strides or [1] * self.ndim, whole=(zero, length, one))

    def dynamic_slice(self, starts: Sequence[Any], sizes: Sequence[int]) -> Any:
        return self._each("dynamic_slice", starts, sizes, whole=(lambda n: 0, lambda n: n))

    def rev(self, dimensions: Sequence[int]) -> Any:
        args = [([p for p, a in enumerate(names) if a in dimensions],) for _, names in self.named]
        return self._with(operations.on_each(self.factors, "rev", args))

    def index(self, i: Any, axis: int) -> Any:
        axis = axis % self.ndim
        return self._replaced("index", axis, 0, lambda at: (i, at))

    def take(self, indices: Any, axis: int) -> Any:
        indices, axis = layout.wide_indices(indices), axis % self.ndim
        return self._replaced("take", axis, indices.ndim, lambda at: (indices, at))

    def _replaced(self, operation: str, axis: int, count: int, args: Callable[[int], Any]) -> Any:
        """An operation on the factors that have an axis, in whose place ``count`` axes come."""
        factors, axes = [], list(self.axes)
        for k, (factor, names) in enumerate(self.named):
            factors.append(operations.on(factor, operation, *args(names.index(axis))) if axis in names else factor)
            if axis in names and axis not in self.places[: self.stacked]:
                axes[k] += count - 1
        if any(f is NotImplemented for f in factors):
            return NotImplemented
        later = lambda a: a + (count - 1) * (a > axis)
        spread = lambda a: range(axis, axis + count) if a == axis else (later(a),)
        return self._with(tuple(factors), axes, [b for a in self.places for b in spread(a)])

    def reshape(self, shape: Sequence[int]) -> Any:
        """NotImplemented where axes of different factors, or of the stack and of a factor, become one."""
        return _reshaped(self, tuple(shape)) if 0 not in (*self.shape, *shape) else NotImplemented

    def cut(self, axis: int, keep: Any) -> Any:
        axis, n = axis % self.ndim, self.shape[axis % self.ndim]
        keep = [int(k) for k in keep]
        if not keep or min(keep) < 0 or max(keep) >= n:
            raise ValueError(f"cut: axis {axis} has {n} entries; keep at least one of 0 to {n - 1}, not {keep}")
        return self._replaced("cut", axis, 1, lambda at: (at, jnp.asarray(keep)))

    def spec(self, partition: PartitionSpec, mesh: Any = None) -> Any:
        """The specs of the factors of a weight that is sharded by ``partition``; ranks are whole on each device."""
        entries = (*partition, *[None] * (self.ndim - len(partition)))
        args = [
            (PartitionSpec(*(entries[a] if isinstance(a, int) else None for a in names)), mesh) for _, names in self.named
        ]
        return self._with(operations.on_each(self.factors, "spec", args))


@dataclasses.dataclass(frozen=True)
class _Dot:
    """A dot of a chain of factors with an array: the names of the array's axes and of the result's, in order.

    A contracted or batch axis has the number of the weight's axis that it goes with.
    """

    tensor: LowRank
    other: named.Names
    out: named.Names
    sizes: Mapping[Any, int]

    @classmethod
    def of(cls, tensor: LowRank, other: Any, dims: Any, side: int) -> _Dot:
        contracted, batch = ((tuple(pair[side]), tuple(pair[1 - side])) for pair in dims)
        own = dict(zip((*contracted[1], *batch[1]), (*contracted[0], *batch[0]), strict=True))
        names = tuple(own.get(a, f"x{a}") for a in range(len(other.shape)))
        free = [a for a in range(tensor.ndim) if a not in (*contracted[0], *batch[0])]
        rows = [name for name in names if isinstance(name, str)]
        out = (*batch[0], *((*rows, *free) if side else (*free, *rows)))
        return cls(tensor, names, out, dict(zip(names, other.shape, strict=True)) | tensor.lengths)

    def costs(self) -> tuple[list[int], int]:
        """Multiply-accumulates through the factors, from the first on and from the last on; and of the product of the factors
        and of it with the array. A length that a trace leaves open counts as many."""
        sizes = {name: n if isinstance(n, int) else 2**31 for name, n in self.sizes.items()}
        names, weight = [own for _, own in self.tensor.named], tuple(range(self.tensor.ndim))
        through = [named.macs(self.other, way, self.out, sizes) for way in (names, names[::-1])]
        building = named.macs(names[0], names[1:], weight, sizes)
        return through, building + named.macs(self.other, [weight], self.out, sizes)

    def way(self, factors: list[named.Named]) -> list[named.Named]:
        """The factors in the cheaper order."""
        (forth, back), _ = self.costs()
        return factors if forth <= back else factors[::-1]


def _reshaped(tensor: LowRank, shape: tuple[int, ...]) -> Any:
    """The tensor with its weight reshaped; NotImplemented where that joins axes of different factors."""
    old = tensor.shape
    longer = [a for a, length in enumerate(old) if length > 1]
    target = [a for a, length in enumerate(shape) if length > 1]
    units = [a for a, length in enumerate(shape) if length == 1]
    stack = tensor.places[: tensor.stacked]
    owners = {a: k for k, (_, names) in enumerate(tensor.named) for a in names} | dict.fromkeys(stack, -1)
    made: dict[int, list[int]] = {k: [] for k in range(-1, len(tensor.factors))}
    for left, right in layout.blocks([old[a] for a in longer], [shape[a] for a in target]):
        behind = {owners[longer[i]] for i in left}
        if len(behind) != 1:
            return NotImplemented
        made[behind.pop()] += [target[j] for j in right]
    made[0] = [*units, *made[0]]
    factors = []
    for k, (factor, names) in enumerate(tensor.named):
        lead, own = (sorted(a for a in names if a in longer and owners[a] == owner) for owner in (-1, k))
        ranks = [name for name in names if isinstance(name, str)]
        before, after = ranks[: int(k > 0)], ranks[int(k > 0) :]
        order = [*lead, *before, *own, *after]
        order += [name for name in names if name not in order]
        turned = operations.on(factor, "transpose", [names.index(name) for name in order])
        lengths = lambda names: [tensor.lengths[name] for name in names]
        new = [*(shape[a] for a in made[-1]), *lengths(before), *(shape[a] for a in made[k]), *lengths(after)]
        factors.append(turned if turned is NotImplemented else operations.on(turned, "reshape", new))
    if any(f is NotImplemented for f in factors):
        return NotImplemented
    axes = [len(made[k]) for k in range(len(factors))]
    return tensor._with(tuple(factors), axes, [a for k in range(-1, len(factors)) for a in made[k]])
