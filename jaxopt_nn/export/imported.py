"""From exported programs and stored arrays to a network that runs without the model's code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.export

from jaxopt_nn.core.arguments import require
from jaxopt_nn.core.paths import leaves_by_path
from jaxopt_nn.core.transform import State
from jaxopt_nn.export.programs import Programs, abstract, deserialized, opened, shown
from jaxopt_nn.interpret.network import Network
from jaxopt_nn.tensors.base import is_compressed

PyTree = Any


def imported(
    programs: Mapping[str, Programs], variables: PyTree, states: Mapping[str, State] | None = None
) -> Network:
    """The network that ``exported`` wrote: called as it was, ``network(*inputs) -> outputs``, on one device or many.

    Its stored tensors are prepared here, once. Its ``apply`` is the program, its ``variables`` are the arrays that this takes
    (``{"leaves": {path: arrays}, "states": {site: arrays}}``); it has no rules left to change, and no gradients. Compiled once
    for each batch size.

    Args:
      programs: by platform.
      variables: in stored form, as they were exported.
      states: of the rules, by site, as they were exported.

    Raises:
      ValueError: JAX runs on another platform here; damaged programs; variables or states that are not those of the programs.
        When called: inputs of another structure, shape or dtype.

    Example:
      >>> net = jn.Network(lambda v, x: x @ v["kernel"], {"kernel": jnp.ones((4, 2))})
      >>> programs = jn.exported(net, (jnp.ones((1, 4)),), ["cpu"])
      >>> jn.imported(programs, net.variables)(jnp.ones((3, 4)))  # a batch of any size
      Array([[4., 4.],
             [4., 4.],
             [4., 4.]], dtype=float32)
    """
    require(programs, Mapping, "imported: programs", "what exported(network, inputs) gave, {platform: Programs}")
    platform = jax.default_backend()
    if platform not in programs:
        held = ", ".join(programs) or "none"
        raise ValueError(
            f"the network was exported for {held}, and JAX runs on {platform} here: set JAX_PLATFORMS to a platform of these "
            f"that this machine has, export the network with platforms=(..., {platform!r}), or load it with the model's code"
        )
    prepare, run = fitted(programs[platform], platform, variables, states)
    leaves = leaves_by_path(variables)
    arrays = opened(leaves)
    stored = {path: arrays[path] for path, x in leaves.items() if is_compressed(x)}
    ready = {**arrays, **jax.jit(prepare.call)(stored)}
    return Network(Imported(run), {"leaves": ready, "states": opened(states or {})})


def fitted(
    programs: Programs, platform: str, variables: PyTree, states: Mapping[str, State] | None = None
) -> tuple[jax.export.Exported, jax.export.Exported]:
    """The program that prepares and the one that runs, of any platform; nothing is run.

    Raises:
      ValueError: damaged programs, or ones that take other variables or states.
    """
    prepare, run = (deserialized(data, f"{platform}.{name}") for name, data in programs._asdict().items())
    leaves = leaves_by_path(variables)
    arrays = opened(leaves)
    (wanted,), _ = _arguments(prepare)
    _check_names({path: arrays[path] for path, x in leaves.items() if is_compressed(x)}, wanted, "stored tensor")
    shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in prepare.out_avals]
    prepared = jax.tree.unflatten(prepare.out_tree, shapes)
    (wanted_leaves, wanted_states, _), _ = _arguments(run)
    _check_names({**arrays, **prepared}, wanted_leaves, "leaf")
    _check_names(opened(states or {}), wanted_states, "state of a rule at")
    return prepare, run


class Imported:
    """The program that runs, as the ``apply`` of a network: ``(variables, *inputs) -> outputs``.

    Attributes:
      inputs: abstract arrays, as it takes them; ``b`` is a batch of any size.
    """

    def __init__(self, program: jax.export.Exported):
        self._program = program
        (_, _, self.inputs), _ = _arguments(program)

    def __call__(self, variables: PyTree, *inputs: PyTree) -> PyTree:
        self._check(inputs)
        return self._program.call(variables["leaves"], variables["states"], inputs)

    def _check(self, inputs: tuple[PyTree, ...]) -> None:
        """Raises ValueError, with path, what was given and what is wanted."""
        structures: list[Any] = [jax.tree.structure(x) for x in (inputs, self.inputs)]
        if structures[0] != structures[1]:
            raise ValueError(f"inputs of structure {structures[0]}; the exported program takes {structures[1]}")
        wanted, lengths = leaves_by_path(self.inputs), dict[str, int]()
        for path, x in leaves_by_path(abstract(inputs)).items():
            like = wanted[path]
            if x.dtype != like.dtype or not _fits(x.shape, like.shape, lengths):
                known = ", ".join(f"{name} is {n}" for name, n in lengths.items()) or "a letter is 1 or more"
                raise ValueError(f"input {path}: {shown(x)}; the exported program takes {shown(like)}, where {known}")


def _fits(shape: tuple[int, ...], wanted: tuple[Any, ...], lengths: dict[str, int]) -> bool:
    """Whether an array has the wanted shape; ``lengths`` keeps what stands for its symbols."""
    same = lambda n, like: n == like if isinstance(like, int) else n > 0 and lengths.setdefault(str(like), n) == n
    return len(shape) == len(wanted) and all(map(same, shape, wanted))


def _arguments(program: jax.export.Exported) -> Any:
    """``(arguments, keywords)`` of a program, as abstract arrays."""
    return jax.tree.unflatten(program.in_tree, program.in_avals)


def _check_names(given: Mapping[str, list[Any]], wanted: Mapping[str, list[Any]], what: str) -> None:
    """Raises ValueError where the programs and the arrays are not of one network."""
    told = lambda arrays: "nothing" if arrays is None else ", ".join(map(shown, arrays)) or "no array"
    for name in sorted({*given, *wanted}):
        own, like = abstract(given.get(name)), wanted.get(name)
        if own is None or like is None or list(map(shown, own)) != list(map(shown, like)):
            raise ValueError(
                f"{what} {name}: is {told(own)}, the exported program takes {told(like)}; programs and variables are not of "
                "one network"
            )
