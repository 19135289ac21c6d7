"""Whole transformers on tokens, in plain JAX."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.corpus.base import Parts, PyTree, entry, ids_of, weight, x_of
from tests.corpus.blocks import (
    DEPTH,
    HEADS,
    HIDDEN,
    LENGTH,
    VOCABULARY,
    WIDTH,
    joined,
    layer_norm,
    mixed,
    qkv,
    rms_norm,
    split_heads,
)
from tests.corpus.positions import rotate_half, sinusoids


@entry
def parallel_block() -> Parts:
    """GPT-J: attention and MLP side by side from one norm, one fused kernel for all of it, split unevenly."""
    rng = np.random.default_rng(0)
    inner = HEADS * DEPTH
    params = {
        "embed": weight(rng, VOCABULARY, WIDTH, fan_in=1), "g": 1 + weight(rng, WIDTH),
        "fused": weight(rng, WIDTH, 3 * inner + 2 * HIDDEN), "attn_out": weight(rng, inner, WIDTH),
        "mlp_out": weight(rng, HIDDEN, WIDTH),
    }  # fmt: skip

    def apply(params: PyTree, ids: jax.Array) -> jax.Array:
        x = params["embed"][ids]
        y = rms_norm(x, params["g"]) @ params["fused"]
        q, k, v, gate, up = jnp.split(y, (inner, 2 * inner, 3 * inner, 3 * inner + HIDDEN), axis=-1)
        attended = mixed(rotate_half(split_heads(q)), rotate_half(split_heads(k)), split_heads(v))
        x = x + attended.reshape(*x.shape[:2], -1) @ params["attn_out"] + (jax.nn.silu(gate) * up) @ params["mlp_out"]
        return x @ params["embed"].T

    return apply, params, (ids_of(VOCABULARY, 2, LENGTH),)


def llama_params(rng: np.random.Generator) -> PyTree:
    """One Llama block."""
    p = {name: x for name, x in qkv(rng, kv_heads=2).items() if not name.startswith("b")}
    return {
        "attention": p, "norm1": 1 + weight(rng, WIDTH), "norm2": 1 + weight(rng, WIDTH), "gate": weight(rng, WIDTH, HIDDEN),
        "up": weight(rng, WIDTH, HIDDEN), "down": weight(rng, HIDDEN, WIDTH),
    }  # fmt: skip


def llama_block(p: PyTree, x: jax.Array) -> jax.Array:
    """RMSNorm, rotary grouped-query attention, SwiGLU."""
    y = rms_norm(x, p["norm1"])
    q, k, v = (split_heads(y @ p["attention"][name]) for name in "qkv")
    k, v = (jnp.repeat(z, 2, axis=2) for z in (rotate_half(k), v))
    x = x + mixed(rotate_half(q), k, v).reshape(*x.shape[:2], -1) @ p["attention"]["o"]
    y = rms_norm(x, p["norm2"])
    return x + (jax.nn.silu(y @ p["gate"]) * (y @ p["up"])) @ p["down"]


def _llama(over_layers: Callable[[PyTree, jax.Array], jax.Array], stacked: bool) -> Parts:
    rng = np.random.default_rng(0)
    blocks = [llama_params(rng) for _ in range(3)]
    params = {
        "embed": weight(rng, VOCABULARY, WIDTH, fan_in=1), "norm": 1 + weight(rng, WIDTH),
        "blocks": jax.tree.map(lambda *xs: jnp.stack(xs), *blocks) if stacked else blocks,
    }  # fmt: skip

    def apply(params: PyTree, ids: jax.Array) -> jax.Array:
        x = over_layers(params["blocks"], jnp.take(params["embed"], ids, axis=0))
        return jnp.einsum("btd,vd->btv", rms_norm(x, params["norm"]), params["embed"])

    return apply, params, (ids_of(VOCABULARY, 2, LENGTH),)


@entry
def llama() -> Parts:
    """Llama with tied embeddings, blocks unrolled."""
    return _llama(lambda blocks, x: functools.reduce(lambda x, p: llama_block(p, x), blocks, x), False)


@entry
def llama_scan() -> Parts:
    """Llama scanned by `lax.scan` over stacked parameters."""
    return _llama(lambda blocks, x: lax.scan(lambda x, p: (llama_block(p, x), None), x, blocks)[0], True)


@entry
def llama_scan_remat() -> Parts:
    """Llama scanned, each block under `jax.checkpoint` with a policy."""
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    body = jax.checkpoint(lambda x, p: (llama_block(p, x), None), policy=policy)
    return _llama(lambda blocks, x: lax.scan(body, x, blocks)[0], True)


@entry
def llama_remat() -> Parts:
    """Llama unrolled, each block under `jax.checkpoint`, in a `jax.jit` of its own."""
    step = jax.jit(jax.checkpoint(llama_block))
    return _llama(lambda blocks, x: functools.reduce(lambda x, p: step(p, x), blocks, x), False)


@entry
def moe_top1() -> Parts:
    """Switch transformer's layer (Fedus et al., 2022): stacked experts, all computed, one chosen by one-hot."""
    rng = np.random.default_rng(0)
    params = {
        "embed": weight(rng, VOCABULARY, WIDTH, fan_in=1), "router": weight(rng, WIDTH, 3), "g": 1 + weight(rng, WIDTH),
        "up": weight(rng, 3, WIDTH, HIDDEN), "b": weight(rng, 3, HIDDEN, fan_in=100), "down": weight(rng, 3, HIDDEN, WIDTH),
        "head": weight(rng, WIDTH, VOCABULARY),
    }  # fmt: skip

    def apply(params: PyTree, ids: jax.Array) -> jax.Array:
        x = params["embed"][ids]
        y = rms_norm(x, params["g"])
        gates = jax.nn.softmax(y @ params["router"])
        dispatch = jax.nn.one_hot(gates.argmax(-1), 3)
        routed = jnp.einsum("bte,btd->ebtd", dispatch, y)
        hidden = jax.nn.relu(jnp.einsum("ebtd,edf->ebtf", routed, params["up"]) + params["b"][:, None, None])
        out = jnp.einsum("ebtf,efd->ebtd", hidden, params["down"])
        combined = jnp.einsum("ebtd,bte->btd", out, dispatch * gates)
        return (x + combined) @ params["head"]

    return apply, params, (ids_of(VOCABULARY, 2, LENGTH),)


@entry
def moe_top2() -> Parts:
    """Mixtral's layer: the best 2 of 4 experts for each token by `lax.top_k`, whose weights are looked up; SwiGLU."""
    rng = np.random.default_rng(0)
    params = {
        "embed": weight(rng, VOCABULARY, WIDTH, fan_in=1), "router": weight(rng, WIDTH, 4), "g": 1 + weight(rng, WIDTH),
        "gate": weight(rng, 4, WIDTH, 18), "up": weight(rng, 4, WIDTH, 18), "down": weight(rng, 4, 18, WIDTH),
        "head": weight(rng, WIDTH, VOCABULARY),
    }  # fmt: skip

    def apply(params: PyTree, ids: jax.Array) -> jax.Array:
        x = params["embed"][ids]
        y = rms_norm(x, params["g"])
        logits, chosen = lax.top_k(y @ params["router"], 2)
        gate, up, down = (params[name][chosen] for name in ("gate", "up", "down"))
        hidden = jax.nn.silu(jnp.einsum("btd,btkdf->btkf", y, gate)) * jnp.einsum("btd,btkdf->btkf", y, up)
        out = jnp.einsum("btkf,btkfd,btk->btd", hidden, down, jax.nn.softmax(logits))
        return (x + out) @ params["head"]

    return apply, params, (ids_of(VOCABULARY, 2, LENGTH),)


@entry
def moe_ragged() -> Parts:
    """Tokens sorted by their expert and sent through `lax.ragged_dot`, then put back (as in MaxText)."""
    rng = np.random.default_rng(0)
    params = {
        "in": weight(rng, 10, WIDTH), "router": weight(rng, WIDTH, 3), "up": weight(rng, 3, WIDTH, HIDDEN),
        "down": weight(rng, 3, HIDDEN, WIDTH), "mlp": weight(rng, WIDTH, 22), "out": weight(rng, 22, 5),
    }  # fmt: skip

    def apply(params: PyTree, x: jax.Array) -> jax.Array:
        x = jax.nn.relu(x @ params["in"])
        gates = jax.nn.softmax(x @ params["router"])
        chosen = gates.argmax(-1)
        order = jnp.argsort(chosen)
        sizes = jnp.bincount(chosen, length=3)
        hidden = jax.nn.relu(lax.ragged_dot(x[order], params["up"], sizes))
        out = lax.ragged_dot(hidden, params["down"], sizes)[jnp.argsort(order)]
        return jnp.tanh((x + out * gates.max(-1, keepdims=True)) @ params["mlp"]) @ params["out"]

    return apply, params, (x_of(8, 10),)


@entry
def encoder_decoder() -> Parts:
    """Post-norm encoder and decoder with cross attention (Vaswani et al., 2017), one table for all three."""
    rng = np.random.default_rng(0)
    norm = lambda: {"g": 1 + weight(rng, WIDTH), "b": weight(rng, WIDTH)}
    mlp = lambda: {"up": weight(rng, WIDTH, HIDDEN), "down": weight(rng, HIDDEN, WIDTH)}
    params = {
        "embed": weight(rng, VOCABULARY, WIDTH, fan_in=WIDTH), "encoder": {"self": qkv(rng), "ln": [norm(), norm()]} | mlp(),
        "decoder": {"self": qkv(rng), "cross": qkv(rng), "ln": [norm(), norm(), norm()]} | mlp(),
    }  # fmt: skip

    def attend(p: PyTree, x: jax.Array, memory: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        q, k, v = split_heads(x @ p["q"] + p["bq"]), split_heads(memory @ p["k"]), split_heads(memory @ p["v"] + p["bv"])
        scores = jnp.einsum("bthd,bshd->bhts", q, k) / math.sqrt(DEPTH)
        if mask is not None:
            scores = jnp.where(mask, scores, -jnp.inf)
        return joined(p, jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores), v))

    def mlp_of(p: PyTree, x: jax.Array) -> jax.Array:
        return jax.nn.relu(x @ p["up"]) @ p["down"]

    def apply(params: PyTree, source: jax.Array, target: jax.Array) -> jax.Array:
        table = params["embed"]
        embedded = lambda ids: table[ids] * math.sqrt(WIDTH) + sinusoids(ids.shape[1])
        p = params["encoder"]
        memory = embedded(source)
        memory = layer_norm(memory + attend(p["self"], memory, memory), p["ln"][0])
        memory = layer_norm(memory + mlp_of(p, memory), p["ln"][1])
        p = params["decoder"]
        x = embedded(target)
        mask = jnp.tril(jnp.ones((target.shape[1],) * 2, bool))
        x = layer_norm(x + attend(p["self"], x, x, mask), p["ln"][0])
        x = layer_norm(x + attend(p["cross"], x, memory), p["ln"][1])
        x = layer_norm(x + mlp_of(p, x), p["ln"][2])
        return jax.nn.log_softmax(x @ table.T)

    return apply, params, (ids_of(VOCABULARY, 2, LENGTH), ids_of(VOCABULARY, 2, 5, seed=2))


MODELS = (parallel_block, llama, llama_scan, llama_scan_remat, llama_remat, moe_top1, moe_top2, moe_ragged, encoder_decoder)
