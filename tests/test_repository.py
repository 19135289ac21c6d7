"""What holds for the repository as a whole: sizes, paths, declared dependencies, and a light import."""

import ast
import configparser
import importlib.metadata
import os
import pathlib
import re
import resource
import subprocess
import sys

import pytest

from jaxopt_nn.pipeline import registry

REPOSITORY = pathlib.Path(__file__).parent.parent
FOLDERS = ("jaxopt_nn", "experiments", "configs", "docs", "tests", "colab", ".ci")
SUFFIXES = {"", ".cfg", ".ipynb", ".json", ".md", ".py", ".toml", ".txt", ".yaml", ".yml"}
TEXTS = sorted(
    path
    for folder in (".", *FOLDERS)
    for path in (REPOSITORY / folder).glob("*" if folder == "." else "**/*")
    if path.is_file() and path.suffix in SUFFIXES and path.name != ".git"  # a file where the checkout shares a repository
)
# Where a home, a checkout or a scratch folder of one machine lies.
MACHINE_PATH = re.compile(r"(?<![\w.~/<>{}$-])(?:/(?:home|root|Users|work|mnt)|[A-Z]:\\Users)[/\\]\w")
EXTRAS = ("bench", "cli", "docs", "export", "notebooks", "plots", "serve", "test", "tpu")
LOCAL = {"jaxopt_nn", "experiments", "configs", "tests"}
# What the library uses only where it is there: for a report's plots, the bar of progress, TensorBoard's and safetensors files.
# The scripts of `tests/golden` run in an environment of their own.
OPTIONAL = {
    "jaxopt_nn": {"matplotlib", "rich", "safetensors", "tensorboardx"},
    "tests": {"compressed-tensors", "torch"},
}


def module_names(path: pathlib.Path) -> set[str]:
    """The top-level names of what a file imports, wherever in it."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {name.partition(".")[0] for name in plain} | {
        node.module.partition(".")[0]
        for node in nodes
        if isinstance(node, ast.ImportFrom) and node.module and not node.level
    }


def canonical(requirement: str) -> str:
    """The distribution's name in ``requirement``, spelt one way."""
    name = re.match(r"[\w.-]+", requirement.strip())
    assert name is not None, requirement
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def declared(*extras: str) -> set[str]:
    """Distributions that setup.cfg installs for the package with ``extras``."""
    config = configparser.ConfigParser()
    config.read(REPOSITORY / "setup.cfg")
    chosen = [config["options.extras_require"][extra] for extra in extras]
    lines = "\n".join([config["options"]["install_requires"], *chosen]).split("\n")
    return {canonical(line) for line in lines if line.strip()}


@pytest.mark.parametrize("folder", ["jaxopt_nn", "experiments"])
def test_files_hold_one_idea(folder):
    files = sorted((REPOSITORY / folder).rglob("*.py"))
    lengths = {str(path.relative_to(REPOSITORY)): len(path.read_text().splitlines()) for path in files}
    assert lengths
    assert not {name: lines for name, lines in lengths.items() if lines > 450}


def test_no_text_names_a_path_of_one_machine():
    assert MACHINE_PATH.search("see /home/" + "ada/net") and not MACHINE_PATH.search("a/home/b ~/.pyenv/x")
    found = [
        f"{path.relative_to(REPOSITORY)}:{number}: {line.strip()[:80]}"
        for path in TEXTS
        for number, line in enumerate(path.read_text(errors="ignore").splitlines(), 1)
        if MACHINE_PATH.search(line)
    ]
    assert not found, "\n".join(found)


def test_no_text_has_the_marks_of_a_merge():
    marks = re.compile(r"^(<<<<<<<|>>>>>>>) ", re.MULTILINE)
    assert not [path for path in TEXTS if marks.search(path.read_text(errors="ignore"))]


def test_packages_are_those_of_the_tree():
    """The library, and inside it the commands and their configs; benchmarks stay in the repository."""
    config = configparser.ConfigParser()
    config.read(REPOSITORY / "setup.cfg")
    folders = {"jaxopt_nn": "jaxopt_nn", "experiments": "jaxopt_nn.experiments", "configs": "jaxopt_nn.configs"}
    there = {
        ".".join([package, *init.parent.relative_to(REPOSITORY / folder).parts])
        for folder, package in folders.items()
        for init in (REPOSITORY / folder).rglob("__init__.py")
        if "benchmarks" not in init.parts
    }
    assert config["options"]["packages"].split() == sorted(there)
    mapped = dict(line.split(" = ") for line in config["options"]["package_dir"].strip().splitlines())
    assert mapped == {package: folder for folder, package in folders.items() if folder != package}


def test_the_repository_has_one_address():
    config = configparser.ConfigParser()
    config.read(REPOSITORY / "setup.cfg")
    url = config["metadata"]["url"]
    for path in [REPOSITORY / "setup.cfg", REPOSITORY / "CITATION.cff", *(REPOSITORY / "colab").glob("*.ipynb")]:
        # A badge's address has the repository after `github/`.
        text = path.read_text().replace("colab.research.google.com/github/", "github.com/")
        assert set(re.findall(r"github\.com/[\w-]+/[\w-]+", text)) == {url.removeprefix("https://")}, path


def test_extras_are_named_for_what_they_do():
    config = configparser.ConfigParser()
    config.read(REPOSITORY / "setup.cfg")
    assert tuple(sorted(config["options.extras_require"])) == EXTRAS
    assert declared("cli", "export") <= declared("test") and declared("plots") <= declared("cli")


def test_the_package_declares_what_it_imports_and_no_more():
    names = {name for path in (REPOSITORY / "jaxopt_nn").rglob("*.py") for name in module_names(path)}
    owners = importlib.metadata.packages_distributions()
    imported = {canonical(owner) for name in names - {"jaxopt_nn"} for owner in owners.get(name, ())}
    assert declared() - {"flatbuffers"} <= imported, "flatbuffers is what jax.export needs"


@pytest.mark.parametrize(
    "folder, extras",
    [
        ("jaxopt_nn", ()),
        ("configs", ("cli",)),
        ("experiments", ("cli", "bench", "serve")),
        ("tests", ("test",)),
    ],
)
def test_what_is_imported_is_declared(folder, extras):
    """Imports, also those inside functions, belong to the extra that installs them."""
    owners = importlib.metadata.packages_distributions()
    allowed = declared(*extras) | OPTIONAL.get(folder, set())
    missing = {
        f"{path.relative_to(REPOSITORY)} imports {name}"
        for path in sorted((REPOSITORY / folder).rglob("*.py"))
        for name in module_names(path) - set(sys.stdlib_module_names) - LOCAL
        if not allowed & {canonical(owner) for owner in owners.get(name, [name])}
    }
    assert not missing, f"add to setup.cfg ({extras or 'install_requires'}): {sorted(missing)}"


def run(code: str, **environment: str) -> str:
    """The output of ``code`` in a fresh process at the repository's root."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_importing_the_package_imports_nothing_heavy():
    """Flax, Orbax and Matplotlib cost 0.15 s to 0.4 s each: they are imported where they are used."""
    heavy = {"flax", "haiku", "equinox", "libtpu", "matplotlib", "ml_collections", "orbax", "pandas", "qwix"}
    heavy |= {"numba", "rich", "sklearn", "tensorflow", "tensorstore", "torch"}
    assert run(f"import sys, jaxopt_nn; print(sorted({heavy} & set(sys.modules)))").strip() == "[]"


def test_importing_the_package_touches_no_device():
    """A user sets platforms, distributed clients and flags after the import."""
    assert run("import jaxopt_nn", JAX_PLATFORMS="no_such_platform") == ""


@pytest.mark.slow
def test_importing_the_package_takes_at_most_0_3_seconds_over_jax():
    """Processor seconds, least of seven: other work on the machine, and compiling bytecode once, only add."""

    def seconds(module: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run(f"import {module}", PYTHONDONTWRITEBYTECODE="")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    rounds = [(seconds("jax"), seconds("jaxopt_nn")) for _ in range(7)]
    plain, ours = (min(side) for side in zip(*rounds, strict=True))
    assert ours - plain <= 0.3, f"jaxopt_nn {ours:.2f} s, jax {plain:.2f} s"


def lengths(source: str) -> dict[str, int]:
    """Lines of each function, those of its docstring left out."""
    found = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = node.body[0] if ast.get_docstring(node) else None
            told = docstring.end_lineno - docstring.lineno + 1 if docstring else 0
            found[node.name] = node.end_lineno - node.lineno + 1 - told
    return found


def test_functions_are_short():
    paths = [path for folder in ("jaxopt_nn", "experiments") for path in (REPOSITORY / folder).rglob("*.py")]
    long = {f"{path.name}, {name}: {n}" for path in paths for name, n in lengths(path.read_text()).items() if n > 45}
    assert not long, "longer than 45 lines without their docstrings"


def test_the_pipeline_and_the_report_name_no_method():
    """Methods come in by the registry; what a report says of one comes from the method."""
    names = {path.stem for path in (REPOSITORY / "jaxopt_nn" / "methods").glob("*.py")} | {*registry.METHODS, *registry.PASSES}
    names -= {"__init__", "taps", "identity", "transfer", "schedules"}
    for folder in ("pipeline", "reporting"):
        for path in (REPOSITORY / "jaxopt_nn" / folder).glob("*.py"):
            if path.name == "registry.py":
                continue
            used = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
            used |= {n.rpartition(".")[2] for n in module_paths(path)}
            assert not used & names, path


def module_paths(path: pathlib.Path) -> set[str]:
    """The modules that a file imports from."""
    return {str(node.module) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)}
