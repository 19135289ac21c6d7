"""Networks of other libraries, for as many of them as are installed."""

import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from tests.zoo.base import Model, Parts, PyTree, draw, entry, normal


@entry
def haiku_mlp() -> Parts:
    """Haiku: names with slashes and tildes in the tree, weights named `w` and `b`."""
    import haiku as hk

    x = normal(np.random.default_rng(1), 4, 32)
    network = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP((64, 32, 16))(x)))
    return network.apply, draw(jax.eval_shape(network.init, jax.random.key(0), x)), (x,)


def _equinox(make: Callable[[jax.Array], Any], x: jax.Array) -> Parts:
    """The arrays of an Equinox module as variables; it is written for one example, so runs under `vmap`."""
    import equinox as eqx

    abstract, static = eqx.partition(
        eqx.filter_eval_shape(make, jax.random.key(0)), lambda x: isinstance(x, jax.ShapeDtypeStruct)
    )

    def apply(variables: PyTree, x: jax.Array) -> jax.Array:
        return jax.vmap(eqx.combine(variables, static))(x)

    return apply, draw(abstract), (x,)


@entry
def equinox_mlp() -> Parts:
    """Equinox: the tree is the module itself, weights `[O, I]` on the left of each product."""
    import equinox as eqx

    return _equinox(
        lambda key: eqx.nn.MLP(32, 16, 32, depth=2, key=key), normal(np.random.default_rng(1), 4, 32)
    )


@entry
def equinox_conv() -> Parts:
    """Equinox convolutions: channels first, kernels `[O, I, H, W]`, biases of three axes."""
    import equinox as eqx

    def make(key: jax.Array) -> eqx.Module:
        keys = jax.random.split(key, 3)
        layers = [
            eqx.nn.Conv2d(8, 16, 3, padding=1, key=keys[0]),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.Conv2d(16, 16, 3, stride=2, key=keys[1]),
            eqx.nn.Lambda(lambda x: jax.nn.relu(x).mean(axis=(1, 2))),
            eqx.nn.Linear(16, 16, key=keys[2]),
        ]
        return eqx.nn.Sequential(layers)

    return _equinox(make, normal(np.random.default_rng(1), 2, 8, 8, 8))


def third_party() -> dict[str, Callable[[], Model]]:
    """The builders whose library is installed, by name."""
    builders = {"haiku": (haiku_mlp,), "equinox": (equinox_mlp, equinox_conv)}
    found = [package for package in builders if importlib.util.find_spec(package)]
    return {build.__name__: build for package in found for build in builders[package]}
