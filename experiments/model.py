"""A config's model, the training of its float weights, and the checkpoints of these."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from jaxopt_nn.core.files import MOVE, check_place
from jaxopt_nn.core.paths import leaves_by_path
from jaxopt_nn.core.transform import State, identity
from jaxopt_nn.interpret.network import Network, Rules
from jaxopt_nn.pipeline import registry
from jaxopt_nn.pipeline.checks import check_network, check_outputs
from jaxopt_nn.pipeline.course import Places
from jaxopt_nn.pipeline.fit import Trainer
from jaxopt_nn.pipeline.grade import validated
from jaxopt_nn.pipeline.recipe import Stage
from jaxopt_nn.pipeline.task import Objective, Task
from jaxopt_nn.pipeline.twins import twin
from jaxopt_nn.reporting.progress import Watch

from .config import imported

PyTree = Any
#: What Orbax writes into a checkpoint; a run that was killed while it replaced one leaves any part of it.
ORBAX = {
    "_CHECKPOINT_METADATA", "_METADATA", "_sharding", "array_metadatas", "commit_success.txt", "d", "manifest.ocdbt",
    "ocdbt.process_0",
}  # fmt: skip


class Model:
    """A model that a config names, and the training of its float weights.

    Attributes:
      network: as it is built with seed 0; networks of other seeds share its functions, and so its programs.
    """

    def __init__(self, name: str, arguments: Mapping[str, Any], training: Mapping[str, Any], stage: str):
        self._name, self._arguments = name, dict(arguments)
        self._build = imported(name)
        self.network = self._built(0)
        self._stage = Stage(stage, identity(), **registry.stage_fields(training))
        self._trainer = functools.lru_cache(maxsize=4)(self._compiled)

    def fresh(self, seed: int) -> Network:
        """With its initial variables."""
        return check_network(self.network.replace(variables=self._built(seed).variables))

    def trained(
        self,
        network: Network,
        *,
        seed: int,
        checkpoint: str,
        task: Task,
        places: Places,
        watch: Watch,
        teacher: Network | None = None,
    ) -> tuple[Network, list[dict[str, Any]]]:
        """With float weights from the checkpoint or by training, and the history of the training."""
        check_outputs(network, task, teacher if self._stage.distill else None, trains=not checkpoint)
        if checkpoint:
            return network.replace(variables=restored(checkpoint, network.variables)), []
        assert task.train is not None
        ready = twin(self._stage, network, lambda: network.variables, task)
        valid = None if task.valid is None else functools.partial(validated, task, network)
        done = self._trainer(task.objective, task.train.steps(task.batch_size), task.batch_size, ready.rules)(
            network.variables, State(), task.train, jax.random.key(seed), rules=ready.states, teacher=teacher,
            checkpoints=places(self._stage.name), watch=watch, valid=valid,
        )  # fmt: skip
        return network.replace(variables=done.variables), done.history

    def _compiled(self, objective: Objective, steps: int, batch_size: int, rules: Rules) -> Trainer:
        return Trainer(
            self.network.trained, identity(), self._stage, objective,
            steps=steps, batch_size=batch_size, rules=rules, still=self.network.still,
        )  # fmt: skip

    def _built(self, seed: int) -> Network:
        seeded = {"seed": seed} if "seed" in inspect.signature(self._build).parameters else {}
        taken = inspect.signature(self._build).parameters
        if other := [name for name in self._arguments if name not in taken]:
            raise ValueError(
                f"model {self._name} has no argument {', '.join(other)}, of config.model_args; these belong to another model: "
                f"give the config this model's own: {', '.join(taken) or 'it takes none'}"
            )
        made = registry.called(self._build, f"model {self._name}", {**seeded, **self._arguments})
        if not isinstance(made, Network):
            raise ValueError(
                f"{self._name} gave {type(made).__name__}; it must return a Network: jaxopt_nn.linen(model, variables), "
                "jaxopt_nn.nnx(model), or Network(apply, variables)"
            )
        return made


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
            f"config.checkpoint={path!r}: no Orbax checkpoint of this model's variables ({error}); pass one, e.g. RUN/float"
        ) from error
