"""Convolutional networks."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from tests.corpus.base import Parts, PyTree, entry, of_linen, of_nnx, weight, x_of


def norm() -> nn.BatchNorm:
    """BatchNorm in evaluation mode."""
    return nn.BatchNorm(use_running_average=True)


class VGG(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for channels in (10, 14):
            x = nn.relu(nn.Conv(channels, (3, 3))(x))
            x = nn.relu(nn.Conv(channels + 2, (3, 3))(x))
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = x.reshape((x.shape[0], -1))
        x = nn.relu(nn.Dense(22)(x))
        return nn.Dense(5)(x)


@entry
def vgg() -> Parts:
    """Convolutions, max-pooling, a flatten before dense layers."""
    return of_linen(VGG(), x_of(2, 8, 8, 3))


class LeNetChannelsFirst(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.avg_pool(nn.tanh(nn.Conv(6, (5, 5), padding="VALID")(x)), (2, 2), strides=(2, 2))
        x = nn.tanh(nn.Conv(10, (3, 3), padding="VALID")(x))
        x = jnp.transpose(x, (0, 3, 1, 2)).reshape(x.shape[0], -1)  # as a converted PyTorch network flattens
        return nn.Dense(5)(nn.tanh(nn.Dense(18)(x)))


@entry
def lenet_transposed() -> Parts:
    """Average pooling, and a flatten in PyTorch's order: channels before places."""
    return of_linen(LeNetChannelsFirst(), x_of(2, 12, 12, 1))


class PostActivation(nn.Module):
    channels: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.relu(norm()(nn.Conv(self.channels, (3, 3), (self.stride,) * 2, use_bias=False)(x)))
        y = norm()(nn.Conv(self.channels, (3, 3), use_bias=False)(y))
        if x.shape != y.shape:
            x = norm()(nn.Conv(self.channels, (1, 1), (self.stride,) * 2, use_bias=False)(x))
        return nn.relu(x + y)


class ResNet(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(norm()(nn.Conv(10, (3, 3), use_bias=False)(x)))
        for channels, stride in ((10, 1), (10, 1), (14, 2)):
            x = PostActivation(channels, stride)(x)
        return nn.Dense(5)(jnp.mean(x, axis=(1, 2)))


@entry
def resnet_post() -> Parts:
    """ResNet (He et al., 2016a): BatchNorm, ReLU after the addition, projections where shapes change."""
    return of_linen(ResNet(), x_of(2, 8, 8, 3))


class Bottleneck(nn.Module):
    channels: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.relu(norm()(x))
        shortcut = x if x.shape[-1] == self.channels else nn.Conv(self.channels, (1, 1), use_bias=False)(y)
        y = nn.relu(norm()(nn.Conv(6, (1, 1), use_bias=False)(y)))
        y = nn.relu(norm()(nn.Conv(8, (3, 3), use_bias=False)(y)))
        return shortcut + nn.Conv(self.channels, (1, 1), use_bias=False)(y)


class PreActivation(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(10, (3, 3), use_bias=False)(x)
        for channels in (14, 14, 18):
            x = Bottleneck(channels)(x)
        return nn.Dense(5)(nn.relu(norm()(x)).mean((1, 2)))


@entry
def resnet_pre() -> Parts:
    """Pre-activation bottlenecks (He et al., 2016b): BatchNorm on the stream itself."""
    return of_linen(PreActivation(), x_of(2, 8, 8, 3))


class InvertedResidual(nn.Module):
    channels: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = 2 * x.shape[-1] + 2
        y = nn.relu6(norm()(nn.Conv(hidden, (1, 1), use_bias=False)(x)))
        depthwise = nn.Conv(hidden, (3, 3), (self.stride,) * 2, feature_group_count=hidden, use_bias=False)
        y = nn.relu6(norm()(depthwise(y)))
        y = norm()(nn.Conv(self.channels, (1, 1), use_bias=False)(y))
        return x + y if x.shape == y.shape else y


class MobileNetV2(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu6(norm()(nn.Conv(8, (3, 3), (2, 2), use_bias=False)(x)))
        for channels, stride in ((10, 1), (10, 1), (14, 2)):
            x = InvertedResidual(channels, stride)(x)
        return nn.Dense(5)(x.mean((1, 2)))


@entry
def mobilenet_v2() -> Parts:
    """Depthwise convolutions between a widening and a linear narrowing one (Sandler et al., 2018)."""
    return of_linen(MobileNetV2(), x_of(2, 8, 8, 3))


class DepthMultiplier(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(6, (3, 3))(x))
        x = nn.relu(nn.Conv(18, (3, 3), feature_group_count=6)(x))
        return nn.Dense(5)(nn.relu(nn.Conv(14, (1, 1))(x)).mean((1, 2)))


@entry
def depth_multiplier() -> Parts:
    """A depthwise convolution with three outputs for each channel."""
    return of_linen(DepthMultiplier(), x_of(2, 6, 6, 3))


class ResNeXt(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(14, (3, 3))(x)
        for _ in range(2):
            y = nn.relu(norm()(nn.Conv(12, (1, 1), use_bias=False)(x)))
            y = nn.relu(norm()(nn.Conv(18, (3, 3), feature_group_count=3, use_bias=False)(y)))
            x = nn.relu(x + norm()(nn.Conv(14, (1, 1), use_bias=False)(y)))
        return nn.Dense(5)(x.mean((1, 2)))


@entry
def resnext_groups() -> Parts:
    """Grouped convolutions (Xie et al., 2017): 3 groups of 4 channels to 3 of 6."""
    return of_linen(ResNeXt(), x_of(2, 6, 6, 3))


class Fire(nn.Module):
    squeeze: int
    expand: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(self.squeeze, (1, 1))(x))
        left = nn.relu(nn.Conv(self.expand, (1, 1))(x))
        right = nn.relu(nn.Conv(self.expand + 2, (3, 3))(x))
        return jnp.concatenate([left, right], axis=-1)


class SqueezeNet(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.max_pool(nn.relu(nn.Conv(8, (3, 3))(x)), (3, 3), (2, 2), padding="SAME")
        for squeeze, expand in ((4, 6), (6, 8)):
            x = Fire(squeeze, expand)(x)
        x = nn.relu(nn.Conv(5, (1, 1))(x))  # the classes are channels, no dense layer
        return nn.avg_pool(x, x.shape[1:3]).reshape(x.shape[0], -1)


@entry
def squeezenet() -> Parts:
    """Two branches concatenated (Iandola et al., 2016); overlapping max-pooling with padding; classes by pooling."""
    return of_linen(SqueezeNet(), x_of(2, 8, 8, 3))


class Inception(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(8, (3, 3))(x))
        one = nn.relu(nn.Conv(6, (1, 1))(x))
        three = nn.relu(nn.Conv(10, (3, 1))(nn.relu(nn.Conv(4, (1, 3))(x))))
        pooled = nn.relu(nn.Conv(5, (1, 1))(nn.avg_pool(x, (3, 3), padding="SAME")))
        x = jnp.concatenate([one, three, pooled, nn.max_pool(x, (3, 3), padding="SAME")], axis=-1)
        return nn.Dense(7)(norm()(x).mean((1, 2)))


@entry
def inception() -> Parts:
    """Branches of pooled and asymmetric convolutions, concatenated with their own input, then one BatchNorm."""
    return of_linen(Inception(), x_of(2, 6, 6, 3))


class DenseNet(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        features = nn.Conv(8, (3, 3), use_bias=False)(x)
        for growth in (4, 6, 5):
            y = nn.Conv(10, (1, 1), use_bias=False)(nn.relu(norm()(features)))
            y = nn.Conv(growth, (3, 3), use_bias=False)(nn.relu(norm()(y)))
            features = jnp.concatenate([features, y], axis=3)
        x = nn.avg_pool(nn.Conv(11, (1, 1), use_bias=False)(nn.relu(norm()(features))), (2, 2), (2, 2))
        return nn.Dense(5)(nn.relu(norm()(x)).mean((1, 2)))


@entry
def densenet_bc() -> Parts:
    """Bottlenecked dense block and transition (Huang et al., 2017), each growth another width."""
    return of_linen(DenseNet(), x_of(2, 6, 6, 3))


class ShuffleNet(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(12, (3, 3))(x))
        y = nn.relu(norm()(nn.Conv(18, (1, 1), feature_group_count=3, use_bias=False)(x)))
        batch, height, width, channels = y.shape
        y = y.reshape(batch, height, width, 3, channels // 3)
        y = y.transpose(0, 1, 2, 4, 3).reshape(batch, height, width, channels)
        y = norm()(nn.Conv(18, (3, 3), feature_group_count=18, use_bias=False)(y))
        y = norm()(nn.Conv(12, (1, 1), feature_group_count=3, use_bias=False)(y))
        return nn.Dense(5)(nn.relu(x + y).mean((1, 2)))


@entry
def shufflenet() -> Parts:
    """Channel shuffle between grouped convolutions (Zhang et al., 2018): reshape, transpose, reshape."""
    return of_linen(ShuffleNet(), x_of(2, 6, 6, 3))


class SplitShuffle(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(16, (3, 3))(x))
        for _ in range(2):
            left, right = jnp.split(x, 2, axis=-1)
            right = nn.relu(nn.Conv(8, (1, 1))(right))
            right = nn.Conv(8, (3, 3), feature_group_count=8)(right)
            right = nn.relu(nn.Conv(8, (1, 1))(right))
            x = jnp.stack([left, right], axis=-1).reshape(x.shape)
        return nn.Dense(5)(x.mean((1, 2)))


@entry
def shufflenet_v2() -> Parts:
    """Channels split in halves and interleaved again by stack and reshape (Ma et al., 2018)."""
    return of_linen(SplitShuffle(), x_of(2, 6, 6, 3))


class SqueezeExcite(nn.Module):
    reduced: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        s = x.mean(axis=(1, 2), keepdims=True)
        s = nn.sigmoid(nn.Conv(x.shape[-1], (1, 1))(nn.silu(nn.Conv(self.reduced, (1, 1))(s))))
        return x * s


class SENet(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(10, (3, 3))(x))
        y = norm()(nn.Conv(10, (3, 3), use_bias=False)(x))
        squeezed = nn.relu(nn.Dense(4)(jnp.mean(y, axis=(1, 2))))
        gate = nn.sigmoid(nn.Dense(10)(squeezed))
        return nn.Dense(5)(nn.relu(x + y * gate[:, None, None, :]).mean((1, 2)))


@entry
def squeeze_excitation() -> Parts:
    """Channels multiplied by a gate of themselves (Hu et al., 2018), on a residual branch."""
    return of_linen(SENet(), x_of(2, 6, 6, 3))


class MBConv(nn.Module):
    channels: int
    expand: int
    kernel: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = x.shape[-1] * self.expand
        y = nn.silu(norm()(nn.Conv(hidden, (1, 1), use_bias=False)(x)))
        size = (self.kernel, self.kernel)
        y = nn.silu(norm()(nn.Conv(hidden, size, feature_group_count=hidden, use_bias=False)(y)))
        y = norm()(nn.Conv(self.channels, (1, 1), use_bias=False)(SqueezeExcite(4)(y)))
        return x + y if x.shape == y.shape else y


class EfficientNet(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.silu(norm()(nn.Conv(8, (3, 3), (2, 2), use_bias=False)(x)))
        for channels, expand, kernel in ((8, 2, 3), (10, 2, 5), (10, 2, 3)):
            x = MBConv(channels, expand, kernel)(x)
        x = nn.silu(norm()(nn.Conv(22, (1, 1), use_bias=False)(x)))
        return nn.Dense(5)(x.mean((1, 2)))


@entry
def efficientnet() -> Parts:
    """Inverted residuals with squeeze and excitation (Tan and Le, 2019)."""
    return of_linen(EfficientNet(), x_of(2, 8, 8, 3))


class ConvNeXtBlock(nnx.Module):
    def __init__(self, width: int, rngs: nnx.Rngs):
        self.depthwise = nnx.Conv(width, width, (7, 7), feature_group_count=width, rngs=rngs)
        self.norm = nnx.LayerNorm(width, epsilon=1e-6, rngs=rngs)
        self.up, self.down = nnx.Linear(width, 3 * width, rngs=rngs), nnx.Linear(3 * width, width, rngs=rngs)
        self.scale = nnx.Param(jnp.full((width,), 1e-1))

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.down(nnx.gelu(self.up(self.norm(self.depthwise(x)))))
        return x + self.scale[...] * y


class ConvNeXt(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.stem = nnx.Conv(3, 10, (2, 2), (2, 2), padding="VALID", rngs=rngs)
        self.first = ConvNeXtBlock(10, rngs)
        self.norm = nnx.LayerNorm(10, rngs=rngs)
        self.downsample = nnx.Conv(10, 14, (2, 2), (2, 2), padding="VALID", rngs=rngs)
        self.second = ConvNeXtBlock(14, rngs)
        self.head = nnx.Linear(14, 5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.downsample(self.norm(self.first(self.stem(x))))
        return self.head(self.second(x).mean((1, 2)))


@entry
def convnext() -> Parts:
    """NNX: depthwise 7 x 7, LayerNorm over channels, layer scale (Liu et al., 2022)."""
    return of_nnx(ConvNeXt, x_of(2, 8, 8, 3))


class WaveNet(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(14, (1,))(x)
        skips = 0.0
        for dilation in (1, 2, 4):
            y = nn.Conv(2 * 10, (2,), kernel_dilation=dilation, padding="CAUSAL")(x)
            gate, value = jnp.split(y, 2, axis=-1)
            y = nn.tanh(value) * nn.sigmoid(gate)
            skips = skips + nn.Conv(18, (1,))(y)
            x = x + nn.Conv(14, (1,))(y)
        return nn.Conv(7, (1,))(nn.relu(nn.Conv(11, (1,))(nn.relu(skips))))


@entry
def wavenet() -> Parts:
    """Causal dilated 1D convolutions, gated by a split, with residual and skip streams (van den Oord et al., 2016)."""
    return of_linen(WaveNet(), x_of(2, 12, 6))


class ASPP(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(10, (3, 3), strides=(2, 2))(x))
        branches = [nn.Conv(6 + rate, (3, 3), kernel_dilation=(rate, rate))(x) for rate in (1, 2, 3)]
        pooled = nn.relu(nn.Conv(5, (1, 1))(x.mean(axis=(1, 2), keepdims=True)))
        branches.append(jnp.broadcast_to(pooled, (*x.shape[:3], 5)))
        x = nn.relu(norm()(jnp.concatenate(branches, axis=-1)))
        x = nn.Conv(7, (1, 1))(x)
        return jax.image.resize(x, (x.shape[0], 12, 12, x.shape[3]), "bilinear")


@entry
def aspp() -> Parts:
    """Dilated branches and a pooled one that is broadcast (Chen et al., 2017), the classes resized to the image."""
    return of_linen(ASPP(), x_of(2, 12, 12, 3))


class GroupNormNet(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.GroupNorm(num_groups=4)(nn.Conv(12, (3, 3))(x)))
        y = nn.relu(nn.GroupNorm(num_groups=None, group_size=6)(nn.Conv(18, (3, 3))(x)))
        return nn.Dense(5)((x + nn.Conv(12, (1, 1))(y)).mean((1, 2)))


@entry
def groupnorm_net() -> Parts:
    """GroupNorm with 4 groups of 3 and 3 groups of 6 channels: whole groups go, or none."""
    return of_linen(GroupNormNet(), x_of(2, 6, 6, 3))


@entry
def instance_norm() -> Parts:
    """Plain lax: a stack of tuples, instance normalisation per channel, reflected borders, PReLU by channel."""
    rng = np.random.default_rng(0)
    params = [
        (weight(rng, 3, 3, i, o, fan_in=9 * i), weight(rng, o), 1 + weight(rng, o), 0.2 + weight(rng, o))
        for i, o in ((3, 10), (10, 14), (14, 4))
    ]

    def apply(params: PyTree, x: jax.Array) -> jax.Array:
        for kernel, bias, gain, slope in params:
            x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
            x = lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            mean, variance = x.mean(axis=(1, 2), keepdims=True), x.var(axis=(1, 2), keepdims=True)
            x = (x - mean) * lax.rsqrt(variance + 1e-3) * gain + bias
            x = jnp.where(x > 0, x, slope * x)
        return x

    return apply, params, (x_of(2, 6, 6, 3),)


MODELS = (
    vgg, lenet_transposed, resnet_post, resnet_pre, mobilenet_v2, depth_multiplier, resnext_groups, squeezenet, inception,
    densenet_bc, shufflenet, shufflenet_v2, squeeze_excitation, efficientnet, convnext, wavenet, aspp, groupnorm_net,
    instance_norm,
)  # fmt: skip
