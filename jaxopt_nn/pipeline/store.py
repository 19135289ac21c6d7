"""Networks as artifacts: variables, rules and their states, saved and loaded as one value."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from jaxopt_nn.coding.artifact import Artifact, load_artifact, read_files, save_artifact
from jaxopt_nn.core.passes import Plan
from jaxopt_nn.core.rule import Rule, described, rule_of
from jaxopt_nn.core.transform import State
from jaxopt_nn.export.imported import imported
from jaxopt_nn.export.programs import Programs, as_files, of_files
from jaxopt_nn.interpret.constants import KeepsConstants
from jaxopt_nn.interpret.flow.shrunk import Shrunk
from jaxopt_nn.interpret.network import Network, network_of

PyTree = Any


def save(
    directory: str | os.PathLike[str],
    network: Network,
    *,
    programs: Mapping[str, Programs] | None = None,
    recipe: Any = None,
    extra: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Artifact:
    """Writes a network to ``directory``, whole or not at all; ``load`` reads it.

    Args:
      network: in stored form, so that it weighs what it should. Its rules are written by the names of their factories
        (``rule_factory``), their states beside the variables. Its functions are not: they are code. Of a network that was cut
        the plans are written, so that ``load`` takes the function of the whole one; a function of your own around a cut one
        must say what it is around, as ``functools.wraps`` and ``functools.partial`` do.
      programs: ``exported(network, inputs)``: then ``load`` needs no code. They add their bytes.
      recipe, extra, overwrite: as for ``save_artifact``; ``extra`` gets ``rules``, ``plans`` and ``still``.

    Raises:
      TypeError: no ``Network``. Else as ``save_artifact``.

    Example:
      >>> method = jn.quantize(8)
      >>> v = {"kernel": jnp.linspace(-1, 1, 64 * 8).reshape(64, 8)}
      >>> net = jn.Network(lambda v, x: x @ v["kernel"], method.pack(v, method.init(v)), rules=jn.arithmetic("w8a8"))
      >>> artifact = jn.save("small", net)
      >>> again = jn.load("small", net.apply)
      >>> bool((again(jnp.ones((2, 64))) == net(jnp.ones((2, 64)))).all())
      True
    """
    network = network_of(network)
    states = {site: {"learnt": state.learnt, "carried": state.carried} for site, state in network.states.items()}
    still = sorted(network.still)
    rules = [{"pattern": pattern, "name": rule.name, "made": described(rule)} for pattern, rule in network.rules]
    own = {**(extra or {}), "rules": rules, "plans": _plans(network.apply), "still": still}
    tree, files = {"variables": network.variables, "states": states}, as_files(programs or {})
    return save_artifact(directory, tree, recipe=recipe, extra=own, files=files, overwrite=overwrite)


def load(
    directory: str | os.PathLike[str],
    apply: Callable[..., PyTree] | None = None,
    rules: Rule | Mapping[str, Rule] | Sequence[tuple[str, Rule]] | None = None,
) -> Network:
    """The network that ``save`` or ``compress`` wrote: call it, ``load(path)(*inputs) -> outputs``.

    Args:
      apply: its model's function, ``(variables, *inputs) -> outputs``, such as ``jaxopt_nn.linen(module, variables).apply``.
        None: the program that the artifact holds for the platform that JAX runs on here.
      rules: in the place of those that the artifact names: for rules that no ``rule_factory`` made.

    Returns:
      a ``Network``, for evaluation: with ``apply`` in stored form, prepared when it is called first; else as ``imported`` gives
      it. To train it on, its function for training is code too: ``network.replace(training=)``.

    Raises:
      FileNotFoundError: no such directory.
      ValueError: it holds no network, or is damaged; a rule that can't be made anew; no ``apply``, and no program, or none for
        this platform.

    Example:
      >>> net = jn.Network(lambda v, x: x @ v["kernel"], {"kernel": jnp.ones((4, 2))})
      >>> artifact = jn.save("program", net, programs=jn.exported(net, (jnp.ones((1, 4)),), ["cpu"]))
      >>> jn.load(artifact)(np.ones((3, 4), np.float32))  # without the model's code
      Array([[4., 4.],
             [4., 4.],
             [4., 4.]], dtype=float32)
    """
    tree, manifest = load_artifact(directory)
    if apply is None:
        _check_network(tree, manifest, str(directory))
        programs = of_files(read_files(directory, manifest))
        if not programs:
            raise ValueError(
                f"{directory}: holds no exported program; pass apply=, its model's function, or write it with "
                "save(..., programs=exported(network, inputs))"
            )
        return imported(programs, tree["variables"], _states(tree))
    return network_from(tree, manifest, apply, rules, str(directory))


def network_from(tree: PyTree, manifest: Mapping[str, Any], apply: Callable[..., PyTree], rules: Any, name: str) -> Network:
    """``load`` of what ``load_artifact`` gave; ``name`` is what messages call it."""
    said = _check_network(tree, manifest, name)
    found = tuple((each["pattern"], _made(each, name)) for each in said) if rules is None else rules
    extra = manifest["extra"]
    run = _cut(apply, extra.get("plans", []), name)
    return Network(run, tree["variables"], found, _states(tree), still=frozenset(extra.get("still", ())))


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
            f"{name}: holds a tree of arrays and no network; read it with jaxopt_nn.load_artifact, or write a network with "
            "jaxopt_nn.save"
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
