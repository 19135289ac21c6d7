"""``cut_layers``: a network of fewer layers, the least important of which go."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jaxopt_nn.core.model import Coupling, ModelInfo, StatKey
from jaxopt_nn.core.passes import Layer, Pass, Plan
from jaxopt_nn.core.tap import LayerTap, Statistic
from jaxopt_nn.core.transform import Traits, no_taps
from jaxopt_nn.interpret.layers import stacks
from jaxopt_nn.interpret.network import Network
from jaxopt_nn.passes.activity import named
from jaxopt_nn.passes.allocations import Allocation, across_layers
from jaxopt_nn.passes.budgets import check_parts, one_budget
from jaxopt_nn.passes.choice import Choice, matched
from jaxopt_nn.passes.costs import COSTS
from jaxopt_nn.passes.cutting import execute, leaves_of, takes
from jaxopt_nn.passes.scores import Score, block_influence
from jaxopt_nn.passes.scores.base import lacking, measures, taps_of, title
from jaxopt_nn.tensors.base import densify

PyTree = Any
NAME = "cut_layers"


def cut_layers(
    score: Score = block_influence,
    *,
    layers: int | None = None,
    share: float | None = None,
    params: float | None = None,
    macs: float | None = None,
    nbytes: float | None = None,
    latency: float | None = None,
    threshold: float | None = None,
    allocation: Allocation = across_layers,
    protect: str | Sequence[str] = (),
    least: int = 1,
    batch: int | None = None,
    branches: bool = False,
) -> Pass:
    """Takes whole layers out of a network: the blocks of a transformer, the residual blocks of a convnet.

    A layer is what a network adds to a value that passes on: ``x + f(x)``, or as many such additions as the network repeats,
    attention and MLP of a block. Layers that add to one value are a *stack*, written out or as a ``scan`` over stacked
    weights. Without a layer the addition gives ``x``. The network's code is not edited; stacked weights are sliced, and what
    belongs to a layer that is written out leaves the tree: ``None`` takes the place of its leaves.

    Args:
      score: what a layer is worth: ``jn.scores.block_influence``, ``angular_distance(n)``, ``removal_loss``, ``taylor``,
        ``l2_norm``, ``random``, or any callable of that signature. One that must see data needs
        ``info=calibrate(network, the pass, batches)``, one of the loss ``calibrate(network, the pass, task)``.
      layers: how many go, of all stacks together; where the allocation makes no difference, of the last stack first.
      share: of the layers that may go, how many do, to the nearest.
      params, macs, nbytes, latency, threshold: as in ``cut_units``.
      allocation: how scores of different stacks are compared, as in ``cut_units``.
      protect: a pattern, or several, over the names of stacks; these stay whole, and are not measured.
      least: layers that stay in each stack at least.
      batch: examples in a call whose latency is measured; as many as the inputs of ``plan`` have if None.
      branches: whether each addition is a layer of its own, so that attention and MLP go apart. An iteration of a ``scan`` is
        one layer all the same.

    Returns:
      A pass. Of equal scores the later layer goes first.

    Raises:
      ValueError: none or two of the seven; a number outside its range; a score of sites, which read no whole layer. At
        ``plan``: a budget that can't be met, with what can; a network without a stack, with the reason; as ``cut_units``. At
        ``execute``: as of ``cut_units``.

    Example:
      >>> def apply(v, x):
      ...     for layer in v["layers"]:
      ...         x = x + jnp.tanh(x @ layer["up"]) @ layer["down"]
      ...     return x @ v["head"]
      >>> draw = lambda i, *shape: jax.random.normal(jax.random.key(i), shape)
      >>> layers = [{"up": draw(2 * i, 4, 8), "down": 0.1 * i * draw(2 * i + 1, 8, 4)} for i in range(4)]
      >>> net = jn.Network(apply, {"layers": layers, "head": draw(8, 4, 2)})
      >>> x, cut = draw(0, 16, 4), jn.cut_layers(layers=2)
      >>> plan = cut.plan(net, jn.calibrate(net, cut, [x]), x)
      >>> plan.kept["layers/*"]  # the first adds nothing, the second little
      array([2, 3])
      >>> small, _ = cut.execute(net, plan)
      >>> small.variables["layers"][0]
      {'down': None, 'up': None}
    """
    costs = {"params": params, "macs": macs, "nbytes": nbytes, "latency": latency}
    budget = one_budget(NAME, "layers", layers=layers, share=share, **costs, threshold=threshold)
    check_parts(NAME, score, allocation, least=least, batch=1 if batch is None else batch)
    if taps_of(score) is not no_taps:
        raise ValueError(
            f"{NAME}(score={title(score)}): is of what a site reads, and no site reads a whole layer; pass "
            "jn.scores.block_influence or removal_loss"
        )
    protected = (protect,) if isinstance(protect, str) else tuple(protect)

    def plan(network: Network, info: ModelInfo, *inputs: PyTree) -> Plan:
        leaves = {path: densify(x) for path, x in leaves_of(network, info, NAME).items()}
        own = _stacks(network, inputs, branches)
        cost = COSTS[budget[0]](network, inputs, batch) if budget[0] in COSTS else None
        choice = Choice(NAME, score, budget, allocation, protected, 1, least)
        known = dataclasses.replace(info, couplings=tuple(own.values()))
        return _told(choice.plan(own, leaves, inputs, known, network.still, cost), leaves)

    def taps(info: ModelInfo) -> dict[StatKey, Statistic]:
        alone = lambda tap: tap._replace(alone=branches) if isinstance(tap, LayerTap) else tap
        own = named(info.couplings or ())
        spared = matched(own, protected) if own else {}
        known = dataclasses.replace(info, couplings=tuple(c for name, c in own.items() if name not in spared))
        return {key: alone(tap) for key, tap in lacking(score)(known).items()}

    sees = measures(score)
    needs = frozenset({"branches" if branches else "layers"} if sees else ())
    traits = Traits(takes, leaf_local=False, needs=needs, taps=taps, passes=int(sees), name=NAME, timed=budget[0] == "latency")
    return Pass(plan, execute, traits)


def _stacks(network: Network, inputs: tuple[PyTree, ...], branches: bool) -> dict[str, Coupling]:
    """The stacks of a network by name.

    Raises:
      ValueError: it has none.
    """
    own = named(stacks(network.apply, network.variables, *inputs, alone=branches))
    if not own:
        raise ValueError(
            f"{NAME}: no layer can go: nowhere does it add to a value what weights of its own make of it, x + f(x), "
            "twice in a row; use cut_units, which makes any network narrower"
        )
    return own


def _told(plan: Plan, leaves: Mapping[str, Any]) -> Plan:
    """With the numbers of the layers that go, and the dtypes of leaves that may go whole."""
    whole = {m.path for layer in plan.layers if layer.whole for m in layer.members}
    dtypes = {path: str(leaves[path].dtype) for path in leaves if path in whole}
    return dataclasses.replace(plan, layers=tuple(map(_numbered, plan.layers)), dtypes=dtypes)


def _numbered(layer: Layer) -> Layer:
    gone = ", ".join(str(n) for n in range(layer.size) if layer.off[n])
    return dataclasses.replace(layer, note=f"without {gone}") if layer.cut and not layer.note else layer
