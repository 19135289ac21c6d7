"""Which units of a network go: those that are dead on a data set, or matter least."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from jaxopt_nn.core.model import Coupling
from jaxopt_nn.core.passes import Layer, Plan, layer_of
from jaxopt_nn.core.paths import leaves_by_path
from jaxopt_nn.interpret.network import like
from jaxopt_nn.passes.activity import Activity, coupled, fixed, free, measured, named
from jaxopt_nn.passes.scores import Score, checked, mean_activation
from jaxopt_nn.tensors.base import densify

PyTree = Any
#: ``(coupling, {path: array}, activity) -> (off, scores)``: the units that go, bool, and how much each is worth.
Choice = Callable[[Coupling, Mapping[str, Any], Activity], tuple[np.ndarray, np.ndarray]]


def dead_units(
    apply: Callable[..., PyTree], variables: PyTree, inputs: Any, threshold: float = 0.0, batch_size: int = 512
) -> Plan:
    """Units whose ``|output|`` stays at or below ``threshold`` on all of ``inputs``; 0: dead, e.g. after a ReLU.

    Without units that are dead the outputs on ``inputs`` are as they were. At least one unit of a layer always stays.

    Args:
      apply: pure function ``(variables, *inputs)``.
      variables: pytree of arrays or compressed tensors.
      inputs: array ``[N, ...]``, or a tuple of arrays where ``apply`` takes several.
      threshold: at least 0.
      batch_size: examples a call.

    Returns:
      A plan: ``mask_units(plan.masks)`` sets the units to zero, ``cut_neurons().execute(network, plan)`` takes them out.

    Raises:
      ValueError: a negative threshold, no example, inputs of different lengths, a batch size below 1, NaN activations.

    Example:
      >>> v = {"up": jnp.array([[1.0, -1.0, 0.5]]), "down": jnp.ones((3, 2))}
      >>> plan = jn.dead_units(lambda v, x: jax.nn.relu(x @ v["up"]) @ v["down"], v, jnp.array([[2.0], [4.0]]))
      >>> plan.kept["up"]  # unit 1 never fires on positive inputs
      array([0, 2])
    """
    return _found("dead_units", apply, variables, inputs, batch_size, dead(threshold))


def weak_units(
    apply: Callable[..., PyTree],
    variables: PyTree,
    inputs: Any,
    share: float,
    score: Score = mean_activation,
    batch_size: int = 512,
) -> Plan:
    """The ``round(share * size)`` units of the lowest score in each layer, ties by position.

    At least one unit of a layer always stays: a layer so small that the share takes all of it keeps its best.

    Args:
      share: of the units, in [0, 1).
      score: any callable of the signature ``Score``.
      apply, variables, inputs, batch_size: as in ``dead_units``.

    Returns:
      A plan, as ``dead_units``.

    Raises:
      ValueError: share outside [0, 1): at 1 fewer units than one would stay; a score of another shape; as ``dead_units``.

    Example:
      >>> v = {"up": jnp.array([[1.0, 0.1, 0.5, 0.2]]), "down": jnp.ones((4, 2))}
      >>> apply = lambda v, x: jax.nn.relu(x @ v["up"]) @ v["down"]
      >>> plan = jn.weak_units(apply, v, jnp.array([[2.0], [4.0]]), share=0.5)
      >>> plan.kept["up"]
      array([0, 2])
    """
    return _found("weak_units", apply, variables, inputs, batch_size, weak(share, score))


def choice(name: str, threshold: float, share: float | None, score: Score) -> Choice:
    """The choice of ``dead_units``, or with a share that of ``weak_units``.

    Raises:
      ValueError: a number outside its range; a threshold beside a share, for ``name``.
    """
    if share is not None and threshold:
        raise ValueError(f"{name}(threshold={threshold}, share={share}): pass one of the two")
    return dead(threshold) if share is None else weak(share, score)


def dead(threshold: float) -> Choice:
    """The units at or below a threshold.

    Raises:
      ValueError: one below 0.
    """
    if not threshold >= 0:
        raise ValueError(f"threshold={threshold}: a magnitude of a unit's output, at least 0")
    return lambda coupling, leaves, seen: (seen.largest <= threshold, seen.largest)


def weak(share: float, score: Score) -> Choice:
    """The units of the lowest score.

    Raises:
      ValueError: a share outside [0, 1).
    """
    if not 0 <= share < 1:
        raise ValueError(f"share={share}: of a layer's units, in [0, 1); it can't be left with fewer units than one")

    def choose(coupling: Coupling, leaves: Mapping[str, Any], seen: Activity) -> tuple[np.ndarray, np.ndarray]:
        group = coupling.group
        scores = checked(group.members[0].path, score(group, leaves, seen.mean), group.size)
        off = np.zeros(group.size, bool)
        off[np.argsort(scores, kind="stable")[: round(share * group.size)]] = True
        return off, scores

    return choose


def planned(
    name: str,
    layers: Mapping[str, Coupling],
    leaves: Mapping[str, Any],
    inputs: tuple[PyTree, ...],
    seen: Mapping[str, Activity],
    choose: Choice,
) -> Plan:
    """The plan of a choice.

    Args:
      name: of the pass.
      layers: couplings by name. seen: the activity of the units of those that may be cut.
      leaves: ``{path: array or compressed tensor}`` of the network.
      inputs: as ``apply`` takes them.
    """
    dense = {path: densify(x) for path, x in leaves.items()}

    def layer(own: str, coupling: Coupling) -> Layer:
        if (reason := fixed(coupling)) is not None:
            return layer_of(own, coupling, pinned=reason)
        off, scores = choose(coupling, dense, seen[own])
        note = ""
        if off.all():
            stays = int(np.argmax(scores))
            off[stays] = False
            note = f"unit {stays} stays, so that the layer keeps one of its {len(off)}"
        return layer_of(own, coupling, np.flatnonzero(~off), note=note)

    shapes = {path: tuple(x.shape) for path, x in leaves.items()}
    return Plan(name, shapes, like(inputs), tuple(layer(own, coupling) for own, coupling in layers.items()))


def _found(
    name: str, apply: Callable[..., PyTree], variables: PyTree, inputs: Any, batch_size: int, choose: Choice
) -> Plan:
    found, head, batches = coupled(apply, variables, _sliced(inputs, batch_size))
    layers = named(found)
    seen = measured(apply, variables, batches, free(layers))
    return planned(name, layers, leaves_by_path(variables), head, seen, choose)


def _sliced(inputs: Any, batch_size: int) -> Iterable[tuple[Any, ...]]:
    arrays = inputs if isinstance(inputs, tuple) else (inputs,)
    lengths = {len(a) for a in arrays}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"inputs have {sorted(lengths)} examples; pass arrays of one length, at least 1")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: at least 1")
    (n,) = lengths
    return (tuple(a[i : i + batch_size] for a in arrays) for i in range(0, n, batch_size))
