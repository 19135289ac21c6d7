"""Networks in Haiku."""

import haiku as hk
import jax
import jax.numpy as jnp

from tests.corpus.base import Parts, entry, ids_of, of_haiku, x_of


@entry
def glu_split() -> Parts:
    """Haiku: one kernel twice as wide, its output split in two halves that are multiplied."""

    def call(x: jax.Array) -> jax.Array:
        for width in (14, 18):
            value, gate = jnp.split(hk.Linear(2 * width)(x), 2, axis=-1)
            x = value * jax.nn.sigmoid(gate)
        return hk.Linear(5)(jax.nn.glu(hk.Linear(24)(x), axis=-1))

    return of_haiku(call, x_of(3, 10))


@entry
def autoencoder() -> Parts:
    """Haiku MLPs down to a code and back."""

    def call(x: jax.Array) -> jax.Array:
        code = hk.nets.MLP([22, 14, 6], name="encoder")(x)
        return hk.nets.MLP([14, 26, 11], activation=jnp.tanh, name="decoder")(code)

    return of_haiku(call, x_of(3, 11))


class Block(hk.Module):
    """Post-activation residual block: two convolutions with BatchNorm, a projection where the shape changes."""

    def __init__(self, channels: int, stride: int):
        super().__init__()
        self.channels, self.stride = channels, stride

    def __call__(self, x: jax.Array) -> jax.Array:
        def norm(x: jax.Array) -> jax.Array:
            return hk.BatchNorm(create_scale=True, create_offset=True, decay_rate=0.9)(x, is_training=hk.running_init())

        shortcut = x
        if self.stride != 1 or x.shape[-1] != self.channels:
            shortcut = norm(hk.Conv2D(self.channels, 1, stride=self.stride, with_bias=False)(x))
        y = jax.nn.relu(norm(hk.Conv2D(self.channels, 3, stride=self.stride, with_bias=False)(x)))
        return jax.nn.relu(norm(hk.Conv2D(self.channels, 3, with_bias=False)(y)) + shortcut)


@entry
def haiku_resnet() -> Parts:
    """Residual blocks with BatchNorm whose averages are state, read in evaluation mode."""

    def call(x: jax.Array) -> jax.Array:
        x = jax.nn.relu(hk.Conv2D(10, 3)(x))
        for channels, stride in ((10, 1), (14, 2)):
            x = Block(channels, stride)(x)
        return hk.Linear(5)(x.mean(axis=(1, 2)))

    return of_haiku(call, x_of(2, 8, 8, 3))


@entry
def haiku_transformer() -> Parts:
    """Haiku's example of a language model: `hk.MultiHeadAttention`, LayerNorm, learnt positions."""

    def call(ids: jax.Array) -> jax.Array:
        length = ids.shape[1]
        x = hk.Embed(29, 20)(ids)
        x = x + hk.get_parameter("positions", [9, 20], init=hk.initializers.TruncatedNormal())[:length]
        mask = jnp.tril(jnp.ones((1, 1, length, length)))
        for _ in range(2):
            y = hk.LayerNorm(-1, True, True)(x)
            attention = hk.MultiHeadAttention(3, 6, model_size=20, w_init=hk.initializers.VarianceScaling())
            x = x + attention(y, y, y, mask=mask)
            y = hk.Linear(20)(jax.nn.gelu(hk.Linear(34)(hk.LayerNorm(-1, True, True)(x))))
            x = x + y
        return hk.Linear(29)(hk.LayerNorm(-1, True, True)(x))

    return of_haiku(call, ids_of(29, 2, 7))


@entry
def haiku_lstm() -> Parts:
    """`hk.LSTM` by `hk.dynamic_unroll` over time, a head on each step (`hk.BatchApply`)."""

    def call(x: jax.Array) -> jax.Array:
        core = hk.LSTM(14)
        outputs, _ = hk.dynamic_unroll(core, x.swapaxes(0, 1), core.initial_state(x.shape[0]))
        return hk.BatchApply(hk.Linear(5))(outputs).swapaxes(0, 1)

    return of_haiku(call, x_of(2, 6, 10))


MODELS = (glu_split, autoencoder, haiku_resnet, haiku_transformer, haiku_lstm)
