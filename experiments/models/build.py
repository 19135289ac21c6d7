"""From a module to what a config's model is, a ``Network``, initialized by one program for all seeds."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from jaxopt_nn.frameworks.linen import linen
from jaxopt_nn.frameworks.nnx import nnx as of_nnx
from jaxopt_nn.interpret.network import Network

PyTree = Any


def of_module(model: nn.Module, seed: int, *shape: int, dtype: Any = jnp.float32) -> Network:
    """A Linen module on inputs ``[shape]``."""
    return of_inputs(model, seed, jnp.zeros(shape, dtype))


def of_inputs(model: nn.Module, seed: int, *inputs: jax.Array) -> Network:
    """A Linen module on inputs of any number; equal modules share one compiled initializer."""
    return linen(model, _initializer(model)(jax.random.key(seed), *inputs))


def of_nnx_class(make: Callable[..., nnx.Module], features: tuple[int, ...], seed: int) -> Network:
    """An NNX module ``make(features, rngs=...)``."""
    network, init = _nnx_parts(make, features)
    return network.replace(variables=init(jax.random.key(seed)))


def _compiled(init: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """``init`` runs once: on CPUs, where its many random draws compile for seconds, LLVM is told to hurry (same values).

    Options are for the outermost ``jit`` only: under ``jax.eval_shape`` or another ``jit``, ``init`` is traced as it is.
    """
    options = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
    quick = jax.jit(init, compiler_options=options)

    @functools.wraps(quick)
    def run(key: jax.Array, *inputs: jax.Array) -> PyTree:
        return (init if isinstance(key, jax.core.Tracer) else quick)(key, *inputs)

    return run


@functools.cache
def _initializer(model: nn.Module) -> Callable[..., PyTree]:
    return _compiled(model.init)


@functools.cache
def _nnx_parts(
    make: Callable[..., nnx.Module], features: tuple[int, ...]
) -> tuple[Network, Callable[..., PyTree]]:
    """The network of a module that holds shapes alone, and ``key -> variables``, compiled."""
    network = of_nnx(nnx.eval_shape(lambda: make(features, rngs=nnx.Rngs(0))))
    return network, _compiled(lambda key: of_nnx(make(features, rngs=nnx.Rngs(key))).variables)
