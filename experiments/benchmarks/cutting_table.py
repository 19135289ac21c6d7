"""Claim: on each model of the zoo 90 % of the parameters in matrices lie in a group that may be cut, or at an input or output
of the network; of the median model as third parties write them 80 %; and the cut network is the one with zeroed units.

Command: ``XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m experiments.benchmarks.cutting_table`` (about 4 minutes;
needs the repository, for ``tests.zoo`` and ``tests.corpus``), ``--models=vit,gpt`` for some of them

``cuttable``: share of the parameters in matrix-shaped leaves that lie in a group that may be cut; ``or at an end``: that, or at
an input or an output of the network; a leaf that nothing reads is neither. ``groups``: those that may be cut, of all. ``30%``,
``60%``: with so many units of each group cut out at once, the largest difference to the network in which these are zero, over
its largest output. ``rest``: what is neither, by reason, with its parameters.
"""

from __future__ import annotations

import statistics
from typing import Any

import jax
import numpy as np
from absl import app, flags

from jaxopt_nn.interpret.pins import ENDS, CouplingReport, coupling_report
from tests.corpus import CORPUS, oracle
from tests.corpus.cutting import planned
from tests.zoo import ZOO

from .common import emit

SHARES = (0.3, 0.6)
PARTS = ("cuttable", "or at an end")


def row(source: str, name: str) -> dict[str, Any]:
    jax.clear_caches()  # hundreds of programs would run the process out of memory maps
    model = {"zoo": ZOO, "corpus": CORPUS}[source][name]()
    report = coupling_report(model.apply, model.variables, *model.inputs)
    total = max(report.parameters, 1)
    out: dict[str, Any] = {
        "model": name,
        "of": source,
        "matrices": report.parameters,
        "cuttable": report.free / total,
        "or at an end": (report.free + report.ends) / total,
        "groups": f"{report.free_groups} of {len(report.groups)}",
    }
    return out | {f"{share:.0%}": difference(model, share) for share in SHARES} | {"rest": rest(report)}


def difference(model: Any, share: float) -> float:
    """Of the cut network to the zeroed one, over the largest magnitude of an output."""
    plan, execute = planned(model, share)
    apply, small = execute(plan)
    ours, theirs = (
        jax.tree.leaves(jax.jit(f)(v, *model.inputs))
        for f, v in ((apply, small), (model.apply, oracle.zeroed(model.variables, plan)))
    )
    off = lambda a, b: np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max(initial=0)
    return max(float(off(a, b) / max(np.abs(b).max(initial=0), 1e-30)) for a, b in zip(ours, theirs, strict=True))


def rest(report: CouplingReport) -> list[str]:
    """The reasons of what can't be cut and is at no end of the network, most parameters first."""
    if report.free + report.ends == report.parameters:
        return []
    return [f"{pin.reason}: {pin.uncut:,}" for pin in report.pins if pin.uncut and pin.reason not in ENDS]


def main(argv: list[str]) -> None:
    chosen = FLAGS.models or [*ZOO, *CORPUS]
    rows = [row("zoo" if name in ZOO else "corpus", name) for name in chosen]
    emit([r | {name: f"{r[name]:.1%}" for name in PARTS} for r in (*rows, *summary(rows))])


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The worst number of either source, and the median of what may be cut."""
    out: list[dict[str, Any]] = []
    for source in dict.fromkeys(r["of"] for r in rows):
        own = [r for r in rows if r["of"] == source]
        cuttable = {name: [r[name] for r in own] for name in PARTS}
        worst = {f"{share:.0%}": max(r[f"{share:.0%}"] for r in own) for share in SHARES}
        out.append({"model": f"worst of {source}", **{name: min(x) for name, x in cuttable.items()}, **worst})
        out.append({"model": f"median of {source}", **{name: statistics.median(x) for name, x in cuttable.items()}})
    return out


FLAGS = flags.FLAGS
if __name__ == "__main__":
    flags.DEFINE_list("models", [], "names; all of them if empty")
    app.run(main)
