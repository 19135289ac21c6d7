"""``cut_units``: a network with fewer units, the least important of which go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxopt_nn.core.model import ModelInfo, StatKey
from jaxopt_nn.core.passes import Pass, Plan
from jaxopt_nn.core.tap import Statistic
from jaxopt_nn.core.transform import Traits
from jaxopt_nn.interpret.network import Network
from jaxopt_nn.passes.activity import free
from jaxopt_nn.passes.allocations import Allocation, per_layer
from jaxopt_nn.passes.budgets import check_parts, one_budget
from jaxopt_nn.passes.choice import Choice
from jaxopt_nn.passes.costs import COSTS
from jaxopt_nn.passes.cutting import execute, layers_of, leaves_of, takes
from jaxopt_nn.passes.reconstruction import grams, reconstructed
from jaxopt_nn.passes.scores import Score, norm_product
from jaxopt_nn.passes.scores.base import lacking, measures, touched
from jaxopt_nn.passes.widths import planned_widths
from jaxopt_nn.tensors.base import densify, is_compressed

PyTree = Any
NAME = "cut_units"


def cut_units(
    score: Score = norm_product,
    *,
    share: float | None = None,
    params: float | None = None,
    macs: float | None = None,
    nbytes: float | None = None,
    latency: float | None = None,
    threshold: float | None = None,
    widths: Mapping[str, float | int] | None = None,
    allocation: Allocation = per_layer,
    protect: str | Sequence[str] = (),
    multiple: int = 1,
    least: int = 1,
    batch: int | None = None,
    reconstruct: bool = False,
) -> Pass:
    """Cuts units out of a network: neurons, channels, heads, and what else its axes hold, with all that touches them.

    One of seven arguments says how many. The network's code is not edited; the small network is the one in which the units are
    zero. The plan prints, and can be edited before it is executed.

    Args:
      score: what a unit is worth, one of ``jn.scores`` or any callable of that signature. One that must see data
        needs ``info=calibrate(network, the pass, batches)``, one of the loss ``calibrate(network, the pass, task)``.
      share: of the units that may be cut, how many go, to the nearest unit. Where an axis holds two kinds of units (heads, and
        the width of a head) both are cut: a quarter of the axis stays of two halves.
      params, macs, nbytes: what share of the whole network's parameters, of its multiply-accumulates on the inputs of ``plan``,
        or of its bytes goes, at least. Counted on the network that the plan makes.
      latency: what share of the measured median time of a call goes, at least; on this machine, weights in float. The search
        takes seconds for each of some ten networks that are tried, and another run may end a level off. A recipe's run that
        goes on after an interruption keeps its plan.
      threshold: units whose score is at most this go, and no others; ``allocation`` does not matter.
      widths: ``{pattern: share (float) or units (int)}`` that stay, over names of layers and the paths of their weights; other
        layers stay whole. A share of n units is ``round(share * n)`` of them. ``allocation`` and what follows do not matter.
      allocation: ``per_layer``, the same share in each; ``across_layers``, the weakest of all; or any callable of that
        signature.
      protect: a pattern, or several, over the same names; these layers stay whole.
      multiple: lengths of cut axes are multiples of this: 8 or 128 for what hardware does best.
      least: units that stay in each layer at least.
      reconstruct: whether the weights that read the units, and the biases added to these, are refitted to make up for those
        that go, by least squares on the calibration data: in a recipe, or by ``cut.execute(cut.mend(network, plan, info),
        plan)``. ``info`` is then needed whatever the score.
      batch: examples in a call whose latency is measured; as many as the inputs of ``plan`` have if None.

    Returns:
      A pass. Of equal scores the later unit goes first, so that layers of equal scores lose the same share.

    Raises:
      ValueError: none or two of the seven; a number outside its range. At ``plan``: a budget that can't be met, with what can;
        a pattern that matches no layer; no such statistics; scores of another shape, or NaN; compressed variables. At
        ``execute``: a plan of another network, or one that was edited against the couplings of its axes.

    Example:
      >>> def apply(v, x):
      ...     return jax.nn.relu(jax.nn.relu(x @ v["up"]) @ v["mix"]) @ v["down"]
      >>> keys = jax.random.split(jax.random.key(0), 3)
      >>> shapes = {"up": (4, 16), "mix": (16, 16), "down": (16, 2)}
      >>> net = jn.Network(apply, {n: jax.random.normal(k, s) for k, (n, s) in zip(keys, shapes.items())})
      >>> x = jax.ShapeDtypeStruct((1, 4), "float32")
      >>> cut = jn.cut_units(macs=0.5, multiple=4)
      >>> small, _ = cut.execute(net, cut.plan(net, jn.ModelInfo(), x))
      >>> jax.tree.map(jnp.shape, small.variables)
      {'down': (8, 2), 'mix': (8, 8), 'up': (4, 8)}
    """
    budget = one_budget(
        NAME, "units", share=share, params=params, macs=macs, nbytes=nbytes, latency=latency, threshold=threshold, widths=widths
    )
    check_parts(NAME, score, allocation, multiple=multiple, least=least, batch=1 if batch is None else batch)
    protected = (protect,) if isinstance(protect, str) else tuple(protect)
    choice = Choice(NAME, score, budget, allocation, protected, multiple, least)

    def plan(network: Network, info: ModelInfo, *inputs: PyTree) -> Plan:
        kind, amount = budget
        leaves, layers = _dense(leaves_of(network, info, NAME), kind, reconstruct), layers_of(network, info, *inputs)
        if kind == "widths":
            return planned_widths(choice, amount, layers, leaves, inputs, info, network.still)
        cost = COSTS[kind](network, inputs, batch) if kind in COSTS else None
        return choice.plan(layers, leaves, inputs, info, network.still, cost)

    def taps(info: ModelInfo) -> dict[StatKey, Statistic]:
        wanted = lacking(score)(info)
        layers = free(touched(info, (leaf.path for leaf in info.leaves)))
        fit = grams(info, layers) if reconstruct else {}
        return wanted | {key: tap for key, tap in fit.items() if key not in info.stats}

    def mend(network: Network, plan: Plan, info: ModelInfo) -> Network:
        return reconstructed(network, plan, info, layers_of(network, info, *plan.inputs)) if reconstruct else network

    sees = measures(score) or reconstruct
    needs = frozenset({"couplings"} if sees else ())
    traits = Traits(takes, leaf_local=False, needs=needs, taps=taps, passes=int(sees), name=NAME, timed=budget[0] == "latency")
    return Pass(plan, execute, traits, mend)


def _dense(leaves: Mapping[str, Any], kind: str, reconstruct: bool) -> dict[str, Any]:
    """The leaves as arrays, for scores.

    Raises:
      ValueError: some are compressed, where what they weigh after a cut is asked for, or new weights are to be fitted.
    """
    packed = [path for path, x in leaves.items() if is_compressed(x)]
    if packed and (reconstruct or kind == "nbytes"):
        raise ValueError(
            f"{NAME}({'reconstruct=True' if reconstruct else 'nbytes=...'}): {packed[0]} is a compressed tensor; pass another "
            "budget without reconstruct, or cut first and compress then"
        )
    return {path: densify(x) for path, x in leaves.items()}
