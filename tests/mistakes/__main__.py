"""Prints the mistakes with their messages as the page ``docs/how-to/messages.md``."""

import pathlib
import subprocess
import sys
import tempfile
import textwrap

from tests.mistakes.library import GROUPS
from tests.mistakes.setting import names
from tests.mistakes.told import told

HEAD = """# Messages

What the library says to the mistakes that people make, by topic. A message says what was given, what is allowed, and what
to do next. Search this page for the words that you see.

In these lines `net` is a `Network` of `apply` and `variables`, `x` a batch of its inputs, `task` a classification of
`images` and `labels`; `w4` is `jn.where("**/kernel", jn.quantize(4))`, `state` its state, `stored` what it packs, and
`stored8` the same with 8 bits; `model` is a Flax Linen module and `params` its variables; `tmp` is a folder, which messages
call `RUN`, as the commands do. Three functions make lines short: `compress(recipe)` is `jn.compress(net, recipe, task)`, with
another network or task where one is passed; `step(loss)` takes one training step of `w4` with that loss, by `jn.make_step`;
`artifact()` saves `net` in `tmp` with `jn.save` and gives the path. Errors of a model, a loader or a config of your own keep
their traceback. The page is what `python -m tests.mistakes` prints."""


def page(folder: str) -> str:
    """The page; the name of ``folder`` is told as ``RUN``."""
    parts, given = [HEAD], names(pathlib.Path(folder))
    for title, cases in GROUPS.items():
        parts += ["", f"## {title}", "", "```text"]
        for code, *_ in cases:
            error = told(code, given)
            text = f"{type(error).__name__}: {error}".replace(folder, "RUN")
            parts += [f">>> {code}", textwrap.fill(text, 110, break_long_words=False), ""]
        parts[-1] = "```"
    commands = subprocess.run([sys.executable, "-m", "tests.mistakes.commands"], capture_output=True, text=True, check=True)
    lines = [textwrap.fill(line, 110, break_long_words=False, break_on_hyphens=False) for line in commands.stdout.splitlines()]
    parts += ["", "## Commands", "", "```text", "\n".join(lines).strip(), "```"]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print(page(folder), end="")
