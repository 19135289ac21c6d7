"""Runs a config over a grid of overrides and several seeds; says mean, spread and paired differences.

    jaxopt sweep --config=digits_quickstart --workdir=runs/sweep --seeds=5 \\
        --grid="stages[0].sparsity=0.8,0.9;stages[2].bits=4,8" --baseline="stages[0].sparsity=0.8,stages[2].bits=4"

Each run is one of ``experiments.compress`` in ``WORKDIR/<cell>/seed_<n>``, latency not measured. A sweep that was stopped goes
on with the same command: finished runs are kept. The exit status is 1 where a run failed.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from jaxopt_nn.core.files import open_workdir, write_file
from jaxopt_nn.core.paths import addresses
from jaxopt_nn.core.text_table import markdown
from jaxopt_nn.pipeline import registry
from jaxopt_nn.pipeline.checkpoints import locked, nothing
from jaxopt_nn.pipeline.recipe import check_recipe
from jaxopt_nn.reporting.tables import json_text

from . import common, comparison_page, compress
from .command import start
from .comparison import grouped
from .config import checked, decisive
from .grid import Cell, cell_named, cells_of, read_grid
from .summary import controlled, draw, header_and_cells, record, scored, summary

Say = Callable[[str], None]


def run(
    config: Mapping[str, Any],
    grid: str | Mapping[str, Sequence[Any]],
    workdir: str,
    *,
    seeds: int = 5,
    baseline: str = "",
    say: Say = nothing,
) -> dict[str, Any]:
    """Carries out every run of the grid that is not finished; writes ``sweep.json``, ``.html``, ``.md`` and ``.png``.

    All cells are run with one seed before the next, so that a sweep that is stopped early compares all of them.

    Args:
      config: as of ``experiments.compress``.
      grid: ``"key=value,value;key=value"``, or a mapping from keys to values; the cells are the product. Values are Python
        literals, strings otherwise. Empty: one cell, the config as it is.
      workdir: made if missing.
      seeds: runs of each cell, with ``config.seed``, ``config.seed + 1``, ...
      baseline: the cell that the others are compared with, seed by seed: ``"key=value,key=value"`` or its name.
      say: gets a line for each run, with the time left.

    Returns:
      What ``sweep.json`` holds: ``cells`` with ``runs`` and, over these, ``mean``, sample ``std`` and ``n`` of each number;
      ``difference`` to the baseline cell with ``standard_error``; ``failed`` runs with their errors.

    Raises:
      ValueError: before any run: a key that the config does not have (near misses are named), no such baseline cell, fewer
        than one seed, values that a cell can't have (each such cell is named), or a folder that holds a run of another config
        (the fields that differ are named).
      OSError: ``workdir`` can't be written, or another sweep is using it.
    """
    if seeds < 1:
        raise ValueError(f"seeds={seeds}: allowed are 1 and more")
    config = checked(config)
    cells = cells_of(config, read_grid(grid, config))
    _check(cells)
    base = cell_named(baseline, cells, config) if baseline else None
    numbers = range(config["seed"], config["seed"] + seeds)
    directory = open_workdir(workdir)
    with locked(directory):
        return _carried_out(config, cells, numbers, base, directory, say)


def _check(cells: Sequence[Cell]) -> None:
    """Raises ValueError that names each cell whose config or recipe is not allowed."""
    wrong = []
    for cell in cells:
        try:
            config = checked(cell.config)
            check_recipe(registry.stages(config["stages"], config["seed"]))
        except (TypeError, ValueError) as error:
            wrong.append(f"{cell.name}: {error}")
    if wrong:
        raise ValueError("\n  ".join([f"grid: {len(wrong)} of {len(cells)} cells can't be run:", *wrong]))


def _carried_out(
    config: Mapping[str, Any], cells: Sequence[Cell], numbers: range, base: str | None, directory: Path, say: Say
) -> dict[str, Any]:
    """The runs that are missing, and the summary of all."""
    jobs = [(cell, seed) for seed in numbers for cell in cells]
    reports = [finished(config_of(cell, seed), place(directory, cell, seed)) for cell, seed in jobs]
    records: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []
    for (cell, seed), report in zip(jobs, reports, strict=True):
        if report:
            _add(cell, seed, functools.partial(dict, report), records, failed)
    if any(reports):
        say(f"{len(records) + len(failed)} of {len(jobs)} runs are finished and kept")
    left = [job for job, report in zip(jobs, reports, strict=True) if not report]
    try:
        _carry_out(left, len(jobs), directory, records, failed, say)
    finally:
        result = summary(config, cells, list(numbers), base, records, failed)
        write(result, directory)
    return result


def _add(
    cell: Cell,
    seed: int,
    report: Callable[[], Mapping[str, Any]],
    records: list[dict[str, Any]],
    failed: list[dict[str, Any]],
) -> str:
    """Adds what a run reports to ``records``, or why it can't be compared to ``failed``; gives it in words."""
    try:
        records.append(record(report(), cell.name, folder_of(cell, seed)))
        file = f", {records[-1]['file']:,} as a file" if "file" in records[-1] else ""
        return f"{scored(records[-1])}, {records[-1]['bytes']:,} bytes{file}"
    except Exception as error:  # a run that fails must not lose the others
        failed.append({"cell": cell.name, "seed": seed, "error": f"{type(error).__name__}: {error}"})
        return f"failed: {failed[-1]['error'].splitlines()[0]}"


def _carry_out(
    jobs: Sequence[tuple[Cell, int]],
    total: int,
    directory: Path,
    records: list[dict[str, Any]],
    failed: list[dict[str, Any]],
    say: Say,
) -> None:
    """Runs the jobs; what comes of them is added to ``records`` and ``failed``."""
    start = time.monotonic()
    for n, (cell, seed) in enumerate(jobs):
        begun = time.monotonic()
        folder, floats = str(place(directory, cell, seed)), directory / "floats"
        run = functools.partial(compress.run, config_of(cell, seed), folder, latency=False, floats=floats)
        outcome = _add(cell, seed, run, records, failed)
        spent = time.monotonic() - begun
        left = (time.monotonic() - start) / (n + 1) * (len(jobs) - n - 1)
        say(
            f"run {total - len(jobs) + n + 1} of {total}: {cell.name} seed {seed}: {outcome}; {duration(spent)}, "
            f"about {duration(left)} left"
        )


def config_of(cell: Cell, seed: int) -> dict[str, Any]:
    """The config of one run."""
    return {**cell.config, "seed": seed}


def folder_of(cell: Cell, seed: int) -> str:
    """The folder of one run within the sweep's."""
    return f"{cell.folder}/seed_{seed}"


def place(directory: Path, cell: Cell, seed: int) -> Path:
    """The folder of one run."""
    return directory / folder_of(cell, seed)


def finished(config: Mapping[str, Any], workdir: Path) -> dict[str, Any] | None:
    """The report of a finished run; None where there is none, it was interrupted, or fields of ``FREE`` have changed since.

    What is None is run, from its checkpoints where it has any.

    Raises:
      ValueError: the folder holds a run of another config; the fields that differ are named.
    """
    report = read_json(workdir / "report.json")
    old, new = report["config"] if report else read_json(workdir / "checkpoints" / "config.json"), same_in_json(config)
    if old is not None:
        there, here = addresses(decisive(old)), addresses(decisive(new))
        differing = [key for key in {**there, **here} if there.get(key, ...) != here.get(key, ...)]
        if differing:
            said = ", ".join(f"{k} ({there.get(k)!r} there, {here.get(k)!r} here)" for k in differing[:5])
            raise ValueError(f"{workdir}: holds a run of another config; different: {said}; pass another workdir")
    return report if report and old == new else None


def same_in_json(config: Mapping[str, Any]) -> Any:
    """The config as a file gives it back."""
    return json.loads(json.dumps(checked(config), default=str))


def read_json(file: Path) -> Any:
    """What a file holds; None where it is missing or was cut off."""
    try:
        return json.loads(file.read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def write(result: dict[str, Any], directory: Path) -> None:
    """Writes ``sweep.png``, ``sweep.html``, ``sweep.md`` and, last, ``sweep.json``, each whole or not at all."""
    if any(cell["n"] for cell in result["cells"]):
        write_file(directory / "sweep.png", draw(result))
    write_file(directory / "sweep.html", comparison_page.page(comparison(result)).encode(errors="replace"))
    write_file(directory / "sweep.md", page(result).encode())
    write_file(directory / "sweep.json", (json_text(result) + "\n").encode())


def comparison(result: Mapping[str, Any]) -> dict[str, Any]:
    """The sweep as a comparison of its cells, for its page."""
    data = result["config"]["data"]["source"]
    cells = [{**cell, "data": data} for cell in result["cells"] if cell["n"]]
    title = f"Sweep of {result['config']['model']} on {data}"
    said = {"baseline": result["baseline"], "failed": result["failed"], "sentences": _left(result)}
    return {"title": title, **said, **grouped(cells)}


def page(result: Mapping[str, Any]) -> str:
    """The sweep as Markdown."""
    parts = ["# Sweep", "", *markdown(*header_and_cells(result)), "", *(f"- {s}" for s in sentences(result)), ""]
    if any(cell["n"] for cell in result["cells"]):
        parts += [f"![{result['metric']['name']} of the cells](sweep.png)", ""]
    return "\n".join(parts)


def sentences(result: Mapping[str, Any]) -> list[str]:
    """What the table does not say."""
    seeds = result["seeds"]
    out = [f"mean ± sample standard deviation over {len(seeds)} seeds, {seeds[0]} to {seeds[-1]}"]
    if result["baseline"]:
        out.append(
            f"difference to {result['baseline']}: mean over seeds of the same seed's difference ± its standard error"
        )
    out += [said for cell in result["cells"] if (said := controlled(cell))]
    return out + _left(result) + [f"failed: {f['cell']} seed {f['seed']}: {f['error']}" for f in result["failed"]]


def _left(result: Mapping[str, Any]) -> list[str]:
    return [f"{result['missing']} runs are not done yet; the same command goes on"] if result["missing"] else []


def duration(seconds: float) -> str:
    """``75 -> "1 min 15 s"``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def define_flags() -> None:
    config_flags.DEFINE_config_file("config", None, "A file whose get_config() gives the runs.")
    flags.DEFINE_string("grid", "", "Overrides: key=value,value;key=value,value")
    flags.DEFINE_string("workdir", None, "Where the runs and the summary go; made if missing.")
    flags.DEFINE_integer("seeds", 5, "Runs of each cell.")
    flags.DEFINE_string("baseline", "", "The cell that the others are compared with: key=value,key=value")
    flags.mark_flags_as_required(["config", "workdir"])


def main(argv: Sequence[str]) -> None:
    flag = common.flag_values(argv)
    with common.plain_errors(f"stopped; finished runs are kept in {flag.workdir}, and the same command goes on"):
        result = run(
            flag.config, flag.grid, flag.workdir, seeds=flag.seeds, baseline=flag.baseline,
            say=lambda line: print(line, flush=True),
        )  # fmt: skip
    common.show(*header_and_cells(result))
    print("\n".join([*sentences(result), f"sweep: {os.path.join(flag.workdir, 'sweep.html')}"]))
    sys.exit(1 if result["failed"] else 0)


if __name__ == "__main__":
    start(define_flags, main, __doc__)
