"""Trees as files of ``flax.serialization``, and back to the bit."""

from __future__ import annotations

import os
from pathlib import Path

from jaxopt_nn.coding import named
from jaxopt_nn.coding.artifact import Artifact
from jaxopt_nn.core.files import check_free, write_file
from jaxopt_nn.tensors.base import PyTree

ARRAYS = "arrays"


def to_msgpack(path: str | os.PathLike[str], tree: PyTree, *, overwrite: bool = False) -> Artifact:
    """Writes a tree to a msgpack file, whole or not at all; ``from_msgpack`` gives it back, equal to the bit.

    ``flax.serialization.msgpack_restore`` reads it anywhere, as ``{"jaxopt_nn": JSON, "arrays": {name: array}}``, with names
    and dtypes as in ``to_safetensors``. The file is put together in memory.

    Args:
      path: the file; its folder must exist.
      tree: dicts, lists, tuples and None around arrays, PRNG keys and compressed tensors: ``network.variables``, say.
      overwrite: replaces a file that stands there.

    Raises:
      FileExistsError: ``path`` exists and ``overwrite`` is False.
      TypeError: a node or leaf of another kind; named by its path.
      ValueError: two arrays have one name.

    Example:
      >>> file = jn.to_msgpack("net.msgpack", {"w": jnp.ones(3)})
      >>> jn.from_msgpack(file)["w"].shape
      (3,)
    """
    from flax import serialization

    target = Path(path).absolute()
    check_free(target, overwrite)
    header, arrays = named.encode(tree)
    write_file(target, serialization.msgpack_serialize({named.HEADER: header, ARRAYS: arrays}))
    return Artifact(target, target.stat().st_size)


def from_msgpack(path: str | os.PathLike[str]) -> PyTree:
    """The tree of a msgpack file: what ``to_msgpack`` wrote, or the state dict of another file of ``flax.serialization``.

    Raises:
      FileNotFoundError: no such file.
      ValueError: no such file of Flax, or a damaged one.

    Example:
      >>> import flax.serialization, pathlib
      >>> file = pathlib.Path("foreign.msgpack")
      >>> _ = file.write_bytes(flax.serialization.to_bytes({"params": {"w": jnp.ones(3)}}))
      >>> jn.from_msgpack(file)["params"]["w"].shape
      (3,)
    """
    from flax import serialization

    source = Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"{source}: no such file")
    try:
        restored = serialization.msgpack_restore(source.read_bytes())
    except Exception as error:  # msgpack has no common class of errors
        raise ValueError(f"{source}: no msgpack file of Flax, or a damaged one ({error})") from error
    if isinstance(restored, dict) and set(restored) == {named.HEADER, ARRAYS}:
        return named.decode(restored[named.HEADER], restored[ARRAYS], str(source))
    return restored
