"""What the mistakes are made with: a small network, its data, what methods made of it, and an empty folder."""

import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxopt_nn as jn


def apply(variables, x):
    hidden = jax.nn.relu(x @ variables["hidden"]["kernel"] + variables["hidden"]["bias"][None])
    return hidden @ variables["head"]["kernel"] + variables["head"]["bias"][None]


def names(folder: pathlib.Path) -> dict:
    """The names that a mistake may use; files lie in ``folder``."""
    rng = np.random.default_rng(0)
    leaf = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    variables = {
        "hidden": {"kernel": leaf(8, 16), "bias": leaf(16)},
        "head": {"kernel": leaf(16, 4), "bias": leaf(4)},
    }
    images, labels = rng.standard_normal((48, 8)).astype(np.float32), rng.integers(0, 4, 48)
    x = images[:4]
    net = jn.Network(apply, variables)
    info = jn.inspect(apply, variables, x)
    w4, w8 = (jn.where("**/kernel", jn.quantize(bits)) for bits in (4, 8))
    state = w4.init(variables, info)
    task = jn.classification(train=(images, labels), test=(images, labels), batch_size=16)
    model = nn.Dense(4)
    given = {
        "jn": jn, "jax": jax, "jnp": jnp, "np": np, "nn": nn, "nnx": nnx, "optax": optax, "tmp": folder,
        "apply": apply, "variables": variables, "net": net, "info": info, "x": x, "images": images, "labels": labels,
        "task": task, "w4": w4, "state": state, "stored": w4.pack(variables, state),
        "stored8": w8.pack(variables, w8.init(variables, info)), "model": model, "params": model.init(jax.random.key(0), x),
        "artifact": lambda: jn.save(folder / "artifact", net, overwrite=True).path,
    }  # fmt: skip

    def compress(recipe, network=net, task=task, **options):
        return jn.compress(network, recipe, task, latency=False, watch=lambda entry: None, **options)

    def step(loss, method=w4):
        train_state = jn.init_train_state(variables, method, optax.sgd(0.1), jax.random.key(0))
        return jn.make_step(loss, method, optax.sgd(0.1))(train_state, x)

    return {**given, "compress": compress, "step": step}
