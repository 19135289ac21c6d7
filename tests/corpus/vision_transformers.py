"""Transformers on images and sets, in Flax."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests.corpus.base import Parts, entry, ids_of, of_linen, of_nnx, x_of


class Block(nn.Module):
    heads: int = 2
    hidden: int = 34

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(self.heads, qkv_features=12, deterministic=True)(y, y)
        y = nn.Dense(self.hidden)(nn.LayerNorm()(x))
        return x + nn.Dense(x.shape[-1])(nn.gelu(y))


class ViT(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(20, (4, 4), strides=(4, 4), padding="VALID", name="embedding")(x)
        batch, height, width, channels = x.shape
        x = jnp.reshape(x, [batch, height * width, channels])
        cls = self.param("cls", nn.initializers.zeros, (1, 1, channels))
        x = jnp.concatenate([jnp.tile(cls, [batch, 1, 1]), x], axis=1)
        x = x + self.param("pos_embedding", nn.initializers.normal(0.02), (1, x.shape[1], channels))
        for _ in range(2):
            x = Block()(x)
        x = nn.LayerNorm(name="encoder_norm")(x)[:, 0]
        x = nn.tanh(nn.Dense(14, name="pre_logits")(x))
        return nn.Dense(5, name="head")(x)


@entry
def vit_class_token() -> Parts:
    """Google's ViT: patches by a convolution, a class token tiled and concatenated, a table of positions."""
    return of_linen(ViT(), x_of(2, 8, 8, 3))


class PatchNet(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(48, rngs=rngs)
        self.embed = nnx.Linear(48, 20, rngs=rngs)
        self.positions = nnx.Param(jnp.zeros((4, 20)))
        self.registers = nnx.Param(jnp.zeros((2, 20)))
        self.attention = nnx.MultiHeadAttention(3, 20, qkv_features=18, decode=False, rngs=rngs)
        self.norms = nnx.List([nnx.LayerNorm(20, rngs=rngs) for _ in range(3)])
        self.up, self.down = nnx.Linear(20, 34, rngs=rngs), nnx.Linear(34, 20, rngs=rngs)
        self.scale = nnx.Param(jnp.ones((2, 20)))
        self.head = nnx.Linear(20, 5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        x = x.reshape(batch, height // 4, 4, width // 4, 4, channels).transpose(0, 1, 3, 2, 4, 5)
        x = self.embed(self.norm(x.reshape(batch, -1, 48))) + self.positions[...]
        registers = jnp.broadcast_to(self.registers[...], (batch, 2, 20))
        x = jnp.concatenate([registers, x], axis=1)
        x = x + self.scale[0] * self.attention(self.norms[0](x))
        x = x + self.scale[1] * self.down(nnx.gelu(self.up(self.norms[1](x))))
        return self.head(self.norms[2](x[:, 2:]).mean(axis=1))


@entry
def vit_reshaped_patches() -> Parts:
    """NNX: patches by reshape and transpose, register tokens cut off again, layer scale, `nnx.MultiHeadAttention`."""
    return of_nnx(PatchNet, x_of(2, 8, 8, 3))


class SwinBlock(nn.Module):
    shift: int
    heads: int = 2
    window: int = 2

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        w, depth = self.window, 6
        y = nn.LayerNorm()(x)
        if self.shift:
            y = jnp.roll(y, (-self.shift, -self.shift), axis=(1, 2))
        y = y.reshape(batch, height // w, w, width // w, w, channels).transpose(0, 1, 3, 2, 4, 5)
        y = y.reshape(-1, w * w, channels)
        q, k, v = nn.Dense(3 * self.heads * depth)(y).reshape(-1, w * w, 3, self.heads, depth).transpose(2, 0, 3, 1, 4)
        table = self.param("relative_bias", nn.initializers.normal(0.02), ((2 * w - 1) ** 2, self.heads))
        places = np.stack(np.meshgrid(np.arange(w), np.arange(w), indexing="ij")).reshape(2, -1)
        offset = places[:, :, None] - places[:, None, :] + w - 1
        index = offset[0] * (2 * w - 1) + offset[1]
        bias = table[index.reshape(-1)].reshape(w * w, w * w, -1).transpose(2, 0, 1)
        scores = nn.softmax(q * depth**-0.5 @ k.swapaxes(-2, -1) + bias[None])
        y = nn.Dense(channels)((scores @ v).transpose(0, 2, 1, 3).reshape(-1, w * w, self.heads * depth))
        y = y.reshape(batch, height // w, width // w, w, w, channels).transpose(0, 1, 3, 2, 4, 5)
        y = y.reshape(batch, height, width, channels)
        if self.shift:
            y = jnp.roll(y, (self.shift, self.shift), axis=(1, 2))
        x = x + y
        return x + nn.Dense(channels)(nn.gelu(nn.Dense(34)(nn.LayerNorm()(x))))


class Swin(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.LayerNorm()(nn.Conv(14, (2, 2), strides=(2, 2))(x))
        x = SwinBlock(shift=1)(SwinBlock(shift=0)(x))
        x = jnp.concatenate([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], axis=-1)
        x = nn.Dense(22, use_bias=False)(nn.LayerNorm()(x))
        return nn.Dense(5)(nn.LayerNorm()(x).mean((1, 2)))


@entry
def swin_merging() -> Parts:
    """Shifted windows by roll and reshape, a table of relative biases, patches merged by strided slices (Liu et al., 2021)."""
    return of_linen(Swin(), x_of(2, 8, 8, 3))


class MixerBlock(nn.Module):
    tokens: int
    channels: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = jnp.swapaxes(nn.LayerNorm()(x), 1, 2)
        y = nn.Dense(x.shape[1])(nn.gelu(nn.Dense(self.tokens)(y)))
        x = x + jnp.swapaxes(y, 1, 2)
        y = nn.Dense(self.channels)(nn.LayerNorm()(x))
        return x + nn.Dense(x.shape[-1])(nn.gelu(y))


class Mixer(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(20, (2, 2), strides=(2, 2))(x)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        for _ in range(2):
            x = MixerBlock(22, 34)(x)
        return nn.Dense(5)(jnp.mean(nn.LayerNorm()(x), axis=1))


@entry
def mlp_mixer() -> Parts:
    """Token mixing between two transposes, channel mixing after (Tolstikhin et al., 2021)."""
    return of_linen(Mixer(), x_of(2, 6, 6, 3))


class GatedMLP(nn.Module):
    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        x = nn.Embed(29, 14)(ids)
        for _ in range(2):
            u, v = jnp.split(nn.gelu(nn.Dense(2 * 18)(nn.LayerNorm()(x))), 2, axis=-1)
            v = nn.LayerNorm()(v)
            v = jnp.swapaxes(nn.Dense(x.shape[1])(jnp.swapaxes(v, 1, 2)), 1, 2)
            x = x + nn.Dense(14)(u * v)
        return nn.Dense(29)(x)


@entry
def gmlp() -> Parts:
    """Spatial gating (Liu et al., 2021): half of the channels, mixed over tokens, multiplies the other half."""
    return of_linen(GatedMLP(), ids_of(29, 2, 7))


class Perceiver(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Dense(18)(x)
        latents = self.param("latents", nn.initializers.normal(0.02), (6, 20))
        z = jnp.repeat(latents[None], x.shape[0], axis=0)
        for _ in range(2):
            y = nn.MultiHeadDotProductAttention(2, qkv_features=12, out_features=20, deterministic=True)(
                nn.LayerNorm()(z), nn.LayerNorm()(x)
            )
            z = Block()(z + y)
        query = self.param("query", nn.initializers.normal(0.02), (1, 1, 16))
        query = jnp.broadcast_to(query, (x.shape[0], 1, 16))
        y = nn.MultiHeadDotProductAttention(2, qkv_features=12, out_features=16, deterministic=True)(query, z)
        return nn.Dense(5)(y[:, 0])


@entry
def perceiver() -> Parts:
    """Learnt latents attend to the inputs and are read by a learnt query (Jaegle et al., 2021)."""
    return of_linen(Perceiver(), x_of(2, 7, 10))


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        embed = nn.Embed(29, 20)
        x = embed(ids) + nn.Embed(7, 20)(jnp.arange(ids.shape[1]))
        layers = nn.scan(nn.remat(ScanBlock), variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        x, _ = layers(name="layers")(x, None)
        return embed.attend(nn.LayerNorm()(x))


class ScanBlock(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        y = nn.LayerNorm(use_bias=False)(x)
        mask = nn.make_causal_mask(jnp.ones(x.shape[:2]))
        x = x + nn.MultiHeadDotProductAttention(2, qkv_features=12, use_bias=False, deterministic=True)(y, y, mask=mask)
        y = nn.LayerNorm(use_bias=False)(x)
        return x + nn.Dense(20, use_bias=False)(nn.gelu(nn.Dense(34, use_bias=False)(y))), None


@entry
def gpt_nn_scan() -> Parts:
    """`nn.scan` over a rematerialised block, the residual stream its carry, embeddings tied."""
    return of_linen(Scanned(), ids_of(29, 2, 7))


class Conformer(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Dense(14)(x)
        x = x + 0.5 * nn.Dense(14)(nn.swish(nn.Dense(22)(nn.LayerNorm()(x))))
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(2, qkv_features=12, deterministic=True)(y)
        y = nn.glu(nn.Conv(28, (1,))(nn.LayerNorm()(x)))
        y = nn.Conv(14, (3,), feature_group_count=14)(y)
        y = nn.swish(nn.BatchNorm(use_running_average=True)(y))
        x = x + nn.Conv(14, (1,))(y)
        return nn.Dense(9)(nn.LayerNorm()(x))


@entry
def conformer() -> Parts:
    """Attention and a gated depthwise convolution on one stream, the half step of Gulati et al. (2020)."""
    return of_linen(Conformer(), x_of(2, 8, 10))


MODELS = (
    vit_class_token, vit_reshaped_patches, swin_merging, mlp_mixer, gmlp, perceiver, gpt_nn_scan, conformer
)  # fmt: skip
