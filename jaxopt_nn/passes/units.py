"""The units of one layer, as a score gets them: their weights, and what was measured of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_nn.core.model import AxisGroup, Coupling, Member, Read, Site
from jaxopt_nn.passes.activity import TAP, Activity, joined

#: Members of which the entries of a unit are zero where the unit is; a ``divisor`` is only cut.
ROLES = ("producer", "vector", "consumer", "layer")


@dataclasses.dataclass(frozen=True, eq=False)
class Units:
    """The units of one layer, as a score gets them.

    Attributes:
      name: of the layer, as in a plan.
      group: the axis group: ``size`` and ``members``.
      leaves: ``{path: array}`` of the network, dense.
      reads: the sites that contract the units.
      stats: ``{name: {site or path: statistic}}``, what the score asks for by its attributes ``taps`` and ``probes``.
      sites: the network's, by name, those that ``calibrate`` or ``inspect`` has seen.
      still: paths that no optimizer moves, such as running statistics: no weights.

    Example:
      >>> def fan_out(units):  # a score: the largest weight with which a unit is read
      ...     return np.max(np.abs(units.matrix("consumer")), axis=1)
      >>> v = {"up": jnp.ones((2, 3)), "down": jnp.array([[1.0, -5.0], [2.0, 2.0], [3.0, 0.0]])}
      >>> net = jn.Network(lambda v, x: jax.nn.relu(x @ v["up"]) @ v["down"], v)
      >>> jn.cut_units(fan_out, share=0.3).plan(net, jn.ModelInfo(), jnp.ones((1, 2))).kept["up"]
      array([0, 2])
    """

    name: str
    group: AxisGroup
    leaves: Mapping[str, Any]
    reads: tuple[Read, ...] = ()
    stats: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    still: Collection[str] = ()
    sites: Mapping[str, Site] = dataclasses.field(default_factory=dict)

    @property
    def size(self) -> int:
        """How many units there are."""
        return self.group.size

    @property
    def activity(self) -> Activity:
        """Largest and mean ``|value|`` of each unit on data; for a score whose ``taps`` ask for ``"activity"``."""
        return joined(Coupling(self.group, self.reads), self.stats[TAP])

    def weights(self, path: str) -> np.ndarray:
        """The leaf at ``path``, float64.

        Raises:
          ValueError: it is abstract.
        """
        if isinstance(leaf := self.leaves[path], jax.ShapeDtypeStruct):
            raise ValueError(f"{path}: is abstract, so that its weights can't be scored; pass arrays, or scores.random(0)")
        return np.asarray(leaf).astype(np.float64)

    def members(self, *roles: str) -> list[Member]:
        """The members of these roles, without those that are ``still``; of all but ``divisor`` where none is named.

        Raises:
          ValueError: roles are named, and the units are layers, which have none.
        """
        if roles and self.group.name:
            raise ValueError(f"{self.name}: its layers have no {roles[0]}; pass a score of whole layers, e.g. scores.l2_norm")
        return [m for m in self.group.members if m.role in (roles or ROLES) and m.path not in self.still]

    def total(self, values: Callable[[str], Any], *roles: str) -> np.ndarray:
        """The sum over the entries of each unit, float64 ``[size]``.

        Args:
          values: ``path -> array`` of the leaf's shape.
          roles: as in ``members``. An entry of a leaf that has two axes in the group counts once for each of its units.
        """
        return unit_sums(self.size, self.members(*roles), values, np)

    def norm(self, order: int = 2, *roles: str) -> np.ndarray:
        """The L1 or L2 norm of each unit's weights, float64 ``[size]``; zero where there are none."""
        if order == 1:
            return self.total(lambda path: np.abs(self.weights(path)), *roles)
        return np.sqrt(self.total(lambda path: np.square(self.weights(path)), *roles))

    def matrix(self, *roles: str) -> np.ndarray:
        """The weights of each unit as a row, float64 ``[size, n]``: those of a role one behind the other.

        Raises:
          ValueError: units of different numbers of entries; units that are whole leaves.
        """
        rows = []
        for m in self.members(*roles):
            if m.axis is None:
                raise ValueError(f"{self.name}: its layers are leaves of their own and have no rows; use norm or total")
            x = np.moveaxis(self.weights(m.path), m.axis, 0).reshape(len(m.units), -1)
            counts = np.bincount(m.units[m.units >= 0], minlength=self.size)
            if len(set(counts.tolist())) != 1:
                raise ValueError(f"{self.name}: its units have {counts.min()} to {counts.max()} entries in {m.path}")
            order = np.argsort(m.units, kind="stable")[np.sum(m.units < 0) :]
            rows.append(x[order].reshape(self.size, -1))
        return np.concatenate(rows, axis=1) if rows else np.zeros((self.size, 0))


def unit_sums(size: int, members: Collection[Member], values: Callable[[str], Any], xp: Any) -> Any:
    """The sums of ``Units.total``, by NumPy or ``jax.numpy`` as ``xp``."""
    own: dict[str, list[Member]] = {}
    for m in members:
        own.setdefault(m.path, []).append(m)
    total = xp.zeros(size)
    for path, several in own.items():
        x = xp.asarray(values(path))
        if several[0].axis is None:  # the whole leaf is one unit's
            total = total + _scattered(x.sum()[None], several[0].units[None], size, xp)
            continue
        several = sorted(several, key=lambda m: m.axis or 0)
        axes = [m.axis for m in several]
        sums = x.sum(axis=tuple(i for i in range(x.ndim) if i not in axes))
        for n, m in enumerate(several):
            line = _line(sums, [m.units for m in several], n, xp)
            inside = m.units >= 0
            total = total + _scattered(line[inside], m.units[inside], size, xp)
    return total


def _line(sums: Any, units: list[np.ndarray], n: int, xp: Any) -> Any:
    """Sums along axis ``n``, without entries that an axis before it counts for the same unit."""
    ndim = len(units)
    along = lambda i: units[i].reshape([-1 if k == i else 1 for k in range(ndim)])
    for i in range(n):
        sums = xp.where(along(i) == along(n), 0, sums)
    return sums.sum(axis=tuple(i for i in range(ndim) if i != n))


def _scattered(line: Any, units: np.ndarray, size: int, xp: Any) -> Any:
    if xp is jnp:
        return jnp.zeros(size).at[units].add(line)
    return np.bincount(units, weights=line, minlength=size)
