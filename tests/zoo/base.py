"""What a model of the zoo is, and how one is made of a seed without compiling its initializers."""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

PyTree = Any
Parts = tuple[Callable[..., PyTree], PyTree, tuple[jax.Array, ...]]


@dataclasses.dataclass(frozen=True)
class Model:
    """A pure function with everything it needs: `apply(variables, *inputs)` is any pytree of arrays.

    `variables` is the whole input tree (parameters and statistics), `inputs` are arrays or PRNG keys, `note`
    says in one line which mechanism the model exercises.
    """

    name: str
    apply: Callable[..., PyTree]
    variables: PyTree
    inputs: tuple[jax.Array, ...]
    note: str


def entry(build: Callable[[], Parts]) -> Callable[[], Model]:
    """Turns `build() -> (apply, variables, inputs)` into a builder of a `Model` of its name and docstring."""
    parts = functools.cache(build)

    @functools.wraps(build)
    def model() -> Model:
        apply, variables, inputs = parts()
        # One `apply`, so that tests share its compilations; fresh arrays, since a test may donate them.
        variables, inputs = jax.device_put((variables, inputs), may_alias=False)
        return Model(build.__name__, apply, variables, inputs, inspect.getdoc(build) or "")

    return model


def normal(rng: np.random.Generator, *shape: int) -> jax.Array:
    """Standard normal float32 activations."""
    return jnp.asarray(rng.standard_normal(shape), jnp.float32)


def weight(rng: np.random.Generator, *shape: int, fan_in: int | None = None) -> jax.Array:
    """Float32 weights of variance 1 / fan_in, by default 1 / shape[-2]; vectors of standard deviation 0.1."""
    if fan_in is None:
        fan_in = shape[-2] if len(shape) > 1 else 100
    return jnp.asarray(rng.standard_normal(shape) / math.sqrt(fan_in), jnp.float32)


def tokens(rng: np.random.Generator, vocabulary: int, *shape: int) -> jax.Array:
    """Uniform int32 token ids below `vocabulary`."""
    return jnp.asarray(rng.integers(vocabulary, size=shape), jnp.int32)


def draw(abstract: PyTree, seed: int = 0) -> PyTree:
    """Float32 arrays for a tree of abstract leaves, none of them constant: no bias is zero, no variance one.

    Drawn by NumPy: every generation of JAX gets the same network, and nothing has to be compiled for it.
    """
    rng = np.random.default_rng(seed)

    def leaf(path: tuple, x: jax.ShapeDtypeStruct) -> jax.Array:
        assert x.dtype == jnp.float32, f"{jax.tree_util.keystr(path)}: {x.dtype}"
        if jax.tree_util.keystr(path[-1:], simple=True) in ("scale", "var"):
            return jnp.asarray(np.exp(0.1 * rng.standard_normal(x.shape)), jnp.float32)
        return weight(rng, *x.shape, fan_in=math.prod(x.shape[:-1]) if len(x.shape) > 1 else None)

    return jax.tree_util.tree_map_with_path(leaf, abstract)


def of_linen(module: nn.Module, *inputs: jax.Array, **kwargs: Any) -> Parts:
    """The parts of a Linen module; `kwargs` go to `module.apply`."""
    variables = draw(jax.eval_shape(module.init, jax.random.key(0), *inputs))
    return lambda variables, *xs: module.apply(variables, *xs, **kwargs), variables, inputs


def of_nnx(make: Callable[[nnx.Rngs], nnx.Module], *inputs: jax.Array) -> Parts:
    """The parts of an NNX module: a plain nested dict of arrays, merged into the module at each call."""
    graph, state = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    variables = draw(nnx.to_pure_dict(state))
    return lambda variables, *xs: nnx.merge(graph, variables)(*xs), variables, inputs
