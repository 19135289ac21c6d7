"""Flax NNX."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax

from jaxopt_nn.core.paths import leaves_by_path, map_with_path
from jaxopt_nn.interpret.network import Network

PyTree = Any

if TYPE_CHECKING:
    from flax import nnx as flax_nnx


def nnx(model: flax_nnx.Module) -> Network:
    """An NNX module as a ``Network``; its variables are a plain nested dict with no ``.value`` in its paths.

    Evaluation is the module after ``model.eval()``, training after ``model.train()``; the given module stays as it is. In
    training mode what a call changes (running statistics, caches) is kept, and each random stream is drawn from the step's
    key. Only ``nnx.Param`` is trained.

    Raises:
      TypeError: ``model`` is no NNX module, e.g. a class of modules.

    Example:
      >>> from flax import nnx
      >>> net = jn.nnx(nnx.Linear(4, 2, rngs=nnx.Rngs(0)))
      >>> jax.tree.map(jnp.shape, net.variables)
      {'bias': (2,), 'kernel': (4, 2)}
      >>> net(jnp.ones((3, 4))).shape
      (3, 2)
    """
    from flax import nnx as flax_nnx

    if not isinstance(model, flax_nnx.Module):
        given = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
        raise TypeError(
            f"nnx(): model is {given}; pass an instance of an NNX module, made with its rngs (a Linen module: linen())"
        )
    graph, state = flax_nnx.split(model)
    kinds = {"/".join(map(str, keys)): type(variable) for keys, variable in flax_nnx.to_flat_state(state)}
    still = frozenset(path for path, kind in kinds.items() if not issubclass(kind, flax_nnx.Param))
    drawn = {path for path, kind in kinds.items() if issubclass(kind, flax_nnx.RngState)}
    evaluating, training = (_in_mode(graph, state, mode) for mode in ("eval", "train"))

    def seen(variables: PyTree) -> PyTree:
        return map_with_path(lambda path, x: jax.lax.stop_gradient(x) if path in still else x, variables)

    def apply(variables: PyTree, *inputs: Any) -> PyTree:
        return flax_nnx.merge(evaluating, seen(variables) if still else variables)(*inputs)

    def trained(variables: PyTree, *inputs: Any, key: Any) -> tuple[PyTree, dict[str, Any]]:
        keys = {path: jax.random.fold_in(key, i) for i, path in enumerate(sorted(drawn))}
        fresh = lambda path, x: keys[path] if path in drawn and issubclass(kinds[path], flax_nnx.RngKey) else x
        before = map_with_path(fresh, seen(variables))
        module = flax_nnx.merge(training, before)
        outputs = module(*inputs)
        kept, now = leaves_by_path(before), leaves_by_path(flax_nnx.to_pure_dict(flax_nnx.split(module)[1]))
        return outputs, {path: now[path] for path in still - drawn if now[path] is not kept[path]}

    plain = training == evaluating and not still
    return Network(apply, flax_nnx.to_pure_dict(state), training=None if plain else trained, still=still)


def _in_mode(graph: Any, state: Any, mode: str) -> Any:
    """The module's structure in evaluation or training mode."""
    from flax import nnx as flax_nnx

    module = flax_nnx.merge(graph, state)
    getattr(module, mode)()
    return flax_nnx.split(module)[0]
