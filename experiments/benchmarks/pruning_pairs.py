"""Claim: any two parts of a pruning run from a config by their names, or are an error that says why they make no sense.

Command: ``python -m experiments.benchmarks.pruning_pairs`` (6 minutes on 2 idle cores)

A network of one hidden layer of 32 units on scikit-learn's digits, trained for 15 epochs, or not at all for the criteria that
prune at initialization; then 75 % of its weights go, with 8 epochs of training. Each pair is a config; of what it does not name
it takes magnitude, single weights, the same share in each leaf, at once. One fold, one seed: the tables show what runs, not
which is best.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Mapping
from typing import Any

import jaxopt_nn as jn
from experiments.data.digits import digits
from experiments.models.digits import lenet300_nnx
from jaxopt_nn.pipeline import registry
from jaxopt_nn.pipeline.compress import Compressor

from .common import emit

Fields = Mapping[str, Any]
SHARE, EPOCHS = 0.75, 8
UNTRAINED = ("snip", "grasp", "synflow")
CUBIC = {"schedule": "cubic", "final": SHARE, "end": 0.7}
CRITERIA: dict[str, Fields] = {
    **{name: {"criterion": name} for name in ("magnitude", "energy", "random", "fisher", "obd", "snip", "grasp", "synflow")},
    **{name: {"criterion": name, "sparsity": CUBIC} for name in ("saliency", "movement")},  # need gradients of a training
}
STRUCTURES: dict[str, Fields] = {
    "single weights": {"structure": "single_weights"}, "1:4": {"structure": "1:4"}, "4x4": {"structure": "4x4"},
}  # fmt: skip
ALLOCATIONS: dict[str, Fields] = {
    name: {"allocation": name} for name in ("per_leaf", "global_budget", "erk", "lamp", "by_sensitivity")
}
SCHEDULES: dict[str, Fields] = {
    "at once": {"sparsity": SHARE},
    "constant": {"sparsity": {"schedule": "constant", "value": SHARE}},
    "cubic": {"sparsity": CUBIC},
    "staircase": {"sparsity": {"schedule": "staircase", "final": SHARE, "rounds": 3, "end": 0.7}},
    "rewound": {"rewind": "dense", "sparsity": SHARE},
    "rigl": {"regrow": {"name": "rigl", "end": 0.75}, "every": 10, "sparsity": SHARE},
    "sparse_evolution": {"regrow": {"name": "sparse_evolution", "end": 0.75}, "every": 10, "sparsity": SHARE},
}
PARTS = {"criterion": CRITERIA, "structure": STRUCTURES, "allocation": ALLOCATIONS, "schedule": SCHEDULES}


def recipe(fields: Fields) -> list[jn.Stage]:
    """The stages of a config."""
    stage = {"name": "prune", "method": "prune", "where": "**/kernel", "epochs": EPOCHS, "sparsity": SHARE, **fields}
    dense = {"name": "dense", "method": "identity", "epochs": EPOCHS}
    return registry.stages([dense, stage] if "rewind" in fields else [stage])


@functools.cache
def network(trained: bool) -> jn.Network:
    """In float."""
    fresh, recipe = lenet300_nnx(0, hidden=(32,)), [jn.Stage("float", jn.identity(), 15)]
    return jn.compress(fresh, recipe, digits(0), latency=False, sensitivity=False).network if trained else fresh


def outcome(fields: Fields) -> dict[str, Any]:
    """Accuracy in per cent, share of zeros in the kernels and bytes; or why the parts don't go together."""
    try:
        start = network(fields.get("criterion") not in UNTRAINED)
        result = Compressor(recipe(fields))(start, digits(0), latency=False, sensitivity=False)
    except ValueError as error:
        return {"error": str(error)}
    kernels = [leaf for leaf in result.stages[-1]["leaves"] if leaf["path"].endswith("kernel")]
    zeros = 1 - sum(leaf["nonzero"] for leaf in kernels) / sum(leaf["size"] for leaf in kernels)
    last = result.stages[-1]
    return {"accuracy, %": 100 * last["metrics"]["accuracy"], "zeros, %": 100 * zeros, "bytes": last["bytes"]}


def matrix(kinds: tuple[str, str], found: Mapping[tuple[str, str], dict[str, Any]]) -> list[dict[str, Any]]:
    """A line for each part of the first kind, a column for each of the second: the accuracy, or "no"."""
    first, second = (PARTS[kind] for kind in kinds)
    cell = lambda pair: f"{found[pair]['accuracy, %']:.1f}" if "error" not in found[pair] else "no"
    return [{" x ".join(kinds): a, **{b: cell((a, b)) for b in second}} for a in first]


def main() -> None:
    tables, why = [], dict[str, list[str]]()
    for kinds in itertools.combinations(PARTS, 2):
        found = {}
        for (a, own), (b, other) in itertools.product(*(PARTS[kind].items() for kind in kinds)):
            found[a, b] = outcome({**own, **other})
            print(json.dumps({"parts": f"{a}, {b}", **found[a, b]}), flush=True)
            if "error" in found[a, b]:
                why.setdefault(found[a, b]["error"], []).append(f"{a} with {b}")
        tables.append(matrix(kinds, found))
    for table in tables:
        emit(table)
    for error, pairs in why.items():
        print(f"\n{'; '.join(pairs)}:\n  {error}")


if __name__ == "__main__":
    main()
