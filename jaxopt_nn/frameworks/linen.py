"""Flax Linen."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax

from jaxopt_nn.core.arguments import in_words
from jaxopt_nn.core.paths import leaves_by_path, near_misses
from jaxopt_nn.interpret.network import Network
from jaxopt_nn.tensors.base import check_dense

PyTree = Any

if TYPE_CHECKING:
    from flax import linen as nn

#: Arguments by which modules are told their mode, with their value in training.
MODES = {"train": True, "training": True, "is_training": True, "deterministic": False, "use_running_average": False}


def linen(
    model: nn.Module, variables: PyTree, *, training: Mapping[str, Any] | None = None, **evaluation: Any
) -> Network:
    """A Linen module as a ``Network``.

    Its two modes are found by the argument that the module's call has for it (``train``, ``training``, ``is_training``,
    ``deterministic``, ``use_running_average``). In training mode every collection besides ``params`` may change, and each
    random stream is drawn from the step's key. Only ``params`` is trained.

    Args:
      model: an unbound module.
      variables: what ``model.init`` gave, with its collections: ``{"params": ..., "batch_stats": ...}``.
      training: keyword arguments of a call in training mode, over the ones that were found.
      evaluation: of a call in evaluation mode, likewise, e.g. ``method="encode"`` (which holds in training too).

    Raises:
      TypeError: ``model`` is no module, e.g. a class of modules, or ``variables`` no dict.
      ValueError: ``variables`` has no collection ``params``: the inner tree was passed.

    Example:
      >>> import flax.linen as nn
      >>> model = nn.Sequential([nn.Dense(8), nn.BatchNorm(use_running_average=True), nn.Dense(2)])
      >>> net = jn.linen(model, model.init(jax.random.key(0), jnp.ones((1, 4))))
      >>> net(jnp.ones((3, 4))).shape
      (3, 2)
      >>> sorted(net.still)  # what no optimizer moves
      ['batch_stats/layers_1/mean', 'batch_stats/layers_1/var']
    """
    _check(model, variables)
    method = evaluation.get("method") or "__call__"
    if not callable(method) and not hasattr(type(model), method):
        near = near_misses(method, _methods(type(model)))
        has = ", ".join(near) or "__call__"
        raise ValueError(f"linen(method={method!r}): {type(model).__name__} has no such method; use {has}")
    named = inspect.signature(method if callable(method) else getattr(type(model), method)).parameters
    modes = {name: value for name, value in MODES.items() if name in named}
    evaluated = {**{name: not value for name, value in modes.items()}, **evaluation}
    in_training = {**evaluated, **modes, **(training or {})}
    others = [name for name in variables if name != "params"]
    still = frozenset(path for path in leaves_by_path(dict(variables)) if path.split("/", 1)[0] != "params")

    def seen(variables: PyTree) -> PyTree:
        return {name: part if name == "params" else jax.lax.stop_gradient(part) for name, part in variables.items()}

    def apply(variables: PyTree, *inputs: Any) -> PyTree:
        check_dense(variables)  # else Flax says that a shape is wrong
        return model.apply(seen(variables), *inputs, **evaluated)

    def trained(variables: PyTree, *inputs: Any, key: Any) -> tuple[PyTree, dict[str, Any]]:
        keys = dict(zip(("params", "dropout"), jax.random.split(key), strict=True))  # other streams draw from `params`
        before = seen(variables)
        outputs, after = model.apply(before, *inputs, **in_training, rngs=keys, mutable=others)
        kept, now = leaves_by_path(before), leaves_by_path(dict(after))
        return outputs, {path: leaf for path, leaf in now.items() if path in still and leaf is not kept[path]}

    same = in_training == evaluated and not others
    return Network(apply, variables, training=None if same else trained, still=still)


def _methods(kind: type) -> list[str]:
    """Public methods of a module's class; fields whose default is a function, such as an initializer, are none."""
    fields = {field.name for field in dataclasses.fields(kind)}
    return [name for name, value in vars(kind).items() if callable(value) and name[0] != "_" and name not in fields]


def _check(model: Any, variables: Any) -> None:
    from flax import linen as nn

    if not isinstance(model, nn.Module):
        given = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
        raise TypeError(
            f"linen(): model is {given}; pass an instance of a Linen module first, then what its init returned"
        )
    if not isinstance(variables, Mapping):
        raise TypeError(
            f"linen(): variables is {in_words(variables)}; pass what model.init returned, a dict of collections"
        )
    if "params" not in variables:
        raise ValueError(
            f"linen(): variables has the collections {sorted(variables)}, none called 'params'; "
            "pass what model.init returned, or {'params': params}"
        )
