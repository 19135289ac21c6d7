"""Rewrites the table of packages in the documentation, from the code: ``python -m experiments.layout``.

What a package holds comes from the first line of its docstring, what it imports from its imports.
"""

from __future__ import annotations

import ast
import functools
import importlib
import pathlib
import re

import jaxopt_nn

PAGE = pathlib.Path(__file__).parent.parent / "docs" / "explanation" / "layout.md"
PACKAGE = pathlib.Path(jaxopt_nn.__file__).parent
START, STOP = "<!-- packages: python -m experiments.layout -->", "<!-- end of packages -->"


def imports() -> dict[str, set[str]]:
    """``{package: packages that its modules import}``."""
    direct: dict[str, set[str]] = {}
    for file in PACKAGE.glob("*/*.py"):
        own = direct.setdefault(file.parent.name, set())
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jaxopt_nn."):
                own.add(str(node.module).split(".")[1])
    return {package: own - {package} for package, own in direct.items()}


def needed(direct: dict[str, set[str]]) -> dict[str, list[str]]:
    """Of each package's imports those that it can't reach through another one."""

    @functools.cache
    def below(package: str) -> set[str]:
        return direct[package].union(*map(below, direct[package]))

    return {p: sorted(q for q in own if not any(q in below(other) for other in own)) for p, own in direct.items()}


def described(package: str) -> tuple[int, str]:
    """``(level, what it holds)``, as its docstring says."""
    text = (importlib.import_module(f"jaxopt_nn.{package}").__doc__ or "").partition("\n\n")[0]
    match = re.fullmatch(r"Level (\d+): (.*)", " ".join(text.split()))
    if match is None:
        raise ValueError(f"jaxopt_nn/{package}/__init__.py: its docstring begins with {text[:40]!r}, not with its level")
    return int(match[1]), match[2].replace("``", "`")


def table() -> str:
    """The packages by level, the highest first, as Markdown."""
    direct = needed(imports())
    rows = sorted(((*described(package), package) for package in direct), key=lambda row: (-row[0], row[2]))
    lines = [f"| {level} | `{name}` | {what} | {', '.join(direct[name]) or '-'} |" for level, what, name in rows]
    return "\n".join(["| level | package | what it holds | imports |", "| --- | --- | --- | --- |", *lines])


def updated(text: str) -> str:
    """The page with its table as it should be."""
    head, rest = text.split(START)
    return f"{head}{START}\n\n{table()}\n\n{STOP}{rest.split(STOP)[1]}"


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text()))
