"""Passes, what changes ``apply`` or shapes; and their plans, as data that prints, edits and serializes."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_nn.core.cuts import Cut
from jaxopt_nn.core.model import Coupling, Member, Rebuild
from jaxopt_nn.core.paths import near_misses
from jaxopt_nn.core.report import Message, Report
from jaxopt_nn.core.transform import Facts, Traits

PyTree = Any
SCHEMA = "jaxopt_nn.plan/2"


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """The units of one layer, and which of them stay.

    Attributes:
      name: the path of its first weight, with the axis where two layers share that.
      size: how many units it has.
      kept: int ``[k]``, those that stay, in order.
      members: the axes of leaves that are cut with them, as in ``AxisGroup``.
      pinned: None, or the reason why all units stay.
      note: what else is to be said of it.
      rebuild: what a module computes that is built at the units that stay.

    Raises:
      ValueError: ``kept`` is no list of different units of the layer, holds none, or not all of a pinned layer.
    """

    name: str
    size: int
    kept: np.ndarray
    members: tuple[Member, ...]
    pinned: str | None = None
    note: str = ""
    rebuild: Rebuild = Rebuild()

    def __post_init__(self) -> None:
        kept = np.asarray(self.kept)
        if kept.dtype == bool or kept.ndim != 1 or not (kept.size == 0 or np.issubdtype(kept.dtype, np.integer)):
            raise ValueError(
                f"{self.name}: kept is {kept.dtype}{list(kept.shape)}; pass the numbers of the units that stay, int [k]"
            )
        if kept.size == 0:
            raise ValueError(f"{self.name}: keeps none of {self.size} units, fewer than one; keep at least one")
        units = np.unique(kept)
        if len(units) != len(kept) or units[0] < 0 or units[-1] >= self.size:
            wrong = next((int(u) for u in units if not 0 <= u < self.size), None)
            what = "a unit twice" if wrong is None else f"unit {wrong}"
            raise ValueError(f"{self.name}: kept names {what}; it has the units 0 to {self.size - 1}")
        if self.pinned is not None and len(units) < self.size:
            raise ValueError(f"{self.name}: keeps all of its {self.size} units: {self.pinned}")
        object.__setattr__(self, "kept", units)

    @property
    def cut(self) -> bool:
        """Whether a unit goes."""
        return len(self.kept) < self.size

    @property
    def whole(self) -> bool:
        """Whether its units are whole leaves: the layers of a network that is not written as a loop."""
        return any(member.axis is None for member in self.members)

    @property
    def off(self) -> np.ndarray:
        """Which units go, bool ``[size]``."""
        return ~np.isin(np.arange(self.size), self.kept)

    def stay(self, member: Member) -> np.ndarray:
        """Which entries of a member's axis stay as far as this layer goes, bool; of a whole leaf whether it does."""
        return (member.units < 0) | ~self.off[member.units]


def layer_of(name: str, coupling: Coupling, kept: Any = None, pinned: str | None = None, note: str = "") -> Layer:
    """The layer of an axis group; all units stay if ``kept`` is None."""
    group = coupling.group
    units = np.arange(group.size) if kept is None else kept
    return Layer(name, group.size, units, group.members, pinned, note, group.rebuild)


@dataclasses.dataclass(frozen=True)
class Width:
    """What of a layer's width stays, and what a module computes that is built so wide. Prints as a line.

    Attributes:
      stay, units: how many units stay, and were there.
      factors: ``{path: number}``, what leaves are to be multiplied by so that the module computes what the network that is cut
        does, up to the epsilon that a norm adds; without any it does as it is.
      reason: None, or why no weights make it the same: then only the network that is cut will do.

    Example:
      >>> def apply(v, x):  # attention of one head: scores are divided by the root of its width
      ...     q, k = x @ v["q"], x @ v["k"]
      ...     return jax.nn.softmax(q @ k.T / q.shape[-1] ** 0.5) @ x
      >>> net = jn.Network(apply, {"q": jnp.ones((3, 16)), "k": jnp.ones((3, 16))})
      >>> plan = jn.cut_units(share=0.75).plan(net, jn.ModelInfo(), jnp.ones((5, 3)))
      >>> print(plan.widths()["q"])
      4 of 16, rescaled: q times 0.5
    """

    stay: int
    units: int
    factors: Mapping[str, float]
    reason: str | None = None

    @property
    def verdict(self) -> str:
        """``whole`` where all units stay, else ``equal``, ``rescaled`` or ``different``."""
        if self.stay == self.units:
            return "whole"
        return "different" if self.reason else "rescaled" if self.factors else "equal"

    def __str__(self) -> str:
        said = ", ".join(f"{path} times {factor:.6g}" for path, factor in self.factors.items())
        why = self.reason or said
        return f"{self.stay} of {self.units}, {self.verdict}{': ' if why else ''}{why}"


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """What a pass will do to a network: which units of each layer stay. Prints as a table.

    Attributes:
      name: of the pass that made it.
      leaves: ``{path: shape}`` of the network that it is for.
      inputs: what its ``apply`` takes besides, as abstract arrays.
      layers: in order of evaluation.
      dtypes: ``{path: dtype}`` of the leaves that may leave the tree, which are traced still.

    Example:
      >>> def apply(v, x):
      ...     return jax.nn.relu(x @ v["up"]) @ v["down"]
      >>> net = jn.Network(apply, {"up": jnp.ones((4, 8)), "down": jnp.ones((8, 2))})
      >>> plan = jn.cut_units(widths={"up": 3}).plan(net, jn.ModelInfo(), jnp.ones((1, 4)))
      >>> edited = plan.replace({"up": [0, 7]})
      >>> print(edited)
      layer  units  stay  rebuilt
      up        8     2  equal    up axis 1: 8 -> 2, down axis 0: 8 -> 2
      down      2     2  -        reaches an output of `apply`
      12 of 48 parameters stay
      >>> {layer: str(width) for layer, width in jn.Plan.from_json(edited.to_json()).widths().items()}
      {'up': '2 of 8, equal', 'down': '2 of 2, whole'}
    """

    name: str
    leaves: Mapping[str, tuple[int, ...]]
    inputs: tuple[PyTree, ...]
    layers: tuple[Layer, ...]
    dtypes: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def kept(self) -> dict[str, np.ndarray]:
        """``{layer: the units that stay, int [k]}`` of the layers that may be cut."""
        return {layer.name: layer.kept for layer in self.layers if layer.pinned is None}

    def widths(self) -> dict[str, Width]:
        """``{layer: how many units stay, and what a module that is built so wide computes}``.

        For who would rather build the module anew than keep the function of the whole one: with the cut variables, their
        leaves times the ``factors`` of all layers, it computes what the network that is cut does, where no layer has a reason
        why not. That is found from the program: numbers in it that are powers of a width (the divisor of a mean,
        ``1/sqrt(d)``), what reductions add for units that are cut, tables of constants.
        """
        return {layer.name: _width(layer) for layer in self.layers}

    @functools.cached_property
    def cuts(self) -> dict[str, Cut]:
        """What stays of each leaf that is cut, by path."""
        stay = self._stay(lambda member: True)
        entries = lambda axes: {axis: np.flatnonzero(own) for axis, own in axes.items() if axis is not None}
        gone = lambda axes: not axes.get(None, True)
        cuts = {path: Cut(self.leaves[path], entries(axes), gone(axes)) for path, axes in stay.items()}
        return {path: cut for path, cut in cuts.items() if cut.gone or cut.axes}

    @property
    def masks(self) -> dict[str, dict[int, np.ndarray]]:
        """``{path: {axis: bool}}`` of what would be masked in place of being cut, as ``mask_units`` takes it.

        Raises:
          ValueError: whole leaves go, of which a mask would keep nothing.
        """
        if names := [layer.name for layer in self.layers if layer.cut and layer.whole]:
            raise ValueError(f"{self.name}: layers of {names[0]} go with all of their leaves, which no mask can say; cut them")
        return self._stay(lambda member: member.role != "divisor")

    def _stay(self, counts: Callable[[Member], bool]) -> dict[str, dict[Any, Any]]:
        """``{path: {axis: bool}}``: an entry stays where each layer that it belongs to keeps its unit."""
        stay: dict[str, dict[Any, Any]] = {}
        for layer, member in self._cut_members():
            if counts(member):
                own = stay.setdefault(member.path, {})
                own[member.axis] = own.get(member.axis, True) & layer.stay(member)
        return stay

    @property
    def sizes(self) -> tuple[int, int]:
        """How many parameters the network has, before and after."""
        after = {**self.leaves, **{path: cut.small for path, cut in self.cuts.items()}}
        before, small = (sum(map(math.prod, shapes.values())) for shapes in (self.leaves, after))
        return before, small

    @property
    def report(self) -> Report:
        """A ``note`` for each layer that is cut, with the leaves and axes; ``skipped`` with the reason for the others."""
        found = []
        for layer in self.layers:
            if not layer.cut:
                found.append(Message("skipped", layer.name, f"keeps its {layer.size} units: {_why(layer)}"))
                continue
            cut = ", ".join(m.path if m.axis is None else f"{m.path} axis {m.axis}" for m in _touched(layer))
            note = f"{layer.note}; " if layer.note else ""
            found.append(Message("note", layer.name, f"{len(layer.kept)} of {layer.size} units stay; {note}cut: {cut}"))
        return Report(tuple(found))

    @property
    def facts(self) -> Facts:
        """The plan as a table of a report."""
        before, after = self.sizes
        cells = tuple((each.name, each.size, len(each.kept), _why(each) if not each.cut else each.note) for each in self.layers)
        note = f"{self.name}: {after:,} of {before:,} parameters stay."
        return Facts("Units that stay", note, ("layer", "units", "stay", "note"), cells)

    def replace(self, kept: Mapping[str, Iterable[int] | None]) -> Plan:
        """The plan with other units for some layers: ``{layer: the units that stay}``; None: all of them.

        Raises:
          ValueError: no such layer (near misses are named), or units as in ``Layer``.
        """
        names = [layer.name for layer in self.layers]
        for name in kept:
            if name not in names:
                near = near_misses(name, names) or names[:3]
                raise ValueError(f"plan: {name!r} is no layer of {len(names)}; nearest: {', '.join(near) or 'none'}")

        def edited(layer: Layer) -> Layer:
            own = kept[layer.name]
            units = np.arange(layer.size) if own is None else np.asarray(own if hasattr(own, "shape") else [*own])
            return dataclasses.replace(layer, kept=units, note="")

        layers = tuple(edited(layer) if layer.name in kept else layer for layer in self.layers)
        return dataclasses.replace(self, layers=layers)

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raises ValueError where a network of these leaves, ``{path: shape}``, is not the one that it was made for."""
        for path in {**self.leaves, **shapes}:
            here, planned = (tuple(own[path]) if path in own else None for own in (shapes, self.leaves))
            if here != planned:
                said = [f"has shape {list(own)}" if own is not None else "is missing" for own in (here, planned)]
                raise ValueError(
                    f"a plan of another network: {path} {said[0]} here, and {said[1]} in the plan of {self.name}; plan again "
                    "with this network"
                )

    def to_json(self) -> str:
        """As JSON, one line."""
        layers = [
            {
                "name": layer.name, "size": layer.size, "kept": layer.kept.tolist(), "pinned": layer.pinned,
                "note": layer.note, "rebuild": {"powers": dict(layer.rebuild.powers), "reason": layer.rebuild.reason},
                "members": [
                    {"path": m.path, "axis": m.axis, "role": m.role, "units": _counted(m.units)} for m in layer.members
                ],
            }
            for layer in self.layers
        ]  # fmt: skip
        leaves = {path: list(shape) for path, shape in self.leaves.items()}
        own = {"schema": SCHEMA, "name": self.name, "leaves": leaves, "inputs": _described(self.inputs), "layers": layers}
        return json.dumps({**own, "dtypes": dict(self.dtypes)} if self.dtypes else own)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that ``to_json`` has written, perhaps edited since.

        Raises:
          ValueError: no JSON, no plan, or units as in ``Layer``.
        """
        try:
            found = json.loads(text)
            if found["schema"] != SCHEMA:
                raise ValueError(f"its schema is {found['schema']!r}; this version reads {SCHEMA!r}")
            leaves = {path: tuple(map(int, shape)) for path, shape in found["leaves"].items()}
            layers = tuple(_layer(each, leaves) for each in found["layers"])
            return cls(found["name"], leaves, _rebuilt(found["inputs"]), layers, found.get("dtypes", {}))
        except (KeyError, IndexError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"not a plan as Plan.to_json writes it: {error!r}") from error

    def __str__(self) -> str:
        width = max((len(layer.name) for layer in self.layers), default=5)
        lines, widths = [f"{'layer':<{width}}  units  stay  rebuilt"], self.widths()
        wide = max([7, *(len(own.verdict) for own in widths.values())])
        for layer in self.layers:
            members = _touched(layer) if layer.cut else ()
            said = ", ".join(_member(m, self.cuts) for m in members[:3]) if layer.cut else _why(layer)
            more = f" and {len(members) - 3} more" if len(members) > 3 else ""
            note = f"; {layer.note}" if layer.cut and layer.note else ""
            verdict = widths[layer.name].verdict if layer.cut else "-"
            head = f"{layer.name:<{width}}  {layer.size:>5}  {len(layer.kept):>4}  {verdict:<{wide}}"
            lines.append(f"{head}  {said}{more}{note}".rstrip())
        before, after = self.sizes
        return "\n".join([*lines, f"{after:,} of {before:,} parameters stay"])

    def _cut_members(self) -> Iterable[tuple[Layer, Member]]:
        return ((layer, member) for layer in self.layers if layer.cut for member in layer.members)


def _width(layer: Layer) -> Width:
    stay = len(layer.kept)
    factors = {path: (stay / layer.size) ** power for path, power in layer.rebuild.powers} if layer.cut else {}
    return Width(stay, layer.size, factors, layer.rebuild.reason if layer.cut else None)


def _why(layer: Layer) -> str:
    """Why all units of a layer stay."""
    return layer.pinned or layer.note or "none was to go"


def _touched(layer: Layer) -> tuple[Member, ...]:
    """The members that are cut: all axes, and the leaves that go."""
    return tuple(m for m in layer.members if m.axis is not None or not layer.stay(m))


def _member(member: Member, cuts: Mapping[str, Cut]) -> str:
    cut = cuts[member.path]
    if member.axis is None or cut.gone:
        return f"{member.path} goes"
    return f"{member.path} axis {member.axis}: {cut.shape[member.axis]} -> {cut.small[member.axis]}"


def _counted(units: np.ndarray) -> Any:
    """None where entry j is unit j."""
    return None if units.ndim and np.array_equal(units, np.arange(len(units))) else units.tolist()


def _layer(found: Mapping[str, Any], leaves: Mapping[str, tuple[int, ...]]) -> Layer:
    def member(own: Mapping[str, Any]) -> Member:
        shape = leaves[own["path"]][own["axis"] :][:1] if own["axis"] is not None else ()
        units = np.arange(*shape) if own["units"] is None else np.asarray(own["units"], int)
        if units.shape != shape:
            raise ValueError(f"{own['path']}, axis {own['axis']}: {units.size} units for {math.prod(shape)} entries")
        return Member(own["path"], own["axis"], own["role"], units)

    members = tuple(map(member, found["members"]))
    rebuild = Rebuild(tuple(found["rebuild"]["powers"].items()), found["rebuild"]["reason"])
    return Layer(found["name"], found["size"], np.asarray(found["kept"]), members, found["pinned"], found["note"], rebuild)


def _described(tree: PyTree) -> Any:
    """Abstract inputs as JSON: arrays are ``"float32 2 3"``, dicts stand as they are, tuples and lists are named."""
    if isinstance(tree, dict):
        return {"dict": {key: _described(x) for key, x in tree.items()}}
    if type(tree) in (tuple, list):
        return {type(tree).__name__: [_described(x) for x in tree]}
    if tree is None:
        return None
    if not hasattr(tree, "dtype") or not all(isinstance(n, int) for n in tree.shape):
        raise TypeError(
            f"plan: inputs hold a {type(tree).__name__}; only dicts, lists, tuples and arrays can be written as JSON"
        )
    return " ".join(map(str, (jnp.dtype(tree.dtype).name, *tree.shape)))


def _rebuilt(found: Any) -> Any:
    if isinstance(found, dict):
        ((kind, own),) = found.items()
        if kind == "dict":
            return {key: _rebuilt(x) for key, x in own.items()}
        return {"tuple": tuple, "list": list}[kind](map(_rebuilt, own))
    if found is None:
        return None
    dtype, *shape = found.split(" ")
    return jax.ShapeDtypeStruct(tuple(map(int, shape)), jnp.dtype(dtype))


class Pass(NamedTuple):
    """What changes ``apply``, or shapes: a plan as data, and its execution.

    Attributes:
      plan: ``(network, info, *inputs) -> Plan``. ``inputs`` are arrays or ``jax.ShapeDtypeStruct``, as ``apply`` takes them;
        ``info`` holds what ``traits`` asks for, from ``calibrate(network, the pass, batches)``; else ``ModelInfo()``.
      execute: ``(network, plan) -> (network, remap)``. ``remap`` (``Remap``) carries over all that belongs to the network.
      traits: as a transform's: ``name``; ``takes``, which leaves it may cut; ``taps``, ``passes`` and ``needs``, what ``plan``
        must see of the model on data.
      mend: ``(network, plan, info) -> network`` with other weights of the same shapes, which is then executed; by default
        that network. A recipe calls it.

    Example:
      >>> def apply(v, x):
      ...     return jax.nn.relu(x @ v["up"]) @ v["down"]
      >>> net = jn.Network(apply, {"up": jnp.ones((4, 8)), "down": jnp.ones((8, 2))})
      >>> cut = jn.cut_units(widths={"up": 3})
      >>> plan = cut.plan(net, jn.ModelInfo(), jnp.ones((1, 4)))
      >>> small, remap = cut.execute(net, plan)
      >>> small.variables["up"].shape, small.variables["down"].shape
      ((4, 3), (3, 2))
    """

    plan: Callable[..., Plan]
    execute: Callable[[Any, Plan], tuple[Any, Any]]
    traits: Traits
    mend: Callable[[Any, Plan, Any], Any] = lambda network, plan, info: network
