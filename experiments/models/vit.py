"""Vision transformer (Dosovitskiy et al., 2021)."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class EncoderBlock(nn.Module):
    """Pre-norm self-attention and GELU MLP, both residual: `[B, T, I] -> [B, T, I]`."""

    heads: int
    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        attention = nn.MultiHeadDotProductAttention(self.heads, deterministic=True, name="attention")
        x = x + attention(nn.LayerNorm()(x))
        y = nn.gelu(nn.Dense(self.hidden, name="up")(nn.LayerNorm()(x)))
        return x + nn.Dense(x.shape[-1], name="down")(y)


class ViT(nn.Module):
    """`[B, H, W, C] -> [B, classes]`: convolved patches, class token, positions. Default: ViT-Ti/16."""

    patch: int = 16
    width: int = 192
    layers: int = 12
    heads: int = 3
    hidden: int = 768
    classes: int = 1000

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        patch = (self.patch, self.patch)
        x = nn.Conv(self.width, patch, strides=patch, padding="VALID", name="patches")(x)
        x = x.reshape(x.shape[0], -1, self.width)
        token = self.param("token", nn.initializers.zeros, (1, 1, self.width))
        x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, self.width)), x], axis=1)
        x = x + self.param("positions", nn.initializers.normal(0.02), (1, x.shape[1], self.width))
        for layer in range(self.layers):
            x = EncoderBlock(self.heads, self.hidden, name=f"block_{layer}")(x)
        return nn.Dense(self.classes, name="head")(nn.LayerNorm()(x[:, 0]))
