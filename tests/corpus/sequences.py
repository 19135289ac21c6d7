"""Recurrent networks and state spaces."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from tests.corpus.base import Parts, PyTree, entry, ids_of, of_linen, of_nnx, weight, x_of


@entry
def rnn_scan() -> Parts:
    """A vanilla recurrence scanned over time, a head on all steps."""
    rng = np.random.default_rng(0)
    params = {
        "in": weight(rng, 10, 18), "hh": weight(rng, 18, 18), "b": weight(rng, 18), "out": weight(rng, 18, 5),
        "h0": weight(rng, 18),
    }  # fmt: skip

    def apply(params: PyTree, x: jax.Array) -> jax.Array:
        def step(h: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            h = jnp.tanh(x @ params["in"] + h @ params["hh"] + params["b"])
            return h, h @ params["out"]

        h0 = jnp.broadcast_to(params["h0"], (x.shape[0], 18))
        _, outputs = lax.scan(step, h0, jnp.swapaxes(x, 0, 1))
        return jnp.swapaxes(outputs, 0, 1)

    return apply, params, (x_of(2, 6, 10),)


def lstm_params(rng: np.random.Generator, inputs: int, width: int) -> PyTree:
    """One kernel `[I + H, 4 H]`."""
    return {"w": weight(rng, inputs + width, 4 * width), "b": weight(rng, 4 * width)}


def lstm_layer(params: PyTree, x: jax.Array, reverse: bool = False) -> jax.Array:
    """`[B, T, I] -> [B, T, H]`; input and state concatenated, gates split in 4."""
    width = params["b"].shape[0] // 4

    def step(state: tuple[jax.Array, jax.Array], x: jax.Array) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        h, c = state
        gates = jnp.concatenate([x, h], axis=-1) @ params["w"] + params["b"]
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        c = jax.nn.sigmoid(f + 1.0) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    zero = jnp.zeros((x.shape[0], width), x.dtype)
    _, y = lax.scan(step, (zero, zero), x.swapaxes(0, 1), reverse=reverse)
    return y.swapaxes(0, 1)


@entry
def lstm_fused() -> Parts:
    """Two LSTM layers, input and state concatenated for one kernel, four gates split."""
    rng = np.random.default_rng(0)
    params = {"layers": [lstm_params(rng, 10, 14), lstm_params(rng, 14, 11)], "out": weight(rng, 11, 5)}

    def apply(params: PyTree, x: jax.Array) -> jax.Array:
        for layer in params["layers"]:
            x = lstm_layer(layer, x)
        return x[:, -1, :] @ params["out"]

    return apply, params, (x_of(2, 6, 10),)


@entry
def bilstm_tagger() -> Parts:
    """A tagger: embedding, forward and backward LSTM (one by a reversed input, one layer by a reversed scan)."""
    rng = np.random.default_rng(0)
    params = {
        "embed": weight(rng, 29, 10, fan_in=1), "forward": lstm_params(rng, 10, 14), "backward": lstm_params(rng, 10, 11),
        "second": [lstm_params(rng, 25, 9), lstm_params(rng, 25, 9)], "out": weight(rng, 18, 5),
    }  # fmt: skip

    def apply(params: PyTree, ids: jax.Array) -> jax.Array:
        x = params["embed"][ids]
        backward = jnp.flip(lstm_layer(params["backward"], jnp.flip(x, axis=1)), axis=1)
        x = jnp.concatenate([lstm_layer(params["forward"], x), backward], axis=-1)
        left, right = params["second"]
        x = jnp.concatenate([lstm_layer(left, x), lstm_layer(right, x, reverse=True)], axis=-1)
        return x @ params["out"]

    return apply, params, (ids_of(29, 2, 6),)


class Recurrent(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.RNN(nn.GRUCell(14))(x)
        x = nn.Bidirectional(nn.RNN(nn.OptimizedLSTMCell(9)), nn.RNN(nn.OptimizedLSTMCell(9)))(x)
        x = nn.RNN(nn.SimpleCell(11))(x)
        return nn.Dense(5)(x)


@entry
def linen_rnns() -> Parts:
    """`nn.RNN` of a GRU, `nn.Bidirectional` of LSTMs, a simple cell."""
    return of_linen(Recurrent(), x_of(2, 6, 10))


class NnxLSTM(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.wi, self.wh = nnx.Linear(10, 4 * 14, rngs=rngs), nnx.Linear(14, 4 * 14, use_bias=False, rngs=rngs)
        self.head = nnx.Linear(14, 5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        h = c = jnp.zeros((x.shape[0], 14))
        for t in range(x.shape[1]):
            gates = (self.wi(x[:, t]) + self.wh(h)).reshape(-1, 4, 14)
            i, f, o = (nnx.sigmoid(gates[:, n]) for n in range(3))
            c = f * c + i * jnp.tanh(gates[:, 3])
            h = o * jnp.tanh(c)
        return self.head(h)


@entry
def lstm_unrolled() -> Parts:
    """NNX: a Python loop over time, gates by a reshape to `[4, H]`."""
    return of_nnx(NnxLSTM, x_of(2, 4, 10))


@entry
def gru_layers_scanned() -> Parts:
    """Layers of equal width stacked: a scan over layers of a scan over time, each with a residual."""
    rng = np.random.default_rng(0)
    params = {
        "in": weight(rng, 10, 14), "out": weight(rng, 14, 5),
        "layers": {"gates": weight(rng, 3, 28, 28), "candidate": weight(rng, 3, 28, 14), "b": weight(rng, 3, 14, fan_in=100)},
    }  # fmt: skip

    def apply(params: PyTree, x: jax.Array) -> jax.Array:
        def layer(x: jax.Array, p: PyTree) -> tuple[jax.Array, None]:
            def step(h: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
                r, z = jnp.split(jax.nn.sigmoid(jnp.concatenate([x, h], -1) @ p["gates"]), 2, axis=-1)
                new = jnp.tanh(jnp.concatenate([x, r * h], -1) @ p["candidate"] + p["b"])
                h = (1 - z) * h + z * new
                return h, h

            return x + lax.scan(step, jnp.zeros_like(x[0]), x)[1], None

        x, _ = lax.scan(layer, (x @ params["in"]).swapaxes(0, 1), params["layers"])
        return x[-1] @ params["out"]

    return apply, params, (x_of(2, 6, 10),)


@entry
def min_gru() -> Parts:
    """A minimal GRU (Feng et al., 2024) by `lax.associative_scan` over time."""
    rng = np.random.default_rng(0)
    params = {"z": weight(rng, 10, 18), "h": weight(rng, 10, 18), "out": weight(rng, 18, 5)}

    def apply(params: PyTree, x: jax.Array) -> jax.Array:
        z, h = jax.nn.sigmoid(x @ params["z"]), jnp.tanh(x @ params["h"])
        combine = lambda a, b: (a[0] * b[0], b[0] * a[1] + b[1])
        _, y = lax.associative_scan(combine, (1 - z, z * h), axis=1)
        return y @ params["out"]

    return apply, params, (x_of(2, 6, 10),)


@entry
def s4d() -> Parts:
    """A diagonal state space for each channel (S4D), run as a convolution of its kernel by FFT."""
    rng = np.random.default_rng(0)
    channels, states = 14, 6
    params = {
        "in": weight(rng, 10, channels), "log_dt": weight(rng, channels) - 2.0, "C": weight(rng, channels, states, 2),
        "log_A_real": weight(rng, channels, states, fan_in=4), "A_imag": weight(rng, channels, states, fan_in=1),
        "D": weight(rng, channels), "out": weight(rng, channels, 2 * 11), "head": weight(rng, 11, 5),
    }  # fmt: skip

    def apply(params: PyTree, x: jax.Array) -> jax.Array:
        u = (x @ params["in"]).swapaxes(1, 2)
        length = u.shape[-1]
        a = lax.complex(-jnp.exp(params["log_A_real"]), params["A_imag"])
        c = lax.complex(params["C"][..., 0], params["C"][..., 1])
        scaled = a * jnp.exp(params["log_dt"])[:, None]
        powers = jnp.exp(scaled[..., None] * jnp.arange(length))
        kernel = 2 * jnp.einsum("hn,hnl->hl", c * (jnp.exp(scaled) - 1) / a, powers).real
        y = jnp.fft.irfft(jnp.fft.rfft(u, n=2 * length) * jnp.fft.rfft(kernel, n=2 * length), n=2 * length)[..., :length]
        y = jax.nn.gelu(y + u * params["D"][:, None]).swapaxes(1, 2)
        value, gate = jnp.split(y @ params["out"], 2, axis=-1)
        return (value * jax.nn.sigmoid(gate)).mean(axis=1) @ params["head"]

    return apply, params, (x_of(2, 6, 10),)


@entry
def mamba() -> Parts:
    """A selective state space (Gu and Dao, 2023): a split, a causal depthwise convolution, states `[B, D, N]` in a scan."""
    rng = np.random.default_rng(0)
    width, inner, states, rank = 14, 22, 5, 3
    params = {
        "in": weight(rng, width, 2 * inner), "conv": weight(rng, 3, 1, inner, fan_in=3), "conv_b": weight(rng, inner),
        "x": weight(rng, inner, rank + 2 * states), "dt": weight(rng, rank, inner), "dt_b": weight(rng, inner),
        "A_log": weight(rng, inner, states, fan_in=4), "D": 1 + weight(rng, inner), "out": weight(rng, inner, width),
        "g": 1 + weight(rng, width), "embed": weight(rng, 29, width, fan_in=1),
    }  # fmt: skip

    def apply(params: PyTree, ids: jax.Array) -> jax.Array:
        stream = params["embed"][ids]
        normed = stream * lax.rsqrt(jnp.mean(stream**2, -1, keepdims=True) + 1e-6) * params["g"]
        x, z = jnp.split(normed @ params["in"], 2, axis=-1)
        x = lax.conv_general_dilated(
            x, params["conv"], (1,), [(2, 0)], dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=inner
        )
        x = jax.nn.silu(x + params["conv_b"])
        dt, b, c = jnp.split(x @ params["x"], [rank, rank + states], axis=-1)
        dt = jax.nn.softplus(dt @ params["dt"] + params["dt_b"])
        decay = jnp.exp(dt[..., None] * -jnp.exp(params["A_log"]))
        drive = (dt * x)[..., None] * b[:, :, None, :]

        def step(h: jax.Array, at: tuple) -> tuple[jax.Array, jax.Array]:
            decay, drive, c = at
            h = decay * h + drive
            return h, jnp.einsum("bdn,bn->bd", h, c)

        over_time = jax.tree.map(lambda x: x.swapaxes(0, 1), (decay, drive, c))
        _, y = lax.scan(step, jnp.zeros_like(drive[:, 0]), over_time)
        y = (y.swapaxes(0, 1) + x * params["D"]) * jax.nn.silu(z)
        return (stream + y @ params["out"]) @ params["embed"].T

    return apply, params, (ids_of(29, 2, 6),)


@entry
def lstm_projected() -> Parts:
    """An LSTM with peepholes and a projected state (Sak et al., 2014): gates see the cell by vectors."""
    rng = np.random.default_rng(0)
    params = {
        "w": weight(rng, 10 + 9, 4 * 14), "b": weight(rng, 4, 14, fan_in=100), "peep": weight(rng, 3, 14, fan_in=10),
        "project": weight(rng, 14, 9), "out": weight(rng, 9, 5),
    }  # fmt: skip

    def apply(params: PyTree, x: jax.Array) -> jax.Array:
        def step(state: tuple, x: jax.Array) -> tuple[tuple, jax.Array]:
            h, c = state
            gates = (jnp.concatenate([x, h], axis=-1) @ params["w"]).reshape(-1, 4, 14) + params["b"]
            i = jax.nn.sigmoid(gates[:, 0] + params["peep"][0] * c)
            f = jax.nn.sigmoid(gates[:, 1] + params["peep"][1] * c)
            c = f * c + i * jnp.tanh(gates[:, 2])
            h = (jax.nn.sigmoid(gates[:, 3] + params["peep"][2] * c) * jnp.tanh(c)) @ params["project"]
            return (h, c), h

        start = jnp.zeros((len(x), 9)), jnp.zeros((len(x), 14))
        return lax.scan(step, start, x.swapaxes(0, 1))[1].mean(axis=0) @ params["out"]

    return apply, params, (x_of(2, 6, 10),)


@entry
def conv_lstm() -> Parts:
    """A convolutional LSTM (Shi et al., 2015): states are images, gates one convolution of input and state."""
    rng = np.random.default_rng(0)
    params = {"w": weight(rng, 3, 3, 2 + 10, 40, fan_in=108), "b": weight(rng, 40), "out": weight(rng, 10, 5)}

    def apply(params: PyTree, x: jax.Array) -> jax.Array:
        def step(state: tuple, x: jax.Array) -> tuple[tuple, None]:
            h, c = state
            both, layout = jnp.concatenate([x, h], axis=-1), ("NHWC", "HWIO", "NHWC")
            gates = lax.conv_general_dilated(both, params["w"], (1, 1), "SAME", dimension_numbers=layout) + params["b"]
            i, f, g, o = jnp.split(gates, 4, axis=-1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

        zero = jnp.zeros((*x.shape[:1], *x.shape[2:4], 10))
        (h, _), _ = lax.scan(step, (zero, zero), x.swapaxes(0, 1))
        return h.mean(axis=(1, 2)) @ params["out"]

    return apply, params, (x_of(2, 3, 5, 5, 2),)


@entry
def attending_decoder() -> Parts:
    """A GRU that attends additively to the encoded inputs at each step and reads the target (Bahdanau et al., 2015)."""
    rng = np.random.default_rng(0)
    gru = lambda i, o: {"x": weight(rng, i, 3 * o), "h": weight(rng, o, 3 * o), "b": weight(rng, 3 * o)}
    params = {
        "embed": weight(rng, 29, 10, fan_in=1), "encoder": gru(10, 14), "decoder": gru(10 + 14, 18),
        "start": weight(rng, 14, 18), "key": weight(rng, 14, 11), "query": weight(rng, 18, 11), "score": weight(rng, 11, 1),
        "out": weight(rng, 18, 29),
    }  # fmt: skip

    def cell(p: PyTree, h: jax.Array, x: jax.Array) -> jax.Array:
        r, z, n = jnp.split(x @ p["x"] + p["b"], 3, axis=-1)
        hr, hz, hn = jnp.split(h @ p["h"], 3, axis=-1)
        z = jax.nn.sigmoid(z + hz)
        return (1 - z) * jnp.tanh(n + jax.nn.sigmoid(r + hr) * hn) + z * h

    def apply(params: PyTree, source: jax.Array, target: jax.Array) -> jax.Array:
        def encode(h: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            h = cell(params["encoder"], h, x)
            return h, h

        def decode(h: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            scores = jnp.tanh(keys + (h @ params["query"])[:, None]) @ params["score"]
            context = (jax.nn.softmax(scores, axis=1) * memory).sum(axis=1)
            h = cell(params["decoder"], h, jnp.concatenate([x, context], axis=-1))
            return h, h @ params["out"]

        embed = lambda ids: params["embed"][ids].swapaxes(0, 1)
        last, memory = lax.scan(encode, jnp.zeros((len(source), 14)), embed(source))
        memory = memory.swapaxes(0, 1)
        keys = memory @ params["key"]
        return lax.scan(decode, jnp.tanh(last @ params["start"]), embed(target))[1].swapaxes(0, 1)

    return apply, params, (ids_of(29, 2, 6), ids_of(29, 2, 4, seed=2))


MODELS = (
    rnn_scan, lstm_fused, bilstm_tagger, linen_rnns, lstm_unrolled, gru_layers_scanned, min_gru, s4d, mamba, lstm_projected,
    conv_lstm, attending_decoder,
)  # fmt: skip
