"""Networks as artifacts: variables, rules and their states, saved and loaded as one value."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from jaxopt_nn.coding.artifact import Artifact, load_artifact, read_files, save_artifact
from jaxopt_nn.core.passes import Plan
from jaxopt_nn.core.paths import map_with_path
from jaxopt_nn.core.rule import Rule, described, rule_of
from jaxopt_nn.core.transform import State
from jaxopt_nn.export.imported import imported
from jaxopt_nn.export.programs import Programs, as_files, of_files
from jaxopt_nn.interpret.flow.shrunk import Shrunk
from jaxopt_nn.interpret.network import Network, network_of
from jaxopt_nn.tensors.base import densify

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
        (``rule_factory``), their states beside the variables, and the plans by which passes have cut it. Its functions are
        not: they are code.
      programs: ``exported(network, inputs)``: then ``load`` needs no code. They add their bytes.
      recipe, extra, overwrite: as for ``save_artifact``; ``extra`` gets ``rules``, ``still`` and
        ``plans``.

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
    extra = {**(extra or {}), "rules": rules, "still": still, "plans": _plans(network.apply)}
    return save_artifact(
        directory, {"variables": network.variables, "states": states}, recipe=recipe, extra=extra,
        files=as_files(programs or {}), overwrite=overwrite,
    )  # fmt: skip


def load(
    directory: str | os.PathLike[str],
    apply: Callable[..., PyTree] | None = None,
    rules: Rule | Mapping[str, Rule] | Sequence[tuple[str, Rule]] | None = None,
) -> Network:
    """The network that ``save`` or ``compress`` wrote: call it, ``load(path)(*inputs) -> outputs``.

    Args:
      apply: its model's function, ``(variables, *inputs) -> outputs``, such as ``jaxopt_nn.linen(module, variables).apply``;
        of a network that was cut, that of the whole model, or of one that was rebuilt at the small widths.
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
    plans = [Plan.from_json(json.dumps(each)) for each in manifest["extra"].get("plans", ())]
    function = _cut_again(apply, plans, tree["variables"])
    still = frozenset(manifest["extra"].get("still", ()))
    return Network(function, tree["variables"], found, _states(tree), still=still)


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


def _plans(apply: Callable[..., PyTree]) -> list[Any]:
    """The plans by which a function was cut, as JSON, the first cut first."""
    plans = []
    while isinstance(apply, Shrunk):
        plans.append(json.loads(apply.plan.to_json()))
        apply = apply.whole
    return plans[::-1]


def _cut_again(apply: Callable[..., PyTree], plans: Sequence[Plan], variables: PyTree) -> Callable[..., PyTree]:
    """A model's function on the variables that the plans have left; as it is where it takes them already: it is the cut
    network's own, or a module that was rebuilt at the small widths does not run on the whole ones."""
    if not plans or isinstance(apply, Shrunk):
        return apply
    whole = plans[0].leaves
    abstract = lambda path, x: jax.ShapeDtypeStruct(whole[path], x.dtype)
    try:
        jax.eval_shape(apply, map_with_path(abstract, jax.eval_shape(densify, variables)), *plans[0].inputs)
    except Exception:
        return apply
    return functools.reduce(Shrunk, plans, apply)


def _states(tree: Mapping[str, Any]) -> dict[str, State]:
    return {site: State(**parts) for site, parts in tree["states"].items()}


def _made(said: Mapping[str, Any], name: str) -> Rule:
    if said["made"] is None:
        raise ValueError(
            f"{name}: rule {said['name']!r} was made by hand; pass rules=, or decorate the function that makes it with "
            "jaxopt_nn.rule_factory and save it anew"
        )
    return rule_of(said["made"])
