"""The command ``jaxopt``: ``jaxopt COMMAND ...``; in a checkout also ``python -m experiments COMMAND ...``."""

from __future__ import annotations

import ast
import importlib
import os
import sys
from pathlib import Path

import jaxopt_nn
from jaxopt_nn.core.paths import near_misses

#: Modules of this package with ``define_flags()`` and ``main(argv)``; each is imported only when it is called.
COMMANDS = ("compress", "predict", "inspect", "sweep", "compare", "index", "list", "verify", "export", "gradients", "serve")


def main() -> None:
    """Runs the command that the first argument names; the others are its own."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "-help", "--help", "help"):
        print(overview())
    elif name in ("--version", "version"):
        print(f"jaxopt_nn {jaxopt_nn.__version__}")
    elif name in COMMANDS:
        run(name, arguments)
    else:
        near = near_misses(name, COMMANDS) or COMMANDS
        sys.exit(f"jaxopt {name}: no such command; nearest: {', '.join(near)}. `jaxopt --help` lists all")


def run(name: str, arguments: list[str]) -> None:
    """Runs a command on its arguments."""
    sys.path.append(os.getcwd())  # models and data named package.module:function may lie beside the user, as with `python -m`
    sys.argv = [f"jaxopt {name}", *arguments]
    try:
        module = importlib.import_module(f".{name}", __package__)
        command = importlib.import_module(".command", __package__)
        command.start(module.define_flags, module.main, module.__doc__)
    except ModuleNotFoundError as error:
        sys.exit(f"jaxopt {name}: {error}; all that the commands need: pip install 'jaxopt_nn[cli,export,serve]'")


def overview() -> str:
    """The commands, each with the first line of its module's docstring."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {summary(name)}" for name in COMMANDS]
    return "\n".join(["usage: jaxopt COMMAND [--flag=value ...]", "", *lines, "", "flags of one: jaxopt COMMAND --help"])


def summary(name: str) -> str:
    """The first line of a command's docstring, without importing it."""
    tree = ast.parse((Path(__file__).parent / f"{name}.py").read_text())
    return (ast.get_docstring(tree) or "").partition("\n")[0]


if __name__ == "__main__":
    main()
