"""What a network must be for the pipeline, said before any work is done."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_nn.coding.structure import check_storable
from jaxopt_nn.core.paths import leaves_by_path
from jaxopt_nn.parallel.infer import abstract_outputs
from jaxopt_nn.pipeline.data import Data
from jaxopt_nn.tensors.base import is_compressed

PyTree = Any


def check_variables(variables: PyTree) -> PyTree:
    """The tree with JAX arrays.

    Raises:
      TypeError: a leaf or node that can't be stored. ValueError: no leaf, a compressed tensor, NaN or Inf; named by path.
    """
    check_storable(variables)
    leaves = leaves_by_path(variables)
    if not leaves:
        raise ValueError(
            "variables holds no array: pass the whole pytree that apply takes, e.g. what model.init returned"
        )
    for path, leaf in leaves.items():
        if is_compressed(leaf):
            raise ValueError(
                f"{path}: is a {type(leaf).__name__}; a recipe starts from floats: jaxopt_nn.densify(variables)"
            )
    numbers = {path: leaf for path, leaf in leaves.items() if jnp.issubdtype(leaf.dtype, jnp.inexact)}
    for path, bad in jax.device_get(_not_finite(numbers)).items():
        if bad:
            raise ValueError(
                f"{path}: {bad} of {numbers[path].size} entries are NaN or Inf; find the training step that diverged"
            )
    return jax.tree.map(jnp.asarray, variables)


@jax.jit
def _not_finite(leaves: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {path: jnp.sum(~jnp.isfinite(leaf)) for path, leaf in leaves.items()}


def check_data(data: Any) -> None:
    """Raises TypeError where ``data`` is no ``Data``."""
    if not isinstance(data, Data):
        raise TypeError(f"data is a {type(data).__name__}; pass Data(train=(x, y), test=(x, y))")


def check_logits(apply: Callable[..., Any], variables: PyTree, data: Data, what: str = "apply") -> int:
    """The number of classes.

    Args:
      what: what messages call the network.

    Raises:
      ValueError: ``apply`` can't take the inputs, gives other than floats ``[*labels, classes]``, or a label has no logit.
    """
    classes = _classes(apply, variables, data, what)
    data.check_labels(classes, what)
    return classes


def check_teacher(apply: Callable[..., Any], variables: PyTree, data: Data, classes: int) -> None:
    """Raises ValueError where a teacher gives other than logits of as many classes as its student."""
    taught = _classes(apply, variables, data, "the teacher")
    if taught != classes:
        raise ValueError(
            f"the teacher gives {taught} classes, the student {classes}: distillation needs the same classes; "
            "cut or map the teacher's logits in its apply"
        )


def _classes(apply: Callable[..., Any], variables: PyTree, data: Data, what: str) -> int:
    pair = np.repeat(data.example, 2, axis=0)
    places = (2, *data.test[1].shape[1:])
    out = abstract_outputs(apply, variables, pair, what=what)
    given = f"{out.dtype}{list(out.shape)}" if isinstance(out, jax.ShapeDtypeStruct) else str(jax.tree.structure(out))
    logits = isinstance(out, jax.ShapeDtypeStruct) and jnp.issubdtype(out.dtype, jnp.floating)
    if not logits or out.shape[:-1] != places:
        raise ValueError(
            f"{what} gives {given} for 2 inputs with labels {list(places)}; compress needs logits, float "
            f"[{', '.join(map(str, places))}, classes]: wrap apply so that it returns them, and pass class numbers as "
            "labels (no one-hot)"
        )
    return out.shape[-1]
