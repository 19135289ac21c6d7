"""Draws the pictures of the documentation: ``python -m experiments.docs_pictures``; some minutes on 2 cores.

``docs/images/digits.png``: accuracy against bytes of one network under several recipes, on handwritten digits.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from jaxopt_nn.core.combine import where
from jaxopt_nn.core.transform import identity
from jaxopt_nn.methods.allocations.global_budget import global_budget
from jaxopt_nn.methods.arithmetic import arithmetic
from jaxopt_nn.methods.prune import prune
from jaxopt_nn.methods.quantize import quantize
from jaxopt_nn.pipeline.compress import compress
from jaxopt_nn.pipeline.recipe import Stage

from .data.digits import digits
from .models.digits import build

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IMAGES = pathlib.Path(__file__).parent.parent / "docs" / "images"
FOLDS = 5
#: Bytes and accuracy of a network, fold after fold.
Points = list[tuple[int, float]]


def rounded(bits: int, epochs: int) -> Stage:
    return Stage(f"{bits} bits", where("**/kernel", quantize(bits)), epochs=epochs, rule=arithmetic(f"w{bits}a16"))


def pruned(sparsity: float) -> Stage:
    method = where("**/kernel", prune(sparsity=sparsity, allocation=global_budget))
    return Stage(f"{sparsity:.0%}", method, epochs=20, learning_rate=3e-3)


#: ``{line: {point: recipe}}``.
RECIPES: dict[str, dict[str, Sequence[Stage]]] = {
    "rounded after training": {f"{bits} bits": [rounded(bits, 0)] for bits in (8, 4, 3, 2)},
    "rounded, then trained": {f"{bits} bits": [rounded(bits, 20)] for bits in (4, 3, 2)},
    "pruned, then 4 bits, trained": {f"{s:.0%} zeros": [pruned(s), rounded(4, 20)] for s in (0.8, 0.9, 0.95)},
}


def measured() -> dict[tuple[str, str], Points]:
    """Bytes and accuracy of each recipe on each fold; ``("float", "")`` is the network before."""
    points: dict[tuple[str, str], Points] = {}
    for fold in range(FOLDS):
        task = digits(fold=fold, folds=FOLDS)
        trained = compress(build(seed=fold), [Stage("float", identity(), epochs=40)], task, seed=fold, latency=False)
        row = trained.stages[0]
        points.setdefault(("float", ""), []).append((row["bytes"], row["metrics"]["accuracy"]))
        for line, recipes in RECIPES.items():
            for name, recipe in recipes.items():
                row = compress(trained.network, recipe, task, seed=fold, latency=False).stages[-1]
                points.setdefault((line, name), []).append((row["bytes"], row["metrics"]["accuracy"]))
    return points


def drawn(points: Mapping[tuple[str, str], Points]) -> Figure:
    """Means over folds with the standard error of the difference to float, fold by fold."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.8), layout="constrained", dpi=110)
    axes = figure.add_subplot()
    base = np.array(points["float", ""])
    axes.axhline(100 * base[:, 1].mean(), color="0.6", lw=1, ls="--")
    axes.annotate(f"float, {base[0, 0]:,.0f} bytes", (0.99, 100 * base[:, 1].mean()), xycoords=("axes fraction", "data"),
                  xytext=(0, 4), textcoords="offset points", ha="right", color="0.4", fontsize=8)  # fmt: skip
    styles = zip(RECIPES, "osD", ("tab:orange", "tab:blue", "tab:green"), ((5, -12), (0, 7), (-28, -14)), strict=True)
    for line, marker, color, offset in styles:
        rows = {name: np.array(points[line, name]) for name in RECIPES[line]}
        x, y = (np.array([row[:, column].mean() for row in rows.values()]) for column in (0, 1))
        error = [np.std(row[:, 1] - base[:, 1], ddof=1) / np.sqrt(len(base)) for row in rows.values()]
        axes.errorbar(x, 100 * y, 100 * np.array(error), marker=marker, color=color, lw=1.2, capsize=2, label=line)
        for name, at in zip(rows, zip(x, 100 * y)):
            axes.annotate(name, at, xytext=offset, textcoords="offset points", fontsize=7, color=color)
    axes.set(xscale="log", xlabel="bytes stored", ylabel="accuracy, %", ylim=(None, 100))
    axes.set_xticks([10_000, 20_000, 30_000, 50_000], ["10,000", "20,000", "30,000", "50,000"], minor=False)
    axes.set_xticks([], minor=True)
    axes.set_title(f"LeNet-300-100 on digits: mean of {FOLDS} folds, standard error of the paired difference", fontsize=9)
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    drawn(measured()).savefig(IMAGES / "digits.png")


if __name__ == "__main__":
    main()
