"""Networks in Flax Linen."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.models import gpt as gpt_models
from experiments.models import lenet
from experiments.models import mlp as mlp_models
from experiments.models import resnet as resnet_models
from experiments.models import vit as vit_models
from tests.zoo.base import Parts, draw, entry, normal, of_linen, tokens


def images(size: int, channels: int = 3, batch: int = 2) -> jax.Array:
    """`[batch, size, size, channels]`."""
    return normal(np.random.default_rng(1), batch, size, size, channels)


def text(vocabulary: int, length: int, seed: int = 1) -> jax.Array:
    """`int [2, length]`."""
    return tokens(np.random.default_rng(seed), vocabulary, 2, length)


# Image networks


@entry
def mlp() -> Parts:
    """Dense layers: the plainest site, a two-dimensional kernel on the right."""
    return of_linen(mlp_models.MLP((64, 32, 16)), normal(np.random.default_rng(1), 4, 32))


@entry
def lenet300() -> Parts:
    """LeNet-300-100 on 8 x 8 images: axes that groups of 16 do not divide."""
    return of_linen(mlp_models.lenet300(), images(8, channels=1, batch=4))


@entry
def lenet5() -> Parts:
    """LeNet-5-Caffe, 32 hidden units: unpadded convolutions, max-pooling, a flatten before dense layers."""
    return of_linen(lenet.LeNet5(hidden=32), images(28, channels=1))


@entry
def resnet() -> Parts:
    """BatchNorm with stored statistics, strided 1 x 1 shortcuts, additive joins."""
    return of_linen(resnet_models.ResNet(channels=(16, 32), blocks=1), images(16))


@entry
def resnet_train() -> Parts:
    """BatchNorm in training mode: the batch's statistics, the updated `batch_stats` an output."""
    module = resnet_models.ResNet(channels=(16, 32), blocks=1)
    return of_linen(module, images(16), train=True, mutable=["batch_stats"])


class DenseNet(nn.Module):
    """Two dense blocks of growth 16 with a transition (Huang et al., 2017)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def step(x: jax.Array, channels: int, size: int) -> jax.Array:
            x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
            return nn.Conv(channels, (size, size), use_bias=False)(x)

        x = nn.Conv(16, (3, 3), use_bias=False)(x)
        for block in range(2):
            if block:
                x = nn.avg_pool(step(x, 16, 1), (2, 2), strides=(2, 2))
            for _ in range(2):
                x = jnp.concatenate([x, step(x, 16, 3)], axis=-1)
        return nn.Dense(10)(x.mean(axis=(1, 2)))


@entry
def densenet() -> Parts:
    """Concatenated features: one channel axis is made of several sites' outputs."""
    return of_linen(DenseNet(), images(8))


class MobileNet(nn.Module):
    """Depthwise separable convolutions (Howard et al., 2017)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def norm(x: jax.Array) -> jax.Array:
            return nn.relu6(nn.BatchNorm(use_running_average=True)(x))

        x = norm(nn.Conv(16, (3, 3), strides=(2, 2), use_bias=False)(x))
        for channels, stride in ((32, 1), (64, 2), (64, 1)):
            inputs = x.shape[-1]
            depthwise = nn.Conv(inputs, (3, 3), (stride, stride), feature_group_count=inputs, use_bias=False)
            x = norm(nn.Conv(channels, (1, 1), use_bias=False)(norm(depthwise(x))))
        return nn.Dense(10)(x.mean(axis=(1, 2)))


@entry
def mobilenet() -> Parts:
    """Depthwise convolutions (`feature_group_count`), whose kernels have one input channel."""
    return of_linen(MobileNet(), images(16))


class UNet(nn.Module):
    """One level of a U-Net (Ronneberger et al., 2015)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        skip = nn.relu(nn.Conv(16, (3, 3))(x))
        x = nn.max_pool(skip, (2, 2), strides=(2, 2))
        x = nn.relu(nn.GroupNorm(num_groups=4)(nn.Conv(32, (3, 3))(x)))
        x = nn.ConvTranspose(16, (2, 2), strides=(2, 2))(x)
        x = nn.relu(nn.Conv(16, (3, 3))(jnp.concatenate([x, skip], axis=-1)))
        return nn.Conv(8, (1, 1))(x)


@entry
def unet() -> Parts:
    """ConvTranspose, GroupNorm and a skip connection that is concatenated."""
    return of_linen(UNet(), images(8))


class Mixer(nn.Module):
    """MLP-Mixer (Tolstikhin et al., 2021)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def perceptron(x: jax.Array) -> jax.Array:
            return nn.Dense(x.shape[-1])(nn.gelu(nn.Dense(64)(x)))

        x = nn.Conv(32, (4, 4), strides=(4, 4), padding="VALID")(x)
        x = x.reshape(x.shape[0], -1, 32)
        for _ in range(2):
            y = nn.LayerNorm()(x).swapaxes(1, 2)
            x = x + perceptron(y).swapaxes(1, 2)
            x = x + perceptron(nn.LayerNorm()(x))
        return nn.Dense(10)(nn.LayerNorm()(x).mean(axis=1))


@entry
def mixer() -> Parts:
    """Dense layers over a swapped axis: the contracted axis is the tokens'."""
    return of_linen(Mixer(), images(16))


@entry
def vit() -> Parts:
    """Patches by a strided convolution, kernels laid out by head `[I, H, D]`, a class token, positions."""
    return of_linen(vit_models.ViT(patch=4, width=32, layers=2, heads=2, hidden=64, classes=16), images(16))


# Sequence networks

GPT_SIZES = {"vocabulary": 64, "width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "hidden": 64}


@entry
def gpt() -> Parts:
    """Grouped-query attention, rotary positions, gated MLP, RMSNorm and tied embeddings, blocks unrolled."""
    return of_linen(gpt_models.GPT(**GPT_SIZES), text(64, 8))


@entry
def gpt_scan() -> Parts:
    """The same as one rematerialised block scanned over stacked weights (`nn.scan`, `nn.remat`)."""
    return of_linen(gpt_models.GPT(**GPT_SIZES, scan=True), text(64, 8))


class EncoderDecoder(nn.Module):
    """One encoder and one decoder block (Vaswani et al., 2017), pre-norm, with learnt positions."""

    @nn.compact
    def __call__(self, source: jax.Array, target: jax.Array) -> jax.Array:
        embed = nn.Embed(64, 32)
        positions = self.param("positions", nn.initializers.normal(0.02), (16, 32))

        def attention(q: jax.Array, kv: jax.Array, mask: jax.Array | None = None) -> jax.Array:
            return nn.MultiHeadDotProductAttention(num_heads=2, deterministic=True)(q, kv, mask=mask)

        def perceptron(x: jax.Array) -> jax.Array:
            return nn.Dense(32)(nn.relu(nn.Dense(64)(nn.LayerNorm()(x))))

        def embedded(ids: jax.Array) -> jax.Array:
            return embed(ids) + positions[None, : ids.shape[1]]

        memory = embedded(source)
        y = nn.LayerNorm()(memory)
        memory = memory + attention(y, y)
        memory = nn.LayerNorm()(memory + perceptron(memory))
        x = embedded(target)
        y = nn.LayerNorm()(x)
        x = x + attention(y, y, nn.make_causal_mask(target))
        x = x + attention(nn.LayerNorm()(x), memory)
        return nn.Dense(64)(nn.LayerNorm()(x + perceptron(x)))


@entry
def encdec() -> Parts:
    """Encoder-decoder: cross attention between two inputs, an embedding that both of them share."""
    return of_linen(EncoderDecoder(), text(64, 8), text(64, 6, seed=2))


class LSTM(nn.Module):
    """Two recurrent layers and a head on the last step."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.RNN(nn.OptimizedLSTMCell(16))(x)
        x = nn.RNN(nn.LSTMCell(16))(x)
        return nn.Dense(16)(x[:, -1])


@entry
def lstm() -> Parts:
    """Recurrence over time (`nn.RNN`): weights constant in a scan, one layer's gates concatenated."""
    return of_linen(LSTM(), normal(np.random.default_rng(1), 2, 6, 16))


class MixtureOfExperts(nn.Module):
    """Top-2 routing with a capacity (Lepikhin et al., 2021) to four experts, around a residual connection."""

    experts: int = 4
    capacity: int = 6
    hidden: int = 32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, time, width = x.shape
        flat = x.reshape(-1, width)
        gates = jax.nn.softmax(nn.Dense(self.experts, use_bias=False, name="router")(flat))
        kept, chosen = jax.lax.top_k(gates, 2)
        chosen = jax.nn.one_hot(chosen, self.experts, dtype=jnp.int32)  # [N, 2, E]
        # A token's place in its expert's queue, -1 where it is in none; one beyond the capacity is dropped.
        place = jnp.cumsum(chosen.reshape(-1, self.experts), axis=0).reshape(chosen.shape) * chosen - 1
        slot = jax.nn.one_hot(place, self.capacity, dtype=flat.dtype)  # [N, 2, E, C]
        dispatch = slot.sum(axis=1)
        combine = jnp.einsum("nk,nkec->nec", kept / kept.sum(axis=1, keepdims=True), slot)

        shape = (self.experts, width, self.hidden)
        up = self.param("up", nn.initializers.lecun_normal(batch_axis=0), shape)
        down = self.param("down", nn.initializers.lecun_normal(batch_axis=0), (shape[0], shape[2], shape[1]))
        y = jnp.einsum("nec,nd->ecd", dispatch, flat)
        y = jnp.einsum("ecf,efd->ecd", nn.gelu(jnp.einsum("ecd,edf->ecf", y, up)), down)
        return x + jnp.einsum("nec,ecd->nd", combine, y).reshape(batch, time, width)


@entry
def moe() -> Parts:
    """Mixture of experts: weights with a batch axis (`ecd,edf->ecf`), routed by top-2 one-hot dispatch."""
    return of_linen(MixtureOfExperts(), normal(np.random.default_rng(1), 2, 4, 32))


class DropoutAttention(nn.Module):
    """A transformer block with dropout on the attention weights and on both residual branches."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        attention = nn.MultiHeadDotProductAttention(num_heads=2, dropout_rate=0.1, deterministic=False)
        x = x + nn.Dropout(0.1, deterministic=False)(attention(nn.LayerNorm()(x)))
        y = nn.Dense(32)(nn.gelu(nn.Dense(64)(nn.LayerNorm()(x))))
        return x + nn.Dropout(0.1, deterministic=False)(y)


@entry
def dropout_mha() -> Parts:
    """Dropout and MultiHeadDotProductAttention in training mode, the PRNG key an input."""
    module, x, key = DropoutAttention(), normal(np.random.default_rng(1), 2, 8, 32), jax.random.key(7)
    keys = {"params": key, "dropout": key}
    variables = draw(jax.eval_shape(module.init, keys, x))
    return lambda variables, x, key: module.apply(variables, x, rngs={"dropout": key}), variables, (x, key)


MODELS = (
    mlp,
    lenet300,
    lenet5,
    resnet,
    resnet_train,
    densenet,
    mobilenet,
    unet,
    mixer,
    vit,
    gpt,
    gpt_scan,
    encdec,
    lstm,
    moe,
    dropout_mha,
)
