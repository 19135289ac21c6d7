"""Bytes of text files, for a language model."""

from __future__ import annotations

import hashlib
import pathlib
import sysconfig

import numpy as np
from absl import logging

from jaxopt_nn.pipeline.classes import language_model
from jaxopt_nn.pipeline.task import Task

#: Modules of the standard library that Python 3.11 to 3.13 have as one file each: 1.2 MB, which differ between versions.
STANDARD_LIBRARY = (
    "argparse", "ast", "configparser", "dataclasses", "enum", "fractions", "functools", "heapq", "ipaddress", "os",
    "random", "shutil", "socket", "statistics", "subprocess", "tarfile", "tempfile", "threading", "traceback", "typing",
)  # fmt: skip


def text_bytes(dir: str = "", length: int = 128, vocabulary: int = 256, limit: int = 0) -> Task:
    """The corpus of ``dir`` cut into rows: the first 95 % of its bytes to train on, the last 5 % to test on.

    The checksum of the corpus goes to the log (level INFO): figures hold for one corpus.

    Args:
      dir: as for ``corpus``.
      length: bytes of a row; rows don't overlap, and what is left over at the end of a part is dropped.
      vocabulary: number of byte values that the model knows.
      limit: train on the first so many rows; 0 for all.

    Returns:
      Inputs int32 ``[n, length]``; labels int32 ``[n, length]``, the byte after each; metric bits/byte.

    Raises:
      FileNotFoundError: as ``corpus``.
      ValueError: ``length`` is below 1 or leaves no test row, ``limit`` is negative or more than there is, or the corpus
        holds a byte of at least ``vocabulary``.
    """
    content, checksum = corpus(dir)
    logging.info("corpus %s: %d bytes, SHA-256 %s", dir or "standard library", len(content), checksum[:16])
    codes = np.frombuffer(content, np.uint8)
    if len(codes) and codes.max() >= vocabulary:
        at = int(codes.argmax())
        raise ValueError(f"text_bytes(vocabulary={vocabulary}): byte {codes[at]} at {at}; pass vocabulary=256")
    border = len(codes) * 95 // 100
    if length < 1 or len(codes) - border <= length:
        raise ValueError(
            f"text_bytes(length={length}): the test part has {len(codes) - border} bytes; allowed are lengths from 1 that "
            "leave it a row and the byte after; pass a smaller length or more text"
        )
    train, test = (_rows(part, length) for part in (codes[:border], codes[border:]))
    if not 0 <= limit <= len(train[0]):
        raise ValueError(f"text_bytes(limit={limit}): there are {len(train[0])} training rows; 0 takes all")
    return language_model(train=(train[0][: limit or None], train[1][: limit or None]), test=test, per="byte")


def corpus(dir: str = "") -> tuple[bytes, str]:
    """All bytes and their SHA-256 in hex: of a file, of a folder's files, or, with "", of part of the standard library.

    Files stand in the order of their paths; those below a name that begins with a dot are left out.

    Raises:
      FileNotFoundError: ``dir`` is neither, or holds no file, or a source of the standard library isn't installed.
    """
    content = b"".join(path.read_bytes() for path in (_chosen(dir) if dir else _standard_library()))
    return content, hashlib.sha256(content).hexdigest()


def _chosen(dir: str) -> list[pathlib.Path]:
    root = pathlib.Path(dir).expanduser()
    if root.is_file():
        return [root]
    found = [path.relative_to(root) for path in root.rglob("*") if path.is_file()] if root.is_dir() else []
    visible = sorted(path.as_posix() for path in found if not any(part.startswith(".") for part in path.parts))
    if not visible:
        raise FileNotFoundError(
            f"{root}: no file, and no folder with files; pass text as --config.data.dir=FILE or FOLDER"
        )
    return [root / path for path in visible]


def _standard_library() -> list[pathlib.Path]:
    folder = pathlib.Path(sysconfig.get_path("stdlib"))
    paths = [folder / f"{name}.py" for name in STANDARD_LIBRARY]
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: this Python comes without that source of its standard library. Three ways to get text: the full "
                "standard library (`apt-get install libpython3-stdlib` on Debian), a Python from python.org or conda, or "
                "your own text as --config.data.dir=FILE or FOLDER"
            )
    return paths


def _rows(codes: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Non-overlapping rows and the bytes after; the last label lies within ``codes`` too."""
    rows = (len(codes) - 1) // length
    x, y = (codes[shift : shift + rows * length].reshape(rows, length).astype(np.int32) for shift in (0, 1))
    return x, y
