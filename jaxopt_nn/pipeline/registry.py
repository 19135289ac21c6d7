"""Names for configs: what a text file can ask for, and the factories that make it.

``"package.module:name"`` stands for any callable of the documented signature, so that a config can use one's own.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import optax

from jaxopt_nn.core.combine import by_path, where
from jaxopt_nn.core.gates import every
from jaxopt_nn.core.passes import Pass
from jaxopt_nn.core.paths import near_misses
from jaxopt_nn.core.residual import residual
from jaxopt_nn.core.rule import Rule, identity_rule
from jaxopt_nn.core.transform import Transform, identity
from jaxopt_nn.methods import clip, schedules
from jaxopt_nn.methods.allocations.base import Allocation
from jaxopt_nn.methods.allocations.by_sensitivity import by_sensitivity
from jaxopt_nn.methods.allocations.erk import erk
from jaxopt_nn.methods.allocations.global_budget import global_budget
from jaxopt_nn.methods.allocations.lamp import lamp
from jaxopt_nn.methods.allocations.per_leaf import per_leaf
from jaxopt_nn.methods.allocations.per_output import per_output
from jaxopt_nn.methods.arithmetic import arithmetic, fake_quant_activations
from jaxopt_nn.methods.binary import binarize
from jaxopt_nn.methods.cluster import cluster
from jaxopt_nn.methods.cluster_vectors import cluster_vectors
from jaxopt_nn.methods.criteria.base import Criterion
from jaxopt_nn.methods.criteria.fisher import fisher, obd
from jaxopt_nn.methods.criteria.magnitude import energy, magnitude
from jaxopt_nn.methods.criteria.movement import movement
from jaxopt_nn.methods.criteria.random import random_scores
from jaxopt_nn.methods.criteria.saliency import saliency
from jaxopt_nn.methods.criteria.snip import grasp, snip
from jaxopt_nn.methods.criteria.synflow import synflow
from jaxopt_nn.methods.criteria.wanda import ria, wanda
from jaxopt_nn.methods.learnt_threshold import learnt_threshold
from jaxopt_nn.methods.low_rank import low_rank
from jaxopt_nn.methods.prune import prune
from jaxopt_nn.methods.quantize import quantize
from jaxopt_nn.methods.ranges import moving_ranges, static_ranges
from jaxopt_nn.methods.rate_quantization import rate_quantize
from jaxopt_nn.methods.regrowth import rigl, sparse_evolution
from jaxopt_nn.methods.sparsegpt import obs, sparsegpt
from jaxopt_nn.methods.structures.base import Structure, single_weights
from jaxopt_nn.methods.structures.blocks import blocks
from jaxopt_nn.methods.structures.n_of_m import n_of_m
from jaxopt_nn.methods.ternary import ternarize
from jaxopt_nn.methods.xnor import xnor
from jaxopt_nn.passes import scores
from jaxopt_nn.passes.allocations import across_layers, per_layer
from jaxopt_nn.passes.cut_layers import cut_layers
from jaxopt_nn.passes.cut_units import cut_units
from jaxopt_nn.passes.masking import prune_neurons
from jaxopt_nn.pipeline.attention import attention_weights
from jaxopt_nn.pipeline.recipe import Calibration, Distill, Stage

METHODS: dict[str, Callable[..., Transform]] = {
    "binarize": binarize,
    "clip": clip.clip,
    "clip_percentile": clip.clip_percentile,
    "clip_std": clip.clip_std,
    "cluster": cluster,
    "cluster_vectors": cluster_vectors,
    "identity": identity,
    "obs": obs,
    "learnt_threshold": learnt_threshold,
    "low_rank": low_rank,
    "prune": prune,
    "prune_neurons": prune_neurons,
    "quantize": quantize,
    "rate_quantize": rate_quantize,
    "residual": residual,
    "sparsegpt": sparsegpt,
    "ternarize": ternarize,
}
PASSES: dict[str, Callable[..., Pass]] = {"cut_layers": cut_layers, "cut_units": cut_units}
CRITERIA: dict[str, Criterion] = {
    "energy": energy,
    "fisher": fisher,
    "grasp": grasp,
    "magnitude": magnitude,
    "movement": movement,
    "saliency": saliency,
    "ria": ria,
    "snip": snip,
    "wanda": wanda,
}
ALLOCATIONS: dict[str, Allocation] = {
    "erk": erk, "global_budget": global_budget, "lamp": lamp, "per_leaf": per_leaf, "per_output": per_output,
}  # fmt: skip
SCORES: dict[str, scores.Score] = {
    "block_influence": scores.block_influence,
    "geometric_median": scores.geometric_median,
    "l1_norm": scores.l1_norm,
    "l2_norm": scores.l2_norm,
    "largest_activation": scores.largest_activation,
    "mean_activation": scores.mean_activation,
    "norm_product": scores.norm_product,
    "removal_error": scores.removal_error,
    "removal_loss": scores.removal_loss,
    "taylor": scores.taylor,
}
UNIT_ALLOCATIONS = {"across_layers": across_layers, "per_layer": per_layer}
STRUCTURES: dict[str, Structure] = {"single_weights": single_weights}
#: Parts of a pruning with arguments, by the argument that they are for: ``{"name": "rigl", "end": 0.75}``, or
#: the name alone where nothing is needed.
PARTS: dict[str, dict[str, Callable[..., Any]]] = {
    "criterion": {"obd": obd, "random": random_scores, "synflow": synflow},
    "allocation": {"by_sensitivity": by_sensitivity},
    "structure": {"blocks": blocks, "n_of_m": n_of_m},
    "regrow": {"rigl": rigl, "sparse_evolution": sparse_evolution},
    "score": {"angular_distance": scores.angular_distance, "norm_scale": scores.norm_scale, "random": scores.random},
}
SCHEDULES: dict[str, Callable[..., Callable[[Any], Any]]] = {
    "constant": optax.constant_schedule,
    "cosine": optax.cosine_decay_schedule,
    "cubic": schedules.cubic,
    "linear": optax.linear_schedule,
    "polynomial": optax.polynomial_schedule,
    "staircase": schedules.staircase,
}
#: How much tokens count in a calibration, of the network.
WEIGHTS: dict[str, Callable[..., Callable[..., Any]]] = {"attention": attention_weights}
#: Where a rule's activation ranges come from, behind its name.
RANGES: dict[str, Callable[[str], Rule]] = {"static": static_ranges, "moving": moving_ranges}
#: Rules on signs, and whether they have the scales of activations.
SIGNS = {"xnor": True, "xnor-unscaled": False}
#: Arguments of schedules that count steps; a config may give them as a share of the stage. 1.0 is the last step of a method's
#: schedule, so that its end is reached, and the end of the training for a learning rate, whose zero would waste a step.
STEPS = ("begin", "end", "decay_steps", "transition_begin", "transition_steps")
#: Arguments of methods that a config gives by name.
NAMED: dict[str, Mapping[str, Any]] = {
    "criterion": CRITERIA, "allocation": ALLOCATIONS, "structure": STRUCTURES, "regrow": {}, "score": SCORES,
    "allocation of units": UNIT_ALLOCATIONS,
}  # fmt: skip
#: What methods with a key draw at random, by argument; those whose key has a default always do.
DRAWN = {"rounding": ("stochastic",), "start": ("random", "kmeans++")}
#: Arguments of parts that are parts themselves.
WITHIN = {"start": "criterion", "by": "criterion"}
#: Arguments that are mappings themselves, and no schedule.
MAPPINGS = ("widths",)
STAGE_FIELDS = (
    "name", "method", "where", "cases", "epochs", "learning_rate", "weight_decay", "ema", "rule", "thaw", "every",
    "training_rule", "calibration", "distill", "gradient_norms", "rewind",
)  # fmt: skip


def lookup(name: str, table: Mapping[str, Any], what: str) -> Any:
    """The entry called ``name``, or the object at ``package.module:attribute``.

    Raises:
      ValueError: neither; near misses are named.
    """
    if name in table:
        return table[name]
    if ":" in name:
        return imported(name)
    near = near_misses(name, table) or sorted(table)
    raise ValueError(f"{what} {name!r} is unknown; nearest: {', '.join(near)}; your own: package.module:name")


def imported(name: str) -> Any:
    """The object at ``package.module:attribute``.

    Raises:
      ValueError: another form of name, no such module, or no such attribute (near misses are named).
    """
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise ValueError(f"{name!r}: write package.module:name")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(f"{name!r}: {error}; is its folder on PYTHONPATH?") from error
    if not hasattr(module, attribute):
        near = near_misses(attribute, [n for n in vars(module) if not n.startswith("_")])
        raise ValueError(f"{name!r}: {module_name} has no {attribute!r}; nearest: {', '.join(near) or 'none'}")
    return getattr(module, attribute)


def transform(
    method: str, *, pattern: str | None = None, steps: int = 0, interval: int = 1, key: Any = None, **arguments: Any
) -> Transform | Pass:
    """A transform from names: ``transform("prune", pattern="**/kernel", criterion="magnitude", sparsity=0.9)``; or a pass.

    An argument ``{"schedule": "cubic", "final": 0.9, "end": 0.7}`` becomes that schedule; a float among its steps is a share
    of ``steps``. A part of a pruning with arguments is ``{"name": "rigl", "end": 0.75}``; ``"2:4"`` and ``"8x128"`` are short
    for such structures. ``{"method": "quantize", "bits": 8}`` is a method inside another. What draws at random, stochastic
    rounding too, gets the ``key``.

    Args:
      steps: of the training ahead.
      interval: ``update`` runs every so many steps, and at the last.

    Raises:
      ValueError: an unknown method, criterion, allocation or schedule, or an argument that the method does not have.
    """
    factory = lookup(method, {**METHODS, **PASSES}, "method")
    kinds = {"allocation": "allocation of units"} if method in PASSES else {}
    built = {name: _argument(kinds.get(name, name), x, max(steps - 1, 0), key) for name, x in arguments.items()}
    if _draws(factory, built):
        built.setdefault("key", key)
    chosen = called(factory, f"method {method!r}", built)
    if isinstance(chosen, Pass):
        if pattern is not None or interval != 1:
            raise ValueError(f"{method!r} is a pass, which changes the whole network once; leave out 'where' and 'every'")
        return chosen
    chosen = chosen if pattern is None else where(pattern, chosen)
    return chosen if interval == 1 else every(interval, chosen, last=max(steps - 1, 0))


def rules(given: str | Mapping[str, str] | None) -> Rule | list[tuple[str, Rule]] | None:
    """A rule by its name, or rules by patterns of paths: ``{"**/Conv_1/kernel": "xnor", "**": "w8a8"}``, first match wins.

    Raises:
      ValueError: an unknown name.
    """
    if not isinstance(given, Mapping):
        return rule(given)
    made = [(pattern, rule(name)) for pattern, name in given.items()]
    return [(pattern, own or identity_rule()) for pattern, own in made] or None
def _draws(factory: Callable[..., Any], arguments: Mapping[str, Any]) -> bool:
    """Whether a method draws at random, with these arguments: then it gets the stage's key."""
    key = inspect.signature(factory).parameters.get("key")
    asked = any(arguments.get(name) in values for name, values in DRAWN.items())
    return key is not None and (asked or key.default is not None)


def rule(name: str | None) -> Rule | None:
    """A rule from its name: ``"w4a8"``, with one range a site ``"w4a8-static"`` or ``"w4a8-moving"``; ``"xnor"`` takes signs of
    activations, without their scales ``"xnor-unscaled"``; None, or ``""``, is weight-only."""
    if not name:
        return None
    if name in SIGNS:
        return xnor(scales=SIGNS[name])
    if ":" in name:
        return imported(name)()
    base, dash, kind = name.partition("-")
    if dash and kind not in RANGES:
        raise ValueError(f"rule={name!r}: allowed are {base!r}, {', '.join(repr(f'{base}-{kind}') for kind in RANGES)}")
    return RANGES[kind](base) if dash else arithmetic(base)


def training_rule(name: str | None) -> Rule | None:
    """What sites compute in training: ``"a8"`` rounds activations to 8 bits, ``"a8-none"`` with the true derivative of
    rounding (``-pass`` and ``-clip`` straight through), ``"float"`` leaves them in float; None, or ``""``, is what the
    stage's ``rule`` says.

    Raises:
      ValueError: another name.
    """
    if not name:
        return None
    if name == "float":
        return identity_rule()
    if ":" in name:
        return imported(name)()
    match = re.fullmatch(r"a([2-8])(?:-(clip|pass|none))?", name)
    if not match:
        raise ValueError(
            f"training_rule={name!r}: allowed are 'a2' to 'a8', with '-pass' or '-none' for another derivative, 'float', or "
            "your own as package.module:name"
        )
    return fake_quant_activations(int(match[1]), match[2] or "clip")


def stages(config: Sequence[Mapping[str, Any]], seed: int = 0) -> list[Stage]:
    """A recipe from a config: one mapping a stage.

    Each has ``name``, ``method`` and the method's own arguments, and may have ``where`` (a pattern of paths), ``every``
    (steps between updates), and, as in ``Stage``, ``epochs``, ``learning_rate``, ``weight_decay``, ``ema``, ``rule``,
    ``thaw``, ``rewind``, ``training_rule``, ``calibration`` and ``distill`` (mappings) and ``gradient_norms``. In the place of
    ``method`` and its arguments ``cases`` may stand, a list of mappings with ``where``, ``method`` and arguments: a leaf gets
    the first that matches.

    Args:
      seed: of what methods draw at random; each stage folds in its number.

    Raises:
      ValueError: an entry is missing or unknown.
    """
    key = jax.random.key(seed)
    return [_stage(i, dict(entry), jax.random.fold_in(key, i)) for i, entry in enumerate(config)]


def _stage(i: int, entry: dict[str, Any], key: jax.Array) -> Stage:
    own = {name: entry.pop(name) for name in STAGE_FIELDS if name in entry}
    try:
        if not isinstance(own.get("name"), str):
            raise ValueError("needs 'name', a string")
        make = _cases(own, entry, key) if "cases" in own else _single(own, entry, key)
        trial = make(steps=100)  # what is wrong with the arguments shows here, before the number of steps is known
        return Stage(own["name"], trial if isinstance(trial, Pass) else lambda steps: make(steps=steps), **stage_fields(own))
    except ValueError as error:
        raise ValueError(f"stages[{i}] ({own.get('name', 'no name')}): {error}") from error


def _single(own: Mapping[str, Any], arguments: Mapping[str, Any], key: jax.Array) -> Callable[..., Any]:
    """The transform or pass of ``method`` and its arguments, of the number of steps."""
    if not isinstance(own.get("method"), str):
        fields = ", ".join(sorted({*own, *arguments}))
        raise ValueError(f"needs 'method', a string, or 'cases', a list; has {fields or 'nothing'}")
    return functools.partial(
        transform, own["method"], pattern=own.get("where"), interval=own.get("every", 1), key=key, **arguments
    )


def _cases(own: Mapping[str, Any], arguments: Mapping[str, Any], key: jax.Array) -> Callable[..., Transform]:
    """The transform that gives each leaf to the first of ``cases`` whose pattern matches it."""
    if beside := sorted({"method", "where"} & own.keys() | arguments.keys()):
        raise ValueError(f"'cases' stand beside {', '.join(beside)}; give each case its own method and arguments")
    makes = []
    for n, case in enumerate(own["cases"]):
        fields = dict(case)
        pattern, method = fields.pop("where", None), fields.pop("method", None)
        if not (isinstance(pattern, str) and isinstance(method, str)):
            raise ValueError(f"cases[{n}]: needs 'where' and 'method', strings; has {', '.join(sorted(case)) or 'nothing'}")
        alone = {"method": method, "every": own.get("every", 1)}
        if method in PASSES:
            raise ValueError(f"cases[{n}]: {method!r} is a pass, which changes the whole network; give it a stage of its own")
        makes.append((pattern, _single(alone, fields, jax.random.fold_in(key, n))))
    return lambda steps: by_path([(pattern, make(steps=steps)) for pattern, make in makes])


def stage_fields(own: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a ``Stage`` from a config's fields of those names.

    Raises:
      ValueError: an unknown rule, or a schedule or ``distill`` that does not hold together.
    """
    plain = ("epochs", "learning_rate", "weight_decay", "ema", "gradient_norms", "rewind")
    kept = {key: own[key] for key in plain if key in own}
    if isinstance(kept.get("learning_rate"), Mapping):
        rate = kept["learning_rate"]
        kept["learning_rate"] = lambda steps: _argument("learning_rate", rate, max(steps, 1))
        kept["learning_rate"](100)  # errors show before the number of steps is known
    if own.get("distill"):
        kept["distill"] = called(Distill, "distill", own["distill"])
    if own.get("calibration"):
        kept["calibration"] = _calibration(own["calibration"])
    made = {"rule": rules(own.get("rule")), "training_rule": training_rule(own.get("training_rule"))}
    return {**kept, **made, "thaw": tuple(own.get("thaw", ()))}


def _calibration(fields: Mapping[str, Any]) -> Calibration:
    """``{"weights": "attention", "sequential": True}``; with arguments ``"weights": {"name": "attention", "values": "**"}``."""
    fields = dict(fields)
    if weights := fields.pop("weights", None):
        own = {"name": weights} if isinstance(weights, str) else dict(weights)
        if not isinstance(name := own.pop("name", None), str):
            raise ValueError(f"calibration.weights: a mapping needs 'name', one of {', '.join(WEIGHTS)}")
        make = lookup(name, WEIGHTS, "weights")
        _check_arguments(make, f"weights {name!r}", own, first=1)  # the network comes first
        fields["weights"] = functools.partial(make, **own) if own else make
    return called(Calibration, "calibration", fields)


def _argument(key: str, value: Any, last: int, random: Any = None) -> Any:
    """What a config's value stands for; the step ``last`` is the share 1.0, ``random`` the key of what draws."""
    if isinstance(value, str) and key in NAMED:
        return _part(key, value, {}, last, random)
    if not isinstance(value, Mapping) or key in MAPPINGS:
        return value
    if isinstance(value.get("method"), str):  # a method inside another: the factors' own, a part of a residual
        own = {{"where": "pattern", "every": "interval"}.get(str(name), str(name)): x for name, x in value.items()}
        return transform(**own, steps=last + 1, key=random)
    if key in NAMED:
        fields = dict(value)
        if not isinstance(name := fields.pop("name", None), str):
            raise ValueError(f"{key}: a mapping needs 'name', one of {', '.join(sorted({**NAMED[key], **PARTS.get(key, {})}))}")
        return _part(key, name, fields, last, random)
    fields = dict(value)
    name = fields.pop("schedule", None)
    if name is None:
        raise ValueError(f"{key}: a mapping is a schedule and needs 'schedule', one of {', '.join(SCHEDULES)}")
    shares, counted = _counted(key, fields, last)
    try:
        return called(lookup(name, SCHEDULES, "schedule"), f"schedule {name!r}", counted)
    except ValueError as error:
        if not shares:
            raise
        said = ", ".join(f"{field}={x}" for field, x in shares.items())
        raise ValueError(f"{error} ({key}: {said} as shares of {last} steps)") from error


def _counted(key: str, fields: Mapping[str, Any], last: int) -> tuple[dict[str, float], dict[str, Any]]:
    """The fields that give steps as shares, and all fields with numbers of steps in their place."""
    shares = {field: x for field, x in fields.items() if field in STEPS and isinstance(x, float)}
    for field, x in shares.items():
        if not 0 <= x <= 1:
            raise ValueError(f"{key}: {field}={x}: give a share of the stage, 0.0 to 1.0, or a whole number of steps")
    return shares, {**fields, **{field: round(x * last) for field, x in shares.items()}}


def _part(key: str, name: str, fields: Mapping[str, Any], last: int, random: Any) -> Any:
    """A part of a method by its name, or what its factory makes of the fields."""
    if short := re.fullmatch(r"(\d+):(\d+)", name) if key == "structure" else None:
        return n_of_m(int(short[1]), int(short[2]))
    if short := re.fullmatch(r"(-?\d+)x(-?\d+)", name) if key == "structure" else None:
        return blocks(int(short[1]), int(short[2]))
    makers = PARTS.get(key, {})
    maker = lookup(name, {**NAMED[key], **makers}, key)
    if not fields and maker not in makers.values():
        return maker
    _, counted = _counted(key, fields, last)
    arguments = {field: _argument(WITHIN.get(field, field), x, last, random) for field, x in counted.items()}
    if random is not None and "key" in inspect.signature(maker).parameters:
        arguments.setdefault("key", random)
    return called(maker, f"{key} {name!r}", arguments)


def called(factory: Callable[..., Any], what: str, arguments: Mapping[str, Any]) -> Any:
    """``factory(**arguments)``.

    Raises:
      ValueError: an argument that it does not have (near misses are named), or one that it needs and does not get.
    """
    _check_arguments(factory, what, arguments)
    return factory(**arguments)


def _check_arguments(factory: Callable[..., Any], what: str, arguments: Mapping[str, Any], first: int = 0) -> None:
    """Raises as ``called``; ``first`` parameters are given by position."""
    parameters = list(inspect.signature(factory).parameters.values())[first:]
    names = [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for key in arguments:
            if key not in names:
                near = near_misses(key, names) or names
                raise ValueError(f"{what} has no {key!r}; nearest: {', '.join(near) or 'it takes none'}")
    missing = [p.name for p in parameters if p.name in names and p.default is p.empty and p.name not in arguments]
    if missing:
        raise ValueError(f"{what} needs {', '.join(missing)}")
