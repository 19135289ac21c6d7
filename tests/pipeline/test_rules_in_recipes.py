"""Rules with a state in a recipe: trained, interrupted, deployed, saved and loaded, on one device and on eight."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_nn as jn
from jaxopt_nn.pipeline.compress import Compressor
from jaxopt_nn.pipeline.twins import twin

RNG = np.random.default_rng(0)
X = RNG.standard_normal((96, 8)).astype(np.float32)
Y = np.argmax(X[:, :3], 1).astype(np.int32)
TASK = jn.classification(train=(X[:64], Y[:64]), test=(X[64:], Y[64:]), batch_size=16)
WEIGHTS = {
    "layers": jnp.asarray(RNG.standard_normal((2, 8, 8)) / 3, jnp.float32),
    "head": jnp.asarray(RNG.standard_normal((8, 3)) / 3, jnp.float32),
}


def apply(v, x):
    """Two layers of a stack, and a head."""
    return jax.lax.scan(lambda h, w: (h + jnp.tanh(h @ w), None), x, v["layers"])[0] @ v["head"]


NETWORK = jn.Network(apply, WEIGHTS)


def recipe(rule, pattern="**", **fields):
    return [jn.Stage("w8", jn.where(pattern, jn.quantize(8)), rule=rule, **{"epochs": 3, "learning_rate": 0.02, **fields})]


@functools.cache
def moving(compressor):
    return compressor(NETWORK, TASK, latency=False)


@pytest.fixture(scope="module")
def compressor():
    return Compressor(recipe(jn.moving_ranges(decay=0.5)))


def test_moving_ranges_are_trained_and_deployed(compressor):
    result = moving(compressor)
    first = jn.calibrated(NETWORK.replace(rules=jn.moving_ranges(decay=0.5)), [X[:64]]).states
    assert result.network.states.keys() == {"layers", "head"}
    moved = result.network.states["head"].carried
    assert abs(float(moved - first["head"].carried)) > 1e-3
    seen = jax.jit(lambda x: jax.lax.scan(lambda h, w: (h + jnp.tanh(h @ w),) * 2, x, result.params["layers"])[0])(X[:64])
    assert 0.6 < float(moved) / np.abs(seen).max() <= 1.05, "it follows the network as it is at the end"
    ranges = 4 * (2 + 1)  # of two layers and the head, float32
    assert result.stages[-1]["bytes"] == jn.nbytes(result.network.variables) + ranges
    answers = np.argmax(result.network(X[64:]), 1)
    assert result.stages[-1]["metrics"]["accuracy"] == np.mean(answers == Y[64:])


class Stopped(Exception):
    pass


def test_interrupted_and_resumed_the_ranges_are_the_same(compressor, tmp_path):
    places = lambda name: jn.Checkpoints(tmp_path / name, seconds=0.0)

    def stop(said):
        if said["step"] == 8:
            raise Stopped

    with pytest.raises(Stopped):
        compressor(NETWORK, TASK, latency=False, checkpoints=places, watch=stop)
    again = compressor(NETWORK, TASK, latency=False, checkpoints=places)
    whole = moving(compressor)
    chex.assert_trees_all_equal(again.network.states, whole.network.states)
    chex.assert_trees_all_equal(again.network.variables, whole.network.variables)


def test_an_artifact_holds_the_states_and_answers_on_eight_devices(compressor, tmp_path):
    result = moving(compressor)
    artifact = jn.save(tmp_path / "net", result.network)
    loaded = jn.load(artifact, apply)
    chex.assert_trees_all_equal(loaded.states, result.network.states)
    assert loaded.rules == result.network.rules
    expected = result.network(X)
    np.testing.assert_array_equal(loaded(X), expected)
    everywhere = jn.predictor(loaded, devices=jax.devices()[:8])
    np.testing.assert_allclose(everywhere(X), expected, atol=2e-6)


def test_static_ranges_stay_and_a_head_in_float_is_trained_in_float():
    rule = jn.static_ranges()
    method = jn.where("layers", jn.quantize(8))
    stage = jn.Stage("w8", method, rule=rule, epochs=1)
    state = method.init(WEIGHTS)
    ready = twin(stage, NETWORK, lambda: method.pack(WEIGHTS, state), TASK)
    assert [pattern for pattern, _ in ready.rules] == ["head", "**"] and ready.rules[1][1] is rule.training
    assert ready.states.keys() == {"layers"} and ready.float_states.keys() == {"head"}
    result = jn.compress(NETWORK, recipe(rule, "layers"), TASK, latency=False)
    first = jn.calibrated(NETWORK.replace(rules=rule), [X[:64]]).states
    chex.assert_trees_all_close(result.network.states, first, rtol=1e-2)  # of the weights as the view rounds them
    np.testing.assert_array_equal(result.network.states["layers"].carried.shape, (2,))


def test_a_second_use_of_a_leaf_whose_first_is_left_in_float_has_its_twin():
    """The first site reads complex activations, which no codes multiply."""
    twice = lambda v, x: jnp.real((x * 1j).astype(jnp.complex64) @ v["w"]) + x @ v["w"]
    network, method = jn.Network(twice, {"w": WEIGHTS["head"]}), jn.quantize(8)
    stage = jn.Stage("w8", method, rule=jn.static_ranges(), epochs=1)
    ready = twin(stage, network, lambda: method.pack(network.variables, method.init(network.variables)), TASK)
    assert [(pattern, rule.name) for pattern, rule in ready.rules[:2]] == [
        ("w#1", "w8a8, static ranges, in float"), ("w", "identity"),
    ]  # fmt: skip
    run = jn.rewrite(twice, ready.rules)
    top = float(ready.states["w#1"].carried)
    rounded = np.clip(np.round(X * (127 / top)), -127, 127) * (top / 127)
    found = jax.jit(run)(network.variables, X, states=ready.states)
    np.testing.assert_allclose(found, rounded @ np.asarray(WEIGHTS["head"]), atol=1e-5)


def test_the_twin_trains_what_is_deployed():
    """Two bits of activations: a network that was trained with them in float is worse at them."""
    found = {}
    for name, field in (("twin", {}), ("float", {"training_rule": jn.identity_rule()})):
        stages = recipe(jn.arithmetic("w8a2"), epochs=25, **field)
        found[name] = jn.compress(NETWORK, stages, TASK, latency=False).stages[-1]["metrics"]["loss"]
    assert found["twin"] < 0.9 * found["float"]


def test_without_training_ranges_are_those_of_the_compressed_network():
    method = jn.quantize(2)
    result = jn.compress(NETWORK, [jn.Stage("w2", method, rule=jn.static_ranges("w2a8"))], TASK, latency=False)
    view = method.view(WEIGHTS, method.init(WEIGHTS, jn.inspect(apply, WEIGHTS, X)))
    own = jn.calibrated(jn.Network(apply, view, jn.static_ranges("w2a8")), [X[:64]]).states
    chex.assert_trees_all_close(result.network.states, own, rtol=1e-5)
