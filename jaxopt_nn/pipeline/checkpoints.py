"""Positions of a training run on disk, by Orbax: a run that is killed at any moment goes on to the same numbers."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_nn.coding.artifact import check_files, list_files
from jaxopt_nn.core.files import place_of, write_file
from jaxopt_nn.core.passes import Plan
from jaxopt_nn.core.paths import path_of

try:
    import fcntl
except ImportError:  # no POSIX system: two runs at once are not noticed there
    fcntl = None  # type: ignore[assignment]

PyTree = Any
#: Positions kept of each training: where the newest is damaged, the one before it serves.
KEPT = 2
#: Of what lies on disk; 1 held no paths of leaves.
VERSION = 2
#: The name of the file with the plan of a stage.
PLAN = "plan.json"


def nothing(said: Any) -> None:
    """A listener that does not listen."""


class Checkpoints:
    """The positions of one training (one stage of one network).

    Args:
      directory: made if missing.
      seconds: least time between two positions; the last position is always kept.
      say: gets a line where a position is damaged.

    Example:
      >>> places = jn.Checkpoints("positions", seconds=0.0)
      >>> places.save(100, {"kernel": jnp.ones((2, 2))}, {"loss": 0.5})
      >>> step, tree, meta = places.restore({"kernel": jax.ShapeDtypeStruct((2, 2), "float32")})
      >>> step, tree["kernel"].shape, meta
      (100, (2, 2), {'loss': 0.5})
    """

    def __init__(self, directory: str | os.PathLike[str], seconds: float = 10.0, say: Callable[[str], None] = nothing):
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds >= 0:
            raise ValueError(f"checkpoint_seconds={seconds!r}: allowed are 0 (after every stretch of steps) and more")
        self._directory, self._seconds, self._say = place_of(directory), seconds, say
        self._last = time.monotonic()

    def _manager(self) -> Any:
        import orbax.checkpoint as ocp

        options = ocp.CheckpointManagerOptions(max_to_keep=KEPT, enable_async_checkpointing=False, create=True)
        return ocp.CheckpointManager(self._directory.absolute(), options=options)

    def _manifest(self, step: int) -> Path:
        """Leaves of a position, and its files' sizes and checksums; where it is missing, the position was not finished."""
        return self._directory / f"files_{step}.json"

    def plan(self, make: Callable[[], Plan], inputs: tuple[PyTree, ...]) -> Plan:
        """The plan of this stage that was written here; else what ``make`` gives, written before it is carried out.

        A run that goes on does what it did before, also where another plan would come out now: of measured times, or on
        another processor, whose sums differ in the last bits.

        Args:
          inputs: those of the plan, which may be of nodes that JSON does not know, and are not written.

        Raises:
          ValueError: what lies there is no plan.
          OSError: the disk is full, or the place can't be written.
        """
        file = self._directory / PLAN
        if file.exists():
            return dataclasses.replace(Plan.from_json(file.read_text()), inputs=inputs)
        plan = make()
        self._directory.mkdir(parents=True, exist_ok=True)
        write_file(file, dataclasses.replace(plan, inputs=()).to_json().encode())
        return plan

    def due(self) -> bool:
        return time.monotonic() - self._last >= self._seconds

    def save(self, step: int, tree: PyTree, meta: Mapping[str, Any]) -> None:
        """Writes the position after ``step`` steps, whole or not at all.

        Raises:
          OSError: the disk is full, or the place can't be written.
        """
        import orbax.checkpoint as ocp

        arrays = ocp.args.StandardSave(_numbered(tree))
        try:
            with self._manager() as manager:
                manager.save(step, args=ocp.args.Composite(state=arrays, meta=ocp.args.JsonSave(dict(meta))))
                steps = manager.all_steps()
            # read back before Orbax reads: a damaged file leaves its reader with callbacks that nobody waits for
            files = list_files(self._directory / str(step))
            manifest = {"version": VERSION, "leaves": _described(tree), "files": files}
            write_file(self._manifest(step), json.dumps(manifest).encode())
            for old in set(self._directory.glob("files_*.json")) - {self._manifest(s) for s in steps}:
                old.unlink()
        except ValueError as error:  # TensorStore reports a full disk so
            raise OSError(f"{self._directory}: the position at step {step} could not be written: {error}") from error
        self._last = time.monotonic()

    def restore(self, like: PyTree) -> tuple[int, PyTree, dict[str, Any]] | None:
        """``(step, tree, meta)`` of the newest position that is whole, or None.

        A position that was not finished, or whose files are not those that were written, is passed over and deleted:
        Orbax saves nothing at or before a step that it holds. One that merely can't be read stays.

        Args:
          like: a tree of the same structure, with arrays or ``jax.ShapeDtypeStruct``.

        Raises:
          ValueError: the position belongs to another tree (paths, shapes or dtypes), or another version wrote it.
          OSError: the position can't be read, for a reason of the machine: too many open files, permissions, the network.
        """
        if not self._directory.is_dir():
            return None
        with self._manager() as manager:
            for step in sorted(manager.all_steps(), reverse=True):
                place = self._directory / str(step)
                try:
                    self._check(step, like)
                    return step, *_read(manager, step, like)
                except _Mismatch as error:
                    raise ValueError(
                        f"{place}: {error}; it belongs to another config or version: "
                        "pass another workdir, or delete the folder checkpoints/"
                    ) from error
                except _Damaged as error:
                    self._say(f"{place}: damaged, passed over ({error})")
                    manager.delete(step)
                except Exception as error:  # of any type: TensorStore reports what the machine refuses by ValueError
                    reason = next(iter(str(error).strip().splitlines()), "")[:200] or type(error).__name__
                    raise OSError(
                        f"{place}: can't be read ({reason}); it was not found damaged and stays there: mend the cause "
                        "(open files, memory, permissions, network) and give the same command again"
                    ) from error
        return None

    def _check(self, step: int, like: PyTree) -> None:
        """Raises _Mismatch where a position is of another tree or version, _Damaged where it is not what was written."""
        try:
            manifest = json.loads(self._manifest(step).read_bytes())
        except (FileNotFoundError, ValueError) as error:
            raise _Damaged(f"not finished: {error}") from error
        if (version := manifest.get("version", 1)) != VERSION:
            raise _Mismatch(f"written in version {version} of the format, this package reads version {VERSION}")
        for had, needed in itertools.zip_longest(manifest["leaves"], _described(like), fillvalue="nothing"):
            if had != needed:
                raise _Mismatch(f"holds {had}, this run needs {needed}")
        try:
            check_files(self._directory / str(step), manifest["files"])
        except ValueError as error:
            raise _Damaged(str(error)) from error


class _Mismatch(Exception):
    """A position of another tree or version."""


class _Damaged(Exception):
    """A position that is not what was written, or not all of it."""


def _read(manager: Any, step: int, like: PyTree) -> tuple[PyTree, dict[str, Any]]:
    import orbax.checkpoint as ocp

    arguments = ocp.args.Composite(state=ocp.args.StandardRestore(), meta=ocp.args.JsonRestore())
    found = manager.restore(step, args=arguments)
    return _restored(found.state, like), dict(found.meta)


def _described(tree: PyTree) -> list[str]:
    """``"params/kernel float32[3, 4]"`` of each leaf, in the tree's order."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [f"{path_of(keys)} {x.dtype}{list(x.shape)}" for keys, x in flat]


def _numbered(tree: PyTree) -> dict[str, Any]:
    """The leaves by number: a state holds static nodes, which its own ``init`` gives back; PRNG keys as their words."""
    leaves = jax.tree.leaves(tree)
    keys = [jnp.issubdtype(x.dtype, jax.dtypes.prng_key) for x in leaves]
    return {f"{i:04d}": jax.random.key_data(x) if key else x for i, (x, key) in enumerate(zip(leaves, keys))}


def _restored(arrays: Mapping[str, Any], like: PyTree) -> PyTree:
    leaves, tree = jax.tree.flatten(like)

    def leaf(i: int, x: Any) -> Any:
        array = jnp.asarray(np.asarray(arrays[f"{i:04d}"]))
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(array, impl=jax.random.key_impl(x))
        return array

    return jax.tree.unflatten(tree, [leaf(i, x) for i, x in enumerate(leaves)])


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keeps other runs out of ``directory``, an existing one; the lock ends with the process, however that ends.

    Raises:
      OSError: another run is in it; its process is named.
    """
    if fcntl is None:
        yield
        return
    with open(directory / ".lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise OSError(
                f"{directory}: another run (pid {file.read().strip() or 'unknown'}) is using this workdir; wait for it, or "
                "pass another --workdir"
            ) from None
        except OSError:
            pass  # a file system without locks
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def claim(directory: Path, config: Mapping[str, Any], before: Collection[str] = (), what: str = "config") -> None:
    """Says that ``directory`` holds the positions of a run of ``config``.

    Args:
      before: names of trainings that come before ``config["stages"]``: where only they have positions, the stages may change.
      what: messages call ``config`` so.

    Raises:
      ValueError: it holds positions of another config; the fields that differ are named.
    """
    file = directory / "config.json"
    text = json.dumps(config, sort_keys=True, default=str)
    if file.exists():
        try:
            known = json.loads(file.read_bytes())
        except ValueError:
            known = None  # killed while it was written: nothing was trained yet
        differing = [] if known is None else _differing(known, json.loads(text), what)
        trained = {p.parent.name for p in directory.rglob("*") if p.name.isdigit()}
        if trained <= {*before}:
            differing = [name for name in differing if not name.startswith(f"{what}.stages")]
        if differing and trained:
            raise ValueError(
                f"{directory}: holds the checkpoints of another {what}; different: {', '.join(differing)}; pass "
                "another workdir, or delete that folder to start anew"
            )
        if known != json.loads(text):
            for plan in directory.rglob(PLAN):  # of another config
                plan.unlink()
    directory.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def _differing(old: Any, new: Any, at: str) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            name
            for key in sorted({*old, *new})
            for name in (
                _differing(old[key], new[key], f"{at}.{key}") if key in old and key in new else [f"{at}.{key}"]
            )
        ]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [name for i, pair in enumerate(zip(old, new)) for name in _differing(*pair, f"{at}[{i}]")]
    return [] if old == new else [f"{at} ({old!r} there, {new!r} here)"]
