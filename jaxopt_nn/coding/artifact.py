"""The artifact: a directory with the arrays by Orbax and ``manifest.json``, the structure that Orbax does not keep.

The manifest holds the tree's structure (``coding.structure``), the recipe, and the size and checksum of every other file.
No pickle.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import logging
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxopt_nn.coding.structure import Buffers, describe, from_buffers, rebuild
from jaxopt_nn.core.files import place_of, replacing_folder
from jaxopt_nn.tensors.base import PyTree

SCHEMA = 2
#: Names inside the folder that are its own.
RESERVED = ("arrays", "manifest.json")
#: What to do with a damaged artifact.
AGAIN = "copy the artifact again, or write it anew"


@dataclasses.dataclass(frozen=True)
class Artifact:
    """Where files lie and the sum of their sizes; usable as a path.

    Attributes:
      dense: by path, why a leaf was written without its mask, or as floats, although it is compressed.
    """

    path: Path
    bytes: int
    dense: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __fspath__(self) -> str:
        return str(self.path)


def save_artifact(
    directory: str | os.PathLike[str],
    variables: PyTree,
    *,
    recipe: Any = None,
    extra: Any = None,
    files: Mapping[str, bytes] | None = None,
    overwrite: bool = False,
) -> Artifact:
    """Writes ``variables`` to ``directory``, whole or not at all.

    Args:
      directory: made; its parent must exist.
      variables: dicts (keys: strings or integers), lists, tuples and None around arrays, PRNG keys and compressed tensors.
      recipe, extra: anything that JSON can hold, kept in the manifest.
      files: further ones, by their names inside the directory, such as ``"programs/cpu.run"``; see ``read_files``.
      overwrite: replaces an artifact that stands there.

    Raises:
      FileExistsError: ``directory`` exists and ``overwrite`` is False, or it holds something that is no artifact.
      TypeError: a node or leaf of another kind; named by its path.
      ValueError: a name among ``files`` that leads out of the directory, or belongs to the artifact itself.
      OSError: the disk is full, or the place can't be written; nothing is left behind.

    Example:
      >>> artifact = jn.save_artifact("tree", {"kernel": jnp.ones((64, 64), jnp.bfloat16)}, extra={"trained": "by hand"})
      >>> artifact.path.name, artifact.bytes > 0
      ('tree', True)
      >>> jn.save_artifact("tree", {"kernel": jnp.ones(3)})
      Traceback (most recent call last):
          ...
      FileExistsError: .../tree exists; pass overwrite=True, or another directory
    """
    target = place_of(directory)
    _check_target(target, overwrite)
    check_names(files or {}, RESERVED)
    writer = Buffers()
    structure = describe(variables, "", writer)
    head = {"schema": SCHEMA, "versions": versions(), "recipe": recipe, "extra": extra, "structure": structure}
    _jsonable(head)
    with replacing_folder(target) as temporary:
        temporary.mkdir()
        _write_arrays(temporary / "arrays", writer.buffers())
        for name, data in (files or {}).items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            (temporary / name).write_bytes(data)
        manifest = {**head, "files": list_files(temporary)}
        manifest["sha256"] = _digest(manifest)
        _write_manifest(temporary / "manifest.json", manifest)
    return Artifact(target, directory_bytes(target))


def load_artifact(directory: str | os.PathLike[str]) -> tuple[PyTree, dict[str, Any]]:
    """The tree that was saved, equal to the bit, and the manifest.

    Raises:
      FileNotFoundError: no such directory.
      ValueError: the artifact is truncated, was edited, or is of an unknown schema or kind; says what is wrong.

    Example:
      >>> v = {"kernel": jnp.linspace(-1, 1, 64 * 64).reshape(64, 64)}
      >>> method = jn.quantize(3)
      >>> artifact = jn.save_artifact("codes", method.pack(v, method.init(v)), recipe="quantize(3)")
      >>> tree, manifest = jn.load_artifact("codes")
      >>> tree["kernel"].bits, manifest["recipe"]
      (3, 'quantize(3)')
    """
    source = place_of(directory)
    if not source.is_dir():
        raise FileNotFoundError(f"{source}: no such directory; pass the folder that was written, e.g. RUN/artifact")
    manifest = _read_manifest(source / "manifest.json")
    check_files(source, manifest["files"])
    buffers = _read_arrays(source / "arrays")
    try:
        return rebuild(manifest["structure"], "", from_buffers(buffers)), manifest
    except (KeyError, RecursionError, TypeError) as error:
        raise ValueError(f"{source}: the manifest's structure is malformed: {error!r}") from error


def read_files(directory: str | os.PathLike[str], manifest: Mapping[str, Any]) -> dict[str, bytes]:
    """The further files of an artifact, as ``save_artifact`` got them.

    Args:
      manifest: as ``load_artifact`` gave it, which has checked the files.
    """
    return {name: (Path(directory) / name).read_bytes() for name in manifest["files"] if not name.startswith("arrays/")}


def directory_bytes(directory: str | os.PathLike[str]) -> int:
    """The sum of the sizes of the files below ``directory``."""
    return sum(p.stat().st_size for p in Path(directory).rglob("*") if p.is_file())


def versions() -> dict[str, str]:
    """Versions of the libraries that write and read an artifact; a library that is not installed is left out."""
    installed = {}
    for name in ("jaxopt_nn", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[name] = importlib.metadata.version(name)
    return installed


def check_names(files: Iterable[str], taken: Sequence[str] = ()) -> None:
    """Raises ValueError for a name that leads out of the artifact, or into what is ``taken`` by its own files."""
    for name in files:
        parts = name.split("/")
        if not set(parts).isdisjoint({"", ".", ".."}) or "\\" in name or parts[0] in taken:
            own = "".join(f", not in {part!r}" for part in taken)
            allowed = f"allowed are relative ones with '/'{own}"
            raise ValueError(f"files: {name!r} is no name inside the artifact that is free; {allowed}")


def _check_target(target: Path, overwrite: bool) -> None:
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target.parent}: no such directory; make it first")
    if not target.exists():
        return
    if not overwrite:
        raise FileExistsError(f"{target} exists; pass overwrite=True, or another directory")
    if not (target / "manifest.json").is_file():
        raise FileExistsError(
            f"{target} exists and is no artifact (no manifest.json in it), so it is not overwritten; move it away, or pass "
            "another folder"
        )


def _write_arrays(directory: Path, buffers: dict[str, np.ndarray]) -> None:
    import orbax.checkpoint as ocp

    if not buffers:
        return
    try:
        # plain files: Orbax's own database holds random names, compressed, so that equal arrays differ by a few bytes
        with quiet(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as checkpointer:
            checkpointer.save(directory, args=ocp.args.PyTreeSave(buffers))
        # holds the name of this process's temporary directory; nobody reads it where renaming is atomic
        (directory / "commit_success.txt").unlink(missing_ok=True)
    except OSError:
        raise
    except Exception as error:  # TensorStore reports a full disk as a ValueError
        raise OSError(f"{directory.parents[2]}: the arrays could not be written: {error}") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without Orbax's warning that there is no database to merge."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _read_arrays(directory: Path) -> dict[str, np.ndarray]:
    import orbax.checkpoint as ocp

    if not directory.is_dir():
        return {}
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            return {name: np.asarray(buffer) for name, buffer in checkpointer.restore(directory).items()}
    except Exception as error:
        raise ValueError(f"{directory}: Orbax can't read the arrays: {error}") from error


def list_files(directory: Path) -> dict[str, list[Any]]:
    """``{relative name: [bytes, crc32 in hex]}`` of the files below ``directory``."""
    files = sorted(p for p in directory.rglob("*") if p.is_file())
    return {p.relative_to(directory).as_posix(): [p.stat().st_size, _crc(p.read_bytes())] for p in files}


def _crc(data: bytes) -> str:
    """Eight digits, so that a manifest's size does not depend on what it says."""
    return f"{zlib.crc32(data):08x}"


def check_files(directory: Path, expected: dict[str, list[Any]]) -> None:
    """Raises ValueError where a file of the list is missing, or has another size or checksum."""
    for name, (size, crc) in expected.items():
        file = directory / name
        if not file.is_file():
            raise ValueError(f"{file}: missing; the manifest lists it with {size} bytes")
        data = file.read_bytes()
        if len(data) != size:
            raise ValueError(f"{file}: {len(data)} bytes, the manifest says {size}; {AGAIN}")
        if _crc(data) != crc:
            raise ValueError(f"{file}: its content is not what the manifest's checksum says; {AGAIN}")


def _canonical(manifest: dict[str, Any]) -> str:
    return json.dumps(manifest, separators=(",", ":"), allow_nan=False)


def _jsonable(manifest: dict[str, Any]) -> None:
    try:
        _canonical(manifest)
    except (TypeError, ValueError) as error:
        raise TypeError(f"recipe and extra are kept as JSON: {error}") from error


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(_canonical({k: v for k, v in manifest.items() if k != "sha256"}).encode()).hexdigest()


def _write_manifest(file: Path, manifest: dict[str, Any]) -> None:
    with open(file, "w") as stream:
        stream.write(_canonical(manifest) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def _read_manifest(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ValueError(f"{file}: missing; pass the folder of an artifact, e.g. RUN/artifact, and if it is one, {AGAIN}")
    try:
        manifest = json.loads(file.read_bytes())
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{file}: no valid JSON ({error}); {AGAIN}") from error
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        schema = manifest.get("schema") if isinstance(manifest, dict) else type(manifest).__name__
        raise ValueError(f"{file}: schema {schema!r}; this version reads {SCHEMA}: write the artifact anew, or use its version")
    if manifest.get("sha256") != _digest(manifest):
        raise ValueError(f"{file}: its content is not what its own checksum says; the file was edited")
    return manifest
