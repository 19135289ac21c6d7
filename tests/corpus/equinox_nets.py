"""Networks in Equinox: written for one example, channels first, kernels ``[O, I]``."""

import equinox as eqx
import jax
import jax.numpy as jnp

from tests.corpus.base import Parts, entry, ids_of, of_equinox, x_of


class ResidualMLP(eqx.Module):
    stem: eqx.nn.Linear
    blocks: list
    norm: eqx.nn.LayerNorm
    head: eqx.nn.Linear

    def __init__(self, key: jax.Array):
        keys = jax.random.split(key, 6)
        self.stem = eqx.nn.Linear(10, 14, key=keys[0])
        self.blocks = [
            (eqx.nn.Linear(14, 22 + 4 * i, key=keys[1 + i]), eqx.nn.Linear(22 + 4 * i, 14, key=keys[3 + i]))
            for i in range(2)
        ]
        self.norm = eqx.nn.LayerNorm(14)
        self.head = eqx.nn.Linear(14, 5, key=keys[5])

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.stem(x)
        for up, down in self.blocks:
            x = x + down(jax.nn.gelu(up(x)))
        return self.head(self.norm(x))


@entry
def residual_mlp() -> Parts:
    """Equinox: a residual stream with a LayerNorm at its end, under `vmap`."""
    return of_equinox(ResidualMLP, x_of(3, 10))


class ConvNet(eqx.Module):
    layers: list
    head: list

    def __init__(self, key: jax.Array):
        keys = jax.random.split(key, 4)
        self.layers = [
            eqx.nn.Conv2d(3, 10, 3, padding=1, key=keys[0]), jax.nn.relu, eqx.nn.MaxPool2d(2, 2),
            eqx.nn.Conv2d(10, 14, 3, key=keys[1]), eqx.nn.GroupNorm(2, 14), jax.nn.relu, jnp.ravel,
        ]  # fmt: skip
        self.head = [eqx.nn.Linear(14 * 4, 22, key=keys[2]), eqx.nn.PReLU(), eqx.nn.Linear(22, 5, key=keys[3])]

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in (*self.layers, *self.head):
            x = layer(x)
        return x


@entry
def equinox_convnet() -> Parts:
    """Channels first: convolutions, pooling, GroupNorm, `jnp.ravel`, a dense head with PReLU."""
    return of_equinox(ConvNet, x_of(2, 3, 8, 8))


class Transformer(eqx.Module):
    embed: eqx.nn.Embedding
    rotary: eqx.nn.RotaryPositionalEmbedding
    attention: list
    norms: list
    up: list
    down: list
    head: eqx.nn.Linear

    def __init__(self, key: jax.Array):
        keys = iter(jax.random.split(key, 8))
        self.embed = eqx.nn.Embedding(29, 20, key=next(keys))
        self.rotary = eqx.nn.RotaryPositionalEmbedding(6)
        self.attention = [
            eqx.nn.MultiheadAttention(3, 20, qk_size=6, vo_size=5, use_output_bias=True, key=next(keys)) for _ in range(2)
        ]
        self.norms = [eqx.nn.LayerNorm(20) for _ in range(4)]
        self.up = [eqx.nn.Linear(20, 34, key=next(keys)) for _ in range(2)]
        self.down = [eqx.nn.Linear(34, 20, key=next(keys)) for _ in range(2)]
        self.head = eqx.nn.Linear(20, 29, key=next(keys))

    def __call__(self, ids: jax.Array) -> jax.Array:
        x = jax.vmap(self.embed)(ids)
        mask = jnp.tril(jnp.ones((ids.shape[0], ids.shape[0]), bool))

        def turn(query: jax.Array, key: jax.Array, value: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            over_heads = jax.vmap(self.rotary, in_axes=1, out_axes=1)
            return over_heads(query), over_heads(key), value

        for i, attention in enumerate(self.attention):
            y = jax.vmap(self.norms[2 * i])(x)
            x = x + attention(y, y, y, mask=mask, process_heads=turn)
            y = jax.vmap(self.norms[2 * i + 1])(x)
            x = x + jax.vmap(lambda y, i=i: self.down[i](jax.nn.gelu(self.up[i](y))))(y)
        return jax.vmap(self.head)(x)


@entry
def equinox_transformer() -> Parts:
    """`eqx.nn.MultiheadAttention` with other widths for queries and values, rotary positions, `vmap` over tokens."""
    return of_equinox(Transformer, ids_of(29, 2, 7))


class Recurrent(eqx.Module):
    cell: eqx.nn.GRUCell
    head: eqx.nn.Linear

    def __init__(self, key: jax.Array):
        first, second = jax.random.split(key)
        self.cell, self.head = eqx.nn.GRUCell(10, 14, key=first), eqx.nn.Linear(14, 5, key=second)

    def __call__(self, x: jax.Array) -> jax.Array:
        state, _ = jax.lax.scan(lambda state, x: (self.cell(x, state), None), jnp.zeros(self.cell.hidden_size), x)
        return self.head(state)


@entry
def equinox_gru() -> Parts:
    """`eqx.nn.GRUCell` scanned over time: three gates in one kernel, split."""
    return of_equinox(Recurrent, x_of(2, 6, 10))


MODELS = (residual_mlp, equinox_convnet, equinox_transformer, equinox_gru)
