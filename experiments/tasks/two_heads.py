"""Two heads and a loss of its own: which digit an image shows, and by how many quarter turns it was turned."""

import flax.linen as nn
import jax
import numpy as np
import optax

from jaxopt_nn.pipeline.data import Source
from jaxopt_nn.pipeline.metrics import mean_of
from jaxopt_nn.pipeline.task import Task

from ..data.digits import digits
from ..models.build import Network, of_module

HEADS = {"digit": 10, "turns": 4}


class TwoHeads(nn.Module):
    """Images ``[B, 8, 8, 1]`` to ``{"digit": logits [B, 10], "turns": logits [B, 4]}``."""

    @nn.compact
    def __call__(self, image: jax.Array) -> dict[str, jax.Array]:
        x = nn.relu(nn.Dense(128)(image.reshape(len(image), -1)))
        x = nn.relu(nn.Dense(64)(x))
        return {head: nn.Dense(classes)(x) for head, classes in HEADS.items()}


def network(seed: int = 0) -> Network:
    return of_module(TwoHeads(), seed, 1, 8, 8, 1)


def loss(outputs: dict[str, jax.Array], batch: dict[str, jax.Array]) -> jax.Array:
    return sum(optax.softmax_cross_entropy_with_integer_labels(outputs[head], batch[head]) for head in HEADS)


def task(fold: int = 0) -> Task:
    """``{"image", "digit", "turns"}``: every image four times."""

    def turned(source: Source) -> dict[str, np.ndarray]:
        images, labels = source.tree
        turns = np.repeat(np.arange(4, dtype=np.int32), len(labels))
        return {"image": np.concatenate([np.rot90(images, k, (1, 2)) for k in range(4)]),
                "digit": np.tile(labels, 4), "turns": turns}  # fmt: skip

    def right(*heads: str):
        hits = lambda out, batch: sum(out[h].argmax(-1) == batch[h] for h in heads) == len(heads)
        return mean_of(hits, better="higher", unit="%")

    plain = digits(fold)
    metrics = {"both": right(*HEADS), **{head: right(head) for head in HEADS}}
    return Task(loss, turned(plain.train), turned(plain.test), inputs="image", metrics=metrics, headline="both")
