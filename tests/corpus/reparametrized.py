"""Networks whose weights are computed before use, tied, or read in parts; and branches as backbones have them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.corpus.base import Parts, PyTree, entry, of_linen, weight, x_of

LAYOUT = ("NHWC", "HWIO", "NHWC")


class Spectral(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for width in (22, 18):
            x = nn.leaky_relu(nn.SpectralNorm(nn.Dense(width))(x, update_stats=False))
        return nn.SpectralNorm(nn.Dense(5))(x, update_stats=False)


@entry
def spectral_norm() -> Parts:
    """`nn.SpectralNorm`: kernels divided by their largest singular value, by stored vectors."""
    return of_linen(Spectral(), x_of(3, 10))


@entry
def weight_standardization() -> Parts:
    """Kernels standardised over their inputs (Qiao et al., 2019), GroupNorm after, a residual."""
    rng = np.random.default_rng(0)
    params = {
        "kernels": [weight(rng, 3, 3, i, o, fan_in=9 * i) for i, o in ((3, 12), (12, 14), (14, 12))], "g": 1 + weight(rng, 12),
        "b": weight(rng, 12), "out": weight(rng, 12, 5),
    }  # fmt: skip

    def conv(x: jax.Array, w: jax.Array) -> jax.Array:
        w = (w - w.mean(axis=(0, 1, 2))) / (w.std(axis=(0, 1, 2)) + 1e-5) / np.float32(w[..., 0].size) ** 0.5
        return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=LAYOUT)

    def norm(x: jax.Array, groups: int = 3) -> jax.Array:
        parts = x.reshape(*x.shape[:3], groups, -1)
        mean, var = (f(parts, axis=(1, 2, 4), keepdims=True) for f in (jnp.mean, jnp.var))
        return ((parts - mean) * lax.rsqrt(var + 1e-5)).reshape(x.shape)

    def apply(params: PyTree, x: jax.Array) -> jax.Array:
        first, up, down = params["kernels"]
        x = jax.nn.relu(norm(conv(x, first)) * params["g"] + params["b"])
        return (x + conv(jax.nn.relu(conv(x, up)), down)).mean(axis=(1, 2)) @ params["out"]

    return apply, params, (x_of(2, 6, 6, 3),)


@entry
def tied_autoencoder() -> Parts:
    """Encoder and decoder of the same kernels, transposed; a bias for each direction."""
    rng = np.random.default_rng(0)
    params = {
        "kernels": [weight(rng, 10, 22), weight(rng, 22, 14)], "up": [weight(rng, 22), weight(rng, 14)],
        "down": [weight(rng, 10), weight(rng, 22)],
    }  # fmt: skip

    def apply(params: PyTree, x: jax.Array) -> jax.Array:
        for kernel, bias in zip(params["kernels"], params["up"]):
            x = jax.nn.sigmoid(x @ kernel + bias)
        for kernel, bias in list(zip(params["kernels"], params["down"]))[::-1]:
            x = jnp.tanh(x @ kernel.T + bias)
        return x

    return apply, params, (x_of(3, 10),)


@entry
def albert() -> Parts:
    """One block for all layers, a factored embedding (Lan et al., 2020), a vocabulary tied through the factor."""
    rng = np.random.default_rng(0)
    params = {
        "table": weight(rng, 29, 9, fan_in=1), "project": weight(rng, 9, 14), "up": weight(rng, 14, 22),
        "down": weight(rng, 22, 14), "g": 1 + weight(rng, 14), "back": weight(rng, 14, 9),
    }  # fmt: skip

    def block(x: jax.Array, params: PyTree) -> jax.Array:
        y = x * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6) * params["g"]
        return x + jax.nn.gelu(y @ params["up"]) @ params["down"]

    def apply(params: PyTree, ids: jax.Array) -> jax.Array:
        x = params["table"][ids] @ params["project"]
        for _ in range(3):
            x = block(x, params)
        return (x.mean(axis=1) @ params["back"]) @ params["table"].T

    return apply, params, (jnp.asarray(np.random.default_rng(1).integers(29, size=(2, 6)), jnp.int32),)


class Scales(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(12, (3, 3))(x))
        parts, before = jnp.split(nn.Conv(12, (1, 1))(x), 4, axis=-1), None
        done = [parts[0]]
        for part in parts[1:]:
            before = nn.relu(nn.Conv(3, (3, 3))(part if before is None else part + before))
            done.append(before)
        x = nn.relu(x + nn.Conv(12, (1, 1))(jnp.concatenate(done, axis=-1)))
        cheap = nn.Conv(10, (1, 1))(x)  # GhostNet: half of the channels are filtered ones of the others
        x = jnp.concatenate([cheap, nn.relu(nn.Conv(10, (3, 3), feature_group_count=10)(cheap))], axis=-1)
        y, x = jnp.split(nn.relu(nn.Conv(16, (1, 1))(x)), [6], axis=-1)  # CSP: a part of the channels goes past
        x = jnp.concatenate([y, nn.relu(nn.Conv(10, (3, 3))(x))], axis=-1)
        at = jnp.broadcast_to(jnp.linspace(-1, 1, x.shape[1])[None, :, None, None], (*x.shape[:3], 1))  # CoordConv
        return nn.Dense(5)(nn.relu(nn.Conv(14, (1, 1))(jnp.concatenate([x, at], axis=-1))).mean((1, 2)))


@entry
def hierarchical_scales() -> Parts:
    """Channels in four, each filtered with the one before (Res2Net), GhostNet's and CSPNet's parts, a coordinate channel."""
    return of_linen(Scales(), x_of(2, 6, 6, 3))


class Dropped(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for width in (22, 18):
            x = nn.Dropout(0.3, deterministic=False)(nn.relu(nn.Dense(width)(x)))
        y = nn.Dropout(0.2, broadcast_dims=(0,), deterministic=False)(nn.gelu(nn.Dense(18)(x)))
        return nn.Dense(5)(x + y)


@entry
def dropout_on() -> Parts:
    """Dropout as in training: numbers drawn for each unit, by a key that is an input."""
    module, x = Dropped(), x_of(3, 10)
    _, variables, _ = of_linen(_Off(), x)
    return (lambda v, x, key: module.apply(v, x, rngs={"dropout": key})), variables, (x, jax.random.key(3))


class _Off(nn.Module):
    """The variables of ``Dropped``, which needs a key when it is built."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for width in (22, 18, 18, 5):
            x = nn.Dense(width)(x)
        return x


MODELS = (
    spectral_norm, weight_standardization, tied_autoencoder, albert, hierarchical_scales, dropout_on
)  # fmt: skip
