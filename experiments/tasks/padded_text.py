"""A language model over padded lines, whose batches come from a generator: numbers in words, letter by letter."""

from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_nn.pipeline.classes import language_model
from jaxopt_nn.pipeline.task import Task

from ..models.build import Network, of_module

LETTERS = "_.$ abcdefghijklmnopqrstuvwxyz"  # padding, end and beginning of a line first
UNITS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
UNITS = (UNITS + "eighteen nineteen").split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
#: The longest number below ten thousand in words, with its beginning and end.
LENGTH = 44


def words(n: int) -> str:
    """``words(4_312) == "four thousand three hundred twelve"``."""
    if n < 20:
        return UNITS[n]
    if n < 100:
        return TENS[n // 10 - 2] + (f" {UNITS[n % 10]}" if n % 10 else "")
    size, name = (100, "hundred") if n < 1000 else (1000, "thousand")
    return f"{words(n // size)} {name}" + (f" {words(n % size)}" if n % size else "")


class Reader(nn.Module):
    """Letters ``[B, T]`` to logits ``[B, T, 30]``, by a recurrent network."""

    @nn.compact
    def __call__(self, letters: jax.Array) -> jax.Array:
        x = nn.Embed(len(LETTERS), 32)(letters)
        return nn.Dense(len(LETTERS))(nn.RNN(nn.GRUCell(64))(x))


def network(seed: int = 0) -> Network:
    return of_module(Reader(), seed, 1, 2, dtype=jnp.int32)


def task(batches: int = 32, batch_size: int = 64) -> Task:
    """Lines int32 ``[batch_size, 44]`` of ``$`` and a number below ten thousand in words, padded behind its end."""

    def lines(seed: int, count: int = batches) -> Iterator[np.ndarray]:
        rng = np.random.default_rng(seed)
        for _ in range(count):
            texts = [f"${words(n)}.".ljust(LENGTH, "_") for n in rng.integers(0, 10_000, batch_size)]
            yield np.array([[LETTERS.index(c) for c in text] for text in texts], np.int32)

    return language_model(train=lines, test=lambda: lines(seed=2**32, count=8), ignore=LETTERS.index("_"))
