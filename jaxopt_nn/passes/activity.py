"""How active each unit of a network is on data, as the sites that read it see it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxopt_nn.core.model import AxisGroup, Coupling, Site, StatKey
from jaxopt_nn.core.tap import Tap
from jaxopt_nn.interpret.groups import couplings, group_names
from jaxopt_nn.interpret.rewrite import capture
from jaxopt_nn.methods.taps import activity

PyTree = Any
TAP = "activity"


class Activity(NamedTuple):
    """Largest and mean ``|value|`` of each unit, float ``[size]``."""

    largest: np.ndarray
    mean: np.ndarray


def unit_activity(
    apply: Callable[..., PyTree], variables: PyTree, batches: Iterable[Any], groups: Sequence[AxisGroup] | None = None
) -> dict[str, np.ndarray]:
    """The largest ``|value|`` of each unit over the data, as the sites that read it see it (after the activation).

    Args:
      apply: pure function ``(variables, *inputs)``.
      variables: pytree of arrays or compressed tensors.
      batches: the inputs, one array a batch, or a tuple of arrays where ``apply`` takes several.
      groups: of ``axis_groups``, the ones to measure; all that may be cut if None.

    Returns:
      ``{path of the group's first producer: float32 [size]}``, without groups that no site reads.

    Raises:
      ValueError: no batch, NaN activations.

    Example:
      >>> v = {"up": jnp.array([[1.0, -1.0, 0.5]]), "down": jnp.ones((3, 2))}
      >>> batches = [jnp.array([[2.0]]), jnp.array([[4.0]])]
      >>> jn.unit_activity(lambda v, x: jax.nn.relu(x @ v["up"]) @ v["down"], v, batches)
      {'up': array([4., 0., 2.], dtype=float32)}
    """
    first = lambda group: (group.members[0].path, group.members[0].axis, group.members[0].units.tobytes())
    layers, _, batches = coupled(apply, variables, batches)
    wanted = {first(c.group) for c in layers if c.group.pinned is None} if groups is None else set(map(first, groups))
    chosen = {n: c for n, c in named(layers).items() if c.reads and first(c.group) in wanted}
    read = {read.site for c in chosen.values() for read in c.reads}
    if not read:
        return {}
    stats = streamed(apply, variables, batches, lambda site: {TAP: activity()} if site.name in read else {})
    return {name: joined(c, {site: x for (_, site, _), x in stats.items()}).largest for name, c in chosen.items()}


def coupled(
    apply: Callable[..., PyTree], variables: PyTree, batches: Iterable[Any]
) -> tuple[tuple[Coupling, ...], tuple[Any, ...], Iterable[tuple[Any, ...]]]:
    """The groups, found on the first batch; that batch; and all batches as tuples."""
    rows = (b if isinstance(b, tuple) else (b,) for b in batches)
    head = next(rows, None)
    if head is None:
        raise ValueError("no batch of inputs; pass at least one")
    return couplings(apply, variables, *head), head, itertools.chain([head], rows)


def named(layers: Sequence[Coupling]) -> dict[str, Coupling]:
    """Couplings by the names of their groups."""
    return dict(zip(group_names([c.group for c in layers]), layers, strict=True))


def fixed(coupling: Coupling) -> str | None:
    """Why no unit of a group goes: it is pinned, or nothing reads it, so that nobody knows what it does."""
    known = coupling.reads or coupling.group.name  # of layers the value that they add to can be measured
    return coupling.group.pinned or (None if known else "no site reads it")


def free(layers: Mapping[str, Coupling]) -> dict[str, Coupling]:
    """The layers of which units may go."""
    return {name: coupling for name, coupling in layers.items() if fixed(coupling) is None}


def streamed(
    apply: Callable[..., PyTree],
    variables: PyTree,
    batches: Iterable[tuple[Any, ...]],
    taps: Callable[[Site], Mapping[str, Tap]],
) -> dict[StatKey, Any]:
    """The statistics that ``taps`` asks for, over the data: ``{((), site, name): statistic}``."""
    tapped = capture(apply, taps)
    add = jax.jit(tapped.accumulate, donate_argnums=0)
    totals: Any = None
    for batch in batches:
        totals = tapped.zeros(variables, *batch) if totals is None else totals
        totals = add(totals, variables, *batch)
    return {((), site, name): x for site, own in tapped.statistics(totals).items() for name, x in own.items()}


def joined(coupling: Coupling, stats: Mapping[str, Any]) -> Activity:
    """The activity of each unit, of the statistics by site: the largest of all, the mean of the reader that sees most.

    Raises:
      ValueError: NaN among them.
    """
    stats = jax.device_get({read.site: stats[read.site] for read in coupling.reads})
    for site, values in stats.items():
        if np.isnan(values["largest"]).any():
            raise ValueError(f"{site}: NaN among the values that it reads on these inputs; clean the inputs or the weights")
    size = coupling.group.size
    largest, mean = np.zeros(size, np.float32), np.zeros(size, np.float32)
    for read in coupling.reads:
        # what a site keeps apart (layers, experts, groups) is one here
        whole = lambda x, how: how(x.reshape(-1, x.shape[-1]), axis=0)
        top, summed = whole(stats[read.site]["largest"], np.max), whole(stats[read.site]["total"], np.sum)
        rows = np.sum(stats[read.site]["weight"])

        def along(x: np.ndarray, how: Any, read: Any = read) -> np.ndarray:
            return how(np.moveaxis(x.reshape(read.shape), read.axis, 0).reshape(len(read.units), -1), axis=1)

        inside = read.units >= 0
        units = read.units[inside]
        np.maximum.at(largest, units, along(top, np.max)[inside])
        total = np.zeros(size, np.float64)
        np.add.at(total, units, along(summed / max(float(rows), 1.0), np.mean)[inside])
        count = np.bincount(units, minlength=size)
        mean = np.maximum(mean, total / np.maximum(count, 1)).astype(np.float32)
    return Activity(largest, mean)
