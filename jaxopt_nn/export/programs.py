"""What a network is exported as: two programs for each platform, with its arrays by name as arguments.

One prepares (``{path: arrays of a stored tensor} -> {path: arrays of the prepared one}``), and one runs
(``({path: arrays of a leaf}, {site: arrays of a rule's state}, inputs) -> outputs``). So no stored form is unpacked where the
network runs, and arrays are plain: what a compressed tensor or a state is made of lies inside the programs.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.export

PyTree = Any

#: By platform, what ``jax.export`` calls it.
PLATFORMS = {"cpu": ("cpu",), "gpu": ("cuda", "rocm"), "tpu": ("tpu",)}

#: Of an artifact's files, those that hold programs.
FOLDER = "programs"


class Programs(NamedTuple):
    """The two programs of a platform, as ``serialized``."""

    prepare: bytes
    run: bytes


def serialized(program: jax.export.Exported) -> bytes:
    """The program in bytes: as JAX serializes it, in a zlib stream, whose checksum tells damage.

    Raises:
      ValueError: its arguments or results hold a container that can't be written.
    """
    try:
        return zlib.compress(bytes(program.serialize()), 9)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the inputs or outputs of the network hold a container that an exported program can't: {error} Wrap apply so that "
            "it takes and gives dicts with strings as keys, lists and tuples; or register the container, then also where the "
            "program is loaded"
        ) from error


def deserialized(data: bytes, name: str = "program") -> jax.export.Exported:
    """The program that ``serialized`` wrote.

    Raises:
      ValueError: the bytes are damaged, or of a JAX that this one can't read; calls them ``name``.
    """
    try:
        plain = zlib.decompress(data)
    except zlib.error as error:
        raise ValueError(f"{name}: {len(data)} bytes that are no exported program, or a damaged one ({error})") from error
    try:
        program = jax.export.deserialize(bytearray(plain))
        program.mlir_module()  # read here, since JAX would read it at the first call
        return program
    except Exception as error:
        raise ValueError(
            f"{name}: JAX {jax.__version__} can't read it ({type(error).__name__}: {error}); a program is read by JAX of its "
            "own version and, for six months at least, by newer ones"
        ) from error


def as_files(programs: Mapping[str, Programs]) -> dict[str, bytes]:
    """The programs by the names of files: ``programs/cpu.run``."""
    each = [(platform, own._asdict()) for platform, own in programs.items()]
    return {f"{FOLDER}/{platform}.{name}": data for platform, own in each for name, data in own.items()}


def of_files(files: Mapping[str, bytes]) -> dict[str, Programs]:
    """The programs among files that ``as_files`` named; others are passed over."""
    found: dict[str, dict[str, bytes]] = {}
    for file, data in files.items():
        folder, _, rest = file.partition("/")
        platform, _, name = rest.partition(".")
        if folder == FOLDER:
            found.setdefault(platform, {})[name] = data
    return {platform: Programs(**own) for platform, own in found.items()}


def opened(parts: Mapping[str, PyTree]) -> dict[str, list[Any]]:
    """The arrays that each part is made of."""
    return {name: jax.tree.leaves(part) for name, part in parts.items()}


def closed(like: Mapping[str, PyTree], arrays: Mapping[str, list[Any]]) -> dict[str, PyTree]:
    """The parts again, in the order of ``like``, whose structure they have."""
    return {name: jax.tree.unflatten(jax.tree.structure(part), arrays[name]) for name, part in like.items()}


def abstract(tree: PyTree) -> PyTree:
    """A tree's arrays, given or abstract, as abstract ones; 64 bits become what JAX takes."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((kind := jax.typeof(x)).shape, kind.dtype), tree)


def shown(x: jax.ShapeDtypeStruct) -> str:
    """``float32[b, 784]``."""
    return f"{x.dtype}[{', '.join(map(str, x.shape))}]"
