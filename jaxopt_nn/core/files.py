"""Files and folders of a run: written whole or not at all, and never over something else."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxopt_nn.core.arguments import in_words

MOVE = "move it away, or pass another --workdir"


def place_of(name: Any, what: str = "directory") -> Path:
    """The absolute path of a file or folder that was named.

    Raises:
      TypeError: no name. ValueError: an empty one.
    """
    if not isinstance(name, str | os.PathLike):
        raise TypeError(f"{what} is {in_words(name)}; pass the name of a file or folder")
    if not os.fspath(name):
        raise ValueError(f"{what}='': pass the name of a file or folder; '.' is the current folder")
    return Path(name).absolute()


def open_workdir(workdir: str | os.PathLike[str], folders: Sequence[str] = (), files: Sequence[str] = ()) -> Path:
    """The directory, made where it is missing; ``folders`` and ``files`` are what a run makes in it.

    Raises:
      ValueError: an empty name.
      OSError: it can't be made or written, or something else stands in the place of what a run makes there.
    """
    path = place_of(workdir, "workdir")
    probe = path / f".writable-{os.getpid()}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(error.errno, f"workdir can't be written ({error.strerror}); pass another", str(path)) from error
    for name in (*folders, *files):
        check_place(path / name, "folder" if name in folders else "file")
    return path


def check_place(path: Path, kind: str) -> None:
    """Raises OSError where something else than a ``"folder"`` or ``"file"`` stands at ``path``."""
    if path.exists() and path.is_dir() != (kind == "folder"):
        raise OSError(f"{path}: a run writes a {kind} of that name, and something else stands there; {MOVE}")


def write_file(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all."""
    with replacing(path) as temporary, open(temporary, "wb") as stream:
        stream.write(content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary neighbour for the block to write; then it is renamed to ``path``, or deleted if the block fails.

    Of a link the file is replaced that it points to, and a file that stands there leaves its permissions to the new one.
    Several threads and processes may write one file: each writes it whole, and the last stays.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(_fresh_name("writing"))
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        yield temporary
        with open(temporary, "rb") as stream:
            os.fsync(stream.fileno())
        with contextlib.suppress(FileNotFoundError):
            shutil.copymode(target, temporary)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A place for the block to make a folder in; then it is renamed to ``path``, or deleted if the block fails."""
    parent = _fresh_sibling(path, "new")
    try:
        yield parent / path.name
        with _moved_aside(path):
            os.rename(parent / path.name, path)
    finally:
        shutil.rmtree(parent, ignore_errors=True)


@contextlib.contextmanager
def _moved_aside(target: Path) -> Iterator[None]:
    """What stands at ``target`` is moved away, comes back if the block fails, and is deleted if it succeeds."""
    if not target.exists():
        yield
        return
    aside = _fresh_sibling(target, "old")
    os.rename(target, aside / target.name)
    try:
        yield
    except BaseException:
        os.rename(aside / target.name, target)
        aside.rmdir()
        raise
    shutil.rmtree(aside)


def _fresh_sibling(target: Path, use: str) -> Path:
    sibling = target.with_name(_fresh_name(use))
    sibling.mkdir()
    return sibling


def _fresh_name(use: str) -> str:
    """Of nobody else: not of another thread, nor of a process of the same number on another host of a shared disk."""
    return f".{use}-{secrets.token_hex(8)}"


def check_free(path: Path, overwrite: bool) -> None:
    """Raises OSError where ``path`` can't be written: no folder to hold it, or something that is not to be replaced."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: no such directory; make it first")
    if path.is_dir():
        raise FileExistsError(f"{path} is a folder; pass the name of a file")
    if path.exists() and not path.is_file():
        raise FileExistsError(f"{path} is a device or pipe and would be replaced; pass the name of a file")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; pass overwrite=True, or another name")
