"""Ways of attention: how kernels are laid out, and who shares keys and values."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.corpus.base import Parts, PyTree, entry, weight
from tests.corpus.blocks import (
    DEPTH,
    HEADS,
    WIDTH,
    causal,
    joined,
    language_model,
    layer_norm,
    mixed,
    projected,
    qkv,
    rms_norm,
    split_heads,
)


@entry
def gpt_learned() -> Parts:
    """GPT with unrolled blocks, separate kernels, learnt positions looked up."""
    return language_model(lambda p, x: joined(p, mixed(*projected(p, x))), learnt=True)


@entry
def qkv_split() -> Parts:
    """One kernel for queries, keys and values, its output split in three."""

    def attention(rng: np.random.Generator) -> PyTree:
        inner = HEADS * DEPTH
        return {"qkv": weight(rng, WIDTH, 3 * inner), "b": weight(rng, 3 * inner), "o": weight(rng, inner, WIDTH)}

    def attend(p: PyTree, x: jax.Array) -> jax.Array:
        q, k, v = map(split_heads, jnp.split(x @ p["qkv"] + p["b"], 3, axis=-1))
        return mixed(q, k, v).reshape(*x.shape[:2], -1) @ p["o"]

    return language_model(attend, attention, learnt=True)


@entry
def qkv_reshape() -> Parts:
    """One kernel, its output reshaped to `[3, H, D]` and indexed (as in timm)."""

    def attention(rng: np.random.Generator) -> PyTree:
        inner = HEADS * DEPTH
        return {"qkv": weight(rng, WIDTH, 3 * inner), "o": weight(rng, inner, WIDTH), "bo": weight(rng, WIDTH)}

    def attend(p: PyTree, x: jax.Array) -> jax.Array:
        batch, time, _ = x.shape
        q, k, v = (x @ p["qkv"]).reshape(batch, time, 3, HEADS, -1).transpose(2, 0, 3, 1, 4)
        y = causal(q @ k.swapaxes(-2, -1) * DEPTH**-0.5) @ v
        return y.transpose(0, 2, 1, 3).reshape(batch, time, -1) @ p["o"] + p["bo"]

    return language_model(attend, attention, learnt=True)


@entry
def qkv_by_head() -> Parts:
    """One kernel whose output is reshaped to `[H, 3 * D]`, split by head (as in GPT-NeoX)."""

    def attention(rng: np.random.Generator) -> PyTree:
        return {"qkv": weight(rng, WIDTH, 3 * HEADS * DEPTH), "o": weight(rng, HEADS * DEPTH, WIDTH)}

    def attend(p: PyTree, x: jax.Array) -> jax.Array:
        y = (x @ p["qkv"]).reshape(*x.shape[:2], HEADS, 3 * DEPTH)
        q, k, v = y[..., :DEPTH], y[..., DEPTH : 2 * DEPTH], y[..., 2 * DEPTH :]
        return mixed(q, k, v).reshape(*x.shape[:2], -1) @ p["o"]

    return language_model(attend, attention, learnt=True)


@entry
def einsum_heads() -> Parts:
    """Kernels laid out `[I, H, D]` and `[H, D, I]`, all by einsum."""

    def attention(rng: np.random.Generator) -> PyTree:
        kernels = {name: weight(rng, WIDTH, HEADS, DEPTH, fan_in=WIDTH) for name in "qkv"}
        return kernels | {"o": weight(rng, HEADS, DEPTH, WIDTH, fan_in=HEADS * DEPTH)}

    def attend(p: PyTree, x: jax.Array) -> jax.Array:
        q, k, v = (jnp.einsum("bti,ihd->bthd", x, p[name]) for name in "qkv")
        return jnp.einsum("bthd,hdo->bto", mixed(q, k, v), p["o"])

    return language_model(attend, attention, learnt=True)


@entry
def gqa_repeat() -> Parts:
    """Grouped-query attention: 2 key and value heads, each repeated for 2 query heads by `jnp.repeat`."""

    def attend(p: PyTree, x: jax.Array) -> jax.Array:
        q, k, v = projected(p, x)
        return joined(p, mixed(q, jnp.repeat(k, 2, axis=2), jnp.repeat(v, 2, axis=2)))

    return language_model(attend, functools.partial(qkv, kv_heads=2), learnt=True)


@entry
def gqa_reshape() -> Parts:
    """Grouped-query attention: queries reshaped to `[kv heads, group, D]`; 3 query heads for each of 2."""

    def attend(p: PyTree, x: jax.Array) -> jax.Array:
        q, k, v = projected(p, x)
        q = q.reshape(*x.shape[:2], 2, 3, DEPTH)
        scores = causal(jnp.einsum("btkgd,bskd->bkgts", q, k) / math.sqrt(DEPTH))
        return joined(p, jnp.einsum("bkgts,bskd->btkgd", scores, v))

    return language_model(attend, functools.partial(qkv, heads=6, kv_heads=2), learnt=True)


@entry
def multi_query() -> Parts:
    """Multi-query attention: one key and value head, broadcast to all."""

    def attend(p: PyTree, x: jax.Array) -> jax.Array:
        q, k, v = split_heads(x @ p["q"] + p["bq"]), x @ p["k"], x @ p["v"] + p["bv"]
        scores = causal(jnp.einsum("bthd,bsd->bhts", q, k) / math.sqrt(DEPTH))
        return joined(p, jnp.einsum("bhts,bsd->bthd", scores, v))

    return language_model(attend, functools.partial(qkv, kv_heads=1), learnt=True)


@entry
def linear_attention() -> Parts:
    """Linear attention (Katharopoulos et al., 2020): `elu + 1` features, sums over time by `cumsum`."""

    def attend(p: PyTree, x: jax.Array) -> jax.Array:
        q, k, v = projected(p, x)
        q, k = jax.nn.elu(q) + 1, jax.nn.elu(k) + 1
        memory = jnp.cumsum(jnp.einsum("bthd,bthe->bthde", k, v), axis=1)
        norm = jnp.einsum("bthd,bthd->bth", q, jnp.cumsum(k, axis=1))
        return joined(p, jnp.einsum("bthd,bthde->bthe", q, memory) / norm[..., None])

    return language_model(attend, learnt=True)


@entry
def library_attention() -> Parts:
    """`jax.nn.dot_product_attention`, causal, 6 query heads for 2 of keys and values."""

    def attend(p: PyTree, x: jax.Array) -> jax.Array:
        return joined(p, jax.nn.dot_product_attention(*projected(p, x), is_causal=True))

    return language_model(attend, functools.partial(qkv, heads=6, kv_heads=2), learnt=True)


@entry
def sliding_window() -> Parts:
    """Blocks of 4 tokens that see their own and the one before: padded, reshaped to windows, joined, cropped."""

    def windows(x: jax.Array) -> jax.Array:
        batch, time, *rest = x.shape
        x = jnp.pad(x, ((0, 0), (0, -time % 4), (0, 0), (0, 0)))
        return x.reshape(batch, -1, 4, *rest)

    def attend(p: PyTree, x: jax.Array) -> jax.Array:
        q, k, v = map(windows, projected(p, x))
        before = lambda x: jnp.concatenate([jnp.pad(x, ((0, 0), (1, 0), *[(0, 0)] * 3))[:, :-1], x], axis=2)
        scores = jnp.einsum("bwqhd,bwkhd->bwhqk", q, before(k)) * DEPTH**-0.5
        near = (jnp.arange(8)[None] - 4 <= jnp.arange(4)[:, None]) & (jnp.arange(8)[None] > jnp.arange(4)[:, None])
        y = jnp.einsum("bwhqk,bwkhd->bwqhd", jax.nn.softmax(jnp.where(near, scores, -1e9)), before(v))
        return joined(p, y.reshape(x.shape[0], -1, HEADS, DEPTH)[:, : x.shape[1]])

    return language_model(attend, learnt=True)


@entry
def talking_heads() -> Parts:
    """Scores mixed over heads before and after the softmax (Shazeer et al., 2020)."""

    def attention(rng: np.random.Generator) -> PyTree:
        return qkv(rng) | {"before": weight(rng, HEADS, HEADS), "after": weight(rng, HEADS, HEADS)}

    def attend(p: PyTree, x: jax.Array) -> jax.Array:
        q, k, v = projected(p, x)
        scores = jnp.einsum("bthd,bshd,hg->bgts", q, k, p["before"]) * DEPTH**-0.5
        return joined(p, jnp.einsum("bgts,gh,bshd->bthd", causal(scores), p["after"], v))

    return language_model(attend, attention, learnt=True)


@entry
def head_scale() -> Parts:
    """NormFormer (Shleifer et al., 2021): a learnt scale for each head, a norm after attention."""

    def attention(rng: np.random.Generator) -> PyTree:
        norm = {"g": 1 + weight(rng, WIDTH), "b": weight(rng, WIDTH)}
        return qkv(rng) | {"scale": 1 + weight(rng, HEADS), "ln": norm}

    def attend(p: PyTree, x: jax.Array) -> jax.Array:
        return layer_norm(joined(p, mixed(*projected(p, x)) * p["scale"][:, None]), p["ln"])

    return language_model(attend, attention, learnt=True)


@entry
def latent_attention() -> Parts:
    """DeepSeek-V2: keys and values from one narrow code with a norm, and a part of the keys that all heads share."""

    def attention(rng: np.random.Generator) -> PyTree:
        return {
            "q": weight(rng, WIDTH, HEADS * (DEPTH + 2)), "code": weight(rng, WIDTH, 9 + 2), "g": 1 + weight(rng, 9),
            "up": weight(rng, 9, HEADS * 2 * DEPTH), "o": weight(rng, HEADS * DEPTH, WIDTH), "bo": weight(rng, WIDTH),
        }  # fmt: skip

    def attend(p: PyTree, x: jax.Array) -> jax.Array:
        batch, time, _ = x.shape
        q = (x @ p["q"]).reshape(batch, time, HEADS, -1)
        code, shared = jnp.split(x @ p["code"], [9], axis=-1)
        k, v = jnp.split((rms_norm(code, p["g"]) @ p["up"]).reshape(batch, time, HEADS, -1), 2, axis=-1)
        k = jnp.concatenate([k, jnp.broadcast_to(shared[:, :, None], (batch, time, HEADS, 2))], axis=-1)
        scores = causal(jnp.einsum("bthd,bshd->bhts", q, k) * (DEPTH + 2) ** -0.5)
        return joined(p, jnp.einsum("bhts,bshd->bthd", scores, v))

    return language_model(attend, attention, learnt=True)


@entry
def memory_tokens() -> Parts:
    """Learnt keys and values before those of the tokens (Sukhbaatar et al., 2019), cosine scores with a learnt heat."""

    def attention(rng: np.random.Generator) -> PyTree:
        memory = {name: weight(rng, 3, HEADS, DEPTH, fan_in=2) for name in ("mk", "mv")}
        return qkv(rng) | memory | {"heat": 1 + weight(rng, HEADS)}

    def attend(p: PyTree, x: jax.Array) -> jax.Array:
        q, k, v = projected(p, x)
        lead = lambda m, y: jnp.concatenate([jnp.broadcast_to(m, (len(y), *m.shape)), y], axis=1)
        unit = lambda y: y * lax.rsqrt((y * y).sum(-1, keepdims=True) + 1e-6)
        k, v = lead(p["mk"], k), lead(p["mv"], v)
        scores = jnp.einsum("bthd,bshd->bhts", unit(q), unit(k)) * p["heat"][:, None, None]
        seen = jnp.arange(k.shape[1]) - 3 <= jnp.arange(x.shape[1])[:, None]
        return joined(p, jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(jnp.where(seen, scores, -1e9)), v))

    return language_model(attend, attention)


MODELS = (
    gpt_learned, qkv_split, qkv_reshape, qkv_by_head, einsum_heads, gqa_repeat, gqa_reshape, multi_query, linear_attention,
    library_attention, sliding_window, talking_heads, head_scale, latent_attention, memory_tokens,
)  # fmt: skip
