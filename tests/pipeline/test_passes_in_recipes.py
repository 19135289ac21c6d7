"""A pass between two stages: what is committed, what goes with it, and that a run goes on from any stage."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_nn as jn
from jaxopt_nn.pipeline import registry

RNG = np.random.default_rng(0)
X = RNG.standard_normal((96, 8)).astype(np.float32)
Y = np.argmax(X[:, :3], 1).astype(np.int32)
TASK = jn.classification(train=(X[:64], Y[:64]), test=(X[64:], Y[64:]), batch_size=16)


def weights(*shape):
    return jnp.asarray(RNG.standard_normal(shape) / np.sqrt(shape[0]), jnp.float32)


#: Units 3 and 7 are dead: no input moves them, and their bias is negative.
WEIGHTS = {
    "up": weights(8, 12).at[:, jnp.array([3, 7])].set(0.0),
    "bias": jnp.zeros(12).at[jnp.array([3, 7])].set(-1.0),
    "down": weights(12, 3),
}


def apply(v, x):
    return jax.nn.relu(x @ v["up"] + v["bias"][None]) @ v["down"]


NETWORK = jn.Network(apply, WEIGHTS)


def recipe(**last):
    return [
        jn.Stage("prune", jn.prune(sparsity=0.5), epochs=2, learning_rate=0.02),
        jn.Stage("cut", jn.cut_units(jn.scores.mean_activation, share=0.5), epochs=2, learning_rate=0.02),
        jn.Stage("w4", jn.quantize(4), epochs=2, learning_rate=0.02, rule=jn.moving_ranges("w4a8", 0.9)),
    ]


@pytest.fixture(scope="module")
def whole():
    return jn.compress(NETWORK, recipe(), TASK, latency=False)


def test_the_network_is_smaller_and_the_masks_of_earlier_stages_go_with_it(whole):
    assert {path: x.shape for path, x in whole.params.items()} == {"up": (8, 6), "bias": (6,), "down": (6, 3)}
    packed = whole.network.variables
    assert all(type(packed[path]) is jn.Masked and packed[path].coded().bits == 4 for path in ("up", "down"))
    pruned, cut, last = whole.stages
    assert (pruned["params"], cut["params"], last["params"]) == (8 * 12 + 12 + 12 * 3, 8 * 6 + 6 + 6 * 3, 72)
    assert [whole.report["baseline"]["macs"], *(stage["macs"] for stage in whole.stages)] == [132, 132, 66, 66]
    assert cut["bytes"] < pruned["bytes"] and cut["facts"][0]["title"] == "Units that stay"
    assert cut["facts"][0]["cells"][0][:3] == ["up", 12, 6]
    zeros = lambda x: int((np.asarray(jn.densify(x)) == 0).sum())
    assert zeros(packed["up"]) >= 1 and cut["nonzero"] < cut["params"]
    answers = np.argmax(whole.network(X[64:]), 1)
    assert last["metrics"]["accuracy"] == np.mean(answers == Y[64:])


def test_what_is_cut_is_what_the_view_was():
    """Dead units go: the outputs stay, those of the view and not of the weights behind it."""
    method = jn.prune(sparsity=0.5)
    stages = [jn.Stage("prune", method), jn.Stage("cut", jn.cut_units(jn.scores.largest_activation, threshold=0.0))]
    result = jn.compress(NETWORK, stages, TASK, latency=False)
    view = method.view(WEIGHTS, method.init(WEIGHTS, jn.inspect(apply, WEIGHTS, X)))
    dead = ~(np.asarray(jax.nn.relu(X[:64] @ view["up"] + view["bias"][None])) > 0).any(0)
    assert dead[[3, 7]].all() and result.params["up"].shape == (8, 12 - dead.sum())
    np.testing.assert_array_equal(result.params["up"], view["up"][:, ~dead])
    np.testing.assert_allclose(result.network(X[:64]), apply(view, X[:64]), atol=1e-6)


class Stopped(Exception):
    pass


def test_a_run_goes_on_from_its_pass_to_the_same_numbers(whole, tmp_path):
    """``kill -9`` in every stage: ``tests/experiments/test_killed.py``, with the slow tests."""

    def stop(said):
        if said["stage"] == "cut":
            raise Stopped

    with pytest.raises(Stopped):
        jn.compress(NETWORK, recipe(), TASK, workdir=tmp_path, latency=False, watch=stop)
    again = jn.compress(NETWORK, recipe(), TASK, workdir=tmp_path, latency=False)
    chex.assert_trees_all_equal(again.network, whole.network)
    assert [s["metrics"] for s in again.stages] == [s["metrics"] for s in whole.stages]
    assert again.report["history"] == whole.report["history"]
    loaded = jn.load(tmp_path / "network.jn", apply)
    np.testing.assert_array_equal(loaded(X), whole.network(X))
    with pytest.raises(ValueError, match=r"run.stages\[1\].plan"):
        less = jn.cut_units(jn.scores.mean_activation, share=0.25)
        changed = [*recipe()[:1], jn.Stage("cut", less, epochs=2, learning_rate=0.02), recipe()[2]]
        jn.compress(NETWORK, changed, TASK, workdir=tmp_path, latency=False)


def test_a_pass_by_name():
    stages = registry.stages(
        [
            {"name": "cut", "method": "cut_units", "score": "mean_activation", "share": 0.25},
            {"name": "widths", "method": "cut_units", "widths": {"up": 6}},
        ]
    )
    result = jn.compress(NETWORK, stages, TASK, latency=False)
    assert result.params["up"].shape == (8, 6)
    assert [stage["method"] for stage in result.report["config"]["stages"]] == ["cut_units", "cut_units"]
    for wrong, said in (
        ({"method": "cut_units", "share": 0.5, "where": "up"}, "is a pass, which changes the whole network once; leave out"),
        ({"cases": [{"where": "up", "method": "cut_units"}]}, "'cut_units' is a pass, .* give it a stage of its own"),
    ):
        with pytest.raises(ValueError, match=said):
            registry.stages([{"name": "x", **wrong}])


def test_scores_and_allocations_by_name():
    """Each is the pass that Python makes of the parts; what draws at random gets a key of the recipe's seed."""
    taylor = {"score": "taylor", "macs": 0.5, "allocation": "across_layers", "multiple": 4}
    (stage,) = registry.stages([{"name": "cut", "method": "cut_units", **taylor}])
    cut = jn.cut_units(jn.scores.taylor, macs=0.5, allocation=jn.across_layers, multiple=4)
    info = jn.calibrate(NETWORK, cut, TASK)
    assert stage.transform.plan(NETWORK, info, X).to_json() == cut.plan(NETWORK, info, X).to_json()
    kept = []
    for seed in (0, 0, 1):
        entry = {"name": "cut", "method": "cut_units", "score": "random", "share": 0.5}
        (stage,) = registry.stages([entry], seed)
        kept.append(stage.transform.plan(NETWORK, jn.ModelInfo(), X).kept["up"].tolist())
    assert kept[0] == kept[1] != kept[2]
    for wrong, said in (
        ({"score": "tailor"}, "score 'tailor' is unknown; nearest: taylor"),
        ({"allocation": "erk"}, "allocation of units 'erk' is unknown; nearest: .*per_layer"),
        ({"score": {"name": "norm_scale", "patern": "*"}}, "has no 'patern'; nearest: pattern"),
    ):
        with pytest.raises(ValueError, match=said):
            registry.stages([{"name": "cut", "method": "cut_units", "share": 0.5, **wrong}])


def test_groups_that_a_cut_breaks_show_before_any_training():
    stages = [
        jn.Stage("w4", jn.where("down", jn.quantize(4, group=4)), epochs=5),
        jn.Stage("cut", jn.cut_units(widths={"up": 6})),
    ]
    told = []
    with pytest.raises(ValueError, match=r"down: axis 0 has 6 entries, not a multiple of group=4"):
        jn.compress(NETWORK, stages, TASK, latency=False, watch=told.append)
    assert not told


def test_masks_that_were_made_for_the_large_network_go_with_it():
    """They could not be made for the small one, which has other lengths."""
    masks = {"up": {1: np.arange(12) != 5}, "bias": {0: np.arange(12) != 5}}
    score = lambda units: np.arange(units.size) >= 4
    stages = [
        jn.Stage("mask", jn.mask_units(masks), epochs=1),
        jn.Stage("cut", jn.cut_units(score, widths={"up": 8}), epochs=1),
    ]
    result = jn.compress(NETWORK, stages, TASK, latency=False)
    zero = np.flatnonzero((np.asarray(jn.densify(result.network.variables["up"])) == 0).all(0))
    assert result.params["up"].shape == (8, 8) and 1 in zero, "unit 5 is the second of 4 to 11"


def clocked():
    """A pass that keeps other units each time it plans, and another number, as one that measures times may."""
    cut, times = jn.cut_units(share=0.5), []

    def plan(network, info, *inputs):
        times.append(0)
        return cut.plan(network, info, *inputs).replace({"up": np.arange(len(times) % 7, 7)})

    return cut._replace(plan=plan, traits=cut.traits._replace(name="clocked", timed=True))


def interrupted(stage):
    def watch(said):
        if said["stage"] == stage:
            raise KeyboardInterrupt

    return watch


def written(workdir):
    return jn.Plan.from_json((workdir / "checkpoints/cut/plan.json").read_text())


def test_a_run_that_goes_on_keeps_a_plan_that_would_come_out_otherwise_now(tmp_path):
    stages = lambda change: [jn.Stage("cut", change), jn.Stage("prune", jn.prune(sparsity=0.5), epochs=1)]
    change = clocked()
    with pytest.raises(KeyboardInterrupt):
        jn.compress(NETWORK, stages(change), TASK, workdir=tmp_path, latency=False, watch=interrupted("prune"))
    plan = written(tmp_path)
    assert not np.array_equal(change.plan(NETWORK, jn.ModelInfo(), *TASK.example).kept["up"], plan.kept["up"])
    result = jn.compress(NETWORK, stages(change), TASK, workdir=tmp_path, latency=False)
    own = jn.planned(dataclasses.replace(plan, inputs=TASK.example))
    chex.assert_trees_all_equal(result.network, jn.compress(NETWORK, stages(own), TASK, latency=False).network)


def test_the_plan_of_another_recipe_is_not_taken(tmp_path):
    for share, stay in ((0.5, 6), (0.25, 9)):
        recipe = [jn.Stage("cut", jn.cut_units(share=share), epochs=1)]
        with pytest.raises(KeyboardInterrupt):
            jn.compress(NETWORK, recipe, TASK, workdir=tmp_path, latency=False, watch=interrupted("cut"))
        assert len(written(tmp_path).kept["up"]) == stay


@pytest.mark.parametrize(
    "method", [jn.sparsegpt(0.5), jn.learnt_threshold(0.3), jn.prune(sparsity=0.5), jn.quantize(4)], ids=lambda m: m.traits.name
)
@pytest.mark.parametrize("refit", [False, True])
def test_the_units_that_stay_are_what_they_were(method, refit):
    """A correction is not added twice, a threshold shrinks once; refitted weights are those that the pass gave."""
    run = lambda *stages: jn.compress(NETWORK, list(stages), TASK, latency=False, sensitivity=False)
    first, cut = jn.Stage("first", method), jn.cut_units(jn.scores.mean_activation, share=0.5, reconstruct=refit)
    before, after = run(first), run(first, jn.Stage("cut", cut))
    old, new = (jn.densify(result.network.variables) for result in (before, after))
    kept = [int(np.argmin(np.abs(np.asarray(old["up"]) - np.asarray(new["up"])[:, j : j + 1]).max(0))) for j in range(6)]
    np.testing.assert_allclose(new["up"], np.asarray(old["up"])[:, kept], atol=1e-6)
    if not refit:
        np.testing.assert_allclose(new["down"], np.asarray(old["down"])[kept], atol=1e-6)
    elif method.traits.name == "learnt_threshold":
        net = NETWORK.replace(variables=old)
        info = jn.calibrate(net, cut, TASK)
        plan = cut.plan(net, info, *TASK.example)
        small, _ = cut.execute(cut.mend(net, plan, info), plan)
        np.testing.assert_allclose(new["down"], small.variables["down"], atol=1e-5)
