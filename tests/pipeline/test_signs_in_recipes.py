"""Products of signs in a recipe: trained in float, deployed in words, saved and loaded; rules by patterns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_nn as jn
from jaxopt_nn.core.paths import leaves_by_path
from jaxopt_nn.pipeline.recipe import described
from jaxopt_nn.pipeline.twins import twin
from tests.pipeline.test_rules_in_recipes import TASK, X, Y

RNG = np.random.default_rng(1)
WEIGHTS = {
    "first": jnp.asarray(RNG.standard_normal((8, 48)) / 3, jnp.float32),
    "layers": jnp.asarray(RNG.standard_normal((2, 48, 48)) / 7, jnp.float32),
    "head": jnp.asarray(RNG.standard_normal((48, 3)) / 7, jnp.float32),
}


def apply(v, x):
    """Two layers of a stack behind a normalisation each, between a first layer and a head."""
    norm = lambda h: (h - h.mean(-1, keepdims=True)) * jax.lax.rsqrt(h.var(-1, keepdims=True) + 1e-5)
    return jax.nn.relu(jax.lax.scan(lambda h, w: (h + norm(h) @ w, None), x @ v["first"], v["layers"])[0]) @ v["head"]


NETWORK = jn.Network(apply, WEIGHTS)
METHOD = jn.by_path([("layers", jn.binarize(gradient="scaled")), ("head", jn.quantize(8))])
RULES = [("layers", jn.xnor()), ("head", jn.arithmetic("w8a8"))]


@functools.cache
def result():
    stages = [jn.Stage("float", jn.identity(), epochs=4), jn.Stage("xnor", METHOD, rule=RULES, epochs=8, learning_rate=0.01)]
    return jn.compress(NETWORK, stages, TASK, latency=False)


def test_each_site_is_trained_as_it_is_deployed():
    state = METHOD.init(WEIGHTS)
    stage = jn.Stage("xnor", METHOD, rule=dict(RULES), epochs=1)
    ready = twin(stage, NETWORK, lambda: METHOD.pack(WEIGHTS, state), TASK)
    assert [(pattern, rule.name) for pattern, rule in ready.rules] == [
        ("layers", "xnor, in float"), ("head", "fake_quant_activations(8)"),
    ]  # fmt: skip
    assert described([stage], [METHOD])[0]["rule"] == "layers: xnor, head: w8a8"
    alone = jn.Stage("xnor", METHOD, rule=jn.xnor(), epochs=1)
    names = [pattern for pattern, _ in twin(alone, NETWORK, lambda: METHOD.pack(WEIGHTS, state), TASK).rules]
    assert names == ["first", "head", "**"], "what has no signs is trained in float"


def test_a_network_with_signs_learns_and_is_deployed_in_words():
    net = result().network
    assert net.rules == tuple(RULES) and isinstance(net.variables["layers"], jn.Binary)
    forms = {path: x.codes.dtype.name for path, x in leaves_by_path(net.prepared().variables).items() if jn.is_compressed(x)}
    assert forms == {"layers": "uint32", "head": "float32"}
    assert result().stages[-1]["metrics"]["accuracy"] >= 0.7
    answers = np.argmax(net(X[64:]), 1)
    assert result().stages[-1]["metrics"]["accuracy"] == np.mean(answers == Y[64:])
    assert not net.run.explain(net.prepared().variables, X[:2]).of("stored", "float")


def test_an_artifact_holds_its_rules(tmp_path):
    net = result().network
    loaded = jn.load(jn.save(tmp_path / "net", net), apply)
    assert loaded.rules == net.rules and isinstance(loaded.variables["layers"], jn.Binary)
    np.testing.assert_array_equal(loaded(X), net(X))


def test_a_program_for_this_backend_multiplies_words():
    net = result().network
    text = str(jax.make_jaxpr(net.run)(net.prepared().variables, X[:4]))
    assert text.count("population_count") >= 1
    with pytest.raises(TypeError, match="stage 'x': rule"):
        jn.Stage("x", METHOD, rule=[("layers", "xnor")])
