"""Calibration: what a method must see of the model on data, streamed into a ``ModelInfo``."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxopt_nn.core.arguments import in_words, require
from jaxopt_nn.core.memory import call_bytes, fitting
from jaxopt_nn.core.model import ModelInfo, Site, StatKey
from jaxopt_nn.core.passes import Pass
from jaxopt_nn.core.paths import leaves_by_path, map_with_path
from jaxopt_nn.core.report import Message
from jaxopt_nn.core.tap import LayerTap, Probe, Tap
from jaxopt_nn.core.transform import Transform
from jaxopt_nn.interpret.evaluate import Totals
from jaxopt_nn.interpret.groups import couplings
from jaxopt_nn.interpret.inspect import inspect
from jaxopt_nn.interpret.layers import stacks
from jaxopt_nn.interpret.network import Network, like, network_of
from jaxopt_nn.interpret.rewrite import Capturing, capture
from jaxopt_nn.pipeline import probing
from jaxopt_nn.pipeline.checkpoints import Checkpoints, nothing
from jaxopt_nn.pipeline.data import Arrays
from jaxopt_nn.pipeline.layer_stats import layer_stats
from jaxopt_nn.pipeline.task import Task
from jaxopt_nn.tensors.base import is_compressed

PyTree = Any
#: The inputs of ``apply``: one array a batch, or a tuple of them. It is gone over several times.
Batches = Iterable[Any] | Callable[[], Iterator[Any]]
#: Most examples in a batch of a task's data.
EXAMPLES = 512


def calibrate(
    network: Network,
    method: Transform | Pass,
    batches: Batches | Task,
    *,
    task: Task | None = None,
    examples: int = probing.EXAMPLES,
    sequential: bool = False,
    mesh: Mesh | None = None,
    weights: Callable[..., Any] | None = None,
    checkpoints: Callable[[str], Checkpoints] | None = None,
    say: Callable[[str], None] = nothing,
) -> ModelInfo:
    """Streams the data through the model and collects what ``method`` declares (``traits.taps``), for its ``init`` or ``plan``.

    Each member of a chain sees the model with the views of the members before it, so that the data is passed over as often
    as there are members whose statistics wait for another's; ``say`` is told how often before it starts, and of each batch.
    Memory: the statistics, two batches, and what the model needs to run.

    Args:
      network: in float; measured in evaluation mode, without its rules.
      method: any transform or pass; one that needs nothing gives the ``ModelInfo`` of ``inspect``.
      batches: what can be gone over again: a list, a dataset, or a function that returns an iterator; or a task: the inputs of
        its training data.
      task: whose loss probes see (``Probe``), on its own data, if ``batches`` is none.
      examples: of the task that probes see at most.
      sequential: layer by layer, in order of evaluation: each sees the inputs that the layers before it give once all members
        have changed them; of a scanned stack, the layers in turn. One more pass for each layer. For methods whose leaves are
        independent of each other.
      mesh: devices over which batches are split along their first axis (in every mesh axis); statistics come out whole. With
        several processes each passes its own part of the data.
      weights: ``(*inputs) -> [B] or [B, T]``, how much each example or token counts, for inputs ``[B, ...]`` or
        ``[B, T, ...]``; or ``{site: [S..., B, T]}`` of some sites, each layer of a stack by its own, as ``attention_weights``
        gives it. Sites to which the rows can't be followed are measured unweighted and named in ``info.report``.
      checkpoints: ``name of a pass -> Checkpoints``: where positions are kept; a run that was interrupted goes on to the same
        bits. Batches must come in the same order.
      say: gets a line now and then.

    Returns:
      A ``ModelInfo`` with ``stats``, all of the model's ``inspect``, and the axis groups if ``method`` needs them.

    Raises:
      ValueError: no batch; a method that weighs by the loss, and no task; compressed variables; ``batches`` that can be gone
        over once only, or that end earlier in a later pass; statistics that hold NaN or Inf; ``sequential`` with a method that
        weighs leaves against each other; a position of another calibration.

    Example:
      >>> def wanda(weight, grad, known):  # Sun et al. 2024: |w| times the norm of the input that it meets
      ...     norms = jnp.sqrt(jnp.diagonal(known.stats["gram"], axis1=-2, axis2=-1))
      ...     return known.matrix.put(weight, jnp.abs(known.matrix(weight)) * norms[..., None])
      >>> wanda.taps = lambda site: {"gram": jn.gram()}
      >>> net = jn.Network(lambda v, x: x @ v["kernel"], {"kernel": jnp.array([[2.0], [1.0]])})
      >>> method = jn.prune(wanda, sparsity=0.5)
      >>> info = jn.calibrate(net, method, [jnp.array([[1.0, 9.0]]), jnp.array([[1.0, 8.0]])])
      >>> method.view(net.variables, method.init(net.variables, info))["kernel"]  # the smaller weight stays
      Array([[0.],
             [1.]], dtype=float32)
    """
    apply, variables = network_of(network).apply, network.variables
    require(method, Transform | Pass, "calibrate: method", "a Transform or a Pass, e.g. cut_units(share=0.5)")
    if any(map(is_compressed, leaves_by_path(variables).values())):
        raise ValueError("calibrate: variables hold compressed tensors; pass the float ones, or what they became by densify")
    if isinstance(batches, Task):
        task = batches
        batches = calibration_inputs(network, task)
    run = _Run(apply, batches, mesh, weights, checkpoints, say, task, examples)
    info = inspect(apply, variables, *run.example)
    if "couplings" in method.traits.needs:
        info = dataclasses.replace(info, couplings=couplings(apply, variables, *run.example))
    if own := {"layers", "branches"} & method.traits.needs:
        info = dataclasses.replace(info, couplings=stacks(apply, variables, *run.example, alone="branches" in own))
    if not sequential:
        say(f"calibration: {method.traits.passes} passes over the data")
        return run.filled(method, leaves_by_path(variables), variables, info, info.sites)
    if isinstance(method, Pass) or not method.traits.leaf_local:
        raise ValueError(
            f"calibrate(sequential=True): {method.traits.name} weighs leaves against each other, so no layer can be finished "
            "before the next; pass sequential=False, or an allocation by leaf"
        )
    return _layer_by_layer(run, method, variables, info)


def calibrated(network: Network, batches: Batches) -> Network:
    """The network with the states of its rules, from what they ask to see of its sites: ``Rule.taps``.

    Args:
      network: with rules; measured in evaluation mode, without them. Variables may hold compressed tensors.
      batches: as for ``calibrate``.

    Raises:
      ValueError: no batch; ``batches`` that can be gone over once only; statistics that hold NaN or Inf; a site in the
        condition of a ``while``.

    Example:
      >>> v = {"up": jnp.eye(2), "down": jnp.ones((2, 1))}
      >>> net = jn.Network(lambda v, x: jax.nn.relu(x @ v["up"]) @ v["down"], v, rules=jn.static_ranges("w8a8"))
      >>> ranged = jn.calibrated(net, [jnp.array([[1.0, -3.0]]), jnp.array([[2.0, 0.5]])])
      >>> {site: float(state.carried) for site, state in sorted(ranged.states.items())}
      {'down': 2.0, 'up': 3.0}
    """
    variables = network_of(network).variables
    run = _Run(network.apply, batches, None, None, None, nothing)
    wanted = network.run.taps(variables, *run.example)
    if not wanted:
        return network.initialized(*run.example)
    asked: dict[StatKey, Tap] = {((), site, name): tap for site, own in wanted.items() for name, tap in own.items()}
    values, _ = run.measured(asked, variables)
    stats: dict[str, dict[str, Any]] = {}
    for (_, site, name), value in values.items():
        stats.setdefault(site, {})[name] = value
    return network.initialized(*run.example, stats=stats)


def calibration_inputs(network: Network, task: Task, few: bool = False) -> Batches:
    """The inputs of a task's training data, or of its test data where there is none, for ``calibrate``.

    Args:
      few: one minibatch, to try something on.
    """
    source, inputs = task.train or task.test, task.objective.inputs_of
    if not isinstance(source, Arrays):
        real_rows = lambda batch, n: jax.tree.map(lambda x: x[:n], batch)  # without those that fill up a batch
        whole = lambda: (inputs(real_rows(batch, int(real.sum()))) for batch, real in source.batches(0))
        return [next(whole())] if few else whole
    run = jax.jit(network.apply)
    need = lambda n: call_bytes(run, network.variables, *inputs(like(source.tree, n)))
    size = fitting(need, min(task.batch_size if few else EXAMPLES, source.size))
    count = min(task.batch_size, source.size) if few else source.size
    return [inputs(source.rows(slice(i, min(i + size, count)))) for i in range(0, count, size)]


class _Run:
    """One calibration: its data, its devices, and how many passes it has made."""

    def __init__(
        self,
        apply: Callable[..., PyTree],
        batches: Batches,
        mesh: Mesh | None,
        weights: Callable[..., Any] | None,
        checkpoints: Callable[[str], Checkpoints] | None,
        say: Callable[[str], None],
        task: Task | None = None,
        examples: int = probing.EXAMPLES,
    ):
        if isinstance(batches, Iterator):
            raise ValueError(
                "calibrate: batches is an iterator, which can be gone over once only; pass a list, a dataset, or a function "
                "that returns an iterator"
            )
        if hasattr(batches, "__array__") or not (callable(batches) or hasattr(batches, "__iter__")):
            raise TypeError(f"calibrate: batches is {in_words(batches)}; pass a list of batches of inputs: [x, ...]")
        self._apply, self._batches, self._weights, self._say = apply, batches, weights, say
        self._task, self._examples = task, examples
        self._mesh = None if mesh is None else Mesh(mesh.devices, mesh.axis_names)  # no axis of it is Explicit
        self._checkpoints, self._passes, self._count = checkpoints, 0, 0
        self._programs: dict[Any, tuple[Capturing, Callable[..., Totals]]] = {}
        head = next(self._inputs(), None)
        if head is None:
            raise ValueError("calibrate: no batch of inputs; pass at least one")
        self.example = head

    def _inputs(self) -> Iterator[tuple[Any, ...]]:
        batches = self._batches() if callable(self._batches) else self._batches
        return (b if isinstance(b, tuple) else (b,) for b in batches)

    def filled(
        self,
        method: Transform | Pass,
        part: dict[str, Any],
        variables: PyTree,
        info: ModelInfo,
        sites: tuple[Site, ...],
        entry: int | None = None,
    ) -> ModelInfo:
        """``info`` with all that ``method`` lacks of ``sites``.

        Args:
          part: the leaves that ``method`` changes, by path; the others, and of these all but ``entry`` of their stack, are as
            in ``variables``.
        """
        while wanted := method.traits.taps(dataclasses.replace(info, sites=sites)):
            views = method.traits.seen(part, info)
            now = _replaced(variables, views, info, entry)
            taps = {key: tap for key, tap in wanted.items() if isinstance(tap, Tap)}
            probes = {key: probe for key, probe in wanted.items() if isinstance(probe, Probe)}
            layered = {key: tap for key, tap in wanted.items() if isinstance(tap, LayerTap)}
            stats, unweighted = self.measured(taps, now) if taps else ({}, [])
            if probes:
                if entry is not None or len(sites) < len(info.sites):
                    raise ValueError(
                        f"calibrate(sequential=True): {method.traits.name} weighs by the loss of the whole network, which no "
                        "single layer has; pass sequential=False"
                    )
                stats |= probing.probed(self._apply, now, self.example, probes, self._task, self._examples)
            if layered:
                batches = map(self._split, self._inputs())
                stats |= layer_stats(self._apply, self._everywhere(now), self.example, batches, layered)
                names = dict.fromkeys(stack for _, stack, _ in layered if self._weights is not None)
                unweighted += [Message("note", name, "its layers are measured unweighted") for name in names]
            info = dataclasses.replace(info, stats={**info.stats, **stats}, report=info.report + unweighted)
        return info

    def measured(self, wanted: Mapping[StatKey, Tap], variables: PyTree) -> tuple[dict[StatKey, Any], list[Message]]:
        """One pass over the data: the statistics, and the sites that were measured unweighted."""
        by_site: dict[str, dict[str, Tap]] = {}
        for (member, site, tap), value in wanted.items():
            by_site.setdefault(site, {})[_label(member, tap)] = value
        capturing, add = self._compiled(by_site)
        empty = functools.partial(capturing.zeros, variables, *self.example, weights=self._weighed(self.example))
        totals = self._stream(add, self._everywhere(variables), empty())
        _check_finite(totals, empty)
        by_name = capturing.statistics(totals)
        stats = {key: by_name[key[1]][_label(key[0], key[2])] for key in wanted if key[1] in by_name}
        missed = sorted({site for _, site, _ in wanted.keys() - stats.keys()})
        if missed:
            raise ValueError(f"{missed[0]}: lies in the condition of a `while`, which can't be measured; leave its leaf out")
        return stats, self._unweighted(capturing, variables)

    def _compiled(self, by_site: dict[str, dict[str, Tap]]) -> tuple[Capturing, Callable[..., Totals]]:
        """The model that measures these taps, and a step that adds a batch; the layers of a scan share one."""
        key = tuple((site, tuple(own.items())) for site, own in by_site.items())
        if key not in self._programs:
            capturing = capture(self._apply, lambda site: by_site.get(site.name, {}))

            def add(totals: Totals, variables: PyTree, inputs: tuple[Any, ...], weights: Any) -> Totals:
                return capturing.accumulate(totals, variables, *inputs, weights=weights)

            self._programs[key] = capturing, jax.jit(add, donate_argnums=0)
        return self._programs[key]

    def _unweighted(self, capturing: Capturing, variables: PyTree) -> list[Message]:
        if self._weights is None:
            return []
        return list(capturing.explain(variables, *self.example, weights=self._weighed(self.example)).of("note"))

    def _stream(self, add: Callable[..., Totals], variables: PyTree, totals: Totals) -> Totals:
        """The totals over all batches, from the position of this pass where there is one."""
        self._passes += 1
        place = self._checkpoints and self._checkpoints(f"pass_{self._passes:03d}")
        position = place.restore(totals) if place else None
        done, finished = 0, False
        if position is not None:
            done, totals, meta = position
            finished = meta["finished"]
        totals = self._everywhere(totals)
        batches = iter(()) if finished else itertools.islice(self._inputs(), done, None)
        batch = next(batches, None)
        while batch is not None:
            totals = add(totals, variables, self._split(batch), self._split(self._weighed(batch)))
            batch, done = next(batches, None), done + 1  # the host reads the next batch while this one is measured
            jax.block_until_ready(totals)
            self._say(f"pass {self._passes}: {done} batches")
            if place and (place.due() or batch is None):
                place.save(done, totals, {"finished": batch is None})
        if self._count not in (0, done) or done == 0:
            raise ValueError(
                f"calibrate: pass {self._passes} had {done} batches, pass 1 had {self._count}; pass data that can be gone over "
                "again: a list, a dataset, or a function that returns an iterator"
            )
        self._count = done
        return totals

    def _weighed(self, batch: tuple[Any, ...]) -> Any:
        """The weights of a batch, float32."""
        if self._weights is None:
            return None
        answer = self._weights(*batch)
        if isinstance(answer, Mapping):
            if jax.process_count() > 1:
                raise ValueError("calibrate: weights by site and several processes; calibrate in one, or weigh all sites alike")
            return {site: jnp.asarray(own, jnp.float32) for site, own in answer.items()}
        weights = jnp.asarray(answer, jnp.float32)
        shapes = [x.shape[: weights.ndim] for x in jax.tree.leaves(batch)]
        if weights.ndim == 0 or weights.shape not in shapes:
            inputs = [x.shape for x in jax.tree.leaves(batch)]
            raise ValueError(
                f"calibrate: weights of shape {weights.shape} for inputs of shapes {inputs}; give one number for each "
                "example [B] or token [B, T]"
            )
        return weights

    def _everywhere(self, tree: PyTree) -> PyTree:
        if self._mesh is None:
            return tree
        return jax.device_put(tree, NamedSharding(self._mesh, PartitionSpec()))

    def _split(self, tree: PyTree) -> PyTree:
        """A batch over the devices of the mesh, along its first axis; where they don't divide it, on each."""
        if self._mesh is None or tree is None:
            return tree
        split = NamedSharding(self._mesh, PartitionSpec(self._mesh.axis_names))

        def place(x: Any) -> Any:
            if jax.process_count() > 1:
                return jax.make_array_from_process_local_data(split, np.asarray(x))
            whole = np.ndim(x) == 0 or np.shape(x)[0] % self._mesh.size  # type: ignore[union-attr]
            return self._everywhere(x) if whole else jax.device_put(x, split)

        return jax.tree.map(place, tree)


def _label(member: tuple[int, ...], tap: str) -> str:
    return "/".join((*map(str, member), tap))


def _replaced(variables: PyTree, part: Mapping[str, Any], info: ModelInfo, entry: int | None = None) -> PyTree:
    """``variables`` with the leaves of ``part``; of a stack only ``entry``, where there is one."""

    def new(path: str, leaf: Any) -> Any:
        matrix = info.matrix(path) if path in part and entry is not None else None
        if matrix is None or not matrix.slots:
            return part.get(path, leaf)
        return matrix.put(leaf, matrix(leaf).at[entry].set(matrix(part[path])[entry]))

    return map_with_path(new, variables)


def _check_finite(totals: Totals, empty: Callable[[], Totals]) -> None:
    """Raises ValueError where a statistic is not finite, and was not so when it was empty."""

    def bad(total: Any, zero: Any) -> Any:
        parts = zip(jax.tree.leaves(total), jax.tree.leaves(zero), strict=True)
        return functools.reduce(jnp.logical_or, [jnp.any(~jnp.isfinite(t) & (t != z)) for t, z in parts])

    # compiled, so that the empty statistics take no memory
    broken = jax.jit(lambda totals: {key: bad(totals[key], zero) for key, zero in empty().items()})(totals)
    for (site, tap), wrong in broken.items():
        if bool(wrong):
            raise ValueError(
                f"{site}: NaN or Inf in the statistic {tap.split('/')[-1]!r}; clean the inputs or the weights, or find the "
                "layer in front of it that overflows"
            )


# -- layer by layer ----------------------------------------------------------------------------------------------------


def _layer_by_layer(run: _Run, method: Transform, variables: PyTree, info: ModelInfo) -> ModelInfo:
    leaves = leaves_by_path(variables)
    read = {path for site in info.sites if site.weight is not None for path in site.leaves}
    variables = _replaced(variables, _viewed(method, {p: x for p, x in leaves.items() if p not in read}, info), info)
    steps = list(_steps(_layers(info.sites)))
    run._say(f"calibration: {len(steps)} layers, {len(steps) * method.traits.passes} passes over the data at most")
    for sites, entry in steps:
        part = {path: leaves[path] for site in sites for path in site.leaves}
        names = {site.name for site in sites}
        blank = dataclasses.replace(info, stats={k: x for k, x in info.stats.items() if k[1] not in names})
        measured = run.filled(method, part, variables, blank, sites, entry)
        info = dataclasses.replace(info, stats=_joined(info.stats, measured.stats, names, entry), report=measured.report)
        variables = _replaced(variables, _viewed(method, part, measured), info, entry)
    return info


def _viewed(method: Transform, part: dict[str, Any], info: ModelInfo) -> dict[str, Any]:
    return method.view(part, method.init(part, info)) if part else part


def _layers(sites: Sequence[Site]) -> list[tuple[Site, ...]]:
    """The sites of each layer, in order of evaluation: those that read one activation, or one leaf (then at the last)."""
    own = [s for s in sites if s.weight is not None]
    marks: dict[Any, int] = {}
    label = list(range(len(own)))
    for i, site in enumerate(own):
        for mark in (*site.leaves, *([("reads", site.reads)] if site.reads is not None else [])):
            j = marks.setdefault(mark, i)
            old, new = label[j], label[i]
            label = [new if x == old else x for x in label]
    last = {x: i for i, x in enumerate(label)}
    return [tuple(s for s, x in zip(own, label, strict=True) if x == mark) for mark in sorted(last, key=last.__getitem__)]


def _steps(layers: Sequence[tuple[Site, ...]]) -> Iterator[tuple[tuple[Site, ...], int | None]]:
    """What is finished one after the other: the sites of a layer, and which entry of their stack; None where there is none.

    Layers of one loop take turns: all of its first entry, then all of its second.
    """

    def loop(sites: tuple[Site, ...]) -> tuple[Any, int] | None:
        slots = {(s.slots[0], s.stack[0]) for s in sites if s.slots}
        return slots.pop() if len(slots) == 1 and all(s.slots for s in sites) else None

    for turns, own in itertools.groupby(layers, loop):
        group = list(own)
        for entry in [None] if turns is None else range(turns[1]):
            yield from ((sites, entry) for sites in group)


def _joined(old: Mapping[StatKey, Any], new: Mapping[StatKey, Any], names: set[str], entry: int | None) -> dict[StatKey, Any]:
    """Statistics with those of ``names`` from ``new``: of one entry of the stack, or all."""
    out = dict(old)
    for key, value in new.items():
        if key[1] in names:
            whole = entry is None or key not in old
            out[key] = value if whole else jax.tree.map(lambda a, b: a.at[entry].set(b[entry]), old[key], value)
    return out
