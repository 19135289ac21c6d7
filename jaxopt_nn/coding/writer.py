"""A tree as one file."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from jaxopt_nn.coding import header, nodes, streams
from jaxopt_nn.coding.artifact import Artifact, check_names, versions
from jaxopt_nn.coding.places import Source
from jaxopt_nn.core.arguments import in_words
from jaxopt_nn.core.files import check_free, place_of, replacing
from jaxopt_nn.tensors.base import PyTree

#: Codes and numbers of a tree, at most, on which contexts are tried unasked: trying them takes seconds for so many.
CONTEXTS = 2**20
#: Frames that are being coded at once: each holds a chunk.
THREADS = min(8, os.cpu_count() or 1)


def save_file(
    path: str | os.PathLike[str],
    tree: PyTree,
    *,
    recipe: Any = None,
    extra: Any = None,
    files: Mapping[str, bytes] | None = None,
    overwrite: bool = False,
    contexts: bool | None = None,
    chunk: int = streams.CHUNK,
) -> Artifact:
    """Writes a tree to one file, whole or not at all; ``load_file`` reads it. ``coding/FORMAT.md`` has the format.

    Codes are entropy coded, floats without loss, equal arrays once. The file is written stream by stream, so that beside the
    tree it takes the memory of a few chunks. An array that is spread over devices is read shard by shard.

    Args:
      path: of the file; its folder must exist.
      tree: dicts (keys: strings or integers), lists, tuples and None around arrays, PRNG keys and compressed tensors.
      recipe, extra: anything that JSON can hold, kept in the header.
      files: further ones, by name, such as ``"programs/cpu.run"``; as ``load_file`` gives them.
      overwrite: replaces a file that stands there.
      contexts: whether codes are also coded by their neighbours, which is some percent smaller (more where zeros lie in rows)
        and takes a second to read some 5 million codes, to write a tenth of that. None: where the tree has at most a million
        entries and 1 % is saved.
      chunk: symbols that are coded as one, about; a larger array is coded in several chunks, at the same time.

    Raises:
      FileExistsError: something stands at ``path``: a folder, or a file and ``overwrite`` is False.
      TypeError: a node or leaf of another kind, named by its path; further files that are no bytes.
      ValueError: an array of which other hosts hold a part; a compressed tensor whose parts don't fit; a name among ``files``
        that leads out of a folder; a chunk or an ``extra`` that the format can't hold.
      OSError: the disk is full, or the place can't be written; nothing is left behind.

    Example:
      >>> v = {"kernel": jnp.linspace(-1, 1, 64 * 64).reshape(64, 64)}
      >>> method = jn.chain(jn.prune(sparsity=0.9), jn.quantize(4))
      >>> artifact = jn.save_file("tree.jn", method.pack(v, method.init(v)))
      >>> artifact.path.name, artifact.bytes == artifact.path.stat().st_size
      ('tree.jn', True)
    """
    target = place_of(path, "path")
    check_free(target, overwrite)
    files = _as_files(files or {})
    structure, entries, values = nodes.taken_apart(tree)
    least, most = header.CHUNKS
    if type(chunk) is not int or not least <= chunk <= most:
        raise ValueError(f"chunk={chunk}: pass a number of symbols, {least} or more and at most {most}")
    sources = [Source(entry.path, value) for entry, value in zip(entries, values)]
    entries = _deduplicated([_as_bytes(entry, source) for entry, source in zip(entries, sources)], values, sources)
    head = {
        "tree": nodes.shortened(structure, entries),
        "recipe": recipe,
        "extra": extra,
        "files": [[name, len(data)] for name, data in files.items()] or None,
        "chunk": None if chunk == streams.CHUNK else chunk,
        "versions": {name: version for name, version in versions().items() if name in ("jaxopt_nn", "jax")},
    }
    start = header.written({name: value for name, value in head.items() if name == "tree" or value is not None})
    with replacing(target) as temporary, open(temporary, "wb") as stream:
        stream.write(start)
        frames = header.Frames(stream, int.from_bytes(start[-4:], "little"))
        for data in _coded(entries, sources, chunk, _contexts(entries, contexts)):
            frames.write(data)
        for data in files.values():
            frames.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    return Artifact(target, target.stat().st_size)


def _as_files(files: Any) -> dict[str, bytes]:
    """The further files, their content as bytes.

    Raises:
      TypeError: no dict of bytes by name. ValueError: a name that leads out of a folder.
    """
    if not isinstance(files, Mapping):
        raise TypeError(f"files is {in_words(files)}; pass a dict of bytes by name: {{'notes.txt': b'...'}}")
    for name, data in files.items():
        if not isinstance(name, str):
            raise TypeError(f"files: the name {name!r} is no string; pass a dict of bytes by name: {{'notes.txt': b'...'}}")
        if not isinstance(data, bytes | bytearray | memoryview):
            way = "such as array.tobytes()" if hasattr(data, "tobytes") else "such as text.encode()"
            raise TypeError(f"files[{name!r}] is {in_words(data)}; pass bytes, {way}")
    check_names(files)
    return {name: bytes(data) for name, data in files.items()}


def _as_bytes(entry: nodes.Entry, source: Source) -> nodes.Entry:
    """The entry, as plain bytes if its codes would not be packed to those bytes again."""
    if entry.packed is None or 0 in entry.shape:
        return dataclasses.replace(entry, packed=None)
    at = entry.packed.axis
    last = tuple(slice(n - 1, n) if a == at else slice(0, n) for a, n in enumerate(entry.shape))
    fits = entry.dtype == np.uint8 and streams.padding_is_zero(source.part(last), entry.packed)
    return entry if fits else dataclasses.replace(entry, packed=None)


def _deduplicated(
    entries: Sequence[nodes.Entry], values: Sequence[Any], sources: Sequence[Source]
) -> list[nodes.Entry]:
    """The entries, those that equal an earlier one marked; arrays are compared only where form and dtype agree."""
    kinds = collections.Counter(entry.text for entry in entries)
    first: dict[Any, int] = {}
    found = []
    for i, (entry, value, source) in enumerate(zip(entries, values, sources)):
        same = None
        if kinds[entry.text] > 1 and 0 not in entry.shape:
            same = first.setdefault((entry.text, "object", id(value)), i)
            if same == i:
                same = first.setdefault((entry.text, "content", _digest(entry, source)), i)
        found.append(dataclasses.replace(entry, same=None if same in (None, i) else same))
    return found


def _digest(entry: nodes.Entry, source: Source) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for region, _ in streams.parts(entry.shape, None, streams.CHUNK):
        digest.update(np.ascontiguousarray(source.part(region)).view(np.uint8).data)
    return digest.digest()


def _contexts(entries: Sequence[nodes.Entry], asked: bool | None) -> bool | None:
    """Whether contexts are tried, as ``entropy.encode`` takes it."""
    each = (math.prod(streams.unpacked_shape(entry.shape, entry.packed)) for entry in entries if entry.same is None)
    return False if asked is None and sum(each) > CONTEXTS else asked


def _coded(
    entries: Sequence[nodes.Entry], sources: Sequence[Source], chunk: int, contexts: bool | None
) -> Iterator[bytes]:
    """The frames of all streams in order, coded in threads, a few ahead of what is written."""

    def code(each: streams.Stream) -> bytes:
        if each.at is not None:
            (i,) = each.entries
            return streams.encoded(sources[i].part(each.at), entries[i].packed, each.symbols, contexts)
        arrays = [np.ravel(sources[i].part(None)) for i in each.entries]
        return streams.encoded(np.concatenate(arrays), None, each.symbols, contexts)

    waiting: collections.deque[Future[bytes]] = collections.deque()
    with ThreadPoolExecutor(THREADS) as pool:
        for each in streams.streams(entries, chunk):
            waiting.append(pool.submit(code, each))
            if len(waiting) > THREADS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
