"""Dense networks, in the ways in which they are written."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests.corpus.base import Parts, PyTree, entry, of_linen, of_nnx, weight, x_of


def dense(rng: np.random.Generator, *widths: int) -> list[dict[str, jax.Array]]:
    """Layers ``{"w": [I, O], "b": [O]}`` of consecutive widths."""
    return [{"w": weight(rng, i, o), "b": weight(rng, o)} for i, o in itertools.pairwise(widths)]


@entry
def mlp_relu() -> Parts:
    """Plain JAX: a list of layers, ReLU between."""

    def apply(params: PyTree, x: jax.Array) -> jax.Array:
        for layer in params[:-1]:
            x = jax.nn.relu(x @ layer["w"] + layer["b"])
        return x @ params[-1]["w"] + params[-1]["b"]

    return apply, dense(np.random.default_rng(0), 10, 24, 18, 5), (x_of(3, 10),)


@entry
def mlp_sigmoid() -> Parts:
    """Activations that are not zero at zero: sigmoid and softplus, before a contraction."""

    def apply(params: PyTree, x: jax.Array) -> jax.Array:
        x = jax.nn.sigmoid(x @ params[0]["w"] + params[0]["b"])
        x = jax.nn.softplus(x @ params[1]["w"] + params[1]["b"])
        return x @ params[2]["w"] + params[2]["b"]

    return apply, dense(np.random.default_rng(0), 10, 22, 14, 5), (x_of(3, 10),)


class SwiGLU(nn.Module):
    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        gate = nn.Dense(self.hidden, use_bias=False, name="w1")(x)
        up = nn.Dense(self.hidden, use_bias=False, name="w3")(x)
        return nn.Dense(x.shape[-1], use_bias=False, name="w2")(nn.silu(gate) * up)


class SwiGLUNet(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Dense(14)(x)
        for hidden in (22, 26):
            x = x + SwiGLU(hidden)(nn.RMSNorm()(x))
        return nn.Dense(5)(x)


@entry
def swiglu() -> Parts:
    """Two kernels whose outputs are multiplied, around a residual stream."""
    return of_linen(SwiGLUNet(), x_of(3, 10))


@entry
def layernorm_two_pass() -> Parts:
    """LayerNorm written by hand with `jnp.mean` and `jnp.var`, before and after the activation."""
    rng = np.random.default_rng(0)
    params = {
        "layers": dense(rng, 10, 24, 18, 5),
        "scale": [1 + weight(rng, 24), 1 + weight(rng, 18)],
        "offset": [weight(rng, 24), weight(rng, 18)],
    }

    def layer_norm(x: jax.Array, scale: jax.Array, offset: jax.Array) -> jax.Array:
        mean = jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.var(x, axis=-1, keepdims=True)
        return (x - mean) / jnp.sqrt(variance + 1e-5) * scale + offset

    def apply(params: PyTree, x: jax.Array) -> jax.Array:
        first, second, last = params["layers"]
        x = jax.nn.relu(layer_norm(x @ first["w"] + first["b"], params["scale"][0], params["offset"][0]))
        x = layer_norm(jax.nn.tanh(x @ second["w"] + second["b"]), params["scale"][1], params["offset"][1])
        return x @ last["w"] + last["b"]

    return apply, params, (x_of(3, 10),)


@entry
def rmsnorm_mlp() -> Parts:
    """RMSNorm by hand, `x * rsqrt(mean(x^2) + eps) * g`, on a hidden layer and a residual stream."""
    rng = np.random.default_rng(0)
    params = {"layers": dense(rng, 10, 18, 26, 18, 5), "g": [1 + weight(rng, 18), 1 + weight(rng, 26)]}

    def norm(x: jax.Array, g: jax.Array) -> jax.Array:
        return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + 1e-6) * g

    def apply(params: PyTree, x: jax.Array) -> jax.Array:
        a, b, c, d = params["layers"]
        x = x @ a["w"] + a["b"]
        h = norm(jax.nn.silu(norm(x, params["g"][0]) @ b["w"] + b["b"]), params["g"][1])
        return (x + h @ c["w"] + c["b"]) @ d["w"] + d["b"]

    return apply, params, (x_of(3, 10),)


class WeightNormNet(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for width in (22, 18):
            x = nn.elu(nn.WeightNorm(nn.Dense(width))(x))
        return nn.Dense(5)(x)


@entry
def weight_normed() -> Parts:
    """`nn.WeightNorm`: a kernel divided by the norm of its columns, which no column may be zero in."""
    return of_linen(WeightNormNet(), x_of(3, 10))


class Perceptron(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.first, self.second = nnx.Linear(10, 22, rngs=rngs), nnx.Linear(22, 14, rngs=rngs)
        self.norm = nnx.BatchNorm(22, use_running_average=True, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, deterministic=True)
        self.head = nnx.Linear(14, 5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.dropout(nnx.relu(self.norm(self.first(x))))
        return self.head(nnx.leaky_relu(self.second(x)))


@entry
def batchnorm_nnx() -> Parts:
    """NNX: BatchNorm with stored statistics, a dropout that is off."""
    return of_nnx(Perceptron, x_of(3, 10))


class DropoutNet(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        for width in (24, 18):
            x = nn.Dense(width)(x)
            x = nn.LayerNorm()(nn.gelu(x))
            x = nn.Dropout(0.2, deterministic=not train)(x)
        return nn.Dense(5)(x)


@entry
def dropout_off() -> Parts:
    """Linen: LayerNorm (one pass) after GELU, dropout in evaluation mode."""
    return of_linen(DropoutNet(), x_of(3, 10))


@entry
def low_rank() -> Parts:
    """Dense layers factored in two kernels without an activation between: `x @ A @ B`."""
    rng = np.random.default_rng(0)
    params = [{"a": weight(rng, i, r), "b": weight(rng, r, o)} for i, r, o in ((10, 6, 22), (22, 8, 18), (18, 4, 5))]

    def apply(params: PyTree, x: jax.Array) -> jax.Array:
        for factors in params[:-1]:
            x = jnp.tanh(x @ factors["a"] @ factors["b"])
        return x @ (params[-1]["a"] @ params[-1]["b"])

    return apply, params, (x_of(3, 10),)


@entry
def lora() -> Parts:
    """A kernel plus a scaled low-rank product, added at use: `W + A B alpha / r`."""
    rng = np.random.default_rng(0)

    def layer(i: int, o: int) -> dict[str, jax.Array]:
        return {"w": weight(rng, i, o), "a": weight(rng, i, 4), "b": weight(rng, 4, o), "bias": weight(rng, o)}

    def linear(layer: PyTree, x: jax.Array) -> jax.Array:
        return x @ (layer["w"] + layer["a"] @ layer["b"] * (8 / 4)) + layer["bias"]

    def apply(params: PyTree, x: jax.Array) -> jax.Array:
        return linear(params["out"], jax.nn.relu(linear(params["up"], x)))

    return apply, {"up": layer(10, 22), "out": layer(22, 5)}, (x_of(3, 10),)


@entry
def maxout() -> Parts:
    """Maxout (Goodfellow et al., 2013): the maximum over 3 pieces of each unit, by a reshape."""
    rng = np.random.default_rng(0)

    def apply(params: PyTree, x: jax.Array) -> jax.Array:
        for layer in params[:-1]:
            x = (x @ layer["w"] + layer["b"]).reshape(x.shape[0], -1, 3).max(axis=-1)
        return x @ params[-1]["w"] + params[-1]["b"]

    params = dense(rng, 10, 42) + dense(rng, 14, 54) + dense(rng, 18, 5)
    return apply, params, (x_of(3, 10),)


@entry
def cross_network() -> Parts:
    """Deep and cross network v2 (Wang et al., 2021) on embedded categories: gathers, concatenate, `x0 * (W x + b) + x`."""
    rng = np.random.default_rng(0)
    params = {
        "tables": [weight(rng, n, d) for n, d in ((11, 6), (7, 4))],
        "cross": dense(rng, 18, 18) + dense(rng, 18, 18),
        "deep": dense(rng, 18, 22, 14),
        "head": dense(rng, 32, 1)[0],
    }

    def apply(params: PyTree, dense_features: jax.Array, first: jax.Array, second: jax.Array) -> jax.Array:
        tables = params["tables"]
        x0 = jnp.concatenate([dense_features, tables[0][first], jnp.take(tables[1], second, axis=0)], axis=-1)
        x = x0
        for layer in params["cross"]:
            x = x0 * (x @ layer["w"] + layer["b"]) + x
        h = x0
        for layer in params["deep"]:
            h = jax.nn.relu(h @ layer["w"] + layer["b"])
        return jnp.squeeze(jnp.concatenate([x, h], -1) @ params["head"]["w"] + params["head"]["b"], -1)

    inputs = (x_of(3, 8), jnp.asarray([1, 10, 4], jnp.int32), jnp.asarray([6, 0, 3], jnp.int32))
    return apply, params, inputs


@entry
def nerf() -> Parts:
    """A radiance field (Mildenhall et al., 2020): sines of the inputs, a skip that is concatenated, two heads."""
    rng = np.random.default_rng(0)
    params = {"in": dense(rng, 15, 22, 26), "mid": dense(rng, 41, 24), "sigma": dense(rng, 24, 1), "rgb": dense(rng, 27, 14, 3)}

    def encode(x: jax.Array) -> jax.Array:
        scaled = (x[..., None, :] * 2.0 ** jnp.arange(2)[:, None]).reshape(*x.shape[:-1], -1)
        return jnp.concatenate([x, jnp.sin(scaled), jnp.cos(scaled)], axis=-1)

    def apply(params: PyTree, position: jax.Array, direction: jax.Array) -> dict[str, jax.Array]:
        x = encoded = encode(position)
        for layer in params["in"]:
            x = jax.nn.relu(x @ layer["w"] + layer["b"])
        (mid,) = params["mid"]
        x = jax.nn.relu(jnp.concatenate([encoded, x], -1) @ mid["w"] + mid["b"])
        (sigma,) = params["sigma"]
        density = jax.nn.softplus(x @ sigma["w"] + sigma["b"])[..., 0]
        hidden, out = params["rgb"]
        y = jax.nn.relu(jnp.concatenate([x, direction], -1) @ hidden["w"] + hidden["b"])
        return {"density": density, "rgb": jax.nn.sigmoid(y @ out["w"] + out["b"])}

    return apply, params, (x_of(2, 7, 3), x_of(2, 7, 3, seed=2))


class VAE(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        h = nn.relu(nn.Dense(22, name="fc1")(x))
        mean, logvar = nn.Dense(6, name="fc2_mean")(h), nn.Dense(6, name="fc2_logvar")(h)
        z = mean + jnp.exp(0.5 * logvar) * noise
        h = nn.relu(nn.Dense(18, name="fc3")(z))
        return nn.Dense(11, name="fc4")(h), mean, logvar


@entry
def vae() -> Parts:
    """Flax's example of a VAE: the code's mean and variance are outputs, so stay; the noise is an input."""
    return of_linen(VAE(), x_of(3, 11), x_of(3, 6, seed=2))


@entry
def siamese() -> Parts:
    """One tower used on two inputs, compared by their difference and product (`|a - b|`, `a * b`)."""
    rng = np.random.default_rng(0)
    params = {"tower": dense(rng, 10, 22, 14), "head": dense(rng, 28, 1)[0]}

    def tower(params: PyTree, x: jax.Array) -> jax.Array:
        first, second = params
        return jnp.tanh(jax.nn.relu(x @ first["w"] + first["b"]) @ second["w"] + second["b"])

    def apply(params: PyTree, left: jax.Array, right: jax.Array) -> jax.Array:
        a, b = tower(params["tower"], left), tower(params["tower"], right)
        return jnp.concatenate([jnp.abs(a - b), a * b], axis=1) @ params["head"]["w"] + params["head"]["b"]

    return apply, params, (x_of(3, 10), x_of(3, 10, seed=2))


@entry
def two_towers() -> Parts:
    """Two towers whose unit vectors meet in a matrix of similarities (CLIP): their last axes are one group."""
    rng = np.random.default_rng(0)
    params = {"image": dense(rng, 10, 22, 14), "text": dense(rng, 8, 18, 14), "temperature": weight(rng, 1)}

    def tower(params: PyTree, x: jax.Array) -> jax.Array:
        first, second = params
        x = jax.nn.gelu(x @ first["w"] + first["b"]) @ second["w"] + second["b"]
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

    def apply(params: PyTree, image: jax.Array, text: jax.Array) -> jax.Array:
        similarity = tower(params["image"], image) @ tower(params["text"], text).T
        return jnp.exp(params["temperature"]) * similarity

    return apply, params, (x_of(3, 10), x_of(3, 8, seed=2))


@entry
def mixture_density() -> Parts:
    """Several outputs in a dict (Bishop, 1994): weights, means `[B, K, D]` and scales of a mixture."""
    rng = np.random.default_rng(0)
    params = {
        "body": dense(rng, 10, 22, 18),
        "heads": {"weights": dense(rng, 18, 3)[0], "means": dense(rng, 18, 6)[0], "scales": dense(rng, 18, 3)[0]},
    }

    def apply(params: PyTree, x: jax.Array) -> dict[str, jax.Array]:
        for layer in params["body"]:
            x = jnp.tanh(x @ layer["w"] + layer["b"])
        out = {name: x @ head["w"] + head["b"] for name, head in params["heads"].items()}
        means = out["means"].reshape(-1, 3, 2)
        return {"weights": jax.nn.softmax(out["weights"]), "means": means, "scales": jnp.exp(out["scales"])}

    return apply, params, (x_of(3, 10),)


@entry
def deep_sets() -> Parts:
    """Deep sets (Zaheer et al., 2017): the mean over elements, subtracted and pooled, with a mask."""
    rng = np.random.default_rng(0)
    params = {"phi": dense(rng, 5, 18, 14), "inner": weight(rng, 14, 14), "rho": dense(rng, 14, 22, 3)}

    def apply(params: PyTree, x: jax.Array, mask: jax.Array) -> jax.Array:
        for layer in params["phi"]:
            x = jax.nn.relu(x @ layer["w"] + layer["b"])
        x = jnp.tanh((x - x.mean(axis=1, keepdims=True)) @ params["inner"]) + x
        pooled = (x * mask[..., None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
        hidden, out = params["rho"]
        return jax.nn.relu(pooled @ hidden["w"] + hidden["b"]) @ out["w"] + out["b"]

    return apply, params, (x_of(2, 7, 5), jnp.asarray(np.arange(7) < np.array([[7], [4]]), jnp.float32))


@entry
def bilinear() -> Parts:
    """Bilinear and capsule-like: `x W y` with a tensor of three axes, then squashed vectors `[B, capsules, D]`."""
    rng = np.random.default_rng(0)
    params = {
        "left": dense(rng, 10, 14)[0], "right": dense(rng, 8, 18)[0], "core": weight(rng, 14, 18, 22, fan_in=252),
        "capsules": weight(rng, 22, 4, 6, fan_in=22), "agree": weight(rng, 4, 6, 3, 5, fan_in=24),
    }  # fmt: skip

    def squash(v: jax.Array) -> jax.Array:
        norm = jnp.sum(v**2, axis=-1, keepdims=True)
        return norm / (1 + norm) * v / jnp.sqrt(norm + 1e-6)

    def apply(params: PyTree, a: jax.Array, b: jax.Array) -> jax.Array:
        a = jnp.tanh(a @ params["left"]["w"] + params["left"]["b"])
        b = jnp.tanh(b @ params["right"]["w"] + params["right"]["b"])
        mixed = jnp.einsum("bi,ijk,bj->bk", a, params["core"], b)
        capsules = squash(jnp.einsum("bk,kcd->bcd", mixed, params["capsules"]))
        return squash(jnp.einsum("bcd,cdoe->boe", capsules, params["agree"]))

    return apply, params, (x_of(3, 10), x_of(3, 8, seed=2))


@entry
def hypernetwork() -> Parts:
    """A network that gives the weights of another (Ha et al., 2017): a kernel per example, by a reshape."""
    rng = np.random.default_rng(0)
    params = {"embed": dense(rng, 8, 14)[0], "kernel": dense(rng, 14, 10 * 18)[0], "bias": dense(rng, 14, 18)[0],
              "out": dense(rng, 18, 5)[0]}  # fmt: skip

    def apply(params: PyTree, x: jax.Array, task: jax.Array) -> jax.Array:
        z = jax.nn.relu(task @ params["embed"]["w"] + params["embed"]["b"])
        kernel = (z @ params["kernel"]["w"] + params["kernel"]["b"]).reshape(-1, 10, 18) / 10**0.5
        bias = z @ params["bias"]["w"] + params["bias"]["b"]
        h = jnp.tanh(jnp.einsum("bi,bio->bo", x, kernel) + bias)
        return h @ params["out"]["w"] + params["out"]["b"]

    return apply, params, (x_of(3, 10), x_of(3, 8, seed=2))


@entry
def kan_rbf() -> Parts:
    """Radial basis functions of each feature (a fast KAN): `[B, I, G]` with a table of centres, contracted over both."""
    rng = np.random.default_rng(0)
    params = [weight(rng, i, 4, o, fan_in=4 * i) for i, o in ((10, 18), (18, 5))]

    def apply(params: PyTree, x: jax.Array) -> jax.Array:
        centres = jnp.linspace(-2.0, 2.0, 4)
        for kernel in params:
            basis = jnp.exp(-jnp.square(x[..., None] - centres))
            x = jnp.einsum("big,igo->bo", basis, kernel)
        return x

    return apply, params, (x_of(3, 10),)


MODELS = (
    mlp_relu, mlp_sigmoid, swiglu, layernorm_two_pass, rmsnorm_mlp, weight_normed, batchnorm_nnx,
    dropout_off, low_rank, lora, maxout, cross_network, nerf, vae, siamese, two_towers, mixture_density,
    deep_sets, bilinear, hypernetwork, kan_rbf,
)  # fmt: skip
