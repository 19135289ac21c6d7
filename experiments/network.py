"""A config's model, the training of its float weights, and the checkpoints of these."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from jaxopt_nn.core.paths import leaves_by_path
from jaxopt_nn.core.transform import State, identity
from jaxopt_nn.pipeline import registry
from jaxopt_nn.pipeline.checks import check_logits, check_variables
from jaxopt_nn.pipeline.compress import Places, plain_training
from jaxopt_nn.pipeline.data import Data
from jaxopt_nn.pipeline.recipe import Stage
from jaxopt_nn.pipeline.report import MOVE, check_place
from jaxopt_nn.pipeline.train import Teacher, TrainApply, Trainer, Watch, steps_of

PyTree = Any
#: What Orbax writes into a checkpoint; a run that was killed while it replaced one leaves any part of it.
ORBAX = {
    "_CHECKPOINT_METADATA", "_METADATA", "_sharding", "array_metadatas", "commit_success.txt", "d", "manifest.ocdbt",
    "ocdbt.process_0",
}  # fmt: skip


class Network:
    """A model that a config names, and the training of its float weights."""

    def __init__(self, name: str, arguments: Mapping[str, Any], training: Mapping[str, Any], stage: str):
        self._name, self._arguments = name, dict(arguments)
        self._build = registry.imported(name)
        self.apply, self.abstract, train_apply = self._made(0)
        self.train_apply = train_apply or plain_training(self.apply)
        self._stage = Stage(stage, identity(), **registry.stage_fields(training))
        self._trainer = functools.lru_cache(maxsize=4)(self._compiled)

    def fresh(self, seed: int) -> PyTree:
        """Its initial variables."""
        return check_variables(self._made(seed)[1])

    def trained(
        self,
        *,
        seed: int,
        checkpoint: str,
        data: Data,
        batch_size: int,
        places: Places,
        watch: Watch,
        variables: PyTree = None,
        teacher: Teacher | None = None,
    ) -> tuple[PyTree, list[dict[str, Any]]]:
        """Float variables, from the checkpoint or by training, and the history of the training."""
        variables = self.fresh(seed) if variables is None else variables
        check_logits(self.apply, variables, data, what=f"the {self._stage.name} network")
        if checkpoint:
            return restored(checkpoint, variables), []
        steps = steps_of(len(data.train[1]), batch_size)
        done = self._trainer(steps, batch_size, teacher and teacher[0])(
            variables, State(), data.train, jax.random.key(seed), teacher_variables=teacher and teacher[1],
            checkpoints=places(self._stage.name), watch=watch,
        )  # fmt: skip
        return done.variables, done.history

    def _compiled(self, steps: int, batch_size: int, teacher: Callable[..., Any] | None) -> Trainer:
        return Trainer(self.train_apply, identity(), self._stage, steps=steps, batch_size=batch_size, teacher=teacher)

    def _made(self, seed: int) -> tuple[Callable[..., Any], PyTree, TrainApply | None]:
        seeded = {"seed": seed} if "seed" in inspect.signature(self._build).parameters else {}
        made = registry.called(self._build, f"model {self._name}", {**seeded, **self._arguments})
        if not (isinstance(made, tuple) and len(made) in (2, 3) and callable(made[0])):
            raise ValueError(
                f"{self._name} gave {type(made).__name__}; it must return (apply, variables), or with train_apply third"
            )
        return made[0], made[1], made[2] if len(made) == 3 else None


def check_same_tree(made: PyTree, wanted: PyTree, field: str) -> None:
    """Raises ValueError where two trees differ in paths or shapes."""
    left, right = ({p: x.shape for p, x in leaves_by_path(t).items()} for t in (made, wanted))
    for path in {**left, **right}:
        if left.get(path) != right.get(path):
            raise ValueError(
                f"config.{field}: {path} has shape {left.get(path)}, the model's is {right.get(path)}; give the model those "
                "widths (model_args), or change the widths"
            )


def check_replaceable(path: Path) -> None:
    """Raises OSError where something stands at ``path`` that is no Orbax checkpoint, nor the rest of one."""
    check_place(path, "folder")
    names = {child.name for child in path.iterdir()} if path.is_dir() else set()
    if names and not names & ORBAX:
        raise OSError(f"{path}: the float network goes there, and this is no Orbax checkpoint; {MOVE}")


def save_variables(path: Path, variables: PyTree) -> None:
    """An Orbax checkpoint that ``config.checkpoint`` reads."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, variables, force=True)


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
