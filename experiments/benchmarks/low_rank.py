"""Claim: of every rank the whitened factors keep a layer's outputs better than those of plain SVD, on real inputs.

Command: ``python -m experiments.benchmarks.low_rank`` (10 minutes on 2 cores, most of it two trainings; ``... low_rank LM
RESNET`` begins with trained weights: an artifact of the byte LM, and the ``float`` folder of a run of ``fashion_resnet_svd``)

Every matrix and convolution of the byte LM of ``configs/bytes_lm_ptq.py`` and of the ResNet of
``configs/fashion_resnet_svd.py``, in channel form, at every rank below the full one. The error is that of the layer's outputs,
over the outputs, by Gram matrices of the inputs: of the examples that the factors were made of, and of as many others. Layers
of a stack count each for itself.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_nn as jn
from configs import bytes_lm_ptq, fashion_resnet_svd
from experiments.common import load_task
from experiments.config import checked
from experiments.model import restored
from experiments.models import fashion, text
from jaxopt_nn.core.paths import leaves_by_path
from jaxopt_nn.numerics import low_rank

from .common import emit

EXAMPLES = 256


def trained(config: Any, make: Any, place: str | None) -> tuple[jn.Network, jn.Task]:
    """The network of a config after its float training, and its task."""
    config = checked(config)
    task, net = load_task(config), make(config["seed"], **config["model_args"])
    if place is None:
        stage = jn.Stage("float", jn.identity(), **{k: config["float"][k] for k in ("epochs", "learning_rate")})
        return jn.compress(net, [stage], task, seed=config["seed"], latency=False).network, task
    read = jn.load_artifact(place)[0] if make is text.gpt else restored(place, net.variables)
    return net.replace(variables=read), task


def errors(left: Any, right: Any, gram: Any) -> Any:
    """Of each rank below the full one, over the outputs: the right factors are orthogonal to each other."""
    root = low_rank.root(gram)
    seen = root[:, None] * left if root.ndim == 1 else root @ left
    energy = jnp.sum(jnp.square(seen), 0) * jnp.sum(jnp.square(right), 1)
    return jnp.sqrt(jnp.cumsum(energy[::-1])[::-1][1:] / jnp.sum(energy))


@jax.jit
def compared(w: Any, gram: Any, other: Any) -> dict[str, Any]:
    """Errors by rank of plain and whitened factors of a matrix, on their own inputs and on others."""
    out = {}
    for name, own in (("plain", None), ("whitened", gram)):
        left, right, _ = low_rank.factored(w, own)
        out |= {name: errors(left, right, gram), f"{name}, others": errors(left, right, other)}
    return out


def layers(net: jn.Network, task: jn.Task) -> Iterator[tuple[str, Any, Any, Any]]:
    """``(name, matrix, its inputs' Gram matrix, that of other inputs)`` of each site with a weight, by entries of its stack."""
    batches, method = task.calibration(2 * EXAMPLES), jn.low_rank(1, whiten="inputs")
    half = len(batches) // 2
    infos = [jn.calibrate(net, method, part) for part in (batches[:half], batches[half:])]
    leaves = leaves_by_path(net.variables)
    for site in infos[0].sites:
        grams = [info.stats.get(((), site.name, "gram")) for info in infos]
        if grams[0] is None or site.kind == "gather" or min(site.inputs, site.outputs) < 2:
            continue
        w = site.matrix(leaves[site.leaf]).astype(jnp.float32).reshape(-1, site.inputs, site.outputs)
        rows = [gram.reshape(-1, *gram.shape[len(site.stack) :]) for gram in grams]
        yield from ((site.name, w[i], rows[0][i], rows[1][i]) for i in range(len(w)))


def run(name: str, net: jn.Network, task: jn.Task) -> list[dict[str, Any]]:
    """A row for each kernel, over its layers and ranks."""
    found: dict[str, list[dict[str, np.ndarray]]] = {}
    for path, *matrices in layers(net, task):
        found.setdefault(path, []).append({k: np.asarray(x) for k, x in compared(*matrices).items()})
    rows = []
    for path, each in found.items():
        by = {key: np.stack([own[key] for own in each]) for key in each[0]}
        quarter = max(0, by["plain"].shape[1] // 4 - 1)
        row = {"network": name, "layer": path, "layers": len(each), "ranks": by["plain"].shape[1]}
        for others in ("", ", others"):
            plain, whitened = by[f"plain{others}"], by[f"whitened{others}"]
            row[f"better{others}"] = f"{int((whitened < plain).sum())} of {plain.size}"
            row[f"median ratio{others}"] = round(float(np.median(whitened / plain)), 3)
        row["at a quarter of the rank, plain, %"] = round(100 * float(by["plain"][:, quarter].mean()), 1)
        row["whitened, %"] = round(100 * float(by["whitened"][:, quarter].mean()), 1)
        rows.append(row)
        print(row, file=sys.stderr, flush=True)
    return rows


def main() -> None:
    lm, resnet = (sys.argv[1:] + [None, None])[:2]
    rows = run("byte LM", *trained(bytes_lm_ptq.get_config(), text.gpt, lm))
    emit(rows + run("ResNet", *trained(fashion_resnet_svd.get_config(), fashion.resnet, resnet)))


if __name__ == "__main__":
    main()
