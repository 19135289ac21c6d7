"""Claims of the classic methods on LeNet-300-100 and Fashion-MNIST, five seeds, peers beside from the same networks.

Command: ``python -m experiments.benchmarks.foundation [--part=quantize,prune,distill,masks,step] [--seeds=5]``

About 25 minutes in all on 2 cores. Accuracies are those of the deployed (packed) network on the 10,000 test images; float
networks are trained once a seed and kept in ``--workdir``. Settings were chosen on 10,000 of the training images that were held
out, with two to six seeds. Times are medians of one interleaved run after warm-up, in ms a step.

Qwix (``pip install '.[bench]'``) trains beside. JaxPruner does not install on current JAX: its figures are quoted from a run
on an older one with names put back, the best of its allocations at each sparsity; a full sort of every leaf stands for its way
to find a threshold.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import app, flags

from configs import fashion_distill, fashion_lenet300_deep, fashion_lenet300_qat4
from jaxopt_nn.core.combine import where
from jaxopt_nn.core.gates import every
from jaxopt_nn.core.train import init_train_state, make_step
from jaxopt_nn.core.transform import State, Transform, identity
from jaxopt_nn.cost.latency import interleaved
from jaxopt_nn.interpret.inspect import inspect
from jaxopt_nn.interpret.network import Network
from jaxopt_nn.interpret.rewrite import rewrite
from jaxopt_nn.methods.allocations.global_budget import global_budget
from jaxopt_nn.methods.arithmetic import fake_quant_activations
from jaxopt_nn.methods.prune import prune
from jaxopt_nn.methods.quantize import quantize
from jaxopt_nn.methods.schedules import cubic
from jaxopt_nn.pipeline import registry
from jaxopt_nn.pipeline.checkpoints import Checkpoints, nothing
from jaxopt_nn.pipeline.compress import Compressor
from jaxopt_nn.pipeline.data import order_of
from jaxopt_nn.pipeline.fit import Trainer
from jaxopt_nn.pipeline.grade import evaluate
from jaxopt_nn.pipeline.recipe import Stage
from jaxopt_nn.pipeline.task import Task

from ..common import flag_values, load_task
from ..config import checked
from ..model import Model
from .common import emit

PyTree = Any
#: Best of JaxPruner's allocations, gradual magnitude pruning with 10 epochs of fine-tuning, on this network and data.
JAXPRUNER = {0.9: 0.8977, 0.95: 0.8908, 0.98: 0.8754, 0.99: 0.8612}
BATCH = 128


class Networks:
    """A config's task and float networks, trained once a seed."""

    def __init__(self, config: dict[str, Any], workdir: Path, seeds: int):
        self.config, self.workdir, self.seeds = config, workdir, range(seeds)
        self.task = load_task({**config, "batch_size": BATCH})
        self.model = Model(config["model"], config["model_args"], config["float"], "float")
        self.network = self.model.network

    @functools.cached_property
    def floats(self) -> list[Network]:
        name = f"float_{self.config['float']['learning_rate']}"
        return [self.trained(self.model, seed, name) for seed in self.seeds]

    def trained(
        self, model: Model, seed: int, name: str, teacher: Network | None = None, task: Task | None = None
    ) -> Network:
        places = lambda stage: Checkpoints(self.workdir / name / f"seed_{seed}")
        networks = model.trained(
            model.fresh(seed), seed=seed, checkpoint="", task=task or self.task, places=places, watch=nothing,
            teacher=teacher,
        )  # fmt: skip
        return networks[0]

    def accuracies(self, networks: Sequence[Network]) -> list[float]:
        return [evaluate(network, self.task)["accuracy"] for network in networks]

    def deployed(self, stages: Sequence[dict[str, Any]]) -> list[float]:
        """Accuracy of the packed network after these stages of a config, for each seed."""
        compressor = Compressor(registry.stages(stages))
        runs = [compressor(n, self.task, seed=s, latency=False) for s, n in zip(self.seeds, self.floats, strict=True)]
        return [run.stages[-1]["metrics"]["accuracy"] for run in runs]


def row(part: str, name: str, own: Sequence[float], peer: Sequence[float] | None = None, **more: Any) -> dict[str, Any]:
    """Mean and standard deviation, and the paired difference to a peer with its standard error."""
    cells = {"part": part, "candidate": name, "accuracy": statistics.fmean(own), "std": _std(own), "n": len(own)}
    if peer is not None:
        gaps = [a - b for a, b in zip(own, peer, strict=True)]
        cells |= {"minus peer": statistics.fmean(gaps), "standard error": _std(gaps) / len(gaps) ** 0.5}
    return {**cells, **more}


def _std(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def part_quantize(nets: Networks) -> list[dict[str, Any]]:
    """8 and 6 bits after training, 4 bits by straight-through training; the peer of the first two is the float network."""
    (stage,) = nets.config["stages"]
    plain = nets.accuracies(nets.floats)
    rows = [row("quantize", "float", plain)]
    for bits in (8, 6, 4):
        scores = nets.deployed([{**stage, "bits": bits, "epochs": 0, "rule": f"w{bits}a16"}])
        rows.append(row("quantize", f"{bits} bits, rounded after training", scores, plain))
    ours = nets.deployed([stage])
    peer = Network(_qwix(nets, weights=jnp.int4), nets.network.variables)
    training = Stage("qwix", identity(), epochs=stage["epochs"], learning_rate=stage["learning_rate"])
    steps = nets.task.train.steps(BATCH)
    trainer = Trainer(peer.trained, identity(), training, nets.task.objective, steps=steps, batch_size=BATCH)
    keys = [jax.random.fold_in(jax.random.key(seed), 0) for seed in nets.seeds]  # as our stage 0: the same minibatches
    done = [trainer(n.variables, State(), nets.task.train, key) for n, key in zip(nets.floats, keys, strict=True)]
    theirs = nets.accuracies([peer.replace(variables=state.variables) for state in done])
    rows.append(row("quantize", "4 bits, trained: Qwix", theirs, plain))
    rows.append(row("quantize", "4 bits, trained: jaxopt_nn, against Qwix", ours, theirs))
    return rows


def _qwix(nets: Networks, weights: Any, activations: Any = None) -> Callable[..., Any]:
    import qwix

    from ..models.mlp import lenet300

    rule = qwix.QtRule(weight_qtype=weights, act_qtype=activations)
    return qwix.quantize_model(lenet300(), qwix.QtProvider([rule])).apply


def part_prune(nets: Networks) -> list[dict[str, Any]]:
    """Gradual magnitude pruning, the stage of ``configs/fashion_lenet300_deep.py``, beside JaxPruner's figures."""
    stage = nets.config["stages"][0]
    rows = [row("prune", "float", nets.accuracies(nets.floats))]
    for sparsity, quoted in JAXPRUNER.items():
        for allocation in ("erk", "global_budget"):
            schedule = {**stage["sparsity"], "final": sparsity}
            scores = nets.deployed([{**stage, "allocation": allocation, "sparsity": schedule}])
            rows.append(row("prune", f"{sparsity:.0%}, {allocation}", scores, **{"JaxPruner, quoted": quoted}))
            print(rows[-1], flush=True)
    return rows


def part_distill(nets: Networks) -> list[dict[str, Any]]:
    """The student of ``configs/fashion_distill.py``, with its teacher and with the labels alone."""
    config = nets.config
    teaching = config["teacher"]
    master = Model(teaching["model"], teaching["model_args"], teaching["float"], "teacher")
    plain = Model(config["model"], config["model_args"], {**config["float"], "distill": None}, "float")
    lesson = load_task({**config, "data": {**config["data"], **teaching["data"]}, "batch_size": BATCH})
    masters = [nets.trained(master, seed, "teacher", task=lesson) for seed in nets.seeds]
    hard = [nets.trained(plain, seed, "plain_student") for seed in nets.seeds]
    soft = [
        nets.trained(nets.model, seed, "taught_student", teacher)
        for seed, teacher in zip(nets.seeds, masters, strict=True)
    ]
    size = lambda network: sum(x.size for x in jax.tree.leaves(network.variables))
    alone, helped = map(nets.accuracies, (hard, soft))
    return [
        row("distill", "teacher", nets.accuracies(masters), parameters=size(masters[0])),
        row("distill", "student, labels alone", alone, parameters=size(hard[0])),
        row("distill", "student, distilled, against labels alone", helped, alone, parameters=size(soft[0])),
    ]


def _full_sort(scores: dict[str, jax.Array], roles: Any, sparsity: Any) -> dict[str, jax.Array]:
    """An allocation per leaf by the rank of every weight."""
    masks = {}
    for path, score in scores.items():
        ordered = jnp.sort(score.reshape(-1))
        at = jnp.clip(jnp.round(sparsity * score.size).astype(jnp.int32), 0, score.size - 1)
        masks[path] = score >= ordered[at]
    return masks


def _timed(nets: Networks, cases: dict[str, tuple[Transform, Callable[..., Any]]], part: str) -> list[dict[str, Any]]:
    """Milliseconds a step over a hundred steps a call, all cases in turn; the first is the yardstick."""
    train = nets.task.train
    x, y = train.rows(order_of(train.size, BATCH, jax.random.key(0))[:100])
    x, y = jnp.asarray(x), jnp.asarray(y)
    weights = nets.floats[0].variables
    info = inspect(nets.network.apply, weights, *nets.task.example)
    calls = {name: _hundred_steps(weights, method, apply, info, x, y) for name, (method, apply) in cases.items()}
    times = {name: t.median_ms / 100 for name, t in interleaved(calls, repeats=25, seconds=120).items()}
    first = next(iter(times.values()))
    return [{"part": part, "candidate": name, "ms a step": t, "over plain": t / first} for name, t in times.items()]


def _hundred_steps(
    variables: PyTree, method: Transform, apply: Callable[..., Any], info: Any, x: jax.Array, y: jax.Array
) -> Callable[[], Any]:
    def loss(leaves: PyTree, batch: Any, key: jax.Array) -> Any:
        losses = optax.softmax_cross_entropy_with_integer_labels(apply(leaves, batch[0]), batch[1])
        return jnp.mean(losses), ({}, {})

    optimizer = optax.adam(1e-3)
    step = make_step(loss, method, optimizer)
    run = jax.jit(lambda ts, x, y: jax.lax.scan(step, ts, (x, y))[0], donate_argnums=0)
    state = [init_train_state(jax.tree.map(jnp.copy, variables), method, optimizer, jax.random.key(0), info=info)]

    def call() -> Any:
        state[0] = run(state[0], x, y)
        return state[0].step

    return call


def part_masks(nets: Networks) -> list[dict[str, Any]]:
    """Training steps of a ramp with new masks every 10 steps."""
    ramp = cubic(0.9, end=100_000)
    gradual = lambda **how: every(10, where("**/kernel", prune(sparsity=ramp, **how)))
    cases = {
        "plain": identity(),
        "masks every 10 steps, per leaf": gradual(),
        "masks every 10 steps, global": gradual(allocation=global_budget),
        "masks every 10 steps, per leaf by full sorts": gradual(allocation=_full_sort),
    }
    return _timed(nets, {name: (method, nets.network.apply) for name, method in cases.items()}, "masks")


def part_step(nets: Networks) -> list[dict[str, Any]]:
    """Training steps with 4-bit weights and 8-bit activations."""
    ours = (where("**/kernel", quantize(4)), rewrite(nets.network.apply, fake_quant_activations(8)))
    theirs = (identity(), _qwix(nets, jnp.int4, jnp.int8))
    return _timed(nets, {"plain": (identity(), nets.network.apply), "jaxopt_nn, w4a8": ours, "Qwix, w4a8": theirs}, "step")


#: What is done, and to the networks of which config.
PARTS = {
    "masks": (part_masks, fashion_lenet300_deep),
    "step": (part_step, fashion_lenet300_qat4),
    "quantize": (part_quantize, fashion_lenet300_qat4),
    "distill": (part_distill, fashion_distill),
    "prune": (part_prune, fashion_lenet300_deep),
}


def main(argv: Sequence[str]) -> None:
    flag = flag_values(argv)
    for name in flag.part or list(PARTS):
        part, config = PARTS[name]
        emit(part(Networks(checked(config.get_config()), Path(flag.workdir), flag.seeds)))


if __name__ == "__main__":
    flags.DEFINE_list("part", [], f"Which of {', '.join(PARTS)}; all by default.")
    flags.DEFINE_integer("seeds", 5, "Networks a figure.")
    flags.DEFINE_string("workdir", "runs/foundation", "Where the float networks are kept.")
    app.run(main)
