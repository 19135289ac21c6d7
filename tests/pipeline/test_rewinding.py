"""A stage that rewinds: masks of the trained weights, on the weights of before."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_nn as jn
from jaxopt_nn.pipeline import registry

RNG = np.random.default_rng(0)
X = RNG.standard_normal((80, 8)).astype(np.float32)
Y = np.argmax(X[:, :3], 1).astype(np.int32)
TASK = jn.classification(train=(X[:64], Y[:64]), test=(X[64:], Y[64:]), batch_size=16)
WEIGHTS = {path: jnp.asarray(RNG.standard_normal(shape), jnp.float32) for path, shape in (("up", (8, 12)), ("down", (12, 3)))}
NETWORK = jn.Network(lambda v, x: jax.nn.relu(x @ v["up"]) @ v["down"], WEIGHTS)
WARM = jn.Stage("warm", jn.identity(), epochs=1, learning_rate=0.05)
FLOAT = jn.Stage("float", jn.identity(), epochs=3, learning_rate=0.05)


def run(*recipe, **options):
    return jn.compress(NETWORK, list(recipe), TASK, latency=False, sensitivity=False, **options)


def test_the_mask_is_of_the_trained_weights_and_the_weights_are_those_of_before():
    ticket = run(WARM, FLOAT, jn.Stage("ticket", jn.prune(sparsity=0.5), rewind="float"))
    early, trained = run(WARM).params, run(WARM, FLOAT).params
    expected = jn.prune(sparsity=0.5).init(trained).carried
    for path in WEIGHTS:
        np.testing.assert_array_equal(ticket.params[path], early[path])
        found = np.asarray(jn.densify(ticket.network.variables[path]))
        np.testing.assert_array_equal(found, np.where(expected[path].mask, early[path], 0))
    before = jn.prune(sparsity=0.5).init(early).carried
    assert any((before[path].mask != expected[path].mask).any() for path in WEIGHTS)


def rounds():
    training = {"epochs": 2, "learning_rate": 0.05, "rewind": "float"}
    return [WARM, FLOAT, *(jn.Stage(f"round {i}", jn.prune(sparsity=1 - 0.6**i), **training) for i in (1, 2))]


def test_rounds_nest_and_a_run_goes_on_where_it_ended(tmp_path):
    whole = run(*rounds(), workdir=tmp_path / "run")
    first, second = (whole.stages[k]["nonzero"] for k in (2, 3))
    assert (first, second) == (96 - 38 + 36 - 14, 96 - 61 + 36 - 23)
    again = run(*rounds(), workdir=tmp_path / "run")
    for path in WEIGHTS:
        np.testing.assert_array_equal(again.params[path], whole.params[path])


def test_a_pass_between_cuts_what_is_gone_back_to():
    cut = jn.Stage("cut", jn.cut_units(jn.scores.mean_activation, share=0.5))
    result = run(WARM, FLOAT, cut, jn.Stage("ticket", jn.prune(sparsity=0.5), rewind="float"))
    early = np.asarray(run(WARM).params["down"])
    assert result.params["down"].shape == (6, 3)
    assert all((early == row).all(1).any() for row in np.asarray(result.params["down"]))


def test_a_config_names_it_and_mistakes_are_told():
    made = registry.stages(
        [
            {"name": "float", "method": "identity", "epochs": 1},
            {"name": "ticket", "method": "prune", "sparsity": 0.5, "rewind": "float"},
        ]
    )
    assert made[1].rewind == "float"
    with pytest.raises(ValueError, match="rewind='flaot' is no earlier stage; allowed are"):
        run(FLOAT, jn.Stage("ticket", jn.prune(sparsity=0.5), rewind="flaot"))
    with pytest.raises(ValueError, match="beside a pass"):
        jn.Stage("cut", jn.cut_units(jn.scores.mean_activation, share=0.5), rewind="float")
    with pytest.raises(TypeError, match="name of an earlier stage"):
        jn.Stage("p", jn.prune(sparsity=0.5), rewind=3)
