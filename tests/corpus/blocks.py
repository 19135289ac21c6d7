"""A transformer on tokens in plain JAX: the block and the network that ways of attention and of positions are tried in."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.corpus.base import Parts, PyTree, ids_of, weight

VOCABULARY, WIDTH, HEADS, DEPTH, HIDDEN, LENGTH, LAYERS = 29, 20, 4, 6, 34, 7, 2
Attend = Callable[[PyTree, jax.Array], jax.Array]


def layer_norm(x: jax.Array, p: PyTree) -> jax.Array:
    """LayerNorm, two passes."""
    mean = x.mean(-1, keepdims=True)
    return (x - mean) * lax.rsqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-5) * p["g"] + p["b"]


def rms_norm(x: jax.Array, g: jax.Array) -> jax.Array:
    """RMSNorm."""
    return x * lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6) * g


def causal(scores: jax.Array) -> jax.Array:
    """Softmax over the keys up to the query, `[..., T, T]`."""
    length = scores.shape[-1]
    return jax.nn.softmax(jnp.where(jnp.tril(jnp.ones((length, length), bool)), scores, -1e9), axis=-1)


def mixed(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | float = 0.0) -> jax.Array:
    """Causal attention of `[B, T, H, D]`, to the same."""
    scores = jnp.einsum("bthd,bshd->bhts", q, k) / math.sqrt(q.shape[-1]) + bias
    return jnp.einsum("bhts,bshd->bthd", causal(scores), v)


def qkv(rng: np.random.Generator, heads: int = HEADS, kv_heads: int = HEADS) -> PyTree:
    """Separate kernels `[I, heads * D]`, with biases but for the keys."""
    return {
        "q": weight(rng, WIDTH, heads * DEPTH), "k": weight(rng, WIDTH, kv_heads * DEPTH),
        "v": weight(rng, WIDTH, kv_heads * DEPTH), "o": weight(rng, heads * DEPTH, WIDTH),
        "bq": weight(rng, heads * DEPTH), "bv": weight(rng, kv_heads * DEPTH), "bo": weight(rng, WIDTH),
    }  # fmt: skip


def split_heads(x: jax.Array) -> jax.Array:
    """`[B, T, H * D] -> [B, T, H, D]`."""
    return x.reshape(*x.shape[:2], -1, DEPTH)


def projected(p: PyTree, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries, keys and values by head."""
    return split_heads(x @ p["q"] + p["bq"]), split_heads(x @ p["k"]), split_heads(x @ p["v"] + p["bv"])


def joined(p: PyTree, x: jax.Array) -> jax.Array:
    """Heads back to the width."""
    return x.reshape(*x.shape[:2], -1) @ p["o"] + p["bo"]


def block(attend: Attend, p: PyTree, x: jax.Array) -> jax.Array:
    """Pre-norm block with a GELU MLP."""
    x = x + attend(p["attention"], layer_norm(x, p["ln1"]))
    y = jax.nn.gelu(layer_norm(x, p["ln2"]) @ p["up"] + p["up_b"])
    return x + y @ p["down"] + p["down_b"]


def block_params(rng: np.random.Generator, attention: PyTree) -> PyTree:
    """Of `block`."""
    norm = lambda: {"g": 1 + weight(rng, WIDTH), "b": weight(rng, WIDTH)}
    return {
        "attention": attention, "ln1": norm(), "ln2": norm(), "up": weight(rng, WIDTH, HIDDEN), "up_b": weight(rng, HIDDEN),
        "down": weight(rng, HIDDEN, WIDTH), "down_b": weight(rng, WIDTH),
    }  # fmt: skip


def language_model(
    attend: Attend,
    attention: Callable[[np.random.Generator], PyTree] = qkv,
    positions: Callable[[int], jax.Array] | None = None,
    learnt: bool = False,
) -> Parts:
    """Embedding, blocks, a norm and a head of its own, over two rows of tokens."""
    rng = np.random.default_rng(0)
    params = {
        "embed": weight(rng, VOCABULARY, WIDTH, fan_in=1), "head": weight(rng, WIDTH, VOCABULARY),
        "blocks": [block_params(rng, attention(rng)) for _ in range(LAYERS)],
        "ln": {"g": 1 + weight(rng, WIDTH), "b": weight(rng, WIDTH)},
    }  # fmt: skip
    if learnt:
        params["positions"] = weight(rng, 11, WIDTH, fan_in=4)

    def apply(params: PyTree, ids: jax.Array) -> jax.Array:
        x = params["embed"][ids]
        if learnt:
            x = x + params["positions"][jnp.arange(ids.shape[1])]
        if positions is not None:
            x = x + positions(ids.shape[1])
        for p in params["blocks"]:
            x = block(attend, p, x)
        return layer_norm(x, params["ln"]) @ params["head"]

    return apply, params, (ids_of(VOCABULARY, 2, LENGTH),)
