"""Claim: below 10 KB a price for each bit of the file (``rate_quantize``) loses least; from 16 KB on pruning does as well.

Command: ``python -m experiments.benchmarks.rate_accuracy [--seeds=2] [--workdir=runs/rate_accuracy]`` (31 minutes on 2
cores that had other work as well; points that are noted in the folder are not made again)

LeNet-300-100 on Fashion-MNIST. A float network of 15 epochs for each seed, then 6 epochs a point, with the settings of the
shipped configs where there is one; pruning takes 4, what follows 2. Weights run in float32. Bytes are those of the
file on the disk, which stays in the folder beside ``points.jsonl``; accuracy is that of the test images. The picture is
``rate-accuracy.png``.

``compress_to`` looks for the price at which the file has 20,000 bytes. Whether what it finds lies on the curve is read off the
same seed's points, by a straight line in the logarithm of bytes.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from absl import app, flags

from configs import deep_compression_lenet300, fashion_lenet300_deep, fashion_lenet300_qat4, record_lenet300
from jaxopt_nn.interpret.network import Network
from jaxopt_nn.pipeline import registry
from jaxopt_nn.pipeline.compress import Compressor, Result
from jaxopt_nn.pipeline.compress_to import compress_to
from jaxopt_nn.pipeline.store import load, save
from jaxopt_nn.pipeline.task import Task

from ..common import flag_values, load_task, picture
from ..config import checked
from ..models.fashion import lenet300
from .common import emit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Epochs of a point; of a recipe with pruning so many prune, the others follow.
EPOCHS, PRUNING = 6, 4
SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.94, 0.96, 0.98, 0.99)
#: The lowest accuracy of the picture, in per cent.
FLOOR = 84.0
Stages = list[dict[str, Any]]
Note = dict[str, Any]


class Curve(NamedTuple):
    """A line of the picture, or a single point.

    Attributes:
      name: of the method.
      knob: what its values are.
      values: one for each point.
      stages: a value of the knob -> the recipe, as a config has it.
    """

    name: str
    knob: str
    values: tuple[Any, ...]
    stages: Callable[[Any], Stages]


class Aim(NamedTuple):
    """A size for ``compress_to``: the curve whose knob it sets, the bytes, and two values of the knob around them."""

    curve: str
    bytes: int
    knob: tuple[float, float]


def shipped(config: Any, *changes: Mapping[str, Any]) -> Stages:
    """The stages of a shipped config with some of their fields replaced, of mappings inside a stage single entries."""
    stages = checked(config.get_config())["stages"]
    merged = lambda old, new: {**old, **new} if isinstance(old, dict) and isinstance(new, Mapping) else new
    return [
        {**stage, **{name: merged(stage.get(name), value) for name, value in change.items()}}
        for stage, change in zip(stages, changes, strict=True)
    ]


def pruned(config: Any, sparsity: float, second: Mapping[str, Any]) -> Stages:
    """A config that prunes, and goes on with ``second``."""
    return shipped(config, {"epochs": PRUNING, "sparsity": {"final": sparsity}}, {"epochs": EPOCHS - PRUNING, **second})


def alone(method: str, **arguments: Any) -> Stages:
    """One method on the kernels."""
    return [{"name": method, "method": method, "where": "**/kernel", "epochs": EPOCHS, "learning_rate": 1e-3, **arguments}]


FLOAT = Curve("float", "", ("",), lambda _: [{"name": "float", "method": "identity", "epochs": 15, "learning_rate": 1e-3}])
CURVES = (
    Curve("rate_quantize", "penalty", tuple(float(f"{x:.3g}") for x in np.geomspace(1e-7, 1e-5, 9)),
          lambda price: shipped(record_lenet300, {"epochs": EPOCHS, "penalty": {"end_value": price}})),
    Curve("prune, cluster to 5 bits", "sparsity", SPARSITIES, lambda s: pruned(deep_compression_lenet300, s, {})),
    Curve("prune, quantize to 4 bits", "sparsity", SPARSITIES, lambda s: pruned(fashion_lenet300_deep, s, {"rule": ""})),
    Curve("cluster", "bits", tuple(range(1, 9)), lambda bits: alone("cluster", bits=bits, zero=False, learning_rate=3e-4)),
    Curve("quantize", "bits", tuple(range(1, 9)),
          lambda bits: shipped(fashion_lenet300_qat4, {"epochs": EPOCHS, "bits": bits, "rule": ""})),
    Curve("cluster_vectors, runs of 4", "vectors", (2, 4, 8, 16, 32, 64, 128, 256),
          lambda k: alone("cluster_vectors", k=k, dim=4)),
    Curve("low_rank, factors of 8 bits", "share of bytes", (0.02, 0.04, 0.07, 0.1, 0.15, 0.25, 0.4, 0.6),
          lambda share: alone("low_rank", nbytes=share, whiten="inputs", factors={"method": "quantize", "bits": 8})),
    Curve("ternarize", "kind", ("ttq",), lambda kind: alone("ternarize", kind=kind)),
    Curve("binarize", "gradient", ("scaled",), lambda gradient: alone("binarize", gradient=gradient)),
)  # fmt: skip
AIM = Aim("rate_quantize", 20_000, (9e-7, 2e-6))


class Runs:
    """The points of a folder: each is noted when it is made, and made once."""

    def __init__(self, task: Task, start: Callable[[int], Network], floating: Curve, folder: pathlib.Path):
        self._task, self._start, self._float, self._folder = task, start, floating, folder
        self._first = start(0)
        self._compressors: dict[str, Compressor] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self._notes = folder / "points.jsonl"
        text = self._notes.read_text() if self._notes.exists() else ""
        whole = text[: text.rfind("\n") + 1]  # a line that was not finished does not count
        if whole != text:
            self._notes.write_text(whole)
        self._known = {note["key"]: note for note in map(json.loads, whole.splitlines())}

    def floating(self, seed: int) -> Note:
        """Of the float network."""
        recipe = self._float.stages("")
        fresh = lambda: self._first.replace(variables=self._start(seed).variables)
        made = lambda: self._compressed(recipe, fresh(), seed)
        return self._noted({"method": self._float.name, "knob": "", "seed": seed}, recipe, made)

    def point(self, curve: Curve, value: Any, seed: int) -> Note:
        """Of one setting, from the float network of that seed."""
        recipe = curve.stages(value)
        made = lambda: self._compressed(recipe, self._trained(seed), seed)
        return self._noted({"method": curve.name, "knob": value, "seed": seed}, recipe, made)

    def aimed(self, curve: Curve, aim: Aim, seed: int) -> Note:
        """Of what ``compress_to`` finds; ``trials`` has what it tried."""
        made = lambda: compress_to(
            self._trained(seed), lambda value: registry.stages(curve.stages(value)), self._task, bytes=aim.bytes,
            knob=aim.knob, seed=seed, latency=False, sensitivity=False,
        )  # fmt: skip
        said = {"method": f"compress_to(bytes={aim.bytes:_})", "knob": [*aim.knob], "seed": seed}
        return self._noted(said, curve.stages(aim.knob[0]), made)

    def _noted(self, said: Note, recipe: Stages, made: Callable[[], Result]) -> Note:
        """The note of a run, which is made if there is none. ``key`` stands for what its numbers depend on."""
        setting = [said, self._float.stages(""), recipe, self._task.steps, self._task.batch_size]
        key = hashlib.sha256(json.dumps(setting).encode()).hexdigest()[:16]
        file = self._file(said)
        if key not in self._known or not file.exists():
            began, result = time.monotonic(), made()
            save(file, result.network, overwrite=True)
            note = {**said, "bytes": file.stat().st_size, "accuracy": result.stages[-1]["metrics"][self._task.headline]}
            if trials := result.report.get("trials"):
                note["trials"] = trials
            self._known[key] = {**note, "seconds": round(time.monotonic() - began, 1), "key": key}
            with self._notes.open("a") as notes:
                notes.write(json.dumps(self._known[key]) + "\n")
            print(self._known[key], file=sys.stderr, flush=True)
        return self._known[key]

    def _file(self, said: Note) -> pathlib.Path:
        words = re.sub(r"[^\w.]+", "-", f"{said['method']} {said['knob']}").strip("-")
        return self._folder / f"{words}_seed{said['seed']}.jn"

    def _trained(self, seed: int) -> Network:
        """The float network of a seed, as it was written."""
        return self._first.replace(variables=load(self._file(self.floating(seed)), self._first.apply).variables)

    def _compressed(self, recipe: Stages, network: Network, seed: int) -> Result:
        """Programs are kept: a second seed compiles hardly anything."""
        words = json.dumps(recipe)
        if words not in self._compressors:
            self._compressors[words] = Compressor(registry.stages(recipe))
        return self._compressors[words](network, self._task, seed=seed, latency=False, sensitivity=False)


def run(runs: Runs, curves: Sequence[Curve], aim: Aim, seeds: int) -> list[Note]:
    """The notes of all points, seed after seed."""
    aimed = next(curve for curve in curves if curve.name == aim.curve)
    return [
        note
        for seed in range(seeds)
        for note in (
            runs.floating(seed),
            *(runs.point(curve, value, seed) for curve in curves for value in curve.values),
            runs.aimed(aimed, aim, seed),
        )
    ]


def spread(values: Sequence[float]) -> float:
    """Their standard deviation, 0 of one alone."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def by_point(notes: Sequence[Note]) -> dict[tuple[str, str], list[Note]]:
    """The notes of all seeds together, by method and knob."""
    found: dict[tuple[str, str], list[Note]] = {}
    for note in notes:
        found.setdefault((note["method"], str(note["knob"])), []).append(note)
    return found


def rows(notes: Sequence[Note], curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """A row for each point: means and standard deviations over seeds."""
    knobs = {curve.name: curve.knob for curve in curves}
    out = []
    for (method, knob), found in by_point(notes).items():
        sizes, values = [note["bytes"] for note in found], [100 * note["accuracy"] for note in found]
        out.append({
            "method": method, "knob": f"{knobs[method]} {knob}".strip() if method in knobs else "",
            "bytes": round(statistics.fmean(sizes)), "std of bytes": round(spread(sizes)),
            "accuracy, %": f"{statistics.fmean(values):.2f}", "std": f"{spread(values):.2f}", "seeds": len(found),
        })  # fmt: skip
    return out


def on_the_curve(notes: Sequence[Note], curve: str) -> list[dict[str, Any]]:
    """What ``compress_to`` found beside the curve's accuracy at as many bytes, by seed and on average.

    ``std`` is that of the seeds at one point of the curve, pooled over its points.
    """
    groups = [[100 * note["accuracy"] for note in found] for (name, _), found in by_point(notes).items() if name == curve]
    noise = float(np.sqrt(np.mean([spread(group) ** 2 for group in groups])))
    out = []
    for note in (note for note in notes if "trials" in note):
        points = sorted((n["bytes"], 100 * n["accuracy"]) for n in notes if (n["method"], n["seed"]) == (curve, note["seed"]))
        sizes, values = zip(*points, strict=True)
        there = float(np.interp(np.log(note["bytes"]), np.log(sizes), values))
        out.append({
            "seed": note["seed"], "penalty": f"{note['trials'][-1]['knob']:.3g}", "trials": len(note["trials"]),
            "bytes": note["bytes"], "accuracy, %": round(100 * note["accuracy"], 2), "curve there, %": round(there, 2),
            "difference": round(100 * note["accuracy"] - there, 2),
        })  # fmt: skip
    gap = statistics.fmean(row["difference"] for row in out)
    last = {"seed": "mean", "difference": round(gap, 2)}
    if len(out) > 1:
        last |= {"std": round(noise, 2), "within it": "yes" if abs(gap) <= noise else "no"}
    return [*out, last]


#: Told apart by all common kinds of colour vision (Okabe and Ito 2008), with a marker of its own each.
LOOKS = tuple(zip(
    ("#0072b2", "#d55e00", "#e69f00", "#009e73", "#56b4e9", "#cc79a7", "#000000", "#7f7f7f", "#7f7f7f"), "osD^vP<Xp",
    strict=True,
))  # fmt: skip


def draw(figure: Figure, notes: Sequence[Note], curves: Sequence[Curve], floor: float) -> None:
    """Accuracy against bytes, means and standard deviations over seeds; what is below ``floor`` is left out."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes = figure.subplots()
    found = by_point(notes)

    def bars(name: str, **look: Any) -> None:
        groups = [group for (method, _), group in found.items() if method == name]
        groups.sort(key=lambda group: group[0]["bytes"])
        size = [statistics.fmean(n["bytes"] for n in group) for group in groups]
        values = [[100 * n["accuracy"] for n in group] for group in groups]
        middle, error = [statistics.fmean(v) for v in values], [spread(v) for v in values]
        axes.errorbar(size, middle, error, capsize=2, elinewidth=1, **look)

    for curve, (color, marker) in zip(curves, LOOKS):
        line = "-" if len(curve.values) > 1 else ""
        bars(curve.name, color=color, marker=marker, linestyle=line, markersize=5, linewidth=1.4, label=curve.name)
    aimed = next(n["method"] for n in notes if "trials" in n)
    bars(aimed, color="#d40000", marker="o", fillstyle="none", linestyle="", markersize=12, label=aimed, zorder=5)
    star = {"color": "#d40000", "marker": "*", "linestyle": "", "markersize": 13}
    bars("float", label="float", zorder=5, **star)
    axes.set(xscale="log", ylim=(floor, None), xlabel="bytes of the file", ylabel="test accuracy, %")
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_title(f"LeNet-300-100 on Fashion-MNIST, {EPOCHS} epochs a point; bars: standard deviation over seeds")
    figure.legend(loc="outside right upper")


def main(argv: Sequence[str]) -> None:
    given = flag_values(argv)
    folder = pathlib.Path(given.workdir)
    runs = Runs(load_task(checked(record_lenet300.get_config())), lenet300, FLOAT, folder)
    notes = run(runs, CURVES, AIM, given.seeds)
    emit(rows(notes, CURVES))
    emit(on_the_curve(notes, AIM.curve))
    shown = lambda figure: draw(figure, notes, CURVES, FLOOR)
    (folder / "rate-accuracy.png").write_bytes(picture(shown, 9.5, 5.2))


if __name__ == "__main__":
    flags.DEFINE_integer("seeds", 2, "Trainings a point.")
    flags.DEFINE_string("workdir", "runs/rate_accuracy", "Where points are noted, with their files and the picture.")
    app.run(main)
