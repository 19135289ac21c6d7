"""The wheel and the sdist: what they hold, and the commands and types from the wheel in an environment of its own.

The environment holds the wheel, and links to the distributions that its metadata declares: what is not declared is not there.
"""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import subprocess
import sys
import tarfile
import venv
import zipfile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import jaxopt_nn
from configs.digits_quickstart import get_config

REPOSITORY = pathlib.Path(__file__).parent.parent
#: Folders of the tree, and where they lie in the wheel.
FOLDERS = {"jaxopt_nn": "jaxopt_nn", "experiments": "jaxopt_nn/experiments", "configs": "jaxopt_nn/configs"}
PROGRAM = '''
import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_nn as jn

def apply(variables: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    return jax.nn.relu(x @ variables["up"]) @ variables["down"]

rng, key = np.random.default_rng(0), jax.random.key(0)
x, y = rng.standard_normal((64, 8), np.float32), rng.integers(3, size=64)
net = jn.Network(apply, {"up": jax.random.normal(key, (8, 16)), "down": jax.random.normal(key, (16, 3))})
task = jn.classification(train=(x[:48], y[:48]), test=(x[48:], y[48:]))
method: jn.Transform = jn.chain(jn.where("**", jn.prune(jn.magnitude, sparsity=0.5)), jn.where("**", jn.quantize(4)))
info: jn.ModelInfo = jn.inspect(net.apply, net.variables, x[:2])
report: jn.Report = jn.explain(method, net.variables, info)
recipe = [jn.Stage("train", jn.identity(), epochs=1), jn.Stage("w4a8", method, rule=jn.arithmetic("w4a8"))]
small: jn.Network = jn.compress(net, recipe, task, latency=False).network
size: int = jn.nbytes(small.variables)
score: float = jn.evaluate(small, task)["accuracy"]
answers = jn.predictor(small)(x)
print(report, size, score, jnp.shape(answers))
'''
#: Mistakes that a type checker finds, each with mypy's code.
WRONG = {
    "jn.quantize('4')": "arg-type",
    "jn.compress(net, recipe)": "call-arg",
    "small.varables": "attr-defined",
    "jn.Stage('train', jn.identity(), epochs='1')": "arg-type",
    "jn.Network(3, {})": "arg-type",
    "task.headlin": "attr-defined",
}

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("wheel")]


def run(*line: object, cwd: pathlib.Path, code: int = 0) -> str:
    """The output of a command, whose status must be ``code``; nothing of the repository is on its path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([str(x) for x in line], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """``(wheel, sdist)``; the wheel is built from the sdist."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, REPOSITORY, cwd=out)
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, sdist


def metadata(wheel: pathlib.Path) -> importlib.metadata.PackageMetadata:
    (name,) = (name for name in zipfile.ZipFile(wheel).namelist() if name.endswith("/METADATA"))
    return importlib.metadata.PathDistribution(zipfile.Path(wheel, name.removesuffix("METADATA"))).metadata


def closure(lines: list[str], extras: set[str]) -> set[str]:
    """Names of the distributions that requirements bring, and those of these."""
    brought, todo = set(), [(line, extras) for line in lines]
    while todo:
        line, extras = todo.pop()
        need = Requirement(line)
        applies = need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in {"", *extras})
        key = (canonicalize_name(need.name), frozenset(need.extras))
        if applies and key not in brought:
            brought.add(key)
            todo += [(line, need.extras) for line in importlib.metadata.requires(need.name) or ()]
    return {name for name, _ in brought}


@pytest.fixture(scope="module")
def environment(built, tmp_path_factory):
    """The folder of an environment with ``jaxopt_nn[cli,export]`` and no more."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    run(sys.executable, "-m", "pip", "--python", folder, "install", "--no-deps", "--no-index", built[0], cwd=folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    for name in closure(metadata(built[0]).get_all("Requires-Dist"), {"cli", "export"}):
        distribution = importlib.metadata.distribution(name)
        for entry in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            if not (packages / entry).exists():
                (packages / entry).symlink_to(distribution.locate_file(entry))
    return folder


def test_the_wheel_holds_the_library_the_commands_and_the_configs(built):
    names = {name for name in zipfile.ZipFile(built[0]).namelist() if ".dist-info/" not in name}
    wanted = {
        f"{place}/{file.relative_to(REPOSITORY / folder).as_posix()}"
        for folder, place in FOLDERS.items()
        for file in (REPOSITORY / folder).rglob("*")
        if file.is_file() and not {"benchmarks", "__pycache__"} & {*file.parts}
    }
    assert names == wanted and {"jaxopt_nn/py.typed", "jaxopt_nn/configs/digits_quickstart.py"} <= names


def test_what_the_wheel_says_of_itself(built):
    told = metadata(built[0])
    assert told["Version"] == jaxopt_nn.__version__ == importlib.metadata.version("jaxopt_nn")
    assert "Apache-2.0" in (told["License"], told["License-Expression"]) and "Typing :: Typed" in told.get_all("Classifier")
    assert {"cli", "docs", "export", "plots"} <= set(told.get_all("Provides-Extra"))


def test_the_sdist_can_be_tested(built):
    names = {name.partition("/")[2] for name in tarfile.open(built[1]).getnames()}
    for folder in ("jaxopt_nn", "experiments", "configs", "tests"):
        files = {file.relative_to(REPOSITORY).as_posix() for file in (REPOSITORY / folder).rglob("*.py")}
        assert files <= names, sorted(files - names)
    assert {"Makefile", "README.md", "LICENSE", "setup.cfg", "pyproject.toml", "jaxopt_nn/py.typed"} <= names


def test_the_commands_from_an_installation(environment, tmp_path):
    jaxopt = environment / "bin" / "jaxopt"
    assert run(jaxopt, "--version", cwd=tmp_path) == f"jaxopt_nn {jaxopt_nn.__version__}\n"
    short = [f"--config.stages[{i}].epochs=1" for i in range(len(get_config().stages))]
    short += ["--config.float.epochs=2", "--config.data.cross_validate=False"]
    run(jaxopt, "compress", "--config=digits_quickstart", "--workdir=run", *short, cwd=tmp_path)
    assert (tmp_path / "run" / "report.html").is_file() and list((tmp_path / "run").glob("*.png"))
    assert "examples/s" in run(jaxopt, "predict", "--artifact=run/network.jn", "--repeats=3", cwd=tmp_path)
    assert "checksums right" in run(jaxopt, "verify", "run/network.jn", cwd=tmp_path)
    run(jaxopt, "export", "--artifact=run/network.jn", "--to=jax,safetensors", "--platforms=cpu", "--out=out", cwd=tmp_path)
    assert (tmp_path / "out" / "model.safetensors").is_file()
    told = run(jaxopt, "verify", "--code", "out/network.jn", cwd=tmp_path)
    assert "program for cpu: runs" in told and "program and model's code differ by" in told
    file = tmp_path / "run" / "network.jn"
    file.write_bytes(file.read_bytes()[:-1])
    assert "network.jn: " in run(jaxopt, "verify", "run/network.jn", cwd=tmp_path, code=1)


def test_names_of_the_user_are_free(environment, tmp_path):
    """No ``experiments`` or ``configs`` is installed; the user's own are found beside him, and a shipped config still works."""
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "mine.py").write_text("from jaxopt_nn.experiments.models.digits import build\n")
    python, jaxopt = (environment / "bin" / name for name in ("python", "jaxopt"))
    for name in ("experiments", "configs"):
        code = f"import importlib.util as u; assert u.find_spec({name!r}) is None"
        run(python, "-c", code, cwd=environment)
    told = run(jaxopt, "inspect", "--config=digits_quickstart", "--config.model=experiments.mine:build", cwd=tmp_path)
    assert "experiments.mine:build on float32" in told
    wrong = run(jaxopt, "inspect", "--config=digits_quikstart", cwd=tmp_path, code=1)
    assert "nearest shipped configs: digits_quickstart" in wrong


def checked(environment: pathlib.Path, folder: pathlib.Path, text: str, code: int) -> str:
    (folder / "program.py").write_text(text)
    line = ("-m", "mypy", "--strict", "--python-executable", environment / "bin" / "python", "program.py")
    return run(sys.executable, *line, cwd=folder, code=code)


def test_a_users_program_has_types(environment, tmp_path):
    """mypy's strictest mode on the installed wheel; and it finds mistakes, so the types say something."""
    checked(environment, tmp_path, PROGRAM, 0)
    run(environment / "bin" / "python", "program.py", cwd=tmp_path)
    first = len(PROGRAM.splitlines()) + 1
    told = checked(environment, tmp_path, PROGRAM + "\n".join(WRONG), 1).splitlines()
    for line, (mistake, code) in enumerate(WRONG.items(), first):
        assert any(said.startswith(f"program.py:{line}: error") and f"[{code}]" in said for said in told), mistake
