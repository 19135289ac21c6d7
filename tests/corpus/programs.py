"""Graphs, control flow and custom derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.corpus.base import Parts, PyTree, entry, weight, x_of

NODES = 9


def edges() -> tuple[jax.Array, jax.Array]:
    """Senders and receivers, int `[E]`; every node receives something."""
    rng = np.random.default_rng(5)
    senders = rng.integers(NODES, size=2 * NODES)
    receivers = np.concatenate([np.arange(NODES), rng.integers(NODES, size=NODES)])
    return jnp.asarray(senders, jnp.int32), jnp.asarray(receivers, jnp.int32)


@entry
def graph_net() -> Parts:
    """Messages along edges from both ends and the edge, summed by `segment_sum`, residual; a mean over nodes."""
    rng = np.random.default_rng(0)
    params = {
        "node": weight(rng, 8, 14), "edge": weight(rng, 3, 10), "message": weight(rng, 38, 18), "b": weight(rng, 18),
        "update": weight(rng, 32, 14), "out": weight(rng, 14, 5),
    }  # fmt: skip

    def apply(params: PyTree, x: jax.Array, e: jax.Array, senders: jax.Array, receivers: jax.Array) -> jax.Array:
        h, e = jnp.tanh(x @ params["node"]), jnp.tanh(e @ params["edge"])
        for _ in range(2):
            m = jnp.concatenate([h[senders], h[receivers], e], axis=-1)
            m = jax.nn.relu(m @ params["message"] + params["b"])
            heard = jax.ops.segment_sum(m, receivers, num_segments=x.shape[0])
            h = h + jax.nn.relu(jnp.concatenate([h, heard], axis=-1) @ params["update"])
        return h.mean(axis=0) @ params["out"]

    return apply, params, (x_of(NODES, 8), x_of(2 * NODES, 3, seed=2), *edges())


@entry
def graph_attention() -> Parts:
    """Graph attention (Velickovic et al., 2018): 3 heads, softmax over a node's edges by `segment_max` and sums."""
    rng = np.random.default_rng(0)
    params = {"w": weight(rng, 8, 3 * 6), "left": weight(rng, 3, 6), "right": weight(rng, 3, 6), "out": weight(rng, 18, 5)}

    def apply(params: PyTree, x: jax.Array, senders: jax.Array, receivers: jax.Array) -> jax.Array:
        h = (x @ params["w"]).reshape(-1, 3, 6)
        score = (h * params["left"]).sum(-1)[senders] + (h * params["right"]).sum(-1)[receivers]
        score = jax.nn.leaky_relu(score, 0.2)
        largest = jax.ops.segment_max(score, receivers, NODES)
        score = jnp.exp(score - largest[receivers])
        share = score / jax.ops.segment_sum(score, receivers, NODES)[receivers]
        h = jax.ops.segment_sum(share[..., None] * h[senders], receivers, NODES)
        return jax.nn.elu(h.reshape(NODES, -1)) @ params["out"]

    return apply, params, (x_of(NODES, 8), *edges())


@entry
def gcn_dense() -> Parts:
    """Graph convolution by a normalised dense adjacency matrix, an input: `A x W`."""
    rng = np.random.default_rng(0)
    params = [weight(rng, 8, 22), weight(rng, 22, 14), weight(rng, 14, 5)]

    def apply(params: PyTree, adjacency: jax.Array, x: jax.Array) -> jax.Array:
        degree = lax.rsqrt(adjacency.sum(axis=-1) + 1)
        adjacency = degree[:, :, None] * (adjacency + jnp.eye(x.shape[1])) * degree[:, None, :]
        for kernel in params[:-1]:
            x = jax.nn.relu(adjacency @ (x @ kernel))
        return (adjacency @ x).sum(axis=1) @ params[-1]

    adjacency = jnp.asarray(np.random.default_rng(3).random((2, 7, 7)) < 0.4, jnp.float32)
    return apply, params, (adjacency, x_of(2, 7, 8))


@entry
def fori_layers() -> Parts:
    """Stacked layers taken by `lax.dynamic_index_in_dim` in a `fori_loop`, residual, widths of their own inside."""
    rng = np.random.default_rng(0)
    params = {
        "in": weight(rng, 10, 14), "up": weight(rng, 3, 14, 22), "down": weight(rng, 3, 22, 14), "out": weight(rng, 14, 5)
    }  # fmt: skip

    def apply(params: PyTree, x: jax.Array) -> jax.Array:
        def layer(i: jax.Array, x: jax.Array) -> jax.Array:
            up = lax.dynamic_index_in_dim(params["up"], i, keepdims=False)
            return x + jax.nn.relu(x @ up) @ params["down"][i]

        return lax.fori_loop(0, 3, layer, x @ params["in"]) @ params["out"]

    return apply, params, (x_of(3, 10),)


@entry
def while_equilibrium() -> Parts:
    """A deep equilibrium: `lax.while_loop` until the state settles or 30 steps are over."""
    rng = np.random.default_rng(0)
    params = {"in": weight(rng, 10, 18), "up": weight(rng, 18, 14) / 2, "down": weight(rng, 14, 18) / 2}
    params["out"] = weight(rng, 18, 5)

    def apply(params: PyTree, x: jax.Array) -> jax.Array:
        drive = x @ params["in"]

        def unsettled(state: tuple) -> jax.Array:
            count, _, change = state
            return (count < 30) & (change > 1e-4)

        def body(state: tuple) -> tuple:
            count, z, _ = state
            new = jnp.tanh(jnp.tanh(z @ params["up"]) @ params["down"] + drive)
            return count + 1, new, jnp.abs(new - z).max()

        _, z, _ = lax.while_loop(unsettled, body, (0, jnp.zeros_like(drive), jnp.inf))
        return z @ params["out"]

    return apply, params, (x_of(3, 10),)


@entry
def cond_branches() -> Parts:
    """`lax.cond` between two branches with weights of their own, in and out of one hidden width."""
    rng = np.random.default_rng(0)
    branch = lambda hidden: {"up": weight(rng, 14, hidden), "down": weight(rng, hidden, 14)}
    params = {"in": weight(rng, 10, 14), "left": branch(18), "right": branch(22), "out": weight(rng, 14, 5)}

    def apply(params: PyTree, x: jax.Array, which: jax.Array) -> jax.Array:
        def run(p: PyTree, x: jax.Array) -> jax.Array:
            return x + jax.nn.relu(x @ p["up"]) @ p["down"]

        x = jnp.tanh(x @ params["in"])
        x = lax.cond(which > 0, lambda x: run(params["left"], x), lambda x: run(params["right"], x), x)
        return x @ params["out"]

    return apply, params, (x_of(3, 10), jnp.int32(1))


@jax.custom_jvp
def squareplus(x: jax.Array) -> jax.Array:
    """`(x + sqrt(x^2 + 4)) / 2`, which is one at zero."""
    return (x + jnp.sqrt(x * x + 4)) / 2


@squareplus.defjvp
def _squareplus_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    return squareplus(x), dx * (1 + x * lax.rsqrt(x * x + 4)) / 2


@jax.custom_jvp
def swish_sum(x: jax.Array) -> jax.Array:
    """`x * sigmoid(x) + mean(x)` over the last axis: an inside that contracts."""
    return x * jax.nn.sigmoid(x) + x.mean(axis=-1, keepdims=True)


@swish_sum.defjvp
def _swish_sum_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    s = jax.nn.sigmoid(x)
    return swish_sum(x), dx * (s + x * s * (1 - s)) + dx.mean(axis=-1, keepdims=True)


@entry
def custom_jvp_activations() -> Parts:
    """Activations with a derivative of their own: elementwise, and one that takes a mean."""
    rng = np.random.default_rng(0)
    params = [weight(rng, 10, 22), weight(rng, 22, 18), weight(rng, 18, 5)]

    def apply(params: PyTree, x: jax.Array) -> jax.Array:
        return swish_sum(squareplus(x @ params[0]) @ params[1]) @ params[2]

    return apply, params, (x_of(3, 10),)


@jax.custom_vjp
def fake_quant(x: jax.Array, scale: jax.Array) -> jax.Array:
    """Rounds to 8 bits of a step `scale`; the gradient passes straight through where nothing is clipped."""
    return jnp.clip(jnp.round(x / scale), -127, 127) * scale


def _fake_quant_forward(x: jax.Array, scale: jax.Array) -> tuple[jax.Array, tuple]:
    return fake_quant(x, scale), (x, scale)


def _fake_quant_backward(residuals: tuple, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, scale = residuals
    return jnp.where(jnp.abs(x / scale) <= 127.5, gradient, 0), jnp.zeros_like(scale)


fake_quant.defvjp(_fake_quant_forward, _fake_quant_backward)


@entry
def fake_quantized() -> Parts:
    """Quantization-aware training: weights by the largest of each column, activations by a learnt step."""
    rng = np.random.default_rng(0)
    params = {
        "w": [weight(rng, 10, 22), weight(rng, 22, 18), weight(rng, 18, 5)],
        "steps": [jnp.float32(0.02), jnp.float32(0.015), jnp.float32(0.01)],
    }

    def linear(w: jax.Array, step: jax.Array, x: jax.Array) -> jax.Array:
        scale = jnp.maximum(jnp.abs(w).max(axis=0, keepdims=True), 1e-8) / 127
        return fake_quant(x, step) @ fake_quant(w, scale)

    def apply(params: PyTree, x: jax.Array) -> jax.Array:
        for i, (w, step) in enumerate(zip(params["w"], params["steps"])):
            x = linear(w, step, x if i == 0 else jax.nn.relu(x))
        return x

    return apply, params, (x_of(3, 10),)


@entry
def vmapped_experts() -> Parts:
    """`jax.vmap` over stacked networks, their outputs mixed by a gate; a `jax.jit` inside, `lax.map` over examples."""
    rng = np.random.default_rng(0)
    params = {
        "up": weight(rng, 4, 10, 18), "down": weight(rng, 4, 18, 14), "gate": weight(rng, 10, 4), "out": weight(rng, 14, 5)
    }  # fmt: skip

    @jax.jit
    def expert(up: jax.Array, down: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.tanh(jax.nn.silu(x @ up) @ down)

    def apply(params: PyTree, x: jax.Array) -> jax.Array:
        outputs = jax.vmap(expert, in_axes=(0, 0, None))(params["up"], params["down"], x)
        mixed = jnp.einsum("ebd,be->bd", outputs, jax.nn.softmax(x @ params["gate"]))
        return lax.map(lambda y: y @ params["out"], mixed)

    return apply, params, (x_of(3, 10),)


@entry
def top_k_pooling() -> Parts:
    """A score for each element keeps the best 3 (`lax.top_k`, `take_along_axis`), sorted; then one is taken by an index."""
    rng = np.random.default_rng(0)
    params = {"in": weight(rng, 8, 14), "score": weight(rng, 14), "mix": weight(rng, 14, 18), "out": weight(rng, 18, 5)}

    def apply(params: PyTree, x: jax.Array) -> jax.Array:
        h = jax.nn.relu(x @ params["in"])
        score, index = lax.top_k(h @ params["score"], 3)
        h = jnp.take_along_axis(h, index[..., None], axis=1) * jnp.tanh(score)[..., None]
        return jnp.sort(jnp.tanh(h @ params["mix"]), axis=1).max(axis=1) @ params["out"]

    return apply, params, (x_of(2, 7, 8),)


MODELS = (
    graph_net, graph_attention, gcn_dense, fori_layers, while_equilibrium, cond_branches, custom_jvp_activations,
    fake_quantized, vmapped_experts, top_k_pooling,
)  # fmt: skip
