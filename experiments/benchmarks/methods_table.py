"""Claim: each method does to bytes, time and accuracy what ``docs/methods.md`` says, on one network.

Command: ``python -m experiments.benchmarks.methods_table`` (5 minutes on 2 idle cores)

LeNet-300-100 in NNX on scikit-learn's digits. Each case is the code in its first column. Three of five folds: accuracies
are over the 1,080 images of their test parts, changes are paired by fold.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import jaxopt_nn as jn
from experiments.data.digits import digits
from experiments.models.digits import lenet300_nnx
from jaxopt_nn.cost.latency import latencies
from jaxopt_nn.pipeline.compress import Compressor, Result

from .common import emit

FOLDS, BATCH, FLOAT_EPOCHS = 3, 32, 50
TWO_SIZES = 'jn.by_path([("**/0/kernel", jn.quantize(4, group=16)), ("**/kernel", jn.quantize(4, group=20))])'


class Case(NamedTuple):
    """A row: the code is what runs, on the kernels unless it is a pass or names leaves itself.

    Attributes:
      code: a transform or a pass.
      epochs: of training with it.
      rule, training_rule: as in ``Stage``.
      start: where the network comes from, of ``STARTS``.
      distill: trains towards the float network's outputs.
      paper: where the method comes from.
    """

    code: str
    epochs: int = 0
    rule: str = ""
    training_rule: str = ""
    start: str = "trained"
    distill: str = ""
    paper: str = ""

    @property
    def recipe(self) -> list[jn.Stage]:
        made = lambda code: eval(code, {"jn": jn}) if code else None  # the table shows what ran
        method = made(self.code)
        if isinstance(method, jn.Transform) and "neurons" not in self.code:
            method = jn.where("**/kernel", method) if method.traits.name != "identity" else method
        rules = {"rule": made(self.rule), "training_rule": made(self.training_rule), "distill": made(self.distill)}
        return [jn.Stage("case", method, self.epochs, **rules)]


def transferred(trained: jn.Network) -> jn.Network:
    fresh = lenet300_nnx(1)
    return fresh.replace(variables=jn.transfer_weights(trained.variables, fresh.variables)[0])


STARTS: dict[str, Callable[[jn.Network], jn.Network]] = {
    "trained": lambda trained: trained,
    "random": lambda trained: lenet300_nnx(1),
    "transfer_weights": transferred,
    "student, 16 units": lambda trained: lenet300_nnx(1, hidden=(16,)),
}
TRAINED = 10
CASES = [
    Case("jn.identity()"),
    Case("jn.identity()", TRAINED),
    Case("jn.clip(-0.25, 0.25)", paper="Courbariaux et al. 2015"),
    Case("jn.clip(-0.25, 0.25)", TRAINED, paper="Courbariaux et al. 2015"),
    Case("jn.clip_percentile(1, 99)"),
    Case("jn.clip_std(2.0)"),
    Case("jn.prune(jn.magnitude, sparsity=0.8, allocation=jn.per_leaf)", paper="Han et al. 2015"),
    Case("jn.prune(jn.magnitude, sparsity=0.9, allocation=jn.per_leaf)", TRAINED, paper="Han et al. 2015"),
    Case("jn.prune(jn.magnitude, sparsity=0.9, allocation=jn.global_budget)", TRAINED, paper="Frankle & Carbin 2019"),
    Case("jn.prune(jn.magnitude, sparsity=0.9, allocation=jn.erk)", TRAINED, paper="Evci et al. 2020"),
    Case("jn.prune(jn.magnitude, threshold=0.1)", TRAINED, paper="Han et al. 2015"),
    Case("jn.prune(jn.magnitude, sparsity=jn.cubic(0.9, end=150))", TRAINED, paper="Zhu & Gupta 2017"),
    Case("jn.prune(jn.magnitude, sparsity=jn.staircase(0.9, rounds=5, end=200))", TRAINED, paper="Frankle & Carbin 2019"),
    Case("jn.prune(jn.saliency, sparsity=jn.cubic(0.9, end=150))", TRAINED, paper="Molchanov et al. 2017"),
    Case("jn.prune(jn.movement, sparsity=jn.cubic(0.9, end=150))", TRAINED, paper="Sanh et al. 2020"),
    Case("jn.every(10, jn.prune(regrow=jn.rigl(end=150), sparsity=0.9))", TRAINED, paper="Evci et al. 2020"),
    Case("jn.every(10, jn.prune(regrow=jn.sparse_evolution(0, end=150), sparsity=0.9))", TRAINED, paper="Mocanu et al. 2018"),
    Case("jn.learnt_threshold()", TRAINED, paper="Kusupati et al. 2020"),
    Case("jn.prune(jn.random_scores(0), sparsity=0.8)"),
    Case("jn.prune(jn.fisher, sparsity=0.8)", paper="Theis et al. 2018"),
    Case("jn.prune(jn.obd(), sparsity=0.8)", paper="LeCun et al. 1990"),
    Case("jn.prune(jn.magnitude, sparsity=0.8, allocation=jn.lamp)", paper="Lee et al. 2021"),
    Case("jn.prune(jn.magnitude, sparsity=0.8, allocation=jn.by_sensitivity())"),
    Case("jn.prune(structure=jn.n_of_m(2, 4), sparsity=0.5)", paper="Mishra et al. 2021"),
    Case("jn.prune(jn.energy, structure=jn.blocks(4, 2), sparsity=0.8, allocation=jn.erk)", TRAINED, paper="Gray et al. 2017"),
    Case("jn.prune(jn.wanda, sparsity=0.8, allocation=jn.per_output)", paper="Sun et al. 2024"),
    Case("jn.prune(jn.ria, sparsity=0.8)", paper="Zhang et al. 2024"),
    Case("jn.sparsegpt(0.8)", paper="Frantar & Alistarh 2023"),
    Case("jn.sparsegpt(structure=jn.n_of_m(2, 4))", paper="Frantar & Alistarh 2023"),
    Case("jn.obs(0.8)", paper="Hassibi & Stork 1993"),
    Case("jn.low_rank(nbytes=0.4)", paper="Eckart & Young 1936"),
    Case('jn.low_rank(nbytes=0.4, whiten="diagonal")', paper="Yuan et al. 2023"),
    Case('jn.low_rank(nbytes=0.4, whiten="inputs")', paper="Wang et al. 2024"),
    Case('jn.low_rank(nbytes=0.4, whiten="inputs", factors=jn.quantize(8))'),
    Case("jn.low_rank(share=0.3)", TRAINED, paper="Eckart & Young 1936"),
    Case("jn.residual(jn.low_rank(8), jn.quantize(2))", paper="Guo et al. 2024"),
    Case("jn.quantize(8)", paper="Jacob et al. 2018"),
    Case("jn.quantize(4)", paper="Jacob et al. 2018"),
    Case('jn.quantize(4, granularity="tensor")', paper="Jacob et al. 2018"),
    Case("jn.quantize(4, signed=False, symmetric=False)", paper="Jacob et al. 2018"),
    Case(TWO_SIZES, paper="Shen et al. 2020"),
    Case("jn.quantize(2)", paper="Jacob et al. 2018"),
    Case("jn.quantize(2)", TRAINED, paper="Bengio et al. 2013"),
    Case("jn.quantize(1)", TRAINED, paper="Rastegari et al. 2016"),
    Case("jn.binarize(scale=None)", TRAINED, paper="Courbariaux et al. 2015"),
    Case('jn.binarize(gradient="scaled")', TRAINED, paper="Rastegari et al. 2016"),
    Case("jn.ternarize()", TRAINED, paper="Li & Liu 2016"),
    Case('jn.ternarize("ttq")', TRAINED, paper="Zhu et al. 2017"),
    Case('jn.quantize(2, rounding="stochastic", key=0)', TRAINED, paper="Gupta et al. 2015"),
    Case("jn.every(10, jn.rate_quantize(1e-5))", TRAINED, paper="Oktay et al. 2020"),
    Case("jn.cluster(16)", paper="Han et al. 2016"),
    Case("jn.cluster(4)", paper="Han et al. 2016"),
    Case("jn.cluster(4)", TRAINED, paper="Han et al. 2016"),
    Case("jn.cluster_vectors(64, dim=4)", paper="Gong et al. 2014"),
    Case("jn.cluster_vectors(64, dim=4)", TRAINED, paper="Gong et al. 2014"),
    Case("jn.quantize(8)", 0, 'jn.arithmetic("w8a16")'),
    Case("jn.quantize(8)", 0, 'jn.arithmetic("w8a8")', paper="Dettmers et al. 2022"),
    Case("jn.quantize(8)", 0, 'jn.static_ranges("w8a8")', paper="Jacob et al. 2018"),
    Case("jn.quantize(4)", TRAINED, 'jn.arithmetic("w4a4")', "jn.identity_rule()"),
    Case("jn.quantize(4)", TRAINED, 'jn.arithmetic("w4a4")', "jn.fake_quant_activations(4)", paper="Jacob et al. 2018"),
    Case("jn.quantize(4)", TRAINED, 'jn.moving_ranges("w4a4", decay=0.9)', paper="Jacob et al. 2018"),
    Case(
        "jn.chain(jn.prune(sparsity=0.9, allocation=jn.global_budget), jn.quantize(4))", TRAINED, paper="Han et al. 2016"
    ),
    Case("jn.prune_neurons()", paper="Hu et al. 2016"),
    Case("jn.prune_neurons(share=0.5)", TRAINED, paper="Hu et al. 2016"),
    Case("jn.cut_units(jn.scores.largest_activation, threshold=0.0)", paper="Hu et al. 2016"),
    Case("jn.cut_units(jn.scores.mean_activation, share=0.5)", TRAINED, paper="Hu et al. 2016"),
    Case("jn.cut_units(share=0.5)", TRAINED, paper="Li et al. 2017"),
    Case("jn.cut_units(share=0.7)", paper="Li et al. 2017"),
    Case("jn.cut_units(share=0.7, reconstruct=True)", paper="Kurtic et al. 2023"),
    Case("jn.cut_units(jn.scores.removal_error, share=0.7, reconstruct=True)", paper="Kurtic et al. 2023"),
    Case("jn.cut_units(jn.scores.taylor, macs=0.5, allocation=jn.across_layers)", TRAINED, paper="Molchanov et al. 2019"),
    Case("jn.identity()", 2, start="random"),
    Case("jn.prune(sparsity=0.9)", 30, start="random"),
    Case("jn.prune(jn.snip, sparsity=0.9)", 30, start="random", paper="Lee et al. 2019"),
    Case("jn.prune(jn.grasp, sparsity=0.9)", 30, start="random", paper="Wang et al. 2020"),
    Case("jn.prune(jn.synflow(), sparsity=0.9)", 30, start="random", paper="Tanaka et al. 2020"),
    Case("jn.identity()", 2, start="transfer_weights", paper="Yosinski et al. 2014"),
    Case("jn.identity()", 30, start="student, 16 units"),
    Case(
        "jn.identity()", 30, start="student, 16 units", distill="jn.Distill(temperature=4.0, hard_weight=0.1)",
        paper="Hinton et al. 2015",
    ),
]  # fmt: skip


@functools.cache
def trained(fold: int) -> jn.Network:
    """The float network of a fold."""
    recipe = [jn.Stage("float", jn.identity(), FLOAT_EPOCHS)]
    return jn.compress(lenet300_nnx(0), recipe, digits(fold), seed=fold, latency=False).network


def results(case: Case) -> list[Result]:
    """Of each fold; the programs are compiled once."""
    compressor = Compressor(case.recipe)
    start = STARTS[case.start]
    run = lambda fold: compressor(
        start(trained(fold)), digits(fold), teacher=trained(fold), seed=fold, latency=False
    )
    return [run(fold) for fold in range(FOLDS)]


def row(case: Case, found: list[Result], floats: list[float]) -> dict[str, Any]:
    """Accuracy in per cent over the folds, the paired change in points with its standard error, and bytes of the first fold."""
    ends = np.array([100 * each.stages[-1]["metrics"]["accuracy"] for each in found])
    change = ends - floats
    error = change.std(ddof=1) / np.sqrt(FOLDS)
    size, whole = found[0].stages[-1]["bytes"], jn.nbytes(trained(0).variables)
    told = {"start": case.start if case.start != "trained" else "", "distill": case.distill}
    return {
        "method": case.code,
        "epochs": case.epochs,
        "rule": ", ".join(filter(None, (case.rule, case.training_rule and f"trained with {case.training_rule}"))),
        "else": ", ".join(filter(None, told.values())),
        "accuracy, %": round(float(ends.mean()), 2),
        "change, points": f"{change.mean():+.2f} ({error:.2f})",
        "bytes": size,
        "of float's": round(size / whole, 3),
    }


def timed(networks: list[jn.Network]) -> list[str]:
    """Time of a batch over the first network's, with its 95 % confidence interval; all take turns in one run."""
    ready = [net.replace(variables=jn.prepare(net.variables)) for net in networks]
    found, _ = latencies([(net.run, (net.variables, net.states)) for net in ready], digits(0).example, [BATCH])
    times = [each[str(BATCH)] for each in found]
    return [f"{t['ratio']:.2f} ({t['low']:.2f} to {t['high']:.2f})" for t in times]


def main() -> None:
    found = [results(case) for case in CASES]
    floats = [100 * each.stages[-1]["metrics"]["accuracy"] for each in found[0]]
    rows = [row(case, own, floats) for case, own in zip(CASES, found, strict=True)]
    times = timed([own[0].network for own in found])
    timed_rows = zip(CASES, rows, times, strict=True)
    emit([{**each, f"time at {BATCH}": time, "paper": case.paper} for case, each, time in timed_rows])


if __name__ == "__main__":
    main()
