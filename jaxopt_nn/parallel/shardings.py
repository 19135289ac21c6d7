"""Weights spread over devices along the units of axis groups: what reads a unit lies where the unit is made."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxopt_nn.core.arguments import require
from jaxopt_nn.core.model import AxisGroup
from jaxopt_nn.core.paths import leaves_by_path, map_with_path
from jaxopt_nn.core.report import Message, Report
from jaxopt_nn.interpret.groups import axis_groups, group_names
from jaxopt_nn.interpret.network import Network, network_of
from jaxopt_nn.tensors.base import is_compressed

PyTree = Any


@dataclasses.dataclass(frozen=True, eq=False)
class Shardings:
    """Where each array of a network's variables lies. Prints as a table.

    Attributes:
      mesh: of the devices.
      specs: a ``PartitionSpec`` for each array, in the structure of the variables; compressed tensors have one for each child.
      report: a ``note`` for each leaf that is spread, ``skipped`` with the reason for each that lies whole on every device.

    Example:
      >>> net = jn.Network(lambda v, x: jnp.tanh(x @ v["up"]) @ v["down"], {"up": jnp.ones((4, 6)), "down": jnp.ones((6, 3))})
      >>> mesh = jax.make_mesh((2,), ("model",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
      >>> print(jn.shardings(net, mesh, jnp.ones((1, 4))))
      note  down  axis 0 over 'model', 3 of 6 each
      note  up    axis 1 over 'model', 3 of 6 each
    """

    mesh: Mesh
    specs: PyTree
    report: Report

    @property
    def named(self) -> PyTree:
        """A ``NamedSharding`` for each array: for ``jit``'s ``in_shardings``."""
        return jax.tree.map(lambda spec: NamedSharding(self.mesh, spec), self.specs, is_leaf=_is_spec)

    def place(self, network: Network) -> Network:
        """The network with its variables where they are to lie; called, it runs on all devices of the mesh."""
        return network_of(network).replace(variables=jax.device_put(network.variables, self.named))

    def __str__(self) -> str:
        return str(self.report)


def shardings(network: Network, mesh: Mesh, *inputs: PyTree, axis: str = "model") -> Shardings:
    """Spreads a network's weights over one axis of a mesh, along the units of its axis groups.

    A group is spread whole or not at all: with the outputs of one layer go the inputs of the layers that read them. Each device
    then computes its own units (neurons, heads), and the devices add up once where these are read: the pairs of columns and
    rows of Megatron-LM (Shoeybi et al. 2019), found from the traced function. Where two groups share a leaf, the one that
    spreads more parameters for each product over its units goes first. The program is partitioned by the compiler.

    Args:
      network: its variables may be compressed, stored or prepared: a tensor of which no part can lie apart stays whole.
      mesh: with an axis of type ``AxisType.Auto`` called ``axis``; others are left to whoever splits the batch.
      inputs: arrays or ``jax.ShapeDtypeStruct``, as ``apply`` takes them.

    Raises:
      TypeError: no network, or no mesh.
      ValueError: the mesh has no such axis, or the axis is not of type Auto; as ``axis_groups``.

    Example:
      >>> v = {"up": jnp.ones((4, 8)), "bias": jnp.zeros(8), "down": jnp.ones((8, 2))}
      >>> net = jn.Network(lambda v, x: jax.nn.relu(x @ v["up"] + v["bias"]) @ v["down"], v)
      >>> mesh = jax.make_mesh((2,), ("model",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
      >>> spread = jn.shardings(net, mesh, jnp.ones((1, 4)))
      >>> {path: tuple(spec) for path, spec in spread.specs.items()}
      {'bias': ('model',), 'down': ('model', None), 'up': (None, 'model')}
      >>> net = spread.place(net)
      >>> net.variables["up"].addressable_shards[0].data.shape, net(jnp.ones((1, 4)))
      ((4, 4), Array([[32., 32.]], dtype=float32))
    """
    _check(network, mesh, axis)
    devices, leaves = mesh.shape[axis], leaves_by_path(network.variables)
    groups = axis_groups(network.apply, network.variables, *inputs)
    reasons = _Reasons()
    able = []
    for name, group in zip(group_names(groups), groups, strict=True):
        if (reason := _whole(group, devices)) is None:
            able.append((name, group))
        else:
            reasons.add(group, reason)
    axes: dict[str, tuple[int | None, str]] = {}
    for name, group in sorted(able, key=lambda pair: -_worth(pair[1], leaves)):
        taken = next((m.path for m in group.members if m.path in axes), None)
        twice = len({m.path for m in group.members}) < len(group.members)
        if taken is not None or twice:
            why = "two of its axes hold the same units" if taken is None else f"{taken} is spread along {axes[taken][1]}"
            reasons.add(group, why)
            continue
        axes |= {m.path: (m.axis, name) for m in group.members}
    messages: list[Message] = []

    def spec(path: str, leaf: Any) -> Any:
        at = axes.get(path, (None, ""))[0]
        own = PartitionSpec(*(axis if i == at else None for i in range(len(leaf.shape))))
        made = (leaf.spec(own, mesh) if is_compressed(leaf) else own) if at is not None else NotImplemented
        if made is NotImplemented:
            why = reasons.of(path) if at is None else f"{leaf.describe()} can't be parted along axis {at}"
            messages.append(Message("skipped", path, why))
            return jax.tree.map(lambda child: PartitionSpec(), leaf)
        assert at is not None
        messages.append(Message("note", path, f"axis {at} over {axis!r}, {leaf.shape[at] // devices} of {leaf.shape[at]} each"))
        return made

    return Shardings(mesh, map_with_path(spec, network.variables), Report(tuple(messages)))


class _Reasons:
    """Why leaves are not spread, by axis."""

    def __init__(self) -> None:
        self._axes: dict[str, dict[Any, str]] = {}

    def add(self, group: AxisGroup, reason: str) -> None:
        for m in group.members:
            self._axes.setdefault(m.path, {}).setdefault(m.axis, reason)

    def of(self, path: str) -> str:
        own = sorted(self._axes.get(path, {}).items())
        return "; ".join(f"axis {i}: {reason}" for i, reason in own) or "no axis of it holds units that a layer puts out"


def _whole(group: AxisGroup, devices: int) -> str | None:
    """Why a group can't be spread."""
    if group.unsharded is not None:
        return group.unsharded
    if group.size % devices:
        return f"its {group.size} units are no multiple of {devices} devices"
    for m in group.members:
        length = len(m.units)
        share = m.units // (group.size // devices)
        if length % devices or (m.units < 0).any() or not np.array_equal(share, np.arange(length) // (length // devices)):
            return f"its units do not lie one behind the other in {m.path} axis {m.axis}"
    return None


def _worth(group: AxisGroup, leaves: Mapping[str, Any]) -> float:
    """Parameters that are spread for each product over units, after which devices add up."""
    sums = sum(m.role == "consumer" for m in group.members)
    return sum(int(np.prod(leaves[path].shape)) for path in {m.path for m in group.members}) / max(sums, 1)


def _check(network: Any, mesh: Any, axis: str) -> None:
    network_of(network)
    require(mesh, Mesh, "shardings: mesh", "jax.make_mesh((n,), ('model',), axis_types=(AxisType.Auto,))")
    names: Sequence[str] = mesh.axis_names
    if axis not in names:
        raise ValueError(f"shardings(axis={axis!r}): the mesh has the axes {', '.join(map(repr, names))}; pass one of them")
    if (kind := mesh.axis_types[names.index(axis)]) != AxisType.Auto:
        raise ValueError(
            f"shardings: axis {axis!r} of the mesh is of type {kind.name}, under which a model must say the sharding of each "
            "value; make it with axis_types=(AxisType.Auto,) * n"
        )


def _is_spec(x: Any) -> bool:
    return isinstance(x, PartitionSpec)
