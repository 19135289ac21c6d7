"""Transformers on tokens, in plain JAX: one block, many ways of attention and of positions."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.corpus.base import Parts, PyTree, entry, ids_of, weight

VOCABULARY, WIDTH, HEADS, DEPTH, HIDDEN, LENGTH, LAYERS = 29, 20, 4, 6, 34, 7, 2
Attend = Callable[[PyTree, jax.Array], jax.Array]


def layer_norm(x: jax.Array, p: PyTree) -> jax.Array:
    """LayerNorm, two passes."""
    mean = x.mean(-1, keepdims=True)
    return (x - mean) * lax.rsqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-5) * p["g"] + p["b"]


def rms_norm(x: jax.Array, g: jax.Array) -> jax.Array:
    """RMSNorm."""
    return x * lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6) * g


def causal(scores: jax.Array) -> jax.Array:
    """Softmax over the keys up to the query, `[..., T, T]`."""
    length = scores.shape[-1]
    return jax.nn.softmax(jnp.where(jnp.tril(jnp.ones((length, length), bool)), scores, -1e9), axis=-1)


def mixed(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | float = 0.0) -> jax.Array:
    """Causal attention of `[B, T, H, D]`, to the same."""
    scores = jnp.einsum("bthd,bshd->bhts", q, k) / math.sqrt(q.shape[-1]) + bias
    return jnp.einsum("bhts,bshd->bthd", causal(scores), v)


def qkv(rng: np.random.Generator, heads: int = HEADS, kv_heads: int = HEADS) -> PyTree:
    """Separate kernels `[I, heads * D]`, with biases but for the keys."""
    return {
        "q": weight(rng, WIDTH, heads * DEPTH), "k": weight(rng, WIDTH, kv_heads * DEPTH),
        "v": weight(rng, WIDTH, kv_heads * DEPTH), "o": weight(rng, heads * DEPTH, WIDTH),
        "bq": weight(rng, heads * DEPTH), "bv": weight(rng, kv_heads * DEPTH), "bo": weight(rng, WIDTH),
    }  # fmt: skip


def split_heads(x: jax.Array) -> jax.Array:
    """`[B, T, H * D] -> [B, T, H, D]`."""
    return x.reshape(*x.shape[:2], -1, DEPTH)


def projected(p: PyTree, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries, keys and values by head."""
    return split_heads(x @ p["q"] + p["bq"]), split_heads(x @ p["k"]), split_heads(x @ p["v"] + p["bv"])


def joined(p: PyTree, x: jax.Array) -> jax.Array:
    """Heads back to the width."""
    return x.reshape(*x.shape[:2], -1) @ p["o"] + p["bo"]


def block(attend: Attend, p: PyTree, x: jax.Array) -> jax.Array:
    """Pre-norm block with a GELU MLP."""
    x = x + attend(p["attention"], layer_norm(x, p["ln1"]))
    y = jax.nn.gelu(layer_norm(x, p["ln2"]) @ p["up"] + p["up_b"])
    return x + y @ p["down"] + p["down_b"]


def block_params(rng: np.random.Generator, attention: PyTree) -> PyTree:
    """Of `block`."""
    norm = lambda: {"g": 1 + weight(rng, WIDTH), "b": weight(rng, WIDTH)}
    return {
        "attention": attention, "ln1": norm(), "ln2": norm(), "up": weight(rng, WIDTH, HIDDEN), "up_b": weight(rng, HIDDEN),
        "down": weight(rng, HIDDEN, WIDTH), "down_b": weight(rng, WIDTH),
    }  # fmt: skip


def language_model(
    attend: Attend,
    attention: Callable[[np.random.Generator], PyTree] = qkv,
    positions: Callable[[int], jax.Array] | None = None,
    learnt: bool = False,
) -> Parts:
    """Embedding, blocks, a norm and a head of its own, over two rows of tokens."""
    rng = np.random.default_rng(0)
    params = {
        "embed": weight(rng, VOCABULARY, WIDTH, fan_in=1), "head": weight(rng, WIDTH, VOCABULARY),
        "blocks": [block_params(rng, attention(rng)) for _ in range(LAYERS)],
        "ln": {"g": 1 + weight(rng, WIDTH), "b": weight(rng, WIDTH)},
    }  # fmt: skip
    if learnt:
        params["positions"] = weight(rng, 11, WIDTH, fan_in=4)

    def apply(params: PyTree, ids: jax.Array) -> jax.Array:
        x = params["embed"][ids]
        if learnt:
            x = x + params["positions"][jnp.arange(ids.shape[1])]
        if positions is not None:
            x = x + positions(ids.shape[1])
        for p in params["blocks"]:
            x = block(attend, p, x)
        return layer_norm(x, params["ln"]) @ params["head"]

    return apply, params, (ids_of(VOCABULARY, 2, LENGTH),)


@entry
def gpt_learned() -> Parts:
    """GPT with unrolled blocks, separate kernels, learnt positions looked up."""
    return language_model(lambda p, x: joined(p, mixed(*projected(p, x))), learnt=True)


def sinusoids(length: int) -> jax.Array:
    """`[T, I]` of Vaswani et al. (2017), sines and cosines interleaved by `.at`."""
    angle = jnp.arange(length)[:, None] / 10_000 ** (jnp.arange(0, WIDTH, 2) / WIDTH)
    table = jnp.zeros((length, WIDTH)).at[:, 0::2].set(jnp.sin(angle))
    return table.at[:, 1::2].set(jnp.cos(angle))


@entry
def gpt_sinusoidal() -> Parts:
    """Sinusoidal positions, a table without parameters, added to the residual stream."""
    return language_model(lambda p, x: joined(p, mixed(*projected(p, x))), positions=sinusoids)


@entry
def qkv_split() -> Parts:
    """One kernel for queries, keys and values, its output split in three."""

    def attention(rng: np.random.Generator) -> PyTree:
        inner = HEADS * DEPTH
        return {"qkv": weight(rng, WIDTH, 3 * inner), "b": weight(rng, 3 * inner), "o": weight(rng, inner, WIDTH)}

    def attend(p: PyTree, x: jax.Array) -> jax.Array:
        q, k, v = map(split_heads, jnp.split(x @ p["qkv"] + p["b"], 3, axis=-1))
        return mixed(q, k, v).reshape(*x.shape[:2], -1) @ p["o"]

    return language_model(attend, attention, learnt=True)


@entry
def qkv_reshape() -> Parts:
    """One kernel, its output reshaped to `[3, H, D]` and indexed (as in timm)."""

    def attention(rng: np.random.Generator) -> PyTree:
        inner = HEADS * DEPTH
        return {"qkv": weight(rng, WIDTH, 3 * inner), "o": weight(rng, inner, WIDTH), "bo": weight(rng, WIDTH)}

    def attend(p: PyTree, x: jax.Array) -> jax.Array:
        batch, time, _ = x.shape
        q, k, v = (x @ p["qkv"]).reshape(batch, time, 3, HEADS, -1).transpose(2, 0, 3, 1, 4)
        y = causal(q @ k.swapaxes(-2, -1) * DEPTH**-0.5) @ v
        return y.transpose(0, 2, 1, 3).reshape(batch, time, -1) @ p["o"] + p["bo"]

    return language_model(attend, attention, learnt=True)


@entry
def qkv_by_head() -> Parts:
    """One kernel whose output is reshaped to `[H, 3 * D]`, split by head (as in GPT-NeoX)."""

    def attention(rng: np.random.Generator) -> PyTree:
        return {"qkv": weight(rng, WIDTH, 3 * HEADS * DEPTH), "o": weight(rng, HEADS * DEPTH, WIDTH)}

    def attend(p: PyTree, x: jax.Array) -> jax.Array:
        y = (x @ p["qkv"]).reshape(*x.shape[:2], HEADS, 3 * DEPTH)
        q, k, v = y[..., :DEPTH], y[..., DEPTH : 2 * DEPTH], y[..., 2 * DEPTH :]
        return mixed(q, k, v).reshape(*x.shape[:2], -1) @ p["o"]

    return language_model(attend, attention, learnt=True)


@entry
def einsum_heads() -> Parts:
    """Kernels laid out `[I, H, D]` and `[H, D, I]`, all by einsum."""

    def attention(rng: np.random.Generator) -> PyTree:
        kernels = {name: weight(rng, WIDTH, HEADS, DEPTH, fan_in=WIDTH) for name in "qkv"}
        return kernels | {"o": weight(rng, HEADS, DEPTH, WIDTH, fan_in=HEADS * DEPTH)}

    def attend(p: PyTree, x: jax.Array) -> jax.Array:
        q, k, v = (jnp.einsum("bti,ihd->bthd", x, p[name]) for name in "qkv")
        return jnp.einsum("bthd,hdo->bto", mixed(q, k, v), p["o"])

    return language_model(attend, attention, learnt=True)


@entry
def gqa_repeat() -> Parts:
    """Grouped-query attention: 2 key and value heads, each repeated for 2 query heads by `jnp.repeat`."""

    def attend(p: PyTree, x: jax.Array) -> jax.Array:
        q, k, v = projected(p, x)
        return joined(p, mixed(q, jnp.repeat(k, 2, axis=2), jnp.repeat(v, 2, axis=2)))

    return language_model(attend, functools.partial(qkv, kv_heads=2), learnt=True)


@entry
def gqa_reshape() -> Parts:
    """Grouped-query attention: queries reshaped to `[kv heads, group, D]`; 3 query heads for each of 2."""

    def attend(p: PyTree, x: jax.Array) -> jax.Array:
        q, k, v = projected(p, x)
        q = q.reshape(*x.shape[:2], 2, 3, DEPTH)
        scores = causal(jnp.einsum("btkgd,bskd->bkgts", q, k) / math.sqrt(DEPTH))
        return joined(p, jnp.einsum("bkgts,bskd->btkgd", scores, v))

    return language_model(attend, functools.partial(qkv, heads=6, kv_heads=2), learnt=True)


@entry
def multi_query() -> Parts:
    """Multi-query attention: one key and value head, broadcast to all."""

    def attend(p: PyTree, x: jax.Array) -> jax.Array:
        q, k, v = split_heads(x @ p["q"] + p["bq"]), x @ p["k"], x @ p["v"] + p["bv"]
        scores = causal(jnp.einsum("bthd,bsd->bhts", q, k) / math.sqrt(DEPTH))
        return joined(p, jnp.einsum("bhts,bsd->bthd", scores, v))

    return language_model(attend, functools.partial(qkv, kv_heads=1), learnt=True)


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


@entry
def linear_attention() -> Parts:
    """Linear attention (Katharopoulos et al., 2020): `elu + 1` features, sums over time by `cumsum`."""

    def attend(p: PyTree, x: jax.Array) -> jax.Array:
        q, k, v = projected(p, x)
        q, k = jax.nn.elu(q) + 1, jax.nn.elu(k) + 1
        memory = jnp.cumsum(jnp.einsum("bthd,bthe->bthde", k, v), axis=1)
        norm = jnp.einsum("bthd,bthd->bth", q, jnp.cumsum(k, axis=1))
        return joined(p, jnp.einsum("bthd,bthde->bthe", q, memory) / norm[..., None])

    return language_model(attend, learnt=True)


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


MODELS = (
    gpt_learned, gpt_sinusoidal, qkv_split, qkv_reshape, qkv_by_head, einsum_heads, gqa_repeat, gqa_reshape, multi_query,
    rotary_half, rotary_interleaved, rotary_complex, rotary_partial, qk_norm, alibi, t5_bias, linear_attention,
    parallel_block, llama, llama_scan, llama_scan_remat, llama_remat, moe_top1, encoder_decoder,
)  # fmt: skip
