"""Rewrites the README's list of public names from their docstrings: ``python -m experiments.readme``."""

from __future__ import annotations

import inspect
import pathlib
import re

import jaxopt_nn

README = pathlib.Path(__file__).parent.parent / "README.md"
START, STOP = "<!-- names: python -m experiments.readme -->", "<!-- end of names -->"


def summary(name: str) -> str:
    """The first sentence of a public name's docstring."""
    text = inspect.getdoc(getattr(jaxopt_nn, name)) or ""
    first = re.split(r"(?<=[.:])\s+(?=[A-Z`(])|\n\n", text.strip(), maxsplit=1)[0]
    return " ".join(first.split()).replace("``", "`").rstrip(":.")


def names() -> str:
    """The list, as Markdown."""
    return "\n".join(f"- `{name}`: {summary(name)}." for name in jaxopt_nn.__all__)


def updated(text: str) -> str:
    """The README with the list as it should be."""
    head, rest = text.split(START)
    return f"{head}{START}\n{names()}\n{STOP}{rest.split(STOP)[1]}"


if __name__ == "__main__":
    README.write_text(updated(README.read_text()))
