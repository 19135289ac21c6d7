"""What several runs say side by side: settings over seeds, the fields in which their configs differ, the Pareto fronts."""

from __future__ import annotations

import collections
import itertools
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxopt_nn.core.files import open_workdir, write_file
from jaxopt_nn.core.paths import addresses
from jaxopt_nn.reporting.tables import json_text
from jaxopt_nn.reporting.write import SCHEMA as REPORT_SCHEMA

from .comparison_page import page
from .config import decisive
from .summary import cell_entry, record

SCHEMA = 1


def write(comparison: Mapping[str, Any], out: str, name: str) -> Path:
    """Writes ``name.html`` and ``name.json`` into the folder ``out``, made if missing; gives the page's path.

    Raises:
      OSError: the folder can't be written.
    """
    directory = open_workdir(out)
    write_file(directory / f"{name}.html", page(comparison).encode(errors="replace"))
    write_file(directory / f"{name}.json", (json_text(dict(comparison)) + "\n").encode())
    return directory / f"{name}.html"


def runs_under(folder: Path) -> list[Path]:
    """Folders below ``folder`` that hold a run: its report, or the checkpoints of one that has not finished."""
    marks = [*folder.rglob("report.json"), *(at.parent for at in folder.rglob("checkpoints/config.json"))]
    return sorted({mark.parent for mark in marks})


def compared(folders: Sequence[Path], out: Path) -> dict[str, Any]:
    """What ``compare.json`` holds: ``cells``, settings with the runs of all their seeds; ``failed``, what could not be read.

    Runs are of one setting where their configs differ in nothing but the seed and ``config.FREE``. ``groups`` are data and
    metric of the cells, which have the number of their group; only cells of one group are compared.

    Args:
      folders: of the runs.
      out: where the page will lie; names and links of runs are relative to it.
    """
    reports: dict[str, dict[str, Any]] = {}
    failed = []
    for name, folder in {Path(os.path.relpath(folder, out)).as_posix(): folder for folder in folders}.items():
        try:
            reports[name] = read_report(folder)
        except ValueError as error:
            failed.append({"folder": name, "error": str(error)})
    settings, repeated = _settings(reports)
    failed += repeated
    names = _names(settings)
    overrides = differences([_setting(reports[members[0]]) for members in settings])
    cells = []
    for members, name, fields in zip(settings, names, overrides, strict=True):
        runs = [record(reports[folder], name, folder) for folder in members]
        cells.append({**cell_entry(name, fields, runs), "data": reports[members[0]].get("data") or ""})
    count = len(reports) - len(repeated)
    title = f"Comparison of {count} {'run' if count == 1 else 'runs'}"
    return {"schema": SCHEMA, "title": title, "baseline": None, **grouped(cells), "failed": failed}


def read_report(folder: Path) -> dict[str, Any]:
    """The report of a run.

    Raises:
      ValueError: there is none, or it can't be compared; the message says why.
    """
    file = folder / "report.json"
    if not file.is_file():
        begun = (folder / "checkpoints").is_dir()
        raise ValueError("not finished: checkpoints, but no report.json; its command goes on" if begun else "no report.json")
    try:
        report = json.loads(file.read_bytes())
    except ValueError:
        raise ValueError("report.json is cut off, or no JSON; run its command again") from None
    schema = report.get("schema") if isinstance(report, dict) else None
    if schema != REPORT_SCHEMA:
        raise ValueError(f"report.json has schema {schema}; this release reads schema {REPORT_SCHEMA}: run its command again")
    try:
        record(report, "", "")
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"report.json lacks a field ({error}); run its command again") from None
    return report


def differences(configs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of each config, the fields that are not the same in all: ``{address: value}``; a field that it lacks is left out."""
    flat = [addresses(config) for config in configs]
    known = dict.fromkeys(itertools.chain(*flat))
    said = lambda fields, key: json.dumps(fields[key], sort_keys=True) if key in fields else None
    differing = [key for key in known if len({said(fields, key) for fields in flat}) > 1]
    return [{key: fields[key] for key in differing if key in fields} for fields in flat]


def _setting(report: Mapping[str, Any]) -> dict[str, Any]:
    return decisive(report["config"], without=("seed",))


def _settings(reports: Mapping[str, Mapping[str, Any]]) -> tuple[list[list[str]], list[dict[str, str]]]:
    """The folders by setting, one for each seed, and those that repeat another one's setting and seed."""
    settings: dict[str, dict[int, str]] = {}
    repeated = []
    for folder, report in reports.items():
        # Without a model in its config, as of jaxopt_nn.compress, nobody knows the network: the run is a setting by itself.
        known = "model" in report["config"]
        key = json.dumps([_setting(report), report["headline"]], sort_keys=True) if known else folder
        seeds = settings.setdefault(key, {})
        if report["seed"] in seeds:
            repeated.append({"folder": folder, "error": f"repeats {seeds[report['seed']]}: the same config and seed"})
        else:
            seeds[report["seed"]] = folder
    return [list(seeds.values()) for seeds in settings.values()], repeated


def _names(settings: Sequence[Sequence[str]]) -> list[str]:
    """The folder that the runs of a setting share, where it is theirs alone, below the one that all runs share."""
    folders = [folder for members in settings for folder in members]
    above = os.path.commonpath([os.path.dirname(folder) for folder in folders]) if folders else ""
    below = [[os.path.relpath(folder, above or ".") for folder in members] for members in settings]
    shared = [os.path.commonpath(members) for members in below]
    alone = collections.Counter(shared)
    return [
        path if len(members) == 1 or (path and alone[path] == 1) else f"{members[0]} and {len(members) - 1} more"
        for path, members in zip(shared, below, strict=True)
    ]


def grouped(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """``groups`` of data and metric, and the ``cells`` with ``group`` and ``front``: what they are Pareto-optimal in.

    ``front`` names the costs, ``"bytes"``, ``"file"`` or a latency ``"ms@batch"``, for which no cell of the group is at least
    as cheap and at least as good, and one of both strictly.
    """
    keys = [(cell["data"], cell["metric"]["name"]) for cell in cells]
    groups = list(dict.fromkeys(keys))
    out: list[dict[str, Any]] = [{**cell, "group": groups.index(key), "front": []} for cell, key in zip(cells, keys)]
    for number in range(len(groups)):
        members = [cell for cell in out if cell["group"] == number]
        for cost in costs(members):
            points = [(cell[cost]["mean"], _signed(cell)) for cell in members if cost in cell]
            for cell, best in zip([cell for cell in members if cost in cell], pareto(points), strict=True):
                cell["front"] += [cost] if best else []
    metrics = {key: cell["metric"] for key, cell in zip(keys, cells)}
    return {"groups": [{"data": key[0], "metric": metrics[key]} for key in groups], "cells": out}


def costs(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the cells cost: bytes, and the files and latencies that at least two of them have."""
    counts = collections.Counter(key for cell in cells for key in cell if key == "file" or key.startswith("ms@"))
    return ["bytes", *(key for key, count in counts.items() if count > 1)]


def _signed(cell: Mapping[str, Any]) -> float:
    return cell["score"]["mean"] if cell["metric"]["better"] == "higher" else -cell["score"]["mean"]


def pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Of each ``(cost, score)``, whether no unequal point costs at most as much and scores at least as well."""
    on, best = [False] * len(points), -math.inf
    order = sorted(range(len(points)), key=lambda i: points[i][0])
    for _, equals in itertools.groupby(order, key=lambda i: points[i][0]):
        members = list(equals)
        top = max(points[i][1] for i in members)
        if top > best:
            best = top
            for i in members:
                on[i] = points[i][1] == top
    return on
