"""Trees as Orbax checkpoints, and back to the bit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from jaxopt_nn.coding import named
from jaxopt_nn.coding.artifact import Artifact, directory_bytes, quiet
from jaxopt_nn.core.files import place_of, replacing_folder
from jaxopt_nn.tensors.base import PyTree


def to_orbax(directory: str | os.PathLike[str], tree: PyTree, *, overwrite: bool = False) -> Artifact:
    """Writes a tree as an Orbax checkpoint, whole or not at all; ``from_orbax`` gives it back, equal to the bit.

    The checkpoint has two items: ``arrays``, a flat dict with names and dtypes as in ``to_safetensors``, which Orbax restores
    by itself anywhere, and ``structure``, JSON, what Orbax does not keep.

    Args:
      directory: made; its parent must exist.
      tree: dicts, lists, tuples and None around arrays, PRNG keys and compressed tensors: ``network.variables``, say.
      overwrite: replaces a checkpoint that stands there.

    Raises:
      FileExistsError: ``directory`` exists and ``overwrite`` is False.
      TypeError: a node or leaf of another kind; named by its path.
      ValueError: two arrays have one name.

    Example:
      >>> checkpoint = jn.to_orbax("net", {"w": jnp.ones(3)})
      >>> jn.from_orbax(checkpoint)["w"].shape
      (3,)
    """
    import orbax.checkpoint as ocp

    target = place_of(directory)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target.parent}: no such directory; make it first")
    if target.exists() and not (overwrite and (target / "_CHECKPOINT_METADATA").is_file()):
        raise FileExistsError(f"{target} exists; pass overwrite=True to replace a checkpoint, or another directory")
    header, arrays = named.encode(tree)
    items = {"structure": ocp.args.JsonSave({named.HEADER: header})}
    if arrays:
        items["arrays"] = ocp.args.StandardSave(arrays)
    with quiet(), ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        with replacing_folder(target) as temporary:
            checkpointer.save(temporary, args=ocp.args.Composite(**items))
    return Artifact(target, directory_bytes(target))


def from_orbax(directory: str | os.PathLike[str]) -> PyTree:
    """The tree of an Orbax checkpoint: what ``to_orbax`` wrote, or of another one what Orbax restores without a target.

    Raises:
      FileNotFoundError: no such directory.
      ValueError: no checkpoint, or a damaged one.

    Example:
      >>> import orbax.checkpoint as ocp, pathlib
      >>> folder = pathlib.Path("foreign").absolute()
      >>> with ocp.StandardCheckpointer() as checkpointer:
      ...     checkpointer.save(folder, {"params": {"w": jnp.ones(3)}})
      >>> jn.from_orbax(folder)["params"]["w"].shape
      (3,)
    """
    import orbax.checkpoint as ocp

    source = place_of(directory)
    if not source.is_dir():
        raise FileNotFoundError(f"{source}: no such directory; pass the folder that was written")
    try:
        with quiet():
            if not (source / "structure").is_dir():
                with ocp.StandardCheckpointer() as plain:
                    return plain.restore(source)
            restored = _items(source, ["structure", *(["arrays"] if (source / "arrays").is_dir() else [])])
    except Exception as error:  # Orbax and TensorStore have no common class of errors
        raise ValueError(f"{source}: no Orbax checkpoint, or a damaged one ({error})") from error
    header, arrays = restored["structure"], restored.get("arrays") or {}
    if not isinstance(header, dict) or named.HEADER not in header:
        raise ValueError(f"{source}: its item 'structure' is not of jaxopt_nn.to_orbax; restore it with Orbax")
    return named.decode(header[named.HEADER], {name: np.asarray(x) for name, x in arrays.items()}, str(source))


def _items(source: Path, names: list[str]) -> Any:
    import orbax.checkpoint as ocp

    restores = {"structure": ocp.args.JsonRestore(), "arrays": ocp.args.StandardRestore()}
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        return checkpointer.restore(source, args=ocp.args.Composite(**{name: restores[name] for name in names}))
