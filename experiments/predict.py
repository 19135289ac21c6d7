"""Runs a compressed network from its artifact, on all devices, and times it.

    jaxopt predict --artifact=runs/digits_quickstart/network.jn [--data=...] [--batch_size=128]

Data: the test part of the task that the artifact's config names; or ``--data=package.module:load``, a function that returns a
``Task`` (its test part is taken), a batch such as ``(x, y)``, or ``x``; or ``--data=file.npz`` with ``x`` and, where known,
``y``.
"""

from __future__ import annotations

import functools
import inspect
import io
import os
import time
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

from jaxopt_nn.coding.forms import artifact_bytes, read_artifact
from jaxopt_nn.core.files import write_file
from jaxopt_nn.core.paths import leaves_by_path
from jaxopt_nn.cost.latency import devices as named_devices
from jaxopt_nn.interpret.network import Network, abstract_outputs, like
from jaxopt_nn.parallel.infer import Predictor, predictor
from jaxopt_nn.pipeline import registry
from jaxopt_nn.pipeline.data import Arrays
from jaxopt_nn.pipeline.store import network_from
from jaxopt_nn.pipeline.task import Task
from jaxopt_nn.reporting import tables

from . import common
from .command import start
from .config import checked, imported
from .model import Model

PyTree = Any
WARMUP = 3
#: Passes over the whole data for the throughput, and the seconds after which no other begins.
PASSES, SECONDS = 5, 5.0


class Examples(NamedTuple):
    """Inputs ``[n, ...]`` of the network, and the batch that they are part of, where what is wanted of them is known."""

    inputs: tuple[PyTree, ...]
    batch: PyTree | None

    def __len__(self) -> int:
        return len(jax.tree.leaves(self.inputs)[0])


def run(
    artifact: str | os.PathLike[str],
    data: str = "",
    *,
    batch_size: int = 128,
    repeats: int = 100,
    output: str = "",
    devices: Sequence[jax.Device] | None = None,
) -> dict[str, Any]:
    """Loads an artifact, predicts the data on all devices and times it.

    A batch's latency counts from its arrays in the host's memory to its outputs there, after warm-up; the first batch, which
    holds the compilation, is told apart. The throughput is that of a pass over the whole data.

    Args:
      artifact: the file that ``experiments.compress`` wrote.
      data: as in the module's docstring; empty takes the test part of the config's data.
      batch_size: rows on all devices together; no more than there are examples.
      repeats: batches whose latency is measured.
      output: an ``.npz`` for the ``outputs`` (of several, each by its path), and the int32 ``classes`` of a task
        whose examples or places have one each (``Task.answer``); empty writes none.
      devices: all, if None.

    Returns:
      ``artifact``, ``bytes``, ``rule``, ``devices``, ``batch_size``, ``per_device``, ``examples``, ``metrics`` (what they are,
      as in a report), ``values`` (theirs; None where what is wanted is not known), ``examples_per_second``, ``latency_ms``
      (``p50``, ``p99``, ``first``, ``batches``), ``note`` (None: nothing to note).

    Raises:
      ValueError: it is no artifact, or one without its config; the data is empty, or does not fit the model or
        the task; a number below its least value.
      OSError: no such directory or file, or ``output`` can't be written.
    """
    for name, value in (("batch_size", batch_size), ("repeats", repeats)):
        if value < 1:
            raise ValueError(f"{name}={value}: allowed are 1 and more")
    if output and not Path(output).absolute().parent.is_dir():
        raise FileNotFoundError(
            f"{Path(output).absolute().parent}: no such directory for output={output}; make it first"
        )
    network, task, rule = loaded(artifact)
    examples = given(data, task)
    check_fit(network, task, examples)
    predict = predictor(network, devices=devices, batch_size=min(batch_size, len(examples)))
    times, outputs, speed = timed(predict, examples, repeats)
    if output:
        save(Path(output), outputs, task)
    return {
        "artifact": str(artifact),
        "bytes": artifact_bytes(artifact),
        "rule": rule,
        "devices": named(predict),
        "batch_size": predict.batch_size,
        "per_device": predict.rows(0) // len(predict.devices),
        "examples": len(examples),
        "metrics": task.described(),
        "values": graded(outputs, examples, task),
        "examples_per_second": speed,
        "latency_ms": times,
        "note": scale_note(network, examples) if data else None,
    }


def loaded(artifact: str | os.PathLike[str]) -> tuple[Network, Task, str | None]:
    """The network of an artifact, prepared, the task that its config names, and the name of its rule.

    Raises:
      ValueError: it is none, or does not say of which model it is.
      FileNotFoundError: no such file.
    """
    stored, task = of_config(artifact)
    rule = next((rule.name for _, rule in stored.rules), None)
    ready = stored.prepared()
    abstract_outputs(ready, *like(task.example, 2), what="the model")
    return ready, task, rule


def of_config(artifact: str | os.PathLike[str]) -> tuple[Network, Task]:
    """The network of an artifact, as stored, with the code that its config names; the task.

    Raises:
      ValueError: it is none, or does not say of which model it is.
      FileNotFoundError: no such file.
    """
    common.check_no_run(artifact)
    tree, manifest = read_artifact(artifact)
    extra = manifest.get("extra")
    extra = extra if isinstance(extra, Mapping) else {}
    config = extra.get("config")
    if not isinstance(config, Mapping) or "model" not in config:
        raise ValueError(
            f"{artifact}: its header does not name the model (extra.config.model); artifacts of `jaxopt compress` do. "
            "Load another one in Python: jaxopt_nn.load, jaxopt_nn.predictor"
        )
    config = checked(config)
    asked = config["stages"][-1].get("rule") or ""
    network = Model(config["model"], config["model_args"], config["float"], "float").network
    own = registry.rule(asked) if ":" in asked else None
    saved = network_from(tree, manifest, network.apply, own, str(artifact))
    return saved, common.load_task(config)


def given(data: str, task: Task) -> Examples:
    """The examples to predict.

    Raises:
      ValueError: they are empty, hold NaN or Inf, or have another form than the module's docstring says.
      FileNotFoundError: no such file.
    """
    if not data:
        return of_source(task)
    if ":" in data and not Path(data).exists():
        load = imported(data)
        known = inspect.signature(load).parameters
        made = load(**{k: v for k, v in {"fold": 0, "seed": 0}.items() if k in known})
        if isinstance(made, Task):
            return of_source(made)
        return of_batch(made, task, data)
    return of_batch(read(Path(data)), task, str(data))


def of_source(task: Task) -> Examples:
    """The test part of a task; a loader's batches become one."""
    if isinstance(task.test, Arrays):
        tree = task.test.tree
    else:
        parts = [jax.tree.map(lambda x, rows=int(real.sum()): x[:rows], batch) for batch, real in task.test.batches(0)]
        tree = jax.tree.map(lambda *each: np.concatenate(each), *parts)
    return Examples(task.objective.inputs_of(tree), tree)


def of_batch(made: Any, task: Task, name: str) -> Examples:
    """A batch of the task's form, or its inputs alone."""
    if not (isinstance(made, tuple | dict) or hasattr(made, "__array__")):
        raise ValueError(f"{name} gave {type(made).__name__}; it must return a Task, a batch such as (x, y), or x")
    try:
        tree = Arrays(made, f"data={name}").tree
    except TypeError as error:
        raise ValueError(str(error)) from error
    whole = jax.tree.structure(tree) == jax.tree.structure(task.test.example)
    return Examples(task.objective.inputs_of(tree), tree) if whole else Examples((tree,), None)


def read(file: Path) -> Any:
    """``(x, y)``, or ``x`` alone, of an ``.npz``."""
    if not file.is_file():
        raise FileNotFoundError(f"data={file}: no such file; pass an .npz, package.module:load, or nothing")
    try:
        with open(file, "rb") as stream, zipfile.ZipFile(stream):  # np.load takes other files too
            stream.seek(0)
            arrays = np.load(stream, allow_pickle=False)
            if "x" not in arrays:
                held = ", ".join(arrays) or "nothing"
                raise ValueError(f"holds {held}; needs x, and y where labels are known")
            return (arrays["x"], arrays["y"]) if "y" in arrays else arrays["x"]
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"data={file}: no .npz of arrays, or a damaged one ({error})") from error
    except ValueError as error:
        raise ValueError(f"data={file}: {error}") from error


def check_fit(network: Network, task: Task, examples: Examples) -> None:
    """Traces the model on the examples' shapes.

    Raises:
      ValueError: the model can't take them, or its outputs don't fit what is wanted.
    """
    outputs = abstract_outputs(network, *like(examples.inputs, 2), what="the model")
    if examples.batch is not None and task.check is not None:
        task.check(outputs, Arrays(examples.batch, "data"))


def scale_note(network: Network, examples: Examples) -> str | None:
    """A word on whole numbers for a model that takes floats as well, so not for one that looks them up in a table."""
    x = examples.inputs[0]
    if len(examples.inputs) > 1 or not hasattr(x, "dtype") or x.dtype.kind == "f":
        return None
    try:
        abstract_outputs(network, jax.ShapeDtypeStruct((2, *x.shape[1:]), np.float32))
    except ValueError:
        return None
    return (
        f"the inputs are {x.dtype}, {x.min()} to {x.max()}, and taken as they are; if the model was trained on scaled floats, "
        "scale these alike, e.g. x / 255 as float32"
    )


def timed(predict: Predictor, examples: Examples, repeats: int) -> tuple[dict[str, Any], PyTree, float]:
    """``(latencies of batches in ms, outputs for all examples, examples a second)``."""
    total = len(examples)
    size = min(predict.rows(0), total)
    rows = lambda start: jax.tree.map(lambda x: x[start : start + size], examples.inputs)
    starts = [i * size % (total - size + 1) for i in range(repeats)]
    first = _seconds(functools.partial(predict, *rows(0)))[0]
    for _ in range(WARMUP - 1):
        predict(*rows(0))
    each = [1e3 * _seconds(functools.partial(predict, *rows(s)))[0] for s in starts]
    passes: list[float] = []
    while not passes or (len(passes) < PASSES and sum(passes) < SECONDS):
        seconds, outputs = _seconds(functools.partial(predict, *examples.inputs))
        passes.append(seconds)
    p50, p99 = np.percentile(each, [50, 99])
    times = {"p50": float(p50), "p99": float(p99), "first": 1e3 * first, "batches": len(each)}
    return times, outputs, total / float(np.median(passes))


def _seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    out = call()
    return time.perf_counter() - start, out


def graded(outputs: PyTree, examples: Examples, task: Task) -> dict[str, float] | None:
    """The task's metrics; None where what is wanted is not known."""
    if examples.batch is None:
        return None
    return task.result(jax.device_get(task.objective.measured(outputs, examples.batch, None)))


def save(file: Path, outputs: PyTree, task: Task) -> None:
    """Writes the predictions, whole or not at all."""
    arrays = {path or "outputs": np.asarray(x) for path, x in leaves_by_path(outputs).items()}
    if task.answer is not None and list(arrays) == ["outputs"]:
        arrays["classes"] = np.asarray(task.answer(arrays["outputs"], task.test.example))
    out = io.BytesIO()
    np.savez(out, **arrays)
    write_file(file, out.getvalue())


def named(predict: Predictor) -> list[str]:
    """The devices that it runs on, by kind."""
    known = dict(zip(jax.devices(), named_devices(), strict=True))
    return [known[device] for device in predict.devices]


def rows(found: Mapping[str, Any]) -> list[list[str]]:
    """The result as lines of a table with two columns."""
    kinds = [f"{found['devices'].count(kind)} x {kind}" for kind in dict.fromkeys(found["devices"])]
    times = found["latency_ms"]
    lines = [
        ["artifact", f"{found['artifact']}, {found['bytes']:,} bytes, {found['rule'] or 'weight-only'}"],
        ["devices", "; ".join(kinds)],
        ["batch", f"{found['batch_size']:,}, {found['per_device']:,} on each device"],
        ["examples", f"{found['examples']:,}"],
    ]
    for name, value in (found["values"] or {}).items():
        lines.append([name, tables.shown(found, name, value)])
    noted = [["note", found["note"]]] if found["note"] else []
    return [
        *lines,
        ["throughput", f"{found['examples_per_second']:,.0f} examples/s"],
        ["latency p50", f"{times['p50']:.3g} ms a batch"],
        ["latency p99", f"{times['p99']:.3g} ms a batch, of {times['batches']:,}"],
        ["first batch", f"{times['first']:.4g} ms, with the compilation"],
        *noted,
    ]


def define_flags() -> None:
    flags.DEFINE_string("artifact", None, "The artifact: a file, or a folder.")
    flags.DEFINE_string("data", "", "package.module:load or an .npz; empty: the test part of the config's data.")
    flags.DEFINE_integer("batch_size", 128, "Rows on all devices together.")
    flags.DEFINE_integer("repeats", 100, "Batches whose latency is measured.")
    flags.DEFINE_string("output", "", "An .npz for the predictions.")
    flags.mark_flags_as_required(["artifact"])


def main(argv: Sequence[str]) -> None:
    flag = common.flag_values(argv)
    with common.plain_errors():
        found = run(flag.artifact, flag.data, batch_size=flag.batch_size, repeats=flag.repeats, output=flag.output)
    title, *lines = rows(found)
    common.show(title, lines, left=2)
    if flag.output:
        print(f"predictions: {flag.output}")


if __name__ == "__main__":
    start(define_flags, main, __doc__)
