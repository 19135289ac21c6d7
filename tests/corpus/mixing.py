"""Networks that mix tokens or channels in other ways than attention and convolutions: shifts, Fourier transforms, places."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.corpus.base import Parts, PyTree, entry, ids_of, weight, x_of
from tests.corpus.blocks import VOCABULARY, rms_norm
from tests.corpus.mlps import dense

LAYOUT = ("NHWC", "HWIO", "NHWC")


@entry
def rwkv() -> Parts:
    """RWKV (Peng et al., 2023): tokens shifted in time and mixed, a decayed sum scanned, squared ReLU, receptances."""
    rng = np.random.default_rng(0)
    width, hidden = 14, 22
    mixes = lambda *names: {f"mix_{name}": 0.5 + weight(rng, width) for name in names}
    params = {
        "embed": weight(rng, VOCABULARY, width, fan_in=1), "head": weight(rng, width, VOCABULARY), "g": 1 + weight(rng, width),
        "time": {name: weight(rng, width, width) for name in "rkvo"} | mixes("r", "k", "v") | {
            "decay": weight(rng, width), "bonus": weight(rng, width)},
        "channel": {"k": weight(rng, width, hidden), "v": weight(rng, hidden, width), "r": weight(rng, width, width)}
        | mixes("r", "k"),
    }  # fmt: skip

    def mixed(p: PyTree, name: str, x: jax.Array) -> jax.Array:
        before = jnp.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :-1]
        return (x * p[f"mix_{name}"] + before * (1 - p[f"mix_{name}"])) @ p[name]

    def time(p: PyTree, x: jax.Array) -> jax.Array:
        r, k, v = (mixed(p, name, x) for name in "rkv")

        def step(state: tuple, at: tuple) -> tuple[tuple, jax.Array]:
            (above, below), (k, v) = state, at
            now = jnp.exp(p["bonus"] + k)
            y = (above + now * v) / (below + now)
            decay = jnp.exp(-jnp.exp(p["decay"]))
            return (decay * above + jnp.exp(k) * v, decay * below + jnp.exp(k)), y

        zero = jnp.zeros_like(x[:, 0])
        _, y = lax.scan(step, (zero, zero), (k.swapaxes(0, 1), v.swapaxes(0, 1)))
        return (jax.nn.sigmoid(r) * y.swapaxes(0, 1)) @ p["o"]

    def apply(params: PyTree, ids: jax.Array) -> jax.Array:
        x = params["embed"][ids]
        x = x + time(params["time"], rms_norm(x, params["g"]))
        p, y = params["channel"], rms_norm(x, params["g"])
        x = x + jax.nn.sigmoid(mixed(p, "r", y)) * (jnp.square(jax.nn.relu(mixed(p, "k", y))) @ p["v"])
        return x @ params["head"]

    return apply, params, (ids_of(VOCABULARY, 2, 6),)


@entry
def fnet() -> Parts:
    """FNet (Lee-Thorp et al., 2022): a Fourier transform over tokens and units, its real part; MLPs between."""
    rng = np.random.default_rng(0)
    params = {
        "in": weight(rng, 10, 14), "out": weight(rng, 14, 5),
        "layers": [{"mlp": dense(rng, 14, 22, 14), "g": 1 + weight(rng, 14)} for _ in range(2)],
    }  # fmt: skip

    def apply(params: PyTree, x: jax.Array) -> jax.Array:
        x = x @ params["in"]
        for p in params["layers"]:
            x = rms_norm(x + jnp.fft.fft2(x, axes=(-2, -1)).real, p["g"])
            up, down = p["mlp"]
            x = x + jax.nn.gelu(x @ up["w"] + up["b"]) @ down["w"] + down["b"]
        return x.mean(axis=1) @ params["out"]

    return apply, params, (x_of(2, 6, 10),)


@entry
def retnet() -> Parts:
    """Retention (Sun et al., 2023): a decay for each head, heads normalised one by one, a swish gate."""
    rng = np.random.default_rng(0)
    width, heads, depth = 14, 3, 4
    params = {name: weight(rng, width, heads * depth) for name in ("q", "k", "v", "gate")}
    params |= {"o": weight(rng, heads * depth, width), "in": weight(rng, 10, width), "out": weight(rng, width, 5)}

    def apply(params: PyTree, x: jax.Array) -> jax.Array:
        x = x @ params["in"]
        q, k, v = (rearranged(x @ params[name], heads) for name in "qkv")
        distance = jnp.arange(x.shape[1])[:, None] - jnp.arange(x.shape[1])[None]
        decay = 1 - 2.0 ** (-2.0 - jnp.arange(heads))
        mask = jnp.where(distance >= 0, decay[:, None, None] ** jnp.maximum(distance, 0), 0)
        y = jnp.einsum("bhts,bhsd->bhtd", jnp.einsum("bhtd,bhsd->bhts", q, k) * depth**-0.5 * mask, v)
        y = (y - y.mean(-1, keepdims=True)) * lax.rsqrt(y.var(-1, keepdims=True) + 1e-5)
        y = y.transpose(0, 2, 1, 3).reshape(*x.shape[:2], -1)
        x = x + (jax.nn.silu(x @ params["gate"]) * y) @ params["o"]
        return x @ params["out"]

    return apply, params, (x_of(2, 6, 10),)


def rearranged(x: jax.Array, heads: int) -> jax.Array:
    """`b t (h d) -> b h t d`, as einops does it."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)


@entry
def shuffled_by_places() -> Parts:
    """Grouped convolutions; channels shuffled by a constant list of places, and in any order, drawn once, on a residual."""
    rng = np.random.default_rng(0)
    params = {
        "stem": weight(rng, 3, 3, 3, 12, fan_in=27), "one": weight(rng, 1, 1, 4, 18), "last": weight(rng, 1, 1, 18, 12),
        "two": weight(rng, 3, 3, 6, 18, fan_in=54), "inner": [weight(rng, 12, 12), weight(rng, 12, 12)],
        "out": weight(rng, 12, 5),
    }  # fmt: skip
    shuffle, order = np.arange(18).reshape(3, 6).T.reshape(-1), np.random.default_rng(3).permutation(12)

    def conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
        groups = x.shape[-1] // kernel.shape[2]
        return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=LAYOUT, feature_group_count=groups)

    def apply(params: PyTree, x: jax.Array) -> jax.Array:
        x = jax.nn.relu(conv(x, params["stem"]))
        y = jax.nn.relu(conv(x, params["one"]))[..., shuffle]
        x = (x + conv(jnp.tanh(conv(y, params["two"])), params["last"])).mean(axis=(1, 2))
        first, second = params["inner"]
        return (x + jnp.take(jax.nn.relu(x @ first), order, axis=-1) @ second) @ params["out"]

    return apply, params, (x_of(2, 6, 6, 3),)


@entry
def real_nvp() -> Parts:
    """A flow (Dinh et al., 2017): features in an order drawn once, halves that scale and shift each other, a determinant."""
    rng = np.random.default_rng(0)
    params = [dense(rng, 4, 18, 14, 8) for _ in range(3)]
    orders = [np.random.default_rng(i).permutation(8) for i in range(3)]

    def apply(params: PyTree, x: jax.Array) -> dict[str, jax.Array]:
        total = jnp.zeros(len(x))
        for layers, order in zip(params, orders):
            left, right = jnp.split(x[:, order], 2, axis=-1)
            *hidden, last = layers
            h = left
            for layer in hidden:
                h = jax.nn.relu(h @ layer["w"] + layer["b"])
            scale, shift = jnp.split(h @ last["w"] + last["b"], 2, axis=-1)
            x = jnp.concatenate([left, right * jnp.exp(jnp.tanh(scale)) + shift], axis=-1)
            total = total + jnp.tanh(scale).sum(axis=-1)
        return {"z": x, "log_det": total}

    return apply, params, (x_of(3, 8),)


@entry
def spatial_transformer() -> Parts:
    """Jaderberg et al. (2015): an affine map of the places, features read between them by bilinear gathers, each channel."""
    rng = np.random.default_rng(0)
    params = {
        "conv": weight(rng, 3, 3, 2, 10, fan_in=18), "locate": dense(rng, 10, 14, 4),
        "last": weight(rng, 3, 3, 10, 14, fan_in=90), "out": weight(rng, 14, 5),
    }  # fmt: skip

    def read(image: jax.Array, move: jax.Array) -> jax.Array:
        n = image.shape[0]
        at = jnp.stack(jnp.meshgrid(*[jnp.linspace(-1, 1, n)] * 2, indexing="ij"))
        at = jnp.einsum("ij,jhw->ihw", jnp.eye(2) + 0.1 * move.reshape(2, 2), at)
        at = list((at + 1) * (n - 1) / 2)
        channel = lambda c: jax.scipy.ndimage.map_coordinates(c, at, order=1, mode="nearest")
        return jax.vmap(channel, in_axes=-1, out_axes=-1)(image)

    def apply(params: PyTree, x: jax.Array) -> jax.Array:
        conv = lambda x, w: lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=LAYOUT)
        x = jax.nn.relu(conv(x, params["conv"]))
        hidden, move = params["locate"]
        h = jnp.tanh(x.mean(axis=(1, 2)) @ hidden["w"] + hidden["b"])
        x = jax.vmap(read)(x, h @ move["w"] + move["b"])
        return jax.nn.relu(conv(x, params["last"])).mean(axis=(1, 2)) @ params["out"]

    return apply, params, (x_of(2, 6, 6, 2),)


@entry
def conditional_convolution() -> Parts:
    """A kernel for each example, mixed of three by a gate (Yang et al., 2019), so that `vmap` makes groups of the batch."""
    rng = np.random.default_rng(0)
    params = {
        "stem": weight(rng, 3, 3, 2, 10, fan_in=18), "gate": weight(rng, 10, 3),
        "kernels": weight(rng, 3, 3, 3, 10, 14, fan_in=90), "last": weight(rng, 1, 1, 14, 18), "out": weight(rng, 18, 5),
    }  # fmt: skip

    def conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=LAYOUT)

    def apply(params: PyTree, x: jax.Array) -> jax.Array:
        x = jax.nn.relu(conv(x, params["stem"]))
        gate = jax.nn.softmax(x.mean(axis=(1, 2)) @ params["gate"])
        kernels = jnp.einsum("be,ehwio->bhwio", gate, params["kernels"])
        x = jax.nn.relu(jax.vmap(lambda x, kernel: conv(x[None], kernel)[0])(x, kernels))
        return jnp.tanh(conv(x, params["last"])).mean(axis=(1, 2)) @ params["out"]

    return apply, params, (x_of(2, 5, 5, 2),)


@entry
def local_responses() -> Parts:
    """Normalised over neighbouring channels (Krizhevsky et al., 2012), then scaled by a convolution over channels (ECA)."""
    rng = np.random.default_rng(0)
    params = {
        "one": weight(rng, 3, 3, 2, 10, fan_in=18), "two": weight(rng, 3, 3, 10, 14, fan_in=90), "eca": weight(rng, 3),
        "hidden": weight(rng, 14, 18), "out": weight(rng, 18, 5),
    }  # fmt: skip

    def apply(params: PyTree, x: jax.Array) -> jax.Array:
        conv = lambda x, w: lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=LAYOUT)
        x = jax.nn.relu(conv(x, params["one"]))
        around = lax.reduce_window(x * x, 0.0, lax.add, (1, 1, 1, 5), (1, 1, 1, 1), "SAME")
        x = jax.nn.relu(conv(x / (2 + 1e-2 * around) ** 0.75, params["two"]))
        pooled = x.mean(axis=(1, 2))
        gate = jax.vmap(lambda y: jnp.convolve(y, params["eca"], mode="same"))(pooled)
        return jax.nn.relu((pooled * jax.nn.sigmoid(gate)) @ params["hidden"]) @ params["out"]

    return apply, params, (x_of(2, 6, 6, 2),)


MODELS = (
    rwkv, fnet, retnet, shuffled_by_places, real_nvp, spatial_transformer, conditional_convolution, local_responses,
)  # fmt: skip
