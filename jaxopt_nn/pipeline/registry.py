"""Names for configs: what a text file can ask for, and the factories that make it.

``"package.module:name"`` stands for any callable of the documented signature, so that a config can use one's own.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optax

from jaxopt_nn.core.combine import where
from jaxopt_nn.core.paths import near_misses
from jaxopt_nn.core.rule import Rule
from jaxopt_nn.core.transform import Transform, identity
from jaxopt_nn.methods import prune as pruning
from jaxopt_nn.methods.arithmetic import arithmetic
from jaxopt_nn.methods.clip import clip
from jaxopt_nn.methods.quantize import quantize
from jaxopt_nn.pipeline.recipe import Stage

METHODS: dict[str, Callable[..., Transform]] = {
    "clip": clip,
    "identity": identity,
    "prune": pruning.prune,
    "quantize": quantize,
}
CRITERIA: dict[str, pruning.Criterion] = {"magnitude": pruning.magnitude, "saliency": pruning.saliency}
ALLOCATIONS: dict[str, pruning.Allocation] = {
    "global_budget": pruning.global_budget,
    "per_leaf": pruning.per_leaf,
}
SCHEDULES: dict[str, Callable[..., Callable[[Any], Any]]] = {
    "cosine": optax.cosine_decay_schedule,
    "linear": optax.linear_schedule,
    "polynomial": optax.polynomial_schedule,
}
#: Arguments of methods that a config gives by name.
NAMED: dict[str, Mapping[str, Any]] = {"criterion": CRITERIA, "allocation": ALLOCATIONS}
STAGE_FIELDS = ("name", "method", "where", "epochs", "learning_rate", "rule", "thaw")


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


def transform(method: str, *, pattern: str | None = None, **arguments: Any) -> Transform:
    """A transform from names: ``transform("prune", pattern="**/kernel", criterion="magnitude", sparsity=0.9)``.

    An argument ``{"schedule": "linear", ...}`` becomes that optax schedule.

    Raises:
      ValueError: an unknown method, criterion, allocation or schedule, or an argument that the method does not have.
    """
    factory = lookup(method, METHODS, "method")
    built = {key: _argument(key, value) for key, value in arguments.items()}
    made = called(factory, f"method {method!r}", built)
    return made if pattern is None else where(pattern, made)


def rule(name: str | None) -> Rule | None:
    """A rule from its name, e.g. ``"w4a8"``; None, or ``""``, is weight-only."""
    if not name:
        return None
    return imported(name)() if ":" in name else arithmetic(name)


def stages(config: Sequence[Mapping[str, Any]]) -> list[Stage]:
    """A recipe from a config: one mapping a stage.

    Each has ``name``, ``method`` and the method's own arguments, and may have ``where`` (a pattern of paths), ``epochs``,
    ``learning_rate``, ``rule`` and ``thaw``, as in ``Stage``.

    Raises:
      ValueError: an entry is missing or unknown.
    """
    return [_stage(i, dict(entry)) for i, entry in enumerate(config)]


def _stage(i: int, entry: dict[str, Any]) -> Stage:
    for field in ("name", "method"):
        if not isinstance(entry.get(field), str):
            raise ValueError(f"stages[{i}]: needs {field!r}, a string; has {', '.join(sorted(entry)) or 'nothing'}")
    own = {key: entry.pop(key) for key in STAGE_FIELDS if key in entry}
    try:
        made = transform(own["method"], pattern=own.get("where"), **entry)
        kept = {key: own[key] for key in ("epochs", "learning_rate") if key in own}
        if isinstance(kept.get("learning_rate"), Mapping):
            kept["learning_rate"] = _argument("learning_rate", kept["learning_rate"])
        return Stage(own["name"], made, rule=rule(own.get("rule")), thaw=tuple(own.get("thaw", ())), **kept)
    except ValueError as error:
        raise ValueError(f"stages[{i}] ({own['name']}): {error}") from error


def _argument(key: str, value: Any) -> Any:
    if isinstance(value, str) and key in NAMED:
        return lookup(value, NAMED[key], key)
    if isinstance(value, Mapping):
        fields = dict(value)
        name = fields.pop("schedule", None)
        if name is None:
            raise ValueError(f"{key}: a mapping is a schedule and needs 'schedule', one of {', '.join(SCHEDULES)}")
        return called(lookup(name, SCHEDULES, "schedule"), f"schedule {name!r}", fields)
    return value


def called(factory: Callable[..., Any], what: str, arguments: Mapping[str, Any]) -> Any:
    """``factory(**arguments)``.

    Raises:
      ValueError: an argument that it does not have (near misses are named), or one that it needs and does not get.
    """
    parameters = inspect.signature(factory).parameters.values()
    names = [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for key in arguments:
            if key not in names:
                near = near_misses(key, names) or names
                raise ValueError(f"{what} has no {key!r}; nearest: {', '.join(near) or 'it takes none'}")
    missing = [p.name for p in parameters if p.name in names and p.default is p.empty and p.name not in arguments]
    if missing:
        raise ValueError(f"{what} needs {', '.join(missing)}")
    return factory(**arguments)
