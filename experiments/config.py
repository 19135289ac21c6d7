"""The configs of the experiments: which fields there are, and what they may hold."""

from __future__ import annotations

import contextlib
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags, config_path

from jaxopt_nn.core.paths import near_misses
from jaxopt_nn.export.exported import check_platforms
from jaxopt_nn.pipeline import registry

#: The shipped configs lie beside this package, in the repository and in an installation.
CONFIGS = Path(__file__).parent.parent / "configs"
PASS = "pass a Python file with a get_config(), or the name of a shipped config"
NEEDED = ("seed", "model", "batch_size", "data", "float", "stages")
#: Fields that a config may leave out, and their values then.
DEFAULTS: dict[str, Any] = {
    "checkpoint": "", "model_args": {}, "teacher": None, "start": None, "latency": None, "checkpoint_seconds": 10.0,
    "control": False, "export": [], "sensitivity": None,
}  # fmt: skip
#: Fields that change no number of a training; runs that differ in nothing else are of one config.
FREE = ("export", "latency", "sensitivity", "control", "checkpoint_seconds")
TRAINING = ("epochs", "learning_rate", "weight_decay", "ema", "distill", "training_rule", "gradient_norms")
TEACHER: dict[str, Any] = {"model_args": {}, "checkpoint": "", "data": {}}


def imported(name: str) -> Any:
    """The object at ``package.module:attribute``; a module of ``experiments`` that is shipped is the one in this package.

    An installation has the package under another name, and ``experiments`` may be the user's own.

    Raises:
      ValueError: another form of name, no such module, or no such attribute (near misses are named).
    """
    first, *rest = name.partition(":")[0].split(".")
    shipped = first == "experiments" and Path(__file__).parent.joinpath(*rest).with_suffix(".py").is_file()
    return registry.imported(f"{__package__}{name.removeprefix(first)}" if shipped else name)


def config_file(name: str) -> str:
    """The file of a config: ``name`` itself where there is such a file, else the shipped config of that name.

    Raises:
      FileNotFoundError: neither; near misses are named.
    """
    file, shipped = Path(name.partition(":")[0]), CONFIGS / f"{name}.py"  # ml_collections takes file.py:argument
    if file.exists():
        return name
    if shipped.is_file():
        return str(shipped)
    known = sorted(path.stem for path in CONFIGS.glob("[!_]*.py"))
    near = near_misses(file.stem, known)
    told = f"nearest shipped configs: {', '.join(near)}" if near else f"shipped configs: {', '.join(known)}"
    raise FileNotFoundError(f"no such file: {name!r}; {told}")


def with_files(argv: Sequence[str]) -> list[str]:
    """The command line with files in the place of the names of shipped configs, as ``--config=file``."""
    out: list[str] = []
    for argument in argv:
        if out and out[-1] in ("-config", "--config"):
            argument = f"{out.pop()}={argument}"
        flag, equals, value = argument.partition("=")
        named = flag in ("-config", "--config") and equals
        out.append(f"--config={config_file(value)}" if named else argument)
    return out


class _ConfigFile(config_flags.ConfigFileFlagParser):  # type: ignore[misc]  # the library has no types
    """A config's file, with what it leaves out and a flag can set: the fields of ``DEFAULTS`` whose value says their type."""

    def parse(self, path: str) -> Any:
        config = super().parse(path)
        if isinstance(config, ConfigDict):
            with config.unlocked():
                for field, value in DEFAULTS.items():
                    if field not in config and isinstance(value, bool | float | str):
                        config[field] = value
        return config


def plain(value: Any) -> Any:
    """A ``ConfigDict`` as dicts and lists."""
    if isinstance(value, Mapping | ConfigDict):
        return {key: plain(value[key]) for key in value}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def checked(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config as plain dicts, with the defaults of what it leaves out.

    Raises:
      ValueError: a field is unknown (near misses are named) or missing, or fields contradict each other.
    """
    fields: dict[str, Any] = plain(config)
    _known(fields, (*NEEDED, *DEFAULTS), "config", NEEDED)
    fields = {**DEFAULTS, **fields}
    seed = fields["seed"]
    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(f"config.seed={seed!r}: allowed are whole numbers from 0 to 2**32 - 1")
    _known(fields["float"], TRAINING, "config.float", ("epochs", "learning_rate"))
    fields["data"].setdefault("cross_validate", False)
    if "source" not in fields["data"]:
        raise ValueError("config.data.source: missing; see configs/digits_quickstart.py")
    if fields["data"]["cross_validate"] and "folds" not in fields["data"]:
        raise ValueError("config.data.folds: missing; cross_validate needs their number")
    if fields["checkpoint"] and fields["data"]["cross_validate"]:
        raise ValueError(
            "config.checkpoint: one checkpoint can't be cross-validated, it has seen the test images of the other folds; "
            "set data.cross_validate=False"
        )
    _check_teacher(fields)
    check_platforms(fields["export"])
    return fields


def decisive(config: Mapping[str, Any], without: Sequence[str] = ()) -> dict[str, Any]:
    """The fields of a config that its numbers depend on; ``without`` names further ones that are left out."""
    return {field: value for field, value in config.items() if field not in (*FREE, *without)}


def _check_teacher(fields: dict[str, Any]) -> None:
    if teacher := fields["teacher"]:
        _known(teacher, ("model", "float", *TEACHER), "config.teacher", ("model", "float"))
        fields["teacher"] = {**TEACHER, **teacher}
        _known(teacher["float"], TRAINING, "config.teacher.float", ("epochs", "learning_rate"))
    if (start := fields["start"]) and start.get("how") == "":
        fields["start"] = None
    elif start:
        how = start.get("how")
        if how not in ("weights", "slices"):
            raise ValueError(
                f"config.start.how={how!r}: allowed are 'weights' (transfer), 'slices' (scaled widths), '' (none)"
            )
        if not teacher:
            raise ValueError("config.start: needs a teacher, whose weights it takes")
    if fields["float"].get("distill") and not teacher:
        raise ValueError("config.float.distill: needs a teacher; a float network can't be its own")


def _known(given: Mapping[str, Any], known: Sequence[str], where: str, needed: Sequence[str]) -> None:
    for key in given:
        if key not in known:
            raise ValueError(f"{where}.{key}: no such field; nearest: {', '.join(near_misses(key, known) or known)}")
    for key in needed:
        if key not in given:
            raise ValueError(f"{where}.{key}: missing; see configs/digits_quickstart.py")


def parsed(argv: Sequence[str]) -> list[str]:
    """Command-line flags; a wrong file or a mistyped config field ends the program without a traceback."""
    flag = flags.FLAGS["config"] if "config" in flags.FLAGS else None
    if flag is not None:
        flag.parser = _ConfigFile("config")
    try:
        argv = with_files(argv)
        left: list[str] = flags.FLAGS(argv)
        if flag is not None:
            getattr(flag.value, "lock", None)  # where the file could not be read, any attribute raises
        return left
    except flags.Error as error:
        sys.exit(f"error: {_plainer(str(error))}\n--help lists the flags")
    except OSError as error:
        sys.exit(f"--config: {str(error.__cause__ or error).splitlines()[-1].strip()}; {PASS}")
    except SyntaxError as error:
        sys.exit(f"--config: {error.filename}, line {error.lineno}, is no Python ({error.msg}); {PASS}")
    except (AttributeError, KeyError, IndexError, TypeError) as error:
        if any(frame.name == "get_config" for frame in traceback.extract_tb(error.__traceback__)):
            raise  # of the user's own file: its lines are what helps
        if "has no attribute 'get_config'" in str(error):
            sys.exit(f"--config: the file has no get_config(); {PASS}")
        if isinstance(error, IndexError) and flag is not None:
            sys.exit(_beyond(argv, flag.parser))
        lines = str(error).strip("'\"").encode().decode("unicode_escape").splitlines()
        sys.exit(f"--config: no such field or entry: {' '.join(lines)}")


def _plainer(text: str) -> str:
    """What absl says of a flag, in words that name what is missing or allowed."""
    text = re.sub(r"flag --(\w+)=None: Flag --\w+ must have a value other than None\.", r"--\1 is missing; pass --\1=...", text)
    text = re.sub(r"invalid literal for int\(\) with base 10: (.*)", r"\1 is no whole number; pass one", text)
    return re.sub(r"could not convert string to float: (.*)", r"\1 is no number; pass one", text)


def _beyond(argv: Sequence[str], parser: flags.ArgumentParser) -> str:
    """What to say of a flag ``--config.stages[7].x`` that names an entry which a list does not have."""
    given = dict(argument.lstrip("-").partition("=")[::2] for argument in argv)
    config = parser.parse(given["config"]) if given.get("config") else {}
    for key in given:
        for found in re.finditer(r"\[(-?\d+)\]", key):
            at = key[: found.start()]
            with contextlib.suppress(AttributeError, LookupError, TypeError):  # of another flag that is wrong as well
                held = len(config_path.get_value(at.removeprefix("config."), config))
                if not -held <= int(found[1]) < held:
                    return f"--{key}: no such entry; {at} has {held}: " + (
                        f"{at}[0] to [{held - 1}]" if held else "none"
                    )
    return "--config: a list has no entry of that number"
