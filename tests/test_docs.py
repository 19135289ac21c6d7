"""Every block of the pages runs as it stands: Python as doctests, one namespace a page; commands against their programs."""

import ast
import configparser
import doctest
import importlib
import json
import pathlib
import re
import shlex
import subprocess
import sys

import jax
import pytest
from sphinx.search.en import SearchEnglish

import jaxopt_nn
from experiments import layout
from experiments.__main__ import COMMANDS
from experiments.config import DEFAULTS

REPOSITORY = pathlib.Path(__file__).parent.parent
DOCS = REPOSITORY / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts) + [REPOSITORY / "README.md"]
#: Pages that train or compile for longer than two seconds.
LONG = {
    "docs/explanation/pack-law.md",
    "docs/explanation/two-mechanisms.md",
    "docs/explanation/why-sparse-is-not-faster.md",
    "docs/how-to/artifacts.md",
    "docs/how-to/batchnorm-and-dropout.md",
    "docs/how-to/cluster-weights.md",
    "docs/how-to/combine-parts-of-pruning.md",
    "docs/how-to/compare-runs.md",
    "docs/how-to/cut-layers.md",
    "docs/how-to/export.md",
    "docs/how-to/mixed-bits.md",
    "docs/how-to/prune-once.md",
    "docs/how-to/resume.md",
    "docs/how-to/serve.md",
    "docs/how-to/what-was-skipped.md",
    "docs/how-to/why-not-faster.md",
    "docs/how-to/write-a-criterion.md",
    "docs/how-to/write-a-pass.md",
    "docs/tutorials/first-compression.md",
    "docs/tutorials/language-model.md",
    "docs/tutorials/training-loop.md",
    "docs/tutorials/your-model.md",
}
FENCE = re.compile(r"^```(\{?[\w-]*\}?)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def name(page: pathlib.Path) -> str:
    return page.relative_to(REPOSITORY).as_posix()


def blocks(page: pathlib.Path, language: str) -> list[str]:
    return [body for kind, body in FENCE.findall(page.read_text()) if kind == language]


def code(page: pathlib.Path) -> str:
    """The page's Python on the lines where it stands, and nothing else."""
    text, python, end = page.read_text(), "", 0
    for block in FENCE.finditer(text):
        if block[1] == "python":
            python += "\n" * text.count("\n", end, block.start(2)) + block[2]
            end = block.end(2)
    return python


def with_speed(page: pathlib.Path) -> object:
    return pytest.param(page, id=name(page), marks=[pytest.mark.slow] if name(page) in LONG else [])


@pytest.mark.parametrize("page", [with_speed(page) for page in PAGES])
def test_python_runs_as_written(page, tmp_path, monkeypatch):
    """In an empty folder, so that files that a page writes are gone after it, and with JAX's defaults, as a reader has them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))  # of programs that a page starts
    test = doctest.DocTestParser().get_doctest(code(page), {"__name__": "__main__"}, name(page), name(page), 0)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    with jax.numpy_rank_promotion("allow"):
        assert runner.run(test).failed == 0


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_blocks_are_of_kinds_that_are_checked(page):
    kinds = {kind for kind, _ in FENCE.findall(page.read_text())}
    assert {kind for kind in kinds if not kind.startswith("{")} <= {"python", "bash", "text"}
    assert all(">>>" in block for block in blocks(page, "python")), "Python that no test runs"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_have_a_text(page):
    """Sphinx would put a page's title into an empty one; GitHub shows nothing."""
    assert "[](" not in page.read_text()


def commands(page: pathlib.Path) -> list[list[str]]:
    """``[name, argument, ...]`` of each line that runs one of our programs; one that ends in a backslash goes on."""
    lines = "".join(blocks(page, "bash")).replace("\\\n", " ").replace("python -m experiments.", "jaxopt ").splitlines()
    split = [shlex.split(line, comments=True) for line in lines]
    starts = [(words, n) for words in split for n, word in enumerate(words) if word.rpartition("/")[2] == "jaxopt"]
    return [words[n + 1 :] for words, n in starts]


def flags_of(module: str) -> set[str]:
    """The flags that a program of the repository defines."""
    source = pathlib.Path(str(importlib.import_module(module).__file__)).read_text()
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and node.args]
    texts = [call for call in calls if isinstance(call.args[0], ast.Constant) and isinstance(call.args[0].value, str)]
    return {call.args[0].value.lstrip("-") for call in texts if re.search(r"DEFINE_|add_argument", ast.unparse(call.func))}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_are_those_of_the_programs(page):
    """Each program, each flag, each config and each of its fields is there."""
    for name, *given in commands(page):
        flags = dict(word.removeprefix("--").partition("=")[::2] for word in given if word.startswith("--"))
        assert {flag.split(".")[0] for flag in flags} <= flags_of(f"experiments.{name}"), given
        if "config" in flags:
            file = pathlib.Path(flags["config"]).stem
            config = importlib.import_module(f"configs.{file}").get_config()
            for field in (flag.removeprefix("config.") for flag in flags if flag.startswith("config.")):
                assert field in DEFAULTS or eval(f"config.{field}", {"config": config}) is not None, field


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_extras_are_those_of_the_package(page):
    config = configparser.ConfigParser()
    config.read(REPOSITORY / "setup.cfg")
    named = re.findall(r"(?:\.|jaxopt_nn)\[([\w,]+)\]", page.read_text())
    assert {extra for each in named for extra in each.split(",")} <= set(config["options.extras_require"])


def test_each_public_name_has_one_entry_in_the_reference():
    text = "\n".join(page.read_text() for page in (DOCS / "reference").glob("*.md"))
    entries = re.findall(r"^\.\. auto(?:function|class|data):: (\w+)$", text, re.MULTILINE)
    assert sorted([*entries, "metrics", "scores"]) == jaxopt_nn.__all__


def test_the_public_list_is_sorted_and_true():
    assert list(jaxopt_nn.__all__) == sorted(jaxopt_nn.__all__)
    assert all(hasattr(jaxopt_nn, name) and getattr(jaxopt_nn, name).__doc__ for name in jaxopt_nn.__all__)


def test_each_command_has_an_entry():
    text = (DOCS / "reference" / "commands.md").read_text()
    assert set(re.findall(r"^\| `jaxopt (\w+)`", text, re.MULTILINE)) == set(COMMANDS)


def test_the_table_of_packages_is_true():
    text = layout.PAGE.read_text()
    assert layout.updated(text) == text, "run: python -m experiments.layout"


def test_the_readme_is_short():
    assert len((REPOSITORY / "README.md").read_text().splitlines()) < 150


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    """The built pages; a warning, such as a link that leads nowhere, is an error."""
    out = tmp_path_factory.mktemp("html")
    build = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-n", "-b", "html", str(DOCS), str(out)]
    done = subprocess.run(build, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    return out


def ranked(index, words):
    """Names of the pages that hold all of the words, those first that hold more of them in their titles."""

    def pages(table, word):
        at = index[table].get(word, [])
        return set(at if isinstance(at, list) else [at])

    stems = [SearchEnglish({}).stem(word) for word in words.split()]
    found = set.intersection(*(pages("terms", word) | pages("titleterms", word) for word in stems))
    score = {page: sum(page in pages("titleterms", word) for word in stems) for page in found}
    return [index["docnames"][page] for page in sorted(found, key=lambda page: (-score[page], page))]


@pytest.mark.slow
def test_twelve_questions_are_answered_by_a_section_and_by_the_search(html):
    index = json.loads(re.fullmatch(r"Search.setIndex\((.*)\)", (html / "searchindex.js").read_text(), re.DOTALL)[1])
    rows = re.findall(r"^\| .* \| \[.*\]\((.*)\.md#(.*)\) \| (.*) \|$", (DOCS / "questions.md").read_text(), re.MULTILINE)
    assert len(rows) == 12
    for page, section, words in rows:
        assert f'id="{section}"' in (html / f"{page}.html").read_text(), section
        assert page in ranked(index, words)[:3], words


@pytest.mark.slow
def test_pages_need_nothing_from_another_host(html):
    loaded = re.compile(r'<(?:script|img|link)[^>]* (?:src|href)="(?:https?:)?//[^"]*"')
    assert not {page.name: loaded.findall(page.read_text()) for page in html.rglob("*.html") if loaded.search(page.read_text())}
