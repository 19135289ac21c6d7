"""What a method knows of a model: sites, the roles of a leaf's axes, statistics.

One table of letters for shapes, used everywhere: ``S`` stack, ``B`` batch, ``T`` tokens, ``I`` input features,
``O`` output features, ``G`` groups, ``K`` codebook size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxopt_nn.core.report import Report


@dataclasses.dataclass(frozen=True)
class Roles:
    """Which axes of a leaf are stack (scan, vmap, experts), input (contracted) and output, as its site uses them.

    Axes are non-negative and sorted; an axis may stand in none of the three (a bias has no input axis). ``window`` names
    those of the input axes over which a convolution slides (height and width).
    """

    stack: tuple[int, ...] = ()
    input: tuple[int, ...] = ()
    output: tuple[int, ...] = ()
    window: tuple[int, ...] = ()

    def channel_axes(self) -> tuple[int, ...]:
        """The axes along which a per-channel statistic is kept: stack and output."""
        return tuple(sorted((*self.stack, *self.output)))


def assumed_roles(ndim: int) -> Roles:
    """The roles of a leaf of which nothing is known: those of a convolution's kernel ``[..., I, O]``, no stack."""
    return Roles((), tuple(range(ndim - 1)), (ndim - 1,), tuple(range(ndim - 2))) if ndim else Roles()


def _outside(lhs: Any, rhs: Any) -> Any:
    raise TypeError("a site runs inside a rewritten model only; inspect() gives its description")


@dataclasses.dataclass(frozen=True)
class Site:
    """A dot, convolution or gather of the traced function.

    Attributes:
      name: ``path``, ``path#1`` for a second use, ``@scope#0`` where both operands are activations.
      kind: ``dot``, ``conv`` or ``gather``.
      weight: which operand is the weight (0 left, 1 right), or None.
      leaf: path of the leaf that feeds it, or None.
      leaves: all leaves behind the weight; more than one where it is derived (a norm and its direction, say).
      derived: the weight is computed from its leaves before use (``x @ (w * 2)``).
      roles: of the axes of ``leaf`` at this site; None for a derived weight.
      scope: the name stack of the equation.
      shapes, dtypes: of the two operands, as inside the innermost loop.
      stack: lengths of the enclosing layer scans, outermost first.
      macs: multiply-accumulates of one call of the model; a ``while`` body counts once.
      params: the primitive's static parameters.
      run: ``run(lhs, rhs)`` evaluates the site as it stands, on arrays or compressed tensors.
    """

    name: str
    kind: str
    weight: int | None
    leaf: str | None
    leaves: tuple[str, ...]
    derived: bool
    roles: Roles | None
    scope: str
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    dtypes: tuple[str, str]
    stack: tuple[int, ...]
    macs: int
    params: Mapping[str, Any] = dataclasses.field(repr=False, default_factory=dict)
    run: Callable[..., Any] = dataclasses.field(repr=False, compare=False, default=_outside)


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A leaf of ``variables`` as the model uses it: shape, dtype, its sites, and the reason where it has none.

    ``stack`` holds the axes that a loop or an index takes away before the leaf is used.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    sites: tuple[str, ...]
    reason: str | None
    stack: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        out = 1
        for n in self.shape:
            out *= n
        return out

    @property
    def matrix(self) -> bool:
        """Whether a matrix may lie in it: at least two axes, besides the stack, longer than one."""
        return sum(n > 1 for i, n in enumerate(self.shape) if i not in self.stack) >= 2


@dataclasses.dataclass(frozen=True, eq=False)
class Member:
    """An axis of a leaf in an axis group.

    Attributes:
      path, axis: which axis of which leaf.
      role: ``producer`` (an output axis of a site's weight), ``vector`` (a bias, a norm's scale: combined element by
        element) or ``consumer`` (a contracted axis of a site's weight).
      units: int ``[length of the axis]``: entry j belongs to unit ``units[j]`` of the group.
    """

    path: str
    axis: int
    role: str
    units: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class AxisGroup:
    """Axes that must be cut or sharded together: the units of one layer, and all that reads them.

    Attributes:
      size: number of units.
      members: the axes, the producers first.
      pinned: None, or the reason why no unit may be cut.
    """

    size: int
    members: tuple[Member, ...]
    pinned: str | None = None


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """What is known of a model, as data for methods.

    ``ModelInfo()`` knows nothing: then roles are assumed, and the report says so.

    Attributes:
      roles: ``{path: Roles}``, static, from ``inspect``.
      stats: ``{site: statistic}``, arrays, from ``capture``.
      sites, leaves, report: as found by ``inspect``; printing the object gives the table.
    """

    roles: Mapping[str, Roles] = dataclasses.field(default_factory=dict)
    stats: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    sites: tuple[Site, ...] = ()
    leaves: tuple[Leaf, ...] = ()
    report: Report = Report()

    def roles_of(self, path: str, ndim: int) -> Roles:
        """The roles of a leaf, assumed where nothing is known of it."""
        return self.roles.get(path) or assumed_roles(ndim)

    @property
    def coverage(self) -> float:
        """Share of the parameters in matrix-shaped leaves whose leaf feeds a site (1.0 where there are none)."""
        matrices = [leaf for leaf in self.leaves if leaf.matrix]
        total = sum(leaf.size for leaf in matrices)
        return sum(leaf.size for leaf in matrices if leaf.sites) / total if total else 1.0

    def with_stats(self, stats: Mapping[str, Any]) -> ModelInfo:
        return dataclasses.replace(self, stats=dict(stats))

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("site", "kind", "operands", "stack", "in", "out", "MACs")]
        for s in self.sites:
            r = s.roles or Roles()
            axes = [" ".join(map(str, a)) or "-" for a in (r.stack, r.input, r.output)]
            operands = " x ".join(f"{d}{list(n)}" for n, d in zip(s.shapes, s.dtypes, strict=True))
            rows.append((s.name, s.kind + ("*" if s.derived else ""), operands, *axes, f"{s.macs:,}"))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        if any(s.derived for s in self.sites):
            lines.append("* the weight is computed from its leaf before use")
        lines.append(f"{self.coverage:.1%} of the parameters in matrices feed a site")
        if self.report:
            lines.append(str(self.report))
        return "\n".join(lines)
