"""Which units of a network are dead on a data set, or matter least; the masks that switch them off."""

from __future__ import annotations

import dataclasses
import glob
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_nn.core.model import AxisGroup, ModelInfo
from jaxopt_nn.core.paths import leaves_by_path
from jaxopt_nn.core.report import Recorder, Report
from jaxopt_nn.core.rule import Tap
from jaxopt_nn.core.transform import LeafTraits, State, Traits, Transform
from jaxopt_nn.interpret.groups import Coupling, couplings
from jaxopt_nn.interpret.rewrite import capture
from jaxopt_nn.methods.neurons import mask_units, unit_norms
from jaxopt_nn.tensors.base import densify

PyTree = Any
#: ``(group, {path: array}, mean |activation| [size]) -> score [size]``; the lowest scores go first.
Score = Callable[[AxisGroup, Mapping[str, Any], np.ndarray], np.ndarray]


class Layer(NamedTuple):
    """A row of ``Units``: ``off`` is bool ``[size]``, True for units to switch off; None where the group is left alone."""

    name: str
    size: int
    off: np.ndarray | None
    reason: str | None


@dataclasses.dataclass(frozen=True, eq=False)
class Units:
    """Units to switch off; prints as a table.

    Attributes:
      layers: a row for each axis group, in order of evaluation.
      keep: ``{path: {axis: bool}}`` of all leaves that they touch, as ``mask_units`` takes it.
      report: units that stay though they were meant, vectors that are not masked, groups left alone.
    """

    layers: tuple[Layer, ...]
    keep: Mapping[str, Mapping[int, np.ndarray]]
    report: Report

    def transform(self) -> Transform:
        """The masks as a transform, to chain or to put into a recipe."""
        return mask_units(self.keep)

    def masked(self, variables: PyTree) -> PyTree:
        """``variables`` with these units set to zero."""
        method = self.transform()
        return method.view(variables, method.init(variables))

    def __str__(self) -> str:
        width = max((len(layer.name) for layer in self.layers), default=5)
        lines = [f"{'layer':<{width}}  units   off"]
        for name, size, off, reason in self.layers:
            lines.append(
                f"{name:<{width}}  {size:>5}  {'-' if off is None else int(off.sum()):>4}  {reason or ''}".rstrip()
            )
        lines += [f"{m.path}: {m.reason}" for m in self.report.of("note")]
        return "\n".join(lines)


def check_threshold(threshold: float) -> None:
    """Raises ValueError for one below 0."""
    if not threshold >= 0:
        raise ValueError(f"threshold={threshold}: a magnitude of a unit's output, at least 0")


def check_share(share: float) -> None:
    """Raises ValueError for one outside [0, 1)."""
    if not 0 <= share < 1:
        raise ValueError(f"share={share}: of a layer's units, in [0, 1); it can't be left with fewer units than one")


def group_names(groups: Sequence[AxisGroup]) -> list[str]:
    """A name for each group: the path of its first producer, with the axis where two groups share it."""
    first = [g.members[0] for g in groups]
    count = Counter(m.path for m in first)
    return [m.path if count[m.path] == 1 else f"{m.path} axis {m.axis}" for m in first]


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
    """
    found, batches = _coupled(apply, variables, batches)
    if groups is None:
        wanted = {_first(c.group) for c in found if c.group.pinned is None}
    else:
        wanted = {_first(g) for g in groups}
    names = group_names([c.group for c in found])
    chosen = {n: c for n, c in zip(names, found, strict=True) if c.reads and _first(c.group) in wanted}
    return {name: seen.largest for name, seen in _measured(apply, variables, batches, chosen).items()}


def dead_units(
    apply: Callable[..., PyTree], variables: PyTree, inputs: Any, threshold: float = 0.0, batch_size: int = 512
) -> Units:
    """Units whose ``|output|`` stays at or below ``threshold`` on all of ``inputs``; 0: dead, e.g. after a ReLU.

    Masking units that are dead leaves the outputs on ``inputs`` as they are. At least one unit of a layer always stays.

    Args:
      apply: pure function ``(variables, *inputs)``.
      variables: pytree of arrays or compressed tensors.
      inputs: array ``[N, ...]``, or a tuple of arrays where ``apply`` takes several.
      threshold: at least 0.
      batch_size: examples a call.

    Raises:
      ValueError: a negative threshold, no example, inputs of different lengths, a batch size below 1, NaN activations.
    """
    check_threshold(threshold)

    def choose(coupling: Coupling, leaves: Mapping[str, Any], seen: _Activity) -> tuple[np.ndarray, np.ndarray]:
        return seen.largest <= threshold, seen.largest

    return _chosen(apply, variables, inputs, batch_size, choose)


def mean_activation(group: AxisGroup, leaves: Mapping[str, Any], activity: np.ndarray) -> np.ndarray:
    """Mean ``|activation|`` times the L2 norm of the fan-out: how much a unit moves what reads it."""
    return activity * unit_norms(group, leaves, "consumer")


def weak_units(
    apply: Callable[..., PyTree],
    variables: PyTree,
    inputs: Any,
    share: float,
    score: Score = mean_activation,
    batch_size: int = 512,
) -> Units:
    """The ``round(share * size)`` units of the lowest score in each layer, ties by position.

    At least one unit of a layer always stays: a layer so small that the share takes all of it keeps its best.

    Args:
      share: of the units, in [0, 1).
      score: any callable of the signature ``Score``.
      apply, variables, inputs, batch_size: as in ``dead_units``.

    Raises:
      ValueError: share outside [0, 1): at 1 fewer units than one would stay; a score of another shape; as ``dead_units``.
    """
    check_share(share)

    def choose(coupling: Coupling, leaves: Mapping[str, Any], seen: _Activity) -> tuple[np.ndarray, np.ndarray]:
        group = coupling.group
        scores = np.asarray(score(group, leaves, seen.mean))
        if scores.shape != (group.size,):
            raise ValueError(
                f"{group.members[0].path}: score has shape {scores.shape}; one for each of {group.size} units"
            )
        off = np.zeros(group.size, bool)
        off[np.argsort(scores, kind="stable")[: round(share * group.size)]] = True
        return off, scores

    return _chosen(apply, variables, inputs, batch_size, choose)


def prune_neurons(
    *, threshold: float = 0.0, share: float | None = None, score: Score = mean_activation, batch_size: int = 512
) -> Transform:
    """Masks the dead units (``dead_units``), or a ``share`` of the weakest (``weak_units``): fan-in, vectors, fan-out.

    For a recipe: which units these are is measured when its stage begins. By hand, ``init`` gets
    ``info.with_stats(method.traits.measure(apply, variables, inputs))``; ``dead_units(...).transform()`` is shorter.

    Raises:
      ValueError: as these two; ``share`` and a ``threshold`` together; at ``init``, no such statistics.
    """
    if share is not None and threshold:
        raise ValueError(f"prune_neurons(threshold={threshold}, share={share}): pass one of the two")
    check_threshold(threshold)
    if share is not None:
        check_share(share)

    def measure(apply: Callable[..., PyTree], variables: PyTree, inputs: Any) -> dict[str, Any]:
        if share is None:
            units = dead_units(apply, variables, inputs, threshold, batch_size)
        else:
            units = weak_units(apply, variables, inputs, share, score, batch_size)
        return {"units": units}

    def masks(info: ModelInfo) -> Transform:
        if "units" not in info.stats:
            raise ValueError(
                "prune_neurons: needs the units' outputs; pass info.with_stats(method.traits.measure(apply, variables, inputs))"
            )
        return info.stats["units"].transform()

    def init(params: PyTree, info: ModelInfo = ModelInfo()) -> State:
        return masks(info).init(params, info)

    def takes(path: str, leaf: Any, info: ModelInfo) -> LeafTraits | str:
        return masks(info).traits.takes(path, leaf, info)

    return mask_units({})._replace(
        init=init, traits=Traits(takes, leaf_local=False, needs=frozenset({"stats"}), measure=measure)
    )


# -- measuring ---------------------------------------------------------------------------------------------------------


class _Activity(NamedTuple):
    """Largest and mean ``|value|`` of each unit, float ``[size]``."""

    largest: np.ndarray
    mean: np.ndarray


def _first(group: AxisGroup) -> tuple[str, int]:
    return group.members[0].path, group.members[0].axis


def _coupled(
    apply: Callable[..., PyTree], variables: PyTree, batches: Iterable[Any]
) -> tuple[tuple[Coupling, ...], Iterable[tuple[Any, ...]]]:
    """The groups, found on the first batch, and all batches as tuples."""
    rows = (b if isinstance(b, tuple) else (b,) for b in batches)
    head = next(rows, None)
    if head is None:
        raise ValueError("no batch of inputs; pass at least one")
    return couplings(apply, variables, *head), itertools.chain([head], rows)


def _magnitudes() -> Tap:
    """For each input feature of a site: the largest and the summed ``|x|``, and the number of rows."""

    def row(site: Any) -> int:
        x = site.shapes[1 - site.weight]
        if site.kind == "conv":
            numbers = site.params["dimension_numbers"]
            return x[numbers.lhs_spec[1]] * int(np.prod([site.shapes[1][i] for i in numbers.rhs_spec[2:]]))
        return int(np.prod([x[i] for i in site.params["dimension_numbers"][0][1 - site.weight]]))

    def zero(site: Any) -> Any:
        return jnp.zeros(row(site)), jnp.zeros(row(site)), jnp.zeros(())

    def add(seen: Any, x: Any, site: Any) -> Any:
        rows = jnp.abs(x.astype(jnp.float32)).reshape(-1, x.shape[-1])
        return jnp.maximum(seen[0], rows.max(0)), seen[1] + rows.sum(0), seen[2] + rows.shape[0]

    return Tap(zero, add, _merged)


def _merged(a: Any, b: Any) -> Any:
    return jnp.maximum(a[0], b[0]), a[1] + b[1], a[2] + b[2]


def _measured(
    apply: Callable[..., PyTree], variables: PyTree, batches: Iterable[tuple[Any, ...]], chosen: Mapping[str, Coupling]
) -> dict[str, _Activity]:
    sites = dict.fromkeys(read.site for c in chosen.values() for read in c.reads)
    if not sites:
        return {}
    tapped = capture(apply, [(glob.escape(site), _magnitudes()) for site in sites])
    total: Any = None
    for batch in batches:
        stats = tapped(variables, *batch)[1]
        total = stats if total is None else {site: _merged(total[site], stats[site]) for site in sites}
    host = jax.device_get(total)
    for site, (largest, *_) in host.items():
        if np.isnan(largest).any():
            raise ValueError(
                f"{site}: NaN among the values that it reads on these inputs; clean the inputs or the weights"
            )
    return {name: _per_unit(c, host) for name, c in chosen.items()}


def _per_unit(coupling: Coupling, stats: Mapping[str, Any]) -> _Activity:
    """Joins what a group's readers saw: the largest of all, the mean of the reader that sees most."""
    size = coupling.group.size
    largest, mean = np.zeros(size, np.float32), np.zeros(size, np.float32)
    for read in coupling.reads:
        top, summed, rows = stats[read.site]

        def along(x: np.ndarray, how: Any, read: Any = read) -> np.ndarray:
            return how(np.moveaxis(x.reshape(read.shape), read.axis, 0).reshape(len(read.units), -1), axis=1)

        np.maximum.at(largest, read.units, along(top, np.max))
        total = np.zeros(size, np.float64)
        np.add.at(total, read.units, along(summed / max(float(rows), 1.0), np.mean))
        count = np.bincount(read.units, minlength=size)
        mean = np.maximum(mean, total / np.maximum(count, 1)).astype(np.float32)
    return _Activity(largest, mean)


# -- choosing ----------------------------------------------------------------------------------------------------------


def _sliced(inputs: Any, batch_size: int) -> Iterable[tuple[Any, ...]]:
    arrays = inputs if isinstance(inputs, tuple) else (inputs,)
    lengths = {len(a) for a in arrays}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"inputs have {sorted(lengths)} examples; pass arrays of one length, at least 1")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: at least 1")
    (n,) = lengths
    return (tuple(a[i : i + batch_size] for a in arrays) for i in range(0, n, batch_size))


def _chosen(
    apply: Callable[..., PyTree], variables: PyTree, inputs: Any, batch_size: int, choose: Callable[..., Any]
) -> Units:
    found, batches = _coupled(apply, variables, _sliced(inputs, batch_size))
    names = group_names([c.group for c in found])
    reasons = {
        n: c.group.pinned or (None if c.reads else "no site reads it") for n, c in zip(names, found, strict=True)
    }
    chosen = {n: c for n, c in zip(names, found, strict=True) if reasons[n] is None}
    seen = _measured(apply, variables, batches, chosen)
    leaves = {path: densify(x) for path, x in leaves_by_path(variables).items()}
    recorder = Recorder()
    layers: list[Layer] = []
    keep: dict[str, dict[int, np.ndarray]] = {}
    for name, coupling in zip(names, found, strict=True):
        size = coupling.group.size
        if reasons[name] is not None:
            recorder.add("skipped", name, str(reasons[name]))
            layers.append(Layer(name, size, None, reasons[name]))
            continue
        off, scores = choose(coupling, leaves, seen[name])
        if off.all():
            stays = int(np.argmax(scores))
            off[stays] = False
            recorder.add("note", name, f"unit {stays} stays, so that the layer keeps one of its {size}")
        layers.append(Layer(name, size, off, None))
        if off.any():
            _mark(keep, coupling, ~off, recorder)
    return Units(tuple(layers), keep, recorder.report())


def _mark(keep: dict[str, dict[int, np.ndarray]], coupling: Coupling, stay: np.ndarray, recorder: Recorder) -> None:
    for member in coupling.group.members:
        if member.path in coupling.divisors:
            recorder.add("note", member.path, "is not masked: it divides, or a power or logarithm is taken of it")
        else:
            keep.setdefault(member.path, {})[member.axis] = stay[member.units]
