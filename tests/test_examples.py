"""The reference: every public name has an example in its docstring, and all of them run."""

import doctest
import inspect
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_nn as jn

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
#: What ``jn.metrics``, a module, defines; ``Metric`` is a public name of its own.
METRICS = [
    name
    for name, value in vars(jn.metrics).items()
    if getattr(value, "__module__", "") == jn.metrics.__name__ and not name.startswith("_") and name not in jn.__all__
]
SCORES = [name for name in jn.scores.__all__ if name != "Score"]
NAMES = {name: getattr(jn, name) for name in jn.__all__}
NAMES |= {f"metrics.{name}": getattr(jn.metrics, name) for name in METRICS}
NAMES |= {f"scores.{name}": getattr(jn.scores, name) for name in SCORES}
NAMES |= {f"entropy.{name}": getattr(jn.entropy, name) for name in jn.entropy.__all__}


def sections(value) -> str:
    return inspect.getdoc(value) or ""


def test_no_public_name_is_without_an_example():
    without = [name for name, value in NAMES.items() if "\n\nExample:\n" not in sections(value)]
    assert not without, f"public names without an example: {', '.join(without)}"


@pytest.mark.parametrize(
    "module, page, names",
    [
        ("entropy", "deployment.md", jn.entropy.__all__),
        ("metrics", "metrics.md", METRICS),
        ("scores", "passes.md", SCORES),
    ],
)
def test_the_reference_has_all_names_of_a_module(module, page, names):
    text = (pathlib.Path(__file__).parent.parent / "docs" / "reference" / page).read_text()
    entries = re.findall(rf":: jaxopt_nn::{module}\.(\w+)$", text, re.MULTILINE)
    assert sorted(entries) == sorted(names)


def test_examples_are_short():
    counts = {name: sections(value).count(">>> ") for name, value in NAMES.items()}
    assert not {name: n for name, n in counts.items() if not 1 <= n <= 9}


@pytest.mark.parametrize("name", NAMES)
def test_an_example_runs(name, tmp_path, monkeypatch):
    """As a reader types it: with JAX's defaults, files in the current folder."""
    monkeypatch.chdir(tmp_path)
    known = {"jn": jn, "jax": jax, "jnp": jnp, "np": np}
    example = doctest.DocTestParser().get_doctest(sections(NAMES[name]), known, name, None, 0)
    said: list[str] = []
    with jax.numpy_rank_promotion("allow"):
        doctest.DocTestRunner(optionflags=FLAGS).run(example, out=said.append)
    assert not said, "".join(said)
