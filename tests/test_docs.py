"""Every block of the pages runs as it stands: Python as doctests, one namespace a page; commands against their programs."""

import ast
import doctest
import importlib
import pathlib
import re
import shlex

import pytest

import jaxopt_nn

REPOSITORY = pathlib.Path(__file__).parent.parent
DOCS = REPOSITORY / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)
#: Pages that train or compile for longer than two seconds.
LONG = set[str]()
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
    """In an empty folder: a page that writes files leaves nothing behind."""
    monkeypatch.chdir(tmp_path)
    test = doctest.DocTestParser().get_doctest(code(page), {"__name__": "__main__"}, name(page), name(page), 0)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert runner.run(test).failed == 0


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_blocks_are_of_kinds_that_are_checked(page):
    kinds = {kind for kind, _ in FENCE.findall(page.read_text())}
    assert {kind for kind in kinds if not kind.startswith("{")} <= {"python", "bash", "text"}
    assert all(">>>" in block for block in blocks(page, "python")), "Python that no test runs"


def commands(page: pathlib.Path) -> list[list[str]]:
    """Words of each command line that runs a program of ours; a line that ends in a backslash goes on."""
    lines = "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    split = [shlex.split(line, comments=True) for line in lines]
    return [words for words in split if "-m" in words and words[words.index("-m") + 1].startswith("experiments")]


def flags_of(module: str) -> set[str]:
    """The flags that a program of the repository defines."""
    source = pathlib.Path(str(importlib.import_module(module).__file__)).read_text()
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and node.args]
    texts = [call for call in calls if isinstance(call.args[0], ast.Constant) and isinstance(call.args[0].value, str)]
    return {call.args[0].value.lstrip("-") for call in texts if re.search(r"DEFINE_|add_argument", ast.unparse(call.func))}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_are_those_of_the_programs(page):
    """Each program, each flag, each config and each of its fields is there."""
    for words in commands(page):
        module, given = words[words.index("-m") + 1], words[words.index("-m") + 2 :]
        flags = dict(word.removeprefix("--").partition("=")[::2] for word in given if word.startswith("--"))
        assert {flag.split(".")[0] for flag in flags} <= flags_of(module), words
        if "config" in flags:
            config = importlib.import_module(flags["config"].removesuffix(".py").replace("/", ".")).get_config()
            for field in (flag.removeprefix("config.") for flag in flags if flag.startswith("config.")):
                assert eval(f"config.{field}", {"config": config}) is not ..., field


def test_each_public_name_has_one_entry_in_the_reference():
    text = "\n".join(page.read_text() for page in (DOCS / "reference").glob("*.md"))
    entries = re.findall(r"^\.\. auto(?:function|class|data):: (\w+)$", text, re.MULTILINE)
    assert sorted([*entries, "metrics"]) == jaxopt_nn.__all__
