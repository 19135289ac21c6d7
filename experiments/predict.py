"""Runs a compressed network from its artifact, on all devices, and times it.

    python -m experiments.predict --artifact=runs/digits_quickstart/artifact [--data=...] [--batch_size=128]

Data: the test part of the data that the artifact's config names; or ``--data=package.module:load``, a function that returns
``Data`` (its test part is taken), ``(x, y)`` or ``x``; or ``--data=file.npz`` with ``x`` and, where known, the labels ``y``.
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
from absl import app, flags

from experiments import common
from experiments.config import checked, parsed
from experiments.network import Network
from jaxopt_nn.coding.artifact import directory_bytes, load_artifact
from jaxopt_nn.formulations.prepare import prepare
from jaxopt_nn.interpret.rewrite import rewrite
from jaxopt_nn.parallel.infer import Predictor, complaint, predictor
from jaxopt_nn.pipeline import measure, registry, report
from jaxopt_nn.pipeline.data import Data

PyTree = Any
WARMUP = 3
#: Passes over the whole data for the throughput, and the seconds after which no other begins.
PASSES, SECONDS = 5, 5.0


class Examples(NamedTuple):
    """Inputs ``[n, ...]``, labels ``[n, ...]`` or None, and how the number is called."""

    x: np.ndarray
    y: np.ndarray | None
    metric: str = "accuracy"


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

    A batch's latency counts from its arrays in the host's memory to its logits there, after warm-up; the first batch, which
    holds the compilation, is told apart. The throughput is that of a pass over the whole data.

    Args:
      artifact: the directory that ``experiments.compress`` wrote.
      data: as in the module's docstring; empty takes the test part of the config's data.
      batch_size: rows on all devices together; no more than there are examples.
      repeats: batches whose latency is measured.
      output: an ``.npz`` for ``logits``, ``classes`` and the ``labels``, if known; empty writes none.
      devices: all, if None.

    Returns:
      ``artifact``, ``bytes``, ``rule``, ``devices``, ``batch_size``, ``per_device``, ``examples``, ``metric``, ``accuracy``
      and ``loss`` (None without labels), ``examples_per_second``, ``latency_ms`` (``p50``, ``p99``, ``first``, ``batches``),
      ``note`` (None: nothing to note).

    Raises:
      ValueError: the directory holds no artifact, or one without its config; the data is empty, does not fit the model, or
        its labels don't; a number below its least value.
      OSError: no such directory or file, or ``output`` can't be written.
    """
    for name, value in (("batch_size", batch_size), ("repeats", repeats)):
        if value < 1:
            raise ValueError(f"{name}={value}: allowed are 1 and more")
    if output and not Path(output).absolute().parent.is_dir():
        raise FileNotFoundError(
            f"{Path(output).absolute().parent}: no such directory for output={output}; make it first"
        )
    variables, config, rule = loaded(artifact)
    network = rewrite(Network(config["model"], config["model_args"], config["float"], "float").apply, rule or ())
    examples = given(data, config)
    variables = prepare(variables)
    check_fit(network, variables, examples)
    predict = predictor(network, variables, devices=devices, batch_size=min(batch_size, len(examples.x)))
    times, logits, speed = timed(predict, examples.x, repeats)
    if output:
        save(Path(output), logits, examples.y)
    return {
        "artifact": str(artifact),
        "bytes": directory_bytes(artifact),
        "rule": rule.name if rule else None,
        "devices": named(predict),
        "batch_size": predict.batch_size,
        "per_device": predict.rows(0) // len(predict.devices),
        "examples": len(examples.x),
        "metric": examples.metric,
        **graded(logits, examples.y),
        "examples_per_second": speed,
        "latency_ms": times,
        "note": scale_note(network, variables, examples.x) if data else None,
    }


def loaded(artifact: str | os.PathLike[str]) -> tuple[PyTree, dict[str, Any], Any]:
    """``(variables, config, rule)`` of an artifact.

    Raises:
      ValueError: it is none, or does not say of which model it is.
      FileNotFoundError: no such directory.
    """
    if (Path(artifact) / "artifact" / "manifest.json").is_file():
        raise ValueError(f"{artifact}: is a run's folder; its artifact is {Path(artifact) / 'artifact'}")
    variables, manifest = load_artifact(artifact)
    extra = manifest.get("extra")
    extra = extra if isinstance(extra, Mapping) else {}
    config = extra.get("config")
    if not isinstance(config, Mapping) or "model" not in config:
        raise ValueError(
            f"{artifact}: the manifest does not name the model (extra.config.model); artifacts of experiments.compress do. "
            "Load another one in Python: jaxopt_nn.load_artifact, jaxopt_nn.predictor"
        )
    config = checked(config)
    asked = config["stages"][-1].get("rule") or ""
    return variables, config, registry.rule(asked if ":" in asked else extra.get("rule"))


def given(data: str, config: Mapping[str, Any]) -> Examples:
    """The examples to predict.

    Raises:
      ValueError: they are empty, hold NaN or Inf, or have another form than the module's docstring says.
      FileNotFoundError: no such file.
    """
    if not data:
        found = common.load_data(config)
        return Examples(*found.test, found.metric)
    if ":" in data and not Path(data).exists():
        load = registry.imported(data)
        known = inspect.signature(load).parameters
        examples = examples_of(
            load(**{k: v for k, v in {"fold": 0, "seed": config["seed"]}.items() if k in known}), data
        )
    else:
        examples = read(Path(data))
    x, y = examples.x, examples.y
    if x.ndim == 0 or not x.size:
        raise ValueError(f"data={data}: no examples; x has shape {list(x.shape)}")
    if x.dtype.kind not in "biuf":
        raise ValueError(f"data={data}: x is {x.dtype}; pass an array of numbers")
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        raise ValueError(f"data={data}: NaN or Inf among the inputs")
    if y is not None and (y.shape[:1] != x.shape[:1] or not np.issubdtype(y.dtype, np.integer)):
        raise ValueError(
            f"data={data}: labels are {y.dtype}{list(y.shape)} for {len(x)} inputs; pass one class number for each, integers"
        )
    return examples


def examples_of(made: Any, name: str) -> Examples:
    """What a function for ``--data`` returned."""
    if isinstance(made, Data):
        return Examples(*made.test, made.metric)
    if isinstance(made, tuple) and len(made) == 2:
        return Examples(np.asarray(made[0]), np.asarray(made[1]))
    if hasattr(made, "shape"):
        return Examples(np.asarray(made), None)
    raise ValueError(f"{name} gave {type(made).__name__}; it must return a Data, (x, y) or x")


def read(file: Path) -> Examples:
    """``x`` and, if there, ``y`` of an ``.npz``."""
    if not file.is_file():
        raise FileNotFoundError(f"data={file}: no such file; pass an .npz, package.module:load, or nothing")
    try:
        with open(file, "rb") as stream, zipfile.ZipFile(stream):  # np.load takes other files too
            stream.seek(0)
            arrays = np.load(stream, allow_pickle=False)
            if "x" not in arrays:
                held = ", ".join(arrays) or "nothing"
                raise ValueError(f"holds {held}; needs x, and y where labels are known")
            return Examples(arrays["x"], arrays["y"] if "y" in arrays else None)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"data={file}: no .npz of arrays, or a damaged one ({error})") from error
    except ValueError as error:
        raise ValueError(f"data={file}: {error}") from error


def check_fit(apply: Callable[..., Any], variables: PyTree, examples: Examples) -> None:
    """Traces the model on the examples' shape.

    Raises:
      ValueError: the model can't take it, or gives other than logits, or its labels don't fit these.
    """
    x, y = examples.x, examples.y
    shape = f"{x.dtype}{list(x.shape[1:])}"
    try:
        out = logits_of(apply, variables, x.shape, jax.dtypes.canonicalize_dtype(x.dtype))
    except Exception as error:
        raise ValueError(
            f"examples of {shape} do not fit the model, it fails with {complaint(error)}; pass inputs of the shape and dtype "
            "that it was trained on"
        ) from error
    if not isinstance(out, jax.ShapeDtypeStruct) or out.ndim < 2:
        raise ValueError(f"for 2 examples of {shape} the model gives {out}; logits are needed, [2, ..., classes]")
    if y is not None and out.shape[:-1] != (2, *y.shape[1:]):
        wanted = f"class numbers {list(out.shape[1:-1])}" if out.ndim > 2 else "one class number"
        raise ValueError(
            f"labels are {y.dtype}{list(y.shape[1:])} for each example, the logits {list(out.shape[1:])}: pass {wanted} for "
            f"each, 0 to {out.shape[-1] - 1}, no one-hot"
        )
    if y is not None and not 0 <= y.min() <= y.max() < out.shape[-1]:
        raise ValueError(f"labels are {y.min()} to {y.max()}; the model knows the classes 0 to {out.shape[-1] - 1}")


def logits_of(apply: Callable[..., Any], variables: PyTree, shape: Sequence[int], dtype: Any) -> Any:
    """What the model gives for 2 examples of inputs ``[n, ...]``, abstract."""
    return jax.eval_shape(apply, variables, jax.ShapeDtypeStruct((2, *shape[1:]), dtype))


def scale_note(apply: Callable[..., Any], variables: PyTree, x: np.ndarray) -> str | None:
    """A word on whole numbers for a model that takes floats as well, so not for one that looks them up in a table."""
    if x.dtype.kind == "f":
        return None
    try:
        logits_of(apply, variables, x.shape, np.float32)
    except Exception:
        return None
    return (
        f"the inputs are {x.dtype}, {x.min()} to {x.max()}, and taken as they are; if the model was trained on scaled floats, "
        "scale these alike, e.g. x / 255 as float32"
    )


def timed(predict: Predictor, x: np.ndarray, repeats: int) -> tuple[dict[str, Any], np.ndarray, float]:
    """``(latencies of batches in ms, logits of all examples, examples a second)``."""
    size = min(predict.rows(0), len(x))
    starts = [i * size % (len(x) - size + 1) for i in range(repeats)]
    first = _seconds(functools.partial(predict, x[:size]))[0]
    for _ in range(WARMUP - 1):
        predict(x[:size])
    each = [1e3 * _seconds(functools.partial(predict, x[s : s + size]))[0] for s in starts]
    passes: list[float] = []
    while not passes or (len(passes) < PASSES and sum(passes) < SECONDS):
        seconds, logits = _seconds(functools.partial(predict, x))
        passes.append(seconds)
    p50, p99 = np.percentile(each, [50, 99])
    times = {"p50": float(p50), "p99": float(p99), "first": 1e3 * first, "batches": len(each)}
    return times, logits, len(x) / float(np.median(passes))


def _seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    out = call()
    return time.perf_counter() - start, out


def graded(logits: np.ndarray, y: np.ndarray | None) -> dict[str, float | None]:
    """``accuracy`` in [0, 1] and mean cross-entropy ``loss`` in nats, over all labels."""
    if y is None:
        return {"accuracy": None, "loss": None}
    logits = logits.astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    own = np.take_along_axis(logits, y[..., None], -1)[..., 0]
    return {
        "accuracy": float(np.mean(logits.argmax(-1) == y)),
        "loss": float(np.mean(np.log(np.exp(logits).sum(-1)) - own)),
    }


def save(file: Path, logits: np.ndarray, y: np.ndarray | None) -> None:
    """Writes the predictions, whole or not at all."""
    arrays: dict[str, Any] = {"logits": logits.astype(np.float32), "classes": logits.argmax(-1).astype(np.int32)}
    if y is not None:
        arrays["labels"] = y
    out = io.BytesIO()
    np.savez(out, **arrays)
    report.write_file(file, out.getvalue())


def named(predict: Predictor) -> list[str]:
    """The devices that it runs on, by kind."""
    known = dict(zip(jax.devices(), measure.devices(), strict=True))
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
    if found["accuracy"] is not None:
        lines.append(["accuracy", f"{found['accuracy']:.2%}"])
    if found["metric"] != "accuracy" and found["loss"] is not None:
        lines.append([found["metric"], f"{found['loss'] / np.log(2):.4f}"])
    noted = [["note", found["note"]]] if found["note"] else []
    return [
        *lines,
        ["throughput", f"{found['examples_per_second']:,.0f} examples/s"],
        ["latency p50", f"{times['p50']:.3g} ms a batch"],
        ["latency p99", f"{times['p99']:.3g} ms a batch, of {times['batches']:,}"],
        ["first batch", f"{times['first']:.4g} ms, with the compilation"],
        *noted,
    ]


def main(argv: Sequence[str]) -> None:
    flag = common.flag_values(argv)
    with common.plain_errors():
        found = run(flag.artifact, flag.data, batch_size=flag.batch_size, repeats=flag.repeats, output=flag.output)
    title, *lines = rows(found)
    common.show(title, lines, left=2)
    if flag.output:
        print(f"predictions: {flag.output}")


if __name__ == "__main__":
    flags.DEFINE_string("artifact", None, "The directory of the artifact.")
    flags.DEFINE_string("data", "", "package.module:load or an .npz; empty: the test part of the config's data.")
    flags.DEFINE_integer("batch_size", 128, "Rows on all devices together.")
    flags.DEFINE_integer("repeats", 100, "Batches whose latency is measured.")
    flags.DEFINE_string("output", "", "An .npz for the predictions.")
    flags.mark_flags_as_required(["artifact"])
    app.run(main, flags_parser=parsed)
