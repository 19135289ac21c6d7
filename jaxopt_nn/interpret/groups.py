"""Axis groups: which axes of which leaves must be cut together; nothing is run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from jaxopt_nn.core.model import AxisGroup, Coupling, Member, Read, Rebuild
from jaxopt_nn.core.paths import leaves_by_path
from jaxopt_nn.interpret.flow import dims
from jaxopt_nn.interpret.flow.dims import Axis, Dim
from jaxopt_nn.interpret.flow.flow import Flow
from jaxopt_nn.interpret.flow.rebuilt import rebuilds
from jaxopt_nn.interpret.program import trace_model

PyTree = Any


def axis_groups(apply: Callable[..., PyTree], variables: PyTree, *inputs: PyTree) -> tuple[AxisGroup, ...]:
    """Which axes of which leaves are coupled: a group for each kind of unit that the weights of the sites put out.

    With the entries of a unit set to zero in all members (a ``divisor`` aside), ``apply`` gives what it gives with the unit cut
    out, on all inputs. A group is pinned where that is not known: its units reach an output, are indexed, are summed over or
    divided by where they are not zero, or enter an operation that can't be followed. An axis may hold several groups, as the
    heads and the width of a head in ``[I, H * D]``, and a group parts of axes, as one of three in a fused ``[I, 3 * O]``.

    Args:
      apply: pure function ``(variables, *inputs)``.
      variables: pytree of arrays, of ``jax.ShapeDtypeStruct``, or of compressed tensors.
      inputs: arrays or ``jax.ShapeDtypeStruct``.

    Returns:
      The groups in order of evaluation of their first producer, then those that can be cut and have none.

    Raises:
      ValueError: no array in ``variables``, or most of the weights are closed over by ``apply``.

    Example:
      >>> def apply(v, x):
      ...     return jax.nn.relu(x @ v["up"]) @ v["down"]
      >>> v = {"up": jnp.ones((4, 8)), "down": jnp.ones((8, 2))}
      >>> for group in jn.axis_groups(apply, v, jnp.ones((1, 4))):
      ...     print(group.size, [(m.path, m.axis) for m in group.members], group.pinned)
      8 [('up', 1), ('down', 0)] None
      2 [('down', 1)] reaches an output of `apply`
    """
    return tuple(c.group for c in couplings(apply, variables, *inputs))


def couplings(apply: Callable[..., PyTree], variables: PyTree, *inputs: PyTree) -> tuple[Coupling, ...]:
    """``axis_groups`` with what measuring and masking the units needs besides."""
    return couplings_of(Flow(trace_model(apply, variables, inputs), tuple(leaves_by_path(variables))))


def couplings_of(flow: Flow) -> tuple[Coupling, ...]:
    """The groups of a program."""
    members: dict[Dim, list[tuple[str, int, Axis]]] = {}
    for path, axes in flow.leaves.items():
        for i, axis in enumerate(axes):
            for atom in dict.fromkeys(dims.atoms(axis)):
                members.setdefault(atom, []).append((path, i, axis))
    roles = _Roles(flow)
    built = rebuilds(flow)
    order = dict.fromkeys(roles.order) | dict.fromkeys(atom for _, atom in roles.consumed if flow.unit_pin(atom) is None)
    return tuple(
        _coupling(flow, roles, atom, members[atom], built.get(atom, Rebuild()))
        for atom in order if atom in members and atom.size > 1
    )  # fmt: skip


def group_names(groups: Sequence[AxisGroup]) -> list[str]:
    """A name for each group: the path of its first member; with its axis, and its place there, where groups share that."""
    first = [g.members[0] for g in groups]
    paths = Counter(m.path for m in first)
    axes = Counter((m.path, m.axis) for m in first)
    seen: Counter[tuple[str, int | None]] = Counter()
    names = []
    for m in first:
        place = f" part {seen[m.path, m.axis]}" if axes[m.path, m.axis] > 1 else ""
        seen[m.path, m.axis] += 1
        names.append(m.path if paths[m.path] == 1 else f"{m.path} axis {m.axis}{place}")
    return [g.name or name for g, name in zip(groups, names, strict=True)]


class _Roles:
    """What the leaves are to the sites that they feed."""

    def __init__(self, flow: Flow):
        self._flow = flow
        self.produced, self.consumed = (
            dict.fromkeys((path, atom) for path, axis in own for atom in dims.atoms(axis))
            for own in (flow.producers, flow.consumers)
        )
        self._summed = {(path, id(axis)) for path, axis in flow.consumers}
        self.order: dict[Dim, list[str]] = {}
        for path, atom in self.produced:
            self.order.setdefault(atom, []).append(path)

    def of(self, path: str, i: int, atom: Dim) -> str:
        own = (path, atom)
        if own in self._flow.divisors:
            return "divisor"
        if own in self.produced and own in self.consumed:  # both axes of a recurrent kernel have the same units
            return "consumer" if (path, id(self._flow.leaves[path][i])) in self._summed else "producer"
        return "producer" if own in self.produced else "consumer" if own in self.consumed else "vector"


#: Producers come first among the members of a group.
_RANKS = {"producer": 0, "divisor": 1, "vector": 1, "consumer": 2}


def _coupling(flow: Flow, roles: _Roles, atom: Dim, own: list[tuple[str, int, Axis]], rebuild: Rebuild) -> Coupling:
    first = roles.order.get(atom, [])
    place = lambda m: (_RANKS[m.role], first.index(m.path) if m.role == "producer" else 0)
    members = [Member(path, i, roles.of(path, i, atom), dims.units(axis, atom)) for path, i, axis in own]
    reads = tuple(
        Read(c.site, c.shape, c.number, dims.units(c.axis, atom)) for c in flow.reads if atom in dims.atoms(c.axis)
    )
    return Coupling(AxisGroup(atom.size, tuple(sorted(members, key=place)), flow.unit_pin(atom), atom.shard, rebuild), reads)
