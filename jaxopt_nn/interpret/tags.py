"""Tags: which leaves lie behind a value, and how their entries came to lie where they lie.

An operation that only moves entries (transpose, reshape, broadcast, slice, split, one layer of a stack, ...) keeps a value the
leaf that it was, and adds its step (``core.matrix``). One that works entry by entry makes a value that is *derived* from
leaves whose entries still lie at known places. Any other makes a value of which only the leaves are known, or an activation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxopt_nn.core.matrix import Broadcast, Embed, Reshape, Reverse, Slice, Step, Transpose, Unstack
from jaxopt_nn.interpret import jaxprs
from jaxopt_nn.interpret.primitives import ELEMENTWISE

#: An equation's address: its index in the top jaxpr, then in each inner one (a body's position stands between).
Key = tuple[int, ...]
Axes = tuple[frozenset[int], ...]
NONE: frozenset[Any] = frozenset()


class Source(NamedTuple):
    """A leaf behind a value.

    Attributes:
      path, shape: of the leaf.
      axes: for each axis of the value, the axes of the leaf behind it; None: not known.
      stack: axes of the leaf that a loop or an index has already taken away.
      exact: the value is this leaf, up to layout and casts.
      steps: from the leaf to the value; None: not known, for the reason ``lost``.
      slots: for each ``Unstack`` among the steps, in their order, the address of the equation that takes the entry and the
        length of the axis; kept where the steps are not known.
    """

    path: str
    shape: tuple[int, ...]
    axes: Axes | None
    stack: frozenset[int] = NONE
    exact: bool = True
    steps: tuple[Step, ...] | None = ()
    slots: tuple[tuple[Key, int], ...] = ()
    lost: str = ""

    @property
    def known(self) -> Axes:
        """The axes, where they are known."""
        assert self.axes is not None
        return self.axes

    def moved(self, axes: Sequence[frozenset[int]], *steps: Step) -> Source:
        """After an operation that moves entries."""
        known = None if self.steps is None else (*self.steps, *steps)
        return self._replace(axes=tuple(axes), steps=known)

    def derived(self, lost: str = "") -> Source:
        """After an operation on the entries, which stay where they are; ``lost``: why their places are not known any more."""
        if lost:
            return self._replace(exact=False, steps=None, lost=self.lost or lost)
        return self._replace(exact=False)

    def unknown(self, lost: str) -> Source:
        return self.derived(lost)._replace(axes=None)

    def taken(self, *slots: tuple[Key, int]) -> Source:
        """After loops or indices that take single entries."""
        return self._replace(slots=(*self.slots, *slots))


class Tag(NamedTuple):
    """What is known of a value.

    Attributes:
      sources: the leaves that it is computed from, with no activation in the computation.
      dynamic: it depends on the inputs of ``apply``; then there are no sources.
      consts: constants of the trace (by position) that it is computed from.
      rows: of a dynamic value, for each axis the axes of the inputs that it runs along (``rows``); () where nothing is known.
      value: names the value: equal for two uses of it.
    """

    sources: tuple[Source, ...] = ()
    dynamic: bool = False
    consts: frozenset[int] = NONE
    rows: Axes = ()
    value: Any = None

    @property
    def leaf(self) -> str | None:
        """The path of the leaf that the value is, up to layout."""
        return self.sources[0].path if len(self.sources) == 1 and self.sources[0].exact else None

    @property
    def paths(self) -> frozenset[str]:
        return frozenset(s.path for s in self.sources)


CONSTANT = Tag()
ACTIVATION = Tag(dynamic=True)


def of_leaf(path: str, shape: Sequence[int]) -> Tag:
    return Tag((Source(path, tuple(shape), tuple(frozenset({i}) for i in range(len(shape)))),))


def mixed(tags: Sequence[Tag], how: str = "") -> Tag:
    """The tag of a value computed from others; ``how`` says why the places of the entries are lost, if they are."""
    if any(t.dynamic for t in tags):
        return ACTIVATION
    found: dict[str, Source] = {}
    for source in (s for t in tags for s in t.sources):
        new = source.unknown(how) if how else source.derived()
        old = found.get(source.path)
        if old is None or old.axes is None:
            found[source.path] = new
        elif new.axes is not None and (old.axes, old.steps) != (new.axes, new.steps):
            found[source.path] = old.unknown("meets itself in another order before use")
    return Tag(tuple(found.values()), consts=frozenset().union(*(t.consts for t in tags)))


def joined(a: Tag, b: Tag) -> Tag:
    """The tag of a value that may be either (branches, loop iterations)."""
    if a._replace(value=None) == b._replace(value=None):
        return a if a == b else a._replace(value=None)
    if a.dynamic and b.dynamic and len(a.rows) == len(b.rows):
        return Tag(dynamic=True, rows=tuple(x & y for x, y in zip(a.rows, b.rows, strict=True)))
    return mixed((a, b), "is one of several values, by a branch or a loop")


def unstacked(tag: Tag, key: Key, length: int) -> Tag:
    """The tag of one entry along the leading axis, as the scan at ``key`` slices it."""
    taken = tuple(_unstacked(s, 0, key, length) if s.axes else s.taken((key, length)) for s in tag.sources)
    return tag._replace(sources=taken, rows=tag.rows[1:], value=None)


def _unstacked(source: Source, axis: int, key: Key, length: int, keeps: bool = False) -> Source:
    assert source.axes is not None
    axes = [NONE if i == axis else a for i, a in enumerate(source.axes) if keeps or i != axis]
    new = source.moved(axes, Unstack(axis, keeps))
    return new._replace(stack=source.stack | source.axes[axis]).taken((key, length))


def shard(tag: Tag, spec: Sequence[Any], shape: Sequence[int], mesh: Any, key: Key) -> Tag:
    """What the ``shard_map`` at ``key`` sees of an operand: shards are entries of a stack, by their place on a mesh axis."""
    entries = [(d, name) for d, names in enumerate(spec) for name in (names if isinstance(names, tuple) else (names,)) if name]
    if not entries:
        return tag
    sources = []
    for s in tag.sources:
        local = list(shape)
        for d, name in entries if s.axes is not None else ():
            count, at = mesh.shape[name], list(mesh.axis_names).index(name)
            split = Reshape((*local[:d], count, local[d] // count, *local[d + 1 :]))
            local[d] //= count
            s = s.moved(s.known, split, Unstack(d)).taken(((*key, -1 - at), count))
        sources.append(s)
    return tag._replace(sources=tuple(sources), rows=(), value=None)


def left(tag: Tag, key: Key) -> Tag:
    """The tag of a value that leaves the loop or branch at ``key``: an index taken inside is not known outside."""
    inside = lambda s: any(k[: len(key)] == key for k, _ in s.slots)
    sources = tuple(s.unknown("leaves a loop or a branch before use")._replace(slots=()) if inside(s) else s
                    for s in tag.sources)  # fmt: skip
    return tag._replace(sources=sources)


# -- layout operations: (equation, source with known axes, address) -> source ------------------------------------------


def _same(eqn: Any, s: Source, key: Key) -> Source:
    return s


def _cast(eqn: Any, s: Source, key: Key) -> Source | None:
    old, new = eqn.invars[0].aval.dtype, eqn.params["new_dtype"]
    floats = jnp.issubdtype(old, jnp.inexact) and jnp.issubdtype(new, jnp.inexact)
    return s if floats or old == new else None


def _transpose(eqn: Any, s: Source, key: Key) -> Source:
    order = tuple(eqn.params["permutation"])
    return s.moved([s.known[i] for i in order], Transpose(order))


def _broadcast_in_dim(eqn: Any, s: Source, key: Key) -> Source:
    shape, dims = tuple(eqn.params["shape"]), tuple(eqn.params["broadcast_dimensions"])
    axes = [NONE] * len(shape)
    for i, d in enumerate(dims):
        axes[d] = s.known[i]
    return s.moved(axes, Broadcast(shape, dims))


def _squeeze(eqn: Any, s: Source, key: Key) -> Source:
    gone = eqn.params["dimensions"]
    taken = frozenset().union(*(s.known[i] for i in gone))
    kept = [a for i, a in enumerate(s.known) if i not in gone]
    new = s.moved(kept, Reshape(tuple(eqn.outvars[0].aval.shape)))
    return new._replace(stack=s.stack | (taken - frozenset().union(*kept)))


def reshaped_axes(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Factors a reshape into independent pieces: (axes of the old shape, axes of the new shape) of equal size.

    Axes of length one go with the piece in front of them; in a zero-sized array everything is one piece.
    """
    if 0 in old:
        return [(list(range(len(old))), list(range(len(new))))]
    pieces: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        left: list[int] = []
        right: list[int] = []
        a = b = 1
        while True:
            if a <= b and i < len(old) and (a < b or not left):
                a, i = a * old[i], i + 1
                left.append(i - 1)
            elif b < a or (j < len(new) and not right):
                if j >= len(new):
                    break
                b, j = b * new[j], j + 1
                right.append(j - 1)
            else:
                break
        pieces.append((left, right))
    return pieces


def _reshape(eqn: Any, s: Source, key: Key) -> Source:
    order = jaxprs.reshape_order(eqn)
    old, new = [eqn.invars[0].aval.shape[i] for i in order], tuple(eqn.params["new_sizes"])
    if order != tuple(range(len(order))):  # batching a convolution moves its axes so
        s = s.moved([s.known[i] for i in order], Transpose(order))
    axes = [NONE] * len(new)
    lost: frozenset[int] = NONE
    for left, right in reshaped_axes(old, new):
        behind = frozenset().union(*(s.known[i] for i in left))
        real = [j for j in right if new[j] > 1] or right[:1]
        for j in real:
            axes[j] = behind
        lost |= NONE if real else behind
    return s.moved(axes, Reshape(new))._replace(stack=s.stack | (lost - frozenset().union(*axes, NONE)))


def _slice(eqn: Any, s: Source, key: Key) -> Source:
    start, limit = tuple(eqn.params["start_indices"]), tuple(eqn.params["limit_indices"])
    return s.moved(s.known, Slice(start, limit, tuple(eqn.params["strides"] or [1] * len(start))))


def _dynamic_slice(eqn: Any, s: Source, key: Key) -> Source:
    shape, sizes = eqn.invars[0].aval.shape, tuple(eqn.params["slice_sizes"])
    cut = [a for a, (n, size) in enumerate(zip(shape, sizes, strict=True)) if n != size]
    starts = eqn.invars[1:]
    if all(jaxprs.is_literal(starts[a]) for a in cut):
        at = [min(max(int(starts[a].val), 0), shape[a] - sizes[a]) if a in cut else 0 for a in range(len(shape))]
        return s.moved(s.known, Slice(tuple(at), tuple(a + n for a, n in zip(at, sizes)), (1,) * len(at)))
    if len(cut) == 1 and sizes[cut[0]] == 1:
        return _unstacked(s, cut[0], key, shape[cut[0]], keeps=True)
    return s.moved(s.known)._replace(steps=None, lost="is a window at a traced place of the leaf")


def _reverse(eqn: Any, s: Source, key: Key) -> Source:
    return s.moved(s.known, Reverse(tuple(eqn.params["dimensions"])))


def _tile(eqn: Any, s: Source, key: Key) -> Source:
    shape, reps = eqn.invars[0].aval.shape, eqn.params["reps"]
    spread = tuple(n for pair in zip(reps, shape, strict=True) for n in pair)
    copies = Broadcast(spread, tuple(range(1, len(spread), 2)))
    return s.moved(s.known, copies, Reshape(tuple(eqn.outvars[0].aval.shape)))


LAYOUT: dict[str, Callable[[Any, Source, Key], Source | None]] = {
    "convert_element_type": _cast,
    "copy": _same,
    "copy_p": _same,
    "reduce_precision": _same,
    "sharding_constraint": _same,
    "mesh_cast": _same,
    "reshard": _same,
    "stop_gradient": _same,
    "pvary": _same,
    "pcast": _same,
    "rev": _reverse,
    "tile": _tile,
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "transpose": _transpose,
    "broadcast_in_dim": _broadcast_in_dim,
    "squeeze": _squeeze,
    "reshape": _reshape,
}
def one_slice(eqn: Any) -> bool:
    """Whether a gather takes a single slice (``w[i]`` with a traced scalar): then it is layout, no lookup."""
    indices = eqn.invars[1].aval.shape
    return math.prod(indices[:-1]) == 1 if indices else True


def _gathered_slice(eqn: Any, s: Source, key: Key) -> Source:
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    shape, out = eqn.invars[0].aval.shape, tuple(eqn.outvars[0].aval.shape)
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    kept = iter([a for i, a in enumerate(s.known) if i not in gone])
    axes = [next(kept) if i in numbers.offset_dims else NONE for i in range(len(out))]
    taken = frozenset().union(NONE, *(s.known[i] for i in gone))
    cut = [a for a, (n, size) in enumerate(zip(shape, sizes, strict=True)) if n != size]
    if len(cut) == 1 and sizes[cut[0]] == 1:
        new = _unstacked(s, cut[0], key, shape[cut[0]])
        return new.moved(axes, Reshape(out))
    lost = "" if not cut else "is a window at a traced place of the leaf"
    new = s.moved(axes, Reshape(out))._replace(stack=s.stack | taken)
    return new._replace(steps=None, lost=lost) if lost else new


def _cut(s: Source, shape: Sequence[int], axis: int, sizes: Sequence[int]) -> list[Source]:
    """The parts of a value along one axis, one behind the other."""
    parts, at = [], 0
    for size in sizes:
        start, limit = [0] * len(shape), list(shape)
        start[axis], limit[axis] = at, at + size
        parts.append(s.moved(s.known, Slice(tuple(start), tuple(limit), (1,) * len(shape))))
        at += size
    return parts


def _split(eqn: Any, s: Source) -> list[Source]:
    return _cut(s, eqn.invars[0].aval.shape, eqn.params["axis"], eqn.params["sizes"])


def _unstack(eqn: Any, s: Source) -> list[Source]:
    shape, axis = eqn.invars[0].aval.shape, eqn.params["axis"]
    kept = [a for i, a in enumerate(s.known) if i != axis]
    parts = _cut(s, shape, axis, (1,) * shape[axis])
    gone = s.known[axis] - frozenset().union(NONE, *kept)
    whole = Reshape(tuple(eqn.outvars[0].aval.shape))
    return [part.moved(kept, whole)._replace(stack=s.stack | gone) for part in parts]


PARTS: dict[str, Callable[[Any, Source], list[Source]]] = {"split": _split, "unstack": _unstack}


def _stacked(eqn: Any, s: Source) -> Source:
    """One operand of ``stack``, with the new axis."""
    axis, shape = eqn.params["axis"], eqn.invars[0].aval.shape
    return s.moved((*s.known[:axis], NONE, *s.known[axis:]), Reshape((*shape[:axis], 1, *shape[axis:])))


def _joined_along(eqn: Any, tags: Sequence[Tag]) -> Tag:
    """The tag of what ``concatenate`` or ``stack`` joins."""
    stack, shape, at = eqn.primitive.name == "stack", tuple(eqn.outvars[0].aval.shape), 0
    axis = eqn.params["axis" if stack else "dimension"]
    found: dict[str, Source] = {}
    for tag, var in zip(tags, eqn.invars, strict=True):
        start = tuple(at if a == axis else 0 for a in range(len(shape)))
        for s in tag.sources:
            new = s
            if s.axes is not None:
                new = _stacked(eqn, s) if stack else s
                new = new.moved(new.known, Embed(shape, start))
            twice = found.get(s.path)
            found[s.path] = new if twice is None else new._replace(steps=None, lost="is concatenated with itself before use")
        at += 1 if stack else var.aval.shape[axis]
    return Tag(tuple(found.values()), consts=frozenset().union(*(t.consts for t in tags)))


def layout(eqn: Any, tags: Sequence[Tag], key: Key) -> list[Tag] | None:
    """The output tags of a layout operation on what is computed from leaves; None where the equation is none."""
    name = eqn.primitive.name
    if name in ("optimization_barrier", "device_put"):
        return list(tags)
    if name in ("concatenate", "stack") and not any(t.dynamic for t in tags):
        return [_joined_along(eqn, tags)]
    if not tags or not tags[0].sources:
        return None
    if name in PARTS:
        columns = [[s] * len(eqn.outvars) if s.axes is None else PARTS[name](eqn, s) for s in tags[0].sources]
        return [tags[0]._replace(sources=row) for row in zip(*columns)]
    single = name == "gather" and one_slice(eqn)
    if not single and name not in LAYOUT:
        return None
    move = _gathered_slice if single else LAYOUT[name]
    shape = eqn.invars[0].aval.shape
    probe = move(eqn, Source("", tuple(shape), (NONE,) * len(shape)), key)  # what it takes of a value, whatever lies behind it
    slots = () if probe is None else probe.slots
    moved = [s.taken(*slots) if s.axes is None else move(eqn, s, key) for s in tags[0].sources]
    sources = tuple(s for s in moved if s is not None)
    # a cast to whole numbers or back works entry by entry
    return [mixed(tags[:1]) if len(sources) < len(moved) else tags[0]._replace(sources=sources)]


def computed(eqn: Any, tags: Sequence[Tag]) -> Tag:
    """The tag of all other results."""
    name = eqn.primitive.name
    if name not in ELEMENTWISE:
        return mixed(tags, f"goes through `{name}` before use")
    shape = tuple(eqn.outvars[0].aval.shape)
    return mixed([_spread(t, tuple(v.aval.shape), shape, name) for t, v in zip(tags, eqn.invars, strict=True)])


def _spread(tag: Tag, own: tuple[int, ...], shape: tuple[int, ...], name: str) -> Tag:
    """An operand of an elementwise operation, whose axes of length one, or whose single number, stand for whole axes."""
    if own == shape or not tag.sources:
        return tag
    if len(own) != len(shape):
        return mixed((tag,), f"enters `{name}` as one number")
    step = Broadcast(shape, tuple(range(len(shape))))
    grown = lambda s: [a if n == own[i] else NONE for i, (a, n) in enumerate(zip(s.known, shape, strict=True))]
    return tag._replace(sources=tuple(s if s.axes is None else s.moved(grown(s), step) for s in tag.sources))
