"""Claim: on each model of the zoo 90 % of the parameters in matrices lie in a group that may be cut, or at an input or output
of the network; of the median model as third parties write them 80 %; and the cut network is the one with zeroed units.

Command: ``python -m experiments.benchmarks.cutting_table --page=docs/results/cutting.md`` (7 minutes on two cores; needs the
repository, for ``tests.zoo`` and ``tests.corpus``). ``--models=vit,gpt`` for some of them; ``--rows=FILE`` keeps each row as
soon as it is made, and makes none again that is there: a run that was stopped goes on.

``cuttable``: share of the parameters in matrix-shaped leaves that lie in a group that may be cut; ``or at an end``: that, or at
an input or an output of the network; a leaf that nothing reads is neither. ``groups``: those that may be cut, of all. ``30%``,
``60%``: with so many units of each group cut out at once, the largest difference to the network in which these are zero, over
its largest output; ``each 30%``, ``each 60%``: the largest with one group cut alone, over all groups. ``rest``: what is
neither, by reason, with its parameters. Exits with 1 if a model raises, or one is further off than the tests allow.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import pathlib
import re
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from absl import app, flags

from jaxopt_nn.interpret.pins import ENDS, CouplingReport, coupling_report
from tests.corpus import CORPUS, oracle
from tests.corpus.cutting import alone, differences, planned
from tests.zoo import ZOO

from .common import emit

SHARES = (0.3, 0.6)
PARTS = ("cuttable", "or at an end")
CHECKED = [name for share in SHARES for name in (f"{share:.0%}", f"each {share:.0%}")]
#: Some devices, for the models that shard; programs that run once are compiled with as little optimization as there is.
XLA_FLAGS = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)


def row(name: str) -> dict[str, Any]:
    """Of a model; ``raised`` where something went wrong."""
    jax.clear_caches()  # hundreds of programs would run the process out of memory maps
    begun, source = time.monotonic(), "zoo" if name in ZOO else "corpus"
    try:
        made = checked(source, name)
    except Exception as error:  # one model must not end the table
        made = {"model": name, "of": source, "raised": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    return made | {"seconds": round(time.monotonic() - begun, 1)}


def checked(source: str, name: str) -> dict[str, Any]:
    model = {"zoo": ZOO, "corpus": CORPUS}[source][name]()
    report = coupling_report(model.apply, model.variables, *model.inputs)
    total = max(report.parameters, 1)
    together = {f"{share:.0%}": planned(model, share)[0] for share in SHARES}
    plans = [(share, plan) for share, whole in together.items() for plan in (whole, *alone(whole).values())]
    off = differences(model, [plan for _, plan in plans])
    largest = dict.fromkeys(CHECKED, 0.0)
    for (share, plan), x in zip(plans, off, strict=True):
        place = share if plan is together[share] else f"each {share}"
        largest[place] = max(largest[place], x)
    return {
        "model": name,
        "of": source,
        "matrices": report.parameters,
        "cuttable": report.free / total,
        "or at an end": (report.free + report.ends) / total,
        "groups": f"{report.free_groups} of {len(report.groups)}",
        **largest,
        "rest": rest(report),
    }


def rest(report: CouplingReport) -> list[str]:
    """The reasons of what can't be cut and is at no end of the network, most parameters first."""
    if report.free + report.ends == report.parameters:
        return []
    return [f"{pin.reason}: {pin.uncut:,}" for pin in report.pins if pin.uncut and pin.reason not in ENDS]


def rows_of(names: Sequence[str], file: pathlib.Path | None, processes: int) -> Iterator[dict[str, Any]]:
    """Rows as they are made, those first that are in the file; each new one is written to it."""
    lines = file.read_text().splitlines() if file is not None and file.exists() else []
    old = {r["model"]: r for r in map(json.loads, lines) if r["model"] in names}
    yield from old.values()
    left = [name for name in names if name not in old]
    with multiprocessing.get_context("spawn").Pool(processes, maxtasksperchild=40) as pool:
        for new in pool.imap_unordered(row, left):
            if file is not None:
                with file.open("a") as out:
                    out.write(json.dumps(new) + "\n")
            yield new


def main(argv: list[str]) -> None:
    os.environ["XLA_FLAGS"] = f"{XLA_FLAGS} {os.environ.get('XLA_FLAGS', '')}"  # of the processes that make rows
    chosen = FLAGS.models or [*ZOO, *CORPUS]
    made: dict[str, dict[str, Any]] = {}
    for new in rows_of(chosen, pathlib.Path(FLAGS.rows) if FLAGS.rows else None, FLAGS.processes):
        made[new["model"]] = new
        said = new.get("raised") or f"{max(new[name] for name in CHECKED):.2g}"
        print(f"{len(made)} of {len(chosen)}: {new['model']}, {new['seconds']} s, {said}", file=sys.stderr, flush=True)
    rows = [{key: x for key, x in made[name].items() if key != "seconds"} for name in chosen]
    lines = emit([r | {name: f"{r[name]:.1%}" for name in PARTS if name in r} for r in (*rows, *summary(rows))])
    if FLAGS.page:
        page, narrow = pathlib.Path(FLAGS.page), [re.sub(r" +\|", " |", re.sub(r"-+\|", " --- |", line)) for line in lines]
        page.write_text("\n".join([page.read_text().partition("\n| model ")[0], *narrow]) + "\n")
    bad = [r["model"] for r in rows if "raised" in r or max(r[name] for name in CHECKED) > oracle.OUTPUT]
    if bad:
        sys.exit(f"not as the zeroed network: {', '.join(bad)}")


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The worst number of either source, and the median of what may be cut."""
    out: list[dict[str, Any]] = []
    for source in dict.fromkeys(r["of"] for r in rows):
        own = [r for r in rows if r["of"] == source and "raised" not in r]
        if not own:
            continue
        cuttable = {name: [r[name] for r in own] for name in PARTS}
        worst = {name: max(r[name] for r in own) for name in CHECKED}
        out.append({"model": f"worst of {source}", **{name: min(x) for name, x in cuttable.items()}, **worst})
        out.append({"model": f"median of {source}", **{name: statistics.median(x) for name, x in cuttable.items()}})
    return out


FLAGS = flags.FLAGS
if __name__ == "__main__":
    flags.DEFINE_list("models", [], "names; all of them if empty")
    flags.DEFINE_string("rows", "", "file that keeps each row as it is made; those in it are not made again")
    flags.DEFINE_string("page", "", "Markdown page whose table, at its end, is written anew")
    flags.DEFINE_integer("processes", os.cpu_count() or 1, "that make rows side by side")
    app.run(main)
