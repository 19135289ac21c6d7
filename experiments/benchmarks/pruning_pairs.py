"""Claim: any two parts of a pruning run from a config by their names, or are an error that says why they make no sense.

Command: ``python -m experiments.benchmarks.pruning_pairs [--workdir=runs/pairs]`` (7 minutes of CPU time; pairs that are noted
in the folder are not run again). It rewrites the tables of README.md and of docs/results/benchmarks.md.

A network of one hidden layer of 32 units on scikit-learn's digits, trained for 15 epochs, or not at all for the criteria that
prune at initialization; then 75 % of its weights go, or half of its units. Where a schedule is named, and where a criterion
asks for it, 8 epochs of training follow. Each pair is a config; of what it does not name it takes magnitude, single weights,
the same share in each leaf, at once; of units the product of norms, the same share in each layer. One fold, one seed: the
tables show what runs, not which is best.
"""

from __future__ import annotations

import functools
import itertools
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from absl import app, flags
from ml_collections import ConfigDict

import jaxopt_nn as jn
from experiments.common import flag_values
from experiments.config import plain
from experiments.data.digits import digits
from experiments.models.digits import lenet300_nnx
from jaxopt_nn.pipeline import registry
from jaxopt_nn.pipeline.compress import Compressor

from .common import machine

Fields = Mapping[str, Any]
REPOSITORY = pathlib.Path(__file__).parent.parent.parent
README, BENCHMARKS = REPOSITORY / "README.md", REPOSITORY / "docs" / "results" / "benchmarks.md"
START, STOP = "<!-- pairs: python -m experiments.benchmarks.pruning_pairs -->", "<!-- end of pairs -->"

SHARE, EPOCHS = 0.75, 8
UNTRAINED = ("snip", "grasp", "synflow")
CUBIC = {"schedule": "cubic", "final": SHARE, "end": 0.7}
#: By kind of part and name, the fields of a config.
PARTS: dict[str, dict[str, Fields]] = {
    "criterion": {
        **{name: {"criterion": name} for name in ("magnitude", "energy", "random", "wanda", "ria", "fisher", "obd")},
        **{name: {"criterion": name} for name in UNTRAINED},
        **{name: {"criterion": name, "sparsity": CUBIC} for name in ("saliency", "movement")},  # need gradients of a training
        "sparsegpt": {"method": "sparsegpt"},
    },
    "structure": {
        "single weights": {"structure": "single_weights"}, "1:4": {"structure": "1:4"}, "4x4": {"structure": "4x4"},
    },
    "allocation": {
        name: {"allocation": name} for name in ("per_leaf", "per_output", "global_budget", "erk", "lamp", "by_sensitivity")
    },
    "schedule": {
        "at once": {"sparsity": SHARE},
        "constant": {"sparsity": {"schedule": "constant", "value": SHARE}},
        "cubic": {"sparsity": CUBIC},
        "staircase": {"sparsity": {"schedule": "staircase", "final": SHARE, "rounds": 3, "end": 0.7}},
        "threshold": {"threshold": 0.01, "sparsity": None},
        "rewound": {"rewind": "dense", "sparsity": SHARE},
        "rigl": {"regrow": {"name": "rigl", "end": 0.75, "start": "random"}, "every": 10, "sparsity": SHARE},
        "set": {"regrow": {"name": "sparse_evolution", "end": 0.75, "start": "random"}, "every": 10, "sparsity": SHARE},
    },
}  # fmt: skip
#: The same of units, which are cut out.
UNITS: dict[str, dict[str, Fields]] = {
    "score": {
        name: {"score": name}
        for name in (
            "norm_product", "l1_norm", "l2_norm", "geometric_median", "mean_activation", "largest_activation", "taylor",
            "removal_error", "random",
        )
    },
    "allocation": {name: {"allocation": name} for name in ("per_layer", "across_layers")},
    "budget": {
        **{name: {"share": None, name: 0.5} for name in ("params", "macs", "nbytes")}, "share": {},
        "share, rest refitted": {"reconstruct": True},
    },
}  # fmt: skip
#: Why parts don't go together: what the error says, and in short.
REASONS = {
    "needs gradients": "needs gradients, which there are only in training: a schedule from 0, or other first masks",
    "of either sign": "divides squares of scores, and these have either sign",
    "nothing is left to share out": "keeps as many in each of its groups: nothing is left to share out",
    "whatever their scores": "keeps as many in each of its groups, whatever their scores",
    "breaks the pattern": "what returns would break the pattern",
    "outputs keep unequally many": "what returns would leave outputs with unequally many",
    "decides for each weight by itself": "a threshold decides for each weight by itself",
    "each made up for by later inputs": "removes and refits weights one by one, once, the same share in each layer",
    "takes no schedule": "removes and refits weights one by one, once, the same share in each layer",
    "'sparsegpt' has no": "removes and refits weights one by one, once, the same share in each layer",
}


class Pair(NamedTuple):
    """Two parts by name, and of which kinds they are."""

    kinds: tuple[str, str]
    names: tuple[str, str]
    units: bool = False

    @property
    def fields(self) -> Fields:
        parts = UNITS if self.units else PARTS
        (a, b), (one, other) = self.kinds, self.names
        return {**({"method": "cut_units", "share": 0.5} if self.units else {}), **parts[a][one], **parts[b][other]}


def pairs() -> Iterator[Pair]:
    for parts, units in ((PARTS, False), (UNITS, True)):
        for kinds in itertools.combinations(parts, 2):
            yield from (Pair(kinds, names, units) for names in itertools.product(*(parts[kind] for kind in kinds)))


def recipe(fields: Fields) -> list[jn.Stage]:
    """The stages of a config."""
    trains = "sparsity" in fields or fields.get("criterion") in UNTRAINED
    own = {"name": "prune", "epochs": EPOCHS if trains else 0, **fields}
    if "method" not in fields:
        own = {"method": "prune", "sparsity": SHARE, "where": "**/kernel", **own}
    elif own["method"] == "sparsegpt":
        own = {"sparsity": SHARE, "where": "**/kernel", **own}
    dense = {"name": "dense", "method": "identity", "epochs": EPOCHS}
    return registry.stages(plain(ConfigDict({"stages": [dense, own] if "rewind" in fields else [own]}))["stages"])


def refusal(fields: Fields) -> str | None:
    """Why the parts don't go together; None where they do. Nothing is run."""
    try:
        recipe(fields)[-1].method(100)
    except (TypeError, ValueError) as error:
        return str(error)
    return None


@functools.cache
def network(trained: bool) -> jn.Network:
    """In float."""
    fresh, training = lenet300_nnx(0, hidden=(32,)), [jn.Stage("float", jn.identity(), 15)]
    return jn.compress(fresh, training, digits(0), latency=False, sensitivity=False).network if trained else fresh


def outcome(fields: Fields) -> dict[str, Any]:
    """Accuracy in per cent, share of zeros in the kernels and bytes; or why the parts don't go together."""
    try:
        start = network(fields.get("criterion") not in UNTRAINED)
        result = Compressor(recipe(fields))(start, digits(0), latency=False, sensitivity=False)
    except (TypeError, ValueError) as error:
        return {"error": str(error)}
    last = result.stages[-1]
    kernels = [leaf for leaf in last["leaves"] if leaf["path"].endswith("kernel")]
    zeros = 1 - sum(leaf["nonzero"] for leaf in kernels) / sum(leaf["size"] for leaf in kernels)
    return {"accuracy, %": 100 * last["metrics"]["accuracy"], "zeros, %": 100 * zeros, "bytes": last["bytes"]}


def why(error: str) -> str:
    """The reason in short.

    Raises:
      LookupError: an error that is none of them: the parts failed for another reason.
    """
    found = [short for words, short in REASONS.items() if words in " ".join(error.split())]
    if not found:
        raise LookupError(f"two parts of a pruning fail: {error}")
    return found[0]


def markdown(header: list[str], lines: list[list[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def overview() -> str:
    """All pairs in one table, parts that go with the same parts in one line, and below it why others don't."""
    kinds = list(PARTS)
    columns = [(kind, name) for kind in kinds[1:] for name in PARTS[kind]]
    letters: dict[str, str] = {}
    rows: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for kind in kinds[:-1]:
        for name in PARTS[kind]:
            cells = tuple(_cell(kind, name, *column, letters) for column in columns)
            rows.setdefault((kind, cells), []).append(name)
    lines = [[f"{kind}: {', '.join(names)}", *cells] for (kind, cells), names in rows.items()]
    reasons = "; ".join(f"{letter}: {reason}" for reason, letter in letters.items())
    scores, budgets = (", ".join(UNITS[kind]) for kind in ("score", "budget"))
    bad = [pair for pair in pairs() if pair.units and refusal(pair.fields)]
    assert not bad, bad
    return "\n\n".join([
        markdown(["", *(name for _, name in columns)], lines),
        f"{reasons}.",
        f"Whole units (`cut_units`) go by any score ({scores}), {' or '.join(UNITS['allocation'])}, to any budget ({budgets}).",
    ])  # fmt: skip


def _cell(kind: str, name: str, other_kind: str, other: str, letters: dict[str, str]) -> str:
    """``+``, the letter of the reason, or nothing where the pair is told elsewhere."""
    kinds = list(PARTS)
    if kinds.index(kind) >= kinds.index(other_kind):
        return ""
    error = refusal(Pair((kind, other_kind), (name, other)).fields)
    return "+" if error is None else letters.setdefault(why(error), "abcdefghijklm"[len(letters)])


def figures(found: Mapping[Pair, dict[str, Any]]) -> str:
    """The accuracy of each pair, or "no": a table for two kinds of parts, one below the other."""
    tables = []
    for kinds, units in dict.fromkeys((pair.kinds, pair.units) for pair in found):
        first, second = ((UNITS if units else PARTS)[kind] for kind in kinds)
        cell = lambda *names, k=kinds, u=units: _figure(found[Pair(k, names, u)])
        lines = [[f"`{a}`", *(cell(a, b) for b in second)] for a in first]
        tables.append(markdown([f"{kinds[0]}{' of units' if units else ''}", *second], lines))
    return "\n\n".join([*tables, machine()])


def _figure(found: dict[str, Any]) -> str:
    return "no" if "error" in found else f"{found['accuracy, %']:.1f}"


def updated(text: str, table: str) -> str:
    """A page with its table as it should be."""
    head, rest = text.split(START)
    return f"{head}{START}\n\n{table}\n\n{STOP}{rest.split(STOP)[1]}"


def run(folder: pathlib.Path) -> dict[Pair, dict[str, Any]]:
    """What comes of each pair; those that are noted in ``folder`` are not run again.

    Raises:
      RuntimeError: a pair fails when it runs and not when it is made, or the other way round.
    """
    folder.mkdir(parents=True, exist_ok=True)
    notes, found = folder / "pairs.jsonl", dict[Pair, dict[str, Any]]()
    notes.touch()
    for pair in pairs():
        known = dict(map(json.loads, notes.read_text().splitlines()))  # read anew: others may work in the same folder
        name = f"{' x '.join(pair.kinds)}{' of units' if pair.units else ''}: {', '.join(pair.names)}"
        found[pair] = known.get(name) or outcome(pair.fields)
        if ("error" in found[pair]) != (refusal(pair.fields) is not None):
            raise RuntimeError(f"{name}: {found[pair]} when it runs, {refusal(pair.fields)} when it is made")
        if name not in known:
            print(name, found[pair], flush=True)
            with notes.open("a") as file:
                file.write(json.dumps([name, found[pair]]) + "\n")
    return found


def main(argv: Sequence[str]) -> None:
    jax.config.update("jax_disable_most_optimizations", True)  # nearly all of the time is spent on compiling
    found = run(pathlib.Path(flag_values(argv).workdir))
    README.write_text(updated(README.read_text(), overview()))
    BENCHMARKS.write_text(updated(BENCHMARKS.read_text(), figures(found)))


if __name__ == "__main__":
    flags.DEFINE_string("workdir", "runs/pairs", "Where outcomes are noted.")
    app.run(main)
