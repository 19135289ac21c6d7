"""Mistakes at the command line: ``(arguments, parts of the message)``, each run as ``jaxopt ARGUMENTS`` would.

``python -m tests.mistakes.commands`` prints them with what they print. A process that has imported all but not begun to compute
is forked for each, since absl's flags are defined once a process.
"""

import contextlib
import io
import os
import pathlib
import sys
import tempfile
import traceback

DIGITS = "--config=configs/digits_quickstart.py"
COMMANDS = [
    ("comprss", "no such command; nearest: compress"),
    ("compress", "--config is missing", "--workdir is missing"),
    (f"compress {DIGITS}", "--workdir is missing; pass --workdir=..."),
    (f"compress {DIGITS} --workdir=RUN more", "more: unexpected", "--name=value"),
    (f"compress {DIGITS} --workdirr=RUN", "Did you mean"),
    ("compress --config=nowhere.py --workdir=RUN", "nowhere.py", "pass a Python file with a get_config()"),
    ("compress --config=README.md --workdir=RUN", "README.md", "pass a Python file with a get_config()"),
    (f"compress {DIGITS} --workdir=RUN --config.sed=3", "no such field", 'Did you mean "seed"'),
    (f"compress {DIGITS} --workdir=RUN --config.seed=three", "'three' is no whole number; pass one"),
    (f"compress {DIGITS} --workdir=RUN --config.stages[7].bits=3", "stages has 3", "[0] to [2]"),
    (f"compress {DIGITS} --workdir=RUN --config.stages[2].bits=9", "stages[2] (quantize)", "allowed are the whole numbers"),
    (f"compress {DIGITS} --workdir=RUN --config.stages[0].where=.*kernel", "globs", "did you mean"),
    (f"compress {DIGITS} --workdir=RUN --config.stages[2].rule=int4", "int4", "allowed are w1 to w8"),
    (f"compress {DIGITS} --workdir=RUN --config.stages[2].method=quantise", "quantise", "nearest: quantize"),
    (f"compress {DIGITS} --workdir=RUN --config.model=experiments.models.digits:biuld", "biuld", "nearest: build"),
    (f"compress {DIGITS} --workdir=RUN --config.model=experiments.models.nowhere:build", "nowhere", "PYTHONPATH"),
    (f"compress {DIGITS} --workdir=RUN --config.data.source=digits", "digits", "package.module:name"),
    (f"compress {DIGITS} --workdir=RUN --config.batch_size=0", "batch_size=0", "allowed are"),
    (f"compress {DIGITS} --workdir=README.md", "README.md", "pass another"),
    (
        f"compress {DIGITS} --workdir=RUN --config.checkpoint=nowhere --config.data.cross_validate=False",
        "config.checkpoint='nowhere'", "pass one",
    ),
    ("inspect --config=configs/bytes_lm_ptq.py --config.model=experiments.models.digits:build", "of config.model_args", "seed"),
    ("inspect --config=nowhere.py", "pass a Python file with a get_config()"),
    (f"inspect {DIGITS} --config.stages[0].where=.*kernel", "globs", "did you mean"),
    ("predict", "--artifact is missing"),
    ("predict --artifact=nowhere", "no such file", "pass the name of"),
    ("predict --artifact=configs", "is a folder without manifest.json", "pass the file"),
    ("predict --artifact=nowhere --batch_size=0", "batch_size=0", "allowed are 1 and more"),
    ("predict --artifact=nowhere --batch_size=many", "'many' is no whole number"),
    (f"sweep {DIGITS} --workdir=RUN --grid=stages[2].bits", "stages[2].bits", "key=value"),
    (f"sweep {DIGITS} --workdir=RUN --grid=stages[2].bts=2,3", "bts", "nearest"),
    (f"sweep {DIGITS} --workdir=RUN --seeds=0", "seeds=0", "1"),
    ("verify --artifact=nowhere", "Unknown command line flag 'artifact'", "--help lists the flags"),
    ("export --artifact=nowhere", "--to is missing", "--out is missing"),
    ("serve --artifact=nowhere", "no such file", "pass the name of"),
]  # fmt: skip


def printed(line: str) -> tuple[int, str]:
    """Exit status and all that a command prints, run in a fork of this process in an empty folder's ``RUN``."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.dup2(writing, 1), os.dup2(writing, 2)
        run(line)
    os.close(writing)
    with os.fdopen(reading) as stream:
        text = stream.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text


def run(line: str) -> None:
    """Runs a command and ends the process with its status."""
    from experiments import __main__ as command

    sys.argv, status = ["jaxopt", *line.split()], 0
    try:
        command.main()
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code)
        status = ended.code if isinstance(ended.code, int) else bool(ended.code)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(status)


def main() -> None:
    from experiments import compress, export, inspect, predict, serve, sweep, verify  # noqa: F401

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        for line, *_ in COMMANDS:
            status, text = printed(line.replace("RUN", str(pathlib.Path(folder) / "run")))
            said = text.replace(f"{folder}/run", "RUN").replace(f"{os.getcwd()}/", "").strip()
            print(f"$ jaxopt {line}\n{said}\nexit status {status}\n", flush=True)


if __name__ == "__main__":
    main()
