"""Networks whose outputs are images or signals."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.corpus.base import Parts, PyTree, entry, of_linen, weight, x_of


class UNet(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def double(x: jax.Array, channels: int) -> jax.Array:
            for _ in range(2):
                x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(channels, (3, 3), use_bias=False)(x)))
            return x

        skips = []
        for channels in (6, 10):
            x = double(x, channels)
            skips.append(x)
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = double(x, 14)
        for channels in (10, 6):
            x = nn.ConvTranspose(channels + 1, (2, 2), strides=(2, 2))(x)
            x = double(jnp.concatenate([skips.pop(), x], axis=-1), channels)
        return nn.Conv(3, (1, 1))(x)


@entry
def unet_bn() -> Parts:
    """Two levels of a U-Net (Ronneberger et al., 2015): skips concatenated, transposed convolutions."""
    return of_linen(UNet(), x_of(2, 8, 8, 3))


class Generator(nn.Module):
    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        x = nn.Dense(2 * 2 * 14)(z).reshape(-1, 2, 2, 14)
        x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
        x = nn.ConvTranspose(10, (4, 4), strides=(2, 2), use_bias=False)(x)
        x = nn.leaky_relu(nn.BatchNorm(use_running_average=True)(x), 0.2)
        return nn.tanh(nn.ConvTranspose(3, (4, 4), strides=(2, 2))(x))


@entry
def dcgan() -> Parts:
    """A dense layer reshaped to an image, then transposed convolutions (Radford et al., 2016)."""
    return of_linen(Generator(), x_of(2, 11))


class Resized(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        skip = x = nn.relu(nn.Conv(10, (3, 3), strides=(2, 2))(x))
        x = nn.relu(nn.Conv(14, (3, 3), strides=(2, 2))(x))
        batch, height, width, channels = x.shape
        x = jax.image.resize(x, (batch, 2 * height, 2 * width, channels), method="nearest")
        x = nn.relu(nn.Conv(10, (3, 3))(x)) + skip
        batch, height, width, channels = x.shape
        x = jax.image.resize(x, (batch, 2 * height, 2 * width, channels), method="bilinear")
        return nn.Conv(2, (3, 3))(x)


@entry
def resize_decoder() -> Parts:
    """`jax.image.resize` (nearest and bilinear) between convolutions, a lateral sum as in a feature pyramid."""
    return of_linen(Resized(), x_of(2, 8, 8, 3))


class PixelShuffle(nn.Module):
    scale: int = 2

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def shuffle(x: jax.Array, scale: int) -> jax.Array:
            batch, height, width, channels = x.shape
            x = x.reshape(batch, height, width, scale, scale, channels // scale**2)
            x = x.transpose(0, 1, 3, 2, 4, 5)
            return x.reshape(batch, height * scale, width * scale, channels // scale**2)

        x = nn.relu(nn.Conv(10, (3, 3))(x))
        x = x + nn.Conv(10, (3, 3))(nn.relu(nn.Conv(14, (3, 3))(x)))
        x = nn.relu(shuffle(nn.Conv(6 * self.scale**2, (3, 3))(x), self.scale))
        return shuffle(nn.Conv(3 * self.scale**2, (3, 3))(x), self.scale)


@entry
def pixel_shuffle() -> Parts:
    """Sub-pixel convolution (Shi et al., 2016): channels to places by reshape and transpose, inside and at the end."""
    return of_linen(PixelShuffle(), x_of(2, 4, 4, 3))


class SpaceToDepth(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(6, (3, 3))(x))
        batch, height, width, channels = x.shape
        x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).swapaxes(2, 3)
        x = x.reshape(batch, height // 2, width // 2, 4 * channels)
        x = nn.Dense(14, use_bias=False)(nn.LayerNorm()(x))  # as patches are merged in Swin
        return nn.Dense(5)(nn.gelu(x))


@entry
def patch_merging() -> Parts:
    """Places to channels by reshape, a LayerNorm over them, a dense layer."""
    return of_linen(SpaceToDepth(), x_of(2, 4, 4, 3))


class Film(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array) -> jax.Array:
        z = nn.silu(nn.Dense(18)(condition))
        x = nn.Conv(10, (3, 3))(x)
        for channels in (10, 14):
            y = nn.Conv(channels, (3, 3))(x)
            y = nn.BatchNorm(use_running_average=True, use_scale=False, use_bias=False)(y)
            scale, shift = jnp.split(nn.Dense(2 * channels)(z)[:, None, None, :], 2, axis=-1)
            y = nn.relu(y * (1 + scale) + shift)
            x = x + nn.Conv(10, (1, 1))(y)
        return nn.Conv(3, (3, 3))(x)


@entry
def film() -> Parts:
    """Feature-wise modulation (Perez et al., 2018): scales and shifts of a second network, split."""
    return of_linen(Film(), x_of(2, 6, 6, 3), x_of(2, 8, seed=2))


class Denoiser(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, time: jax.Array) -> jax.Array:
        frequency = jnp.exp(-jnp.log(10_000.0) * jnp.arange(6) / 6)
        angle = time[:, None] * frequency[None]
        embedding = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
        embedding = nn.Dense(22)(nn.silu(nn.Dense(18)(embedding)))
        x = nn.Conv(12, (3, 3))(x)
        h = nn.Conv(16, (3, 3))(nn.silu(nn.GroupNorm(num_groups=4)(x)))
        h = h + nn.Dense(16)(nn.silu(embedding))[:, None, None, :]
        h = nn.Conv(12, (3, 3))(nn.silu(nn.GroupNorm(num_groups=4)(h)))
        x = x + h
        batch, height, width, channels = x.shape
        y = nn.GroupNorm(num_groups=4)(x).reshape(batch, height * width, channels)
        q, k, v = (nn.Dense(10)(y) for _ in range(3))
        y = nn.softmax(q @ k.swapaxes(1, 2) * 10**-0.5) @ v
        return nn.Conv(3, (3, 3))(x + nn.Dense(channels)(y).reshape(x.shape))


@entry
def ddpm() -> Parts:
    """A denoiser (Ho et al., 2020): time embedded by sines, GroupNorm, attention over flattened places."""
    return of_linen(Denoiser(), x_of(2, 4, 4, 3), jnp.asarray([3.0, 40.0]))


@entry
def temporal() -> Parts:
    """Plain lax, channels first `[B, C, T]`: padded by hand, cropped by slices, strided, then a global maximum."""
    rng = np.random.default_rng(0)
    params = {
        "convs": [
            {"w": weight(rng, o, i, 3, fan_in=3 * i), "b": weight(rng, o)} for i, o in ((6, 10), (10, 14), (14, 18))
        ],
        "short": weight(rng, 18, 6, 1, fan_in=6),
        "head": weight(rng, 18, 5),
    }

    def conv(x: jax.Array, w: jax.Array, stride: int = 1, dilation: int = 1) -> jax.Array:
        return lax.conv_general_dilated(
            x, w, (stride,), [(0, 0)], rhs_dilation=(dilation,), dimension_numbers=("NCH", "OIH", "NCH")
        )

    def apply(params: PyTree, x: jax.Array) -> jax.Array:
        y = x
        for i, layer in enumerate(params["convs"]):
            y = jnp.pad(y, ((0, 0), (0, 0), (2 * 2**i + 1, 1)))
            y = conv(y, layer["w"], dilation=2**i) + layer["b"][:, None]
            y = jax.nn.relu(y[:, :, : x.shape[2]])  # chomp
        y = y + conv(x, params["short"])
        return y.max(axis=2) @ params["head"]

    return apply, params, (x_of(2, 6, 11),)


MODELS = (unet_bn, dcgan, resize_decoder, pixel_shuffle, patch_merging, film, ddpm, temporal)
