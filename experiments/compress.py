"""Trains a network, or loads one, and takes it through the stages of a config.

    python -m experiments.compress --config=configs/digits_quickstart.py --workdir=DIR [--config.x=y ...]

Your own model: ``--config.model=package.module:build``, a function that returns ``(apply, variables)``; if it has an
argument ``seed`` it gets one. Your own data: ``--config.data.source=package.module:load``, called with ``fold``, ``folds``
and ``seed``.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from jaxopt_nn.core.paths import near_misses
from jaxopt_nn.core.transform import State, identity
from jaxopt_nn.pipeline import registry, report
from jaxopt_nn.pipeline.checks import check_logits, check_variables
from jaxopt_nn.pipeline.compress import Compressor, Result
from jaxopt_nn.pipeline.data import Data
from jaxopt_nn.pipeline.recipe import Stage
from jaxopt_nn.pipeline.train import Trainer

PyTree = Any


def run(config: Mapping[str, Any], workdir: str, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Carries out a config and writes ``report.json``, ``report.md``, ``accuracy_bytes.png`` and ``artifact/``.

    The run in the report is that of fold 0. With ``config.data.cross_validate`` the other folds take the same recipe, and
    the report gets ``cross_validation``, pooled over all test images.

    Args:
      config: with the fields of ``configs/digits_quickstart.py``.
      workdir: made if missing.
      say: gets a line of progress now and then.

    Returns:
      The report.

    Raises:
      ValueError: the config has a field too many or too few, a wrong name, or a value that is not allowed.
      OSError: ``workdir`` can't be written, or the disk is full.
    """
    config = checked(config)
    report.open_workdir(workdir)
    experiment = Experiment(config)
    folds = range(config["data"]["folds"] if config["data"]["cross_validate"] else 1)
    results = []
    for fold in folds:
        results.append(experiment.fold(fold, latency=fold == 0))
        found = results[-1].report
        last = found["stages"][-1]
        say(
            f"fold {fold + 1} of {len(folds)}: baseline {found['baseline']['accuracy']:.2%}, "
            f"{last['name']} {last['accuracy']:.2%} at {last['ratio']:.1f}x"
        )
    if len(folds) > 1:
        results[0].report["cross_validation"] = pooled([r.report for r in results], experiment.test_sizes)
    experiment.ship(results[0], workdir)
    return results[0].report


class Experiment:
    """A config's model, training and recipe, compiled once for all folds."""

    def __init__(self, config: dict[str, Any]):
        self.config = config
        self._build = registry.imported(config["model"])
        self._load = registry.imported(config["data"]["source"])
        self.apply, _ = self._model(0)
        size = config["batch_size"]
        training = registry.called(Stage, "float", {"name": "float", "transform": identity(), **config["float"]})
        self._trainer = Trainer(self.apply, identity(), training, batch_size=size)
        self._compressor = Compressor(self.apply, registry.stages(config["stages"]), batch_size=size)
        self.test_sizes: list[int] = []

    def fold(self, fold: int, latency: bool) -> Result:
        """The float network of this fold, and what the recipe makes of it."""
        config = self.config
        seed, data = config["seed"] + fold, self._data(fold)
        self.test_sizes.append(len(data.test[1]))
        variables = check_variables(self._model(fold)[1])
        check_logits(self.apply, variables, data)
        if config["checkpoint"]:
            variables = restored(config["checkpoint"], variables)
        else:
            variables, _ = self._trainer(variables, State(), data.train, jax.random.key(seed))
        return self._compressor(variables, data, seed=seed, latency=latency, config=config)

    def ship(self, result: Result, workdir: str) -> None:
        """Writes everything about fold 0."""
        self._compressor.ship(result, self._data(0), workdir)

    def _data(self, fold: int) -> Data:
        data = self._load(fold=fold, folds=self.config["data"]["folds"], seed=self.config["seed"])
        if not isinstance(data, Data):
            raise ValueError(f"{self.config['data']['source']} gave {type(data).__name__}; it must return a Data")
        return data

    def _model(self, fold: int) -> tuple[Callable[..., Any], PyTree]:
        seeded = "seed" in inspect.signature(self._build).parameters
        made = self._build(**({"seed": self.config["seed"] + fold} if seeded else {}))
        if not (isinstance(made, tuple) and len(made) == 2 and callable(made[0])):
            raise ValueError(f"{self.config['model']} gave {type(made).__name__}; it must return (apply, variables)")
        return made


def pooled(reports: Sequence[dict[str, Any]], sizes: Sequence[int]) -> dict[str, Any]:
    """Accuracy over the test images of all folds together; ``lost_points`` in percent."""
    before = [r["baseline"]["accuracy"] for r in reports]
    after = [r["stages"][-1]["accuracy"] for r in reports]
    total = sum(sizes)
    correct = [sum(round(a * n) for a, n in zip(each, sizes, strict=True)) for each in (before, after)]
    return {
        "folds": len(reports),
        "test_images": total,
        "baseline_accuracy": correct[0] / total,
        "final_accuracy": correct[1] / total,
        "lost_points": 100 * (correct[0] - correct[1]) / total,
        "baseline_accuracy_of_folds": before,
        "final_accuracy_of_folds": after,
        "ratio_of_folds": [r["stages"][-1]["ratio"] for r in reports],
    }


def restored(path: str, variables: PyTree) -> PyTree:
    """Variables from an Orbax checkpoint of the same tree.

    Raises:
      ValueError: there is none, or its tree, shapes or dtypes are others.
    """
    import orbax.checkpoint as ocp

    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, variables)
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(os.path.abspath(path), target)
    except Exception as error:
        raise ValueError(
            f"config.checkpoint={path!r}: no Orbax checkpoint of this model's variables: {error}"
        ) from error


def plain(value: Any) -> Any:
    """A ``ConfigDict`` as dicts and lists."""
    if isinstance(value, Mapping | ConfigDict):
        return {key: plain(value[key]) for key in value}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


FIELDS: dict[str, Any] = {
    "seed": None, "model": None, "checkpoint": None, "batch_size": None, "stages": None,
    "data": {"source": None, "folds": None, "cross_validate": None},
    "float": {"epochs": None, "learning_rate": None},
}  # fmt: skip


def checked(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config as plain dicts.

    Raises:
      ValueError: a field is unknown (near misses are named) or missing, or a checkpoint is to be cross-validated.
    """
    fields: dict[str, Any] = plain(config)
    _same_fields(fields, FIELDS, "config")
    if fields["checkpoint"] and fields["data"]["cross_validate"]:
        raise ValueError(
            "config.checkpoint: one checkpoint can't be cross-validated, it has seen the test images of the other folds; "
            "set data.cross_validate=False"
        )
    return fields


def _same_fields(given: Mapping[str, Any], known: Mapping[str, Any], where: str) -> None:
    for key in given:
        if key not in known:
            raise ValueError(f"{where}.{key}: no such field; nearest: {', '.join(near_misses(key, known) or known)}")
    for key, inner in known.items():
        if key not in given:
            raise ValueError(f"{where}.{key}: missing; see configs/digits_quickstart.py")
        if inner is not None:
            _same_fields(given[key], inner, f"{where}.{key}")


def show(made: dict[str, Any], workdir: str) -> None:
    """Prints the table; coloured where the output is a terminal that is wide enough."""
    if not (sys.stdout.isatty() and _show_coloured(made)):
        print(report.table(made))
    print(f"report: {os.path.join(workdir, 'report.md')}")


def _show_coloured(made: dict[str, Any]) -> bool:
    """False where the terminal is too narrow."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    header, cells = report.rows(made, without=["loss"])
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in header:
        bold = "bold" if column in ("accuracy", "ratio") else ""
        table.add_column(column, justify="left" if column == "stage" else "right", style=bold, no_wrap=True)
    for line in cells:
        table.add_row(*line)
    console = Console()
    if len(report.table(made).splitlines()[0]) + len(header) + 2 > console.width:
        return False
    console.print(table)
    for sentence in report.sentences(made):
        console.print(sentence, highlight=False)
    return True


def parsed(argv: Sequence[str]) -> list[str]:
    """Command-line flags; a mistyped config field ends the program with the nearest names and no traceback."""
    try:
        return app.parse_flags_with_usage(list(argv))
    except (AttributeError, KeyError, IndexError) as error:
        lines = str(error).strip("'\"").encode().decode("unicode_escape").splitlines()
        sys.exit(f"--config: no such field or entry: {' '.join(lines)}")


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    given = flags.FLAGS
    if not given["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # Orbax tells of every file
    made = run(given.config, given.workdir, say=lambda line: print(line, flush=True))
    show(made, given.workdir)


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "A file whose get_config() gives the run.")
    flags.DEFINE_string("workdir", None, "Where the report and the artifact go; made if missing.")
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=parsed)
