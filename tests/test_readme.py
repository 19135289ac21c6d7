"""The README's code runs, and its list of names is that of the package."""

import doctest
import pathlib

import jaxopt_nn
from experiments import readme

README = pathlib.Path(__file__).parent.parent / "README.md"


def test_code_runs_as_written():
    result = doctest.testfile(
        str(README), module_relative=False, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    )
    assert result.attempted > 10 and result.failed == 0


def test_public_names_are_listed_with_the_first_line_of_their_docstrings():
    text = README.read_text()
    assert readme.updated(text) == text, "run: python -m experiments.readme"
    assert all(readme.summary(name) for name in jaxopt_nn.__all__)


def test_the_public_list_is_sorted_and_true():
    assert list(jaxopt_nn.__all__) == sorted(jaxopt_nn.__all__)
    assert all(hasattr(jaxopt_nn, name) for name in jaxopt_nn.__all__)
