"""Do gradients vanish under quantization? Runs a config over derivatives of rounding and widths, and says what it found.

    jaxopt gradients --config=fashion_gradients --workdir=runs/fashion_gradients_study

The config's last stage quantizes and logs gradient norms; the one before clips. ``pass`` lets the gradient through everywhere,
``clip`` only inside the range, ``none`` has the true derivative of rounding, which is 0. ``activations`` rounds the activations
to 4 bits as well, straight through, or with the true derivative.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from absl import flags
from ml_collections import config_flags

from jaxopt_nn.core.files import open_workdir, write_file
from jaxopt_nn.core.text_table import markdown
from jaxopt_nn.pipeline.checkpoints import nothing

from . import common, compress
from .command import start
from .config import checked

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BITS = (8, 4, 2, 1)
STYLES = {
    "float": ("0.55", (0, (4, 2))), "pass": ("#0072b2", "-"), "clip": ("#e69f00", "-"), "none": ("#d55e00", "-"),
}  # fmt: skip


class Case(NamedTuple):
    """One training: ``ste`` of the weights (``"float"``: not rounded), their ``bits``, the rule of the activations."""

    ste: str
    bits: int
    rule: str = ""

    @property
    def name(self) -> str:
        return "_".join(filter(None, (self.ste, "" if self.ste == "float" else str(self.bits), self.rule)))


CASES = (
    Case("float", 0), *(Case(ste, bits) for bits in BITS for ste in ("pass", "clip", "none")),
    Case("clip", 4, "a4"), Case("clip", 4, "a4-none"),
)  # fmt: skip


def run(config: Mapping[str, Any], workdir: str, say: Callable[[str], None] = nothing) -> dict[str, Any]:
    """Trains every case, and writes ``findings.md`` and ``gradients.png``.

    Returns:
      ``{case name: {"accuracy", "first": {path: norm}, "last": {path: norm}, "steps": [...], "norms": {path: [...]}}}``;
      ``first`` and ``last`` are means over the first and the last stretch of steps.
    """
    directory = open_workdir(workdir)
    found = {}
    for case in CASES:
        made = compress.run(configured(config, case), str(directory / case.name), latency=False)
        history = [e for e in made["history"] if "gradient_norms" in e]
        found[case.name] = {
            "accuracy": made["stages"][-1]["metrics"]["accuracy"],
            "first": history[0]["gradient_norms"], "last": history[-1]["gradient_norms"],
            "steps": [e["step"] for e in history],
            "norms": {p: [e["gradient_norms"][p] for e in history] for p in history[0]["gradient_norms"]},
        }  # fmt: skip
        say(f"{case.name}: accuracy {found[case.name]['accuracy']:.2%}")
    write_file(directory / "gradients.png", common.picture(lambda figure: draw(figure, found), 9.5, 6.0))
    write_file(directory / "findings.md", findings(found).encode())
    return found


def configured(config: Mapping[str, Any], case: Case) -> dict[str, Any]:
    """The config of a case."""
    made = copy.deepcopy(checked(config))
    *box, last = made["stages"]
    last["training_rule"] = case.rule
    if case.ste == "float":
        kept = {k: last[k] for k in ("name", "epochs", "learning_rate", "gradient_norms") if k in last}
        return {**made, "stages": [{**kept, "method": "identity"}]}
    for stage in (*box, last):
        stage["ste"] = "pass" if case.ste == "none" and stage is not last else case.ste
    last["bits"] = case.bits
    return made


def matrices(found: Mapping[str, Any]) -> list[str]:
    """Paths of the kernels, in the order of the tree."""
    return [path for path in found["float"]["first"] if path.endswith("kernel")]


def draw(figure: Figure, found: Mapping[str, Any]) -> None:
    """A panel for each kernel and width: gradient norm over steps, a line for each derivative."""
    from matplotlib.ticker import MaxNLocator

    paths = matrices(found)
    panels = figure.subplots(len(paths), len(BITS), sharex=True, sharey=True, squeeze=False)
    for i, path in enumerate(paths):
        for j, bits in enumerate(BITS):
            _panel(panels[i][j], {ste: found["float" if ste == "float" else f"{ste}_{bits}"] for ste in STYLES}, path)
            if not i:
                panels[i][j].set_title(f"{bits} bits" if bits > 1 else "1 bit")
            if not j:
                panels[i][j].set_ylabel(path.split("/", 1)[-1])
    panels[0][0].margins(y=0.3)  # room for what is said of zeros; the panels share their axes
    panels[0][0].xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    panels[-1][0].set_xlabel("step")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.suptitle("Gradient norm of each kernel while its weights are rounded")


def _panel(axes: Axes, entries: Mapping[str, Mapping[str, Any]], path: str) -> None:
    """The norms of one kernel by derivative; a training that logged once is a point, norms that are all 0 are said in words."""
    axes.set_yscale("log")
    for ste, entry in entries.items():
        (colour, dashes), norms = STYLES[ste], entry["norms"][path]
        if any(norms):
            marker = "o" if len(norms) < 3 else ""
            axes.plot(entry["steps"], norms, color=colour, linestyle=dashes, marker=marker, markersize=4, label=ste)
        else:
            axes.text(0.97, 0.95, f"{ste}: exactly 0", color=colour, transform=axes.transAxes, ha="right", va="top")


def findings(found: Mapping[str, Any]) -> str:
    """The page: a table of all cases, the figure, and what follows from the numbers."""
    paths = matrices(found)
    header = ["case", "accuracy", *(f"{p.split('/', 1)[-1]}, first and last" for p in paths)]
    cells = [
        [name, f"{e['accuracy']:.2%}", *(f"{e['first'][p]:.3g}, {e['last'][p]:.3g}" for p in paths)]
        for name, e in found.items()
    ]
    return "\n".join([
        "# Do gradients vanish under quantization?", "",
        "Norms of the gradient that the optimizer gets, behind the rounding: means over the first and the last stretch of",
        "steps. `pass`: straight through everywhere; `clip`: straight through inside the range; `none`: the true derivative",
        "of rounding; `a4`: activations rounded to 4 bits as well, `a4-none` with the true derivative.", "",
        *markdown(header, cells), "", "![gradient norms](gradients.png)", "",
        *(f"- {sentence}" for sentence in _sentences(found, paths)), "",
    ])  # fmt: skip


def _sentences(found: Mapping[str, Any], paths: Sequence[str]) -> list[str]:
    dead = [n for n, e in found.items() if not any(e["last"][p] for p in paths)]
    partly = {n: [p for p in paths if not e["last"][p]] for n, e in found.items() if n not in dead}
    out = [
        f"No kernel gets any gradient in: {', '.join(dead) or 'no case'}; what accuracy there is, the biases learnt."
    ]
    out += [f"{name}: no gradient reaches {', '.join(gone)}." for name, gone in partly.items() if gone]
    for bits in BITS:
        through, clipped = found[f"pass_{bits}"], found[f"clip_{bits}"]
        ratios = ", ".join(f"{clipped['last'][p] / through['last'][p]:.2f}" for p in paths)
        gap = 100 * (clipped["accuracy"] - through["accuracy"])
        out.append(
            f"{bits} bits: last norms of `clip` over those of `pass`, by layer: {ratios}; accuracy {gap:+.2f} points."
        )
    return out


def define_flags() -> None:
    config_flags.DEFINE_config_file("config", None, "A file whose get_config() gives the trainings.")
    flags.DEFINE_string("workdir", None, "Where the runs and the findings go; made if missing.")
    flags.mark_flags_as_required(["config", "workdir"])


def main(argv: Sequence[str]) -> None:
    given = common.flag_values(argv)
    with common.plain_errors("stopped; the same command goes on from the last checkpoint"):
        run(given.config, given.workdir, say=lambda line: print(line, flush=True))
    print(f"findings: {Path(given.workdir) / 'findings.md'}")


if __name__ == "__main__":
    start(define_flags, main, __doc__)
