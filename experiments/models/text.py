"""Language models over bytes, as a config builds them: tokens int ``[B, T]``, logits ``[B, T, vocabulary]``."""

import jax.numpy as jnp

from .build import Network, of_module
from .gpt import GPT


def gpt(
    seed: int = 0,
    vocabulary: int = 256,
    width: int = 128,
    layers: int = 4,
    heads: int = 4,
    kv_heads: int = 2,
    hidden: int = 384,
    scan: bool = True,
) -> Network:
    """A causal transformer with tied embeddings: 820,352 parameters by default, any length of text.

    With ``scan`` the layers' weights are stacked, ``params/blocks/...: [layers, ...]``, and the block is compiled once.

    Raises:
      ValueError: ``heads`` do not divide ``width`` into an even depth, or ``kv_heads`` not ``heads``.
    """
    if heads < 1 or width % (2 * heads):
        raise ValueError(
            f"gpt(width={width}, heads={heads}): rotary positions need a width that is a multiple of 2 x heads"
        )
    if kv_heads < 1 or heads % kv_heads:
        raise ValueError(f"gpt(heads={heads}, kv_heads={kv_heads}): heads must be a multiple of kv_heads")
    model = GPT(vocabulary, width, layers, heads, kv_heads, hidden, scan)
    return of_module(model, seed, 1, 2, dtype=jnp.int32)
