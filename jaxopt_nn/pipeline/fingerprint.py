"""What tells one run of a recipe from another: so that a run never goes on from another one's positions."""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_nn.core.model import ModelInfo
from jaxopt_nn.core.paths import leaves_by_path
from jaxopt_nn.core.train import init_train_state, make_step
from jaxopt_nn.core.transform import Transform
from jaxopt_nn.interpret.network import Network
from jaxopt_nn.pipeline.data import Arrays
from jaxopt_nn.pipeline.recipe import Stage, described
from jaxopt_nn.pipeline.task import Task

PyTree = Any


def fingerprint(
    network: Network, recipe: Sequence[Stage], methods: Sequence[Transform], infos: Sequence[ModelInfo], task: Task, seed: int
) -> dict[str, Any]:
    """What the numbers of a run depend on, as data: the network's bytes, each stage, the data's size, the seed.

    A method written in Python has arguments that nobody can read off it; they show in the programs that it traces to, of which
    each stage has a digest. Another version of JAX traces other programs.

    Args:
      methods: of the stages. infos: what each is told of the network.
    """
    steps = 1 if task.train is None else task.train.steps(task.batch_size)
    known = described(recipe, methods)
    for stage, said, method, info in zip(recipe, known, methods, infos, strict=True):
        said["programs"] = _digest(method, stage, steps * stage.epochs, network, info)
    held = leaves_by_path(network.variables).values()
    return {
        "stages": known,
        "network": [f"{zlib.crc32(_bytes(x)):08x}" for x in held],
        "batch_size": task.batch_size,
        "train": {"steps": steps, "examples": task.train.size if isinstance(task.train, Arrays) else None},
        "seed": seed,
    }


def _digest(method: Transform, stage: Stage, steps: int, network: Network, info: ModelInfo) -> str:
    """Of the program of a training step, with the constants in it; the loss stands for any."""
    optimizer = stage.updates(steps)

    def loss(variables: PyTree, batch: Any, key: Any) -> Any:
        floats = [x for x in leaves_by_path(variables).values() if jnp.issubdtype(x.dtype, jnp.inexact)]
        return sum(jnp.sum(jnp.abs(x).astype(jnp.float32)) for x in floats), ({}, {})

    def run(variables: PyTree) -> Any:
        ts = init_train_state(variables, method, optimizer, jax.random.key(0), info=info, still=network.still)
        return ts, make_step(loss, method, optimizer, still=network.still)(ts, None)

    closed = jax.make_jaxpr(run)(network.variables)
    text = re.sub(r" at 0x[0-9a-f]+", "", str(closed.jaxpr))  # addresses of functions
    return hashlib.sha256(text.encode() + b"".join(map(_bytes, closed.consts))).hexdigest()[:16]


def _bytes(x: Any) -> bytes:
    return np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x).tobytes()
