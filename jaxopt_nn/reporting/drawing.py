"""Axis groups as a picture: the leaves of a network as tiles, and on their edges the units that are cut together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxopt_nn.core.model import AxisGroup
from jaxopt_nn.core.passes import Plan
from jaxopt_nn.core.paths import leaves_by_path
from jaxopt_nn.interpret.groups import group_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PyTree = Any
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#8c6d31", "#5d3a9b", "#b2df8a", "#fb9a99")
PINNED, OTHER, TILE, GONE = "#9a9a9a", "#4d4d4d", "#dfe6ee", "#f6f6f6"
#: Of the drawing: its width, how thick an edge is, and the room that a letter takes, in its own units.
WIDTH, EDGE, LETTER = 44.0, 0.34, 0.40
#: Leaves with the most entries that are drawn; of more than this many no vectors.
MOST, FEW = 36, 14


class _Tile(NamedTuple):
    """A leaf as a matrix: of which of its axes the rows and the columns are, and which groups these have."""

    path: str
    shape: tuple[int, ...]
    rows: int | None
    columns: int | None
    groups: dict[int, list[int]]


def draw_groups(axes: Axes, groups: Sequence[AxisGroup], variables: PyTree, plan: Plan | None = None) -> Axes:
    """Draws the leaves of a network as tiles whose edges show their groups: edges of one colour are cut together.

    A tile's rows are the inputs of its site, its columns the outputs; the longer its sides the more entries, on a log scale.
    Grey edges are pinned. With a plan the share of each tile that stays is filled, and what goes is left empty.

    Args:
      axes: of matplotlib, empty; its ticks and frame go.
      groups: of ``axis_groups``; variables: of the network.
      plan: of a pass, for that network.

    Returns:
      ``axes``.

    Example:
      >>> from matplotlib.figure import Figure
      >>> v = {"up": jnp.ones((4, 8)), "down": jnp.ones((8, 2))}
      >>> net = jn.Network(lambda v, x: jax.nn.relu(x @ v["up"]) @ v["down"], v)
      >>> plan = jn.cut_units(share=0.5).plan(net, jn.ModelInfo(), jnp.ones((1, 4)))
      >>> axes = jn.draw_groups(Figure().add_subplot(), jn.axis_groups(net.apply, v, jnp.ones((1, 4))), v, plan)
      >>> [text.get_text() for text in axes.get_legend().get_texts()]
      ['up: 4 of 8 units stay', 'pinned']
    """
    leaves = {path: tuple(x.shape) for path, x in leaves_by_path(variables).items()}
    colours = _colours(groups)
    places, low = _places(groups, leaves)
    wide = max((x + LETTER * len(_title(t.path)) + _side(t, t.columns) / 2 for t, (x, _) in places), default=WIDTH)
    for tile, corner in places:
        _draw(axes, tile, corner, groups, colours, plan)
    axes.set(xlim=(-0.5, max(wide, WIDTH / 2)), ylim=(low - 0.6, 2.2), xticks=[], yticks=[], aspect="equal")
    axes.set_frame_on(False)
    axes.grid(False)
    _legend(axes, groups, colours, plan, len(leaves) - len(places))
    return axes


def height(groups: Sequence[AxisGroup], variables: PyTree) -> float:
    """The height of the drawing beside a width of one."""
    _, low = _places(groups, {path: tuple(leaf.shape) for path, leaf in leaves_by_path(variables).items()})
    return (2.8 - low) / WIDTH


def _places(
    groups: Sequence[AxisGroup], leaves: dict[str, tuple[int, ...]]
) -> tuple[list[tuple[_Tile, tuple[float, float]]], float]:
    """The tiles, each with the place of its title, in lines; and where the last line ends."""
    x = y = low = 0.0
    places = []
    for tile in _tiles(groups, leaves):
        wide = max(_side(tile, tile.columns) + 2 * EDGE, LETTER * len(_title(tile.path))) + 1.2
        if x and x + wide > WIDTH:
            x, y = 0.0, low - 3.0
        places.append((tile, (x, y)))
        low = min(low, y - _side(tile, tile.rows) - EDGE)
        x += wide
    return places, low


def _tiles(groups: Sequence[AxisGroup], leaves: dict[str, tuple[int, ...]]) -> list[_Tile]:
    """The leaves, a kernel before its bias; of many the largest matrices."""
    matrix = lambda path: sum(n > 1 for n in leaves[path]) > 1
    shown = [path for path, shape in leaves.items() if shape and (len(leaves) <= FEW or matrix(path))]
    shown = sorted(sorted(shown, key=lambda path: -math.prod(leaves[path]))[:MOST], key=list(leaves).index)
    whose = lambda path: path.rpartition("/")[0]
    first = {whose(path): i for i, path in reversed([*enumerate(shown)])}
    shown.sort(key=lambda path: (first[whose(path)] if whose(path) else first[""], not matrix(path)))
    return [_tile(path, leaves[path], groups) for path in shown]


def _tile(path: str, shape: tuple[int, ...], groups: Sequence[AxisGroup]) -> _Tile:
    own: dict[int, list[int]] = {}
    roles: dict[int, set[str]] = {}
    for i, group in enumerate(groups):
        for m in group.members:
            if m.path == path and m.axis is not None:
                own.setdefault(m.axis, []).append(i)
                roles.setdefault(m.axis, set()).add(m.role)
    long = sorted(range(len(shape)), key=lambda a: (a in own, shape[a]), reverse=True)[:2]
    consumed = [a for a in long if "consumer" in roles.get(a, ())]
    made = [a for a in sorted(long) if a not in consumed[:1]]
    columns = made[-1] if made else None
    rows = next((a for a in (*consumed, *sorted(long)) if a != columns), None)
    return _Tile(path, shape, rows, columns, own)


def _side(tile: _Tile, axis: int | None) -> float:
    return 0.7 + 0.5 * math.log2(max(tile.shape[axis], 1)) if axis is not None else 0.7


def _title(path: str) -> str:
    *_, outer, last = ("", *path.split("/"))
    name = f"{outer}/{last}" if outer else last
    return name if len(name) <= 24 else f"…{name[-23:]}"


def _plain(name: str) -> str:
    """A name as matplotlib shows it literally."""
    return name.replace("$", r"\$")


def _colours(groups: Sequence[AxisGroup]) -> list[str]:
    free = iter(COLOURS)
    return [PINNED if group.pinned is not None else next(free, OTHER) for group in groups]


def _draw(
    axes: Axes, tile: _Tile, corner: tuple[float, float], groups: Sequence[AxisGroup], colours: Sequence[str], plan: Plan | None
) -> None:
    """Draws a tile whose title is at ``corner``."""
    from matplotlib.patches import Rectangle

    wide, high = _side(tile, tile.columns), _side(tile, tile.rows)
    left, top = corner[0] + EDGE, corner[1] - EDGE
    cut = None if plan is None else plan.cuts.get(tile.path)
    small = tile.shape if cut is None else (0,) * len(tile.shape) if cut.gone else cut.small
    share = lambda axis: 1.0 if axis is None else small[axis] / tile.shape[axis]
    box = lambda x, y, w, h, colour, **how: axes.add_patch(Rectangle((x, y), w, h, facecolor=colour, **how))
    box(left, top - high, wide, high, GONE, edgecolor="#c8c8c8", linewidth=0.6, linestyle=":")
    stays = wide * share(tile.columns), high * share(tile.rows)
    box(left, top - stays[1], *stays, TILE, edgecolor="#7a8794", linewidth=0.6)
    for axis, across in ((tile.columns, True), (tile.rows, False)):
        own = [i for i in tile.groups.get(axis, []) if groups[i].size > 1] if axis is not None else []
        for n, i in enumerate(own):
            thick, at = EDGE / len(own), n / len(own) * EDGE
            length = (wide if across else high) * share(axis)
            if across:
                box(left, top + at, length, 0.9 * thick, colours[i], linewidth=0)
            else:
                box(left - EDGE + at, top - length, 0.9 * thick, length, colours[i], linewidth=0)
    axes.text(left, corner[1] + 0.95, _plain(_title(tile.path)), fontsize=7, va="bottom", color="0.15")
    size = "gone" if cut is not None and cut.gone else " x ".join(map(str, small))
    axes.text(left, corner[1] + 0.2, size, fontsize=6, va="bottom", color="0.45")


def _legend(axes: Axes, groups: Sequence[AxisGroup], colours: Sequence[str], plan: Plan | None, left_out: int) -> None:
    from matplotlib.patches import Patch

    stay = {} if plan is None else {layer.name: len(layer.kept) for layer in plan.layers}
    entries = []
    for name, group, colour in zip(group_names(groups), groups, colours, strict=True):
        if colour in COLOURS:
            said = f"{stay[name]} of {group.size} units stay" if name in stay else f"{group.size} units"
            entries.append(Patch(color=colour, label=f"{_plain(name)}: {said}"))
    others = sum(colour == OTHER for colour in colours)
    entries += [Patch(color=OTHER, label=f"{others} more")] if others else []
    entries += [Patch(color=PINNED, label="pinned")] if PINNED in colours else []
    entries += [Patch(color="none", label=f"{left_out} leaves left out")] if left_out > 0 else []
    axes.legend(handles=entries, loc="upper left", bbox_to_anchor=(0, 0), fontsize=7, frameon=False, ncols=2, borderaxespad=0)
