"""Dims: what the axes of a program's values are made of.

An axis is None (length one), or a ``Dim``: an **atom**, a **product** of dims (a reshape merges axes, outer first), a
**sum** of dims (a concatenation), or a **map** of a dim (its entries in another order, some perhaps more than once). Dims that
an operation ties become the same dim; where their structures differ the atoms are refined until they agree: an atom of 12 that
is tied to a product 3 x 4 becomes that product. Structures that can't agree (3 x 4 and 4 x 3) are pinned: none of their atoms
may be cut.

Cost grows with the number of operations and, but for maps, not with the lengths of axes.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

_AGES = itertools.count()


class Dim:
    """A length with an identity; unions, products and sums are made by ``tie``, ``product`` and ``total``.

    Attributes:
      size: number of entries.
      kind: ``atom``, ``same`` (as its one part), ``reverse`` (of its one part, an atom), ``map`` (of its one part), ``product``
        or ``sum``.
      parts: of the other five.
      index: int, of a map: which entry of the part each entry is; each of them is there.
      cut, shard: of an atom, the reason why it may not be cut or sharded, or None.
    """

    __slots__ = ("age", "cut", "index", "kind", "parts", "shard", "size")

    def __init__(self, size: Any, kind: str = "atom", parts: tuple[Dim, ...] = (), index: Any = None):
        self.size, self.kind, self.parts, self.index = size, kind, parts, index
        self.age = next(_AGES)
        self.cut: str | None = None
        self.shard: str | None = None

    def __repr__(self) -> str:
        own = root(self)
        if own.kind == "atom":
            return f"d{own.age}:{own.size}"
        if own.kind in ("reverse", "map"):
            return f"{'-' if own.kind == 'reverse' else 'map '}{own.parts[0]!r}"
        return f"({(' x ' if own.kind == 'product' else ' + ').join(map(repr, own.parts))})"


#: None: an axis of length one, which is no dim.
Axis = Dim | None
Axes = tuple[Axis, ...]


def fresh(shape: Iterable[Any], reason: str | None = None) -> Axes:
    """New atoms for the axes of a shape, pinned where there is a reason."""
    axes = tuple(None if n == 1 else Dim(n) for n in shape)
    if reason is not None:
        for axis in axes:
            pin(axis, reason)
    return axes


def root(dim: Dim) -> Dim:
    """The dim that this one has become."""
    while dim.kind == "same":
        (up,) = dim.parts
        if up.kind == "same":
            dim.parts = up.parts
        dim = up
    if dim.kind == "map" and (inner := root(dim.parts[0])) is not dim.parts[0]:
        return _composed(inner, dim)
    if dim.kind == "reverse" and (inner := root(dim.parts[0])).kind != "atom":
        return root(_reversed(inner, dim))
    return dim


def reverse(axis: Axis) -> Axis:
    """The axis from its last entry to its first."""
    return None if axis is None else root(Dim(axis.size, "reverse", (axis,)))


def _reversed(inner: Dim, dim: Dim) -> Dim:
    """Makes ``dim``, the reverse of a compound, a compound of reverses."""
    if inner.kind == "reverse":
        dim.kind, dim.parts = "same", inner.parts
        return dim
    if inner.kind == "map":
        dim.kind, dim.parts, dim.index = "map", inner.parts, inner.index[::-1]
        return dim
    parts = tuple(Dim(p.size, "reverse", (p,)) for p in inner.parts)
    dim.kind, dim.parts = inner.kind, parts[::-1] if inner.kind == "sum" else parts
    return dim


def mapped(axis: Dim, index: np.ndarray) -> Dim:
    """The dim whose entry i is entry ``index[i]`` of the axis, each of them at least once."""
    return _composed(root(axis), Dim(len(index), "map", (), index))


def _composed(inner: Dim, dim: Dim) -> Dim:
    """Makes ``dim`` a map of what lies behind ``inner``, or the same as that."""
    if inner.kind == "map":
        dim.index, inner = inner.index[dim.index], root(inner.parts[0])
    elif inner.kind == "reverse":
        dim.index, inner = inner.size - 1 - dim.index, root(inner.parts[0])
    dim.parts = (inner,)
    if dim.size == inner.size and np.array_equal(dim.index, np.arange(dim.size)):
        dim.kind, dim.index = "same", None
        return inner
    return dim


def single(axis: Axis) -> Dim | None:
    """The atom of which an axis is all entries, each once and in any order."""
    if axis is None:
        return None
    dim = root(axis)
    if dim.kind == "reverse" or (dim.kind == "map" and dim.size == dim.parts[0].size):
        dim = root(dim.parts[0])
    return dim if dim.kind == "atom" else None


def atoms(axis: Axis) -> list[Dim]:
    """The atoms of an axis, in order, each as often as it stands there."""
    if axis is None:
        return []
    dim = root(axis)
    return [dim] if dim.kind == "atom" else [a for part in dim.parts for a in atoms(part)]


def pin(axis: Axis, reason: str, *, shard: bool = False) -> None:
    """None of the axis' atoms may be cut, nor, with ``shard``, sharded; the first reason stays."""
    for atom in atoms(axis):
        atom.cut = atom.cut or reason
        if shard:
            atom.shard = atom.shard or reason


def product(dims: Iterable[Axis]) -> Axis:
    """Axes merged into one, outer first."""
    parts = [f for d in dims if d is not None for f in factors(d)]
    if len(parts) < 2:
        return parts[0] if parts else None
    return Dim(math.prod(p.size for p in parts), "product", tuple(parts))


def total(dims: Iterable[Axis]) -> Axis:
    """Axes one behind the other; those of length one get an atom of their own."""
    parts = [s for d in dims for s in _segments(Dim(1) if d is None else d)]
    return parts[0] if len(parts) == 1 else Dim(sum(p.size for p in parts), "sum", tuple(parts))


def tie(a: Axis, b: Axis, reason: str) -> None:
    """Makes two axes one, entry by entry; where their structures can't agree both are pinned with the reason."""
    if a is None or b is None or _unify(a, b):
        return
    for axis in (a, b):
        pin(axis, reason, shard=True)


def halves(axis: Dim, at: Any) -> tuple[Dim, Dim] | None:
    """The entries before ``at`` and those from there on, both of at least one; None where its structure has no such border."""
    dim = root(axis)
    if dim.kind == "atom":
        left, right = Dim(at), Dim(dim.size - at)
        _refine(dim, "sum", (left, right))
        return left, right
    if dim.kind == "reverse":
        halves(dim.parts[0], dim.size - at)
        left, right = root(dim).parts
        return left, right
    if dim.kind == "map":
        (inner,), sides = dim.parts, np.split(dim.index, [at])
        if all(len(np.unique(side)) == inner.size for side in sides):
            return mapped(inner, sides[0]), mapped(inner, sides[1])
        return None if (own := _turned(dim)) is None else halves(own, at)
    if dim.kind == "product":
        first, *rest = factors(dim)
        inner = math.prod(f.size for f in rest)
        if at % inner or (cut := halves(first, at // inner)) is None:
            return None
        return _product([cut[0], *rest]), _product([cut[1], *rest])
    before: list[Dim] = []
    for i, part in enumerate(parts := _segments(dim)):
        if at == 0:
            return _total(before), _total(parts[i:])
        if part.size > at:
            if (cut := halves(part, at)) is None:
                return None
            return _total([*before, cut[0]]), _total([cut[1], *parts[i + 1 :]])
        before.append(part)
        at -= part.size
    raise AssertionError("a border outside of the axis")


def pieces(axis: Axis, sizes: Sequence[Any]) -> list[Axis] | None:
    """The axis cut into consecutive pieces of these sizes; None where its structure has no such borders."""
    left: list[Axis] = []
    rest: Axis = Dim(1) if axis is None else axis
    for n in sizes[:-1]:
        if n == 0:
            left.append(Dim(0))
            continue
        assert rest is not None
        if n == rest.size:  # empty ones follow
            left.append(rest)
            rest = Dim(0)
        elif (cut := halves(rest, n)) is None:
            return None
        else:
            left.append(cut[0])
            rest = cut[1]
    return [None if d is not None and d.size == 1 else d for d in (*left, rest)]


def reshaped(axes: Sequence[Axis], sizes: Sequence[Any]) -> Axes | None:
    """The axes of a reshape to ``sizes``, refining atoms where it splits them; None where their structure can't be followed."""
    left = deque(f for axis in axes if axis is not None for f in factors(axis))
    out: list[Axis] = []
    try:
        for n in sizes:
            own: list[Dim] = []
            while n != 1:
                if not left:
                    return None
                x = left.popleft()
                if x.size == n or (x.size < n and n % x.size == 0):
                    own.append(x)
                    n //= x.size
                    continue
                if x.size < n or x.size % n or (split := _factored(x, n)) is None:
                    return None
                own.append(split[0])
                left.extendleft(reversed(factors(split[1])))
                n = 1
            out.append(product(own))
    except jax.core.InconclusiveDimensionOperation:
        return None
    return tuple(out)


def factors(dim: Axis) -> list[Dim]:
    """The dims of which an axis is the product, outer first, those of length one left out; itself if it is none."""
    if dim is None:
        return []
    dim = root(dim)
    if dim.kind == "product":
        return [f for part in dim.parts for f in factors(part)]
    return [] if dim.size == 1 else [dim]


def _segments(dim: Dim) -> list[Dim]:
    dim = root(dim)
    return [s for part in dim.parts for s in _segments(part)] if dim.kind == "sum" else [dim]


def _total(parts: Sequence[Dim]) -> Dim:
    made = total(parts)
    assert made is not None
    return made


def _product(parts: Sequence[Dim]) -> Dim:
    """``product`` where one of length one is one that can't be left out."""
    return product(parts) or parts[0]


def _refine(atom: Dim, kind: str, parts: tuple[Dim, ...]) -> None:
    """An atom becomes what its parts are; they inherit its pins."""
    atom.kind, atom.parts = kind, parts
    for part in parts:
        for own in atoms(part):
            own.cut, own.shard = own.cut or atom.cut, own.shard or atom.shard


def _unify(a: Dim, b: Dim) -> bool:
    a, b = root(a), root(b)
    if a is b:
        return True
    if a.size != b.size:
        return False
    if "atom" in (a.kind, b.kind):
        # of two atoms the older one stays, so that the names of leaves' axes do
        young, old = (a, b) if b.kind != "atom" or (a.kind == "atom" and a.age > b.age) else (b, a)
        if any(part is young for part in atoms(old)):
            if old.kind == "map" and old.parts[0] is young:
                return _join(young, young, np.arange(young.size), old.index)
            return old.kind == "reverse" and _mirror(young)
        _refine(young, "same", (old,))
        return True
    if a.kind == "reverse":
        other = reverse(b)
        return other is not None and _unify(a.parts[0], other)
    if b.kind == "reverse":
        return _unify(b, a)
    if "map" in (a.kind, b.kind):
        return _unify_maps(a, b)
    if a.kind == b.kind == "product":
        return _align_products(deque(factors(a)), deque(factors(b)))
    return _align_sums(deque(_segments(a)), deque(_segments(b)))


def _mirror(atom: Dim) -> bool:
    """An atom that is its own reverse: each entry is tied to the one as far from the other end."""
    half = Dim(atom.size // 2)
    middle = [Dim(1)] * (atom.size % 2)
    _refine(atom, "sum", (half, *middle, Dim(half.size, "reverse", (half,))))
    return True


def _unify_maps(a: Dim, b: Dim) -> bool:
    if a.kind == b.kind:
        if np.array_equal(a.index, b.index):
            return _unify(a.parts[0], b.parts[0])
        if a.parts[0].kind == b.parts[0].kind == "atom":
            return _join(a.parts[0], b.parts[0], a.index, b.index)
    for one, other in ((a, b), (b, a)):
        if one.kind == "map" and (own := _turned(one)) is not None:
            return _unify(own, other)
    return "sum" in (a.kind, b.kind) and _align_sums(deque(_segments(a)), deque(_segments(b)))


def _turned(dim: Dim) -> Dim | None:
    """A map that is an atom in another order as an atom itself, of which the other one becomes the map; None: it is none."""
    inner = dim.parts[0]
    if inner.kind != "atom" or inner.size != dim.size:
        return None
    own = Dim(dim.size)
    own.age = inner.age
    _refine(inner, "same", (mapped(own, np.argsort(dim.index)),))
    return own


def _join(a: Dim, b: Dim, left: np.ndarray, right: np.ndarray) -> bool:
    """Atoms of which entries ``left[i]`` and ``right[i]`` are one for each i: both become maps of what is left of them."""
    from scipy.sparse import coo_array  # loaded here: they would slow down the import of the package
    from scipy.sparse.csgraph import connected_components

    a, b, left, right = (a, b, left, right) if a.age <= b.age else (b, a, right, left)
    n = a.size if a is b else a.size + b.size
    pairs = (left, right if a is b else a.size + right)
    _, label = connected_components(coo_array((np.ones(len(left)), pairs), (n, n)), directed=False)
    _, first, own = np.unique(label, return_index=True, return_inverse=True)
    label = np.argsort(np.argsort(first))[own]  # numbered as the entries of the older one are
    units = a if len(first) == a.size else Dim(len(first))
    for atom, index in ((a, label[: a.size]), *([] if a is b else [(b, label[a.size :])])):
        if atom is not units:
            _refine(atom, "same", (mapped(units, index),))
    return True


def _align_products(left: deque[Dim], right: deque[Dim]) -> bool:
    while left and right:
        x, y = root(left.popleft()), root(right.popleft())
        if x.kind == "product" or y.kind == "product":  # refined since
            left.extendleft(reversed(factors(x)))
            right.extendleft(reversed(factors(y)))
            continue
        if x.size == y.size:
            if not _unify(x, y):
                return False
            continue
        if x.size < y.size:
            x, y, left, right = y, x, right, left
        if x.size % y.size or (split := _factored(x, y.size)) is None or not _unify(split[0], y):
            return False
        left.extendleft(reversed(factors(split[1])))
    return not left and not right


def _align_sums(left: deque[Dim], right: deque[Dim]) -> bool:
    while left and right:
        x, y = root(left.popleft()), root(right.popleft())
        if x.size == y.size:
            if not _unify(x, y):
                return False
            continue
        if x.size < y.size:
            x, y, left, right = y, x, right, left
        if (cut := halves(x, y.size)) is None or not _unify(cut[0], y):
            return False
        left.appendleft(cut[1])
    return not left and not right


def _factored(dim: Dim, outer: Any) -> tuple[Dim, Dim] | None:
    """The dim as a product of ``outer`` and the rest, both above one; None where it is none."""
    dim = root(dim)
    inner = dim.size // outer
    if dim.kind == "atom":
        parts = Dim(outer), Dim(inner)
        _refine(dim, "product", parts)
        return parts
    if dim.kind == "product":
        made = reshaped([dim], (outer, inner))
        return None if made is None or None in made else made  # type: ignore[return-value]
    if dim.kind == "reverse":
        _factored(dim.parts[0], outer)
        first, second = root(dim).parts
        return first, second
    if dim.kind == "map":
        return None if (own := _turned(dim)) is None else _factored(own, outer)
    same = pieces(dim, [inner] * outer)
    if same is None:
        return None
    for other in same[1:]:
        if same[0] is not None and other is not None and not _unify(same[0], other):
            return None
    place = Dim(outer)  # which of the pieces
    pin(place, "tells the parts of a concatenation apart")
    return None if same[0] is None else (place, same[0])
