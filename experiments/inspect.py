"""Says what a config's model is made of, what of it can't be cut, and what its recipe takes; nothing is trained or run.

    jaxopt inspect --config=digits_quickstart [--workdir=runs/inspect]

MACs are multiply-accumulates of one example, flops twice as many; bytes are those of the float leaves. With ``--workdir``
the same lies there as ``inspect.json``, ``inspect.md`` and ``inspect.png``, and which axes are cut together as ``groups.png``.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
from absl import flags
from ml_collections import config_flags

from jaxopt_nn.core.files import open_workdir, write_file
from jaxopt_nn.core.model import AxisGroup, ModelInfo, Roles, Site
from jaxopt_nn.core.passes import Pass
from jaxopt_nn.core.paths import leaves_by_path
from jaxopt_nn.core.text_table import markdown
from jaxopt_nn.core.transform import Transform, explain
from jaxopt_nn.interpret import groups
from jaxopt_nn.interpret.inspect import inspect
from jaxopt_nn.interpret.network import like
from jaxopt_nn.interpret.pins import CouplingReport, coupling_report, in_words
from jaxopt_nn.pipeline import registry
from jaxopt_nn.pipeline.recipe import Stage
from jaxopt_nn.pipeline.task import Task
from jaxopt_nn.reporting import drawing
from jaxopt_nn.reporting.tables import human_bytes, json_text
from jaxopt_nn.tensors.base import nbytes

from . import common
from .command import start
from .config import checked
from .model import Model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PyTree = Any
PIN = ("pinned, as it", "uncut", "parameters", "axes")
GROUP = ("cut together", "units", "axes", "cut", "spread over devices")
SITE = ("site", "kind", "operands", "stack", "in", "out", "MACs", "parameters", "bytes")


def run(config: Mapping[str, Any], workdir: str | None = None) -> dict[str, Any]:
    """Inspects the model of a config and the leaves that each stage of its recipe takes.

    Args:
      config: as of ``experiments.compress``.
      workdir: made if missing; None writes nothing.

    Returns:
      ``input``; ``sites``, each with ``name``, ``kind``, ``shapes``, ``dtypes``, ``stack``, ``in``, ``out``, ``macs``,
      ``parameters`` and ``bytes`` (0 where an earlier site has the leaf); ``leaves`` without a site, with the reason;
      ``messages`` of the interpreter; ``totals``; ``axis_groups``, what is cut together; ``cutting``, what may be cut
      (``jn.coupling_report``); ``stages``, each with the leaves that it ``takes``, their ``parameters`` (both None where the
      data decides, when the stage begins) and the leaves ``left`` alone.

    Raises:
      ValueError: the config has a wrong field or name, the data does not fit the model, or a stage's pattern matches nothing.
      OSError: ``workdir`` can't be written.
    """
    config = checked(config)
    network = Model(config["model"], config["model_args"], config["float"], "float").network
    stages = registry.stages(config["stages"])
    if workdir:
        open_workdir(workdir)
    task = common.load_task(config)
    variables = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), network.variables)
    inputs = like(task.example)
    info = inspect(network.apply, variables, *inputs)
    info = dataclasses.replace(info, couplings=groups.couplings(network.apply, variables, *inputs))
    made = {
        "model": config["model"],
        "input": ", ".join(f"{x.dtype}{list(x.shape)}" for x in jax.tree.leaves(inputs)),
        **described(info, variables),
        "axis_groups": group_entries([c.group for c in info.couplings or ()]),
        "cutting": couplings(coupling_report(network.apply, variables, *inputs)),
        "stages": [taken(stage, variables, info, steps(task, stage)) for stage in stages],
    }
    if workdir:
        write(made, workdir, [c.group for c in info.couplings or ()], variables)
    return made


def described(info: ModelInfo, variables: PyTree) -> dict[str, Any]:
    """Sites, leaves without one, messages and totals."""
    leaves = leaves_by_path(variables)
    counted: set[str] = set()
    sites = []
    for site in info.sites:
        own = [leaves[path] for path in dict.fromkeys(site.leaves) if path in leaves and path not in counted]
        counted |= set(site.leaves)
        sites.append(site_entry(site, own))
    others = [
        {"path": leaf.path, "shape": list(leaf.shape), "parameters": leaf.size, "bytes": nbytes(leaves[leaf.path]),
         "matrix": leaf.matrix, "reason": leaf.reason or "a vector: no axis of it is contracted"}
        for leaf in info.leaves if leaf.path not in counted
    ]  # fmt: skip
    macs = sum(site.macs for site in info.sites)
    totals = {
        "parameters": sum(x.size for x in leaves.values()), "bytes": nbytes(variables), "macs": macs, "flops": 2 * macs,
        "leaves": len(leaves), "sites": len(sites), "coverage": info.coverage,
    }  # fmt: skip
    return {"sites": sites, "leaves": others, "messages": info.report.as_json(), "totals": totals}


def site_entry(site: Site, own: Sequence[Any]) -> dict[str, Any]:
    """A site's entry; ``own`` are the leaves that no earlier site has."""
    roles = site.roles or Roles()
    return {
        "name": site.name,
        "kind": site.kind + ("*" if site.derived else ""),
        "shapes": [list(shape) for shape in site.shapes],
        "dtypes": list(site.dtypes),
        "stack": list(roles.stack),
        "in": list(roles.input),
        "out": list(roles.output),
        "weight": site.weight is not None,
        "macs": site.macs,
        "parameters": sum(x.size for x in own),
        "bytes": sum(nbytes(x) for x in own),
    }


def steps(task: Task, stage: Stage) -> int:
    """Training steps of a stage."""
    return stage.epochs * (task.train.steps(task.batch_size) if task.train else 0)


def group_entries(own: Sequence[AxisGroup]) -> list[dict[str, Any]]:
    """Each axis group with its name, its axes, and why it may not be cut, or spread over devices."""
    return [
        {"name": name, "units": group.size, "pinned": group.pinned, "unsharded": group.unsharded,
         "axes": [{"path": m.path, "axis": m.axis, "role": m.role} for m in group.members]}
        for name, group in zip(groups.group_names(own), own, strict=True)
    ]  # fmt: skip


def couplings(report: CouplingReport) -> dict[str, Any]:
    """What may be cut, and by reason what may not."""
    return {
        "said": report.sentence, "groups": len(report.groups), "free_groups": report.free_groups,
        "parameters": report.parameters, "free": report.free, "ends": report.ends,
        "pins": [
            {"reason": pin.reason, "uncut": pin.uncut, "parameters": pin.parameters,
             "axes": [{"path": path, "axis": axis} for path, axis in pin.axes]}
            for pin in report.pins
        ],
    }  # fmt: skip


def taken(stage: Stage, variables: PyTree, info: ModelInfo, steps: int) -> dict[str, Any]:
    """The leaves that a stage takes, and those that it leaves alone with the reason; None where the data decides.

    Raises:
      ValueError: a pattern matches nothing, or an argument does not fit a leaf; names the stage.
    """
    method = stage.transform if isinstance(stage.transform, Pass) else stage.method(steps)
    if method.traits.passes:  # what it takes is known once the model has run on the data
        return {"name": stage.name, "takes": None, "parameters": None, "left": []}
    try:
        if isinstance(method, Transform):
            jax.eval_shape(lambda v: method.init(v, info), variables)
    except ValueError as error:
        raise ValueError(f"stage {stage.name!r}: {error}") from error
    left = {m.path: m.reason for m in explain(method, variables, info).of("skipped")}
    leaves = leaves_by_path(variables)
    return {
        "name": stage.name,
        "takes": [path for path in leaves if path not in left],
        "parameters": sum(x.size for path, x in leaves.items() if path not in left),
        "left": [{"path": path, "reason": reason} for path, reason in left.items()],
    }


def site_rows(made: Mapping[str, Any]) -> list[list[str]]:
    """The table of the sites, with a line for the leaves without one and a line for all."""
    lines = []
    for site in made["sites"]:
        axes = [" ".join(map(str, site[name])) or "-" for name in ("stack", "in", "out")]
        operands = " x ".join(f"{d}{shape}" for d, shape in zip(site["dtypes"], site["shapes"], strict=True))
        counts = [f"{site[name]:,}" if site["parameters"] else "-" for name in ("parameters", "bytes")]
        lines.append([site["name"], site["kind"], operands, *axes, f"{site['macs']:,}", *counts])
    totals = made["totals"]
    rest = [sum(leaf[name] for leaf in made["leaves"]) for name in ("parameters", "bytes")]
    if made["leaves"]:
        lines.append([f"{len(made['leaves'])} leaves without a site", *["-"] * 6, *(f"{n:,}" for n in rest)])
    return [*lines, ["total", *["-"] * 5, *(f"{totals[name]:,}" for name in ("macs", "parameters", "bytes"))]]


def left_rows(made: Mapping[str, Any]) -> list[list[str]]:
    """The leaves without a site, by reason."""
    return _by_reason([(leaf["path"], leaf["reason"]) for leaf in made["leaves"]])


def group_rows(made: Mapping[str, Any]) -> list[list[str]]:
    """What is cut together: those that may be cut first."""
    entries = sorted(made["axis_groups"], key=lambda entry: entry["pinned"] is not None)
    words = lambda reason: "yes" if reason is None else f"no: {reason}"
    return [
        [entry["name"], f"{entry['units']:,}", str(len(entry["axes"])), words(entry["pinned"]), words(entry["unsharded"])]
        for entry in entries
    ]


def pin_rows(made: Mapping[str, Any]) -> list[list[str]]:
    """What keeps axes from being cut, most parameters first."""
    words = lambda axes: in_words((own["path"], own["axis"]) for own in axes)
    return [
        [pin["reason"], f"{pin['uncut']:,}", f"{pin['parameters']:,}", words(pin["axes"])] for pin in made["cutting"]["pins"]
    ]


def stage_rows(made: Mapping[str, Any]) -> list[list[str]]:
    """What each stage takes, and what it leaves alone, by reason."""
    total, leaves = (made["totals"][name] for name in ("parameters", "leaves"))
    lines = []
    for stage in made["stages"]:
        if stage["takes"] is None:
            lines.append([stage["name"], "takes", "decided by the data, when the stage begins"])
            continue
        share = f"{len(stage['takes'])} of {leaves} leaves, {stage['parameters'] / max(total, 1):.1%} of the parameters"
        lines.append([stage["name"], "takes", share])
        for paths, reason in _by_reason([(left["path"], left["reason"]) for left in stage["left"]]):
            lines.append([stage["name"], "leaves", f"{paths}: {reason}"])
    return lines


def _by_reason(pairs: Sequence[tuple[str, str]]) -> list[list[str]]:
    """``[paths, reason]``, the place of the operation left out; of many paths the first two are named."""
    groups: dict[str, list[str]] = {}
    for path, reason in pairs:
        groups.setdefault(re.sub(r"(`[^`]+`) in \S+$", r"\1", reason), []).append(path)
    return [
        [", ".join(paths) if len(paths) < 4 else f"{', '.join(paths[:2])} and {len(paths) - 2} more", reason]
        for reason, paths in groups.items()
    ]


def sentences(made: Mapping[str, Any]) -> list[str]:
    """What the tables do not say."""
    totals = made["totals"]
    out = [
        f"{made['model']} on {made['input']}: {totals['sites']} sites, {totals['parameters']:,} parameters, "
        f"{human_bytes(totals['bytes'])}, {totals['macs']:,} MACs ({totals['flops']:,} flops) an example",
        f"{totals['coverage']:.1%} of the parameters in matrices feed a site",
        made["cutting"]["said"],
    ]
    if any(site["kind"].endswith("*") for site in made["sites"]):
        out.append("* the weight is computed from its leaf before use")
    return out + [f"{m['kind']}: {m['path']}: {m['reason']}" for m in made["messages"] if m["kind"] != "no site"]


def page(made: Mapping[str, Any]) -> str:
    """All of it as Markdown."""
    parts = ["# Inspection", "", *(f"- {said}" for said in sentences(made)), ""]
    parts += ["![parameters and MACs of the sites](inspect.png)", "", "## Sites", ""]
    parts += [*markdown(SITE, site_rows(made)), ""]
    if made["leaves"]:
        parts += ["## Leaves without a site", "", *markdown(["leaf", "reason"], left_rows(made)), ""]
    parts += ["## What is cut together", "", "![axis groups](groups.png)", "", *markdown(GROUP, group_rows(made)), ""]
    if made["cutting"]["pins"]:
        parts += ["## What can't be cut", "", *markdown(PIN, pin_rows(made)), ""]
    return "\n".join([*parts, "## Stages", "", *markdown(["stage", "", "leaves"], stage_rows(made)), ""])


def write(made: Mapping[str, Any], workdir: str, groups: Sequence[AxisGroup], variables: PyTree) -> None:
    """Writes ``inspect.png``, ``groups.png``, ``inspect.md`` and ``inspect.json``, each whole or not at all."""
    directory = open_workdir(workdir)
    write_file(directory / "inspect.png", draw(made))
    write_file(directory / "groups.png", group_picture(groups, variables))
    write_file(directory / "inspect.md", page(made).encode())
    write_file(directory / "inspect.json", (json_text(made) + "\n").encode())


def draw(made: Mapping[str, Any]) -> bytes:
    """Horizontal bars of parameters and MACs, a row for each site, with their shares of the whole model, as PNG."""
    return common.picture(lambda figure: _draw(figure, made), 10.0, 1.1 + 0.2 * max(len(made["sites"]), 3))


def group_picture(groups: Sequence[AxisGroup], variables: PyTree) -> bytes:
    """Which axes of which leaves are cut together, as PNG."""
    wide = 10.0
    high = wide * drawing.height(groups, variables) + 0.1 * min(len(groups), 12) + 0.4
    return common.picture(lambda figure: drawing.draw_groups(figure.add_subplot(), groups, variables), wide, high)


def _draw(figure: Figure, made: Mapping[str, Any]) -> None:
    sites = made["sites"]
    panels = figure.subplots(1, 2, sharey=True)
    rows = range(len(sites))
    names = [name if len(name := site["name"]) <= 48 else f"…{name[-47:]}" for site in sites]
    colours = ["#0072b2" if site["weight"] else "#b8b8b8" for site in sites]
    for axes, field, title in zip(panels, ("parameters", "macs"), ("parameters", "MACs an example")):
        values = [site[field] for site in sites]
        total = made["totals"][field]
        axes.barh(rows, values, color=colours, height=0.72)
        for row, value in zip(rows, values):
            said = f" {human_count(value)}, {100 * value / total:.3g} %" if value else " -"
            axes.annotate(said, (value, row), va="center", fontsize=7, color="0.3")
        axes.set_title(f"{title}: {human_count(total)}")
        axes.set_xlim(0, 1.3 * max([*values, 1]))
        axes.xaxis.set_major_formatter(lambda value, _: human_count(value))
        axes.grid(axis="y", visible=False)
    panels[0].set_yticks(rows, [name.replace("$", r"\$") for name in names], fontsize=7)
    panels[0].set_ylim(len(sites) - 0.4, -0.6)
    if not all(site["weight"] for site in sites):
        figure.supxlabel("grey: no operand is a weight", fontsize=8)


def human_count(value: float) -> str:
    """``12500 -> "12.5k"``."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def define_flags() -> None:
    config_flags.DEFINE_config_file(
        "config", None, "A file whose get_config() names the model, the data and the recipe."
    )
    flags.DEFINE_string("workdir", None, "Where the files go; made if missing. None writes nothing.")
    flags.mark_flags_as_required(["config"])


def main(argv: Sequence[str]) -> None:
    flag = common.flag_values(argv)
    with common.plain_errors():
        made = run(flag.config, flag.workdir)
    common.show(SITE, site_rows(made), left=6)
    print("\n".join(["", *sentences(made), ""]))
    if made["leaves"]:
        common.show(["leaf without a site", "reason"], left_rows(made), left=2)
        print()
    if made["axis_groups"]:
        common.show(GROUP, group_rows(made), left=1)
        print()
    if made["cutting"]["pins"]:
        common.show(PIN, pin_rows(made), left=1)
        print()
    common.show(["stage", "", "leaves"], stage_rows(made), left=3)
    if flag.workdir:
        print(f"\ninspection: {os.path.join(flag.workdir, 'inspect.md')}")


if __name__ == "__main__":
    start(define_flags, main, __doc__)
