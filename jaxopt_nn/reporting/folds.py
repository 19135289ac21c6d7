"""What the folds of a report say together: means over folds with intervals, and differences paired by fold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxopt_nn.numerics.intervals import mean_interval

#: Metric -> its value in one fold.
Numbers = Mapping[str, float | None]


def fold_entry(report: Mapping[str, Any]) -> dict[str, Any]:
    """What a report keeps of one fold, of the report of that fold alone.

    ``baseline``, ``final`` and ``control`` are on the test data. ``stages`` have the metrics of the data by which stages are
    compared; where that is not the test data, ``valid`` has those of the baseline.
    """
    first, last, control = report["baseline"], report["stages"][-1], report.get("control")
    kept = ("name", "metrics", "bytes", "ratio", "nonzero")
    tested = lambda entry: entry.get("test", entry["metrics"])
    return {
        "seed": report["seed"],
        "baseline": tested(first),
        **({"valid": first["metrics"]} if "test" in first else {}),
        "stages": [{name: stage[name] for name in kept} for stage in report["stages"]],
        "final": tested(last),
        **({"control": tested(control)} if control else {}),
    }


def summary(folds: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Means over the folds; None of fewer than two.

    Returns:
      ``{"baseline", "stages", "test": {"baseline", "final", "control"}}``, each with ``metrics``: metric -> ``{"mean", "low",
      "high", "n"}``, the 95 % interval of Student's t, and, but for baselines, ``difference``: the same of the fold's value
      less that fold's baseline. The first two are of the data by which stages are compared. ``control`` is left out where it
      was not run. A metric that is not finite in some fold is left out.
    """
    if len(folds) < 2:
        return None
    compared = [fold.get("valid", fold["baseline"]) for fold in folds]
    tested = [fold["baseline"] for fold in folds]
    ends = [name for name in ("final", "control") if all(name in fold for fold in folds)]
    stages = [[fold["stages"][k] for fold in folds] for k in range(len(folds[0]["stages"]))]
    return {
        "baseline": {"metrics": _means(compared)},
        "stages": [{"name": each[0]["name"], **_against([e["metrics"] for e in each], compared)} for each in stages],
        "test": {
            "baseline": {"metrics": _means(tested)},
            **{name: _against([fold[name] for fold in folds], tested) for name in ends},
        },
    }


def _against(values: Sequence[Numbers], baseline: Sequence[Numbers]) -> dict[str, Any]:
    known = [{m: (a, b[m]) for m, a in own.items() if m in b} for own, b in zip(values, baseline, strict=True)]
    less = [{m: None if a is None or b is None else a - b for m, (a, b) in fold.items()} for fold in known]
    return {"metrics": _means(values), "difference": _means(less)}


def _means(values: Sequence[Numbers]) -> dict[str, dict[str, float]]:
    found = {}
    for metric in values[0]:
        each = [x for fold in values if (x := fold.get(metric)) is not None and math.isfinite(x)]
        if len(each) == len(values):
            mean, low, high = mean_interval(each)
            found[metric] = {"mean": mean, "low": low, "high": high, "n": len(each)}
    return found
