"""A tree from one file: everything that the file says is checked before memory is taken for it."""

from __future__ import annotations

import collections
import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from jaxopt_nn.coding import header, nodes, streams
from jaxopt_nn.coding.places import Place, abstract, check_shardings, named_shardings
from jaxopt_nn.coding.targets import fitted, shardings_of
from jaxopt_nn.coding.writer import THREADS
from jaxopt_nn.core.arguments import in_words
from jaxopt_nn.core.files import place_of
from jaxopt_nn.core.paths import matches, require_match
from jaxopt_nn.tensors.base import PyTree

#: What a file may make of memory unless it is told otherwise: so much, or so many times its own size.
LIMIT, TIMES = 2**30, 64


class Sizes(NamedTuple):
    """Where the bytes of a file are, with their lengths and checksums; together they are the file.

    Attributes:
      leaves: by path. A stream that several leaves share is split by their entries; what equals an earlier array takes none.
      header: magic and version included. files: the further ones, by name.
    """

    leaves: dict[str, int]
    header: int
    files: dict[str, int]


class Contents(NamedTuple):
    """What a file says of itself, before its streams are read.

    Attributes:
      manifest: ``format``, ``versions``, ``recipe``, ``extra``, ``files`` (names and bytes), ``header_bytes``; once the streams
        were passed, ``sha``, which tells one content from another.
      structure: as ``structure.rebuild`` takes it. entries: the arrays in reading order. chunk: symbols of a chunk.
    """

    manifest: dict[str, Any]
    structure: dict[str, Any]
    entries: list[nodes.Entry]
    chunk: int


def load_file(
    path: str | os.PathLike[str],
    *,
    target: PyTree = None,
    sharding: Any = None,
    only: str | None = None,
    max_bytes: int | None = None,
) -> tuple[PyTree, dict[str, Any]]:
    """The tree of a file that ``save_file`` wrote, equal to the bit, and what its header says beside.

    Streams are decoded in threads, straight into the arrays that are returned; beside these it takes a few chunks of memory.

    Args:
      target: a tree with the same paths, shapes and dtypes, of arrays or ``jax.ShapeDtypeStruct``, else it is an error; the
        result has its containers (a ``FrozenDict``, say), and its leaves' shardings where ``sharding`` is None. A dense leaf
        stands for a compressed one too.
      sharding: where the arrays are to lie: a ``jax.sharding.Sharding`` for all; or a tree of them, by leaf or by array,
        such as ``jn.shardings(...).named``; or a function ``(path, abstract leaf) -> one, a tree for the leaf, or None``. A
        ``NamedSharding`` for a compressed leaf is one of its weight, and its arrays are split alike; they lie whole on each
        device where that can't be. Each process decodes the file and keeps what its devices hold. None: the default device.
      only: a pattern over paths; leaves that it doesn't match are not read: abstract ones stand in their places.
      max_bytes: most memory that the arrays may take; 1 GiB, or 64 times the file's size if that is more. A file can say that
        a few bytes are a large array: raise it for files that you trust.

    Returns:
      The tree; ``{"format", "versions", "recipe", "extra", "files", "sha"}``.

    Raises:
      FileNotFoundError: no such file.
      TypeError: an argument of another kind.
      ValueError: damage, no file of this format, more than ``max_bytes``, or it doesn't fit ``target``, ``sharding``, ``only``.

    Example:
      >>> v = {"a": {"kernel": jnp.linspace(-1, 1, 4096).reshape(64, 64)}, "b": jnp.zeros(3)}
      >>> method = jn.where("**/kernel", jn.quantize(3))
      >>> artifact = jn.save_file("codes.jn", method.pack(v, method.init(v)), recipe="quantize(3)")
      >>> tree, manifest = jn.load_file("codes.jn")
      >>> tree["a"]["kernel"].bits, manifest["recipe"]
      (3, 'quantize(3)')
      >>> part, _ = jn.load_file("codes.jn", only="b")
      >>> part["b"], part["a"]["kernel"].codes
      (Array([0., 0., 0.], dtype=float32), ShapeDtypeStruct(shape=(24, 64), dtype=uint8))
    """
    return read_tree(path, (), target, sharding, only, max_bytes)


def read_tree(
    path: str | os.PathLike[str],
    root: Sequence[str] = (),
    target: PyTree = None,
    sharding: Any = None,
    only: str | None = None,
    max_bytes: int | None = None,
) -> tuple[PyTree, dict[str, Any]]:
    """``load_file``, its arguments being about the part of the tree under the keys ``root``; what is beside is read whole."""
    if only is not None and not isinstance(only, str):
        raise TypeError(f"only is {in_words(only)}; pass a pattern over paths: only='**/kernel'")
    with opened(path) as file:
        contents, inside = file.contents, "".join(f"{key}/" for key in root)
        whole = nodes.put_together(contents.structure, lambda i: _abstract(contents.entries[i]))
        like = _under(whole, root)
        wanted = _wanted(contents.entries, only, inside)
        file.check_memory(max_bytes, wanted)
        if target is not None:
            fitted(like, target)
            sharding = shardings_of(target) if sharding is None else sharding
        own = named_shardings(sharding, like)
        placed = lambda path, leaf: own(path[len(inside) :], leaf[len(inside) :]) if path.startswith(inside) else None
        check_shardings({entry.path: (entry.shape, placed(entry.path, entry.leaf)) for entry in contents.entries})
        tree = nodes.put_together(contents.structure, file.arrays(wanted, placed))
    if target is not None and not root:
        return fitted(tree, target), contents.manifest
    if target is not None:
        _under(tree, root[:-1])[root[-1]] = fitted(_under(tree, root), target)
    return tree, contents.manifest


def _under(tree: PyTree, keys: Sequence[str]) -> PyTree:
    """The part of a tree under some keys.

    Raises:
      ValueError: it is not there.
    """
    for key in keys:
        if not isinstance(tree, dict) or key not in tree:
            raise ValueError("holds a tree of arrays and no network; read it with jaxopt_nn.load_file")
        tree = tree[key]
    return tree


def _abstract(entry: nodes.Entry) -> Any:
    return abstract(entry.shape, entry.dtype)


def _wanted(entries: Sequence[nodes.Entry], only: str | None, inside: str) -> set[int]:
    """The numbers of the arrays to read; ``only`` is about leaves whose paths begin with ``inside``."""
    if only is None:
        return set(range(len(entries)))
    leaves = {i: entry.leaf[len(inside) :] for i, entry in enumerate(entries) if entry.leaf.startswith(inside)}
    require_match(only, dict.fromkeys(leaves.values()))
    return {i for i in range(len(entries)) if i not in leaves or matches(only, leaves[i])}


def read_sizes(path: str | os.PathLike[str], max_bytes: int | None = None) -> tuple[PyTree, dict[str, Any], Sizes]:
    """The tree and the manifest of one file, and where its bytes are; ``max_bytes`` as for ``load_file``."""
    with opened(path) as file:
        entries, manifest = file.contents.entries, file.contents.manifest
        file.check_memory(max_bytes, set(range(len(entries))))
        given = file.arrays(set(range(len(entries))), lambda path, leaf: None)
        tree = nodes.put_together(file.contents.structure, given)
        sizes = dict.fromkeys((entry.leaf for entry in entries), 0)
        for stream, size in zip(streams.streams(entries, file.contents.chunk), file.sizes):
            left, rest = size, sum(math.prod(entries[i].shape) for i in stream.entries)
            for i in stream.entries:
                n = math.prod(entries[i].shape)
                own = left * n // rest
                sizes[entries[i].leaf] += own
                left, rest = left - own, rest - n
    files = {name: len(header.varint(length)) + length + 4 for name, length in manifest["files"].items()}
    return tree, manifest, Sizes(sizes, manifest["header_bytes"], files)


def read_file(path: str | os.PathLike[str], names: Callable[[str], bool] = lambda name: True) -> dict[str, bytes]:
    """The further files of one file, as ``save_file`` got them, of the names that are asked for."""
    with opened(path) as file:
        return file.files(names)


class opened:
    """A file to be read, in a ``with`` block; errors say its name.

    Raises:
      FileNotFoundError: no such file. ValueError: damage.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = place_of(path, "path")
        self.name = str(self.path)
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.name}: no such file; pass the name of what jaxopt_nn.save wrote")

    def __enter__(self) -> OpenFile:
        self._stream = open(self.path, "rb")
        try:
            return OpenFile(self._stream, self.path)
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        self._stream.close()
        if isinstance(error, ValueError) and not str(error).startswith(self.name):
            raise ValueError(f"{self.name}: {error}") from error


class OpenFile:
    """A file whose header was read."""

    def __init__(self, stream: BinaryIO, path: Path) -> None:
        self.name, self.size, self._stream = str(path), os.fstat(stream.fileno()).st_size, stream
        head, checksum = header.read(stream, self.size)
        self._frames = header.Frames(stream, checksum, self.size)
        self._begin = stream.tell()
        self.contents = _contents(head, self._begin)
        #: By the number of a stream, its bytes in the file.
        self.sizes: list[int] = []

    def check_memory(self, max_bytes: int | None, wanted: set[int]) -> None:
        """Raises ValueError where the arrays would take more than ``max_bytes``, TypeError where that is no number."""
        if max_bytes is not None and (isinstance(max_bytes, bool) or not isinstance(max_bytes, int)):
            raise TypeError(f"max_bytes is {in_words(max_bytes)}; pass a number of bytes, such as 2**32")
        most = max(LIMIT, TIMES * self.size) if max_bytes is None else max_bytes
        own = sum(entry.nbytes for i, entry in enumerate(self.contents.entries) if i in wanted)
        if own > most:
            raise ValueError(
                f"its arrays take {own:,} bytes, allowed are {most:,}; pass max_bytes={own} if you trust it, or only= for a "
                "part"
            )

    def arrays(self, wanted: set[int], sharding: Callable[[str, str], Any]) -> Callable[[int], Any]:
        """Reads the arrays ``wanted``, passes over the rest; by an array's number, it, or an abstract one."""
        entries = self.contents.entries
        first_of = lambda i: i if (same := entries[i].same) is None else same
        firsts = {first_of(i) for i in wanted}
        reader = _Arrays(entries, firsts, sharding)
        with ThreadPoolExecutor(THREADS) as pool:
            for stream in streams.streams(entries, self.contents.chunk):
                if firsts.isdisjoint(stream.entries):
                    self.sizes.append(self._frames.skip())
                    continue
                data, size = self._frames.read()
                self.sizes.append(size)
                reader.start(pool, stream, data)
            reader.finish()
        whole = len(wanted) == len(entries)
        for name in self.contents.manifest["files"]:
            if whole:
                self._file(name)
            else:
                self._frames.skip()
        self._frames.end()
        self.contents.manifest["sha"] = f"{self._frames.digest:08x}"

        def given(i: int) -> Any:
            if i not in wanted:
                return _abstract(entries[i])
            return reader.arrays[i] if entries[i].same is None else reader.again(i)

        return given

    def files(self, names: Callable[[str], bool]) -> dict[str, bytes]:
        for _ in streams.streams(self.contents.entries, self.contents.chunk):
            self._frames.skip()
        found = {}
        for name in self.contents.manifest["files"]:
            if names(name):
                found[name] = self._file(name)
            else:
                self._frames.skip()
        return found

    def _file(self, name: str) -> bytes:
        """The file whose frame is next."""
        data, size = self._frames.read()[0](), self.contents.manifest["files"][name]
        if len(data) != size:
            raise ValueError(f"{name}: {len(data)} bytes, its header says {size}; {header.AGAIN}")
        return data


class _Arrays:
    """Arrays that are being read."""

    def __init__(self, entries: Sequence[nodes.Entry], wanted: set[int], sharding: Callable[[str, str], Any]) -> None:
        self._entries, self._wanted, self._sharding = entries, wanted, sharding
        self._places: dict[int, Place] = {}
        self._waiting: collections.deque[tuple[Future[None], streams.Stream]] = collections.deque()
        self.arrays: dict[int, Any] = {i: self._place(i).done() for i in wanted if 0 in entries[i].shape}

    def _place(self, i: int) -> Place:
        entry = self._entries[i]
        return Place(entry.shape, entry.dtype, self._sharding(entry.path, entry.leaf))

    def again(self, i: int) -> Any:
        """An array that equals an earlier one: with its own sharding, and memory of its own, which may be donated."""
        entry, place = self._entries[i], self._place(i)
        assert entry.same is not None
        place.put(tuple(slice(0, n) for n in entry.shape), np.asarray(self.arrays[entry.same]))
        return place.done()

    def start(self, pool: ThreadPoolExecutor, stream: streams.Stream, data: Callable[[], bytes]) -> None:
        """Decodes a stream in a thread; waits where too many are under way."""
        fresh = self._wanted.intersection(stream.entries) - self._places.keys()
        if fresh:
            self._finish_all()
            self._places |= {i: self._place(i) for i in fresh}
        self._waiting.append((pool.submit(self._decode, stream, data), stream))
        if len(self._waiting) > THREADS:
            self._next()

    def _finish_all(self) -> None:
        """Arrays whose streams have all been decoded become JAX's: a new one begins, so no further stream is theirs."""
        busy = {i for _, stream in self._waiting for i in stream.entries}
        for i in self._places.keys() - busy:
            self.arrays[i] = self._places.pop(i).done()

    def _next(self) -> None:
        self._waiting.popleft()[0].result()

    def finish(self) -> None:
        while self._waiting:
            self._next()
        self._finish_all()

    def _decode(self, stream: streams.Stream, data: Callable[[], bytes]) -> None:
        first = self._entries[stream.entries[0]]
        try:
            if stream.at is not None:
                shape = [s.stop - s.start for s in stream.at]
                values = streams.decoded(data(), shape, first.dtype, first.packed, stream.symbols)
                self._places[stream.entries[0]].put(stream.at, values)
                return
            values = streams.decoded(data(), stream.symbols, first.dtype, None, stream.symbols)
        except ValueError as error:
            raise ValueError(f"{first.path}: {error}") from error
        at = 0
        for i in stream.entries:
            own = self._entries[i].shape
            n = math.prod(own)
            if i in self._wanted:
                self._places[i].put(tuple(slice(0, d) for d in own), values[at : at + n].reshape(own))
            at += n


def _contents(head: Mapping[str, Any], size: int) -> Contents:
    """What the header says, checked.

    Raises:
      ValueError: it is not as the format says.
    """
    unknown = set(head) - {"tree", "recipe", "extra", "files", "chunk", "versions"}
    if unknown or "tree" not in head:
        raise ValueError(f"its header has {', '.join(sorted(unknown)) or 'no tree'}, which version {header.VERSION} has not")
    structure, entries = nodes.lengthened(head["tree"])
    chunk, files = head.get("chunk", streams.CHUNK), head.get("files", [])
    least, most = header.CHUNKS
    if type(chunk) is not int or not least <= chunk <= most:
        raise ValueError(f"its header says chunk={chunk}; allowed are {least} to {most}")
    if not isinstance(files, list) or not all(_is_file(each) for each in files) or len(dict(files)) != len(files):
        raise ValueError("its header's list of files is malformed")
    manifest = {
        "format": header.VERSION,
        "versions": head.get("versions", {}),
        "recipe": head.get("recipe"),
        "extra": head.get("extra"),
        "files": dict(files),
        "header_bytes": size,
    }
    return Contents(manifest, structure, entries, chunk)


def _is_file(each: Any) -> bool:
    return (
        isinstance(each, list) and len(each) == 2 and isinstance(each[0], str) and type(each[1]) is int and 0 <= each[1] < 2**48
    )
