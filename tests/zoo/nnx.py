"""Networks in Flax NNX: the module's graph is static, its state a plain nested dict of arrays."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.models import mlp_nnx
from tests.zoo.base import Parts, draw, entry, normal, of_nnx

LAYERS = 3


@entry
def nnx_mlp() -> Parts:
    """NNX Linear layers in a list: integers among the keys of the tree."""
    x = normal(np.random.default_rng(1), 4, 32)
    return of_nnx(lambda rngs: mlp_nnx.MLP((32, 64, 32, 16), rngs=rngs), x)


class ConvNet(nnx.Module):
    """Two convolutions with BatchNorm and a head: `[B, H, W, 8] -> [B, 16]`."""

    def __init__(self, rngs: nnx.Rngs):
        self.conv = nnx.List([nnx.Conv(i, 16, (3, 3), use_bias=False, rngs=rngs) for i in (8, 16)])
        self.norm = nnx.List([nnx.BatchNorm(16, momentum=0.9, rngs=rngs) for _ in range(2)])
        self.head = nnx.Linear(16, 16, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for conv, norm in zip(self.conv, self.norm, strict=True):
            x = nnx.relu(norm(conv(x)))
        return self.head(x.mean(axis=(1, 2)))


@entry
def nnx_conv() -> Parts:
    """NNX Conv and BatchNorm in training mode: the state that the call changed is read back and returned."""
    graph, state = nnx.split(nnx.eval_shape(lambda: ConvNet(nnx.Rngs(0))))

    def apply(variables: dict, x: jax.Array) -> tuple[jax.Array, dict]:
        model = nnx.merge(graph, variables)
        model.train()
        return model(x), nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    return apply, draw(nnx.to_pure_dict(state)), (normal(np.random.default_rng(1), 4, 8, 8, 8),)


class Residual(nnx.Module):
    """Pre-norm residual perceptron of width 32: `[B, 32] -> [B, 32]`."""

    def __init__(self, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(32, rngs=rngs)
        self.up, self.down = nnx.Linear(32, 64, rngs=rngs), nnx.Linear(64, 32, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.down(nnx.gelu(self.up(self.norm(x))))


class Scanned(nnx.Module):
    """`LAYERS` residual blocks with stacked weights."""

    def __init__(self, rngs: nnx.Rngs):
        stacked = nnx.split_rngs(splits=LAYERS)(nnx.vmap(Residual))
        self.blocks = stacked(rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        layers = nnx.scan(lambda x, block: block(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        return layers(x, self.blocks)


@entry
def nnx_scan() -> Parts:
    """`nnx.scan` over a block whose weights `nnx.vmap` stacked."""
    return of_nnx(Scanned, normal(np.random.default_rng(1), 4, 32))


class Rematerialised(nnx.Module):
    """Two residual blocks, each under `nnx.remat`."""

    def __init__(self, rngs: nnx.Rngs):
        self.blocks = nnx.List([Residual(rngs) for _ in range(2)])

    def __call__(self, x: jax.Array) -> jax.Array:
        for block in self.blocks:
            x = nnx.remat(lambda block, x: block(x))(block, x)
        return x


@entry
def nnx_remat() -> Parts:
    """`nnx.remat` around each of two blocks."""
    return of_nnx(Rematerialised, normal(np.random.default_rng(1), 4, 32))


class Jitted(nnx.Module):
    """Two residual blocks through one `nnx.jit` function, then an embedding's rows as classes."""

    def __init__(self, rngs: nnx.Rngs):
        self.blocks = nnx.List([Residual(rngs) for _ in range(2)])
        self.classes = nnx.Embed(16, 32, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        step = nnx.jit(lambda block, x: block(x))
        for block in self.blocks:
            x = step(block, x)
        return self.classes.attend(jnp.tanh(x))


@entry
def nnx_jit() -> Parts:
    """`nnx.jit` inside the model: one inner function called with two blocks' weights."""
    return of_nnx(Jitted, normal(np.random.default_rng(1), 4, 32))


MODELS = (nnx_mlp, nnx_conv, nnx_scan, nnx_remat, nnx_jit)
