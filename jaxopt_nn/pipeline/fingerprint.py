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
from jaxopt_nn.core.passes import Pass, Plan
from jaxopt_nn.core.paths import leaves_by_path
from jaxopt_nn.core.rule import Rule
from jaxopt_nn.core.rule import described as rule_described
from jaxopt_nn.core.train import init_train_state, make_step
from jaxopt_nn.core.transform import Transform, identity
from jaxopt_nn.interpret.network import Network, like
from jaxopt_nn.pipeline.data import Arrays, Source
from jaxopt_nn.pipeline.recipe import Stage, described
from jaxopt_nn.pipeline.stages import Accumulated
from jaxopt_nn.pipeline.task import Task

PyTree = Any


def fingerprint(network: Network, task: Task, teacher: Network | None, distils: bool, seed: int) -> dict[str, Any]:
    """What the numbers of a run depend on besides its stages.

    The bytes of the network, of a teacher and of arrays in memory; the programs of the model and the loss; the seed. Of a
    loader only the number of its batches is known.
    """
    return {
        "network": _sums(network.variables),
        "teacher": None if teacher is None else _sums(teacher.variables),
        "loss": _loss_digest(network, task, distils),
        "batch_size": task.batch_size,
        "train": {"steps": task.steps, "examples": _examples(task.train)},
        "test": _examples(task.test),
        "seed": seed,
    }


def _examples(source: Source | None) -> Any:
    return _sums(source.tree) if isinstance(source, Arrays) else None


def _sums(tree: PyTree) -> list[str]:
    return [f"{zlib.crc32(_bytes(x)):08x}" for x in jax.tree.leaves(tree)]


def _loss_digest(network: Network, task: Task, distils: bool) -> str:
    objective, batch = task.objective, like(task.test.example, 2)

    def run(variables: PyTree, batch: PyTree) -> Any:
        outputs = network.apply(variables, *objective.inputs_of(batch))
        soft = objective.soft(outputs, outputs, batch, 1.0) if distils and objective.soft else None
        return objective.losses(outputs, batch, None), soft

    return _text_digest(jax.make_jaxpr(run)(network.variables, batch))


def stage_prints(
    plan: Accumulated, tried: Sequence[tuple[Network, Transform | Plan, ModelInfo]], task: Task
) -> list[dict[str, Any]]:
    """The stages in words, each with a digest of what it does.

    A method written in Python has arguments that nobody can read off it; they show in the programs that it traces to, those of
    a pass in its plan. Another version of JAX traces other programs. A plan of measured times is not told, nor programs at the
    widths that it leaves.

    Args:
      tried: as ``Course.tried`` gives it.
    """
    found, timed = described(plan.stages, plan.added), False
    for stage, said, (network, change, info) in zip(plan.stages, found, tried, strict=True):
        method = identity() if isinstance(change, Plan) else change
        if not timed:
            said["programs"] = _digest(method, stage, task.steps * stage.epochs, network, info)
        in_words = lambda rule: rule and (rule_described(rule) or rule.name)
        alone = stage.rule is None or isinstance(stage.rule, Rule)
        said["rule"] = in_words(stage.rule) if alone else [[pattern, in_words(rule)] for pattern, rule in stage.cases]
        said["training_rule"] = in_words(stage.training_rule)
        said["thaw"] = list(stage.thaw)
        timed = timed or (isinstance(stage.transform, Pass) and stage.transform.traits.timed)
        if isinstance(change, Plan) and not timed:
            kept = {name: units.tolist() for name, units in change.kept.items()}
            said["plan"] = hashlib.sha256(repr((change.name, kept)).encode()).hexdigest()[:16]
    return found


def _digest(method: Transform, stage: Stage, steps: int, network: Network, info: ModelInfo) -> str:
    """Of the program of a training step, with the constants in it; the loss stands for any."""
    optimizer = stage.updates(steps)

    def loss(variables: PyTree, batch: Any, key: Any) -> Any:
        floats = [x for x in leaves_by_path(variables).values() if jnp.issubdtype(x.dtype, jnp.inexact)]
        return sum(jnp.sum(jnp.abs(x).astype(jnp.float32)) for x in floats), ({}, {})

    def run(variables: PyTree) -> Any:
        ts = init_train_state(variables, method, optimizer, jax.random.key(0), info=info, still=network.still)
        return ts, make_step(loss, method, optimizer, still=network.still)(ts, None)

    return _text_digest(jax.make_jaxpr(run)(network.variables))


def _text_digest(closed: Any) -> str:
    text = re.sub(r" at 0x[0-9a-f]+", "", str(closed.jaxpr))  # addresses of functions
    return hashlib.sha256(text.encode() + b"".join(map(_bytes, closed.consts))).hexdigest()[:16]


def _bytes(x: Any) -> bytes:
    return np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x).tobytes()
