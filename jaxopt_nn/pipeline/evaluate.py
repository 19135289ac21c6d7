"""Accuracy and loss of a classifier, or a language model, over a set of any size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_nn.core.memory import call_bytes, fitting

PyTree = Any


class Evaluation(NamedTuple):
    """``accuracy`` in [0, 1], mean cross-entropy ``loss`` in nats, both over labels; the number of ``correct`` answers."""

    accuracy: float
    loss: float
    correct: int


def evaluator(apply: Callable[..., jax.Array], batch_size: int = 512) -> Callable[..., Evaluation]:
    """``evaluate(variables, x, y) -> Evaluation``, compiled once for each structure of ``variables``.

    The last batch is padded, so that a set of another size compiles nothing new; padding counts for nothing. Where a call
    on ``batch_size`` examples would not fit into memory, fewer are taken, a power of two.

    Args:
      apply: ``(variables, x [B, ...]) -> logits [*labels, classes]`` for labels ``[B]`` or ``[B, T]``.
      batch_size: most examples a call.
    """
    import optax

    @jax.jit
    def totals(variables: PyTree, x: jax.Array, y: jax.Array, real: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = apply(variables, x).astype(jnp.float32)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        real = jnp.broadcast_to(real.reshape(-1, *[1] * (y.ndim - 1)), y.shape)
        hits = (jnp.argmax(logits, -1) == y) & real
        return jnp.sum(hits), jnp.sum(jnp.where(real, losses, 0.0))

    sizes: dict[Any, int] = {}

    def fitted(variables: PyTree, x: np.ndarray, y: np.ndarray) -> int:
        """Examples a call, found once for each structure and shapes of the arguments."""

        def need(size: int) -> int:
            like = lambda a, kind: jax.ShapeDtypeStruct((size, *a.shape[1:]), jax.dtypes.canonicalize_dtype(kind))
            return call_bytes(totals, variables, like(x, x.dtype), like(y, np.int32), like(np.empty(size), bool))

        leaves, structure = jax.tree.flatten(variables)
        shapes = tuple((a.shape, a.dtype) for a in leaves)
        key = structure, shapes, x.shape[1:], x.dtype, y.shape[1:]
        if key not in sizes:
            sizes[key] = fitting(need, batch_size)
        return sizes[key]

    def evaluate(variables: PyTree, x: np.ndarray, y: np.ndarray) -> Evaluation:
        correct, loss, batch_size = 0, 0.0, fitted(variables, x, y)
        for start in range(0, len(y), batch_size):
            part = slice(start, start + batch_size)
            pad = batch_size - len(y[part])
            inputs = np.concatenate([x[part], np.repeat(x[:1], pad, axis=0)])
            labels = np.pad(y[part].astype(np.int32), [(0, pad)] + [(0, 0)] * (y.ndim - 1))
            hits, losses = totals(variables, inputs, labels, np.arange(batch_size) < batch_size - pad)
            correct, loss = correct + int(hits), loss + float(losses)
        return Evaluation(correct / y.size, loss / y.size, correct)

    return evaluate
