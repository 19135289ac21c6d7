"""What the models of the corpus are made of: those of the zoo, but code may add a vector to a batch as third parties do."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from tests.zoo import base
from tests.zoo.base import Model, Parts, PyTree, draw, normal, of_linen, of_nnx, tokens, weight

__all__ = [
    "Model",
    "Parts",
    "PyTree",
    "draw",
    "entry",
    "ids_of",
    "normal",
    "of_equinox",
    "of_haiku",
    "of_linen",
    "of_nnx",
    "tokens",
    "weight",
    "x_of",
]  # fmt: skip


def _promoting(fun: Callable[..., Any]) -> Callable[..., Any]:
    """``fun`` where ``[B, O] + [O]`` is allowed, whatever the tests' configuration says."""

    @functools.wraps(fun)
    def run(*args: Any) -> Any:
        with jax.numpy_rank_promotion("allow"):
            return fun(*args)

    return run


def entry(build: Callable[[], Parts]) -> Callable[[], Model]:
    """Turns ``build() -> (apply, variables, inputs)`` into a builder of a ``Model`` of its name and docstring."""

    @functools.wraps(build)
    @_promoting
    def parts() -> Parts:
        apply, variables, inputs = build()
        return _promoting(lambda variables, *xs: apply(variables, *xs)), variables, inputs

    return base.entry(parts)


def x_of(*shape: int, seed: int = 1) -> jax.Array:
    """Standard normal inputs."""
    return normal(np.random.default_rng(seed), *shape)


def ids_of(vocabulary: int, *shape: int, seed: int = 1) -> jax.Array:
    """Token ids below ``vocabulary``."""
    return tokens(np.random.default_rng(seed), vocabulary, *shape)


def of_haiku(call: Callable[..., Any], *inputs: jax.Array) -> Parts:
    """The parts of a function that builds Haiku modules; its state (averages) is part of the variables."""
    import haiku as hk

    network = hk.without_apply_rng(hk.transform_with_state(call))
    params, state = jax.eval_shape(network.init, jax.random.key(0), *inputs)
    rng = np.random.default_rng(7)

    def average(path: tuple, x: jax.ShapeDtypeStruct) -> jax.Array:
        if x.dtype != np.float32:  # how many batches were averaged
            return np.full(x.shape, 3, x.dtype)
        drawn = 0.1 * rng.standard_normal(x.shape).astype(np.float32)
        return jax.numpy.asarray(np.exp(drawn) if "var_ema" in jax.tree_util.keystr(path) else drawn)

    variables = {"params": draw(params)}
    if state:
        variables["state"] = jax.tree_util.tree_map_with_path(average, state)
    return lambda v, *xs: network.apply(v["params"], v.get("state", {}), *xs)[0], variables, inputs


def of_equinox(make: Callable[[jax.Array], Any], *inputs: jax.Array) -> Parts:
    """The arrays of an Equinox module, written for one example, as variables; mapped over a batch."""
    import equinox as eqx

    abstract, static = eqx.partition(
        eqx.filter_eval_shape(make, jax.random.key(0)), lambda x: isinstance(x, jax.ShapeDtypeStruct)
    )
    return lambda v, *xs: jax.vmap(eqx.combine(v, static))(*xs), draw(abstract), inputs
