"""A package imports lower levels only, and none of its own level; each rule names the line that breaks it."""

import ast
import pathlib

import pytest

REPOSITORY = pathlib.Path(__file__).parent.parent
PACKAGE = REPOSITORY / "jaxopt_nn"
LEVELS = {
    "numerics": 0,
    "tensors": 1,
    "core": 2,
    "formulations": 2,
    "interpret": 3,
    "methods": 3,
    "coding": 3,
    "frameworks": 4,
    "export": 4,
    "parallel": 5,
    "cost": 6,
    "passes": 7,
    "reporting": 7,
    "pipeline": 8,
}
FOLDERS = ("jaxopt_nn", "experiments", "configs", "tests")
FILES = sorted(p.relative_to(REPOSITORY) for folder in FOLDERS for p in (REPOSITORY / folder).rglob("*.py"))


def dotted(node: ast.AST) -> str | None:
    """``a.b.c`` of an attribute chain on a plain name, None of anything else."""
    if isinstance(node, ast.Attribute):
        owner = dotted(node.value)
        return owner and f"{owner}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else None


def uses(source: str) -> list[tuple[int, str]]:
    """Line and full name of every import, wherever in the file, and of every attribute chain on ``jax``."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            found += [(node.lineno, f"{module}.{alias.name}") for alias in node.names]
        elif isinstance(node, ast.Attribute) and (dotted(node) or "").startswith("jax."):
            found.append((node.lineno, str(dotted(node))))
    return sorted(set(found))


def under(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def complaint(path: pathlib.Path, name: str) -> str | None:
    """Why the file at ``path``, relative to the repository, may not use ``name``; None if it may."""
    if under(name, "jax._src"):
        return "jax._src is private; use the public name"
    if path.parts[0] != "jaxopt_nn":
        return None
    package = path.parts[1]
    if under(name, "jax.extend") and package != "interpret":
        return "jax.extend belongs to jaxopt_nn/interpret alone"
    if name.startswith("."):
        return "write the full name instead of a relative import"
    if name.partition(".")[0] in ("experiments", "configs", "tests"):
        return "the library stands without what uses it"
    if not under(name, "jaxopt_nn"):
        return None
    other = (name.split(".") + [""])[1]
    if other not in LEVELS:
        return "inside the package import from the module that defines the name"
    if other != package and LEVELS[other] >= LEVELS[package]:
        return f"{package} (level {LEVELS[package]}) imports lower levels only, not {other} ({LEVELS[other]})"
    return None


def test_every_package_has_a_level():
    packages = {init.parent.name for init in PACKAGE.glob("*/*.py")}
    assert packages, f"no package under {PACKAGE}"
    unknown = sorted(packages - LEVELS.keys())
    assert not unknown, f"{unknown}: no known level; add each to LEVELS in tests/test_levels.py"


def test_no_module_lies_beside_the_packages():
    assert sorted(path.name for path in PACKAGE.glob("*.py*")) == ["__init__.py", "__init__.pyi"]


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_point_downwards(path):
    broken = [
        f"{path}:{line}: {name}: {why}"
        for line, name in uses((REPOSITORY / path).read_text())
        if (why := complaint(path, name))
    ]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize(
    "path, line, expected",
    [
        ("numerics/a.py", "import jax\nx = jax._src.core.foo", "jax._src"),
        ("numerics/a.py", "def f():\n    from jax._src import core", "jax._src"),
        ("methods/a.py", "import jax.extend.core", "jax.extend"),
        ("methods/a.py", "from jax import extend", "jax.extend"),
        ("interpret/a.py", "from jax.extend import core", None),
        ("tensors/a.py", "from jaxopt_nn.core import paths", "level"),
        ("core/a.py", "from jaxopt_nn.formulations.integer import dot", "level"),
        ("core/a.py", "from jaxopt_nn.core.paths import x\nfrom jaxopt_nn.tensors.base import y", None),
        ("core/a.py", "from . import paths", "full name"),
        ("core/a.py", "from jaxopt_nn import chain", "defines"),
        ("core/a.py", "import jaxopt_nn", "defines"),
        ("pipeline/a.py", "import experiments.data", "without"),
    ],
)
def test_the_rules_find_what_they_forbid(path, line, expected):
    found = [complaint(pathlib.Path("jaxopt_nn", path), name) for _, name in uses(line)]
    if expected is None:
        assert found and not any(found)
    else:
        assert any(expected in (why or "") for why in found)
