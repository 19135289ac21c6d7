"""From a network to programs that run without its code."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.export

from jaxopt_nn.core.arguments import require
from jaxopt_nn.core.paths import leaves_by_path
from jaxopt_nn.export.programs import PLATFORMS, Programs, abstract, closed, opened, serialized
from jaxopt_nn.interpret.network import Network, abstract_outputs, network_of
from jaxopt_nn.interpret.program import complaint
from jaxopt_nn.interpret.stored import prepared_for
from jaxopt_nn.tensors.base import densify, is_compressed

PyTree = Any


def exported(
    network: Network, inputs: Sequence[PyTree], platforms: Sequence[str] = ("cpu", "tpu"), *, batch: int | None = None
) -> dict[str, Programs]:
    """The network as programs for each platform; nothing is run, and no platform need be here.

    Weights and rules' states are arguments of the programs, in stored form: their size does not grow with the network's
    width. A batch may have any number of rows: where a formulation would choose by it, the program is the one for many rows,
    which is right for any; ``batch`` gets that of its own number. What a rule or a formulation takes from this machine (what
    the CPU multiplies by itself) is fixed in the program, which runs on any machine of the platform.

    Args:
      network: its compressed tensors in stored form, of arrays or ``jax.ShapeDtypeStruct``.
      inputs: what ``apply`` takes after its variables, as an example: pytrees of arrays or ``jax.ShapeDtypeStruct`` whose
        first axis is the batch, the same for all; an array without axes stays as it is. If some hold symbolic lengths
        (``jax.export.symbolic_shape``: texts of any length, say), these are the open ones, and all others stay.
      platforms: ``"cpu"``, ``"gpu"``, ``"tpu"``.
      batch: rows of the batch, if only such are to run.

    Raises:
      ValueError: another platform or batch; inputs of several batch sizes; a prepared tensor; ``apply`` fails on such inputs,
        or can't be traced for a batch of any size; inputs or outputs in a container that ``jax.export`` can't write.

    Example:
      >>> net = jn.Network(lambda v, x: x @ v["kernel"], {"kernel": jnp.ones((4, 2))})
      >>> programs = jn.exported(net, (jax.ShapeDtypeStruct((1, 4), "float32"),), ["cpu", "tpu"])
      >>> sorted(programs)
      ['cpu', 'tpu']
    """
    network = network_of(network)
    require(inputs, tuple | list, "exported: inputs", "a tuple of what apply takes after its variables: (x,)")
    shapes = _shapes(tuple(inputs), batch)
    check_platforms(platforms)
    for path, leaf in leaves_by_path(network.variables).items():
        if is_compressed(leaf) and (ready := getattr(leaf, "platform", None)) is not None:
            raise ValueError(
                f"{path}: is prepared for {ready}, and an exported network holds its weights as stored: pass the variables "
                "that `pack` or `compress` gave, before jaxopt_nn.prepare"
            )
    network = network.replace(variables=abstract(network.variables), states=abstract(dict(network.states)))
    found = {}
    for platform in platforms:
        try:
            with _without_places():
                made = _traced(network, shapes, platform)
        except Exception as error:
            abstract_outputs(network, *abstract(tuple(inputs)))  # says so if the example's own shapes are at fault
            raise ValueError(_refused(error, batch)) from error
        found[platform] = Programs(*map(serialized, made))
    return found


def check_platforms(platforms: Sequence[str]) -> None:
    """Raises ValueError for a name that is none of a platform's, or that stands alone in place of a list."""
    if isinstance(platforms, str) or not set(platforms) <= set(PLATFORMS):
        raise ValueError(f"export for {platforms!r}: pass a list of some of {', '.join(map(repr, PLATFORMS))}")


def _refused(error: Exception, batch: int | None) -> str:
    what = "any size" if batch is None else f"{batch} rows"
    advice = (
        "Pass batch=, a number of rows, to export it for that many; or write what depends on the batch's length so that it may "
        "be a symbol (see JAX's page on shape polymorphism)"
    )
    return f"the network can't be exported for a batch of {what}: {complaint(error)}. {advice if batch is None else ''}".strip()


def _traced(network: Network, inputs: tuple[PyTree, ...], platform: str) -> tuple[jax.export.Exported, ...]:
    """The program that prepares, and the one that runs."""
    ready = network.prepared(platform).variables
    tree = jax.tree.structure(ready, is_leaf=is_compressed)
    leaves, states = leaves_by_path(ready), dict(network.states)
    stored = {path: x for path, x in leaves_by_path(network.variables).items() if is_compressed(x)}

    def prepared(arrays: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return opened(prepared_for(closed(stored, arrays), network.rules, platform))

    def run(arrays: dict[str, list[Any]], state_arrays: dict[str, list[Any]], inputs: tuple[PyTree, ...]) -> PyTree:
        variables = jax.tree.unflatten(tree, closed(leaves, arrays).values())
        return densify(network.run(variables, *inputs, states=closed(states, state_arrays)))

    made = lambda fun: jax.export.export(jax.jit(fun), platforms=PLATFORMS[platform])
    return made(prepared)(opened(stored)), made(run)(opened(leaves), opened(states), inputs)


def _shapes(inputs: tuple[PyTree, ...], batch: int | None) -> tuple[PyTree, ...]:
    """The inputs as abstract arrays, with the batch as a symbol, or ``batch`` rows."""
    if batch is not None and (isinstance(batch, bool) or not isinstance(batch, int) or batch < 1):
        raise ValueError(f"exported(batch={batch!r}): a positive number of rows, or None for any")
    shapes = abstract(inputs)
    if any(jax.export.is_symbolic_dim(n) for x in jax.tree.leaves(shapes) for n in x.shape):
        return shapes
    rows = {path: x.shape[0] for path, x in leaves_by_path(shapes).items() if x.shape}
    if len(set(rows.values())) > 1:
        said = ", ".join(f"input {path} has {n}" for path, n in rows.items())
        raise ValueError(
            f"exported: the first axis of every input is the batch, but {said} rows. Name the open lengths yourself: pass "
            "jax.ShapeDtypeStruct with shapes of jax.export.symbolic_shape"
        )
    first = _any_batch() if batch is None else batch
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((first, *x.shape[1:]) if x.shape else (), x.dtype), shapes)


@functools.cache
def _any_batch() -> Any:
    """The symbol of the batch: one for all exports, so that they share what is traced."""
    (symbol,) = jax.export.symbolic_shape("b")
    return symbol


@contextlib.contextmanager
def _without_places() -> Iterator[None]:
    """Programs without the files and lines that they were traced from: these name this machine's folders."""
    name = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, before)
