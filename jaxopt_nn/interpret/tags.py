"""Tags: which leaves lie behind a value, and how their entries came to lie where they lie.

An operation that only moves entries (transpose, reshape, broadcast, slice, split, one layer of a stack, ...) keeps a value the
leaf that it was, and adds its step (``core.matrix``). One that works entry by entry makes a value that is *derived* from
leaves whose entries still lie at known places. Any other makes a value of which only the leaves are known, or an activation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxopt_nn.core.matrix import Broadcast, Embed, Reshape, Slice, Squeeze, Step, Transpose, Unstack
from jaxopt_nn.interpret import jaxprs
from jaxopt_nn.interpret.flow.layout import THROUGH
from jaxopt_nn.interpret.flow.moves import Join, reshaped_axes
from jaxopt_nn.interpret.flow.table import PRIMITIVES
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


# -- operations that move entries --------------------------------------------------------------------------------------


def carried(axes: Sequence[frozenset[int]], shape: Sequence[int], step: Step) -> Axes:
    """What lies behind the axes of an array of a shape, after a step."""
    match step:
        case Transpose(order):
            return tuple(axes[i] for i in order)
        case Squeeze(gone):
            return tuple(a for i, a in enumerate(axes) if i not in gone)
        case Broadcast(new, places):
            at = dict(zip(places, axes, strict=True))
            return tuple(at.get(d, NONE) for d in range(len(new)))
        case Reshape(new):
            out = [NONE] * len(new)
            for left, right in reshaped_axes(shape, new):
                behind = NONE.union(*(axes[i] for i in left))
                for j in [j for j in right if new[j] > 1] or right[:1]:
                    out[j] = behind
            return tuple(out)
        case Unstack(axis, keeps):
            return tuple(NONE if i == axis else a for i, a in enumerate(axes) if keeps or i != axis)
    return tuple(axes)  # a slice, a reverse, an embedding: each axis stays where it is


def _after(s: Source, shape: Sequence[int], steps: Sequence[Step]) -> Source:
    """A source with known axes, of a value of this shape, after steps."""
    for step in steps:
        new = carried(s.known, shape, step)
        taken = NONE.union(*s.known) - NONE.union(*new)
        s, shape = s.moved(new, step)._replace(stack=s.stack | taken), step.result(shape)
    return s


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


def _taking(eqn: Any) -> Callable[[Any, Source, Key], Source] | None:
    """How an operation that takes entries at places which may be traced makes its result of a leaf."""
    if eqn.primitive.name == "dynamic_slice":
        return _dynamic_slice
    return _gathered_slice if eqn.primitive.name == "gather" and one_slice(eqn) else None


def _joined_along(eqn: Any, join: Join, tags: Sequence[Tag]) -> Tag:
    """The tag of what holds its operands one behind the other."""
    whole, at = tuple(eqn.outvars[0].aval.shape), 0
    found: dict[str, Source] = {}
    for tag, var, steps in zip(tags, eqn.invars, join.steps, strict=True):
        shape = tuple(var.aval.shape)
        start = tuple(at if a == join.axis else 0 for a in range(len(whole)))
        for s in tag.sources:
            new = s if s.axes is None else _after(s, shape, (*steps, Embed(whole, start)))
            twice = found.get(s.path)
            found[s.path] = new if twice is None else new._replace(steps=None, lost="is concatenated with itself before use")
        for step in steps:
            shape = step.result(shape)
        at += shape[join.axis]
    return Tag(tuple(found.values()), consts=frozenset().union(*(t.consts for t in tags)))


def layout(eqn: Any, tags: Sequence[Tag], key: Key) -> list[Tag] | None:
    """The output tags of an operation that moves entries, on what is computed from leaves; None where the equation is none."""
    name = eqn.primitive.name
    if name in THROUGH:
        return list(tags)
    entry = PRIMITIVES.get(name)
    if entry is not None and entry.joins is not None and not any(t.dynamic for t in tags):
        return [_joined_along(eqn, entry.joins(eqn), tags)]
    if not tags or not tags[0].sources:
        return None
    if (take := _taking(eqn)) is not None:
        return [_taken(eqn, tags[0], take, key)]
    if entry is None or entry.moves is None:
        return None
    moves = entry.moves(eqn)
    if moves is None:  # a cast to whole numbers or back works entry by entry
        return [mixed(tags[:1])]
    shape = tuple(eqn.invars[0].aval.shape)
    move = lambda steps: tuple(s if s.axes is None else _after(s, shape, steps) for s in tags[0].sources)
    return [tags[0]._replace(sources=move(steps)) for _, steps in moves]


def _taken(eqn: Any, tag: Tag, take: Callable[[Any, Source, Key], Source], key: Key) -> Tag:
    shape = eqn.invars[0].aval.shape
    slots = take(eqn, Source("", tuple(shape), (NONE,) * len(shape)), key).slots  # whatever lies behind the value
    return tag._replace(sources=tuple(s.taken(*slots) if s.axes is None else take(eqn, s, key) for s in tag.sources))


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
