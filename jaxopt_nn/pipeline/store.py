"""Networks as artifacts: variables, rules and their states, saved and loaded as one value."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from jaxopt_nn.coding.artifact import Artifact
from jaxopt_nn.coding.forms import artifact_files, read_artifact
from jaxopt_nn.coding.writer import save_file
from jaxopt_nn.core.arguments import require
from jaxopt_nn.core.passes import Plan
from jaxopt_nn.core.rule import Rule, described, rule_of
from jaxopt_nn.core.transform import State
from jaxopt_nn.export.imported import imported
from jaxopt_nn.export.programs import Programs, as_files, of_files
from jaxopt_nn.interpret.constants import KeepsConstants
from jaxopt_nn.interpret.flow.shrunk import Shrunk
from jaxopt_nn.interpret.network import Network, network_of

PyTree = Any
PROGRAMS = "what exported(network, inputs) gives"


def save(
    path: str | os.PathLike[str],
    network: Network,
    *,
    programs: Mapping[str, Programs] | None = None,
    recipe: Any = None,
    extra: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Artifact:
    """Writes a network to one file, whole or not at all; ``load`` reads it. ``coding/FORMAT.md`` has the format.

    Args:
      path: of the file; its folder must exist.
      network: in stored form, so that it weighs what it should. Its rules are written by the names of their factories
        (``rule_factory``), their states beside the variables. Its functions are not: they are code. Of a network that was cut
        the plans are written, so that ``load`` takes the function of the whole one; a function of your own around a cut one
        must say what it is around, as ``functools.wraps`` and ``functools.partial`` do.
      programs: ``exported(network, inputs)``: then ``load`` needs no code. They add their bytes.
      recipe, extra, overwrite: as for ``save_file``; ``extra`` gets ``rules``, ``plans`` and ``still``.

    Raises:
      TypeError: no ``Network``, or an argument of another kind. Else as ``save_file``.

    Example:
      >>> method = jn.quantize(8)
      >>> v = {"kernel": jnp.linspace(-1, 1, 64 * 8).reshape(64, 8)}
      >>> net = jn.Network(lambda v, x: x @ v["kernel"], method.pack(v, method.init(v)), rules=jn.arithmetic("w8a8"))
      >>> artifact = jn.save("small.jn", net)
      >>> again = jn.load("small.jn", net.apply)
      >>> bool((again(jnp.ones((2, 64))) == net(jnp.ones((2, 64)))).all())
      True
    """
    network = network_of(network)
    require(extra or {}, Mapping, "extra", "a dict that JSON can hold: {'trained': 'by hand'}")
    for platform, program in require(programs or {}, Mapping, "programs", PROGRAMS).items():
        require(program, Programs, f"programs[{platform!r}]", PROGRAMS)
    states = {site: {"learnt": state.learnt, "carried": state.carried} for site, state in network.states.items()}
    still = sorted(network.still)
    rules = [{"pattern": pattern, "name": rule.name, "made": described(rule)} for pattern, rule in network.rules]
    own = {**(extra or {}), "rules": rules, "plans": _plans(network.apply), "still": still}
    tree, files = {"variables": network.variables, "states": states}, as_files(programs or {})
    return save_file(path, tree, recipe=recipe, extra=own, files=files, overwrite=overwrite)


def load(
    path: str | os.PathLike[str],
    apply: Callable[..., PyTree] | None = None,
    rules: Rule | Mapping[str, Rule] | Sequence[tuple[str, Rule]] | None = None,
    *,
    target: PyTree = None,
    sharding: Any = None,
    only: str | None = None,
    max_bytes: int | None = None,
) -> Network:
    """The network that ``save`` or ``compress`` wrote: call it, ``load(path)(*inputs) -> outputs``.

    Args:
      path: of the file; or of a folder that ``save_artifact`` wrote, which takes none of the arguments by name.
      apply: its model's function, ``(variables, *inputs) -> outputs``, such as ``jaxopt_nn.linen(module, variables).apply``.
        None: the program that the file holds for the platform that JAX runs on here.
      rules: in the place of those that the file names: for rules that no ``rule_factory`` made.
      target: variables that it must fit, leaf by leaf, arrays or abstract: the network gets their containers and shardings.
      sharding: where the variables are to lie, as for ``load_file``: ``jn.shardings(...).named``, say. They are decoded
        straight into the shards.
      only: a pattern over the variables' paths: other leaves are not read, abstract ones stand there. Needs ``apply``.
      max_bytes: most memory that the arrays may take, as for ``load_file``.

    Returns:
      a ``Network``, for evaluation: with ``apply`` in stored form, prepared when it is called first; else as ``imported`` gives
      it. To train it on, its function for training is code too: ``network.replace(training=)``.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it holds no network, or is damaged, or doesn't fit; a rule that can't be made anew; no ``apply``, and no
        program, or none for this platform.

    Example:
      >>> net = jn.Network(lambda v, x: x @ v["kernel"], {"kernel": jnp.ones((4, 2))})
      >>> artifact = jn.save("program.jn", net, programs=jn.exported(net, (jnp.ones((1, 4)),), ["cpu"]))
      >>> jn.load(artifact)(np.ones((3, 4), np.float32))  # without the model's code
      Array([[4., 4.],
             [4., 4.],
             [4., 4.]], dtype=float32)
    """
    options = {"target": target, "sharding": sharding, "only": only, "max_bytes": max_bytes}
    tree, manifest = read_network(path, **options)
    if apply is None:
        if only is not None:
            raise ValueError(f"{path}: only={only!r} leaves weights out that its program takes; pass apply=, the model's code")
        programs = of_files(artifact_files(path, manifest))
        if not programs:
            raise ValueError(
                f"{path}: holds no exported program; pass apply=, its model's function, or write it with "
                "save(..., programs=exported(network, inputs))"
            )
        return imported(programs, tree["variables"], _states(tree))
    return network_from(tree, manifest, apply, rules, str(path))


def read_network(path: str | os.PathLike[str], **options: Any) -> tuple[PyTree, dict[str, Any]]:
    """``{"variables", "states"}`` and the manifest of an artifact that holds a network; ``options`` are about its variables.

    Raises:
      ValueError: it holds no network, or is damaged.
    """
    found = read_artifact(path, root=("variables",), **options)
    _check_network(*found, str(path))
    return found


def network_from(tree: PyTree, manifest: Mapping[str, Any], apply: Callable[..., PyTree], rules: Any, name: str) -> Network:
    """``load`` of what ``read_network`` gave; ``name`` is what messages call it.

    Raises:
      ValueError: rules or plans that are none, or can't be made anew.
    """
    said, extra = _check_network(tree, manifest, name), manifest["extra"]
    try:
        found = tuple((each["pattern"], _made(each, name)) for each in said) if rules is None else rules
        plans, still, states = extra.get("plans", []), frozenset(extra.get("still", ())), _states(tree)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{name}: what it says of its rules and states is malformed: {error!r}") from error
    return Network(_cut(apply, plans, name), tree["variables"], found, states, still=still)


def _inner(apply: Any) -> Any:
    """What ``functools.partial``, ``jit`` or ``keep_constants`` is around; None: of all else, which may do what it likes."""
    if isinstance(apply, functools.partial):
        return apply.func
    return getattr(apply, "__wrapped__", None) if isinstance(apply, jax.stages.Wrapped | KeepsConstants) else None


def _plans(apply: Callable[..., PyTree] | None) -> list[str]:
    """What was cut of a network, first to last."""
    if not isinstance(apply, Shrunk):
        return [] if apply is None else _plans(_inner(apply))
    return [*_plans(apply.whole), dataclasses.replace(apply.plan, inputs=()).to_json()]


def _whole(apply: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """The function of the network before anything was cut, with the arguments that are bound."""
    if isinstance(apply, Shrunk):
        return _whole(apply.whole)
    inner = _inner(apply)
    if inner is None or (whole := _whole(inner)) is inner:
        return apply
    return functools.partial(whole, *apply.args, **apply.keywords) if isinstance(apply, functools.partial) else whole


def _cut(apply: Callable[..., PyTree], plans: Sequence[str], name: str) -> Callable[..., PyTree]:
    """The function of the network that was saved, of its model's or of its own."""
    apply = _whole(apply) if plans else apply
    for plan in plans:
        try:
            apply = Shrunk(apply, Plan.from_json(plan))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return apply


def _check_network(tree: PyTree, manifest: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    """What the artifact says of its rules.

    Raises:
      ValueError: it holds no network.
    """
    extra = manifest.get("extra")
    said = extra.get("rules") if isinstance(extra, Mapping) else None
    if said is None or not isinstance(tree, Mapping) or set(tree) != {"variables", "states"}:
        raise ValueError(
            f"{name}: holds a tree of arrays and no network; read it with jaxopt_nn.load_file, or load_artifact, or write a "
            "network with jaxopt_nn.save"
        )
    return said


def _states(tree: Mapping[str, Any]) -> dict[str, State]:
    return {site: State(**parts) for site, parts in tree["states"].items()}


def _made(said: Mapping[str, Any], name: str) -> Rule:
    if said["made"] is None:
        raise ValueError(
            f"{name}: rule {said['name']!r} was made by hand; pass rules=, or decorate the function that makes it with "
            "jaxopt_nn.rule_factory and save it anew"
        )
    return rule_of(said["made"])
