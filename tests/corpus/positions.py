"""Ways in which a transformer knows positions."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.corpus.base import Parts, PyTree, entry, weight
from tests.corpus.blocks import DEPTH, HEADS, WIDTH, causal, joined, language_model, mixed, projected, qkv, rms_norm


def sinusoids(length: int) -> jax.Array:
    """`[T, I]` of Vaswani et al. (2017), sines and cosines interleaved by `.at`."""
    angle = jnp.arange(length)[:, None] / 10_000 ** (jnp.arange(0, WIDTH, 2) / WIDTH)
    table = jnp.zeros((length, WIDTH)).at[:, 0::2].set(jnp.sin(angle))
    return table.at[:, 1::2].set(jnp.cos(angle))


@entry
def gpt_sinusoidal() -> Parts:
    """Sinusoidal positions, a table without parameters, added to the residual stream."""
    return language_model(lambda p, x: joined(p, mixed(*projected(p, x))), positions=sinusoids)


def angles(length: int) -> jax.Array:
    """`[T, D / 2]`."""
    return jnp.arange(length)[:, None] * 10_000.0 ** (-jnp.arange(0, DEPTH, 2) / DEPTH)


def rotate_half(x: jax.Array) -> jax.Array:
    """Pair `(i, i + D / 2)`, as in Hugging Face's Llama: the table twice, beside itself."""
    angle = jnp.concatenate([angles(x.shape[1])] * 2, axis=-1)[None, :, None, :]
    left, right = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return x * jnp.cos(angle) + jnp.concatenate([-right, left], axis=-1) * jnp.sin(angle)


def rotate_pairs(x: jax.Array) -> jax.Array:
    """Pair `(2 i, 2 i + 1)`, as in GPT-J: strided slices, stacked and flattened."""
    angle = angles(x.shape[1])[None, :, None, :]
    even, odd = x[..., ::2], x[..., 1::2]
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    return jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1).reshape(x.shape)


def rotate_complex(x: jax.Array) -> jax.Array:
    """Pair `(2 i, 2 i + 1)` as complex numbers, as in Meta's Llama."""
    pairs = x.reshape(*x.shape[:-1], -1, 2)
    turned = lax.complex(pairs[..., 0], pairs[..., 1]) * jnp.exp(1j * angles(x.shape[1]))[None, :, None, :]
    return jnp.stack([turned.real, turned.imag], axis=-1).reshape(x.shape)


def _rotary(rotate: Callable[[jax.Array], jax.Array]) -> Parts:
    def attend(p: PyTree, x: jax.Array) -> jax.Array:
        q, k, v = projected(p, x)
        return joined(p, mixed(rotate(q), rotate(k), v))

    return language_model(attend)


@entry
def rotary_half() -> Parts:
    """Rotary positions on halves of a head."""
    return _rotary(rotate_half)


@entry
def rotary_interleaved() -> Parts:
    """Rotary positions on interleaved pairs."""
    return _rotary(rotate_pairs)


@entry
def rotary_complex() -> Parts:
    """Rotary positions by a complex product."""
    return _rotary(rotate_complex)


#: Where the other entry of each pair is.
SWAP = np.arange(DEPTH) ^ 1


@entry
def rotary_by_places() -> Parts:
    """Rotary positions on interleaved pairs: the other entry of a pair is read by a constant list of places."""

    def rotate(x: jax.Array) -> jax.Array:
        angle = jnp.repeat(angles(x.shape[1]), 2, axis=-1)[None, :, None, :]
        return x * jnp.cos(angle) + x[..., SWAP] * jnp.where(SWAP % 2, -1.0, 1.0) * jnp.sin(angle)

    return _rotary(rotate)


@entry
def rotary_partial() -> Parts:
    """Rotary positions on the first 4 of 6 entries of a head, the rest passes (as in GPT-NeoX)."""
    return _rotary(lambda x: jnp.concatenate([_turn4(x[..., :4]), x[..., 4:]], axis=-1))


def _turn4(x: jax.Array) -> jax.Array:
    angle = (jnp.arange(x.shape[1])[:, None] * jnp.asarray([1.0, 0.01]))[None, :, None, :]
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * jnp.cos(angle) - b * jnp.sin(angle), b * jnp.cos(angle) + a * jnp.sin(angle)], axis=-1)


@entry
def qk_norm() -> Parts:
    """Queries and keys normalised by head (RMSNorm over D), with gains, before rotary positions."""

    def attention(rng: np.random.Generator) -> PyTree:
        return qkv(rng) | {"q_g": 1 + weight(rng, DEPTH), "k_g": 1 + weight(rng, DEPTH)}

    def attend(p: PyTree, x: jax.Array) -> jax.Array:
        q, k, v = projected(p, x)
        q, k = rotate_half(rms_norm(q, p["q_g"])), rotate_half(rms_norm(k, p["k_g"]))
        return joined(p, mixed(q, k, v))

    return language_model(attend, attention)


@entry
def alibi() -> Parts:
    """Linear biases (Press et al., 2022): a slope for each head, a constant."""

    def attend(p: PyTree, x: jax.Array) -> jax.Array:
        slopes = 2.0 ** (-8 * jnp.arange(1, HEADS + 1) / HEADS)
        distance = jnp.arange(x.shape[1])[None, :] - jnp.arange(x.shape[1])[:, None]
        return joined(p, mixed(*projected(p, x), bias=slopes[:, None, None] * distance))

    return language_model(attend)


@entry
def t5_bias() -> Parts:
    """T5: a learnt bias by bucket of the distance and by head, no scaling of scores."""

    def attention(rng: np.random.Generator) -> PyTree:
        return qkv(rng) | {"relative": weight(rng, 8, HEADS)}

    def attend(p: PyTree, x: jax.Array) -> jax.Array:
        distance = jnp.arange(x.shape[1])[:, None] - jnp.arange(x.shape[1])[None, :]
        bias = p["relative"][jnp.clip(distance, 0, 7)].transpose(2, 0, 1)
        q, k, v = projected(p, x)
        scores = jnp.einsum("bthd,bshd->bhts", q, k) + bias[None]
        return joined(p, jnp.einsum("bhts,bshd->bthd", causal(scores), v))

    return language_model(attend, attention)


MODELS = (gpt_sinusoidal, rotary_half, rotary_interleaved, rotary_complex, rotary_by_places,
    rotary_partial, qk_norm, alibi, t5_bias)
