"""Decoder-only transformer: grouped-query attention, rotary positions, gated MLP, tied embeddings."""

import flax.linen as nn
import jax
import jax.numpy as jnp


def rotary(x: jax.Array, base: float = 10_000.0) -> jax.Array:
    """Turns pair `(i, i + D/2)` of `x: [B, T, heads, D]` by `t * base^(-2i/D)` (Su et al., 2021, eq. 34)."""
    time, half = x.shape[1], x.shape[3] // 2
    frequency = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = jnp.arange(time, dtype=jnp.float32)[:, None] * frequency[None, :]
    cos, sin = (f(angle)[None, :, None, :].astype(x.dtype) for f in (jnp.cos, jnp.sin))
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


class Attention(nn.Module):
    """Causal grouped-query attention (Ainslie et al., 2023): `heads` queries, `kv_heads` keys and values."""

    heads: int
    kv_heads: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, time, width = x.shape
        depth, groups = width // self.heads, self.heads // self.kv_heads

        def project(heads: int, name: str) -> jax.Array:
            y = nn.Dense(heads * depth, use_bias=False, dtype=self.dtype, name=name)(x)
            return y.reshape(batch, time, heads, depth)

        query, key = rotary(project(self.heads, "query")), rotary(project(self.kv_heads, "key"))
        value = project(self.kv_heads, "value")
        query = query.reshape(batch, time, self.kv_heads, groups, depth)
        scores = jnp.einsum("btkgd,bskd->bkgts", query, key).astype(jnp.float32) / depth**0.5
        causal = jnp.tril(jnp.ones((time, time), bool))
        weights = jax.nn.softmax(jnp.where(causal[None, None, None], scores, -1e30)).astype(self.dtype)
        mixed = jnp.einsum("bkgts,bskd->btkgd", weights, value).reshape(batch, time, width)
        return nn.Dense(width, use_bias=False, dtype=self.dtype, name="out")(mixed)


class Block(nn.Module):
    """Pre-norm attention and SwiGLU MLP (Shazeer, 2020), both residual: `[B, T, I] -> [B, T, I]`."""

    heads: int
    kv_heads: int
    hidden: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def dense(features: int, name: str) -> nn.Dense:
            return nn.Dense(features, use_bias=False, dtype=self.dtype, name=name)

        attention = Attention(self.heads, self.kv_heads, self.dtype, name="attention")
        x = x + attention(nn.RMSNorm(dtype=self.dtype, name="attention_norm")(x))
        y = nn.RMSNorm(dtype=self.dtype, name="mlp_norm")(x)
        y = nn.silu(dense(self.hidden, "gate")(y)) * dense(self.hidden, "up")(y)
        return x + dense(x.shape[-1], "down")(y)


class GPT(nn.Module):
    """`tokens: int [B, T] -> logits: float32 [B, T, vocabulary]`; the embedding is the output layer too.

    With `scan=True` the blocks are one rematerialised block, scanned over weights stacked as
    `blocks/...: [layers, ...]`; else they are unrolled as `block_0`, `block_1`, and so on. `dtype` is the
    activations'; parameters are float32.
    """

    vocabulary: int = 50_304
    width: int = 768
    layers: int = 12
    heads: int = 12
    kv_heads: int = 4
    hidden: int = 2048
    scan: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        embed = nn.Embed(self.vocabulary, self.width, dtype=self.dtype, name="embed")
        sizes = (self.heads, self.kv_heads, self.hidden, self.dtype)
        x = embed(tokens)
        if self.scan:
            # Under scan the loop itself keeps XLA from merging the recomputation with the first pass.
            block = nn.remat(Block, prevent_cse=False)(*sizes, name="blocks")
            over_layers = nn.scan(
                lambda block, x, _: (block(x), None),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=self.layers,
            )
            x, _ = over_layers(block, x, None)
        else:
            for layer in range(self.layers):
                x = Block(*sizes, name=f"block_{layer}")(x)
        return embed.attend(nn.RMSNorm(dtype=self.dtype, name="norm")(x)).astype(jnp.float32)
