"""Where the original files of a public data set lie: the caller's folder, the system's, or a cache that is downloaded."""

from __future__ import annotations

import dataclasses
import hashlib
import http.client
import os
import pathlib
import shutil
import tempfile
import urllib.request
from collections.abc import Mapping

from absl import logging


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set's original files.

    Attributes:
      name: what people call it.
      folder: its sub-folder of the cache.
      mirrors: addresses that end in ``/``, tried in this order; a file's name is appended.
      sha256: checksum, in hex, of each file as the mirrors have it, by name.
      system: the folder into which a package of the operating system puts the files; "" for none.
      package: the command that installs that package; "" for none.
    """

    name: str
    folder: str
    mirrors: tuple[str, ...]
    sha256: Mapping[str, str]
    system: str = ""
    package: str = ""

    @property
    def cache(self) -> pathlib.Path:
        """Where downloads go: below ``XDG_CACHE_HOME``, or ``~/.cache``."""
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        return pathlib.Path(base).expanduser() / "jaxopt_nn" / self.folder

    @property
    def ways(self) -> str:
        """How the files are to be had, in a sentence that ends an error message."""
        first = f"`{self.package}`" if self.package else f"a copy of {self.cache} from a machine that has downloaded it"
        files = " ".join(self.sha256)
        return (
            f"Three ways to get {self.name}: {first}; its original files ({files}, packed or not) in a folder given as "
            f"--config.data.dir=FOLDER; or a run on a machine with a network, which downloads them from {self.mirrors[0]}"
        )

    def located(self, dir: str) -> pathlib.Path:
        """The folder to read: ``dir`` as given, else the system's where it is complete, else the cache, filled.

        Raises:
          FileNotFoundError: ``dir`` is no folder, or a file can't be downloaded.
          ValueError: the checksum of a download is another.
        """
        if dir:
            folder = pathlib.Path(dir).expanduser()
            if not folder.is_dir():
                raise FileNotFoundError(f"{folder}: no such folder. {self.ways}")
            return folder
        if self.system and all(present(pathlib.Path(self.system), name) for name in self.sha256):
            return pathlib.Path(self.system)
        for name in self.sha256:
            if not present(self.cache, name):
                self._download(name)
        return self.cache

    def _download(self, name: str) -> None:
        """Puts a file into the cache, whole and with its checksum or not at all."""
        target, failures, damaged = self.cache / name, [], False
        for mirror in self.mirrors:
            try:
                logging.warning("downloading %s%s to %s", mirror, name, target)
                found = fetch(mirror + name, target, self.sha256[name])
            except (OSError, http.client.HTTPException) as error:
                failures.append(f"{mirror}{name}: {error}")
                continue
            if found == self.sha256[name]:
                return
            damaged = True
            failures.append(f"{mirror}{name}: SHA-256 is {found}, must be {self.sha256[name]}")
        kind = ValueError if damaged else FileNotFoundError
        raise kind(f"{target}: not there, and not downloaded ({'; '.join(failures)}). {self.ways}")


def present(folder: pathlib.Path, name: str) -> pathlib.Path | None:
    """The file ``name`` in ``folder``, or the same without ``.gz``; None where neither is there."""
    paths = (folder / name, folder / name.removesuffix(".gz"))
    return next((path for path in paths if path.is_file()), None)


def fetch(url: str, target: pathlib.Path, sha256: str, timeout: float = 30.0) -> str:
    """Downloads ``url`` beside ``target`` and moves it there if its checksum is ``sha256``; returns the checksum found.

    Raises:
      OSError: no network, no such file, ``timeout`` seconds without an answer, a full disk, a folder that can't be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = tempfile.NamedTemporaryFile(dir=target.parent, prefix=target.name, suffix=".part", delete=False)
    try:
        with part, urllib.request.urlopen(url, timeout=timeout) as answer:
            shutil.copyfileobj(answer, part, 1 << 20)
        with open(part.name, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found == sha256:
            os.chmod(part.name, 0o644)
            os.replace(part.name, target)
        return found
    finally:
        pathlib.Path(part.name).unlink(missing_ok=True)
