"""How a command starts, and what its ``--help`` says.

A command is a module with ``define_flags()``, which defines its absl flags, and ``main(argv)``, which gets what is no flag.
It ends with ``if __name__ == "__main__": start(define_flags, main, __doc__)`` and has a line in ``experiments/__main__.py``.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Sequence

from absl import app, flags

from .config import parsed

HELP = {"-h", "-help", "--help"}


def start(define_flags: Callable[[], None], main: Callable[[Sequence[str]], None], doc: str | None) -> None:
    """Runs ``main`` on the command line, or prints ``doc`` and the flags that ``define_flags`` adds."""
    others = set(flags.FLAGS)
    define_flags()
    if HELP & set(sys.argv[1:]):
        print(described(doc or "", [flags.FLAGS[name] for name in flags.FLAGS if name not in others]))
    else:
        app.run(main, flags_parser=parsed)


def described(doc: str, own: Sequence[flags.Flag]) -> str:
    """The docstring of a command, and a paragraph for each of its flags."""
    told = []
    for flag in own:
        default = "" if flag.default in (None, "") else f" Default: {flag.default}."
        told.append(textwrap.fill(f"--{flag.name}: {flag.help}{default}", 100, initial_indent="  ", subsequent_indent="    "))
    return "\n".join([doc.strip(), "", "flags:", *told])
