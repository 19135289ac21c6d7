"""An artifact of either form: one file, or a folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxopt_nn.coding.artifact import directory_bytes, load_artifact, read_files
from jaxopt_nn.coding.loader import read_file, read_tree
from jaxopt_nn.core.files import place_of
from jaxopt_nn.tensors.base import PyTree


def read_artifact(path: str | os.PathLike[str], **options: Any) -> tuple[PyTree, dict[str, Any]]:
    """The tree of an artifact and its manifest, with ``digest``, which tells one content from another.

    Args:
      path: of a file that ``save`` or ``save_file`` wrote, or of a folder of ``save_artifact``.
      options: as for ``loader.read_tree``; a folder takes none.

    Raises:
      FileNotFoundError: there is neither. ValueError: damage; options for a folder.
    """
    source = place_of(path, "path")
    if not source.is_dir():
        tree, manifest = read_tree(source, **options)
        return tree, {**manifest, "digest": manifest["sha"]}
    if not (source / "manifest.json").is_file():
        raise ValueError(f"{source}: is a folder without manifest.json, no artifact; pass the file, e.g. RUN/network.jn")
    asked = sorted(name for name, value in options.items() if value is not None and name != "root")
    if asked:
        raise ValueError(f"{source}: is a folder, and {', '.join(asked)} is for one file; leave it out, or save a file")
    tree, manifest = load_artifact(source)
    return tree, {**manifest, "digest": manifest["sha256"][:12]}


def artifact_files(path: str | os.PathLike[str], manifest: Mapping[str, Any]) -> dict[str, bytes]:
    """The further files of an artifact, exported programs say; ``manifest`` as ``read_artifact`` gave it."""
    return read_files(path, manifest) if Path(path).is_dir() else read_file(path)


def artifact_bytes(path: str | os.PathLike[str]) -> int:
    """What it takes on the disk."""
    return directory_bytes(path) if Path(path).is_dir() else Path(path).stat().st_size
