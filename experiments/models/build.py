"""From a module to what a config's model is: ``(apply, variables)``, initialized by one program for all seeds."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from jaxopt_nn.frameworks.linen import linen
from jaxopt_nn.frameworks.nnx import nnx as of_nnx

PyTree = Any
Built = tuple[Callable[..., PyTree], PyTree]
Trained = tuple[Callable[..., PyTree], PyTree, Callable[..., tuple[jax.Array, dict[str, PyTree]]]]


def of_module(model: nn.Module, seed: int, *shape: int, dtype: Any = jnp.float32) -> Built:
    """A Linen module on inputs ``[shape]``; equal modules share one compiled initializer."""
    return linen(model, _initializer(model)(jax.random.key(seed), jnp.zeros(shape, dtype)))


def of_normalized(model: nn.Module, seed: int, *shape: int) -> Trained:
    """A Linen module with BatchNorm and an argument ``train``, with its function in training mode as the third."""

    def train_apply(variables: PyTree, x: jax.Array, key: jax.Array) -> tuple[jax.Array, dict[str, PyTree]]:
        """Logits by the batch's own statistics, and ``{"batch_stats": ...}`` moved towards these; ``key`` is not used."""
        return model.apply(variables, x, train=True, mutable=["batch_stats"])

    return *of_module(model, seed, *shape), train_apply


def of_nnx_class(make: Callable[..., nnx.Module], features: tuple[int, ...], seed: int) -> Built:
    """An NNX module ``make(features, rngs=...)``."""
    apply, init = _nnx_parts(make, features)
    return apply, init(jax.random.key(seed))


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
def _nnx_parts(make: Callable[..., nnx.Module], features: tuple[int, ...]) -> tuple[Callable[..., PyTree], ...]:
    """``apply``, from a module that holds shapes alone, and ``key -> variables``, compiled."""
    apply, _ = of_nnx(nnx.eval_shape(lambda: make(features, rngs=nnx.Rngs(0))))
    return apply, _compiled(lambda key: of_nnx(make(features, rngs=nnx.Rngs(key)))[1])
