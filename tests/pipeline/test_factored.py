"""A recipe that factors and trains: what the report counts, what the artifact holds, methods inside others by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_nn as jn
from jaxopt_nn.core.paths import leaves_by_path
from jaxopt_nn.pipeline import registry


def network(seed=0):
    draw = lambda *shape: jnp.asarray(np.random.default_rng(seed).standard_normal(shape) / shape[0] ** 0.5, jnp.float32)
    variables = {"up": draw(12, 32), "bias": jnp.zeros(32), "down": draw(32, 8)}
    return jn.Network(lambda v, x: jnp.tanh(x @ v["up"] + v["bias"][None]) @ v["down"], variables)


def test_a_recipe_factors_trains_and_stores(tmp_path):
    x = np.random.default_rng(1).standard_normal((256, 12)).astype(np.float32)
    net, y = network(), np.asarray(network(2)(x))
    task = jn.regression(train=(x, y), test=(x[:64], y[:64]), batch_size=32)
    recipe = [jn.Stage("factored", jn.low_rank(share=0.5, whiten="inputs"), epochs=3, learning_rate=1e-2)]
    result = jn.compress(net, recipe, task, latency=False)
    stage, whole = result.stages[0], result.report["baseline"]
    ranks = {path: x.ranks[0] for path, x in leaves_by_path(result.network.variables).items() if jn.is_compressed(x)}
    assert ranks == {"up": 4, "down": 3}
    assert whole["macs"] == 12 * 32 + 32 * 8 and stage["macs"] == 4 * (12 + 32) + 3 * (32 + 8)
    assert {leaf["path"]: leaf["macs"] for leaf in stage["leaves"]} == {"up": 176, "down": 120, "bias": None}
    assert stage["bytes"] == 4 * (176 + 120 + 32) == jn.nbytes(result.network.variables)
    assert [fact["title"] for fact in stage["facts"]] == ["Ranks"]
    untrained = recipe[0].transform.init(net.variables, jn.calibrate(net, recipe[0].transform, task))
    before = net.replace(variables=recipe[0].transform.view(net.variables, untrained))
    assert jn.evaluate(result.network, task)["loss"] < 0.8 * jn.evaluate(before, task)["loss"], "the factors were trained"
    jn.save(tmp_path / "small", result.network)
    loaded = jn.load(tmp_path / "small", net.apply)
    assert jax.tree.structure(loaded.variables) == jax.tree.structure(result.network.variables)
    np.testing.assert_array_equal(loaded(x), result.network(x))


def test_methods_inside_others_by_name():
    v = network().variables
    method = registry.transform("low_rank", rank=3, factors={"method": "quantize", "bits": 8})
    assert method.pack(v, method.init(v))["up"].factors[0].bits == 8
    both = registry.transform(
        "residual", a={"method": "low_rank", "rank": 2}, b={"method": "prune", "sparsity": 0.9, "where": "up"}
    )
    packed = both.pack(v, both.init(v))
    assert isinstance(packed["up"], jn.Sum) and isinstance(packed["down"], jn.LowRank)
    tucker = registry.transform("low_rank", rank=[2, 3], form="tucker")
    kernel = {"w": jnp.ones((3, 3, 8, 8)) + jnp.arange(8.0)[None, None, None]}
    assert tucker.pack(kernel, tucker.init(kernel))["w"].ranks == (2, 3)
    with pytest.raises(ValueError, match="method 'quantise' is unknown; nearest: quantize"):
        registry.transform("low_rank", rank=3, factors={"method": "quantise", "bits": 8})
