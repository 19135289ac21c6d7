"""Which units of a network are dead on a data set, or matter least; the masks that switch them off."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxopt_nn.core.model import AxisGroup, Coupling, ModelInfo, StatKey
from jaxopt_nn.core.paths import leaves_by_path
from jaxopt_nn.core.report import Recorder, Report
from jaxopt_nn.core.tap import Tap
from jaxopt_nn.core.transform import LeafTraits, State, Traits, Transform
from jaxopt_nn.interpret.groups import couplings, group_names
from jaxopt_nn.interpret.rewrite import capture
from jaxopt_nn.methods.taps import activity
from jaxopt_nn.methods.unit_masks import mask_units, unit_norms
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
    return _chosen(apply, variables, inputs, batch_size, _dead(threshold))


def _dead(threshold: float) -> Choice:
    return lambda coupling, leaves, seen: (seen.largest <= threshold, seen.largest)


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
    return _chosen(apply, variables, inputs, batch_size, _weak(share, score))


def _weak(share: float, score: Score) -> Choice:
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

    return choose


def prune_neurons(
    *, threshold: float = 0.0, share: float | None = None, score: Score = mean_activation
) -> Transform:
    """Masks the dead units (``dead_units``), or a ``share`` of the weakest (``weak_units``): fan-in, vectors, fan-out.

    For a recipe: which units these are is measured when its stage begins. By hand, ``init`` gets
    ``calibrate(apply, variables, method, batches)``; ``dead_units(...).transform()`` is shorter.

    Raises:
      ValueError: as these two; ``share`` and a ``threshold`` together; at ``init``, no such statistics.
    """
    if share is not None and threshold:
        raise ValueError(f"prune_neurons(threshold={threshold}, share={share}): pass one of the two")
    check_threshold(threshold)
    if share is not None:
        check_share(share)

    choose = _dead(threshold) if share is None else _weak(share, score)

    def taps(info: ModelInfo) -> dict[StatKey, Tap]:
        own = {leaf.path for leaf in info.leaves}
        touched = [c for c in info.couplings or () if any(m.path in own for m in c.group.members)]
        read = {read.site for coupling in touched for read in coupling.reads}
        sites = {site.name for site in info.sites if site.name in read}
        wanted: dict[StatKey, Tap] = {((), site, _TAP): activity() for site in sites}
        return {key: tap for key, tap in wanted.items() if key not in info.stats}

    def masks(params: PyTree, info: ModelInfo) -> Transform:
        leaves = leaves_by_path(params)
        stats = {site: x for (_, site, tap), x in info.stats.items() if tap == _TAP}
        own = [c for c in info.couplings or () if any(m.path in leaves for m in c.group.members)]
        if info.couplings is None or not {read.site for c in own for read in c.reads} <= stats.keys():
            raise ValueError(f"{name}: needs the units' outputs; pass info=calibrate(apply, variables, method, batches)")
        chosen = {n: c for n, c in _named(own).items() if _reason(c) is None}
        for layer, coupling in chosen.items():
            outside = sorted({m.path for m in coupling.group.members} - leaves.keys())
            if outside:
                raise ValueError(
                    f"{name}: the units of {layer} also lie in {', '.join(outside)}, which the pattern leaves out; give it all "
                    "leaves of a layer's units"
                )
        seen = _per_units(chosen, jax.device_get(stats))
        units = _units(_named(own), {path: _valued(x) for path, x in leaves.items()}, seen, choose)
        return mask_units({path: axes for path, axes in units.keep.items() if path in leaves})

    def init(params: PyTree, info: ModelInfo = ModelInfo()) -> State:
        return masks(params, info).init(params, info)

    def takes(path: str, leaf: Any, info: ModelInfo) -> LeafTraits | str:
        if info.couplings is None:
            return LeafTraits("mask" if len(leaf.shape) >= 2 else None)
        members = {m.path for c in info.couplings if c.group.pinned is None and c.reads for m in c.group.members}
        divisors = {path for c in info.couplings for path in c.divisors}
        if path in divisors:
            return "is not masked: it divides, or a power or logarithm is taken of it"
        return LeafTraits("mask" if len(leaf.shape) >= 2 else None) if path in members else "no unit of it is masked"

    name = "prune_neurons"
    needs = frozenset({"couplings"})
    traits = Traits(takes, leaf_local=False, needs=needs, taps=taps, passes=1, name=name)
    return mask_units({})._replace(init=init, traits=traits)


# -- measuring ---------------------------------------------------------------------------------------------------------


class _Activity(NamedTuple):
    """Largest and mean ``|value|`` of each unit, float ``[size]``."""

    largest: np.ndarray
    mean: np.ndarray


#: ``(coupling, {path: array}, activity) -> (off, scores)``: the units to switch off, and how much each is worth.
Choice = Callable[[Coupling, Mapping[str, Any], _Activity], tuple[np.ndarray, np.ndarray]]
_TAP = "activity"


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


def _measured(
    apply: Callable[..., PyTree], variables: PyTree, batches: Iterable[tuple[Any, ...]], chosen: Mapping[str, Coupling]
) -> dict[str, _Activity]:
    read = {read.site for c in chosen.values() for read in c.reads}
    if not read:
        return {}
    tapped = capture(apply, lambda site: {_TAP: activity()} if site.name in read else {})
    add = jax.jit(tapped.accumulate, donate_argnums=0)
    totals: Any = None
    for batch in batches:
        totals = tapped.zeros(variables, *batch) if totals is None else totals
        totals = add(totals, variables, *batch)
    found = tapped.statistics(totals)
    return _per_units(chosen, {site: jax.device_get(own[_TAP]) for site, own in found.items()})


def _valued(leaf: Any) -> Any:
    """A leaf whose values are not known, abstract or traced, as zeros: which units go is no matter then."""
    return np.zeros(leaf.shape) if isinstance(leaf, (jax.core.Tracer, jax.ShapeDtypeStruct)) else leaf


def _per_units(chosen: Mapping[str, Coupling], stats: Mapping[str, Any]) -> dict[str, _Activity]:
    for site, seen in stats.items():
        if np.isnan(seen["largest"]).any():
            raise ValueError(
                f"{site}: NaN among the values that it reads on these inputs; clean the inputs or the weights"
            )
    return {name: _per_unit(coupling, stats) for name, coupling in chosen.items()}


def _per_unit(coupling: Coupling, stats: Mapping[str, Any]) -> _Activity:
    """Joins what a group's readers saw: the largest of all, the mean of the reader that sees most."""
    size = coupling.group.size
    largest, mean = np.zeros(size, np.float32), np.zeros(size, np.float32)
    for read in coupling.reads:
        # what a site keeps apart (layers, experts, groups) is one here
        whole = lambda x, how: how(x.reshape(-1, x.shape[-1]), axis=0)
        top, summed = whole(stats[read.site]["largest"], np.max), whole(stats[read.site]["total"], np.sum)
        rows = np.sum(stats[read.site]["weight"])

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
    apply: Callable[..., PyTree], variables: PyTree, inputs: Any, batch_size: int, choose: Choice
) -> Units:
    found, batches = _coupled(apply, variables, _sliced(inputs, batch_size))
    named = _named(found)
    seen = _measured(apply, variables, batches, {n: c for n, c in named.items() if _reason(c) is None})
    return _units(named, leaves_by_path(variables), seen, choose)


def _named(found: Sequence[Coupling]) -> dict[str, Coupling]:
    return dict(zip(group_names([c.group for c in found]), found, strict=True))


def _reason(coupling: Coupling) -> str | None:
    """Why no unit of a group is switched off."""
    return coupling.group.pinned or (None if coupling.reads else "no site reads it")


def _units(
    named: Mapping[str, Coupling], leaves: Mapping[str, Any], seen: Mapping[str, _Activity], choose: Choice
) -> Units:
    dense = {path: densify(x) for path, x in leaves.items()}
    recorder = Recorder()
    layers: list[Layer] = []
    keep: dict[str, dict[int, np.ndarray]] = {}
    for name, coupling in named.items():
        size, reason = coupling.group.size, _reason(coupling)
        if reason is not None:
            recorder.add("skipped", name, reason)
            layers.append(Layer(name, size, None, reason))
            continue
        off, scores = choose(coupling, dense, seen[name])
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
