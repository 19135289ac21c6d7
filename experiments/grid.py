"""The grid of a sweep: from ``"stages[1].sparsity=0.8,0.9;stages[2].bits=4,8"`` to a config for each cell."""

from __future__ import annotations

import ast
import copy
import hashlib
import itertools
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxopt_nn.core.paths import addresses, near_misses

Grid = dict[str, list[Any]]
BRACKETS = {"(": ")", "[": "]", "{": "}"}


class Cell(NamedTuple):
    """One point of the grid: its readable name, the folder of its runs, what it changes, and the config."""

    name: str
    folder: str
    overrides: dict[str, Any]
    config: dict[str, Any]


def read_grid(grid: str | Mapping[str, Sequence[Any]], config: Mapping[str, Any]) -> Grid:
    """``{key: values}``, each key checked against the config.

    Raises:
      ValueError: a part without ``=``, a key twice or one that the config does not have (near misses are named), a key
        without values or with a value twice, a value of another kind than the config's (a whole number does for a float,
        and becomes one), or ``seed`` as a key.
    """
    pairs = list(grid.items()) if isinstance(grid, Mapping) else [_assignment(part) for part in _split(grid, ";")]
    found: Grid = {}
    for key, values in pairs:
        values = [_literal(text) for text in _split(values, ",")] if isinstance(values, str) else list(values)
        if key == "seed":
            raise ValueError("grid: seed: say --seeds=n; they are counted from config.seed")
        if key in found:
            raise ValueError(f"grid: {key} stands there twice; list its values once, separated by commas")
        if not values:
            raise ValueError(f"grid: {key}: no value")
        old = lookup(config, key)
        values = [_of_kind(key, old, value) for value in values]
        if len({repr(v) for v in values}) < len(values):
            raise ValueError(f"grid: {key}: a value stands there twice: {', '.join(map(repr, values))}")
        found[key] = values
    return found


def cells_of(config: Mapping[str, Any], grid: Grid) -> list[Cell]:
    """The product of the grid, the last key running fastest."""
    found: list[Cell] = []
    for values in itertools.product(*grid.values()):
        overrides = dict(zip(grid, values))
        name = ",".join(f"{short}={_text(v)}" for short, v in zip(short_names(list(grid)), values)) or "config"
        found.append(Cell(name, _folder(name, {cell.folder for cell in found}), overrides, _changed(config, overrides)))
    return found


def cell_named(text: str, cells: Sequence[Cell], config: Mapping[str, Any]) -> str:
    """The name of the one cell with these overrides; ``text`` may also be the name itself.

    Raises:
      ValueError: there is none, or more than one.
    """
    names = [cell.name for cell in cells]
    if text in names:
        return text
    keys = list(cells[0].overrides)
    whole = dict(zip(short_names(keys), keys))
    wanted = {whole.get(k, k): _literal(value) for part in _split(text, ";,") for k, value in [_assignment(part)]}
    fit = [c.name for c in cells if all(k in c.overrides and c.overrides[k] == v for k, v in wanted.items())]
    if len(fit) == 1:
        return fit[0]
    what = f"fits {len(fit)} cells" if fit else "is no cell of the grid"
    raise ValueError(f"baseline={text}: {what}; cells: {', '.join(fit or near_misses(text, names) or names[:5])}")


def lookup(config: Any, key: str) -> Any:
    """The value at an address.

    Raises:
      ValueError: there is none; near misses are named.
    """
    at = config
    try:
        for step in _steps(key):
            at = at[step]
    except (KeyError, IndexError, TypeError):
        known = addresses(config)
        near = near_misses(key, known) or sorted(known)[:5]
        raise ValueError(f"grid: {key}: the config has no such field; nearest: {', '.join(near)}") from None
    return at


def _changed(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = copy.deepcopy(dict(config))
    for key, value in overrides.items():
        *way, last = _steps(key)
        at: Any = made
        for step in way:
            at = at[step]
        at[last] = value
    return made


def _steps(key: str) -> list[str | int]:
    """``stages[1].sparsity`` -> ``["stages", 1, "sparsity"]``."""
    if not re.fullmatch(r"\w+(\[\d+\]|\.\w+)*", key):
        raise ValueError(f"grid: {key!r} is no address; write e.g. stages[1].sparsity")
    return [int(step[1:-1]) if step[0] == "[" else step for step in re.findall(r"\[\d+\]|\w+", key)]


def _assignment(part: str) -> tuple[str, str]:
    key, sign, value = part.partition("=")
    if not (key.strip() and sign):
        raise ValueError(f"grid: {part!r}: write key=value,value;key=value")
    return key.strip(), value


def _split(text: str, separators: str) -> list[str]:
    """The parts of ``text`` between separators that stand in no bracket and no quotes; an empty text has none."""
    parts, closing = [""], ""
    for char in text:
        if closing and char == closing[-1]:
            closing = closing[:-1]
        elif not closing or closing[-1] not in "'\"":
            closing += char if char in "'\"" else BRACKETS.get(char, "")
            if not closing and char in separators:
                parts.append("")
                continue
        parts[-1] += char
    return [part.strip() for part in parts] if text.strip() else []


def _literal(text: str) -> Any:
    """A Python literal, or the text itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "4or" is no number with a warning, it is a string
        try:
            return ast.literal_eval(text.strip())
        except (ValueError, SyntaxError):
            return text.strip()


def _of_kind(key: str, old: Any, value: Any) -> Any:
    """The value, a whole number as a float where the config holds one: 1 may mean a step and 1.0 the whole stage.

    Raises:
      ValueError: a truth value or a number would become a string, or one the other, which is a typo; or an int a float.
    """
    if isinstance(old, bool):
        if not isinstance(value, bool):
            raise ValueError(f"grid: {key}={value!r}: the config holds {old}; allowed are True and False")
    elif isinstance(old, int | float) and isinstance(value, str | bool):
        raise ValueError(f"grid: {key}={value!r}: the config holds the number {old!r}")
    elif isinstance(old, int) and isinstance(value, float):
        raise ValueError(
            f"grid: {key}={value!r}: the config holds the whole number {old}; list whole numbers, or write {old}.0 there"
        )
    elif isinstance(old, float) and isinstance(value, int):
        return float(value)
    return value


def short_names(keys: Sequence[str]) -> list[str]:
    """The last part of each key, where it is unique: ``sparsity`` for ``stages[1].sparsity``."""
    last = [key.rpartition(".")[2] for key in keys]
    return [short if last.count(short) == 1 else key for short, key in zip(last, keys)]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


def _folder(name: str, taken: set[str]) -> str:
    """A name that every file system takes; a number of the name's own where it had to be shortened or is taken."""
    safe = re.sub(r"[^\w.=,+\-\[\]]+", "_", name)
    if len(safe) > 120 or safe in taken or safe.startswith("."):
        return f"{safe[:110].strip('.')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return safe
