"""Residual layers written by hand, one by one and as a loop, and the networks that lost some of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_nn.core.model import ModelInfo
from jaxopt_nn.core.passes import Plan
from jaxopt_nn.passes import scores
from jaxopt_nn.passes.cut_layers import cut_layers

close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
WIDTH, LAYERS = 6, 4


def drawn(seed=0, layers=LAYERS):
    """Weights of residual layers as lists, and inputs: [5, 6]."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape) / np.sqrt(shape[0]), jnp.float32)
    made = [{"up": draw(WIDTH, 8), "bias": draw(8), "down": draw(8, WIDTH), "gain": draw(1)[0]} for _ in range(layers)]
    return {"layers": made, "head": draw(WIDTH, 3)}, draw(5, WIDTH)


def branch(w, x):
    return jnp.tanh(x @ w["up"] + w["bias"][None]) @ w["down"] * w["gain"]


def written_out(v, x, only=range(LAYERS)):
    """The layers one by one; ``only`` some of them: what the network is without the others."""
    for i in only:
        x = x + branch(v["layers"][i], x)
    return jnp.sin(x) @ v["head"]


def looped(v, x):
    """The same as a loop over stacked weights."""
    x, _ = jax.lax.scan(lambda x, w: (x + branch(w, x), None), x, v["layers"])
    return jnp.sin(x) @ v["head"]


def stacked(v):
    return {**v, "layers": jax.tree.map(lambda *leaves: jnp.stack(leaves), *v["layers"])}


def unstacked(v):
    return {**v, "layers": [jax.tree.map(lambda x, i=i: x[i], v["layers"]) for i in range(len(v["layers"]["gain"]))]}


def cut(net, x, kept, **options):
    """The network in which only these layers of each stack stay; by a plan that went through JSON."""
    change = cut_layers(scores.random(0), share=0.0, **options)
    plan = change.plan(net, ModelInfo(), x)
    plan = Plan.from_json(plan.replace(dict.fromkeys(plan.kept, kept)).to_json())
    return (*change.execute(net, plan), plan)
