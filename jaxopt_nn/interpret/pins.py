"""Which operations keep the weights of a network from being cut; nothing is run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterable
from typing import Any

import numpy as np

from jaxopt_nn.core.model import AxisGroup
from jaxopt_nn.core.paths import leaves_by_path
from jaxopt_nn.core.report import SCREEN
from jaxopt_nn.core.text_table import aligned
from jaxopt_nn.interpret.flow import dims
from jaxopt_nn.interpret.flow.dims import Axis
from jaxopt_nn.interpret.flow.flow import Flow
from jaxopt_nn.interpret.groups import couplings_of
from jaxopt_nn.interpret.program import Program, trace_model

PyTree = Any
#: Of axes whose entries are those of the network's inputs or outputs.
ENDS = ("is an axis of an input", "reaches an output of `apply`")


@dataclasses.dataclass(frozen=True)
class Pin:
    """A reason why axes may not be cut.

    Attributes:
      reason: names the operation.
      uncut: parameters in matrices that an axis of this reason has, and no group that may be cut.
      parameters: the same with those that a group that may be cut has too, along another axis.
      axes: ``(path, axis)`` of the matrices that have it.

    Example:
      >>> v = {"up": jnp.ones((4, 8)), "down": jnp.ones((8, 2))}
      >>> jn.coupling_report(lambda v, x: jnp.cumprod(x @ v["up"], -1) @ v["down"], v, jnp.ones((1, 4))).pins[0]
      Pin(reason='`cumprod` runs along it', uncut=48, parameters=48, axes=(('down', 0), ('up', 1)))
    """

    reason: str
    uncut: int
    parameters: int
    axes: tuple[tuple[str, int], ...]


@dataclasses.dataclass(frozen=True)
class CouplingReport:
    """What of a network may be cut, and which operations keep the rest. Prints as a table.

    Attributes:
      groups: as ``axis_groups`` gives them.
      parameters: in matrix-shaped leaves.
      free: those of them that lie in a group that may be cut.
      ends: those of the others that lie at an input or an output of the network.
      pins: by reason, those with the most uncut parameters first.

    Example:
      >>> v = {"up": jnp.ones((4, 8)), "down": jnp.ones((8, 2))}
      >>> report = jn.coupling_report(lambda v, x: jax.nn.relu(x @ v["up"]) @ v["down"], v, jnp.ones((1, 4)))
      >>> report.free, report.parameters, [group.pinned for group in report.groups]
      (48, 48, [None, 'reaches an output of `apply`'])
    """

    groups: tuple[AxisGroup, ...]
    parameters: int
    free: int
    ends: int
    pins: tuple[Pin, ...]

    @property
    def free_groups(self) -> int:
        """How many groups may be cut."""
        return sum(group.pinned is None for group in self.groups)

    @property
    def sentence(self) -> str:
        """How much may be cut, in words."""
        free, ends = (f"{n / max(self.parameters, 1):.1%}" for n in (self.free, self.ends))
        return (
            f"{self.free_groups} of {len(self.groups)} groups may be cut: {free} of the parameters in matrices, "
            f"{ends} more are at an input or an output"
        )

    def __str__(self) -> str:
        return self.table(SCREEN)

    def table(self, limit: int | None = None) -> str:
        """As printed, with ``limit`` reasons, all of them if None."""
        said = [self.sentence]
        if self.pins:
            head = ("pinned, as it", "uncut", "parameters", "axes")
            lines = [(p.reason, f"{p.uncut:,}", f"{p.parameters:,}", in_words(p.axes)) for p in self.pins[:limit]]
            said += aligned([head, *lines])
        left = len(self.pins) - len(self.pins[:limit])
        return "\n".join([*said, *([f"and {left} reasons more"] if left else [])])


def coupling_report(apply: Callable[..., PyTree], variables: PyTree, *inputs: PyTree) -> CouplingReport:
    """What of a network may be cut (``axis_groups``), and why not more: the reasons, those with the most parameters first.

    A parameter is counted as cuttable if one axis of its leaf is: of a network's last layer the inputs. Axes over which a
    convolution slides, and those of stacked layers, count only where a matrix has no others.

    Args:
      apply, variables, inputs: as of ``axis_groups``.

    Raises:
      ValueError: as ``axis_groups``.

    Example:
      >>> def apply(v, x):
      ...     h = jax.nn.relu(x @ v["up"])
      ...     return jnp.sort(h, axis=-1) @ v["down"]
      >>> v = {"up": jnp.ones((4, 8)), "down": jnp.ones((8, 2))}
      >>> report = jn.coupling_report(apply, v, jnp.ones((1, 4)))
      >>> print(report)
      0 of 2 groups may be cut: 0.0% of the parameters in matrices, 100.0% more are at an input or an output
      pinned, as it                 uncut  parameters                    axes
      `sort` orders it                 48          48  down axis 0, up axis 1
      is an axis of an input           32          32               up axis 0
      reaches an output of `apply`     16          16             down axis 1
      >>> report.pins[0].reason
      '`sort` orders it'
    """
    return _report(trace_model(apply, variables, inputs), tuple(leaves_by_path(variables)))


def _report(program: Program, paths: tuple[str, ...]) -> CouplingReport:
    flow = Flow(program, paths)
    groups = tuple(c.group for c in couplings_of(flow))
    able: dict[tuple[str, int | None], np.ndarray] = {}
    for group in groups:
        for m in group.members if group.pinned is None else ():
            able[m.path, m.axis] = able.get((m.path, m.axis), False) | (m.units >= 0)
    leaves = [leaf for leaf in program.info.leaves if leaf.matrix]
    count = sum(leaf.size for leaf in leaves)
    free = ends = 0
    pins: dict[str, Pin] = {}
    for leaf in leaves:
        rest = [~able.get((leaf.path, i), np.zeros(n, bool)) for i, n in enumerate(leaf.shape)]
        axes = zip(flow.leaves[leaf.path], leaf.shape, rest, strict=True)
        why = [_reasons(flow, axis, n, own) for axis, n, own in axes]
        free += leaf.size - math.prod(map(np.sum, rest))
        ends += _count(rest, [_any(own, ENDS) for own in why])
        some = _counted_axes(program, leaf.path, len(leaf.shape))
        for reason in dict.fromkeys(r for i in some for r in why[i]):
            own = [_any(each, (reason,)) if i in some else False for i, each in enumerate(why)]
            old = pins.get(reason, Pin(reason, 0, 0, ()))
            more = tuple((leaf.path, i) for i in some if reason in why[i])
            whole = [np.ones(n, bool) for n in leaf.shape]
            pins[reason] = Pin(reason, old.uncut + _count(rest, own), old.parameters + _count(whole, own), old.axes + more)
    order = sorted(pins.values(), key=lambda pin: (-pin.uncut, -pin.parameters))
    return CouplingReport(groups, count, int(free), ends, tuple(order))


def _reasons(flow: Flow, axis: Axis, n: int, rest: np.ndarray) -> dict[str, np.ndarray]:
    """``{reason: which entries of the axis are not cut for it, bool}``, of those among ``rest`` and of those pinned."""
    out: dict[str, np.ndarray] = {}
    for atom in dict.fromkeys(dims.atoms(axis)) if n > 1 else ():
        own = dims.units(axis, atom) >= 0
        pin = flow.unit_pin(atom)
        if pin is not None or np.any(own & rest):
            reason = pin or "is in no product with an activation"
            out[reason] = out.get(reason, False) | own
    return out


def _any(why: dict[str, np.ndarray], reasons: Collection[str]) -> Any:
    """Which entries are pinned by one of the reasons."""
    return sum((own for reason, own in why.items() if reason in reasons), start=np.False_)


def _count(among: list[np.ndarray], own: list[Any]) -> int:
    """How many entries lie in all of ``among``, and along some axis in ``own``."""
    return int(math.prod(map(np.sum, among)) - math.prod(np.sum(a & ~np.asarray(o)) for a, o in zip(among, own, strict=True)))


def _counted_axes(program: Program, path: str, ndim: int) -> list[int]:
    """The axes of which a leaf's matrix is made."""
    roles = program.info.roles.get(path)
    own = [] if roles is None else sorted({*roles.input, *roles.output} - {*roles.window})
    return own or list(range(ndim))


def in_words(axes: Iterable[tuple[str, int]]) -> str:
    """``(path, axis)`` pairs, of many the first two."""
    said = [f"{path} axis {i}" for path, i in axes]
    return ", ".join(said if len(said) < 4 else [*said[:2], f"{len(said) - 2} more"])
