"""Trees as safetensors files: arrays by name, readable by every framework, and back to the bit."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from jaxopt_nn.coding import named
from jaxopt_nn.coding.artifact import Artifact
from jaxopt_nn.coding.linear import restored
from jaxopt_nn.core.files import check_free, replacing
from jaxopt_nn.tensors.base import PyTree

INSTALL = "safetensors is not installed: pip install 'jaxopt_nn[export]'"


def to_safetensors(path: str | os.PathLike[str], tree: PyTree, *, overwrite: bool = False) -> Artifact:
    """Writes a tree to a safetensors file, whole or not at all; ``from_safetensors`` gives it back, equal to the bit.

    Codes lie packed, as they are stored. An array's name is its path, that of a compressed tensor's part
    ``params/hidden/kernel/codes``; dtypes that not every reader knows (4 bits and fewer, 8-bit floats, complex numbers, PRNG
    keys) are kept as uint8 bytes. What the parts stand for lies in the file's metadata, as JSON under ``jaxopt_nn``.

    Args:
      path: the file; its folder must exist.
      tree: dicts, lists, tuples and None around arrays, PRNG keys and compressed tensors: ``network.variables``, say.
      overwrite: replaces a file that stands there.

    Raises:
      FileExistsError: ``path`` exists and ``overwrite`` is False.
      ImportError: safetensors is not installed.
      TypeError: a node or leaf of another kind; named by its path.
      ValueError: two arrays have one name.

    Example:
      >>> tree = {"w": jn.QTensor.quantize(jnp.ones((8, 4)), scale=0.25 * jnp.ones((1, 4)), bits=4), "b": jnp.zeros(4)}
      >>> file = jn.to_safetensors("net.safetensors", tree)
      >>> bool((jn.from_safetensors(file)["w"].codes == tree["w"].codes).all())
      True
    """
    target = Path(path).absolute()
    check_free(target, overwrite)
    header, arrays = named.encode(tree)
    with replacing(target) as temporary:
        write(temporary, arrays, {named.HEADER: header})
    return Artifact(target, target.stat().st_size)


def from_safetensors(path: str | os.PathLike[str], *, separator: str | None = None) -> PyTree:
    """The tree of a safetensors file: what ``to_safetensors`` wrote, or of a foreign file a nested dict of its arrays.

    A file of ``to_compressed_tensors`` gives the tree too, as ``from_compressed_tensors`` does.

    Args:
      path: the file.
      separator: what the names of a foreign file are split at; None: ``"/"`` if a name holds one, else ``"."``.

    Raises:
      FileNotFoundError: no such file.
      ImportError: safetensors is not installed.
      ValueError: no safetensors file, or a damaged one; a dtype that NumPy does not have.

    Example:
      >>> import safetensors.numpy
      >>> safetensors.numpy.save_file({"layers.0.weight": np.ones((2, 3))}, "foreign.safetensors")
      >>> jn.from_safetensors("foreign.safetensors")["layers"]["0"]["weight"].shape
      (2, 3)
    """
    arrays, metadata = read(Path(path))
    if named.HEADER in metadata:
        return restored(named.decode(metadata[named.HEADER], arrays, str(path)))
    return named.nested(arrays, str(path), separator)


def write(path: Path, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Writes arrays of ``PLAIN`` dtypes straight from their memory."""
    try:
        from safetensors.numpy import save_file
    except ImportError as error:
        raise ImportError(INSTALL) from error
    save_file(arrays, path, metadata=metadata)


def read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays of a file by name, and its metadata; errors as ``from_safetensors``."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ImportError(INSTALL) from error
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            return {name: _array(file, name, path) for name in file.keys()}, metadata
    except SafetensorError as error:
        raise ValueError(f"{path}: no safetensors file, or a damaged one ({error})") from error


def _array(file: object, name: str, path: Path) -> np.ndarray:
    try:
        return file.get_tensor(name)  # type: ignore[attr-defined]
    except (AttributeError, KeyError, TypeError) as error:
        kind = file.get_slice(name).get_dtype()  # type: ignore[attr-defined]
        raise ValueError(
            f"{path}: {name} has dtype {kind}, which NumPy does not have; convert it where it was written"
        ) from error
