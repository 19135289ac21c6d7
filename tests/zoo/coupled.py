"""Networks whose layers share axes in ways of their own, as they stand in other people's repositories."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tests.zoo.base import Parts, entry, normal, of_linen, tokens


class Tagger(nn.Module):
    """A bidirectional LSTM over embedded tokens: `int [B, T] -> [B, T, 8]`."""

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        x = nn.Embed(32, 16)(ids)
        x = nn.Bidirectional(nn.RNN(nn.OptimizedLSTMCell(12)), nn.RNN(nn.OptimizedLSTMCell(12)))(x)
        return nn.Dense(8)(x)


@entry
def bilstm() -> Parts:
    """A bidirectional LSTM: one of two recurrences on the reversed sequence, their states concatenated."""
    return of_linen(Tagger(), tokens(np.random.default_rng(1), 32, 2, 6))


class TokenAttention(nn.Module):
    """Self-attention as in timm: one kernel, its output reshaped to `[3, heads, D]`."""

    heads: int
    depth: int

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array | float = 0.0) -> jax.Array:
        batch, time, width = x.shape
        qkv = nn.Dense(3 * self.heads * self.depth, name="qkv")(x).reshape(batch, time, 3, self.heads, self.depth)
        q, k, v = jnp.transpose(qkv, (2, 0, 3, 1, 4))
        weights = nn.softmax(q @ k.swapaxes(-2, -1) * self.depth**-0.5 + bias)
        y = (weights @ v).swapaxes(1, 2).reshape(batch, time, self.heads * self.depth)
        return nn.Dense(width, name="proj")(y)


class TokenViT(nn.Module):
    """Two pre-norm blocks on patches and a class token: `[B, 16, 16, 3] -> [B, 10]`."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(24, (4, 4), strides=(4, 4), padding="VALID", name="patch_embed")(x)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        token = self.param("cls_token", nn.initializers.normal(0.02), (1, 1, 24))
        x = jnp.concatenate([jnp.repeat(token, x.shape[0], axis=0), x], axis=1)
        x = x + self.param("pos_embed", nn.initializers.normal(0.02), (1, x.shape[1], 24))
        for _ in range(2):
            x = x + TokenAttention(3, 8)(nn.LayerNorm()(x))
            x = x + nn.Dense(24)(nn.gelu(nn.Dense(40)(nn.LayerNorm()(x))))
        return nn.Dense(10, name="head")(nn.LayerNorm()(x)[:, 0])


@entry
def vit_token() -> Parts:
    """A class token concatenated, a table of positions, pre-norm blocks with one fused kernel each."""
    return of_linen(TokenViT(), normal(np.random.default_rng(1), 2, 16, 16, 3))


class WindowAttention(nn.Module):
    """Attention inside windows of 2 x 2 places, shifted by roll (Liu et al., 2021): `[B, H, W, C]` to the same."""

    shift: int
    heads: int = 2

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        y = jnp.roll(nn.LayerNorm()(x), (-self.shift, -self.shift), axis=(1, 2))
        y = y.reshape(batch, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 4, channels)
        table = self.param("relative_position_bias_table", nn.initializers.normal(0.02), (9, self.heads))
        place = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
        offset = place[:, None] - place[None] + 1
        index = 3 * offset[..., 0] + offset[..., 1]
        bias = table[index.reshape(-1)].reshape(4, 4, self.heads).transpose(2, 0, 1)
        y = TokenAttention(self.heads, 6)(y, bias[None])
        y = y.reshape(batch, height // 2, width // 2, 2, 2, channels).transpose(0, 1, 3, 2, 4, 5)
        x = x + jnp.roll(y.reshape(x.shape), (self.shift, self.shift), axis=(1, 2))
        return x + nn.Dense(channels)(nn.gelu(nn.Dense(40)(nn.LayerNorm()(x))))


class Swin(nn.Module):
    """A plain and a shifted block: `[B, 8, 8, 3] -> [B, 10]`."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.LayerNorm()(nn.Conv(16, (2, 2), strides=(2, 2))(x))
        x = WindowAttention(shift=1)(WindowAttention(shift=0)(x))
        return nn.Dense(10)(nn.LayerNorm()(x).mean(axis=(1, 2)))


@entry
def swin() -> Parts:
    """Windows by reshape and transpose, shifted by roll; a table of relative biases, looked up by constants."""
    return of_linen(Swin(), normal(np.random.default_rng(1), 2, 8, 8, 3))


class Generator(nn.Module):
    """A DCGAN's generator (Radford et al., 2016): `[B, 16] -> [B, 8, 8, 3]`."""

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        def norm(x: jax.Array) -> jax.Array:
            return nn.relu(nn.BatchNorm(use_running_average=True)(x))

        x = norm(nn.Dense(2 * 2 * 24)(z).reshape(-1, 2, 2, 24))
        x = norm(nn.ConvTranspose(16, (4, 4), strides=(2, 2), use_bias=False)(x))
        return nn.tanh(nn.ConvTranspose(3, (4, 4), strides=(2, 2))(x))


@entry
def deconv() -> Parts:
    """A dense layer whose output becomes an image, then transposed convolutions with BatchNorm."""
    return of_linen(Generator(), normal(np.random.default_rng(1), 2, 16))


class ResNeXt(nn.Module):
    """Two bottlenecks with 4 groups each (Xie et al., 2017): `[B, 8, 8, 3] -> [B, 10]`."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def norm(x: jax.Array) -> jax.Array:
            return nn.BatchNorm(use_running_average=True)(x)

        x = nn.relu(norm(nn.Conv(24, (3, 3), use_bias=False)(x)))
        for _ in range(2):
            y = nn.relu(norm(nn.Conv(16, (1, 1), use_bias=False)(x)))
            y = nn.relu(norm(nn.Conv(16, (3, 3), feature_group_count=4, use_bias=False)(y)))
            x = nn.relu(x + norm(nn.Conv(24, (1, 1), use_bias=False)(y)))
        return nn.Dense(10)(x.mean(axis=(1, 2)))


@entry
def resnext() -> Parts:
    """Grouped convolutions: a kernel whose inputs are a quarter of the channels, between two dense ones."""
    return of_linen(ResNeXt(), normal(np.random.default_rng(1), 2, 8, 8, 3))


MODELS = (bilstm, vit_token, swin, deconv, resnext)
