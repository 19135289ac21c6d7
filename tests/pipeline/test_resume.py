"""``compress`` into a workdir: interrupted, it goes on; another run's workdir is refused, whatever differs."""

import chex
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_nn as jn

RNG = np.random.default_rng(0)
X = RNG.standard_normal((64, 8)).astype(np.float32)
TASK = jn.classification(train=(X, np.argmax(X[:, :3], 1)), test=(X, np.argmax(X[:, :3], 1)), batch_size=16)
NETWORK = jn.Network(lambda v, x: x @ v["w"], {"w": jnp.asarray(RNG.standard_normal((8, 3)), jnp.float32)})


def recipe(sparsity=0.5, bits=4, **fields):
    fields = {"epochs": 2, "learning_rate": 0.02, "rule": jn.moving_ranges(), **fields}
    return [
        jn.Stage("prune", jn.prune(sparsity=sparsity), **fields),
        jn.Stage("quantize", jn.quantize(bits), epochs=2),
    ]


class Stopped(Exception):
    pass


def stop_in(stage):
    def watch(said):
        if said["stage"] == stage:
            raise Stopped

    return watch


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The workdir of a run that was stopped in its second stage."""
    workdir = tmp_path_factory.mktemp("run")
    with pytest.raises(Stopped):
        jn.compress(NETWORK, recipe(), TASK, workdir=workdir, latency=False, watch=stop_in("quantize"))
    return workdir


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"recipe": recipe(sparsity=0.75)}, r"run.stages\[0\].programs"),
        ({"recipe": recipe(bits=3)}, r"run.stages\[1\].programs"),
        ({"recipe": recipe(learning_rate=lambda step: 0.02 + 0 * step)}, r"run.stages\[0\].learning_rate"),
        ({"recipe": recipe(optimizer=optax.sgd(0.1))}, r"run.stages\[0\].optimizer .*, run.stages\[0\].programs"),
        ({"recipe": recipe()[:1]}, r"run.stages"),
        ({"recipe": recipe(rule=jn.moving_ranges(decay=0.5))}, r"run.stages\[0\].rule"),
        ({"seed": 1}, r"run.seed \(0 there, 1 here\)"),
        ({"teacher": NETWORK}, r"run.teacher"),
        ({"task": TASK.replace(train=(X, np.roll(TASK.train.tree[1], 1)))}, r"run.train.examples\[1\]"),
        ({"task": TASK.replace(loss=lambda o, b: jnp.square(o).sum(-1))}, r"run.loss"),
        ({"network": NETWORK.replace(variables={"w": NETWORK.variables["w"] + 1})}, r"run.network\[0\]"),
        ({"task": TASK.replace(batch_size=32)}, r"run.batch_size"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_the_workdir_of_another_run_is_refused(stopped, changed, said):
    given = {"network": NETWORK, "recipe": recipe(), "task": TASK, **changed}
    with pytest.raises(ValueError, match=f"checkpoints: holds the checkpoints of another run; different: .*{said}"):
        jn.compress(**given, workdir=stopped, latency=False)


def test_the_same_run_goes_on_to_the_same_numbers(stopped, tmp_path, capsys):
    whole = jn.compress(NETWORK, recipe(), TASK, latency=False)
    steps = []
    again = jn.compress(NETWORK, recipe(), TASK, workdir=stopped, latency=False, watch=steps.append)
    assert {said["stage"] for said in steps} <= {"quantize"}, "the first stage is done"
    chex.assert_trees_all_equal(again.network, whole.network)
    assert [row["metrics"] for row in again.stages] == [row["metrics"] for row in whole.stages]
    assert capsys.readouterr().out == "", "what it says goes to the terminal's other stream"
