"""A stretch is the same as its steps one by one; a run that is cut off goes on to the same numbers."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxopt_nn.core import memory
from jaxopt_nn.core.leafwise import leafwise
from jaxopt_nn.core.train import averaged, averaging, init_train_state
from jaxopt_nn.core.transform import LeafTraits, State, identity
from jaxopt_nn.interpret.network import Network
from jaxopt_nn.methods.arithmetic import fake_quant_activations
from jaxopt_nn.methods.clip import clip
from jaxopt_nn.methods.prune import prune
from jaxopt_nn.methods.quantize import quantize
from jaxopt_nn.pipeline import data as sources
from jaxopt_nn.pipeline import fit, grade
from jaxopt_nn.pipeline.checkpoints import Checkpoints, claim
from jaxopt_nn.pipeline.classes import classification
from jaxopt_nn.pipeline.data import order_of
from jaxopt_nn.pipeline.distill import distillation_loss
from jaxopt_nn.pipeline.fit import Trainer, make_stretch
from jaxopt_nn.pipeline.recipe import Distill, Stage
from jaxopt_nn.pipeline.task import Task

RNG = np.random.default_rng(0)
X = RNG.standard_normal((50, 4)).astype(np.float32)
Y = (X[:, 0] > X[:, 1]).astype(np.int32) + (X[:, 2] > 1)
PARAMS = {"w": jnp.asarray(RNG.standard_normal((4, 3)), jnp.float32), "b": jnp.zeros(3), "steps": jnp.arange(2)}


def apply(variables, x):
    return x @ variables["w"] + variables["b"][None]


TASK = classification(train=(X, Y), test=(X, Y), batch_size=16)
NETWORK = Network(apply, PARAMS)


def trainer_of(method, network=NETWORK, *, task=TASK, **fields):
    stage = Stage("p", method, **{"epochs": 3, "learning_rate": 0.05, **fields})
    steps = task.train.steps(16)
    options = {"steps": steps, "batch_size": 16, "still": network.still, "rules": network.rules}
    return Trainer(network.trained, method, stage, task.objective, **options)


def trained(method, variables=PARAMS, state=None, key=0, task=TASK, network=NETWORK, teacher=None, **fields):
    """What a fresh trainer makes of the variables."""
    trainer = trainer_of(method, network, task=task, **fields)
    state = State() if state is None else state
    return trainer(variables, state, task.train, jax.random.key(key), rules=network.states, teacher=teacher)


def test_an_order_is_a_permutation_drawn_from_the_key():
    order = order_of(50, 16, jax.random.key(0))
    assert order.shape == (3, 16) and len(set(order.ravel().tolist())) == 48 and order.max() < 50
    np.testing.assert_array_equal(order, order_of(50, 16, jax.random.key(0)))
    assert not np.array_equal(order, order_of(50, 16, jax.random.key(1)))
    assert order_of(50, 64, jax.random.key(0)).shape == (1, 50)


def test_an_order_is_the_same_everywhere():
    """PCG64 (128 bits of state, XSL-RR output) by hand from the state that the words seed; the order sorts its outputs."""
    key = jax.random.key(3)
    held = np.random.PCG64(jax.random.key_data(key).tolist()).state["state"]
    state, outputs = held["state"], []
    for _ in range(50):
        state = (state * 0x2360ED051FC65DA44385DF649FCCF645 + held["inc"]) % 2**128
        folded, turn = (state >> 64 ^ state) % 2**64, state >> 122
        outputs.append((folded >> turn | folded << (64 - turn)) % 2**64)
    assert order_of(50, 50, key).tolist() == [sorted(range(50), key=outputs.__getitem__)]
    assert order_of(8, 8, key).tolist() == [[4, 3, 6, 2, 5, 7, 1, 0]]


@pytest.mark.parametrize("most", [1, 2, 100])
def test_stretches_are_the_minibatches_of_all_epochs_in_order(monkeypatch, most):
    monkeypatch.setattr(sources, "STRETCH", most)
    key = jax.random.key(3)
    parts = list(TASK.train.stretches(16, 2, key))
    expected = np.concatenate([order_of(50, 16, jax.random.fold_in(key, e)) for e in range(2)])
    for place, whole in enumerate((X, Y)):
        np.testing.assert_array_equal(np.concatenate([p.batches[place][: p.n] for p in parts]), whole[expected])
    assert len({p.batches[0].shape for p in parts}) == 1 and [p.done for p in parts][-1] == 6
    for cut, part in enumerate(parts):
        rest = list(TASK.train.stretches(16, 2, key, start=part.done))
        assert [p.done for p in rest] == [p.done for p in parts[cut + 1 :]]
        chex.assert_trees_all_equal([p.batches for p in rest], [p.batches for p in parts[cut + 1 :]])


def test_a_stretch_is_gradient_descent_step_by_step():
    optimizer = optax.sgd(0.1)
    ts = init_train_state(PARAMS, identity(), optimizer, jax.random.key(0))
    order = order_of(50, 16, jax.random.key(0))
    x, y = X[order], Y[order]
    expected, losses, hits = {k: np.asarray(v, np.float64) for k, v in PARAMS.items()}, [], []
    for xb, yb in zip(x[:2].astype(np.float64), y[:2], strict=True):
        logits = xb @ expected["w"] + expected["b"]
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        losses.append(-np.mean(np.log(p[np.arange(16), yb])))
        hits.append(np.mean(p.argmax(1) == yb))
        slope = (p - np.eye(3)[yb]) / 16
        norms = {"w": np.linalg.norm(xb.T @ slope), "b": np.linalg.norm(slope.sum(0))}
        expected["w"] = expected["w"] - 0.1 * xb.T @ slope
        expected["b"] = expected["b"] - 0.1 * slope.sum(0)
    stage = Stage("p", identity(), gradient_norms=True)
    counted = Network(chex.assert_max_traces(apply, n=2), PARAMS)  # once for its shape, once within the loop
    run = make_stretch(counted.trained, identity(), optimizer, stage, TASK.objective)
    first, one = run(jax.tree.map(jnp.copy, ts), (x, y), None, 1, None)
    after, sums = run(jax.tree.map(jnp.copy, ts), (x, y), None, 2, None)  # the third minibatch does not count
    assert int(first.step) == 1 and int(after.step) == 2
    np.testing.assert_allclose(sums["loss"], np.sum(losses), rtol=1e-5)
    np.testing.assert_allclose(sums["metrics"]["accuracy"], [16 * np.sum(hits), 32], rtol=1e-6)
    for name, norm in norms.items():
        np.testing.assert_allclose(sums["gradient_norms"][name] - one["gradient_norms"][name], norm, rtol=1e-4)
    chex.assert_trees_all_close(after.params, jax.tree.map(lambda a, b: a.astype(b.dtype), expected, PARAMS), rtol=1e-5)


def test_training_learns_keeps_masks_and_the_callers_arrays_and_compiles_once():
    method = prune(sparsity=0.5)
    state = method.init(PARAMS)
    chex.clear_trace_counter()
    counted = chex.assert_max_traces(apply, n=2)  # once for its value, once for its shape within the loop
    trainer = trainer_of(method, Network(counted, PARAMS), epochs=20)
    before = jax.tree.map(np.asarray, PARAMS)
    for seed in range(2):
        done = trainer(PARAMS, state, TASK.train, jax.random.key(seed))
        chex.assert_trees_all_equal(done.state, state)
        chex.assert_trees_all_equal(PARAMS, before)
        chex.assert_trees_all_equal(done.variables["steps"], PARAMS["steps"])
        old, new = (graded(method.view(p, state))["loss"] for p in (PARAMS, done.variables))
        assert new < 0.8 * old
        assert [e["step"] for e in done.history] == list(range(3, 61, 3))
        assert done.history[-1]["epoch"] == 20 and done.history[-1]["metrics"]["loss"] < done.history[0]["metrics"]["loss"]
    assert int(jnp.count_nonzero(method.view(done.variables, state)["w"])) == 6


def test_convolutions_are_trained_outside_of_loops_on_a_cpu(monkeypatch):
    """XLA's programs for their derivatives within a loop are some twenty times slower. A 1 x 1 convolution is a product."""

    def convolved(variables, x):
        kernel, numbers = variables["w"][None, None], ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x[:, None, None], kernel, (1, 1), "SAME", dimension_numbers=numbers)
        return y[:, 0, 0] + variables["b"][None]

    expected = trained(identity())
    monkeypatch.setattr(jax.lax, "fori_loop", lambda *_: pytest.fail("a loop"))
    if jax.default_backend() == "cpu":
        done = trained(identity(), network=Network(convolved, PARAMS))
        chex.assert_trees_all_close(done.variables, expected.variables, rtol=1e-5)
        told = lambda t: [entry["metrics"] for entry in t.history]
        chex.assert_trees_all_close(told(done), told(expected), rtol=1e-5)
        assert float(jnp.abs(done.variables["w"] - PARAMS["w"]).max()) > 0.1
    with pytest.raises(pytest.fail.Exception, match="a loop"):
        trained(identity())


def graded(variables, task=TASK):
    return grade.evaluate(Network(apply, variables), task)


def cut_off(trainer, state, directory, after):
    """Trains until ``after`` stretches have been told, as a kill does: nothing is saved after it."""
    told = []

    class Killed(Exception):
        pass

    def watch(entry):
        told.append(entry)
        if len(told) == after:
            raise Killed

    with pytest.raises(Killed):
        trainer(PARAMS, state, TASK.train, jax.random.key(0), checkpoints=Checkpoints(directory, 0.0), watch=watch)


RANDOM = quantize(3, rounding="stochastic", key=jax.random.key(5))


@pytest.mark.parametrize(
    ("method", "after"), [(identity(), 1), (prune(sparsity=optax.linear_schedule(0.0, 0.5, 9)), 5), (RANDOM, 9)]
)
def test_a_run_that_is_cut_off_goes_on_to_the_same_numbers(tmp_path, monkeypatch, method, after):
    monkeypatch.setattr(sources, "STRETCH", 1)
    state, trainer, told = method.init(PARAMS), trainer_of(method), []
    whole = trainer(PARAMS, state, TASK.train, jax.random.key(0))
    cut_off(trainer, state, tmp_path, after)
    places = Checkpoints(tmp_path, 0.0)
    resumed = trainer(PARAMS, state, TASK.train, jax.random.key(0), checkpoints=places, watch=told.append)
    assert len(told) == 9 - (after - 1)
    assert resumed.history == whole.history
    assert jax.tree.structure(resumed[:2]) == jax.tree.structure(whole[:2])
    for a, b in zip(jax.tree.leaves(resumed[:2]), jax.tree.leaves(whole[:2]), strict=True):
        np.testing.assert_array_equal(*[jax.random.key_data(x) if is_key(x) else x for x in (a, b)])
    assert trainer(PARAMS, state, TASK.train, jax.random.key(0), checkpoints=places).history == whole.history


def is_key(x):
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def damage(directory):
    """Truncates every file of arrays below a position."""
    files = [f for f in (directory / "state").rglob("*") if f.is_file() and f.parent.name == "d"]
    assert files
    for file in files:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_a_damaged_position_is_passed_over_for_the_one_before(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "STRETCH", 1)
    trainer = trainer_of(identity())
    whole = trainer(PARAMS, State(), TASK.train, jax.random.key(0))
    cut_off(trainer, State(), tmp_path, 6)
    steps = sorted(int(p.name) for p in tmp_path.iterdir() if p.name.isdigit())
    assert steps == [4, 5]
    damage(tmp_path / "5")
    said, told = [], []
    places = Checkpoints(tmp_path, 0.0, said.append)
    resumed = trainer(PARAMS, State(), TASK.train, jax.random.key(0), checkpoints=places, watch=told.append)
    assert len(said) == 1 and "5: damaged, passed over" in said[0]
    assert told[0]["step"] == 5 and resumed.history == whole.history
    chex.assert_trees_all_equal(resumed.variables, whole.variables)


def test_a_position_that_was_not_finished_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "STRETCH", 1)
    trainer = trainer_of(identity())
    cut_off(trainer, State(), tmp_path, 3)
    for file in tmp_path.glob("files_*.json"):
        file.unlink()
    said, told = [], []
    places = Checkpoints(tmp_path, 0.0, said.append)
    trainer(PARAMS, State(), TASK.train, jax.random.key(0), checkpoints=places, watch=told.append)
    assert len(said) == 2 and told[0]["step"] == 1


def test_a_position_of_another_network_is_refused(tmp_path):
    trainer_of(identity())(PARAMS, State(), TASK.train, jax.random.key(0), checkpoints=Checkpoints(tmp_path))
    other = {**PARAMS, "w": jnp.zeros((4, 5)), "b": jnp.zeros(5)}
    with pytest.raises(
        ValueError, match=r"holds params/b float32\[3\], this run needs params/b float32\[5\]; it belongs to another"
    ):
        trainer_of(identity())(other, State(), TASK.train, jax.random.key(0), checkpoints=Checkpoints(tmp_path))
    with pytest.raises(ValueError, match="checkpoint_seconds=-1"):
        Checkpoints(tmp_path, -1)


def test_a_folder_belongs_to_one_config(tmp_path):
    config = {"seed": 0, "stages": [{"bits": 4}], "data": {"folds": 5}}
    claim(tmp_path / "c", config)
    claim(tmp_path / "c", {**config, "seed": 7})  # nothing was trained yet
    claim(tmp_path / "c", config)
    (tmp_path / "c" / "float" / "100").mkdir(parents=True)
    with pytest.raises(
        ValueError, match=r"config.seed \(0 there, 1 here\), config.stages\[0\].bits \(4 there, 8 here\)"
    ):
        claim(tmp_path / "c", {**config, "seed": 1, "stages": [{"bits": 8}]})
    with pytest.raises(ValueError, match=r"different: config.extra, config.seed"):
        claim(tmp_path / "c", {"stages": [{"bits": 4}], "data": {"folds": 5}, "extra": 1})
    (tmp_path / "c" / "config.json").write_text('{"seed"')
    claim(tmp_path / "c", config)
    claim(tmp_path / "c", config)


def test_distillation_trains_towards_the_teacher_and_not_the_labels():
    teacher = Network(apply, {**PARAMS, "w": -2.0 * PARAMS["w"]})
    goal = np.argmax(teacher(X), 1)
    fields = {"epochs": 40, "learning_rate": 0.1}
    done = trained(identity(), distill=Distill(temperature=2.0, hard_weight=0.0), teacher=teacher, **fields)
    hard = trained(identity(), **fields)
    agrees = lambda v: np.mean(np.argmax(apply(v, X), 1) == goal)
    assert agrees(done.variables) > 0.9 > agrees(hard.variables)
    chex.assert_trees_all_equal(teacher.variables["w"], -2.0 * PARAMS["w"])


def test_a_distilled_step_follows_the_formula():
    """One step of descent on ``h CE + (1 - h) T^2 KL``, by ``pipeline.distill.distillation_loss``."""
    teacher = Network(apply, {**PARAMS, "w": -PARAMS["w"]})
    fields = {"distill": Distill(temperature=3.0, hard_weight=0.25), "optimizer": optax.sgd(0.5), "epochs": 1}
    single = classification(train=(X[:16], Y[:16]), test=(X, Y), batch_size=16)
    done = trained(identity(), task=single, teacher=teacher, **fields)
    loss = lambda w: distillation_loss(
        apply({**PARAMS, "w": w}, X[:16]), teacher(X[:16]), jnp.asarray(Y[:16]), temperature=3.0, hard_weight=0.25
    ).mean()
    expected = PARAMS["w"] - 0.5 * jax.grad(loss)(PARAMS["w"])
    np.testing.assert_allclose(done.variables["w"], expected, rtol=1e-5, atol=1e-6)


def test_a_teacher_answers_each_example_once(monkeypatch):
    """Its outputs are kept where they fit; what is trained is the same as with a teacher that runs in each epoch."""
    rows = []

    def watched(variables, x):
        jax.debug.callback(lambda n: rows.append(int(n)), x.shape[0], ordered=False)
        return apply(variables, x)

    teacher = Network(watched, {**PARAMS, "w": -PARAMS["w"]})
    fields = {"teacher": teacher, "distill": Distill(temperature=2.0, hard_weight=0.5), "epochs": 4}
    kept = trained(identity(), **fields)
    jax.effects_barrier()
    assert sum(rows) == len(X)
    rows.clear()
    monkeypatch.setattr(fit, "KEPT_BYTES", 50 * 3 * 4 - 1)
    again = trained(identity(), **fields)
    jax.effects_barrier()
    assert sum(rows) == 4 * 48
    chex.assert_trees_all_close(kept.variables, again.variables, rtol=1e-6)
    masked = Network(lambda v, x: jnp.where(jnp.arange(3) == 2, -jnp.inf, apply(v, x)), PARAMS)
    assert np.isfinite(trained(identity(), **{**fields, "teacher": masked}).variables["w"]).all()


def test_a_loss_that_takes_the_teacher_mixes_as_it_likes():
    def loss(outputs, batch, teacher=None):
        return jnp.sum(jnp.square(outputs - teacher), -1)

    task = Task(loss, train=(X, Y), test=(X, Y), batch_size=16)
    teacher = Network(apply, {**PARAMS, "w": jnp.zeros((4, 3))})
    done = trained(identity(), task=task, teacher=teacher, distill=Distill(), epochs=60, learning_rate=0.1)
    assert float(jnp.abs(done.variables["w"]).max()) < 0.05
    with pytest.raises(ValueError, match="the task's loss takes no teacher; give it an argument `teacher`, or pass Task"):
        trainer_of(identity(), task=Task(lambda o, b: o[:, 0], train=X, test=X), distill=Distill())


def test_training_mode_changes_what_it_returns_and_gets_a_fresh_key():
    def training(variables, x, key):
        moved = {"stats/mean": variables["stats"]["mean"] + jnp.mean(x), "stats/draw": jax.random.uniform(key)}
        return apply(variables["params"], x), moved

    variables = {"params": PARAMS, "stats": {"mean": jnp.zeros(()), "draw": jnp.zeros(())}}
    network = Network(lambda v, x: apply(v["params"], x), variables, training=training, still={"stats/mean", "stats/draw"})
    done = trained(identity(), variables, network=network, epochs=1)
    order = order_of(50, 16, jax.random.fold_in(jax.random.key(0), 0))
    np.testing.assert_allclose(done.variables["stats"]["mean"], X[order].mean((1, 2)).sum(), rtol=1e-4)
    drawn = float(done.variables["stats"]["draw"])
    assert drawn == float(jax.random.uniform(jax.random.fold_in(jax.random.key(0), 2)))
    assert not np.array_equal(done.variables["params"]["w"], PARAMS["w"])


def test_a_rule_rounds_activations_and_the_gradient_goes_through():
    plain, rounded = trained(identity()), trained(identity(), network=NETWORK.replace(rules=fake_quant_activations(2)))
    assert not np.array_equal(plain.variables["w"], rounded.variables["w"])
    assert rounded.history[-1]["metrics"]["loss"] < rounded.history[0]["metrics"]["loss"]


def test_any_optimizer_and_one_of_its_own_for_what_is_learnt():
    """Descent by hand: weights by one rate, a learnt factor by another; frozen paths stay."""
    factor = leafwise(
        lambda path, leaf, info: LeafTraits() if leaf.ndim == 2 else "is no matrix",
        lambda path, leaf, known: (jnp.asarray(1.0), ()), lambda leaf, learnt, carried: leaf * learnt,
    )  # fmt: skip
    single = classification(train=(X[:16], Y[:16]), test=(X, Y), batch_size=16)
    fields = {"optimizer": optax.sgd(0.5), "learnt_optimizer": lambda steps: optax.sgd(0.25 * steps), "epochs": 1}
    network = Network(apply, PARAMS, still={"b"})
    done = trained(factor, state=factor.init(PARAMS), task=single, network=network, **fields)

    def loss(w, s):
        logits = apply({**PARAMS, "w": w * s}, X[:16])
        return optax.softmax_cross_entropy_with_integer_labels(logits, Y[:16]).mean()

    slope, learnt = jax.grad(loss, argnums=(0, 1))(PARAMS["w"], 1.0)
    np.testing.assert_allclose(done.variables["w"], PARAMS["w"] - 0.5 * slope, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(done.state.learnt["w"], 1 - 0.25 * learnt, rtol=1e-5)
    np.testing.assert_array_equal(done.variables["b"], PARAMS["b"])


def test_no_epochs_change_nothing():
    done = trainer_of(identity(), epochs=0)(PARAMS, State(), TASK.train, jax.random.key(0))
    assert done.variables is PARAMS and done.history == []


def weighted(weights):
    return classification(train=(X[:48], Y[:48], weights), test=(X, Y, np.ones(50, np.float32)), weights=2, batch_size=16)


def test_a_batch_in_which_nothing_counts_moves_nothing_and_is_not_in_the_loss(monkeypatch):
    """The second of three batches, under plain descent: as if it were not there."""
    monkeypatch.setattr(sources, "order_of", lambda n, size, key: np.arange(n).reshape(-1, size))
    weights = np.repeat(np.float32([1, 0, 1]), 16)
    done = trained(identity(), task=weighted(weights), optimizer=optax.sgd(0.1), epochs=1)
    rest = np.flatnonzero(weights)
    fewer = classification(train=(X[rest], Y[rest]), test=(X, Y), batch_size=16)
    expected = trained(identity(), task=fewer, optimizer=optax.sgd(0.1), epochs=1)
    np.testing.assert_allclose(done.variables["w"], expected.variables["w"], rtol=1e-5, atol=1e-6)
    (found,), (wanted,) = done.history, expected.history
    assert found["metrics"] == pytest.approx(wanted["metrics"], rel=1e-5)


def test_an_epoch_in_which_nothing_counts_is_an_error(monkeypatch):
    for most in (1, 100):
        monkeypatch.setattr(sources, "STRETCH", most)
        with pytest.raises(ValueError, match="stage 'p': nothing counts in epoch 1: all its weights are 0, or all labels are"):
            trained(identity(), task=weighted(np.zeros(48, np.float32)))


def test_a_diverging_loss_names_stage_and_epoch():
    trainer = trainer_of(identity(), learning_rate=1e38)
    with pytest.raises(FloatingPointError, match=r"stage 'p': the loss is .* in epoch [12]; lower learning_rate=1e"):
        trainer(PARAMS, State(), TASK.train, jax.random.key(0))


@pytest.mark.parametrize("size", [1, 15, 16, 17, 50])
def test_evaluation_of_any_size(size, monkeypatch):
    monkeypatch.setattr(grade, "EXAMPLES", 16)
    x, y = X[:size], Y[:size]
    logits = x.astype(np.float64) @ np.asarray(PARAMS["w"]) + np.asarray(PARAMS["b"])
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    found = grade.evaluate(NETWORK, TASK, (x, y))
    assert found["accuracy"] == np.mean(np.argmax(logits, 1) == y)
    np.testing.assert_allclose(found["loss"], -np.mean(np.log(p[np.arange(size), y])), rtol=1e-5)


def test_evaluation_takes_as_many_examples_as_fit(monkeypatch):
    """32 examples of [16, 64, 64] products are 8 MiB: with 1 MiB at hand 4 are taken, and the figures stay."""
    taken = []

    def heavy(v, x):
        taken.append(len(x))
        return jnp.cumsum(jnp.sin(x[:, :, None, None] * v["w"][None]), axis=1).sum((1, 2))

    v = {"w": jnp.asarray(RNG.standard_normal((16, 64, 64)), jnp.float32)}
    x, y = RNG.standard_normal((40, 16)).astype(np.float32), np.zeros(40, np.int32)
    task = classification(test=(x, y))
    monkeypatch.setattr(grade, "EXAMPLES", 32)
    whole = grade.evaluate(Network(lambda v, x: heavy(v, x), v), task)
    monkeypatch.setattr(memory, "room", lambda: 2.0**20)
    fewer = grade.evaluate(Network(lambda v, x: heavy(v, x), v), task)
    assert taken[0] == 32 and taken[-1] in (1, 2, 4) and fewer["accuracy"] == whole["accuracy"]
    np.testing.assert_allclose(fewer["loss"], whole["loss"], rtol=1e-5)


@pytest.mark.parametrize(
    ("per_example", "free", "expected", "asked"),
    [
        (1, 1000, 512, [512]),
        (10, 1000, 64, [512, 64]),
        (10, 9, 1, [512]),
        (0, 0, 512, [512]),
        (2, 1023, 256, [512, 256]),
    ],
)
def test_the_largest_power_of_two_that_fits(monkeypatch, per_example, free, expected, asked):
    monkeypatch.setattr(memory, "room", lambda: free)
    sizes = []
    assert memory.fitting(lambda n: sizes.append(n) or n * per_example) == expected and sizes == asked


def test_a_stage_ends_with_the_average_of_its_weights():
    """The moving average of the weights after each step, by hand; masks are those of the training."""
    ramp = prune(sparsity=optax.linear_schedule(0.0, 0.5, 5))
    optimizer = Stage("p", ramp, learning_rate=0.05).updates(9)
    step = make_stretch(NETWORK.trained, ramp, optimizer, Stage("p", ramp), TASK.objective)
    ts = init_train_state(jax.tree.map(jnp.copy, PARAMS), ramp, optimizer, jax.random.key(0))
    mean = dict(PARAMS)
    for t, part in enumerate(singly(jax.random.key(0))):
        ts, _ = step(ts, jax.tree.map(lambda x: x[None], part), None, 1, None)
        d = min(0.7, (1 + t) / (10 + t))
        mean = {name: d * mean[name] + (1 - d) * ts.params[name] for name in ("w", "b")}
    done = trainer_of(ramp, ema=0.7)(PARAMS, ramp.init(PARAMS), TASK.train, jax.random.key(0))
    chex.assert_trees_all_close({name: done.variables[name] for name in "wb"}, mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(done.variables["steps"], PARAMS["steps"])
    chex.assert_trees_all_equal(done.state, ts.state)
    assert float(jnp.abs(ts.params["w"] - mean["w"]).max()) > 1e-3


def singly(key):
    """The minibatches of three epochs, one by one."""
    for part in TASK.train.stretches(16, 3, key):
        yield from (jax.tree.map(lambda x, i=i: x[i], part.batches) for i in range(part.n))


def test_averages_of_narrow_weights_do_not_stall_and_keep_to_the_projection():
    narrow = {"w": PARAMS["w"].astype(jnp.bfloat16)}
    method, optimizer = clip(-1.0, 1.0), averaging(optax.sgd(1.0), 0.99)
    ts = init_train_state(narrow, method, optimizer, jax.random.key(0))
    moved = {"params": {"w": jnp.full_like(narrow["w"], 2.0)}, "learnt": ts.learnt, "rules": {}}
    still, update = jax.tree.map(jnp.zeros_like, moved), jax.jit(optimizer.update)
    for _ in range(600):
        ts = ts._replace(opt=update(still, ts.opt, moved)[1])
    np.testing.assert_allclose(ts.opt.average["params"]["w"], np.full((4, 3), 2.0), atol=0.02)
    boxed = averaged(ts, method)
    assert boxed.params["w"].dtype == jnp.bfloat16 and float(boxed.params["w"].max()) == 1.0
