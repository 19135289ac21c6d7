"""Plain JAX code: weights used in every way but the textbook's."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.zoo.base import Parts, PyTree, entry, normal, tokens, weight


@entry
def raw_einsum() -> Parts:
    """Einsums that contract one and two axes, with outputs first or last, and one of three operands."""
    rng = np.random.default_rng(0)
    variables = {
        "query": weight(rng, 32, 2, 16, fan_in=32),
        "out": weight(rng, 2, 16, 32, fan_in=32),
        "reverse": weight(rng, 16, 32, fan_in=32),
        "bilinear": weight(rng, 16, 16, 16, fan_in=256),
    }

    def apply(variables: PyTree, x: jax.Array) -> jax.Array:
        heads = jnp.tanh(jnp.einsum("bti,ihd->bthd", x, variables["query"]))
        mixed = jnp.einsum("bthd,hdo->bto", heads, variables["out"])
        y = jnp.einsum("bti,oi->bto", mixed, variables["reverse"])
        return jnp.einsum("bti,ijo,btj->bto", y, variables["bilinear"], y)

    return apply, variables, (normal(rng, 2, 4, 32),)


@entry
def raw_conv() -> Parts:
    """lax code: transposed, dilated and channels-first convolutions, one written as patches and a dot."""
    rng = np.random.default_rng(0)
    layout = ("NHWC", "HWIO", "NHWC")
    variables = {
        "transposed": weight(rng, 3, 3, 16, 16, fan_in=36),
        "dilated": weight(rng, 3, 3, 16, 16, fan_in=144),
        "channels_first": weight(rng, 16, 16, 3, 3, fan_in=144),
        "patches": weight(rng, 144, 16),
    }

    def apply(variables: PyTree, x: jax.Array) -> jax.Array:
        x = lax.conv_transpose(x, variables["transposed"], (2, 2), "SAME", dimension_numbers=layout)
        x = lax.conv_general_dilated(
            jax.nn.relu(x),
            variables["dilated"],
            (2, 2),
            "SAME",
            rhs_dilation=(2, 2),
            dimension_numbers=layout,
        )
        x = lax.conv(jax.nn.relu(x).transpose(0, 3, 1, 2), variables["channels_first"], (1, 1), "SAME")
        x = jax.nn.relu(x).transpose(0, 2, 3, 1)
        patches = lax.conv_general_dilated_patches(x, (3, 3), (1, 1), "SAME", dimension_numbers=layout)
        return patches @ variables["patches"]

    return apply, variables, (normal(rng, 2, 4, 4, 16),)


@entry
def ensemble() -> Parts:
    """An ensemble: `vmap` over stacked weights, the input shared."""
    rng = np.random.default_rng(0)
    variables = {
        "hidden": weight(rng, 3, 16, 32),
        "bias": weight(rng, 3, 32, fan_in=100),
        "out": weight(rng, 3, 32, 16),
    }

    def member(variables: PyTree, x: jax.Array) -> jax.Array:
        return jnp.tanh(x @ variables["hidden"] + variables["bias"][None]) @ variables["out"]

    return jax.vmap(member, in_axes=(0, None)), variables, (normal(rng, 4, 16),)


@entry
def weight_norm() -> Parts:
    """Derived weights: normalised before use (Salimans and Kingma, 2016), and multiplied by a literal."""
    rng = np.random.default_rng(0)
    variables = {
        "direction": weight(rng, 32, 32),
        "gain": jnp.exp(weight(rng, 32)),
        "doubled": weight(rng, 32, 16) / 2,
    }

    def apply(variables: PyTree, x: jax.Array) -> jax.Array:
        norm = jnp.linalg.norm(variables["direction"], axis=0, keepdims=True)
        kernel = variables["direction"] * (variables["gain"][None] / norm)
        return jnp.tanh(x @ kernel) @ (variables["doubled"] * 2)

    return apply, variables, (normal(rng, 4, 32),)


@entry
def fused_qkv() -> Parts:
    """A fused query-key-value kernel that is split before its dots, and one whose output is split."""
    rng = np.random.default_rng(0)
    variables = {"split_kernel": weight(rng, 32, 96), "split_output": weight(rng, 32, 96)}

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return jax.nn.softmax(q @ k.swapaxes(1, 2) / 32**0.5) @ v

    def apply(variables: PyTree, x: jax.Array) -> jax.Array:
        x = x + attend(*(x @ kernel for kernel in jnp.split(variables["split_kernel"], 3, axis=1)))
        return x + attend(*jnp.split(x @ variables["split_output"], 3, axis=2))

    return apply, variables, (normal(rng, 2, 6, 32),)


@entry
def shared_slices() -> Parts:
    """One tensor whose slices are several weights: as they are, transposed and reshaped."""
    rng = np.random.default_rng(0)
    variables = {"table": weight(rng, 64, 32, fan_in=32)}

    def apply(variables: PyTree, x: jax.Array) -> jax.Array:
        table = variables["table"]
        x = jnp.tanh(x @ table[:32])
        x = jnp.tanh(x @ table[32:48].T)
        return x @ table[48:].reshape(16, 32)

    return apply, variables, (normal(rng, 4, 32),)


@entry
def spectral() -> Parts:
    """A Fourier layer (Li et al., 2021): complex64 weights per mode, and a pointwise real path beside."""
    rng = np.random.default_rng(0)
    modes, width = 4, 16
    variables = {
        "lift": weight(rng, 16, width),
        "modes": lax.complex(*(weight(rng, modes, width, width) for _ in range(2))),
        "pointwise": weight(rng, width, width),
    }

    def apply(variables: PyTree, x: jax.Array) -> jax.Array:
        x = x @ variables["lift"]
        low = jnp.einsum("bmi,mio->bmo", jnp.fft.rfft(x, axis=1)[:, :modes], variables["modes"])
        return jnp.tanh(jnp.fft.irfft(low, n=x.shape[1], axis=1) + x @ variables["pointwise"])

    return apply, variables, (normal(rng, 2, 12, 16),)


@entry
def ssm() -> Parts:
    """A diagonal state space (Gupta et al., 2022) scanned over time: complex64 B and C inside the loop."""
    rng = np.random.default_rng(0)
    states, width = 16, 32

    def complex_weight(*shape: int) -> jax.Array:
        return lax.complex(*(weight(rng, *shape) for _ in range(2)))

    variables = {
        "log_decay": weight(rng, states),
        "frequency": normal(rng, states),
        "B": complex_weight(width, states),
        "C": complex_weight(states, width),
        "skip": weight(rng, width),
        "out": weight(rng, width, 16),
    }

    def apply(variables: PyTree, x: jax.Array) -> jax.Array:
        transition = jnp.exp(lax.complex(-jnp.exp(variables["log_decay"]), variables["frequency"]))

        def step(state: jax.Array, u: jax.Array) -> tuple[jax.Array, jax.Array]:
            state = transition[None] * state + u @ variables["B"]
            return state, (state @ variables["C"]).real + variables["skip"][None] * u

        _, y = lax.scan(step, jnp.zeros((x.shape[0], states), jnp.complex64), x.swapaxes(0, 1))
        return jax.nn.gelu(y).swapaxes(0, 1) @ variables["out"]

    return apply, variables, (normal(rng, 2, 6, width),)


@entry
def graph() -> Parts:
    """Message passing: gathers of activations by edge, `segment_sum` over edges, a readout by graph."""
    rng = np.random.default_rng(0)
    nodes, graphs = 12, 2
    variables = {"message": weight(rng, 32, 32), "own": weight(rng, 16, 16), "heard": weight(rng, 32, 16)}
    belongs = jnp.arange(nodes, dtype=jnp.int32) // (nodes // graphs)

    def apply(variables: PyTree, x: jax.Array, edges: jax.Array, graph: jax.Array) -> jax.Array:
        senders, receivers = edges
        pairs = jnp.concatenate([x[senders], x[receivers]], axis=1)
        heard = jax.ops.segment_sum(jax.nn.relu(pairs @ variables["message"]), receivers, num_segments=nodes)
        x = jax.nn.relu(x @ variables["own"] + heard @ variables["heard"])
        return jax.ops.segment_sum(x, graph, num_segments=graphs)

    return apply, variables, (normal(rng, nodes, 16), tokens(rng, nodes, 2, 24), belongs)


@entry
def modulated_conv() -> Parts:
    """A convolution whose kernel an activation modulates, per example (Karras et al., 2020)."""
    rng = np.random.default_rng(0)
    variables = {
        "style": weight(rng, 32, 16),
        "bias": 1 + weight(rng, 16),
        "kernel": weight(rng, 3, 3, 16, 16, fan_in=144),
    }

    def one(kernel: jax.Array, style: jax.Array, x: jax.Array) -> jax.Array:
        kernel = kernel * style[None, None, :, None]
        kernel = kernel * lax.rsqrt(jnp.sum(kernel**2, axis=(0, 1, 2), keepdims=True) + 1e-8)
        layout = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x[None], kernel, (1, 1), "SAME", dimension_numbers=layout)[0]

    def apply(variables: PyTree, x: jax.Array, latent: jax.Array) -> jax.Array:
        style = latent @ variables["style"] + variables["bias"][None]
        return jax.vmap(one, in_axes=(None, 0, 0))(variables["kernel"], style, x)

    return apply, variables, (normal(rng, 2, 4, 4, 16), normal(rng, 2, 32))


@entry
def const_dot() -> Parts:
    """A parameter times a constant (Hadamard) matrix: a dot without an activation."""
    rng = np.random.default_rng(0)
    hadamard = np.array([[1.0]], np.float32)
    for _ in range(5):
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]]) / np.float32(2**0.5)
    variables = {"positions": weight(rng, 8, 32), "kernel": weight(rng, 32, 16)}

    def apply(variables: PyTree, x: jax.Array) -> jax.Array:
        return jnp.tanh(x + (variables["positions"] @ hadamard)[None]) @ variables["kernel"]

    return apply, variables, (normal(rng, 2, 8, 32),)


@entry
def constant_table() -> Parts:
    """Constants that are no weights: a sinusoidal table that is gathered, a DCT matrix that is dotted."""
    rng = np.random.default_rng(0)
    angle = np.arange(16)[:, None] / 10_000 ** (np.arange(16)[None] / 16)
    table = np.concatenate([np.sin(angle), np.cos(angle)], axis=1).astype(np.float32)
    dct = np.cos(np.pi / 32 * (np.arange(32)[:, None] + 0.5) * np.arange(32)[None]).astype(np.float32) / 4
    variables = {"hidden": weight(rng, 32, 32), "out": weight(rng, 32, 16)}

    def apply(variables: PyTree, x: jax.Array, positions: jax.Array) -> jax.Array:
        x = x + jnp.asarray(table)[positions]
        return jnp.tanh((x @ dct) @ variables["hidden"]) @ variables["out"]

    return apply, variables, (normal(rng, 2, 8, 32), tokens(rng, 16, 2, 8))


@entry
def tuple_list() -> Parts:
    """Parameters as a list of tuples `(W, b)`, the tree itself a list."""
    rng = np.random.default_rng(0)
    widths = (32, 32, 48, 16)
    variables = [(weight(rng, i, o), weight(rng, o)) for i, o in itertools.pairwise(widths)]

    def apply(variables: PyTree, x: jax.Array) -> jax.Array:
        *hidden, (kernel, bias) = variables
        for w, b in hidden:
            x = jax.nn.relu(x @ w + b[None])
        return x @ kernel + bias[None]

    return apply, variables, (normal(rng, 4, 32),)


@entry
def tied() -> Parts:
    """One table looked up and, transposed, dotted into logits."""
    rng = np.random.default_rng(0)
    variables = {"embedding": weight(rng, 48, 32), "mix": weight(rng, 32, 32)}

    def apply(variables: PyTree, ids: jax.Array) -> jax.Array:
        x = variables["embedding"][ids]
        return jnp.tanh(x @ variables["mix"]) @ variables["embedding"].T

    return apply, variables, (tokens(rng, 48, 2, 6),)


@entry
def left_operand() -> Parts:
    """Weights as the left operand of a matrix-vector product, `[O, I]`, under `vmap`."""
    rng = np.random.default_rng(0)
    variables = {
        "hidden": weight(rng, 48, 32, fan_in=32),
        "bias": weight(rng, 48),
        "out": weight(rng, 16, 48, fan_in=48),
    }

    def one(variables: PyTree, x: jax.Array) -> jax.Array:
        return variables["out"] @ jnp.tanh(variables["hidden"] @ x + variables["bias"])

    return jax.vmap(one, in_axes=(None, 0)), variables, (normal(rng, 4, 32),)


@entry
def untouched_leaf() -> Parts:
    """One matrix is returned untouched, one is not used at all."""
    rng = np.random.default_rng(0)
    variables = {name: weight(rng, 32, 16) for name in ("kernel", "returned", "unused")}

    def apply(variables: PyTree, x: jax.Array) -> dict[str, jax.Array]:
        return {"y": x @ variables["kernel"], "returned": variables["returned"]}

    return apply, variables, (normal(rng, 4, 32),)


MODELS = (
    raw_einsum,
    raw_conv,
    ensemble,
    weight_norm,
    fused_qkv,
    shared_slices,
    spectral,
    ssm,
    graph,
    modulated_conv,
    const_dot,
    constant_table,
    tuple_list,
    tied,
    left_operand,
    untouched_leaf,
)
