"""Rewrites what the README says of the code, from the code: ``python -m experiments.readme``.

The list of public names comes from their docstrings, the diagram of the packages from the imports.
"""

from __future__ import annotations

import ast
import inspect
import pathlib
import re

import jaxopt_nn

README = pathlib.Path(__file__).parent.parent / "README.md"
PACKAGE = pathlib.Path(jaxopt_nn.__file__).parent


def summary(name: str) -> str:
    """The first sentence of a public name's docstring."""
    text = inspect.getdoc(getattr(jaxopt_nn, name)) or ""
    first = re.split(r"(?<=[.:])\s+(?=[A-Z`(])|\n\n", text.strip(), maxsplit=1)[0]
    return " ".join(first.split()).replace("``", "`").rstrip(":.")


def names() -> str:
    """The list, as Markdown."""
    return "\n".join(f"- `{name}`: {summary(name)}." for name in jaxopt_nn.__all__)


def imports() -> dict[str, set[str]]:
    """``{package: packages that its modules import}``."""
    found: dict[str, set[str]] = {}
    for file in PACKAGE.glob("*/*.py"):
        own = found.setdefault(file.parent.name, set())
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jaxopt_nn."):
                own.add(str(node.module).split(".")[1])
    return {package: own - {package} for package, own in found.items()}


def diagram() -> str:
    """The packages by height, each with an arrow to those that it imports and can't reach through another one."""
    direct = imports()
    reached: dict[str, set[str]] = {}

    def below(package: str) -> set[str]:
        if package not in reached:
            reached[package] = direct[package].union(*map(below, direct[package]))
        return reached[package]

    def height(package: str) -> int:
        return 1 + max(map(height, direct[package]), default=-1)

    order = sorted(direct, key=lambda package: (-height(package), package))
    needed = {p: {q for q in direct[p] if not any(q in below(other) for other in direct[p])} for p in order}
    arrows = [f"  {p} --> {q}" for p in order for q in sorted(needed[p], key=order.index)]
    return "\n".join(["```mermaid", "graph TD", *arrows, "```"])


BLOCKS = {"packages": diagram, "names": names}


def updated(text: str) -> str:
    """The README with its blocks as they should be."""
    for name, made in BLOCKS.items():
        start, stop = f"<!-- {name}: python -m experiments.readme -->", f"<!-- end of {name} -->"
        head, rest = text.split(start)
        text = f"{head}{start}\n{made()}\n{stop}{rest.split(stop)[1]}"
    return text


if __name__ == "__main__":
    README.write_text(updated(README.read_text()))
