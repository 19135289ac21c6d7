"""The command ``jaxopt``: its subcommands, their help, and what it says to a name that is none."""

import pathlib
import subprocess
import sys
import types

import pytest

import jaxopt_nn
from experiments import __main__ as command
from experiments import config as configs

ROOT = pathlib.Path(command.__file__).parent.parent


def jaxopt(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["jaxopt", *arguments])
    command.main()
    return capsys.readouterr().out


@pytest.mark.parametrize("arguments", [(), ("--help",), ("help",)])
def test_all_commands_are_listed_with_the_first_line_of_their_docstrings(monkeypatch, capsys, arguments):
    text = jaxopt(monkeypatch, capsys, *arguments)
    for name in command.COMMANDS:
        module = __import__(f"experiments.{name}", fromlist=["main"])
        assert callable(module.define_flags) and callable(module.main)
        assert f"  {name} " in text and module.__doc__.partition("\n")[0] in text


def test_version(monkeypatch, capsys):
    assert jaxopt(monkeypatch, capsys, "--version") == f"jaxopt_nn {jaxopt_nn.__version__}\n"


def test_a_mistyped_command_names_the_nearest(monkeypatch, capsys):
    with pytest.raises(SystemExit, match="jaxopt comprss: no such command; nearest: compress"):
        jaxopt(monkeypatch, capsys, "comprss")


def test_the_help_of_a_command_and_its_mistakes():
    run = lambda *line: subprocess.run([sys.executable, "-m", *line], capture_output=True, text=True, cwd=ROOT)
    told = run("experiments.predict", "--help")
    assert told.returncode == 0
    assert told.stdout.startswith("Runs a compressed network") and "--batch_size: Rows" in told.stdout
    assert "Default: 128." in told.stdout and "--verbosity" not in told.stdout, "of absl's own flags there are many"
    wrong = run("experiments", "predict", "--artefact=x")
    assert wrong.returncode == 1 and "Did you mean: artifact" in wrong.stderr and "Traceback" not in wrong.stderr


def test_without_the_extra_it_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ml_collections", None)
    for name in ("compress", "config"):
        monkeypatch.delitem(sys.modules, f"experiments.{name}", raising=False)
    with pytest.raises(SystemExit, match=r"jaxopt compress: .*ml_collections.*pip install 'jaxopt_nn\[cli,export,serve\]'"):
        jaxopt(monkeypatch, capsys, "compress")


def test_shipped_names_are_found_where_the_package_has_another_name(monkeypatch):
    """As in an installation, where it is ``jaxopt_nn.experiments`` and no ``experiments`` is there, or the user's own."""
    shipped = types.ModuleType("shipped")
    shipped.__path__ = [str(ROOT)]
    monkeypatch.setitem(sys.modules, "shipped", shipped)
    monkeypatch.setattr(configs, "__package__", "shipped.experiments")
    assert configs.imported("experiments.models.digits:build").__module__ == "shipped.experiments.models.digits"
    assert configs.imported("jaxopt_nn.methods.clip:clip") is jaxopt_nn.clip
    with pytest.raises(ValueError, match="has no 'biuld'; nearest: build"):
        configs.imported("experiments.models.digits:biuld")


def test_a_file_goes_before_a_shipped_config_of_its_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert configs.config_file("task_cnn") == str(ROOT / "configs" / "task_cnn.py")
    (tmp_path / "task_cnn").write_text("")
    assert configs.config_file("task_cnn") == "task_cnn"
    assert configs.with_files(["x", "--config", "task_cnn", "--config.seed=1"]) == ["x", "--config=task_cnn", "--config.seed=1"]
