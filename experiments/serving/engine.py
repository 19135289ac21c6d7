"""From an artifact to a function that answers several requests with one call of a compiled program."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_nn.coding.forms import artifact_bytes, read_artifact
from jaxopt_nn.core.paths import leaves_by_path
from jaxopt_nn.export.imported import Imported
from jaxopt_nn.interpret.network import Network, abstract_outputs, like
from jaxopt_nn.parallel.infer import predictor
from jaxopt_nn.pipeline.store import load

from .. import common, predict
from . import wire
from .wire import Field

PyTree = Any
#: The arrays of one request or answer, ``[rows, ...]`` each, in the order of the fields.
Arrays = list[np.ndarray]


class Engine:
    """A network that answers requests: their rows joined, run on all devices, and the outputs split back.

    Args:
      network: its inputs and outputs have the batch as first axis.
      example: its inputs, arrays or ``jax.ShapeDtypeStruct``; the first lengths don't matter.
      max_batch: rows of a call at most.
      devices: all, if None.

    Attributes:
      inputs, outputs: what clients send and get, a ``Field`` for each array. A dtype that NumPy has not is float32 there.
      sizes: rows of the compiled programs: a power of two on each device.

    Raises:
      ValueError: an input has an axis of open length, beside the batch; ``network`` fails on the inputs; an input or output is
        of numbers that bodies can't hold, complex ones say.
    """

    def __init__(
        self, network: Network, example: Sequence[PyTree], max_batch: int, devices: Sequence[jax.Device] | None = None
    ):
        example = tuple(example)
        for path, x in leaves_by_path(example).items():
            if not all(isinstance(n, int) for n in x.shape[1:]):
                raise ValueError(
                    f"input {path}: {x.dtype}{list(x.shape)} has an axis of open length beside the batch; programs are "
                    "compiled when the server starts, so export the network with inputs of fixed lengths"
                )
            if isinstance(network.apply, Imported) and isinstance(x.shape[0], int):
                raise ValueError(
                    f"input {path}: the program takes batches of {x.shape[0]} only; export it for a batch of any size"
                )
        rows = [jax.ShapeDtypeStruct((2, *x.shape[1:]), x.dtype) for x in jax.tree.leaves(example)]
        self._tree = jax.tree.structure(example)
        self._dtypes = [x.dtype for x in rows]
        self._predict = predictor(network, devices=devices)
        inputs = jax.tree.unflatten(self._tree, rows)
        self.inputs = fields(inputs[0] if len(inputs) == 1 else inputs, "inputs")
        self.outputs = fields(abstract_outputs(network, *inputs, what="the model"), "outputs")
        for field in (*self.inputs, *self.outputs):
            if field.dtype.kind not in wire.KINDS:
                raise ValueError(f"{field.name}: is {field}; a server takes and gives floats, integers, booleans: wrap apply")
        self.devices = predict.named(self._predict)
        self.max_batch = max_batch
        self.sizes = sorted({self._predict.rows(n) for n in range(1, max_batch + 1)})

    def warm_up(self, done: Callable[[int], None] = lambda rows: None) -> None:
        """Compiles and runs the program of each size; ``done(rows)`` is called after each."""
        for rows in self.sizes:
            self._run([np.zeros((rows, *f.shape), f.dtype) for f in self.inputs])
            done(rows)

    def __call__(self, requests: Sequence[Arrays]) -> list[Arrays]:
        """The outputs of each request, whose rows are ``max_batch`` at most in all."""
        joined = [x[0] if len(x) == 1 else np.concatenate(x) for x in zip(*requests, strict=True)]
        outputs = self._run(joined)
        ends = np.cumsum([len(arrays[0]) for arrays in requests])
        return [
            [x[end - len(arrays[0]) : end] for x in outputs] for arrays, end in zip(requests, ends.tolist(), strict=True)
        ]

    def _run(self, arrays: Arrays) -> Arrays:
        leaves = [x.astype(dtype, copy=False) for x, dtype in zip(arrays, self._dtypes, strict=True)]
        return jax.tree.leaves(self._predict(*jax.tree.unflatten(self._tree, leaves)))


def fields(tree: PyTree, alone: str) -> list[Field]:
    """A field for each array of the tree, ``[B, ...]``, by its path; a tree of one array calls it ``alone``."""
    own = lambda dtype: np.dtype(np.float32 if jnp.issubdtype(dtype, jnp.floating) and dtype.kind != "f" else dtype)
    return [Field(path or alone, tuple(x.shape[1:]), own(x.dtype)) for path, x in leaves_by_path(tree).items()]


def opened(artifact: str | os.PathLike[str], max_batch: int) -> tuple[Engine, dict[str, Any]]:
    """The network of an artifact, and what there is to tell of it.

    It is the program for this platform if the artifact holds one, which needs no code; else the model of its config.

    Raises:
      FileNotFoundError: no such file. ValueError: it holds no network that can run here, or is damaged.
    """
    common.check_no_run(artifact)
    _, manifest = read_artifact(artifact)
    if f"programs/{jax.default_backend()}.run" in manifest["files"]:
        network, source = load(artifact), "exported program"
        example = network.apply.inputs
    else:
        network, task, _ = predict.loaded(artifact)
        example, source = like(task.example), "model of the config"
    facts = {
        "artifact": Path(artifact).absolute().name,
        "version": manifest["digest"],
        "written_with": manifest["versions"],
        "bytes": artifact_bytes(artifact),
        "runs": source,
    }
    return Engine(network, example, max_batch), facts
