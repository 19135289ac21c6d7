"""jaxopt_nn: makes trained JAX networks smaller and faster, and says what it cost."""

import ast
import pathlib
from typing import Any

__version__ = "0.1.0"

_STUB = ast.parse(pathlib.Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
#: ``{public name: module it comes from}``, by ``__init__.pyi``, which type checkers read as well.
_HOMES = {
    alias.name: f"{__name__}.{node.module}"
    for node in _STUB.body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used: a program that prunes imports no entropy coder."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(__import__(_HOMES[name], fromlist=[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
